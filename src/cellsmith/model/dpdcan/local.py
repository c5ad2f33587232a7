"""The local head: clusters of the owner's own cells. Nothing of it is private, and nothing of it is released."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cellsmith.math import graph
from cellsmith.math.assign import ordered_clusters, student_t

__all__ = ["LocalHead", "assign", "fit_local_head"]

N_NEIGHBORS, N_STARTS = 15, 20


@dataclass(frozen=True)
class LocalHead:
    """Clusters of the training cells.

    Parameters
    ----------
    centers
        (K, d).
    labels
        (n,) clusters of the training cells.
    spread
        Root mean squared distance of a cell from its centre: the unit of the soft assignment.
    """

    centers: np.ndarray
    labels: np.ndarray
    spread: float


def fit_local_head(z: np.ndarray, n_clusters: int | None, *, seed: int) -> LocalHead:
    """Cluster latents by k-means, or by Leiden where no number of clusters is given.

    Parameters
    ----------
    z
        (n, d).
    n_clusters
        K, or None.
    seed
        Of the starts.
    """
    if n_clusters is None:
        indices, distances = graph.knn_table(z, min(N_NEIGHBORS, len(z) - 1), seed=seed)
        labels = graph.leiden(graph.fuzzy_union(indices, distances), resolution=1.0, seed=seed)
    else:
        from sklearn.cluster import KMeans

        labels = KMeans(n_clusters, n_init=N_STARTS, random_state=seed).fit_predict(z)
    labels = ordered_clusters(np.asarray(labels))
    centers = np.stack([z[labels == k].mean(axis=0) for k in range(labels.max() + 1)])
    spread = float(np.sqrt(((z - centers[labels]) ** 2).sum(axis=1).mean()))
    return LocalHead(centers, labels, max(spread, 1e-12))


def assign(z: np.ndarray, centers: np.ndarray, spread: float) -> np.ndarray:
    """Soft clusters (n, K) of latents (n, d) by the Student t kernel, distances in units of the spread."""
    unit = [torch.as_tensor(v / spread, dtype=torch.float64) for v in (z, centers)]
    return student_t(unit[0], unit[1]).numpy()
