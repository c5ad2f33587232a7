"""What a method gets: cells with their graphs, and scores of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cellsmith.math.graph import fuzzy_union, knn_table, leiden, symmetrize

__all__ = ["CHUNKS", "Case", "Cells", "resolution"]

EXACT_BELOW = 50_000
VOTE_NEIGHBORS = 10  # CellTypist's, the cell itself included
CHUNKS = ((5_000, 5), (20_000, 10), (40_000, 15), (100_000, 20), (200_000, 25))
"""CellTypist's resolution of over-clustering: below so many cells; 30 above."""


def resolution(n: int) -> int:
    """Return CellTypist's resolution of over-clustering for n cells."""
    return next((value for most, value in CHUNKS if n < most), 30)


def neighbor_graph(rep: np.ndarray, n_neighbors: int) -> Any:
    """Return UMAP weights of exact neighbours, CSR float64 (n, n); `n_neighbors` counts the cell itself, as scanpy."""
    k = min(n_neighbors, len(rep)) - 1
    table = knn_table(rep, k, exact_below=EXACT_BELOW, seed=0)
    return fuzzy_union(*table).astype(np.float64)


@dataclass(eq=False)
class Cells:
    """Cells of a run with the graphs that all methods share.

    Parameters
    ----------
    rep
        Embedding of shape (n, d), or None where only a graph is known.
    graph
        Weights, sparse (n, n); None builds those of 15 neighbours in `rep`.
    vote_rep
        Embedding of the over-clustering; None takes `rep`.
    n_neighbors
        Neighbours of the graph that is built, the cell itself included.
    """

    rep: np.ndarray | None
    graph: Any = None
    vote_rep: np.ndarray | None = None
    n_neighbors: int = 15
    _clusters: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    _coarse: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.graph is None:
            self.graph = neighbor_graph(self.rep, self.n_neighbors)
        self.graph = symmetrize(sparse.csr_matrix(self.graph, dtype=np.float64))

    def clusters(self, seed: int) -> np.ndarray:
        """Return the over-clustering of CellTypist's vote, codes of shape (n,): Leiden on 10 neighbours."""
        if seed not in self._clusters:
            if self._coarse is None:
                rep = self.rep if self.vote_rep is None else self.vote_rep
                self._coarse = self.graph if rep is None else neighbor_graph(rep, VOTE_NEIGHBORS)
            self._clusters[seed] = leiden(self._coarse, resolution=resolution(self.graph.shape[0]), seed=seed)
        return self._clusters[seed]


@dataclass(frozen=True, eq=False)
class Case:
    """One run: cells, their scores, and the truth that only the scoring may read.

    Parameters
    ----------
    task, file, seed
        Names in the tables.
    cells
        Cells and graphs.
    scores
        Class probabilities of shape (n, C), float64.
    classes
        C names.
    truth
        Column of each cell's class, shape (n,); -1 for a label outside the classes.
    scored
        Which cells count, shape (n,).
    space
        Space of the scores as GRIT calls it.
    """

    task: str
    file: str
    seed: int
    cells: Cells
    scores: np.ndarray
    classes: tuple[str, ...]
    truth: np.ndarray
    scored: np.ndarray
    space: str = "prob"

    def skeleton(self) -> ad.AnnData:
        """Return the cells as an AnnData with graph and embedding, without expression."""
        n = len(self.scores)
        out = ad.AnnData(obs=pd.DataFrame(index=pd.RangeIndex(n).astype(str)))
        out.obsp["connectivities"] = self.cells.graph
        params = {"n_neighbors": self.cells.n_neighbors, "method": "umap"}
        out.uns["neighbors"] = {
            "connectivities_key": "connectivities",
            "distances_key": "connectivities",
            "params": params,
        }
        if self.cells.rep is not None:
            out.obsm["X_pca"] = self.cells.rep
        return out


def codes_of(labels: Sequence[Any] | np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return the column of each label among the classes, shape (n,); -1 where it is none of them."""
    return pd.Index(classes).get_indexer(np.asarray(labels, dtype=object).astype(str))
