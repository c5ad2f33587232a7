"""Sinkhorn's sweeps in the log domain, done as matrix-vector products wherever that is the same."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Path", "Problem", "run"]

_NEAR = math.exp(15.0)  # factor by which a sweep may scale a column before the kernel is formed anew


@dataclass(frozen=True)
class Problem:
    """A transport problem in units of epsilon.

    Attributes
    ----------
    scaled
        ``(R, C)`` cost / epsilon.
    row, col
        ``(R,)`` and ``(C,)`` masses.
    ratio
        epsilon / penalty of column masses; 0 where they are fixed.
    stop
        ``"potential"`` or ``"marginal"``.
    tol
        Largest change of a column potential, in units of epsilon, or misplaced column mass.
    """

    scaled: Tensor
    row: Tensor
    col: Tensor
    ratio: float
    stop: str
    tol: float


@dataclass
class Path:
    """The potentials that a run went through, in units of epsilon.

    Attributes
    ----------
    u, v
        Blocks of ``(t, R)`` row and ``(t, C)`` column potentials in the order of the sweeps: every row of u follows
        from the same row of v, and every row of v from the row of u before it. Without a path only the last ones.
    n_sweeps
        Sweeps done.
    converged
        Whether the stopping test was met.
    """

    u: list[Tensor] = field(default_factory=list)
    v: list[Tensor] = field(default_factory=list)
    n_sweeps: int = 0
    converged: bool = False


def run(problem: Problem, v: Tensor, *, max_sweeps: int, keep_path: bool) -> tuple[Tensor, Path]:
    """Sweep from a column potential until the test is met.

    Around a base (u, v) the kernel exp(u + v - D / epsilon) is formed once; sweeps then only scale its rows and
    columns, two matrix-vector products each. A new base is taken where they scale by more than e^15, and a sweep that
    does so at once is done with logsumexp. What underflows in the kernel is below e^-40 of what matters (and e^-87 of
    the mass), so the answer is that of the log domain.

    Parameters
    ----------
    problem
        What to solve.
    v
        ``(C,)`` column potential to begin with, in units of epsilon.
    max_sweeps
        Sweeps at most.
    keep_path
        Whether to return the potentials of every sweep.

    Returns
    -------
    The plan ``(R, C)`` and the path.
    """
    path, lost = Path(), False
    while True:
        u = problem.row.log() - torch.logsumexp(v - problem.scaled, dim=1)
        kernel = torch.exp(u[:, None] + (v - problem.scaled))
        before = path.n_sweeps
        rows, cols = _scale(problem, kernel, v, path=path, max_sweeps=max_sweeps, keep_path=keep_path)
        done = path.converged or path.n_sweeps >= max_sweeps or lost
        if not keep_path:
            path.u, path.v = [], []
        if done:
            path.u.append(u + torch.stack(rows).log())
            path.v.append(v + torch.stack(cols).log())
            return kernel.mul_(rows[-1][:, None]).mul_(cols[-1]), path
        if path.n_sweeps > before:  # the kernel wears out: form it anew around where the sweeps have come
            v_next = v + cols[-1].log()
            rows, cols = rows[:-1], cols[:-1]
        else:
            v_next, left = _log_step(problem, u, v)
            path.n_sweeps += 1
            path.converged = left < problem.tol
            lost = math.isnan(left)  # the cost holds a NaN, which no sweep can mend
        if rows:
            path.u.append(u + torch.stack(rows).log())
            path.v.append(v + torch.stack(cols).log())
        v = v_next


def _scale(
    problem: Problem, kernel: Tensor, v: Tensor, *, path: Path, max_sweeps: int, keep_path: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Sweep with the kernel of a base while it lasts; return the scalings of rows and columns, the base's own first."""
    rows, cols = [torch.ones_like(problem.row)], [torch.ones_like(problem.col)]
    ratio = problem.ratio
    aim = problem.col if ratio == 0 else problem.col * torch.exp(-ratio * v)
    while not path.converged and path.n_sweeps < max_sweeps:
        total = rows[-1] @ kernel
        new = aim / total if ratio == 0 else (aim / total) ** (1 / (1 + ratio))
        low, high = torch.stack(new.aminmax()).tolist()
        if not (low * _NEAR > 1 and high < _NEAR):
            break
        if problem.stop == "potential":
            left = (new / cols[-1]).log().abs().max()
        else:
            wanted = aim if ratio == 0 else aim * cols[-1] ** -ratio
            left = (cols[-1] * total - wanted).abs().sum()
        path.converged = float(left) < problem.tol
        path.n_sweeps += 1
        if not keep_path:
            rows, cols = [], []
        cols.append(new)
        rows.append(problem.row / (kernel @ new))
    return rows, cols


def _log_step(problem: Problem, u: Tensor, v: Tensor) -> tuple[Tensor, float]:
    """Return the next column potential, and how far v was from where it should be."""
    total = torch.logsumexp(u[:, None] - problem.scaled, dim=0)
    log_col = problem.col.log()
    new = (log_col - total) / (1 + problem.ratio)
    if problem.stop == "potential":
        return new, float((new - v).abs().max())
    return new, float(((v + total).exp() - (log_col - problem.ratio * v).exp()).abs().sum())
