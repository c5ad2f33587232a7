"""Slicing and looking up compressed rows without copying them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

__all__ = [
    "TILE",
    "as_rows",
    "kept_rows",
    "lookup",
    "row_of_entries",
    "row_sums",
    "row_view",
    "same_pattern",
    "tiles",
    "transposed",
]

TILE = 4096  # rows handled at once: the operands of a product stay in the cache, and sums cross tiles in float64


def as_rows(x: Any) -> sp.csr_matrix:
    """Return ``x`` as CSR with sorted indices and no duplicates; a copy only where it was neither."""
    rows = x if isinstance(x, sp.csr_matrix) else sp.csr_matrix(x)
    if not rows.has_canonical_format:
        # sorting happens in place, and the arrays may be those of the caller
        rows = rows.copy() if sp.issparse(x) else rows
        rows.sum_duplicates()
    return rows


def row_view(x: sp.csr_matrix, start: int, stop: int, data: npt.NDArray[Any] | None = None) -> sp.csr_matrix:
    """Rows ``start`` to ``stop`` that share indices and data with ``x`` (``data`` in place of ``x.data`` if given)."""
    part = slice(int(x.indptr[start]), int(x.indptr[stop]))
    values, indptr = x.data if data is None else data, x.indptr[start : stop + 1] - part.start
    return _canonical(sp.csr_matrix, x.shape[1], (values[part], x.indices[part], indptr))


def transposed(x: sp.csr_matrix, start: int, stop: int) -> sp.csc_matrix:
    """Rows ``start`` to ``stop``, transposed, (D, rows), sharing indices and data; ``.T`` of a view would copy both."""
    rows = row_view(x, start, stop)
    return _canonical(sp.csc_matrix, x.shape[1], (rows.data, rows.indices, rows.indptr))


def kept_rows(x: sp.csr_matrix, keep: npt.NDArray[np.bool_]) -> sp.csr_matrix:
    """Rows that ``keep`` (rows,) marks; scipy would copy them three times, with indices of 64 bits."""
    sizes = np.diff(x.indptr)
    entries = np.repeat(keep, sizes)
    indptr = np.concatenate([[0], np.cumsum(sizes[keep])]).astype(x.indptr.dtype)
    return _canonical(sp.csr_matrix, x.shape[1], (x.data[entries], x.indices[entries], indptr))


def _canonical(kind: Any, n_features: int, arrays: tuple[npt.NDArray[Any], ...]) -> Any:
    """Return the CSR (rows, D) or CSC (D, rows) matrix of data, indices and indptr that are known to be canonical."""
    n_rows = len(arrays[2]) - 1
    out = kind((n_rows, n_features) if kind is sp.csr_matrix else (n_features, n_rows), dtype=arrays[0].dtype)
    out.data, out.indices, out.indptr = arrays
    # scipy would spend a pass on finding out
    out.has_canonical_format = out.has_sorted_indices = True
    return out


def tiles(n_rows: int, step: int = TILE) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of consecutive tiles of rows."""
    for start in range(0, n_rows, step):
        yield start, min(n_rows, start + step)


def row_of_entries(x: sp.csr_matrix) -> npt.NDArray[np.int64]:
    """Row number of each stored entry, (nnz,)."""
    return np.repeat(np.arange(x.shape[0], dtype=np.int64), np.diff(x.indptr))


def row_sums(indptr: npt.NDArray[Any], data: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Sum of the stored entries of each row in float64, (rows,); empty rows give 0."""
    total = np.zeros(len(indptr) - 1)
    filled = np.flatnonzero(np.diff(indptr))
    if filled.size:
        total[filled] = np.add.reduceat(data, indptr[:-1][filled], dtype=np.float64)
    return total


def same_pattern(x: sp.csr_matrix, y: sp.csr_matrix) -> bool:
    """Whether both store exactly the same entries."""
    if x.nnz != y.nnz or not np.array_equal(x.indptr, y.indptr):
        return False
    return x.indices is y.indices or bool(np.array_equal(x.indices, y.indices))


def lookup(x: sp.csr_matrix, pattern: sp.csr_matrix) -> npt.NDArray[Any]:
    """Values of ``x`` at the stored entries of ``pattern``, (nnz of pattern,); 0 where ``x`` stores nothing."""
    if same_pattern(x, pattern):
        return np.asarray(x.data)
    out = np.zeros(pattern.nnz, dtype=x.dtype)
    for start, stop in tiles(x.shape[0]):
        have, want = row_view(x, start, stop), row_view(pattern, start, stop)
        if have.nnz == 0 or want.nnz == 0:
            continue
        width = np.int64(x.shape[1])
        keys = row_of_entries(have) * width + have.indices
        asked = row_of_entries(want) * width + want.indices
        place = np.minimum(np.searchsorted(keys, asked), keys.size - 1)
        found = keys[place] == asked
        out[pattern.indptr[start] : pattern.indptr[stop]][found] = have.data[place[found]]
    return out
