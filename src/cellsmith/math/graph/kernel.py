"""From distances to weights: the smooth nearest-neighbour kernel of UMAP, and unions of directed weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellsmith._errors import SetupError

__all__ = ["cross_weights", "fuzzy_union", "probabilistic_union", "smooth_distances", "table_matrix"]

_MAX_STEPS = 64
_TOLERANCE = 1e-5  # of the summed membership
_SMALLEST = np.float32(1e-3)  # sigma in units of the row's mean distance
_Single = npt.NDArray[np.float32]


def smooth_distances(distances: npt.ArrayLike) -> tuple[_Single, _Single]:
    """Find each row's offset rho and width sigma such that the memberships sum to log2(k + 1).

    rho_i is the smallest positive distance of the row (0 where there is none), and sigma_i solves
    sum_j exp(-max(d_ij - rho_i, 0) / sigma_i) = log2(k + 1) by bisection, at least 1e-3 of the row's mean distance.
    The cell itself counts as one of k + 1 neighbours, as in umap-learn's ``smooth_knn_dist`` (local connectivity 1),
    whose float32 arithmetic is followed step by step (McInnes, Healy and Melville, arXiv 1802.03426, algorithm 3).

    Parameters
    ----------
    distances
        ``(m, k)`` distances to other cells, >= 0; inf or NaN where there is no neighbour.

    Returns
    -------
    ``(rho, sigma)``, both ``(m,)`` float32, in the unit of the distances.
    """
    table = np.asarray(distances, dtype=np.float32)
    there = np.isfinite(table)
    rho = np.where(there & (table > 0), table, np.inf).min(axis=1, initial=np.inf).astype(np.float32)
    rho[np.isinf(rho)] = 0.0
    beyond = np.where(there, np.maximum(table - rho[:, None], 0), np.inf).astype(np.float32)
    sigma = _bisect(np.ascontiguousarray(beyond.T), float(np.log2(table.shape[1] + 1.0)))
    total = np.where(there, table, 0).sum(axis=1, dtype=np.float32)
    share = there.sum(axis=1) + 1  # the cell itself, at distance 0, is one more
    overall = total.sum(dtype=np.float64) / max(1, int(share.sum()))
    mean = np.where(rho > 0, total / share, overall).astype(np.float32)
    return rho, np.maximum(sigma, _SMALLEST * mean)


def _bisect(beyond: _Single, target: float) -> _Single:
    """Solve for sigma, all rows at once; ``beyond`` is (k, m), so that a sum over k adds in order, as umap does."""
    m = beyond.shape[1]
    sigma = np.ones(m, dtype=np.float32)
    active = np.arange(m)
    middle, low, high = sigma.copy(), np.zeros(m, np.float32), np.full(m, np.inf, np.float32)
    for _ in range(_MAX_STEPS):
        scaled = beyond / -middle
        excess = np.exp(scaled, out=scaled).sum(axis=0).astype(np.float64) - target
        going = np.abs(excess) >= _TOLERANCE
        if not going.all():
            sigma[active[~going]] = middle[~going]
            active, beyond, excess = active[going], beyond[:, going], excess[going]
            middle, low, high = middle[going], low[going], high[going]
        if active.size == 0:
            break
        wide = excess > 0
        high, low = np.where(wide, middle, high), np.where(wide, low, middle)
        middle = np.where(np.isinf(high), middle * 2, (low + high) / 2).astype(np.float32)
    sigma[active] = middle
    return sigma


def cross_weights(distances: npt.ArrayLike) -> _Single:
    """Turn distances to neighbours into directed memberships in [0, 1].

    a_ij = exp(-max(d_ij - rho_i, 0) / sigma_i) with rho and sigma of :func:`smooth_distances`. For the table of the
    reference cells these are the weights before :func:`fuzzy_union` joins both directions; for new cells they are
    the weights of their reference neighbours.

    Parameters
    ----------
    distances
        ``(m, k)`` distances, >= 0; inf or NaN where there is no neighbour.

    Returns
    -------
    ``(m, k)`` float32; 0 where there is no neighbour, 1 for the nearest and for duplicates.
    """
    table = np.asarray(distances, dtype=np.float32)
    if table.ndim != 2 or table.shape[1] == 0 or (table < 0).any():
        raise SetupError(f"Found distances of shape {table.shape}, expected (cells, neighbours), all of them >= 0.")
    rho, sigma = smooth_distances(table)
    weight = np.exp(-np.maximum(table - rho[:, None], 0) / sigma[:, None])
    return np.where(np.isfinite(table), weight, 0).astype(np.float32)


def fuzzy_union(indices: npt.ArrayLike, distances: npt.ArrayLike) -> sp.csr_matrix:
    """Build the symmetric graph of a table of neighbours: kernel weights, then a_ij + a_ji - a_ij a_ji.

    Equals scanpy's connectivities (``sc.pp.neighbors`` with ``n_neighbors = k + 1``), and umap-learn's
    ``fuzzy_simplicial_set`` of the table with the cell itself in front.

    Parameters
    ----------
    indices
        ``(n, k)`` other cells, without repeats in a row; -1 where there is none. A cell's own index has no effect.
    distances
        ``(n, k)`` distances, >= 0; ties and zeros (duplicates) are fine.

    Returns
    -------
    ``(n, n)`` float32 CSR with sorted indices: symmetric, zero diagonal, weights in (0, 1].

    Raises
    ------
    SetupError
        If the two tables disagree, an index lies outside the cells or is repeated in its row, or a distance is
        negative.
    """
    table, gap = np.asarray(indices), np.asarray(distances, dtype=np.float32)
    if table.ndim != 2 or table.shape != gap.shape:
        raise SetupError(f"Found indices of shape {table.shape} and distances of {gap.shape}, expected one (n, k).")
    weights = cross_weights(np.where(table < 0, np.inf, gap))
    weights[table == np.arange(len(table))[:, None]] = 0
    return probabilistic_union(table_matrix(table, weights, len(table)))


def table_matrix(indices: npt.ArrayLike, values: npt.ArrayLike, n_columns: int) -> sp.csr_matrix:
    """Write a table of neighbours as a sparse matrix.

    Parameters
    ----------
    indices
        ``(m, k)`` columns, without repeats in a row; -1 where there is none.
    values
        ``(m, k)`` values; zeros are not stored.
    n_columns
        Number of columns of the matrix.

    Returns
    -------
    ``(m, n_columns)`` CSR with sorted indices, of the dtype of ``values``.

    Raises
    ------
    SetupError
        If an index lies outside the columns or is repeated in its row.
    """
    columns, entries = np.asarray(indices), np.asarray(values)
    m = len(columns)
    if columns.size and (columns.max() >= n_columns or columns.min() < -1):
        raise SetupError(
            f"Found neighbours from {columns.min()} to {columns.max()}, expected 0 to {n_columns - 1}, or -1 for none."
        )
    kept = (columns >= 0) & (entries != 0)
    indptr = np.zeros(m + 1, dtype=np.int32 if columns.size < 2**31 else np.int64)
    np.cumsum(kept.sum(axis=1), out=indptr[1:])
    matrix = sp.csr_matrix((entries[kept], columns[kept].astype(indptr.dtype), indptr), shape=(m, n_columns))
    matrix.sort_indices()
    repeated = np.flatnonzero((np.diff(matrix.indices) == 0) & (np.diff(np.repeat(np.arange(m), np.diff(indptr))) == 0))
    if repeated.size:
        row = int(np.searchsorted(indptr, repeated[0], side="right")) - 1
        raise SetupError(f"Found neighbour {matrix.indices[repeated[0]]} twice in row {row}, expected it once.")
    return matrix


def probabilistic_union(w: Any) -> sp.csr_matrix:
    """Join both directions of a directed graph: a_ij = w_ij + w_ji - w_ij w_ji.

    On weights in {0, 1} this is the plain union; weights in [0, 1] stay there.

    Parameters
    ----------
    w
        ``(n, n)`` scipy sparse, weights in [0, 1].

    Returns
    -------
    ``(n, n)`` CSR with sorted indices and no stored zero; exactly symmetric.
    """
    directed = sp.csr_matrix(w)
    back = directed.T.tocsr()
    union = sp.csr_matrix(directed + back - directed.multiply(back))
    union.eliminate_zeros()
    union.sort_indices()
    return union
