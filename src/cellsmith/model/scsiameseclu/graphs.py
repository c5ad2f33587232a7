"""The cell graph and its two operators; where new cells lie beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp

from cellsmith.math import graph

__all__ = ["CellGraph", "build_graph", "neighbor_weights", "operators"]

# Exact neighbours up to here, as in math/graph.
EXACT_BELOW = 5_000
# Neighbours from each batch at least, with batch_balanced.
MIN_A_BATCH = 3


@dataclass(frozen=True)
class CellGraph:
    """A cell graph and what walks over it.

    Parameters
    ----------
    connectivities
        (n, n) A, symmetric, zero diagonal.
    distances
        (n, n) distances of the neighbours; None for a graph of the user's.
    lazy
        (n, n) L of S7, rows sum to 1.
    pagerank
        (n, n) Pi of S6, rows sum to 1.
    truncated
        Mean mass of a row of Pi that was cut off.
    n_isolated, n_components
        Cells without a neighbour; connected components.
    notes
        Warnings.
    """

    connectivities: sp.csr_matrix
    distances: sp.csr_matrix | None
    lazy: sp.csr_matrix
    pagerank: sp.csr_matrix
    truncated: float
    n_isolated: int
    n_components: int
    notes: list[str] = field(default_factory=list)


def build_graph(
    points: np.ndarray, k: int, *, batches: np.ndarray | None, seed: int
) -> tuple[sp.csr_matrix, sp.csr_matrix, list[str]]:
    """S1, S2: the fuzzy union of nearest neighbours, their distances, and notes.

    Parameters
    ----------
    points
        (n, d) coordinates.
    k
        Other cells a cell.
    batches
        (n,) codes: neighbours come from every batch alike, and edges across batches are kept where mutual. Or None.
    seed
        Of the approximate search.
    """
    n, notes = len(points), []
    if batches is None:
        index, distance = graph.knn_table(points, min(k, n - 1), seed=seed)
    else:
        sizes = np.bincount(batches)
        quota = max(MIN_A_BATCH, -(-k // len(sizes)))
        small = np.flatnonzero(sizes <= quota)
        if small.size:
            notes.append(
                f"{small.size} batches have at most {quota} cells; fewer than {quota} neighbours come from them."
            )
        wanted = int(np.minimum(quota, np.maximum(sizes - 1, 0)).sum())
        index, distance = graph.knn_table(points, max(1, min(wanted, n - 1)), groups=batches, seed=seed)
        index = np.where(_one_sided(index, batches), -1, index)
    connectivities = graph.fuzzy_union(index, distance)
    rows = np.repeat(np.arange(n), index.shape[1])
    there = index.ravel() >= 0
    # A duplicate is at distance 0, which a sparse matrix would drop.
    values = np.maximum(distance.ravel()[there], 1e-12).astype(np.float32)
    return connectivities, sp.csr_matrix((values, (rows[there], index.ravel()[there])), shape=(n, n)), notes


def _one_sided(index: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """Return which entries of a table (n, k) point into another batch without being answered."""
    n, k = index.shape
    rows = np.repeat(np.arange(n), k)
    pointed = sp.csr_matrix((np.ones(n * k, dtype=np.int8), (rows, index.ravel())), shape=(n, n))
    answered = np.asarray(pointed.T.tocsr()[rows, index.ravel()]).reshape(n, k) > 0
    return (batches[index] != batches[:, None]) & ~answered


def operators(
    connectivities: sp.csr_matrix, *, distances: Any, teleport: float, k: int, tol: float, notes: list[str]
) -> CellGraph:
    """S3 to S7: both operators of a graph, with what was cut off.

    Parameters
    ----------
    connectivities
        (n, n) A.
    distances
        Of the neighbours, or None.
    teleport
        a.
    k, tol
        Entries kept in a row of Pi, and the tolerance of its pushes.
    notes
        Notes so far.
    """
    # The tolerance of a push is in units of the weights; those of a user's graph may be large, ours are at most 1.
    scale = max(1.0, float(connectivities.data.max(initial=0.0)))
    connectivities = connectivities if scale == 1.0 else sp.csr_matrix(connectivities / scale)
    looped = graph.self_loops(connectivities)
    found = graph.ppr_rows(looped, teleport=teleport, k=k, tol=tol)
    lazy = graph.lazy_walk(graph.random_walk(connectivities), teleport=teleport)
    return CellGraph(
        connectivities,
        distances,
        lazy.astype(np.float32),
        found.operator.astype(np.float32),
        truncated=float(1 - found.kept.mean()),
        n_isolated=int((np.diff(connectivities.indptr) == 0).sum()),
        n_components=graph.n_components(connectivities),
        notes=notes,
    )


def neighbor_weights(points: np.ndarray, reference: np.ndarray, k: int, *, seed: int) -> sp.csr_matrix:
    """S9: w (m, n), the normalised fuzzy weights of the k reference cells nearest to each new one.

    Parameters
    ----------
    points, reference
        (m, d) and (n, d) coordinates.
    k
        Neighbours.
    seed
        Of the approximate search.
    """
    index, distance = graph.cross_knn(points, reference, min(k, len(reference)), seed=seed)
    weights = graph.cross_weights(distance).astype(np.float64)
    weights /= weights.sum(axis=1, keepdims=True)
    return graph.table_matrix(index, weights, len(reference))
