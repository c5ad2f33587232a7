"""Readings of what a method found, the same for all, and their scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cellsmith._rng import Streams
from cellsmith.benchmark._clustering.cases import Case
from cellsmith.benchmark._clustering.methods import N_NEIGHBORS, Found
from cellsmith.math import graph
from cellsmith.math.counts import binomial_thin
from cellsmith.math.enrichment import merge_by_markers
from cellsmith.metrics import ari, homophily, hubness, macro_f1, nmi, rare_f1

__all__ = [
    "GIVEN",
    "GRID",
    "KMEANS",
    "KNN",
    "MATCHED",
    "MERGED",
    "MERGED_TO",
    "OWN",
    "facts",
    "neighbor_graph",
    "readings",
    "scores",
]

GRID = (0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5)
MATCHED, KMEANS, OWN, GIVEN = "Leiden, K", "k-means, K", "auto", "given"
MERGED, MERGED_TO = "Leiden 0.5, merged", "Leiden 0.5, merged to K"
START = 0.5
KNN = "kNN, "
"""Before the name of a reading: on the 15 nearest neighbours of the latent, in place of the graph of the method."""


def neighbor_graph(latent: Any, seed: int) -> Any:
    """Return scanpy's connectivities of a latent space (n, d), with 15 other cells."""
    return graph.fuzzy_union(*graph.knn_table(latent, N_NEIGHBORS, exact_below=50_000, seed=seed))


def readings(case: Case, found: Found, seed: int) -> dict[str, Any]:
    """Cluster what a method found by every rule.

    Parameters
    ----------
    case
        The cells: their counts for merging, their number of types for the readings that are told it.
    found
        Space, graph, clusters.
    seed
        Of Leiden, k-means and the halving of counts before merging.

    Returns
    -------
    Reading -> clusters (n,): ``"Leiden 0.5"`` and its like and ``"Leiden, K"`` on the graph (where it has one of its
    own, again on the neighbours of the latent, with ``"kNN, "`` before), Leiden at 0.5 merged by markers, freely and
    until K clusters are left, ``"k-means, K"`` on the latent, and the method's own.
    """
    from sklearn.cluster import KMeans

    n_types = case.n_types
    out: dict[str, Any] = {name: np.asarray(labels) for name, labels in found.labels.items()}
    near = None if found.latent is None else neighbor_graph(found.latent, seed)
    for prefix, each in (("", near if found.graph is None else found.graph), (KNN, near)):
        if each is None or (prefix and found.graph is None):
            continue
        for resolution in GRID:
            out[f"{prefix}Leiden {resolution}"] = graph.leiden(each, resolution=resolution, seed=seed)
        out[prefix + MATCHED] = graph.leiden_exact(each, n_types, seed=seed)[0]
        out[prefix + MERGED], out[prefix + MERGED_TO] = _merged(case, each, seed)
    if found.latent is not None:
        out[KMEANS] = KMeans(n_types, n_init=10, random_state=seed).fit_predict(found.latent)
    return out


def _merged(case: Case, each: Any, seed: int) -> tuple[Any, Any]:
    """Return communities merged by their markers: until all pairs have enough, and until K are left."""
    halved = binomial_thin(case.counts.X, 0.5, generator=Streams(seed).numpy("augment"))
    start, resolution = graph.leiden(each, resolution=START, seed=seed), START
    free = merge_by_markers(halved, start, batches=case.batches)[0]
    while start.max() + 1 < case.n_types:
        resolution *= 1.5
        start = graph.leiden(each, resolution=resolution, seed=seed)
    return free, merge_by_markers(halved, start, n_clusters=case.n_types, batches=case.batches)[0]


def scores(case: Case, labels: Any) -> dict[str, float]:
    """Return ARI, NMI, macro-F1, F1 of rare types, the number of clusters, and NMI with the batch, if there is one."""
    out = {
        "ari": ari(case.labels, labels),
        "nmi": nmi(case.labels, labels),
        "macro_f1": macro_f1(case.labels, labels),
        "rare_f1": rare_f1(case.labels, labels),
        "n_clusters": float(len(np.unique(labels))),
        "nmi_batch": float("nan") if case.batches is None else nmi(case.batches, labels),
    }
    return out


def facts(case: Case, found: Found, seed: int) -> Mapping[str, float]:
    """Return homophily and hubs of a method's graph and of the 15 nearest neighbours of its latent."""
    out: dict[str, float] = {}
    graphs = {"graph": found.graph, "knn": None if found.latent is None else neighbor_graph(found.latent, seed)}
    for name, each in graphs.items():
        if each is not None:
            degree = hubness(each)
            out |= {f"{name}_homophily": homophily(each, case.labels), f"{name}_degree_cv": degree.cv}
            out[f"{name}_degree_max"] = float(degree.largest)
    return out
