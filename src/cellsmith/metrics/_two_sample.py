"""Whether two clouds of cells are the same. Each function answers for arrays x (n, d) and y (m, d).

Neighbours are exact (scikit-learn), transport is exact (POT), classifiers are
scored on cells they have not seen.
"""

from __future__ import annotations

import numpy as np

__all__ = ["forest_auc", "ilisi", "mmd", "one_nn", "precision_recall_coverage", "wasserstein"]

KERNEL_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Kernel widths of :func:`mmd`, in units of the median squared distance."""


def _pooled(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.vstack([x, y]), np.r_[np.zeros(len(x), dtype=int), np.ones(len(y), dtype=int)]


def _others(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and indices, (n, k), of the k nearest OTHER rows."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k).fit(x).kneighbors()


def mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy, unbiased; mean of 5 RBF kernels, 0 = same (may be slightly negative).

    Parameters
    ----------
    x, y
        Coordinates of shape (n, d) and (m, d).

    Returns
    -------
    Mean over exp(-distance^2 / (scale * median squared distance)).
    """
    from sklearn.metrics.pairwise import euclidean_distances

    n, m = len(x), len(y)
    square = euclidean_distances(np.vstack([x, y]), squared=True)
    median = float(np.median(square[np.triu_indices(n + m, 1)]))
    if median <= 0:
        return 0.0
    total = 0.0
    for scale in KERNEL_SCALES:
        kernel = np.exp(-square / (scale * median))
        within_x = (kernel[:n, :n].sum() - n) / (n * (n - 1))
        within_y = (kernel[n:, n:].sum() - m) / (m * (m - 1))
        total += within_x + within_y - 2 * kernel[:n, n:].mean()
    return float(total / len(KERNEL_SCALES))


def wasserstein(x: np.ndarray, y: np.ndarray) -> float:
    """2-Wasserstein distance under the Euclidean metric, exact.

    Parameters
    ----------
    x, y
        Coordinates of shape (n, d) and (m, d); every row weighs the same.

    Returns
    -------
    Distance in the units of the coordinates.
    """
    import ot

    cost = ot.dist(np.ascontiguousarray(x), np.ascontiguousarray(y))
    return float(np.sqrt(max(float(ot.emd2([], [], cost, numItermax=10_000_000)), 0.0)))


def ilisi(x: np.ndarray, y: np.ndarray, *, n_neighbors: int = 90) -> float:
    """Mixing of two samples: median inverse Simpson index of the neighbourhoods, scaled to [0, 1], 1 = mixed.

    Parameters
    ----------
    x, y
        Coordinates of shape (n, d) and (m, d).
    n_neighbors
        Other cells in a neighbourhood, uniform weights; at most a quarter of all cells are used.

    Returns
    -------
    (median of 1 / sum p^2) - 1, for the two shares p of each neighbourhood.
    """
    points, side = _pooled(x, y)
    index = _others(points, min(n_neighbors, max(2, len(points) // 4)))[1]
    share = side[index].mean(axis=1)
    return float(np.median(1.0 / (share**2 + (1 - share) ** 2)) - 1.0)


def one_nn(x: np.ndarray, y: np.ndarray) -> float:
    """Leave-one-out accuracy of the nearest-neighbour two-sample classifier; 0.5 = cannot tell.

    Parameters
    ----------
    x, y
        Coordinates of shape (n, d) and (m, d).
    """
    points, side = _pooled(x, y)
    return float((side[_others(points, 1)[1][:, 0]] == side).mean())


def forest_auc(x: np.ndarray, y: np.ndarray, *, seed: int, n_trees: int = 60, n_folds: int = 3) -> float:
    """Out-of-fold AUC of a random forest that tells x from y; 0.5 = cannot tell.

    Parameters
    ----------
    x, y
        Features of shape (n, d) and (m, d).
    seed
        Seed of the folds and of the forests.
    n_trees, n_folds
        Trees a forest (at least 3 cells a leaf) and folds; the mean over folds is returned.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    points, side = _pooled(x.astype(np.float32), y.astype(np.float32))
    scores = []
    for fit, test in StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(points, side):
        forest = RandomForestClassifier(n_trees, min_samples_leaf=3, random_state=seed, n_jobs=None)
        probability = forest.fit(points[fit], side[fit]).predict_proba(points[test])[:, 1]
        scores.append(roc_auc_score(side[test], probability))
    return float(np.mean(scores))


def precision_recall_coverage(real: np.ndarray, synthetic: np.ndarray, *, k: int = 5) -> tuple[float, float, float]:
    """Precision, recall and coverage of `synthetic` by balls of the k-th neighbour.

    Parameters
    ----------
    real, synthetic
        Coordinates of shape (n, d) and (m, d).
    k
        Neighbour (other than itself) that sets a ball's radius.

    Returns
    -------
    Share of synthetic cells in a real ball, share of real cells in a synthetic
    ball, share of real balls that hold a synthetic cell.
    """
    from sklearn.metrics import pairwise_distances

    radius_real = _others(real, k)[0][:, -1]
    radius_synthetic = _others(synthetic, k)[0][:, -1]
    between = pairwise_distances(real, synthetic)
    in_real = between <= radius_real[:, None]
    in_synthetic = between <= radius_synthetic[None, :]
    return float(in_real.any(axis=0).mean()), float(in_synthetic.any(axis=1).mean()), float(in_real.any(axis=1).mean())
