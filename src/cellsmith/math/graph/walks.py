"""Random walks on a cell graph as sparse operators: one step, a lazy step, steps with edges left out, a new cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellsmith._errors import SetupError
from cellsmith.math.graph.structure import degrees

__all__ = ["drop_edges", "lazy_walk", "place_beside", "random_walk", "self_loops", "symmetric_walk"]

_Floats = npt.NDArray[np.float64]


def self_loops(graph: Any) -> sp.csr_matrix:
    """Return A + I, float64 CSR with sorted indices.

    Parameters
    ----------
    graph
        ``(n, n)`` scipy sparse A; a diagonal that it stores is replaced by 1.
    """
    matrix = sp.csr_matrix(graph, dtype=np.float64, copy=True)
    matrix.setdiag(0.0)
    matrix.eliminate_zeros()
    out = sp.csr_matrix(matrix + sp.identity(matrix.shape[0], format="csr"))
    out.sort_indices()
    return out


def random_walk(graph: Any) -> sp.csr_matrix:
    """Form T = D^-1 (A + I), one step of a random walk that may stay (scSiameseClu S3).

    Parameters
    ----------
    graph
        ``(n, n)`` scipy sparse A, symmetric, weights >= 0; its diagonal does not count.

    Returns
    -------
    ``(n, n)`` float64 CSR; rows sum to 1, that of an isolated cell is the cell itself.
    """
    looped = self_loops(graph)
    return sp.csr_matrix(sp.diags(1.0 / degrees(looped)) @ looped)


def symmetric_walk(graph: Any) -> sp.csr_matrix:
    """Form D^-1/2 (A + I) D^-1/2 = D^1/2 T D^-1/2, the symmetric form of the walk (scSiameseClu S3).

    Parameters
    ----------
    graph
        ``(n, n)`` scipy sparse A, symmetric, weights >= 0.
    """
    looped = self_loops(graph)
    root = sp.diags(1.0 / np.sqrt(degrees(looped)))
    return sp.csr_matrix(root @ looped @ root)


def lazy_walk(walk: Any, *, teleport: float) -> sp.csr_matrix:
    """Form L = a I + (1 - a) T, a step that stays with probability ``teleport`` (scSiameseClu S7).

    Parameters
    ----------
    walk
        ``(n, n)`` T, rows sum to 1.
    teleport
        a, in (0, 1].
    """
    step = sp.csr_matrix(walk)
    out = sp.csr_matrix(teleport * sp.identity(step.shape[0], format="csr") + (1 - teleport) * step)
    out.eliminate_zeros()
    out.sort_indices()
    return out


def drop_edges(operator: Any, score: npt.ArrayLike, *, rate: float, cells: npt.ArrayLike) -> sp.csr_matrix:
    """Leave out the lowest-scored edges of every row, keep the cell itself, and let rows sum to 1 (scSiameseClu S8).

    Parameters
    ----------
    operator
        ``(m, n)`` CSR, weights >= 0; not changed.
    score
        ``(nnz,)`` score of every stored entry, in the order of ``operator.data``.
    rate
        q in [0, 1): of a row with e entries beside the cell itself, ceil(q e) are left out, ties by position.
    cells
        ``(m,)`` column that is each row's own cell.

    Returns
    -------
    ``(m, n)`` CSR.

    Raises
    ------
    SetupError
        If the rate or the number of scores is wrong.
    """
    matrix = sp.csr_matrix(operator)
    values, own = np.asarray(score, dtype=np.float64), np.asarray(cells)
    if not 0 <= rate < 1 or values.shape != matrix.data.shape or own.shape != (matrix.shape[0],):
        raise SetupError(
            f"Found rate={rate!r}, {values.size} scores and {own.size} cells for {matrix.nnz} entries in "
            f"{matrix.shape[0]} rows; expected a rate in [0, 1), a score for each entry and a cell for each row."
        )
    if rate == 0:
        return matrix.copy()
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    is_self = matrix.indices == own[rows]
    n_edges = np.bincount(rows[~is_self], minlength=matrix.shape[0])
    # 1e-9: ceil(.1 x 10) is 1, not 2, whatever the rounding of .1
    n_out = np.ceil(rate * n_edges - 1e-9).astype(np.int64)
    order = np.lexsort((np.where(is_self, np.inf, values), rows))
    rank = np.empty(matrix.nnz, dtype=np.int64)
    rank[order] = np.arange(matrix.nnz) - matrix.indptr[rows[order]]
    keep = is_self | (rank >= n_out[rows])
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows[keep], minlength=matrix.shape[0]))])
    total = np.bincount(rows[keep], weights=matrix.data[keep], minlength=matrix.shape[0])
    data = matrix.data[keep] / np.where(total > 0, total, 1.0)[rows[keep]]
    return sp.csr_matrix((data.astype(matrix.dtype), matrix.indices[keep], indptr), shape=matrix.shape)


def place_beside(own: Any, weights: Any, reference: Any, *, teleport: float) -> _Floats:
    """Propagate to a new cell that points at reference cells: a h + (1 - a) sum_j w_j (O H)_j (scSiameseClu S9).

    With reference = H this is the lazy step of the graph to which the cell was added, with reference = Pi H its
    personalised PageRank. Both are exact, since no edge leads back to the new cell.

    Parameters
    ----------
    own
        ``(m, d)`` vectors h of the new cells.
    weights
        ``(m, n)`` scipy sparse, rows sum to 1: the new cells' neighbours.
    reference
        ``(n, d)`` H or Pi H of the reference cells.
    teleport
        a, in (0, 1].

    Returns
    -------
    ``(m, d)``.
    """
    return np.asarray(teleport * np.asarray(own) + (1 - teleport) * (weights @ np.asarray(reference)))
