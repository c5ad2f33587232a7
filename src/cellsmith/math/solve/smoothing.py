"""From a system to its solution: which solver, how many steps, and a supersolution where none is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csgraph

from cellsmith._errors import ConvergenceError, SetupError, nearest
from cellsmith.math.solve.certificate import Supersolution
from cellsmith.math.solve.chebyshev import a_priori_steps, chebyshev
from cellsmith.math.solve.conjugate import block_cg
from cellsmith.math.solve.direct import solve_lu
from cellsmith.math.solve.operators import TorchApply
from cellsmith.math.solve.solution import Problem, Solution
from cellsmith.math.solve.system import System

__all__ = ["active_columns", "choose_solver", "solve", "solved_supersolution"]

_LU_CELLS = 3_000
_MOST_STEPS = 10_000  # where a weight of 0 leaves no a-priori number


def choose_solver(n_cells: int, *, solver: str = "auto") -> str:
    """Name the solver: LU up to 3,000 cells, above it conjugate gradients (GRIT Eq. 8).

    Parameters
    ----------
    n_cells
        Number of cells.
    solver
        ``"auto"``, or ``"lu"``, ``"cg"``, ``"chebyshev"``, which is returned as it is.

    Returns
    -------
    ``"lu"``, ``"cg"`` or ``"chebyshev"``.

    Raises
    ------
    SetupError
        For another name.
    """
    if solver not in {"auto", "lu", "cg", "chebyshev"}:
        raise SetupError(f"Found solver={solver!r}. {nearest(solver, ('auto', 'lu', 'cg', 'chebyshev'))}")
    if solver == "auto":
        return "lu" if n_cells <= _LU_CELLS else "cg"
    return solver


def active_columns(scores: npt.ArrayLike, *, threshold: float = 1e-6) -> npt.NDArray[np.bool_]:
    """Say which classes any cell has a score for, ``(n, C)`` -> ``(C,)``: some |P0_ic| > ``threshold``; NaN is none."""
    values = np.asarray(scores)
    return np.asarray((np.abs(values) > threshold).any(axis=0))


def solve(
    equations: System,
    B: npt.NDArray[Any],
    *,
    solver: str = "auto",
    tol: float = 1e-4,
    max_iter: int | None = None,
    x0: npt.NDArray[Any] | None = None,
    device: str | torch.device = "cpu",
    strict: bool = True,
) -> Solution:
    """Solve M X = B of a system.

    Parameters
    ----------
    equations
        The system.
    B
        ``(n, C)`` right-hand sides in the order of the system, see :meth:`System.right_hand_side`; the iterations run
        in their dtype. Where float32 cannot resolve ``tol`` (about condition number x 6e-8), they go on in float64.
    solver
        As in :func:`choose_solver`.
    tol
        Relative residual of each column.
    max_iter
        Largest number of iterations of conjugate gradients; None: twice the a-priori number plus 20.
    x0
        ``(n, C)`` start in the order of the system; None is zero.
    device
        Where the products and iterations run; LU ignores it.
    strict
        Raise where a column does not converge.

    Returns
    -------
    :class:`Solution` with a numpy ``x`` in the order of the system, of the dtype of ``B``, or float64 where that was
    needed.

    Raises
    ------
    ConvergenceError
        If a column stays above ``tol``.
    SetupError
        For an unknown solver, or Chebyshev iteration where a free cell has weight 0.
    """
    name = choose_solver(equations.n_cells, solver=solver)
    if name == "lu":
        problem = Problem.of(equations.apply, B)
        x = torch.from_numpy(solve_lu(equations.matrix, B).x.astype(B.dtype))
        found = problem.solution(x, problem.residual(x), iterations=0, history=[], tolerance=tol)
        return found.checked() if strict else found
    found = _iterate(equations, B, name=name, tol=tol, max_iter=max_iter, x0=x0, device=device)
    if B.dtype == np.float32 and not found.converged.all() and (max_iter is None or found.iterations < max_iter):
        wide, start = B.astype(np.float64), found.x.astype(np.float64)
        more = _iterate(equations, wide, name=name, tol=tol, max_iter=max_iter, x0=start, device=device)
        taken = found.iterations + more.iterations
        found = Solution(more.x, more.residual, taken, [*found.history, *more.history], tol)
    return found.checked() if strict else found


def _iterate(
    equations: System,
    B: npt.NDArray[Any],
    *,
    name: str,
    tol: float,
    max_iter: int | None,
    x0: npt.NDArray[Any] | None,
    device: str | torch.device,
) -> Solution:
    away = torch.device(device).type != "cpu"
    apply = TorchApply(equations.matrix, device=device) if away else equations.apply
    right: Any = torch.from_numpy(np.ascontiguousarray(B)).to(device) if away else B
    start: Any = torch.from_numpy(np.ascontiguousarray(x0)).to(device) if away and x0 is not None else x0
    if name == "chebyshev":
        found = chebyshev(apply, right, bounds=equations.bounds, tol=tol, diag=equations.diag, x0=start, strict=False)
    else:
        if max_iter is None:
            bounded = np.isfinite(equations.condition)
            max_iter = 2 * a_priori_steps(equations.condition, min(tol, 0.5)) + 20 if bounded else _MOST_STEPS
        found = block_cg(apply, right, diag=equations.diag, x0=start, tol=tol, max_iter=max_iter, strict=False)
    x = found.x.cpu().numpy() if away else found.x
    return Solution(x, found.residual, found.iterations, found.history, found.tolerance)


def solved_supersolution(equations: System) -> Supersolution:
    """Get v from one extra solve of M v = 1, and g = M v as measured (GRIT Eq. 11).

    For zeros in w, where the known v has g = 0, and sharper than it where weights are very uneven. The bound holds
    for the measured g, whatever the accuracy of v.

    Parameters
    ----------
    equations
        The system.

    Returns
    -------
    :class:`Supersolution`.

    Raises
    ------
    ConvergenceError
        If no g > 0 is found, as when a component hangs on a weight of almost 0.
    """
    n, matrix = equations.n_cells, equations.matrix
    ones = np.ones((n, 1))
    # |M v - 1|_2 <= tol sqrt(n) = 1/8 keeps every g above 7/8
    found = block_cg(
        equations.apply, ones, diag=equations.diag, tol=0.125 / np.sqrt(n), max_iter=_MOST_STEPS, strict=False
    )
    v = found.x[:, 0]
    n_terms = int(np.diff(matrix.indptr).max(initial=0))
    row_sum = 2 * equations.diag - np.asarray(matrix.sum(axis=1)).reshape(-1)
    rounding = (n_terms + 3) * float(np.finfo(np.float64).eps) * (2 * equations.diag * np.abs(v))
    g = (matrix @ v) - rounding
    if not ((v > 0).all() and (g > 0).all()):
        raise ConvergenceError(
            f"Found M v down to {g.min():.2g} for the solution v of M v = 1 after {found.iterations} iterations, "
            "expected > 0: no error bound. Give the weights more even values or clamp more cells."
        )
    label = np.asarray(csgraph.connected_components(matrix, directed=False)[1])
    return Supersolution(v=v, g=g, component=label, row_sum=row_sum, diag=equations.diag, n_terms=n_terms)
