"""Cells that stand for all: greedy to the mean, greedy in a kernel's feature space, farthest first (SCDD, eq. 22)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError

__all__ = ["herding", "k_center", "kernel_herding"]

N_FOURIER = 2_000
# The median distance is an average over cells: more pairs than these change nothing that matters.
MAX_BANDWIDTH_CELLS = 1_000

Floats = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]


def herding(x: npt.ArrayLike, k: int) -> Indices:
    """Pick cells one by one so that their mean stays closest to the mean of all (Welling, 2009).

    Parameters
    ----------
    x
        ``(n, d)`` coordinates of the cells, any unit.
    k
        How many, 1 to n.

    Returns
    -------
    ``(k,)`` distinct indices in the order in which they were picked; ties go to the first cell.

    Raises
    ------
    SetupError
        If ``x`` is no finite table or ``k`` lies outside 1 to n.
    """
    points = _table(x, k)
    return _greedy_to(points, points.mean(axis=0), k)


def kernel_herding(x: npt.ArrayLike, k: int, *, generator: np.random.Generator) -> Indices:
    """Pick cells one by one so that they follow the distribution of all, not only its mean (Chen et al., 2010).

    Every step takes the cell with the largest <w, phi(x_i)> - sum over the chosen of k(x_i, x_j) / (m + 1), where phi
    are 2,000 random Fourier features of a Gaussian kernel, whose width is the median distance between cells.

    Parameters
    ----------
    x
        ``(n, d)`` coordinates of the cells, any unit.
    k
        How many, 1 to n.
    generator
        Source of the features.

    Returns
    -------
    ``(k,)`` distinct indices in the order in which they were picked; ties go to the first cell.

    Raises
    ------
    SetupError
        As :func:`herding`.
    """
    points = _table(x, k)
    width = _median_distance(points, generator)
    waves = generator.standard_normal((points.shape[1], N_FOURIER)) / width
    shift = generator.uniform(0.0, 2.0 * np.pi, N_FOURIER)
    # float32: the table of features is the one large array here
    features = np.cos(points @ waves + shift).astype(np.float32) * np.float32(np.sqrt(2.0 / N_FOURIER))
    target, chosen = features.mean(axis=0, dtype=np.float64), np.zeros(N_FOURIER)
    free, picked = np.ones(len(points), dtype=bool), np.empty(k, dtype=np.intp)
    for m in range(k):
        score = features @ (target - chosen / (m + 1)).astype(np.float32)
        picked[m] = best = int(np.argmax(np.where(free, score, -np.inf)))
        chosen += features[best]
        free[best] = False
    return picked


def k_center(x: npt.ArrayLike, k: int) -> Indices:
    """Pick the cell nearest to the mean, then always the cell farthest from all that were picked (Gonzalez, 1985).

    The largest distance from a cell to its nearest picked one is at most twice the best possible.

    Parameters
    ----------
    x
        ``(n, d)`` coordinates of the cells, any unit.
    k
        How many, 1 to n.

    Returns
    -------
    ``(k,)`` distinct indices in the order in which they were picked; ties go to the first cell.

    Raises
    ------
    SetupError
        As :func:`herding`.
    """
    points = _table(x, k)
    picked = np.empty(k, dtype=np.intp)
    picked[0] = int(np.argmin(_squared(points, points.mean(axis=0))))
    nearest = _squared(points, points[picked[0]])
    for m in range(1, k):
        # Where cells coincide all distances are 0: a picked cell must not be picked again.
        nearest[picked[:m]] = -1.0
        picked[m] = int(np.argmax(nearest))
        np.minimum(nearest, _squared(points, points[picked[m]]), out=nearest)
    return picked


def _greedy_to(points: Floats, mean: Floats, k: int) -> Indices:
    # ||mean - (sum + x)/(m + 1)||^2 up to a constant is ||x||^2/(m + 1) - 2 <x, (m + 1) mean - sum>, over (m + 1):
    # one product a step.
    centred = points - mean
    norms = np.einsum("ij,ij->i", centred, centred)
    total = np.zeros(points.shape[1])
    free, picked = np.ones(len(points), dtype=bool), np.empty(k, dtype=np.intp)
    for m in range(k):
        cost = norms + 2.0 * (centred @ total)
        picked[m] = best = int(np.argmin(np.where(free, cost, np.inf)))
        total += centred[best]
        free[best] = False
    return picked


def _squared(points: Floats, centre: Floats) -> Floats:
    gap = points - centre
    return np.asarray(np.einsum("ij,ij->i", gap, gap))


def _median_distance(points: Floats, generator: np.random.Generator) -> float:
    from scipy.spatial.distance import pdist

    n = min(len(points), MAX_BANDWIDTH_CELLS)
    rows = generator.choice(len(points), n, replace=False)
    distances = pdist(points[rows])
    positive = distances[distances > 0]
    return float(np.median(positive)) if positive.size else 1.0


def _table(x: npt.ArrayLike, k: int) -> Floats:
    points = np.asarray(x, dtype=np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise SetupError(f"Found coordinates of shape {points.shape}, expected finite numbers of shape (n, d).")
    if not 1 <= k <= len(points):
        raise SetupError(f"Found k={k}, expected 1 to {len(points)}, the number of cells. Pick at most all of them.")
    return points
