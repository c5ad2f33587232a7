"""Scores of an embedding against the complete data and the types."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellsmith.benchmark._missingness.cases import Complete
from cellsmith.metrics import ari, macro_f1, nmi, rare_f1

__all__ = ["nearest_cells", "recall", "score", "subspace_gap"]

EXACT_BELOW = 50_000


def nearest_cells(x: npt.NDArray[Any], n_neighbors: int) -> npt.NDArray[np.int32]:
    """Return the nearest other cells of each cell, exactly, (n, n_neighbors)."""
    from cellsmith.math.graph import knn_table

    return np.asarray(knn_table(np.ascontiguousarray(x), n_neighbors, exact_below=EXACT_BELOW, seed=0)[0])


def recall(found: npt.NDArray[np.int32], wanted: npt.NDArray[np.int32]) -> float:
    """Return the mean share of the wanted neighbours that were found; both (n, k)."""
    return float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, wanted, strict=True)]) / wanted.shape[1])


def subspace_gap(x: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    """Return sqrt((k - |Q^T V|^2) / k); an axis that x lacks counts as orthogonal to the truth.

    Parameters
    ----------
    x
        Embedding (n, k); columns may be zero or dependent.
    truth
        Columns that span the true space, (n, k).
    """
    q = np.linalg.qr(np.asarray(truth, dtype=np.float64))[0]
    u, s, _ = np.linalg.svd(np.asarray(x, dtype=np.float64), full_matrices=False)
    v = u[:, s > 1e-10 * max(s[0], np.finfo(float).tiny)]
    k = q.shape[1]
    return float(np.sqrt(max(0.0, k - np.linalg.norm(q.T @ v) ** 2) / k))


def score(
    x: npt.NDArray[Any], complete: Complete, *, seed: int, n_neighbors: int = 15, n_clusters: int | None = None
) -> dict[str, float]:
    """Score an embedding.

    Parameters
    ----------
    x
        Embedding (n, k); a cell without one (NaN) stands at the mean.
    complete
        The data and the types.
    seed
        Seed of k-means.
    n_neighbors
        Neighbours whose recall is taken; 0 leaves it out.
    n_clusters
        Clusters of k-means; None is the number of types.

    Returns
    -------
    ``sin_theta``, ``recall``, ``left_out`` (cells without coordinates); where there are types ``ari``, ``nmi``,
    ``macro_f1``, and ``rare_f1`` where some have a share below 3 % and at least 10 cells.
    """
    k = x.shape[1]
    lost = ~np.isfinite(x).all(axis=1)
    x = np.where(lost[:, None], 0.0, x)
    out = {"sin_theta": subspace_gap(x, complete.truth(k)), "left_out": float(lost.sum())}
    if n_neighbors:
        out["recall"] = recall(nearest_cells(x, n_neighbors), complete.neighbors(k, n_neighbors))
    if complete.labels is not None:
        out |= label_scores(x, complete.labels, seed=seed, n_clusters=n_clusters)
    return out


def label_scores(
    x: npt.NDArray[Any], labels: npt.NDArray[Any], *, seed: int, n_clusters: int | None = None
) -> dict[str, float]:
    """Return ``ari``, ``nmi``, ``macro_f1`` and, where there are rare types, ``rare_f1`` of k-means (10 starts)."""
    import pandas as pd
    from sklearn.cluster import KMeans

    types = n_clusters or len(pd.unique(pd.Series(labels).dropna()))
    found = KMeans(types, n_init=10, random_state=seed).fit_predict(np.ascontiguousarray(x, dtype=np.float32))
    out = {"ari": ari(labels, found), "nmi": nmi(labels, found), "macro_f1": macro_f1(labels, found)}
    rare = rare_f1(labels, found)
    return out if np.isnan(rare) else {**out, "rare_f1": rare}
