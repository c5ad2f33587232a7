"""Z = M * (Y - 1 mu^T) of consecutive cells as an operator that never becomes dense (Eq. 11).

Three stores: CSR where most entries are missing; CSR plus one rank where few are; an array for dense input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellsmith.math.gram._rows import as_rows, row_of_entries, row_sums, row_view, tiles, transposed

__all__ = ["Centred"]

Array: TypeAlias = npt.NDArray[np.float64]
_ENTRIES = 1 << 21  # products of entries formed at once


class Centred(ABC):
    """Rows of Z.

    Attributes
    ----------
    shape
        (rows, D).
    squares
        sum_d M_id (y_id - mu_d)^2, (rows,) float64: each entry weighted once, the diagonal of Eq. 3.
    norms
        |Z_i|^2 = sum_d M_id^2 (y_id - mu_d)^2, (rows,) float64; equal to ``squares`` for a mask of zeros and ones.
    """

    squares: Array
    norms: Array

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(rows, D)."""

    @property
    @abstractmethod
    def dtype(self) -> Any:
        """Type of the products."""

    @abstractmethod
    def tile_dot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``Z[start:stop] @ b`` for ``b`` (D, p) of ``dtype``."""

    @abstractmethod
    def tile_tdot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``Z[start:stop].T @ b``, (D, p), for ``b`` (stop - start, p) of ``dtype``."""

    @abstractmethod
    def toarray(self, rows: Any = slice(None)) -> npt.NDArray[Any]:
        """Z of some rows as an array, (rows, D)."""

    @abstractmethod
    def inner_rows(self, rows: npt.NDArray[np.int64]) -> tuple[Any, npt.NDArray[Any] | None]:
        """Return some rows as (array or CSR, shift): what to subtract from each row, None for nothing."""

    @abstractmethod
    def observed_grams(self, basis: npt.NDArray[Any], start: int, stop: int) -> Array:
        """sum_d M_id l_d l_d^T of the rows ``start`` to ``stop``, (rows, k, k), for ``basis`` l of shape (D, k)."""

    @abstractmethod
    def row_weights(self) -> Array:
        """sum_d M_id, (rows,)."""

    @abstractmethod
    def filled(self, scores: npt.NDArray[Any], basis: npt.NDArray[Any]) -> Centred:
        """Z + (1 - M) * (scores basis^T): the missing entries filled with a low-rank fit, still implicit."""

    def dot(self, b: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """``Z @ b``, (rows, p).

        Parameters
        ----------
        b
            (D, p).
        """
        b = np.ascontiguousarray(b, dtype=self.dtype)
        out = np.empty((self.shape[0], b.shape[1]), dtype=self.dtype)
        for i, j in tiles(self.shape[0]):
            out[i:j] = self.tile_dot(b, i, j)
        return out

    def tdot(self, b: npt.NDArray[Any]) -> Array:
        """``Z.T @ b``, (D, p), summed over tiles of cells in float64.

        Parameters
        ----------
        b
            (rows, p).
        """
        total = np.zeros((self.shape[1], b.shape[1]))
        for i, j in tiles(self.shape[0]):
            total += self.tile_tdot(np.ascontiguousarray(b[i:j], dtype=self.dtype), i, j)
        return total


@dataclass(frozen=True)
class CentredObserved(Centred):
    """Z as CSR on the observed entries; ``weights`` (nnz,) or None for a mask of zeros and ones."""

    matrix: sp.csr_matrix
    weights: npt.NDArray[Any] | None
    squares: Array
    norms: Array

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, D)."""
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def dtype(self) -> Any:
        """Type of the products."""
        return self.matrix.dtype

    def tile_dot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``Z[start:stop] @ b``."""
        return np.asarray(row_view(self.matrix, start, stop) @ b)

    def tile_tdot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``Z[start:stop].T @ b``."""
        return np.asarray(transposed(self.matrix, start, stop) @ b)

    def toarray(self, rows: Any = slice(None)) -> npt.NDArray[Any]:
        """Z of some rows as an array."""
        return np.asarray(self.matrix[rows].toarray())

    def _mask(self, start: int, stop: int) -> sp.csr_matrix:
        rows = row_view(self.matrix, start, stop)
        if self.weights is None:
            return row_view(rows, 0, stop - start, np.ones(rows.nnz, dtype=self.dtype))
        return row_view(self.matrix, start, stop, self.weights.astype(self.dtype))

    def inner_rows(self, rows: npt.NDArray[np.int64]) -> tuple[Any, npt.NDArray[Any] | None]:
        """Return some rows, and what to subtract from each."""
        return self.matrix[rows], None

    def observed_grams(self, basis: npt.NDArray[Any], start: int, stop: int) -> Array:
        """Gram matrices of the basis rows that each cell observed."""
        products = _pairs(basis, self.dtype)
        return _unfold(basis.shape[1], self._mask(start, stop) @ products)

    def row_weights(self) -> Array:
        """Observed entries of each row."""
        if self.weights is None:
            return np.asarray(np.diff(self.matrix.indptr), dtype=np.float64)
        return row_sums(self.matrix.indptr, self.weights)

    def filled(self, scores: npt.NDArray[Any], basis: npt.NDArray[Any]) -> Centred:
        """Z + (1 - M) * (scores basis^T) as CSR plus low rank."""
        fit = _fit_at(self.matrix, scores, basis)
        fit = fit if self.weights is None else fit * self.weights
        sparse = row_view(self.matrix, 0, self.shape[0], (self.matrix.data - fit).astype(self.dtype))
        return _Filled(sparse, scores.astype(self.dtype), basis.astype(self.dtype))


@dataclass(frozen=True)
class CentredFewMissing(Centred):
    """Z = ``matrix`` - 1 ``shift``^T, where ``missing`` (CSR) holds the missing weights."""

    matrix: sp.csr_matrix
    shift: npt.NDArray[Any]
    missing: sp.csr_matrix
    squares: Array
    norms: Array

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, D)."""
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def dtype(self) -> Any:
        """Type of the products."""
        return self.matrix.dtype

    def tile_dot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``Z[start:stop] @ b``."""
        return np.asarray(row_view(self.matrix, start, stop) @ b - self.shift @ b)

    def tile_tdot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``Z[start:stop].T @ b``."""
        out = np.asarray(transposed(self.matrix, start, stop) @ b)
        out -= np.outer(self.shift, b.sum(axis=0))
        return out

    def toarray(self, rows: Any = slice(None)) -> npt.NDArray[Any]:
        """Z of some rows as an array."""
        return np.asarray(self.matrix[rows].toarray() - self.shift)

    def inner_rows(self, rows: npt.NDArray[np.int64]) -> tuple[Any, npt.NDArray[Any] | None]:
        """Return some rows, and what to subtract from each."""
        return self.matrix[rows], self.shift

    def observed_grams(self, basis: npt.NDArray[Any], start: int, stop: int) -> Array:
        """Gram matrices of the basis rows that each cell observed."""
        products = _pairs(basis, np.float64)
        return _unfold(
            basis.shape[1], products.sum(axis=0) - row_view(self.missing, start, stop).astype(np.float64) @ products
        )

    def row_weights(self) -> Array:
        """Observed entries of each row."""
        return self.shape[1] - row_sums(self.missing.indptr, self.missing.data)

    def filled(self, scores: npt.NDArray[Any], basis: npt.NDArray[Any]) -> Centred:
        """Z + Q * (scores basis^T): the fit enters at the missing entries only."""
        fit = _fit_at(self.missing, scores, basis) * self.missing.data
        more = row_view(self.missing, 0, self.shape[0], fit.astype(self.dtype))
        matrix = as_rows(self.matrix + more).astype(self.dtype)
        return CentredFewMissing(matrix, self.shift, self.missing, self.squares, self.norms)


