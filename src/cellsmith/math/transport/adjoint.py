"""Derivatives of a transport plan with respect to its cost: of the exact optimum, and of the sweeps that were done."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cellsmith.math.transport.sweeps import Path, Problem

__all__ = ["ImplicitPlan", "UnrolledPlan", "plan_adjoint", "sweep_adjoint"]

_RIDGE = 1e-12  # in units of the mean row mass; far above float64 rounding, far below any eigenvalue that matters
_NEAR = 30.0  # potentials of sweeps that share one kernel differ by at most this much, in units of epsilon


def plan_adjoint(plan: Tensor, given: Tensor, *, ratio: float = 0.0) -> Tensor:
    """Carry a gradient with respect to the optimal plan back to the cost (scE2TM T13).

    The optimum P = exp((f + g - D) / epsilon) moves with D so that row masses stay and column masses m_c follow
    col_c exp(-g_c / col_penalty). The adjoint is P (s_r + t_c - given) / epsilon with
    [diag(row), P; P^T, (1 + ratio) diag(m)] [s; t] = [(P given) 1; (P given)^T 1], solved in float64 through the Schur
    complement of the longer side. With ratio = 0 constants (s + 1, t - 1) are its null space; they cancel.

    Parameters
    ----------
    plan
        ``(R, C)`` plan at convergence.
    given
        ``(R, C)`` gradient of a scalar with respect to the plan.
    ratio
        ``epsilon / col_penalty``, 0 where column masses are fixed.

    Returns
    -------
    ``(R, C)`` gradient with respect to cost / epsilon, in the type of ``plan``.
    """
    if plan.shape[0] > plan.shape[1]:
        return _solved(plan.T, given.T, (1 + ratio, 1.0)).T
    return _solved(plan, given, (1.0, 1 + ratio))


def _solved(plan: Tensor, given: Tensor, factors: tuple[float, float]) -> Tensor:
    """Return plan * (s + t - given) where rows are the shorter side; factors stand before the two diagonals."""
    wide = plan.to("cpu" if plan.device.type == "mps" else plan.device, torch.float64)  # Apple's GPUs have no float64
    flow = wide * given.to(wide.device)
    row, col = factors[0] * wide.sum(1), factors[1] * wide.sum(0)
    share = wide / col
    schur = torch.diag(row) - share @ wide.T
    unit = row.mean()
    if factors == (1.0, 1.0):
        schur += unit / len(row)  # lifts the constants out of the null space, without touching what is orthogonal
    schur.diagonal().add_(_RIDGE * unit)
    flow_col = flow.sum(0)
    right = flow.sum(1) - share @ flow_col
    if not torch.isfinite(right).all():
        return torch.full_like(plan, torch.nan)  # the loss is NaN already; whoever trains says where it came from
    s = torch.cholesky_solve(right[:, None], torch.linalg.cholesky(schur))[:, 0]
    t = (flow_col - wide.T @ s) / col
    return torch.add(s[:, None], t, out=share).mul_(wide).sub_(flow).to(plan)  # share is free again


def sweep_adjoint(problem: Problem, u: Tensor, v: Tensor, *, given: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Carry gradients back through the sweeps that were done (scE2TM T12, reverse mode by hand).

    Every half sweep is y <- const - lse(x - D / epsilon), and its derivative a matrix M = exp(x + y - D / epsilon)
    whose rows, or columns, sum to one. Half sweeps with near potentials share one kernel, M = diag(a) kernel diag(b),
    so each costs one matrix-vector product, and their outer products for the cost are one matrix product.

    Parameters
    ----------
    problem
        What was solved.
    u, v
        ``(T + 1, R)`` and ``(T + 1, C)`` potentials of all sweeps, in units of epsilon.
    given
        Gradients with respect to the plan ``(R, C)``, to u ``(R,)`` and to v ``(C,)`` of the last sweep.

    Returns
    -------
    ``(R, C)`` gradient with respect to cost / epsilon.
    """
    plan = torch.exp(u[-1][:, None] + (v[-1] - problem.scaled))
    flow = plan * given[0]
    to_u, to_v = given[1] + flow.sum(1), given[2] + flow.sum(0)
    found, none = -flow, torch.zeros_like(to_v)
    x, y = _half_sweeps(problem, u, v)
    last = len(x) - 1
    while last >= 0:
        left, right = x[: last + 1] - x[last], y[: last + 1] - y[last]
        away = left.abs().amax(dim=1) + right.abs().amax(dim=1)
        far = (away > _NEAR).nonzero()
        first = int(far[-1]) + 1 if len(far) else 0
        kernel = torch.exp(x[last][:, None] + (y[last] - problem.scaled))
        left, right = left[first:].exp_(), right[first:].exp_()
        for half in range(last, first - 1, -1):
            a, b = left[half - first], right[half - first]
            if half % 2 == 0:
                to_v = torch.addcmul(to_v, torch.mv(kernel.T, a.mul_(to_u)), b, value=-1)
            else:
                b.mul_(to_v).div_(1 + problem.ratio)
                to_u, to_v = torch.mv(kernel, b).mul_(a).neg_(), none
        found += kernel.mul_(left.T @ right)
        last = first - 1
    return found


def _half_sweeps(problem: Problem, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return x (2 T + 1, R) and y (2 T + 1, C): half 2 t gives u_t from v_t, half 2 t - 1 gives v_t from u_(t - 1)."""
    x, y = u.repeat_interleave(2, dim=0)[:-1], v.repeat_interleave(2, dim=0)[1:]
    x[::2] -= problem.row.log()
    y[1::2].mul_(1 + problem.ratio).sub_(problem.col.log())
    return x, y


class ImplicitPlan(torch.autograd.Function):
    """The plan, with :func:`plan_adjoint` as its derivative; keeps the plan and nothing else."""

    @staticmethod
    def forward(ctx: Any, cost: Tensor, answer: tuple[Tensor], epsilon: float, ratio: float) -> Tensor:
        """Return the plan, ``(R, C)``."""
        ctx.epsilon, ctx.ratio = epsilon, ratio
        ctx.save_for_backward(answer[0])
        return answer[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> Any:
        """Return the gradient with respect to the cost, ``(R, C)``."""
        (plan,) = ctx.saved_tensors
        return plan_adjoint(plan, given, ratio=ctx.ratio) / ctx.epsilon, None, None, None


class UnrolledPlan(torch.autograd.Function):
    """The plan and its potentials, with :func:`sweep_adjoint` as their derivative; keeps the path of potentials."""

    @staticmethod
    def forward(
        ctx: Any, cost: Tensor, answer: tuple[Tensor, Path], problem: Problem, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the plan ``(R, C)`` and the potentials ``(R,)`` and ``(C,)``."""
        plan, path = answer
        ctx.problem, ctx.epsilon = problem, epsilon
        u, v = torch.cat(path.u), torch.cat(path.v)
        ctx.save_for_backward(u, v)
        return plan, u[-1] * epsilon, v[-1] * epsilon

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> Any:
        """Return the gradient with respect to the cost, ``(R, C)``.

        Parameters
        ----------
        ctx
            What forward kept.
        given
            Gradients with respect to the plan ``(R, C)`` and the potentials ``(R,)`` and ``(C,)``.
        """
        u, v = ctx.saved_tensors
        to_plan, to_f, to_g = given
        found = sweep_adjoint(ctx.problem, u, v, given=(to_plan, to_f * ctx.epsilon, to_g * ctx.epsilon))
        return found / ctx.epsilon, None, None, None
