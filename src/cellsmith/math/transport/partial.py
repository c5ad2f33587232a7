"""Partial entropic transport: only a given part of the mass moves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cellsmith._errors import SetupError
from cellsmith.math.transport.plan import Plan, checked_masses, checked_positive

__all__ = ["sinkhorn_partial"]

_ALL = 1e-5  # a mass this near (relative) to all of one side counts as all: float32 sums of some 10^4 masses
_NEAR = 15.0  # multipliers may leave those of the kernel by this much, in units of epsilon, before it is formed anew


def sinkhorn_partial(
    cost: Tensor, row: Tensor, col: Tensor, *, mass: float, epsilon: float, tol: float = 1e-4, max_sweeps: int = 1000
) -> Plan:
    """Solve P = argmin <P, D> - epsilon H(P) with P 1 <= row, P^T 1 <= col and total ``mass``.

    Sweeps over the three constraints in the log domain, each with its multiplier (Benamou et al., 2015, Dykstra's
    form): f <= 0 cuts rows that carry too much, g <= 0 columns, and h lifts all to the total. If ``mass`` is all of
    ``col`` (or ``row``), columns (rows) are met exactly instead: a share of the cells is then assigned to clusters of
    given sizes, and the rest stay out (the virtual cluster of scSiameseClu S23).

    Parameters
    ----------
    cost
        ``(R, C)`` cost D, of any unit.
    row, col
        ``(R,)`` and ``(C,)`` masses, above 0.
    mass
        Mass to move, above 0 and at most the smaller total.
    epsilon
        Weight of the entropy H(P) = -sum P (log P - 1), in units of the cost.
    tol
        Sweeps stop when no multiplier changes by more, in units of the cost.
    max_sweeps
        Sweeps at most. Whether the test was met is in :attr:`Plan.converged`; nothing is raised.

    Returns
    -------
    The plan ``(R, C)``, without gradient, its potentials, the number of sweeps and whether they converged. The row
    potential is f + h.

    Raises
    ------
    SetupError
        If shapes, masses or numbers are out of range.
    """
    row, col = checked_masses(cost, row, col)
    checked_positive("epsilon", epsilon)
    checked_positive("tol", tol)
    totals = (float(row.sum()), float(col.sum()))
    if not 0 < mass <= min(totals) * (1 + _ALL):
        raise SetupError(f"Found mass={mass!r}, expected above 0 and at most {min(totals):g}, the smaller total.")
    with torch.no_grad():
        scaled = cost.detach() / epsilon
        whole = [mass >= total * (1 - _ALL) for total in totals]
        # all of a side is exactly that: unequal by rounding, multipliers would grow with every sweep
        row, col = row * (mass / totals[0] if whole[0] else 1.0), col * (mass / totals[1] if whole[1] else 1.0)
        goal = torch.cat((row, col, row.new_tensor([mass])))
        cap = torch.full_like(goal, math.inf)
        for side, all_ in zip(cap.split((*cost.shape, 1)), whole, strict=False):
            side.fill_(math.inf if all_ else 0.0)
        x, n_sweeps, left = _sweep(scaled, goal, cap, tol=tol / epsilon, max_sweeps=max_sweeps)
        u, v, h = x.split((*cost.shape, 1))
        plan = torch.exp((u + h)[:, None] + (v - scaled))
    return Plan(plan, (u + h) * epsilon, v * epsilon, n_sweeps, left < tol / epsilon)


def _sweep(scaled: Tensor, goal: Tensor, cap: Tensor, *, tol: float, max_sweeps: int) -> tuple[Tensor, int, float]:
    """Return the multipliers in units of epsilon, the sweeps and the last change.

    Multipliers u, v, h, what their constraints allow (``goal``) and how large they may be (``cap``) are vectors
    (R + C + 1,). As in :func:`cellsmith.math.transport.sweeps.run`, sweeps scale a kernel while they stay near its
    multipliers; one that does not is done with logsumexp.
    """
    parts = (*scaled.shape, 1)
    x, n_sweeps, left = torch.zeros_like(goal), 0, math.inf
    log_row, log_col, log_mass = goal.log().split(parts)
    top_u, top_v, _ = cap.split(parts)
    while n_sweeps < max_sweeps and left >= tol:
        u, v, h = x.split(parts)
        u = torch.minimum(log_row - h - torch.logsumexp(v - scaled, dim=1), top_u)
        by_col = torch.logsumexp(u[:, None] - scaled, dim=0)
        v = torch.minimum(log_col - h - by_col, top_v)
        new = torch.cat((u, v, log_mass - torch.logsumexp(v + by_col, dim=0)))
        left, n_sweeps = float((new - x).abs().max()), n_sweeps + 1
        x, swept, left = _scale(scaled, new, goal, cap, tol=tol, limit=max_sweeps - n_sweeps, left=left)
        n_sweeps += swept
    return x, n_sweeps, left


def _scale(
    scaled: Tensor, base: Tensor, goal: Tensor, cap: Tensor, *, tol: float, limit: int, left: float
) -> tuple[Tensor, int, float]:
    """Sweep with the kernel of ``base`` while it lasts; return the multipliers, the sweeps and the last change."""
    parts = (*scaled.shape, 1)
    u, v, h = base.split(parts)
    kernel = torch.exp((u + h)[:, None] + (v - scaled))
    row, col, mass = goal.split(parts)
    top_a, top_b, _ = (cap - base).exp().split(parts)
    away, n_sweeps = torch.zeros_like(base), 0
    while n_sweeps < limit and left >= tol:
        _, b, c = away.exp().split(parts)
        a = torch.minimum(row / (c * torch.mv(kernel, b)), top_a)
        by_col = torch.mv(kernel.T, a)
        b = torch.minimum(col / (c * by_col), top_b)
        new = torch.cat((a, b, mass / torch.dot(by_col, b))).log()
        if not float(new.abs().max()) < _NEAR:
            break
        left, n_sweeps = float((new - away).abs().max()), n_sweeps + 1
        away = new
    return base + away, n_sweeps, left
