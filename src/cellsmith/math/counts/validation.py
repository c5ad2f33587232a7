"""Is this matrix made of counts, and how many are there in each cell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

__all__ = ["first_bad_count", "library_totals"]

_BLOCK = 1 << 22  # entries looked at together: bounds the memory of the masks


def first_bad_count(x: Any) -> tuple[int, int, float] | None:
    """Find the first entry that is not a count: negative, fractional, NaN or infinite.

    Parameters
    ----------
    x
        ``(n, G)`` matrix: numpy array, scipy sparse matrix or array of any format, or an on-disk matrix that gives
        one of these when sliced (h5py, zarr, backed AnnData). It is read in blocks and never densified.

    Returns
    -------
    ``(row, column, value)`` of the first offender in row-major order, or None if every entry is a count.
    """
    if sp.issparse(x):
        return _first_bad_sparse(x)
    by_column = getattr(x, "format", None) == "csc"  # on disk, where slicing rows would read everything each time
    found: list[tuple[int, int, float]] = []
    for start, block in _blocks(x, axis=1 if by_column else 0):
        bad = _first_bad_sparse(block) if sp.issparse(block) else _first_bad_dense(np.asarray(block))
        if bad is None:
            continue
        if not by_column:
            return bad[0] + start, bad[1], bad[2]
        found.append((bad[0], bad[1] + start, bad[2]))
    return min(found, default=None, key=lambda bad: bad[:2])


def library_totals(x: Any) -> npt.NDArray[np.float64]:
    """Sum the counts of every cell.

    Parameters
    ----------
    x
        ``(n, G)`` counts, in any form that :func:`first_bad_count` reads.

    Returns
    -------
    ``(n,)`` float64, counts per cell.
    """
    if sp.issparse(x):
        return np.asarray(x.sum(axis=1, dtype=np.float64)).reshape(-1)
    by_column = getattr(x, "format", None) == "csc"
    total = np.zeros(int(x.shape[0]))
    for start, block in _blocks(x, axis=1 if by_column else 0):
        part = block if sp.issparse(block) else np.asarray(block)
        sums = np.asarray(part.sum(axis=1, dtype=np.float64)).reshape(-1)
        if by_column:
            total += sums
        else:
            total[start : start + sums.size] = sums
    return total


def _blocks(x: Any, *, axis: int) -> Iterator[tuple[int, Any]]:
    n, n_genes = (int(size) for size in x.shape)
    length, width = (n, n_genes) if axis == 0 else (n_genes, n)
    step = max(1, _BLOCK // max(1, width))
    for start in range(0, length, step):
        stop = min(length, start + step)
        yield start, x[start:stop] if axis == 0 else x[:, start:stop]


def _bad(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if values.dtype.kind in "bu":
        return np.zeros(values.shape, dtype=np.bool_)
    if values.dtype.kind == "i":
        return np.asarray(values < 0)
    # NaN and infinity fail the last two comparisons
    return np.asarray(~((values >= 0) & (values == np.floor(values)) & (values < np.inf)))


def _first_bad_dense(block: npt.NDArray[Any]) -> tuple[int, int, float] | None:
    bad = _bad(block)
    if not bad.any():
        return None
    row, column = divmod(int(np.argmax(bad)), block.shape[1])
    return row, column, float(block[row, column])


def _first_bad_sparse(x: Any) -> tuple[int, int, float] | None:
    matrix = x if x.format in ("csr", "csc", "coo") else x.tocsr()
    best: tuple[int, int, float] | None = None
    for start in range(0, matrix.data.size, _BLOCK):
        part = matrix.data[start : start + _BLOCK]
        places = np.flatnonzero(_bad(part))
        if places.size == 0:
            continue
        row, column = _coordinates(matrix, places + start)
        first = np.lexsort((column, row))[0]
        here = (int(row[first]), int(column[first]), float(part[places[first]]))
        best = here if best is None else min(best, here, key=lambda bad: bad[:2])
        if matrix.format == "csr":
            # rows are in order, columns within a row need not be: only this row can still hold an earlier one
            end = int(matrix.indptr[best[0] + 1])
            if end <= start + _BLOCK:
                break
    return best


def _coordinates(matrix: Any, places: npt.NDArray[np.intp]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    if matrix.format == "coo":
        return matrix.row[places], matrix.col[places]
    major = np.searchsorted(matrix.indptr, places, side="right") - 1
    minor = matrix.indices[places]
    return (major, minor) if matrix.format == "csr" else (minor, major)
