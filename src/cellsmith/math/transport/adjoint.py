"""The derivative of an entropic transport plan with respect to its cost, by the implicit function theorem."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["ImplicitPlan", "plan_adjoint"]

_RIDGE = 1e-12  # in units of the mean row mass; far above float64 rounding, far below any eigenvalue that matters


def plan_adjoint(plan: Tensor, given: Tensor, *, epsilon: float, ratio: float = 0.0) -> Tensor:
    """Carry a gradient with respect to the plan back to the cost (scE2TM T13).

    The optimum P = exp((f + g - D) / epsilon) moves with D so that row masses stay and column masses m_c follow
    col_c exp(-g_c / col_penalty). Its adjoint is P (s_r + t_c - given) / epsilon with
    [diag(row), P; P^T, (1 + ratio) diag(m)] [s; t] = [(P given) 1; (P given)^T 1], solved through the Schur complement
    of the longer side in float64. With ratio = 0 constants (s + 1, t - 1) are its null space; they cancel.

    Parameters
    ----------
    plan
        ``(R, C)`` plan at convergence.
    given
        ``(R, C)`` gradient of a scalar with respect to the plan.
    epsilon
        Weight of the entropy, in units of the cost.
    ratio
        ``epsilon / col_penalty``, 0 where column masses are fixed.

    Returns
    -------
    ``(R, C)`` gradient with respect to the cost, in the type of ``plan``.
    """
    if plan.shape[0] > plan.shape[1]:
        return _solved(plan.T, given.T, (1 + ratio, 1.0)).T / epsilon
    return _solved(plan, given, (1.0, 1 + ratio)) / epsilon


def _solved(plan: Tensor, given: Tensor, factors: tuple[float, float]) -> Tensor:
    """Return plan * (s + t - given) where rows are the shorter side; factors stand before the two diagonals."""
    wide = plan.to(torch.float64)
    flow = wide * given
    row, col = factors[0] * wide.sum(1), factors[1] * wide.sum(0)
    share = wide / col
    schur = torch.diag(row) - share @ wide.T
    k, unit = len(row), row.mean()
    if factors == (1.0, 1.0):
        schur += unit / k  # lifts the constants out of the null space without touching what is orthogonal to them
    schur.diagonal().add_(_RIDGE * unit)
    flow_col = flow.sum(0)
    right = flow.sum(1) - share @ flow_col
    s = torch.cholesky_solve(right[:, None], torch.linalg.cholesky(schur))[:, 0]
    t = (flow_col - wide.T @ s) / col
    return ((s[:, None] + t) * wide - flow).to(plan.dtype)


class ImplicitPlan(torch.autograd.Function):
    """The plan, with :func:`plan_adjoint` as its derivative; stores the plan and nothing else."""

    @staticmethod
    def forward(ctx: Any, cost: Tensor, plan: Tensor, epsilon: float, ratio: float) -> Tensor:
        """Return the plan, ``(R, C)``."""
        ctx.epsilon, ctx.ratio = epsilon, ratio
        ctx.save_for_backward(plan)
        return plan.clone()

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> Any:
        """Return the gradient with respect to the cost, ``(R, C)``."""
        (plan,) = ctx.saved_tensors
        return plan_adjoint(plan, given, epsilon=ctx.epsilon, ratio=ctx.ratio), None, None, None
