"""G = sum_q s_q diag(u_q) Z Z^T diag(u_q) + diag(delta) as a map of vectors (Eq. 9, 10); dense Grams of few cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError
from cellsmith.math.gram._rows import tiles
from cellsmith.math.gram.blocks import CentredBlocks
from cellsmith.math.gram.overlap import Factors, mean_factors
from cellsmith.math.gram.probability import Probability
from cellsmith.math.gram.statistics import check_size

__all__ = [
    "Operator",
    "dense_operator",
    "gram_blocks",
    "gram_operator",
    "mean_operator",
    "pairwise_operator",
    "thinned_operator",
    "weighted_tdot",
]

Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Operator:
    """A symmetric n x n matrix that is known by what it does to vectors.

    Attributes
    ----------
    apply
        V (n, p) -> G V (n, p), in ``dtype``.
    diagonal
        G_ii, (n,).
    delta
        What the implicit form adds on the diagonal, (n,); zeros where G is dense.
    n_features
        D.
    blocks
        The centred data.
    factors
        1 / N as products; None where G is dense.
    dtype
        Type of the products.
    dense
        G itself where it was formed, (n, n); None otherwise.
    overlap
        N where G is dense, (n, n) float32.
    row_sums
        sum_d p_id, (n,), by which the diagonal was divided; None where the diagonal came from elsewhere.
    """

    apply: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
    diagonal: Array
    delta: Array
    n_features: int
    blocks: CentredBlocks
    factors: Factors | None
    dtype: Any
    dense: Array | None = None
    overlap: npt.NDArray[np.float32] | None = None
    row_sums: Array | None = None

    @property
    def n(self) -> int:
        """Number of cells."""
        return self.diagonal.size

    @property
    def trace(self) -> float:
        """Sum of all eigenvalues."""
        return float(self.diagonal.sum())


def gram_operator(
    blocks: CentredBlocks, factors: Factors, row_sums: npt.NDArray[Any] | None = None, *, diagonal: Any = None
) -> Operator:
    """Return the corrected Gram operator (Eq. 3 in the form of Eq. 9 and 10).

    Off the diagonal G_ij = (Z Z^T)_ij / N_ij; on it G_ii = sum_d M_id z_id^2 / sum_d p_id. Every application reads the
    data twice: the first pass sums Z_b^T [u_q V_b] over the blocks in float64, the second forms the rows.

    Parameters
    ----------
    blocks
        Z in row blocks.
    factors
        1 / N_ij ~ sum_q s_q u_q(i) u_q(j).
    row_sums
        sum_d p_id, (n,). None keeps the diagonal that the factors give (delta = 0).
    diagonal
        (n,) values for the diagonal instead of those of Eq. 3.

    Raises
    ------
    SetupError
        If the numbers of cells disagree.
    """
    squares, norms, n_features, dtype = _norms(blocks)
    if squares.size != factors.u.shape[0]:
        raise SetupError(f"Found factors of {factors.u.shape[0]} cells, expected {squares.size}, those of the data.")
    plain = norms * (factors.u**2 @ factors.s)
    if diagonal is not None:
        diagonal = np.asarray(diagonal, dtype=np.float64)
    else:
        diagonal = plain if row_sums is None else squares / row_sums
    delta = diagonal - plain
    weights = factors.u.astype(dtype)

    def apply(v: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return _apply(blocks, (weights, factors.s, delta), np.asarray(v, dtype=dtype))

    return Operator(apply, diagonal, delta, n_features, blocks, factors, dtype, row_sums=row_sums)


def mean_operator(blocks: CentredBlocks) -> Operator:
    """Gram of mean imputation, Z Z^T / D: the same operator with u = 1 and delta = 0 (Eq. 6)."""
    squares, _, n_features, _ = _norms(blocks)
    return gram_operator(blocks, mean_factors(squares.size, n_features))


def pairwise_operator(blocks: CentredBlocks, counts: Array) -> Operator:
    """Z Z^T / max(M M^T, 1): each pair divided by the features that both observed (Eq. 6).

    Parameters
    ----------
    blocks
        Z in row blocks.
    counts
        M M^T, (n, n), from :func:`~cellsmith.math.gram.shared_counts`.

    Raises
    ------
    SizeError
        If there are more than 5,000 cells.
    """
    check_size(counts.shape[0])
    return _dense(blocks, np.maximum(counts, 1.0), np.maximum(np.diag(counts), 1.0))


def dense_operator(blocks: CentredBlocks, probability: Probability) -> Operator:
    """Eq. 3 with every N_ij exact, as an array.

    Raises
    ------
    SizeError
        If there are more than 5,000 cells.
    """
    check_size(probability.n_cells)
    return _dense(blocks, probability.cross_overlap(probability), probability.row_sums)


def thinned_operator(operator: Operator, blocks: CentredBlocks, share: float) -> Operator:
    """Return the operator of the same data without a random share of the observed entries.

    Every p_id falls by the factor 1 - ``share``, so that N_ij falls by its square and sum_d p_id by itself.

    Parameters
    ----------
    operator
        The operator of all entries.
    blocks
        Z without the entries that were held out.
    share
        Their share of the observed entries.
    """
    keep = 1.0 - share
    row_sums = None if operator.row_sums is None else operator.row_sums * keep
    if operator.overlap is not None:
        return _dense(blocks, operator.overlap * keep**2, np.diag(operator.overlap) if row_sums is None else row_sums)
    if operator.factors is None:
        raise SetupError("The operator has neither factors nor an overlap; it cannot be thinned.")
    return gram_operator(blocks, replace(operator.factors, s=operator.factors.s / keep**2), row_sums)


def gram_blocks(operator: Operator, chunk_size: int = 1000) -> Iterator[tuple[slice, Array]]:
    """Yield rows of G, ``(slice, (rows, n))``, for whoever really wants them.

    Parameters
    ----------
    operator
        The Gram operator.
    chunk_size
        Rows at a time; every chunk reads the data twice.
    """
    for start, stop in tiles(operator.n, chunk_size):
        rows = slice(start, stop)
        if operator.dense is not None:
            yield rows, operator.dense[rows]
            continue
        unit = np.zeros((operator.n, stop - start), dtype=operator.dtype)
        unit[np.arange(start, stop), np.arange(stop - start)] = 1
        yield rows, operator.apply(unit).T.astype(np.float64)


def weighted_tdot(blocks: CentredBlocks, weights: npt.NDArray[Any], vectors: npt.NDArray[Any]) -> Array:
    """Z^T [w_q V] of every column q of the weights, (D, R p), summed over tiles of cells in float64.

    Parameters
    ----------
    blocks
        Z in row blocks.
    weights
        w, (n, R).
    vectors
        V, (n, p).
    """
    width = weights.shape[1] * vectors.shape[1]
    total: Array | None = None
    for start, z in blocks():
        total = np.zeros((z.shape[1], width)) if total is None else total
        for i, j in tiles(z.shape[0]):
            a, b = start + i, start + j
            block = (weights[a:b, :, None] * vectors[a:b, None, :]).reshape(b - a, width)
            total += z.tile_tdot(np.ascontiguousarray(block, dtype=z.dtype), i, j)
    return np.zeros((0, width)) if total is None else total


def _apply(blocks: CentredBlocks, parts: Any, v: npt.NDArray[Any]) -> npt.NDArray[Any]:
    u, s, delta = parts
    p, rank = v.shape[1], s.size
    product = np.ascontiguousarray(weighted_tdot(blocks, u, v) * np.repeat(s, p), dtype=v.dtype)
    out = np.empty_like(v)
    for start, z in blocks():
        for i, j in tiles(z.shape[0]):
            a, b = start + i, start + j
            rows = z.tile_dot(product, i, j).reshape(b - a, rank, p)
            np.einsum("iqp,iq->ip", rows, u[a:b], out=out[a:b])
            out[a:b] += delta[a:b, None] * v[a:b]
    return out


def _norms(blocks: CentredBlocks) -> tuple[Array, Array, int, Any]:
    squares, norms, n_features, dtype = [], [], 0, np.dtype(np.float32)
    for _, z in blocks():
        squares.append(z.squares)
        norms.append(z.norms)
        n_features, dtype = z.shape[1], z.dtype
    if not squares:
        raise SetupError("Found no cells, expected at least one block of rows.")
    return np.concatenate(squares), np.concatenate(norms), n_features, dtype


def _inner(blocks: CentredBlocks, n: int) -> Array:
    """Z Z^T in float64, (n, n)."""
    out = np.empty((n, n))
    for start, z in blocks():
        for i, j in tiles(z.shape[0], 1024):
            left = z.toarray(slice(i, j)).astype(np.float64)
            for there, other in blocks():
                if there > start + j:
                    break
                for k, m in tiles(other.shape[0], 1024):
                    out[start + i : start + j, there + k : there + m] = (
                        left @ other.toarray(slice(k, m)).astype(np.float64).T
                    )
    lower = np.tril_indices(n, -1)
    out[lower[1], lower[0]] = out[lower]
    return out


def _dense(blocks: CentredBlocks, overlap: npt.NDArray[Any], row_sums: Array) -> Operator:
    squares, _, n_features, _ = _norms(blocks)
    if overlap.shape != (squares.size, squares.size):
        raise SetupError(f"Found an overlap of shape {overlap.shape}, expected that of {squares.size} cells.")
    gram = _inner(blocks, squares.size) / overlap
    diagonal = squares / row_sums
    np.fill_diagonal(gram, diagonal)

    def apply(v: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(gram @ v)

    return Operator(
        apply,
        diagonal,
        np.zeros(diagonal.size),
        n_features,
        blocks,
        None,
        np.dtype(np.float64),
        dense=gram,
        overlap=overlap.astype(np.float32),
        row_sums=row_sums,
    )