@dataclass(frozen=True)
class CentredDense(Centred):
    """Z as an array; ``weights`` bool or float of the same shape."""

    matrix: npt.NDArray[Any]
    weights: npt.NDArray[Any]
    squares: Array
    norms: Array

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, D)."""
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def dtype(self) -> Any:
        """Type of the products."""
        return self.matrix.dtype

    def tile_dot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``Z[start:stop] @ b``."""
        return np.asarray(self.matrix[start:stop] @ b)

    def tile_tdot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``Z[start:stop].T @ b``."""
        return np.asarray(self.matrix[start:stop].T @ b)

    def toarray(self, rows: Any = slice(None)) -> npt.NDArray[Any]:
        """Z of some rows as an array."""
        return np.asarray(self.matrix[rows])

    def inner_rows(self, rows: npt.NDArray[np.int64]) -> tuple[Any, npt.NDArray[Any] | None]:
        """Return some rows, and what to subtract from each."""
        return self.matrix[rows], None

    def observed_grams(self, basis: npt.NDArray[Any], start: int, stop: int) -> Array:
        """Gram matrices of the basis rows that each cell observed."""
        products = _pairs(basis, np.float64)
        return _unfold(basis.shape[1], self.weights[start:stop].astype(np.float64) @ products)

    def row_weights(self) -> Array:
        """Observed entries of each row."""
        return np.asarray(self.weights.sum(axis=1, dtype=np.float64))

    def filled(self, scores: npt.NDArray[Any], basis: npt.NDArray[Any]) -> Centred:
        """Z + (1 - M) * (scores basis^T)."""
        matrix = (scores @ basis.T).astype(self.dtype)
        matrix *= 1 - self.weights.astype(self.dtype)
        matrix += self.matrix
        return CentredDense(matrix, self.weights, self.squares, self.norms)


@dataclass(frozen=True)
class _Filled(Centred):
    """``matrix`` + ``scores`` ``basis``^T; has no mask of its own."""

    matrix: sp.csr_matrix
    scores: npt.NDArray[Any]
    basis: npt.NDArray[Any]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, D)."""
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def dtype(self) -> Any:
        """Type of the products."""
        return self.matrix.dtype

    def tile_dot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``F[start:stop] @ b``."""
        return np.asarray(row_view(self.matrix, start, stop) @ b + self.scores[start:stop] @ (self.basis.T @ b))

    def tile_tdot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``F[start:stop].T @ b``."""
        return np.asarray(transposed(self.matrix, start, stop) @ b + self.basis @ (self.scores[start:stop].T @ b))

    def toarray(self, rows: Any = slice(None)) -> npt.NDArray[Any]:
        """F of some rows as an array."""
        return np.asarray(self.matrix[rows].toarray() + self.scores[rows] @ self.basis.T)

    def inner_rows(self, rows: npt.NDArray[np.int64]) -> tuple[Any, npt.NDArray[Any] | None]:
        """Return some rows, and what to subtract from each."""
        return self.toarray(rows), None

    def observed_grams(self, basis: npt.NDArray[Any], start: int, stop: int) -> Array:
        """Every entry counts as observed once it is filled."""
        basis = basis.astype(np.float64)
        return np.broadcast_to(basis.T @ basis, (stop - start, basis.shape[1], basis.shape[1]))

    def row_weights(self) -> Array:
        """Observed entries of each row."""
        return np.full(self.shape[0], float(self.shape[1]))

    def filled(self, scores: npt.NDArray[Any], basis: npt.NDArray[Any]) -> Centred:
        """Nothing is left to fill."""
        return self


def _pairs(basis: npt.NDArray[Any], dtype: Any) -> npt.NDArray[Any]:
    """Products l_da l_db for a <= b, (D, k(k+1)/2)."""
    a, b = np.triu_indices(basis.shape[1])
    return np.ascontiguousarray(basis[:, a] * basis[:, b], dtype=dtype)


def _unfold(k: int, sums: npt.NDArray[Any]) -> Array:
    """Return sums of such products as symmetric matrices, (m, k, k)."""
    a, b = np.triu_indices(k)
    out = np.empty((sums.shape[0], k, k))
    out[:, a, b] = sums
    out[:, b, a] = sums
    return out


def _fit_at(pattern: sp.csr_matrix, scores: npt.NDArray[Any], basis: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(scores basis^T) at the stored entries of ``pattern``, (nnz,)."""
    out = np.empty(pattern.nnz, dtype=np.result_type(scores, basis))
    rows = row_of_entries(pattern)
    step = max(1, _ENTRIES // max(1, basis.shape[1]))
    for i in range(0, pattern.nnz, step):
        part = slice(i, i + step)
        np.einsum("ek,ek->e", scores[rows[part]], basis[pattern.indices[part]], out=out[part])
    return out
