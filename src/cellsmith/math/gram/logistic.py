"""p_id = sigmoid(a_i + b_d) from the margins of the mask: alternating Newton (Eq. 7)."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith.math.gram.probability import Rank1Probability, ScalarProbability, margins_of
from cellsmith.math.gram.statistics import check_live

__all__ = ["fit_logistic"]

Array: TypeAlias = npt.NDArray[np.float64]
_LIMIT = 8.0  # largest |a| and |b|
_MOST_TYPES = 2048  # fractional counts are all distinct: beyond this many, they are gathered on a grid


def fit_logistic(
    row_counts: npt.ArrayLike, col_counts: npt.ArrayLike, *, tol: float = 1e-6, max_rounds: int = 100
) -> ScalarProbability | Rank1Probability:
    """Fit the logistic model of the mask; the margins are sufficient, so equal counts share one parameter.

    A feature that every cell observed gets b = +inf, p = 1; mean(b) = 0 over the others.

    Parameters
    ----------
    row_counts
        Observed entries of each cell, (n,), above 0.
    col_counts
        Observed cells of each feature, (D,), above 0.
    tol
        Stop when no row count is missed by more than ``tol * D`` and no column count by more than ``tol * n``.
    max_rounds
        Stop at the latest after this many rounds; ``margin_error`` then says how far it came.

    Returns
    -------
    The fitted probabilities; a complete mask gives p = 1 exactly.

    Raises
    ------
    SetupError
        If a cell or a feature has no observed entry.
    """
    rows, cols = np.asarray(row_counts, dtype=np.float64), np.asarray(col_counts, dtype=np.float64)
    check_live(rows, cols)
    n, n_features = rows.size, cols.size
    always = cols >= n - 1e-6
    if always.all():
        return Rank1Probability(np.ones(n), np.ones(n_features), 1.0)
    row_value, row_size = _gathered(rows - always.sum())
    col_value, col_type, col_size = np.unique(cols[~always], return_inverse=True, return_counts=True)
    a, b, history = _alternate((row_value, row_size), (col_value, col_size.astype(np.float64)), tol, max_rounds)
    features = np.full(n_features, np.inf)
    features[~always] = b[col_type.reshape(-1)]
    if row_value.size <= _MOST_TYPES and np.array_equal(np.unique(rows - always.sum()), row_value):
        scalars = a[np.searchsorted(row_value, rows - always.sum())]
    else:
        scalars = ScalarProbability("logistic", a, features).new_cells(rows).scalars
    return ScalarProbability("logistic", scalars, features, history[-1], tuple(history))


def _gathered(counts: Array) -> tuple[Array, Array]:
    """Distinct counts and how many cells have each; beyond ``_MOST_TYPES`` spread over a grid that keeps the total."""
    value, size = np.unique(counts, return_counts=True)
    if value.size <= _MOST_TYPES:
        return value, size.astype(np.float64)
    grid = np.unique(np.quantile(value, np.linspace(0, 1, _MOST_TYPES)))
    left = np.clip(np.searchsorted(grid, counts, side="right") - 1, 0, grid.size - 2)
    share = (counts - grid[left]) / (grid[left + 1] - grid[left])
    mass = np.bincount(left, 1 - share, grid.size).astype(np.float64)
    mass += np.bincount(left + 1, share, grid.size)
    return grid[mass > 0], mass[mass > 0]


def _alternate(
    rows: tuple[Array, Array], cols: tuple[Array, Array], tol: float, max_rounds: int
) -> tuple[Array, Array, list[float]]:
    """Return a of each distinct row count, b of each distinct column count, and the error of each round."""
    (row_value, row_size), (col_value, col_size) = rows, cols
    n, n_features = row_size.sum(), col_size.sum()
    a = np.clip(np.log((row_value + 0.5) / (n_features - row_value + 0.5)), -_LIMIT, _LIMIT)
    b = np.zeros(col_value.size)
    history: list[float] = []
    for _ in range(max_rounds):
        a, row_error = _newton(a, row_value, *margins_of(a, b, col_size))
        b, col_error = _newton(b, col_value, *margins_of(b, a, row_size))
        # only a + b counts: the mean of b moves over to a
        shift = (b @ col_size) / n_features
        a, b = a + shift, b - shift
        history.append(max(row_error, col_error * n_features / n))
        # A parameter at its limit leaves the two totals unequal; the error then stays at their difference.
        stalled = len(history) > 10 and history[-1] > 0.9 * history[-11]
        if history[-1] <= tol * n_features or stalled:
            break
    return np.clip(a, -_LIMIT, _LIMIT), np.clip(b, -_LIMIT, _LIMIT), history


def _newton(x: Array, target: Array, total: Array, slope: Array) -> tuple[Array, float]:
    """One clipped step; the error leaves out parameters that press against the limit."""
    gap = total - target
    step = np.clip(gap / np.maximum(slope, 1e-12), -1.0, 1.0)
    held = ((x >= _LIMIT) & (gap < 0)) | ((x <= -_LIMIT) & (gap > 0))
    error = float(np.max(np.abs(np.where(held, 0.0, gap)), initial=0.0))
    return np.clip(x - step, -_LIMIT, _LIMIT), error
