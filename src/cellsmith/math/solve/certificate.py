"""What is certain about an approximate solution: error bounds, and labels that cannot change (GRIT Eq. 11, 12)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError

__all__ = ["Supersolution", "certified_argmax", "error_bound"]

_COLUMNS = 16
_UNIT = float(np.finfo(np.float64).eps)
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Supersolution:
    """A vector v > 0 with (M v)_i >= g_i > 0, which turns residuals into errors.

    Attributes
    ----------
    v
        ``(n,)`` the vector.
    g
        ``(n,)`` a lower bound of M v.
    component
        ``(n,)`` int label of the diagonal block of M that each row belongs to; each block then has a maximum of its
        own. None: one block.
    row_sum
        ``(n,)`` sum_j |M_ij|, for the rounding of the residual; None leaves rounding out.
    diag
        ``(n,)`` diagonal of M, for :func:`error_bound` with ``sweeps``.
    n_terms
        Largest number of entries of a row of M.
    """

    v: _Floats
    g: _Floats
    component: npt.NDArray[Any] | None = None
    row_sum: _Floats | None = None
    diag: _Floats | None = None
    n_terms: int = 0


def error_bound(
    apply: Callable[[Any], Any],
    X: npt.ArrayLike,
    B: npt.ArrayLike,
    *,
    supersolution: Supersolution,
    sweeps: int = 0,
) -> npt.NDArray[Any]:
    """Bound the error of every entry of an approximate solution of M X = B (GRIT Eq. 11).

    M has no positive entry off its diagonal, so with M v >= g > 0 its inverse has no negative entry, and
    |e_ic| <= v_i max_j |r_jc| / g_j. The residual r is computed in float64 from X as it is given, and what rounding
    may have hidden of it is added.

    Parameters
    ----------
    apply
        X -> M X on float64 arrays.
    X
        ``(n, C)`` approximate solution, float32 or float64.
    B
        ``(n, C)`` right-hand sides.
    supersolution
        v and g of M.
    sweeps
        Sharpen this many times by b <- D^-1 (|r| + N b), with M = D - N: still a bound, and never a larger one, since
        M b >= |r| is kept. Each costs a product with M and makes the bound more local. Needs ``supersolution.diag``.

    Returns
    -------
    ``(n, C)`` bounds >= 0, of the dtype of X, rounded up.

    Raises
    ------
    SetupError
        If shapes disagree, or v or g are not positive.
    """
    x, b = np.asarray(X), np.asarray(B)
    v, g = supersolution.v, supersolution.g
    if x.shape != b.shape or x.ndim != 2 or v.shape != (len(x),) or g.shape != (len(x),):
        raise SetupError(
            f"Found X of shape {x.shape}, B of {b.shape}, v of {v.shape} and g of {g.shape}; expected (n, C), (n, C), "
            "(n,) and (n,)."
        )
    if not (np.all(v > 0) and np.all(g > 0)):
        raise SetupError(
            f"Found v down to {v.min():g} and g = M v down to {g.min():g}, expected both > 0: there is no bound. "
            "Solve M v = 1 and measure g."
        )
    order, starts, label = _segments(supersolution.component, len(x))
    bound = np.empty(x.shape, dtype=x.dtype if x.dtype.kind == "f" else np.float64)
    inflate = 1.0 + 8 * float(np.finfo(bound.dtype).eps)
    for first in range(0, x.shape[1], _COLUMNS):
        columns = slice(first, first + _COLUMNS)
        part, right = x[:, columns].astype(np.float64), b[:, columns].astype(np.float64)
        residual = np.abs(right - apply(part))
        if supersolution.row_sum is not None:
            residual += (
                _UNIT
                * (supersolution.n_terms + 3)
                * (supersolution.row_sum[:, None] * np.abs(part).max(axis=0, initial=0.0) + np.abs(right))
            )
        scaled = residual / g[:, None]
        worst = np.maximum.reduceat(scaled if order is None else scaled[order], starts, axis=0)
        here = v[:, None] * (worst if label is None else worst[label])
        for _ in range(sweeps):
            here = _sharper(apply, here, residual, supersolution)
        bound[:, columns] = here * inflate
    return bound


def _sharper(apply: Callable[[Any], Any], bound: _Floats, residual: _Floats, supersolution: Supersolution) -> _Floats:
    diag = supersolution.diag
    if diag is None:
        raise SetupError("Found no diagonal in the supersolution, expected one with sweeps > 0. Pass sweeps=0.")
    # N b is a difference of two large terms: its rounding goes on top
    spread = (2 * _UNIT * (supersolution.n_terms + 3)) * bound
    local = bound + (residual - apply(bound)) / diag[:, None] + spread
    return np.asarray(np.minimum(bound, local))


def _segments(
    component: npt.NDArray[Any] | None, n: int
) -> tuple[npt.NDArray[np.intp] | None, npt.NDArray[np.intp], npt.NDArray[np.intp] | None]:
    """Return an order that brings the rows of a block together, the blocks' first positions, and row -> block."""
    if component is None or n == 0:
        return None, np.zeros(1, dtype=np.intp), None
    order = np.argsort(component, kind="stable")
    labels, starts, label = np.unique(component, return_index=True, return_inverse=True)
    if labels.size == 1:
        return None, np.zeros(1, dtype=np.intp), None
    starts = np.flatnonzero(np.r_[True, np.diff(component[order]) != 0])
    return order, starts, label.reshape(-1)


def certified_argmax(X: npt.ArrayLike, bound: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Say for which cells the exact solution has the same best class (GRIT Eq. 12).

    True where P_ic1 - P_ic > b_ic1 + b_ic for the winner c1 and *every* other class c.

    Parameters
    ----------
    X
        ``(n, C)`` approximate scores.
    bound
        ``(n, C)`` bounds of their errors. A factor per class must multiply both.

    Returns
    -------
    ``(n,)`` bool; ties and rows with NaN are not certified, a single class always is.
    """
    scores, slack = np.asarray(X), np.asarray(bound)
    if scores.shape != slack.shape or scores.ndim != 2:
        raise SetupError(f"Found scores of shape {scores.shape} and bounds of {slack.shape}, expected one (n, C).")
    certain = np.empty(len(scores), dtype=np.bool_)
    for start in range(0, len(scores), 1 << 16):
        rows = slice(start, start + (1 << 16))
        # float64, so that the comparison itself is exact enough
        part, width = scores[rows].astype(np.float64), slack[rows].astype(np.float64)
        first = np.arange(len(part))
        best = part.argmax(axis=1)
        lowest = part[first, best] - width[first, best]
        rival = part + width
        rival[first, best] = -np.inf
        certain[rows] = (lowest > rival.max(axis=1)) & np.isfinite(part).all(axis=1)
    return certain
