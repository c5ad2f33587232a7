"""Scores of topics, which need no label, and of cells, which do; one fixed rule for every method."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellsmith.benchmark._topics.cases import Case
from cellsmith.benchmark._topics.peers import Fit
from cellsmith.math.graph import fuzzy_union, knn_table, leiden
from cellsmith.math.topics import data_npmi, diversity, top_genes, topic_quality
from cellsmith.metrics import ari, macro_f1, nmi, rare_f1

__all__ = ["RESOLUTIONS", "capture", "cell_scores", "clusters", "purity", "topic_scores"]

N_GENES, N_NEIGHBORS = 10, 15
RESOLUTIONS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.5)
"""Beside 1.0, where the best is picked with the labels: a ceiling that nobody can reach without them."""
MIN_SHARE, MIN_CELLS = 0.03, 10


def topic_scores(case: Case, loadings: npt.NDArray[Any]) -> dict[str, float]:
    """Return diversity (T29), coherence over cells (T30) and their product (T32) of the ten strongest genes.

    Parameters
    ----------
    case
        The cells.
    loadings
        Genes by topics (V, K).
    """
    lists = top_genes(loadings.T, N_GENES)
    spread, npmi = diversity(lists, case.cells.n_vars), float(np.mean(data_npmi(case.cells.X, lists)))
    values = {"td_unique": spread.unique, "td_once": spread.once, "td_bound": spread.bound}
    return values | {"redundancy": spread.redundancy, "npmi": npmi, "tq": topic_quality(spread.unique, npmi)}


def neighbor_graph(x: npt.NDArray[Any], seed: int) -> Any:
    """Return the weights of scanpy's 15 neighbours (the cell itself counted)."""
    return fuzzy_union(*knn_table(x, N_NEIGHBORS - 1, exact_below=20_000, seed=seed))


def clusters(x: npt.NDArray[Any], seed: int, *, resolution: float = 1.0) -> npt.NDArray[np.int64]:
    """Return Leiden communities of cells (n, d)."""
    return leiden(neighbor_graph(x, seed), resolution=resolution, seed=seed)


def purity(theta: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    """Return the share of cells whose largest topic is mostly of their type."""
    _, types = np.unique(labels, return_inverse=True)
    table = np.zeros((theta.shape[1], types.max() + 1), dtype=np.int64)
    np.add.at(table, (theta.argmax(axis=1), types), 1)
    return float(table.max(axis=1).sum() / table.sum())


def capture(theta: npt.NDArray[Any], labels: npt.NDArray[Any]) -> dict[str, float]:
    """Return the F1 score of each type with the topic that captures it best: cells whose largest topic it is."""
    names, types = np.unique(labels.astype(str), return_inverse=True)
    table = np.zeros((len(names), theta.shape[1]), dtype=np.int64)
    np.add.at(table, (types, theta.argmax(axis=1)), 1)
    f1 = 2.0 * table / (table.sum(axis=1, keepdims=True) + table.sum(axis=0, keepdims=True))
    return dict(zip(names.tolist(), f1.max(axis=1).tolist(), strict=True))


def cell_scores(case: Case, fit: Fit, seed: int) -> dict[str, float]:
    """Return agreement with the types of k-means (true number) and Leiden (1.0), on both spaces; purity and rare types.

    Parameters
    ----------
    case
        The cells; empty without labels.
    fit
        What a method found.
    seed
        Seed of the clusterings.
    """
    from sklearn.cluster import KMeans

    if case.labels is None:
        return {}
    known = np.array([v is not None and v == v for v in case.labels])
    labels, out = case.labels[known].astype(str), {}
    for space, x in fit.spaces.items():
        if space == "mu" and np.array_equal(x, fit.spaces["theta"]):
            out |= {k.replace("theta", "mu"): v for k, v in out.items()}
            continue
        means = KMeans(case.n_types, n_init=10, random_state=seed).fit_predict(x)[known]
        graph = neighbor_graph(x, seed)
        found = leiden(graph, resolution=1.0, seed=seed)[known]
        out |= {f"kmeans_ari_{space}": ari(labels, means), f"kmeans_nmi_{space}": nmi(labels, means)}
        out |= {f"macro_f1_{space}": macro_f1(labels, means), f"rare_f1_{space}": rare_f1(labels, means)}
        out |= {f"leiden_ari_{space}": ari(labels, found), f"leiden_nmi_{space}": nmi(labels, found)}
        out[f"leiden_clusters_{space}"] = float(len(np.unique(found)))
        every = [ari(labels, leiden(graph, resolution=r, seed=seed)[known]) for r in RESOLUTIONS]
        out[f"ceiling_ari_{space}"] = max([out[f"leiden_ari_{space}"], *every])
    if fit.loadings:
        out["purity"] = purity(fit.spaces["theta"][known], labels)
        caught = capture(fit.spaces["theta"][known], labels)
        sizes = {name: int((labels == name).sum()) for name in caught}
        rare = [v for name, v in caught.items() if MIN_CELLS <= sizes[name] < MIN_SHARE * len(labels)]
        out["rare_capture"] = float(np.mean(rare)) if rare else float("nan")
    return {k: v for k, v in out.items() if np.isfinite(v)}
