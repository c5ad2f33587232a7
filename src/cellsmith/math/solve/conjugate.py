"""Conjugate gradients for all right-hand sides at once (GRIT Eq. 8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cellsmith._errors import ConvergenceError
from cellsmith.math.solve.solution import Problem, Solution, blocks

__all__ = ["block_cg"]

_RESTARTS = 4  # from the float64 residual, for what float32 recursions lose
_KEEP = 0.75  # finished columns leave the arrays when at most this share still runs
_MARGIN = 0.9  # the recursion aims a little below the tolerance, so that the true residual rarely needs a restart


def block_cg(
    apply: Callable[[Any], Any],
    B: Any,
    *,
    diag: Any,
    x0: Any = None,
    tol: float,
    max_iter: int,
    strict: bool = True,
) -> Solution:
    """Solve M X = B by conjugate gradients with Jacobi scaling.

    All columns share one product with M per step; each has its own step lengths, and columns that have converged
    leave. Iterates in the dtype of ``B``; the end is judged by the residual in float64, and where float32 recursions
    drifted away from it they start again from it. Memory: four arrays of the shape of B besides M and B. Sums run
    over fixed blocks of rows, so a CPU result does not depend on the number of threads of the sums.

    Parameters
    ----------
    apply
        X -> M X for ``(n, c)`` blocks of any c <= C in float32 and float64; M symmetric positive definite.
    B
        ``(n, C)`` right-hand sides, numpy array or tensor (then ``apply`` gets tensors on its device).
    diag
        ``(n,)`` diagonal of M, > 0.
    x0
        ``(n, C)`` start; None is zero.
    tol
        Relative residual |B_c - M X_c| / |B_c| at which a column is done.
    max_iter
        Largest number of iterations.
    strict
        Raise when a column is not done by then; else return it as it is.

    Returns
    -------
    :class:`Solution`.

    Raises
    ------
    ConvergenceError
        If the tolerance is not reached, or M turns out not to be positive definite.
    SetupError
        If shapes disagree or B is not finite.
    """
    problem = Problem.of(apply, B)
    inverse = problem.vector(diag).reciprocal()
    x = problem.start(x0)
    r = problem.b.clone() if x0 is None else problem.apply(x).neg_().add_(problem.b)
    history: list[float] = []
    true = torch.zeros_like(problem.norm)
    for attempt in range(_RESTARTS):
        before, former = len(history), true
        _run(problem, x, r, inverse=inverse, tol=tol * _MARGIN, limit=max_iter - before, history=history)
        true = problem.residual(x, out=r if attempt + 1 < _RESTARTS else None)
        stuck = attempt > 0 and not bool((true < 0.5 * former)[true > tol].any())  # at the resolution of the dtype
        if stuck or bool((true <= tol).all()) or len(history) >= max_iter or len(history) == before:
            break
    found = problem.solution(x, true, iterations=len(history), history=history, tolerance=tol)
    return found.checked() if strict else found


def _run(
    problem: Problem,
    x: torch.Tensor,
    r: torch.Tensor,
    *,
    inverse: torch.Tensor,
    tol: float,
    limit: int,
    history: list[float],
) -> None:
    """Iterate from the residual ``r`` of ``x``; changes x in place, appends to history. ``r`` is scratch."""
    rz, rr = _sums(r, inverse)
    columns = (rr.sqrt() > tol * problem.norm).nonzero()[:, 0]
    everything = columns.numel() == x.shape[1]
    if not everything:
        r = r[:, columns].contiguous()
        rz = rz[columns]
    norm = problem.norm[columns]
    running = torch.ones_like(norm, dtype=torch.bool)
    p = r * inverse
    for _ in range(limit if columns.numel() else 0):
        q = problem.apply(p)
        curvature = torch.zeros_like(rz)
        for rows in blocks(p):
            curvature += (p[rows] * q[rows]).sum(0)
        if bool((running & ~(curvature > 0)).any()):
            worst = int(columns[running & ~(curvature > 0)][0])
            raise ConvergenceError(
                f"Found curvature {float(curvature[running & ~(curvature > 0)][0]):g} in column {worst}, expected > 0: "
                "the matrix is not positive definite. Check that weights are >= 0 and that every component has a "
                "cell with a score."
            )
        step = torch.where(running, rz / curvature, 0.0).to(x.dtype)
        for rows in blocks(p):
            if everything:
                x[rows].addcmul_(p[rows], step)
            else:
                x[rows, columns] += p[rows] * step
            r[rows].addcmul_(q[rows], -step)
        del q  # before the next product is made: four arrays, not five
        fresh, rr = _sums(r, inverse)
        relative = torch.where(running, rr.sqrt() / norm, 0.0)
        history.append(float(relative.max()))
        running &= relative > tol
        if not bool(running.any()):
            return
        ratio = torch.where(running, fresh / rz, 0.0).to(x.dtype)
        for rows in blocks(p):
            p[rows].mul_(ratio).addcmul_(r[rows], inverse[rows])
        rz = fresh
        if int(running.sum()) <= _KEEP * running.numel():
            p, r = p[:, running].contiguous(), r[:, running].contiguous()
            columns, norm, rz = columns[running], norm[running], rz[running]
            running, everything = running[running], False


def _sums(r: torch.Tensor, inverse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return r . D^-1 r and r . r of every column, in float64."""
    rz = torch.zeros(r.shape[1], dtype=torch.float64, device=r.device)
    rr = torch.zeros_like(rz)
    for rows in blocks(r):
        square = r[rows].square()
        rr += square.sum(0)
        rz += (square * inverse[rows]).sum(0)
    return rz, rr
