"""Reading a matrix by runs of rows, whatever holds it: arrays, sparse matrices, files, dask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from cellsmith._errors import SetupError
from cellsmith.math import gram

__all__ = ["Rows", "aligned_rows", "chunk_bounds", "dense", "rows_of", "whole"]

CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Rows:
    """A matrix that is read in runs of rows; nothing of it is held here.

    Parameters
    ----------
    shape
        ``(n, D)``: cells and features.
    read
        ``read(start, stop)`` returns these rows: a floating ndarray ``(stop - start, D)`` in which NaN may stand, or a
        CSR matrix.
    row_bytes
        Bytes of one row as it is read, on average.
    in_memory
        False where every read goes to a file or a task graph.
    """

    shape: tuple[int, int]
    read: Callable[[int, int], Any]
    row_bytes: float
    in_memory: bool = True


def rows_of(x: Any, *, where: str = "X") -> Rows:
    """Return the reader of a matrix.

    Parameters
    ----------
    x
        ``(n, D)``: ndarray, masked array, DataFrame, scipy sparse matrix, HDF5 or zarr array, a sparse data set of
        anndata (backed h5ad or zarr, by rows), or a dask array.
    where
        How messages call it.

    Returns
    -------
    A reader that gives float32 (float64 where the matrix is float64). Integers and booleans are converted, masked
    entries become NaN.

    Raises
    ------
    SetupError
        For None, another number of dimensions, entries that are no real numbers, or a file that is stored by columns.
    """
    if x is None:
        raise SetupError(f"{where} is empty; expected a matrix, cells x features. Name the layer that has it: layer=.")
    if hasattr(x, "iloc") and hasattr(x, "to_numpy"):
        x = x.to_numpy()
    if sp.issparse(x) or isinstance(x, np.ndarray):
        return _in_memory(x, where)
    shape = tuple(int(s) for s in getattr(x, "shape", ()))
    if len(shape) != 2 or not hasattr(x, "__getitem__"):
        raise SetupError(f"{where} is a {type(x).__name__}; expected a matrix, cells x features. Type np.asarray(...).")
    if getattr(x, "format", "csr") != "csr":
        raise SetupError(
            f"{where} is stored by columns ({x.format}) in a file and cannot be read by rows; expected CSR. "
            "Load it (adata.to_memory()), or rewrite the file with adata.X.tocsr()."
        )
    _check_dtype(x.dtype, where)
    if hasattr(x, "compute"):
        read = lambda start, stop: _floating(_plain(x[start:stop].compute()), where)
    else:
        read = lambda start, stop: _floating(_plain(x[start:stop]), where)
    # A file does not tell cheaply how much of it is stored, so that a sparse row counts a fifth of a dense one.
    share = 0.2 if hasattr(x, "to_memory") else 1.0
    return Rows((shape[0], shape[1]), read, max(1.0, share * shape[1] * 8), in_memory=False)


def _in_memory(x: Any, where: str) -> Rows:
    if x.ndim != 2:
        raise SetupError(f"{where} has shape {x.shape}; expected two dimensions, cells x features.")
    _check_dtype(x.dtype, where)
    n, d = (int(s) for s in x.shape)
    if sp.issparse(x):
        held = x if x.format == "csr" else x.tocsr()
        if not held.has_canonical_format:
            held = held.copy()
            held.sum_duplicates()
        stored = (held.dtype.itemsize + held.indices.itemsize) * held.nnz / max(n, 1)
        # a view: scipy would copy the slice, even of everything
        return Rows((n, d), lambda start, stop: _floating(gram.row_view(held, start, stop), where), max(1.0, stored))
    return Rows((n, d), lambda start, stop: _floating(_plain(x[start:stop]), where), max(1.0, 8.0 * d))


def aligned_rows(rows: Rows, columns: np.ndarray[Any, np.dtype[np.int64]], *, absent: float) -> Rows:
    """Return rows whose features are put into another order.

    Parameters
    ----------
    rows
        Reader of a matrix ``(n, E)``.
    columns
        ``(D,)``: the column of every wanted feature, -1 for one that the matrix lacks.
    absent
        Value of absent features: NaN in dense matrices of data, 0 in patterns. In a CSR matrix they are not stored.

    Returns
    -------
    Reader of the matrix ``(n, D)``.
    """
    present = columns >= 0

    def read(start: int, stop: int) -> Any:
        found = rows.read(start, stop)
        if sp.issparse(found):
            # A column more, without entries, stands in for all absent ones.
            wider = sp.csr_matrix(
                (found.data, found.indices, found.indptr), shape=(found.shape[0], found.shape[1] + 1), copy=False
            )
            taken = wider[:, np.where(present, columns, found.shape[1])]
            taken.sort_indices()
            return taken
        out = np.full((found.shape[0], len(columns)), absent, dtype=found.dtype)
        out[:, present] = found[:, columns[present]]
        return out

    factor = len(columns) / max(rows.shape[1], 1)
    return Rows((rows.shape[0], len(columns)), read, max(1.0, rows.row_bytes * factor), rows.in_memory)


def chunk_bounds(rows: Rows, chunk_size: int | None = None, *, memory: int = CHUNK_BYTES) -> Iterator[tuple[int, int]]:
    """Yield the (start, stop) of runs of rows; ``chunk_size`` None is as many as take ``memory``.

    Parameters
    ----------
    rows
        Reader of a matrix ``(n, D)``.
    chunk_size
        Rows a run.
    memory
        Bytes a run, by default 64 MB.
    """
    n = rows.shape[0]
    step = chunk_size or int(min(n, max(1, memory // rows.row_bytes)))
    for start in range(0, n, max(1, step)):
        yield start, min(start + max(1, step), n)


def whole(rows: Rows) -> Any:
    """Return all rows at once: an ndarray or a CSR matrix ``(n, D)``.

    Parameters
    ----------
    rows
        Reader of the matrix.
    """
    parts = [rows.read(start, stop) for start, stop in chunk_bounds(rows)]
    if len(parts) == 1:
        return parts[0]
    return sp.vstack(parts, format="csr") if sp.issparse(parts[0]) else np.concatenate(parts)


def dense(x: Any) -> Any:
    """Return an ndarray (n, D) of what a reader gave."""
    return x.toarray() if sp.issparse(x) else x


def _check_dtype(dtype: Any, where: str) -> None:
    if np.dtype(dtype).kind not in "biuf":
        raise SetupError(f"{where} has entries of dtype {dtype}; expected real numbers. Type x.astype('float32').")


def _plain(x: Any) -> Any:
    """Return an ndarray or CSR matrix; masked entries become NaN."""
    if sp.issparse(x):
        return x if x.format == "csr" else x.tocsr()
    if isinstance(x, np.ma.MaskedArray):
        kept: Any = x.astype(np.float64 if x.dtype == np.float64 else np.float32)
        return np.asarray(kept.filled(np.nan))
    return np.asarray(x)


def _floating(x: Any, where: str) -> Any:
    _check_dtype(x.dtype, where)
    if x.dtype == np.float64 or x.dtype == np.float32:
        return x
    # Integers above 2^24 would lose digits in float32.
    wide = x.dtype.kind in "iu" and x.dtype.itemsize > 2 and _extreme(x) >= 2**24
    return x.astype(np.float64 if wide else np.float32)


def _extreme(x: Any) -> float:
    values = x.data if sp.issparse(x) else x
    return float(max(abs(float(values.max())), abs(float(values.min())))) if values.size else 0.0
