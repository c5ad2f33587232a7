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

from cellsmith.math.gram._rows import as_rows, row_of_entries, row_view, tiles, transposed

__all__ = ["Centred", "Products"]

Array: TypeAlias = npt.NDArray[np.float64]
_ENTRIES = 1 << 21  # products of entries formed at once


class Products(ABC):
    """Rows of a matrix that is known by its products.

    Attributes
    ----------
    matrix
        What of it is stored, CSR or array, (rows, D).
    """

    matrix: Any

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, D)."""
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def dtype(self) -> Any:
        """Type of the products."""
        return self.matrix.dtype

    @abstractmethod
    def tile_dot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``Z[start:stop] @ b`` for ``b`` (D, p) of ``dtype``."""

    @abstractmethod
    def tile_tdot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``Z[start:stop].T @ b``, (D, p), for ``b`` (stop - start, p) of ``dtype``."""

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


class Centred(Products):
    """Rows of Z.

    Attributes
    ----------
    squares
        sum_d M_id (y_id - mu_d)^2, (rows,) float64: each entry weighted once, the diagonal of Eq. 3.
    norms
        |Z_i|^2 = sum_d M_id^2 (y_id - mu_d)^2, (rows,) float64; equal to ``squares`` for a mask of zeros and ones.
    """

    squares: Array
    norms: Array

    @abstractmethod
    def mask_dot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``M[start:stop] @ b`` for ``b`` (D, p)."""

    @abstractmethod
    def filled(self, scores: npt.NDArray[Any], basis: npt.NDArray[Any]) -> Products:
        """Z + (1 - M) * (scores basis^T): the missing entries filled with a low-rank fit, still implicit."""

    def stored_rows(self, rows: Any) -> tuple[Any, npt.NDArray[Any] | None]:
        """Return some rows as (array or CSR, shift): what to subtract from each row, None for nothing."""
        return self.matrix[rows], None

    def toarray(self, rows: Any = slice(None)) -> npt.NDArray[Any]:
        """Z of some rows as an array, (rows, D).

        Parameters
        ----------
        rows
            A slice, or numbers of rows.
        """
        stored, shift = self.stored_rows(rows)
        found = np.asarray(stored.toarray() if sp.issparse(stored) else stored)
        return found if shift is None else found - shift

    def observed_grams(self, basis: npt.NDArray[Any], start: int, stop: int) -> Array:
        """sum_d M_id l_d l_d^T of some rows, (rows, k, k): the Gram matrices of the basis rows that each cell observed.

        Parameters
        ----------
        basis
            l, (D, k).
        start, stop
            The rows.
        """
        a, b = np.triu_indices(basis.shape[1])
        sums = self.mask_dot(basis[:, a] * basis[:, b], start, stop)
        out = np.empty((stop - start, basis.shape[1], basis.shape[1]))
        out[:, a, b] = out[:, b, a] = sums
        return out

    def row_weights(self) -> Array:
        """sum_d M_id, (rows,)."""
        return np.asarray(self.mask_dot(np.ones((self.shape[1], 1)), 0, self.shape[0])[:, 0], dtype=np.float64)


@dataclass(frozen=True)
class CentredObserved(Centred):
    """Z as CSR on the observed entries; ``weights`` (nnz,) or None for a mask of zeros and ones."""

    matrix: sp.csr_matrix
    weights: npt.NDArray[Any] | None
    squares: Array
    norms: Array

    def tile_dot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``Z[start:stop] @ b``."""
        return np.asarray(row_view(self.matrix, start, stop) @ b)

    def tile_tdot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``Z[start:stop].T @ b``."""
        return np.asarray(transposed(self.matrix, start, stop) @ b)

    def mask_dot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``M[start:stop] @ b``, in the type of Z."""
        rows = row_view(self.matrix, start, stop, self.weights)
        ones = np.ones(rows.nnz, self.dtype) if self.weights is None else rows.data.astype(self.dtype)
        return np.asarray(row_view(rows, 0, stop - start, ones) @ b.astype(self.dtype))

    def filled(self, scores: npt.NDArray[Any], basis: npt.NDArray[Any]) -> Products:
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

    def tile_dot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``Z[start:stop] @ b``."""
        return np.asarray(row_view(self.matrix, start, stop) @ b - self.shift @ b)

    def tile_tdot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``Z[start:stop].T @ b``."""
        out = np.asarray(transposed(self.matrix, start, stop) @ b)
        out -= np.outer(self.shift, b.sum(axis=0))
        return out

    def mask_dot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``M[start:stop] @ b`` in float64."""
        b = b.astype(np.float64)
        return np.asarray(b.sum(axis=0) - row_view(self.missing, start, stop).astype(np.float64) @ b)

    def filled(self, scores: npt.NDArray[Any], basis: npt.NDArray[Any]) -> Products:
        """Z + Q * (scores basis^T): the fit enters at the missing entries only."""
        fit = _fit_at(self.missing, scores, basis) * self.missing.data
        more = row_view(self.missing, 0, self.shape[0], fit.astype(self.dtype))
        matrix = as_rows(self.matrix + more).astype(self.dtype)
        return CentredFewMissing(matrix, self.shift, self.missing, self.squares, self.norms)

    def stored_rows(self, rows: Any) -> tuple[Any, npt.NDArray[Any] | None]:
        """Return some rows, and what to subtract from each."""
        return self.matrix[rows], self.shift


@dataclass(frozen=True)
class CentredDense(Centred):
    """Z as an array; ``weights`` bool or float of the same shape."""

    matrix: npt.NDArray[Any]
    weights: npt.NDArray[Any]
    squares: Array
    norms: Array

    def tile_dot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``Z[start:stop] @ b``."""
        return np.asarray(self.matrix[start:stop] @ b)

    def tile_tdot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``Z[start:stop].T @ b``."""
        return np.asarray(self.matrix[start:stop].T @ b)

    def mask_dot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``M[start:stop] @ b`` in float64."""
        return np.asarray(self.weights[start:stop].astype(np.float64) @ b)

    def filled(self, scores: npt.NDArray[Any], basis: npt.NDArray[Any]) -> Products:
        """Z + (1 - M) * (scores basis^T)."""
        matrix = (scores @ basis.T).astype(self.dtype)
        matrix *= 1 - self.weights.astype(self.dtype)
        matrix += self.matrix
        return CentredDense(matrix, self.weights, self.squares, self.norms)


@dataclass(frozen=True)
class _Filled(Products):
    """``matrix`` + ``scores`` ``basis``^T."""

    matrix: sp.csr_matrix
    scores: npt.NDArray[Any]
    basis: npt.NDArray[Any]

    def tile_dot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``F[start:stop] @ b``."""
        return np.asarray(row_view(self.matrix, start, stop) @ b + self.scores[start:stop] @ (self.basis.T @ b))

    def tile_tdot(self, b: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
        """``F[start:stop].T @ b``."""
        return np.asarray(transposed(self.matrix, start, stop) @ b + self.basis @ (self.scores[start:stop].T @ b))


def _fit_at(pattern: sp.csr_matrix, scores: npt.NDArray[Any], basis: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(scores basis^T) at the stored entries of ``pattern``, (nnz,)."""
    out = np.empty(pattern.nnz, dtype=np.result_type(scores, basis))
    rows = row_of_entries(pattern)
    step = max(1, _ENTRIES // max(1, basis.shape[1]))
    for i in range(0, pattern.nnz, step):
        part = slice(i, i + step)
        np.einsum("ek,ek->e", scores[rows[part]], basis[pattern.indices[part]], out=out[part])
    return out
