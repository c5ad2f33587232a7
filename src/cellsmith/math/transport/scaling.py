"""Sinkhorn's sweeps in the log domain."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cellsmith._errors import SetupError, nearest
from cellsmith.math.transport.adjoint import ImplicitPlan, UnrolledPlan
from cellsmith.math.transport.peer import pot_potential
from cellsmith.math.transport.plan import Plan, checked_equal, checked_masses, checked_positive
from cellsmith.math.transport.sweeps import Problem, run

__all__ = ["sinkhorn"]

Stop = Literal["potential", "marginal"]
Solver = Literal["log", "pot"]
Gradient = Literal["envelope", "unrolled", "implicit"]


def sinkhorn(
    cost: Tensor,
    row: Tensor,
    col: Tensor,
    *,
    epsilon: float,
    col_penalty: float = float("inf"),
    tol: float = 1e-4,
    stop: Stop = "potential",
    max_sweeps: int = 200,
    gradient: Gradient = "envelope",
    solver: Solver = "log",
    start: Tensor | None = None,
) -> Plan:
    """Solve entropic optimal transport, P = argmin <P, D> - epsilon H(P) + col_penalty KL(P^T 1 : col), P 1 = row.

    Alternates f_r = epsilon (log row_r - lse_c((g_c - D_rc) / epsilon)) and g_c = w epsilon (log col_c -
    lse_r((f_r - D_rc) / epsilon)) with w = col_penalty / (col_penalty + epsilon), f last: row masses are met exactly,
    column masses within the tolerance (scE2TM T11-T13; scSiameseClu S22, S23; Cuturi 2013; Chizat et al. 2018).

    Parameters
    ----------
    cost
        ``(R, C)`` cost D, of any unit.
    row, col
        ``(R,)`` and ``(C,)`` masses, above 0. Their totals must agree unless ``col_penalty`` is finite.
    epsilon
        Weight of the entropy H(P) = -sum P (log P - 1), in units of the cost.
    col_penalty
        Price of column masses that differ from ``col``, in units of the cost; infinite: they must be equal.
    tol
        What stops the sweeps, see ``stop``.
    stop
        ``"potential"``: largest change of g in one sweep, in units of the cost. ``"marginal"``: summed absolute
        difference between column masses and what they should be, in units of mass.
    max_sweeps
        Sweeps at most. Whether the test was met is in :attr:`Plan.converged`; nothing is raised.
    gradient
        What flows back to ``cost`` through the plan. ``"envelope"``: nothing, so that the derivative of <P, D> is P.
        ``"unrolled"``: the derivative of the sweeps that were done. ``"implicit"``: that of the exact optimum, in
        memory independent of the number of sweeps. Potentials carry a gradient with ``"unrolled"`` only.
    solver
        ``"log"``: ours. ``"pot"``: Python Optimal Transport on the CPU, for comparison; our sweeps start where it
        stopped, so that the test and ``n_sweeps`` are of them. Not with ``"unrolled"``.
    start
        ``(C,)`` column potential to begin with, such as that of a slightly different cost; None: zeros. Not with
        ``"unrolled"``, whose derivative needs the whole path.

    Returns
    -------
    The plan, its potentials, the number of sweeps and whether they converged.

    Raises
    ------
    SetupError
        If shapes, masses or numbers are out of range, a word is unknown, or ``start`` or ``solver="pot"`` meets
        ``"unrolled"``.
    MissingExtraError
        If POT is asked for and not installed.
    """
    row, col = checked_masses(cost, row, col)
    checked_positive("epsilon", epsilon)
    checked_positive("col_penalty", col_penalty, finite=False)
    checked_positive("tol", tol)
    _check_words(stop, gradient, solver, started=start is not None)
    ratio = epsilon / col_penalty  # 0 where columns are fixed
    if ratio == 0:
        col = checked_equal(row, col)
    with torch.no_grad():
        limit = tol / epsilon if stop == "potential" else tol
        problem = Problem(cost.detach() / epsilon, row, col, ratio, stop, limit)
        v = torch.zeros_like(col) if start is None else start.detach() / epsilon
        if solver == "pot":
            v = pot_potential(problem, max_sweeps=max_sweeps)
        plan, path = run(problem, v, max_sweeps=max_sweeps, keep_path=gradient == "unrolled")
        f, g = path.u[-1][-1] * epsilon, path.v[-1][-1] * epsilon
    if gradient == "unrolled":
        plan, f, g = UnrolledPlan.apply(cost, (plan, path), problem, epsilon)
    elif gradient == "implicit":
        plan = ImplicitPlan.apply(cost, (plan,), epsilon, ratio)
    return Plan(plan, f, g, path.n_sweeps, path.converged)


def _check_words(stop: str, gradient: str, solver: str, *, started: bool) -> None:
    for name, value, valid in (
        ("stop", stop, ("potential", "marginal")),
        ("gradient", gradient, ("envelope", "unrolled", "implicit")),
        ("solver", solver, ("log", "pot")),
    ):
        if value not in valid:
            raise SetupError(f"{name}={value!r} is not known. {nearest(value, valid)}")
    if gradient == "unrolled" and (started or solver == "pot"):
        raise SetupError(
            f"Found gradient='unrolled' with {'start' if started else 'solver=pot'}, expected sweeps from zero, whose "
            "whole path is differentiated. Type gradient='implicit'."
        )
