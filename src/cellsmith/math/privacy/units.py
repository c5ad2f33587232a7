"""What one unit contributes: a row of length at most one, whatever the cell holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

__all__ = ["transform_counts", "unit_counts", "unit_means", "unit_rows"]

Floats = npt.NDArray[np.float64]
# Counts per ten thousand: a constant, never a median of the data.
PER_CELL = 1e4
# By how much a squared norm of 1 may be above it, from rounding alone.
ROUNDING = 1e-12


def unit_counts(counts: Any) -> sparse.csr_matrix:
    """Return x = y / ||y|| with y = log1p(1e4 c / n) for each cell by itself, as it is stored: without the zeros.

    Parameters
    ----------
    counts
        (n, G) counts, dense or sparse.

    Returns
    -------
    (n, G) float64, rows of norm 1; a cell without counts, or with a value that is not finite, is a row of zeros.
    """
    kept = _canonical(counts)
    stored = np.diff(kept.indptr)
    row = np.repeat(np.arange(kept.shape[0]), stored)
    with np.errstate(all="ignore"):
        total = np.bincount(row, weights=kept.data, minlength=kept.shape[0])
        y = np.log1p(PER_CELL * kept.data / np.repeat(total, stored))
        norm = np.sqrt(np.bincount(row, weights=y * y, minlength=kept.shape[0]))
        x = y / np.repeat(np.where(norm > 0, norm, 1.0), stored)
    if not np.isfinite(norm).all():
        x = np.where(np.repeat(np.isfinite(norm), stored), x, 0.0)
    return sparse.csr_matrix((x, kept.indices, kept.indptr), shape=kept.shape)


def _canonical(x: Any) -> sparse.csr_matrix:
    """Return CSR with each entry stored once: bounds on norms are computed from what is stored."""
    kept = sparse.csr_matrix(x, dtype=np.float64)
    if not kept.has_canonical_format:
        kept = kept.copy()
        kept.sum_duplicates()
    return kept


def transform_counts(counts: Any) -> Floats:
    """Return :func:`unit_counts` as an array (n, G).

    Parameters
    ----------
    counts
        (n, G) counts, dense or sparse.
    """
    return np.asarray(unit_counts(counts).toarray())


def unit_rows(x: Any) -> Any:
    """Return rows of norm at most 1; a row with a value that is not finite counts as zeros.

    Parameters
    ----------
    x
        (n, G), dense or sparse.

    Returns
    -------
    (n, G) float64; sparse where nothing had to be cut of sparse rows, else dense.
    """
    if sparse.issparse(x):
        kept = _canonical(x)
        with np.errstate(all="ignore"):
            squared = np.asarray(kept.multiply(kept).sum(axis=1)).ravel()
        return kept if (squared <= 1 + ROUNDING).all() else unit_rows(kept.toarray())
    rows = np.asarray(x, dtype=np.float64)
    with np.errstate(all="ignore"):
        squared = np.einsum("ij,ij->i", rows, rows)
    if (squared <= 1 + ROUNDING).all():  # False where one is not finite
        return rows
    rows = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)
    # By the largest entry first: squares of huge values would overflow.
    peak = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    scaled = np.divide(rows, peak, out=np.zeros_like(rows), where=peak > 0)
    norm = np.linalg.norm(scaled, axis=1, keepdims=True)
    unit = np.divide(scaled, norm, out=np.zeros_like(rows), where=norm > 0)
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
