"""From scores and graph to refined scores with a certificate: arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cellsmith._errors import ConvergenceError
from cellsmith.math import solve
from cellsmith.model.grit import equations as eq

__all__ = ["Problem", "Refined", "label_codes", "refine", "refine_protected"]

RETRIES = 2  # times that the tolerance is lowered tenfold for classes that decide an uncertain label
SHARPER = 0.1
ROWS = 1 << 16  # that are corrected and certified together
PROTECTIVE = 4.0  # factor on the fidelity of the raw cells of a class that lost too many
ROUNDS = 3

Floats = npt.NDArray[np.floating[Any]]
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Problem:
    """What is solved.

    Parameters
    ----------
    weights
        A, CSR (n, n).
    p0
        P0, (n, C), float32 or float64; a row of NaN has no scores.
    fidelity
        w, (n,); zero where there are no scores.
    clamped
        (n,) class of each clamped cell, -1 for all others.
    laplacian, smoothness_weight
        Of Eq. 2.
    order
        Order of rows in memory, position -> cell, or None.
    half_prior
        Correct class masses (Eq. 13).
    """

    weights: Any
    p0: Floats
    fidelity: Floats
    clamped: Codes
    laplacian: str
    smoothness_weight: float
    order: npt.NDArray[Any] | None = None
    half_prior: bool = False

    def system(self) -> solve.System:
        """Set up M (Eq. 2, 6)."""
        held = self.clamped >= 0
        return solve.system(
            self.weights,
            laplacian=self.laplacian,
            smoothness_weight=self.smoothness_weight,
            fidelity=self.fidelity,
            clamped=held if held.any() else None,
            order=self.order,
        )


@dataclass(frozen=True, eq=False)
class Refined:
    """The answer and what is certain about it; rows in the order of the cells.

    Parameters
    ----------
    solution
        P (n, C) as solved; NaN for cells that no score reaches.
    factors
        g (C,) of Eq. 13.
    bound
        (C,) largest error bound of a score, by class (Eq. 11).
    certified
        (n,) whether the exact solution has the same label (Eq. 12).
    residual
        (C,) relative residual in float64.
    error_norm
        (C,) bound of the error's norm (Eq. 10), NaN where W is not I.
    history
        Largest relative residual after each iteration.
    solver, iterations, rounds
        What was run; rounds of ``protect``.
    active
        (C,) classes that entered the solve.
    missing
        (n,) cells in components without any score or anchor.
    system
        The system, in its own order.
    """

    solution: Floats
    factors: Floats
    bound: Floats
    certified: npt.NDArray[np.bool_]
    residual: Floats
    error_norm: Floats
    history: list[float]
    solver: str
    iterations: int
    active: npt.NDArray[np.bool_]
    missing: npt.NDArray[np.bool_]
    system: solve.System
    rounds: int = 0

    @property
    def scores(self) -> Floats:
        """P with the factors of Eq. 13, whose largest entry is the label."""
        return np.asarray(self.solution * self.factors.astype(self.solution.dtype))

    @property
    def n_uncertified(self) -> int:
        """Number of cells whose label the exact solution might change."""
        return int((~self.certified & ~self.missing).sum())


def label_codes(p: Floats) -> Codes:
    """Return the class with the largest score of each row (n, C), -1 for a row with NaN."""
    known = ~np.isnan(p).any(axis=1)
    return np.where(known, np.where(known[:, None], p, 0).argmax(axis=1), -1)


def refine(
    problem: Problem,
    *,
    solver: str = "auto",
    tol: float = 1e-4,
    max_iter: int | None = None,
    device: Any = "cpu",
    start: Floats | None = None,
    names: tuple[str, ...] = (),
) -> Refined:
    """Solve Eq. 1 and certify the answer.

    Parameters
    ----------
    problem
        What to solve.
    solver, tol, max_iter, device
        As in :func:`cellsmith.math.solve.solve`.
    start
        P (n, C) to start from.
    names
        Class names, for the message.

    Raises
    ------
    ConvergenceError
        If a class does not reach the tolerance, with the residual of each.
    """
    system = problem.system()
    name = solve.choose_solver(system.n_cells, solver=solver)
    if name == "chebyshev" and not np.isfinite(system.condition):
        name = "cg"  # a cell without fidelity leaves the smallest eigenvalue without a bound
    p0 = problem.p0.astype(np.float64) if name == "lu" else problem.p0
    right = system.right_hand_side(p0, anchors=problem.clamped if system.clamped.any() else None)
    active = solve.active_columns(problem.p0)
    active[problem.clamped[problem.clamped >= 0]] = True
    x = np.zeros_like(right)
    x0 = None if start is None else np.nan_to_num(system.take(start)[:, active]).astype(right.dtype)
    # the first tenfold is cheapest within the same run, as far as the precision resolves it
    ahead = 4 * float(np.finfo(right.dtype).eps) * system.condition <= SHARPER * tol
    aim = SHARPER * tol if ahead else tol
    found = solve.solve(
        system, right[:, active], solver=name, tol=aim, max_iter=max_iter, x0=x0, device=device, strict=False
    )
    _require(found, [n for n, a in zip(names, active, strict=False) if a], tol)
    x[:, active] = found.x
    residual = np.zeros(len(active))
    residual[active] = found.residual
    refined = _certify(system, x, right, problem.half_prior, solver=name, device=device, retries=RETRIES - ahead)
    uniform = bool((system.weight == 1).all())
    return Refined(
        solution=system.restore(refined.x),
        factors=refined.factors,
        bound=refined.bound,
        certified=system.restore(refined.certified, fill=None),
        residual=np.where(np.isnan(refined.residual), residual, refined.residual),
        error_norm=eq.residual_bound(residual, right) if uniform else np.full(len(active), np.nan),
        history=[*found.history, *refined.history],
        solver=name,
        iterations=found.iterations + refined.iterations,
        active=active,
        missing=system.restore(system.undetermined, fill=None),
        system=system,
    )


def _require(found: solve.Solution, names: list[str], tol: float) -> None:
    late = np.flatnonzero(found.residual > tol)
    if late.size:
        text = ", ".join(f"{names[c] if c < len(names) else c}: {found.residual[c]:.1e}" for c in late[:20])
        raise ConvergenceError(
            f"{late.size} of {len(found.residual)} classes have a relative residual above tol={tol:g} "
            f"after {found.iterations} iterations ({text}). Raise tol or train(max_iter=...), type dtype='float64', or "
            "lower smoothness_weight."
        )


@dataclass
class _Certified:
    x: Floats
    factors: Floats
    bound: Floats
    certified: npt.NDArray[np.bool_]
    residual: Floats
    history: list[float]
    iterations: int = 0


def _certify(
    system: solve.System, x: Floats, right: Floats, half_prior: bool, *, solver: str, device: Any, retries: int
) -> _Certified:
    """Bound errors and labels; where labels stay open, solve the classes that decide them more accurately."""
    known = system.known if system.known is not None else solve.solved_supersolution(system)
    state = _Certified(x, np.ones(x.shape[1]), x, np.zeros(len(x), bool), np.full(x.shape[1], np.nan), [])
    for attempt in range(retries + 1):
        bound, span = solve.error_bound(system.apply, state.x, right, supersolution=known), None
        if half_prior:
            reached = ~system.undetermined
            state.factors = eq.class_factors(state.x[reached])
            span = eq.factor_range(state.x[reached], bound[reached])
        for start in range(0, len(x), ROWS):
            rows = slice(start, start + ROWS)
            state.certified[rows] = solve.certified_argmax(*_corrected(state, bound, rows, span))
        state.bound = bound.max(axis=0, initial=0.0).astype(np.float64)
        unsure = np.flatnonzero(~state.certified & ~system.undetermined)
        if solver == "lu" or attempt == retries or not unsure.size:
            break
        columns = _deciding(*_corrected(state, bound, unsure, span))
        _improve(state, system, right, columns, solver=solver, device=device)
    return state


def _corrected(
    state: _Certified, bound: Floats, rows: Any, span: tuple[Floats, Floats] | None
) -> tuple[Floats, Floats]:
    """Return scores of some rows with the factors of Eq. 13, and bounds that hold for the exact scores and factors."""
    x, width = state.x[rows], bound[rows]
    if span is None:
        return x, width
    (low, high), p = span, x * state.factors
    with np.errstate(invalid="ignore"):  # 0 x inf, which is not taken
        top = np.where(x + width > 0, (x + width) * high, 0)
        bottom = np.where(x > width, (x - width) * low, np.where(x < width, (x - width) * high, 0))
    rounding = 4 * float(np.finfo(x.dtype).eps) * np.abs(p)
    return p, np.maximum(top - p, p - bottom) + rounding


def _improve(
    state: _Certified, system: solve.System, right: Floats, columns: npt.NDArray[np.intp], *, solver: str, device: Any
) -> None:
    """Lower the residual of some classes tenfold: solve for what is missing, in the precision of the iterations."""
    b = right[:, columns].astype(np.float64)
    rest = b - system.apply(state.x[:, columns].astype(np.float64))
    missing = solve.solve(system, rest.astype(right.dtype), solver=solver, tol=SHARPER, device=device, strict=False)
    if state.x.dtype != np.float64:
        state.x = state.x.astype(np.float64)
    state.x[:, columns] += missing.x
    size, left = (np.sqrt((side**2).sum(axis=0)) for side in (b, rest))
    state.residual[columns] = missing.residual * left / np.where(size > 0, size, 1.0)
    state.history += [float(v) for v in np.asarray(missing.history) * (left / np.where(size > 0, size, 1.0)).max()]
    state.iterations += missing.iterations


def _deciding(p: Floats, slack: Floats) -> npt.NDArray[np.intp]:
    """Return the classes that could win in some row, given the bounds; every one of them has to become sharper."""
    lowest = (p - slack).max(axis=1, keepdims=True)
    return np.flatnonzero(((p + slack >= lowest) & (slack > 0)).any(axis=0))


def refine_protected(problem: Problem, raw: Codes, *, protect: float | None, **options: Any) -> tuple[Refined, Problem]:
    """Refine; where a class loses more than ``protect`` of its raw cells, trust these more and solve again (Eq. 14).

    Parameters
    ----------
    problem
        What to solve.
    raw
        (n,) raw labels, -1 for none.
    protect
        Largest share of its raw cells that a class may lose; None protects nothing.
    **options
        Of :func:`refine`.

    Returns
    -------
    The answer, and the problem with the fidelity that led to it.
    """
    found = refine(problem, **options)
    for done in range(1, ROUNDS + 1 if protect is not None else 1):
        lost = eq.oversmoothed(raw, label_codes(found.scores), most=float(protect or 0.0))
        if not lost.size:
            break
        fidelity = np.where(np.isin(raw, lost), PROTECTIVE * problem.fidelity, problem.fidelity)
        problem = replace(problem, fidelity=fidelity)
        again = refine(problem, **{**options, "start": found.solution})
        found = replace(again, rounds=done, iterations=found.iterations + again.iterations)
    return found, problem
