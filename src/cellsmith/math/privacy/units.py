"""What one unit contributes: a row of length at most one, whatever the cell holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

__all__ = ["transform_counts", "unit_means", "unit_rows"]

Floats = npt.NDArray[np.float64]
# Counts per ten thousand: a constant, never a median of the data.
PER_CELL = 1e4


def transform_counts(counts: Any) -> Floats:
    """Return x = y / ||y|| with y = log1p(1e4 c / n) for each cell by itself.

    Parameters
    ----------
    counts
        (n, G) counts, dense or sparse.

    Returns
    -------
    (n, G) float64, rows of norm 1; a cell without counts is a row of zeros.
    """
    kept = sparse.csr_matrix(counts, dtype=np.float64)
    total = np.asarray(kept.sum(axis=1)).ravel()
    with np.errstate(all="ignore"):
        kept.data = np.log1p(PER_CELL * kept.data / np.repeat(total, np.diff(kept.indptr)))
        norm = np.sqrt(np.asarray(kept.multiply(kept).sum(axis=1)).ravel())
    if np.isfinite(norm).all():
        kept.data = np.divide(kept.data, np.repeat(np.where(norm > 0, norm, 1.0), np.diff(kept.indptr)))
        return np.asarray(kept.toarray())
    return unit_rows(kept.toarray(), rescale=True)


def unit_rows(x: npt.ArrayLike, *, rescale: bool = False) -> Floats:
    """Return rows of norm at most 1; a row with a value that is not finite counts as zeros.

    Parameters
    ----------
    x
        (n, G).
    rescale
        Bring every other row to norm 1 exactly; else only longer ones are cut.

    Returns
    -------
    (n, G) float64.
    """
    rows = np.asarray(x, dtype=np.float64)
    with np.errstate(all="ignore"):
        squared = np.einsum("ij,ij->i", rows, rows)
    if not rescale and (squared <= 1.0).all():  # False where one is not finite
        return rows
    rows = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)
    # By the largest entry first: squares of huge values would overflow.
    peak = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    scaled = np.divide(rows, peak, out=np.zeros_like(rows), where=peak > 0)
    norm = np.linalg.norm(scaled, axis=1, keepdims=True)
    unit = np.divide(scaled, norm, out=np.zeros_like(rows), where=norm > 0)
    if rescale:
        return np.asarray(unit)
    return np.where(norm * peak > 1, unit, rows)


def unit_means(
    x: Floats, units: npt.NDArray[np.intp] | None, *, n_units: int, most: int, generator: np.random.Generator
) -> Floats:
    """Return one row a unit: the mean over at most ``most`` random cells of its own.

    Parameters
    ----------
    x
        (n, G), rows of norm at most 1; so are their means.
    units
        (n,) code of the unit of every cell; None: every cell is a unit, and ``x`` is returned.
    n_units
        Number of units N.
    most
        Most cells of a unit that count.
    generator
        Draws them.

    Returns
    -------
    (N, G); a unit without cells is a row of zeros.
    """
    if units is None:
        return x
    order = generator.permutation(len(units))
    order = order[np.argsort(units[order], kind="stable")]
    first = np.searchsorted(units[order], np.arange(n_units))
    rank = np.arange(len(order)) - first[units[order]]
    kept = order[rank < most]
    counts = np.bincount(units[kept], minlength=n_units)
    weights = 1.0 / counts[units[kept]]
    gather = sparse.csr_matrix((weights, (units[kept], kept)), shape=(n_units, len(units)))
    return np.asarray(gather @ x)
