"""Chebyshev iteration: a number of steps known beforehand, and no sums over cells on the way (GRIT Eq. 9)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from cellsmith._errors import SetupError
from cellsmith.math.solve.solution import Problem, Solution, blocks

__all__ = ["a_priori_steps", "chebyshev"]

_PASSES = 4  # one is enough in exact arithmetic; the others mend rounding, from the float64 residual


def a_priori_steps(kappa: float, eps: float) -> int:
    """Count the Chebyshev steps after which the error is at most ``eps`` of the first one.

    m = ceil(ln(2 / eps) / ln((sqrt(kappa) + 1) / (sqrt(kappa) - 1))) (GRIT Eq. 9).

    Parameters
    ----------
    kappa
        Condition number of the Jacobi-scaled matrix, >= 1; ``1 + 2 lambda`` for the normalised Laplacian.
    eps
        Ratio of the errors, in (0, 1).

    Returns
    -------
    Number of steps, at least 1.

    Raises
    ------
    SetupError
        If ``kappa`` is infinite or below 1, or ``eps`` outside (0, 1).
    """
    if not (1.0 <= kappa < math.inf and 0.0 < eps < 1.0):
        raise SetupError(f"Found kappa={kappa:g} and eps={eps:g}, expected kappa finite and >= 1, and 0 < eps < 1.")
    root = math.sqrt(kappa)
    if root <= 1.0:
        return 1
    return max(1, math.ceil(math.log(2.0 / eps) / math.log1p(2.0 / (root - 1.0))))


def chebyshev(
    apply: Callable[[Any], Any],
    B: Any,
    *,
    bounds: tuple[float, float],
    tol: float,
    diag: Any = None,
    x0: Any = None,
    steps: int | None = None,
    strict: bool = True,
) -> Solution:
    """Solve M X = B by the Chebyshev semi-iteration (Saad, Iterative Methods, algorithm 12.1).

    Takes :func:`a_priori_steps` steps without a single reduction, then looks at the float64 residual once; where
    rounding or uneven scaling left a column above the tolerance it goes on from there.

    Parameters
    ----------
    apply, B, x0, tol, strict
        As in :func:`block_cg`.
    bounds
        Smallest and largest eigenvalue of D^-1/2 M D^-1/2 (of M itself without ``diag``), or bounds of them, > 0.
    diag
        ``(n,)`` diagonal for Jacobi scaling; None is no scaling.
    steps
        Take exactly this many steps, once; None as above.

    Returns
    -------
    :class:`Solution`.

    Raises
    ------
    ConvergenceError
        If the tolerance is not reached.
    SetupError
        If the bounds are not 0 < low <= high, shapes disagree, or B is not finite.
    """
    low, high = bounds
    if not 0.0 < low <= high < math.inf:
        raise SetupError(
            f"Found bounds ({low:g}, {high:g}), expected 0 < low <= high. With a weight of zero the smallest "
            'eigenvalue has no known bound: use conjugate gradients, solver="cg".'
        )
    problem = Problem.of(apply, B)
    inverse = problem.vector([1.0] if diag is None else diag).reciprocal().expand(len(problem.b), 1)
    x = problem.start(x0)
    r = problem.b.clone() if x0 is None else problem.apply(x).neg_().add_(problem.b)
    taken, history = 0, []
    left = _largest(problem, r)
    eps = tol / left if left > 0 else 1.0
    for attempt in range(1 if steps is not None else _PASSES):
        count = steps if steps is not None else a_priori_steps(high / low, eps) if eps < 1 else 0
        _run(problem, x, r, inverse=inverse, bounds=bounds, steps=count)
        taken += count
        true = problem.residual(x, out=r if attempt + 1 < _PASSES else None)
        history.append(float(true.max()) if true.numel() else 0.0)
        if history[-1] <= tol:
            break
        eps = 0.5 * min(tol / history[-1], 1.0)
    found = problem.solution(x, true, iterations=taken, history=history, tolerance=tol)
    return found.checked() if strict else found


def _largest(problem: Problem, r: torch.Tensor) -> float:
    """Return the largest |R_c| / |B_c|."""
    square = torch.zeros_like(problem.norm)
    for rows in blocks(r):
        square += r[rows].double().square().sum(0)
    ratio = torch.where(problem.norm > 0, square.sqrt() / problem.norm, 0.0)
    return float(ratio.max()) if ratio.numel() else 0.0


def _run(
    problem: Problem,
    x: torch.Tensor,
    r: torch.Tensor,
    *,
    inverse: torch.Tensor,
    bounds: tuple[float, float],
    steps: int,
) -> None:
    """Take the steps from the residual ``r`` of ``x``; changes both in place."""
    if steps == 0:
        return
    centre, radius = (bounds[1] + bounds[0]) / 2, (bounds[1] - bounds[0]) / 2
    d = r * (inverse / centre)
    ratio = radius / centre
    for step in range(steps):
        if step:
            following = 1.0 / (2.0 * centre / radius - ratio) if radius > 0 else 0.0
            kept, added = (following * ratio, 2.0 * following / radius) if radius > 0 else (0.0, 1.0 / centre)
            for rows in blocks(x):
                d[rows].mul_(kept).addcmul_(r[rows], inverse[rows], value=added)
            ratio = following
        x += d
        if step + 1 < steps:
            r -= problem.apply(d)
