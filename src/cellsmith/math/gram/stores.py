"""Three stores of an incomplete matrix: an array, CSR of what was observed, CSR and a pattern of what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellsmith._errors import SetupError
from cellsmith.math.gram._rows import (
    as_rows,
    kept_rows,
    lookup,
    row_of_entries,
    row_sums,
    row_view,
    same_pattern,
    tiles,
)
from cellsmith.math.gram.blocks import Bad, Block
from cellsmith.math.gram.centred import Centred, CentredDense, CentredFewMissing, CentredObserved

__all__ = ["dense_block", "missing_block", "observed_block"]

Array: TypeAlias = npt.NDArray[np.float64]
Index: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Dense(Block):
    """``values`` 0 where missing; ``weights`` bool or float of the same shape."""

    values: npt.NDArray[Any]
    weights: npt.NDArray[Any]

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.values.shape[0], self.values.shape[1]

    def mask_dot(self, b: npt.NDArray[Any]) -> Array:
        parts = [self.weights[i:j].astype(np.float64) @ b for i, j in tiles(self.shape[0])]
        return np.concatenate(parts) if parts else np.zeros((0, b.shape[1]))

    def mask_tdot(self, b: npt.NDArray[Any]) -> Array:
        total = np.zeros((self.shape[1], b.shape[1]))
        for i, j in tiles(self.shape[0]):
            total += self.weights[i:j].astype(np.float64).T @ b[i:j]
        return total

    def col_sums(self) -> Array:
        total = np.zeros(self.shape[1])
        for i, j in tiles(self.shape[0]):
            total += np.einsum("id,id->d", self.values[i:j].astype(np.float64), self.weights[i:j].astype(np.float64))
        return total

    def first_bad(self) -> Bad:
        place = np.argwhere(~np.isfinite(self.values))
        return (int(place[0, 0]), int(place[0, 1]), float(self.values[tuple(place[0])])) if place.size else None

    def take(self, cells: Any, features: Any) -> Block:
        values, weights = (_cut(x, cells, features) for x in (self.values, self.weights))
        return _Dense(values, weights)

    def centred(self, means: npt.NDArray[Any], *, dtype: Any = np.float32) -> Centred:
        z = self.values.astype(dtype) - means.astype(dtype)
        squares, norms = np.zeros(self.shape[0]), np.zeros(self.shape[0])
        for i, j in tiles(self.shape[0], 512):
            weights = self.weights[i:j].astype(np.float64)
            squares[i:j] = np.einsum("id,id,id->i", z[i:j], z[i:j], weights)
            norms[i:j] = np.einsum("id,id,id,id->i", z[i:j], z[i:j], weights, weights)
            z[i:j] *= self.weights[i:j]
        return CentredDense(z, self.weights, squares, norms)

    def without(self, rows: Index, features: Index) -> Block:
        values, weights = self.values.copy(), self.weights.copy()
        values[rows, features] = 0
        weights[rows, features] = 0
        return _Dense(values, weights)

    def shuffled(self, generator: np.random.Generator) -> Block:
        values = self.values.copy()
        for d in range(self.shape[1]):
            rows = np.flatnonzero(self.weights[:, d])
            values[rows, d] = values[generator.permutation(rows), d]
        return _Dense(values, self.weights)

    def entries(self, start: int, stop: int) -> tuple[Index, Index, Array, Array]:
        rows, features = np.nonzero(self.weights[start:stop])
        rows = rows + start
        value, weight = self.values[rows, features], self.weights[rows, features]
        return rows, features, value.astype(np.float64), weight.astype(np.float64)


@dataclass(frozen=True)
class _Observed(Block):
    """CSR ``values`` whose stored entries are the observed ones; ``weights`` (nnz,) or None for all 1."""

    values: sp.csr_matrix
    weights: npt.NDArray[Any] | None

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.values.shape[0], self.values.shape[1]

    def _mask(self, start: int, stop: int) -> sp.csr_matrix:
        rows = row_view(self.values, start, stop)
        first, last = self.values.indptr[start], self.values.indptr[stop]
        data = np.ones(rows.nnz) if self.weights is None else self.weights[first:last].astype(np.float64)
        return row_view(rows, 0, stop - start, data)

    def mask_dot(self, b: npt.NDArray[Any]) -> Array:
        parts = [self._mask(i, j) @ b for i, j in tiles(self.shape[0])]
        return np.concatenate(parts) if parts else np.zeros((0, b.shape[1]))

    def mask_tdot(self, b: npt.NDArray[Any]) -> Array:
        total = np.zeros((self.shape[1], b.shape[1]))
        for i, j in tiles(self.shape[0]):
            total += self._mask(i, j).T @ b[i:j]
        return total

    def row_counts(self) -> Array:
        if self.weights is None:
            return np.asarray(np.diff(self.values.indptr), dtype=np.float64)
        return row_sums(self.values.indptr, self.weights)

    def col_sums(self) -> Array:
        total = np.zeros(self.shape[1])
        for i, j in tiles(self.shape[0]):
            first, last = self.values.indptr[i], self.values.indptr[j]
            data = self.values.data[first:last].astype(np.float64)
            if self.weights is not None:
                data *= self.weights[first:last]
            total += np.bincount(self.values.indices[first:last], data, self.shape[1])
        return total

    def first_bad(self) -> Bad:
        return _first_bad_stored(self.values, self.values.data, self.weights)

    def take(self, cells: Any, features: Any) -> Block:
        values = _cut(self.values, cells, features)
        if self.weights is None:
            return _Observed(values, None)
        weights = _cut(row_view(self.values, 0, self.shape[0], self.weights), cells, features)
        return _Observed(values, weights.data)

    def centred(self, means: npt.NDArray[Any], *, dtype: Any = np.float32) -> Centred:
        x, mu = self.values, means.astype(dtype)
        data = np.empty(x.nnz, dtype=dtype)
        squares, norms = np.zeros(self.shape[0]), np.zeros(self.shape[0])
        for i, j in tiles(self.shape[0]):
            part = slice(int(x.indptr[i]), int(x.indptr[j]))
            np.subtract(x.data[part], mu[x.indices[part]], out=data[part], casting="same_kind")
            starts = x.indptr[i : j + 1] - x.indptr[i]
            square = np.square(data[part], dtype=np.float64)
            if self.weights is None:
                squares[i:j] = norms[i:j] = row_sums(starts, square)
                continue
            weight = self.weights[part].astype(np.float64)
            squares[i:j] = row_sums(starts, square * weight)
            norms[i:j] = row_sums(starts, square * weight**2)
            data[part] *= self.weights[part]
        return CentredObserved(row_view(x, 0, self.shape[0], data), self.weights, squares, norms)

    def without(self, rows: Index, features: Index) -> Block:
        place = _places(self.values, rows, features)
        keep = np.ones(self.values.nnz, dtype=bool)
        keep[place] = False
        lost = np.bincount(rows, minlength=self.shape[0])
        indptr = np.concatenate([[0], np.cumsum(np.diff(self.values.indptr) - lost)])
        weights = None if self.weights is None else self.weights[keep]
        parts = (self.values.data[keep], self.values.indices[keep], indptr.astype(self.values.indptr.dtype))
        return _Observed(sp.csr_matrix(parts, shape=self.shape), weights)

    def shuffled(self, generator: np.random.Generator) -> Block:
        order = np.argsort(self.values.indices, kind="stable")  # column by column
        drawn = np.lexsort((generator.random(order.size), self.values.indices))
        data = np.empty_like(self.values.data)
        data[order] = self.values.data[drawn]
        return _Observed(row_view(self.values, 0, self.shape[0], data), self.weights)

    def entries(self, start: int, stop: int) -> tuple[Index, Index, Array, Array]:
        mask = self._mask(start, stop)
        value = row_view(self.values, start, stop).data.astype(np.float64)
        return row_of_entries(mask) + start, mask.indices.astype(np.int64), value, mask.data


@dataclass(frozen=True)
class _FewMissing(Block):
    """CSR ``values`` (absent = an observed 0; 0 where fully missing), CSR ``missing`` with the missing weight Q."""

    values: sp.csr_matrix
    missing: sp.csr_matrix

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.values.shape[0], self.values.shape[1]

    def mask_dot(self, b: npt.NDArray[Any]) -> Array:
        return np.asarray(b.sum(axis=0) - self.missing.astype(np.float64) @ b)

    def mask_tdot(self, b: npt.NDArray[Any]) -> Array:
        return np.asarray(b.sum(axis=0) - self.missing.astype(np.float64).T @ b)

    def col_sums(self) -> Array:
        lost = lookup(self.values, self.missing).astype(np.float64) * self.missing.data
        whole = np.asarray(self.values.sum(axis=0, dtype=np.float64)).ravel()
        return np.asarray(whole - np.bincount(self.missing.indices, lost, self.shape[1]))

    def first_bad(self) -> Bad:
        return _first_bad_stored(self.values, self.values.data, None)

    def take(self, cells: Any, features: Any) -> Block:
        return _FewMissing(_cut(self.values, cells, features), _cut(self.missing, cells, features))

    def centred(self, means: npt.NDArray[Any], *, dtype: Any = np.float32) -> Centred:
        mu = means.astype(np.float64)
        x, q = self.values.astype(np.float64), self.missing.astype(np.float64)
        lacking = lookup(x, q)
        whole = row_sums(x.indptr, x.data * (x.data - 2 * mu[x.indices])) + mu @ mu
        gone = np.square(lacking - mu[q.indices])
        squares = whole - row_sums(q.indptr, q.data * gone)
        norms = whole - row_sums(q.indptr, (2 * q.data - q.data**2) * gone)
        # (1 - Q) * (X - mu) = [X - Q * X + Q * mu] - 1 mu^T: what stands in brackets is sparse
        filled = row_view(q, 0, self.shape[0], q.data * (mu[q.indices] - lacking))
        matrix = as_rows(x + filled).astype(dtype)
        return CentredFewMissing(
            matrix, mu.astype(dtype), self.missing, np.maximum(squares, 0.0), np.maximum(norms, 0.0)
        )

    def without(self, rows: Index, features: Index) -> Block:
        more = sp.csr_matrix((np.ones(rows.size), (rows, features)), shape=self.shape)
        missing = as_rows(self.missing.astype(np.float64).maximum(more))
        return missing_block(self.values, missing)

    def shuffled(self, generator: np.random.Generator) -> Block:
        columns, lost = self.values.tocsc(), self.missing.tocsc()
        places = np.empty(columns.nnz, dtype=np.int64)
        data = columns.data.copy()
        for d in range(self.shape[1]):
            part = slice(int(columns.indptr[d]), int(columns.indptr[d + 1]))
            gone = lost.indices[lost.indptr[d] : lost.indptr[d + 1]][
                lost.data[lost.indptr[d] : lost.indptr[d + 1]] == 1
            ]
            free = np.setdiff1d(np.arange(self.shape[0]), gone, assume_unique=True)
            stored = ~np.isin(columns.indices[part], gone)
            # what is stored at a missing entry is a zero: it stays where it is
            places[part] = columns.indices[part]
            places[part][stored] = generator.choice(free, int(stored.sum()), replace=False)
        rows = sp.csc_matrix((data, places, columns.indptr), shape=self.shape)
        return _FewMissing(as_rows(rows.tocsr()), self.missing)

    def entries(self, start: int, stop: int) -> tuple[Index, Index, Array, Array]:
        rows = self.values[start:stop].toarray().astype(np.float64)
        weights = 1.0 - self.missing[start:stop].toarray()
        where = np.nonzero(weights)
        return where[0] + start, where[1], rows[where], weights[where]


def dense_block(values: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Block:
    """Rows of a dense array; NaN is missing unless ``weights`` says what is.

    Parameters
    ----------
    values
        ``(rows, D)`` numbers.
    weights
        ``(rows, D)`` in [0, 1] or bool: 1 observed, 0 missing, a fraction the probability that the entry informs.

    Raises
    ------
    SetupError
        If the shapes disagree or a weight is outside [0, 1].
    """
    x = np.asarray(values)
    x = x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float32)
    if x.ndim != 2:
        raise SetupError(
            f"Found values of shape {x.shape}, expected (cells, features). Pass values[None] for one cell."
        )
    m = ~np.isnan(x) if weights is None else np.asarray(weights)
    _check_weights(x.shape, m.shape, m)
    m = m if m.dtype == bool else m.astype(np.float32)
    return _Dense(np.where(m > 0, x, 0), m)


def observed_block(values: Any, observed: Any = None) -> Block:
    """Rows of a sparse matrix of which the entries stored in ``observed`` were observed; an absent value there is 0.

    Parameters
    ----------
    values
        ``(rows, D)`` CSR (anything that scipy turns into it).
    observed
        ``(rows, D)`` CSR of weights in [0, 1]; what it does not store is missing, whatever ``values`` holds there.
        None: the non-zero values are the observed ones.

    Raises
    ------
    SetupError
        If the shapes disagree or a weight is outside [0, 1].
    """
    x = as_rows(values)
    if observed is None:
        if x.nnz and not np.all(x.data):
            x = x.copy()
            x.eliminate_zeros()
        return _Observed(x, None)
    m = as_rows(observed)
    _check_weights(x.shape, m.shape, m.data)
    if m.nnz and not np.all(m.data):
        m = m.copy()
        m.eliminate_zeros()
    weights = None if bool(np.all(m.data == 1)) else m.data.astype(np.float32)
    if not same_pattern(x, m):
        x = row_view(m, 0, m.shape[0], lookup(x, m))
    return _Observed(x, weights)


def missing_block(values: Any, missing: Any = None) -> Block:
    """Rows of a matrix with few missing entries; every entry that ``missing`` does not store was observed.

    Parameters
    ----------
    values
        ``(rows, D)`` CSR; an absent entry is an observed 0.
    missing
        ``(rows, D)`` CSR of missing weights in [0, 1]; None: the stored NaN are missing.

    Raises
    ------
    SetupError
        If the shapes disagree or a weight is outside [0, 1].
    """
    x = as_rows(values)
    if missing is None:
        nan = np.isnan(x.data) if np.issubdtype(x.dtype, np.floating) else np.zeros(x.nnz, dtype=bool)
        q = row_view(x, 0, x.shape[0], nan.astype(np.float32)).copy()
        q.eliminate_zeros()
    else:
        q = as_rows(missing)
    _check_weights(x.shape, q.shape, q.data)
    if q.nnz and not np.all(q.data):
        q = q.copy()
        q.eliminate_zeros()
    gone = lookup(q, x) == 1
    if gone.any():
        x = row_view(x, 0, x.shape[0], np.where(gone, 0, x.data))
    return _FewMissing(x, q)


def _check_weights(expected: Any, found: Any, weights: npt.NDArray[Any]) -> None:
    if tuple(found) != tuple(expected):
        raise SetupError(f"Found a mask of shape {tuple(found)}, expected {tuple(expected)}, the shape of the values.")
    if weights.dtype == bool or weights.size == 0:
        return
    low, high = weights.min(), weights.max()
    if not (low >= 0 and high <= 1):
        raise SetupError(
            f"Found mask values from {low} to {high}, expected 1 (observed), 0 (missing) or a fraction between."
        )


def _first_bad_stored(x: sp.csr_matrix, data: npt.NDArray[Any], weights: npt.NDArray[Any] | None) -> Bad:
    if not np.issubdtype(data.dtype, np.floating):
        return None
    for i, j in tiles(x.shape[0]):
        part = slice(int(x.indptr[i]), int(x.indptr[j]))
        wrong = np.flatnonzero(~np.isfinite(data[part]))
        if wrong.size:
            at = int(wrong[0]) + part.start
            return int(np.searchsorted(x.indptr, at, side="right")) - 1, int(x.indices[at]), float(data[at])
    return None


def _cut(x: Any, cells: Any, features: Any) -> Any:
    if cells is not None:
        x = _rows(x, cells)
    return x if features is None else x[:, features]


def _rows(x: Any, cells: Any) -> Any:
    if not sp.issparse(x):
        return x[cells]
    if isinstance(cells, slice):
        start, stop, _ = cells.indices(x.shape[0])
        return row_view(x, start, stop)
    return kept_rows(x, cells)


def _places(x: sp.csr_matrix, rows: Index, features: Index) -> Index:
    """Position in ``x.data`` of entries that ``x`` stores."""
    marks = sp.csr_matrix((np.ones(rows.size, dtype=np.int8), (rows, features)), shape=x.shape)
    return np.flatnonzero(lookup(as_rows(marks), x))
