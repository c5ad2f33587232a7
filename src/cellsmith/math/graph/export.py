"""A table of scored candidates as a graph that scanpy can use: symmetric, weighted, connected."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse import csgraph

from cellsmith._errors import SetupError
from cellsmith.math.graph.kernel import probabilistic_union, table_matrix
from cellsmith.math.graph.structure import components, connect_components

__all__ = ["ExportedGraph", "export_graph"]

_BRIDGE = 1e-3  # weight of a bridge in units of the median weight, as in connect_components
_SMALLEST_DISTANCE = 1e-6  # duplicates stay edges in a sparse matrix
_BLOCK = 1 << 18  # edges whose cosines are formed together
_Floats = npt.NDArray[np.float64]


class ExportedGraph(NamedTuple):
    """Answer of :func:`export_graph`.

    Attributes
    ----------
    connectivities, distances
        ``(n, n)`` float32 CSR of one pattern, symmetric, without diagonal; distances are sqrt(2 - 2 cos).
    n_bridges
        Weak edges that were added to join components.
    """

    connectivities: sp.csr_matrix
    distances: sp.csr_matrix
    n_bridges: int


def export_graph(logits: npt.ArrayLike, candidates: npt.ArrayLike, z: npt.ArrayLike, *, k: int) -> ExportedGraph:
    """Turn scored candidates into one deterministic graph (scAGC, Export).

    The k best candidates of every cell stay. Their weight is softmax(logits) of the row divided by its largest, so that
    the best edge of a cell weighs 1; both directions join as a + b - a b. Components are joined by the shortest
    candidate pairs between them, and where there are none by the nearest cells, each with 1e-3 of the median weight.

    Parameters
    ----------
    logits
        ``(n, M)`` of the candidates, without noise.
    candidates
        ``(n, M)`` other cells, without repeats in a row.
    z
        ``(n, d)`` the centred coordinates whose cosines the logits hold.
    k
        Neighbours that every cell chooses, from 1 to M.

    Returns
    -------
    Connectivities, distances and the number of bridges.

    Raises
    ------
    SetupError
        If shapes disagree or k is out of range.
    """
    score, table = np.asarray(logits, dtype=np.float64), np.asarray(candidates)
    points = np.asarray(z, dtype=np.float64)
    if score.ndim != 2 or score.shape != table.shape or points.ndim != 2 or len(points) != len(table):
        raise SetupError(
            f"Found logits of shape {score.shape}, candidates {table.shape}, coordinates {points.shape}; expected "
            "(n, M), (n, M) and (n, d)."
        )
    if not 1 <= k <= table.shape[1]:
        raise SetupError(f"Found k={k}, expected 1 to {table.shape[1]}, the number of candidates.")
    best = np.argsort(-score, axis=1, kind="stable")[:, :k]
    chosen = np.take_along_axis(score, best, axis=1)
    weights = np.exp(chosen - chosen[:, :1])
    weights = np.maximum(weights, np.finfo(np.float32).tiny)  # a chosen edge stays one, however weak
    graph = probabilistic_union(table_matrix(np.take_along_axis(table, best, axis=1), weights, len(table)))
    unit = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    joined = _bridged(graph, table, points, unit)
    joined.data = np.maximum(joined.data, np.finfo(np.float32).tiny)
    lengths = joined.copy()
    rows = np.repeat(np.arange(len(table)), np.diff(joined.indptr))
    lengths.data = _chords(unit, rows, joined.indices)
    n_bridges = (joined.nnz - graph.nnz) // 2
    return ExportedGraph(joined.astype(np.float32), lengths.astype(np.float32), int(n_bridges))


def _bridged(graph: sp.csr_matrix, table: npt.NDArray[Any], points: _Floats, unit: _Floats) -> sp.csr_matrix:
    """Return a connected graph; the bridges weigh 1e-3 of the median weight."""
    labels = components(graph)
    if labels.max(initial=0) == 0:
        return graph
    weight = _BRIDGE * float(np.median(graph.data))
    row, col = np.repeat(np.arange(len(table)), table.shape[1]), table.reshape(-1).astype(np.int64)
    between = labels[row] != labels[col]
    row, col = row[between], col[between]
    joined = graph
    if row.size:
        length = _chords(unit, row, col)
        one, two = np.minimum(labels[row], labels[col]), np.maximum(labels[row], labels[col])
        order = np.lexsort((col, row, length, two, one))  # the shortest of every two components comes first
        first = order[np.unique(one[order] * np.int64(labels.max() + 1) + two[order], return_index=True)[1]]
        size = int(labels.max()) + 1
        lengths = sp.coo_matrix((length[first], (one[first], two[first])), shape=(size, size))
        tree = csgraph.minimum_spanning_tree(lengths.tocsr()).tocoo()
        used = np.isin(one[first] * np.int64(size) + two[first], tree.row * np.int64(size) + tree.col)
        i, j = row[first[used]], col[first[used]]
        bridges = sp.coo_matrix((np.full(2 * i.size, weight), (np.r_[i, j], np.r_[j, i])), shape=graph.shape)
        joined = sp.csr_matrix(graph + bridges)
    joined = connect_components(joined, points)
    added = joined - graph
    added.eliminate_zeros()
    added.data[:] = weight
    out = sp.csr_matrix(graph + added)
    out.sort_indices()
    return out


def _chords(unit: _Floats, row: npt.NDArray[Any], col: npt.NDArray[Any]) -> _Floats:
    """Return sqrt(2 - 2 cos) of every edge, at least 1e-6."""
    out = np.empty(len(row))
    for start in range(0, len(row), _BLOCK):
        part = slice(start, start + _BLOCK)
        difference = unit[row[part]] - unit[col[part]]
        out[part] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    return np.maximum(out, _SMALLEST_DISTANCE)
