"""How a few rows relate to the cells they stand for: what they cover, what they keep, how near they come.

None of these numbers says whether a distilled set teaches well; :func:`cellsmith.benchmark.distillation` does. The last
two are about privacy, and passing them proves nothing: a metacell of one cell is that cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from cellsmith._errors import SetupError
from cellsmith.math.enrichment import rank_sum
from cellsmith.metrics import _attack
from cellsmith.metrics.privacy import membership_auc

__all__ = [
    "coverage",
    "diversity",
    "gene_moments",
    "hausdorff",
    "marker_overlap",
    "membership_auc",
    "neighbour_distance_ratio",
]


def coverage(real: np.ndarray, distilled: np.ndarray, *, n_neighbors: int = 5) -> float:
    """Return the share of real cells whose neighbourhood holds a distilled row (Naeem et al., 2020).

    Parameters
    ----------
    real, distilled
        Coordinates of shape (n, d) and (m, d), in the same space.
    n_neighbors
        Other real cells that a neighbourhood reaches to.

    Returns
    -------
    Share in [0, 1]. A set of m rows cannot cover much more than m neighbourhoods: compare sets of one size.

    Raises
    ------
    SetupError
        If there are no more than `n_neighbors` real cells, or the spaces differ.

    Examples
    --------
    >>> cellsmith.metrics.coverage(x, x_distilled)  # doctest: +SKIP
    """
    x, y = _same_space(real, distilled)
    if len(x) <= n_neighbors:
        raise SetupError(f"Found {len(x)} real cells; expected more than n_neighbors={n_neighbors}.")
    radius = _attack.nearest(x, x, n_neighbors + 1)[0][:, -1]
    return float((_attack.nearest(y, x)[0][:, 0] <= radius).mean())


def hausdorff(real: np.ndarray, distilled: np.ndarray, *, quantile: float = 1.0) -> float:
    """Return how far real cells lie from their nearest distilled row: the directed Hausdorff distance.

    Parameters
    ----------
    real, distilled
        Coordinates of shape (n, d) and (m, d).
    quantile
        1 takes the farthest cell; less leaves the farthest out, which are few and noisy.

    Returns
    -------
    Distance in the unit of the coordinates.

    Raises
    ------
    SetupError
        If the spaces differ or `quantile` is outside (0, 1].

    Examples
    --------
    >>> cellsmith.metrics.hausdorff(x, x_distilled, quantile=0.99)  # doctest: +SKIP
    """
    if not 0 < quantile <= 1:
        raise SetupError(f"Found quantile={quantile}, expected above 0 and at most 1. Type quantile=1.0.")
    x, y = _same_space(real, distilled)
    return float(np.quantile(_attack.nearest(y, x)[0][:, 0], quantile))


def diversity(
    real: np.ndarray, distilled: np.ndarray, *, labels: Sequence[Any], distilled_labels: Sequence[Any]
) -> float:
    """Return how far apart the rows of a class are, over how far apart its real cells are.

    Parameters
    ----------
    real, distilled
        Coordinates of shape (n, d) and (m, d).
    labels, distilled_labels
        Class of each row, (n,) and (m,).

    Returns
    -------
    Mean over classes of the ratio of mean squared distances between two rows; 1 = as spread as cells are, 0 = all rows
    of a class coincide. Metacells lie below 1, since a mean has less noise than a cell. NaN where no class has two
    distilled rows.

    Raises
    ------
    SetupError
        If the spaces differ or labels and rows differ in number.

    Examples
    --------
    >>> cellsmith.metrics.diversity(x, y, labels=types, distilled_labels=y_types)  # doctest: +SKIP
    """
    x, y = _same_space(real, distilled)
    own, theirs = _labels(labels, x), _labels(distilled_labels, y)
    ratios = []
    for name in sorted(set(theirs)):
        a, b = x[own == name], y[theirs == name]
        # The mean squared distance between two different rows is twice the unbiased variance.
        if len(b) > 1 and len(a) > 1 and (spread := a.var(axis=0, ddof=1).sum()) > 0:
            ratios.append(b.var(axis=0, ddof=1).sum() / spread)
    return float(np.mean(ratios)) if ratios else float("nan")


def gene_moments(real: Any, distilled: Any) -> dict[str, float]:
    """Return how well mean, variance and zeros of every gene are kept.

    Parameters
    ----------
    real, distilled
        Expression of the same genes, (n, G) and (m, G), dense or sparse; logarithmic, or means and variances are those
        of the strongest genes alone.

    Returns
    -------
    ``"mean"``, ``"variance"``, ``"zero_fraction"`` -> correlation over genes in [-1, 1]; NaN where a side is constant.

    Raises
    ------
    SetupError
        If the genes differ in number.

    Examples
    --------
    >>> cellsmith.metrics.gene_moments(adata.X, small.layers["sketch_log"])  # doctest: +SKIP
    """
    if real.shape[1] != distilled.shape[1]:
        raise SetupError(f"Found {real.shape[1]} and {distilled.shape[1]} genes; expected the same genes.")
    sides = [_moments(real), _moments(distilled)]
    return {name: _correlation(sides[0][name], sides[1][name]) for name in sides[0]}


def marker_overlap(
    real: Any, distilled: Any, *, labels: Sequence[Any], distilled_labels: Sequence[Any], n_top: int = 25
) -> float:
    """Return how many of the strongest marker genes of each class a distilled set finds again.

    Parameters
    ----------
    real, distilled
        Log expression of the same genes, (n, G) and (m, G), dense or sparse.
    labels, distilled_labels
        Class of each row, (n,) and (m,).
    n_top
        Genes a class: those with the smallest p of the rank-sum test among genes that are higher in the class; ties go
        to the larger difference of means. With one row a class all p are alike, and the difference decides.

    Returns
    -------
    Mean over the classes of both sides of the Jaccard index in [0, 1].

    Raises
    ------
    SetupError
        If genes, labels and rows do not fit, or there are not two classes.

    Examples
    --------
    >>> cellsmith.metrics.marker_overlap(x, y, labels=types, distilled_labels=y_types)  # doctest: +SKIP
    """
    x, y = _same_space(_dense(real), _dense(distilled))
    own, theirs = _labels(labels, x), _labels(distilled_labels, y)
    both = sorted(set(own) & set(theirs))
    if len(set(own)) < 2 or len(set(theirs)) < 2 or not both:
        raise SetupError(f"Found {len(set(own))} and {len(set(theirs))} classes; expected at least two on both sides.")
    overlaps = []
    for name in both:
        a, b = _markers(x, own == name, n_top), _markers(y, theirs == name, n_top)
        overlaps.append(len(a & b) / max(1, len(a | b)))
    return float(np.mean(overlaps))


def neighbour_distance_ratio(real: np.ndarray, distilled: np.ndarray) -> np.ndarray:
    """Return how much nearer a distilled row is to one real cell than to any other.

    Parameters
    ----------
    real, distilled
        Coordinates of shape (n, d) and (m, d); n is at least 2.

    Returns
    -------
    Distance to the nearest real cell over that to the second nearest, (m,), in [0, 1]: 0 = a copy of one cell. A high
    ratio is no proof of privacy.

    Raises
    ------
    SetupError
        If the spaces differ or there are fewer than two real cells.

    Examples
    --------
    >>> cellsmith.metrics.neighbour_distance_ratio(x, x_distilled).min()  # doctest: +SKIP
    """
    x, y = _same_space(real, distilled)
    if len(x) < 2:
        raise SetupError(f"Found {len(x)} real cells; expected at least two, a nearest and a second nearest.")
    return np.asarray(_attack.distance_ratio(x, y)[0])


def _same_space(real: Any, distilled: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(real, dtype=np.float64), np.asarray(distilled, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or 0 in (len(x), len(y)):
        raise SetupError(f"Found shapes {x.shape} and {y.shape}; expected rows on both sides, (n, d) and (m, d).")
    return x, y


def _labels(values: Sequence[Any], rows: np.ndarray) -> np.ndarray:
    labels = np.asarray(values, dtype=object).astype(str)
    if labels.shape != (len(rows),):
        raise SetupError(f"Found labels of shape {labels.shape} for {len(rows)} rows; expected one a row.")
    return labels


def _dense(x: Any) -> np.ndarray:
    return np.asarray(x.toarray() if sparse.issparse(x) else x)


def _moments(x: Any) -> dict[str, np.ndarray]:
    matrix = sparse.csr_matrix(x, dtype=np.float64)
    mean = np.asarray(matrix.mean(axis=0)).ravel()
    square = np.asarray(matrix.multiply(matrix).mean(axis=0)).ravel()
    zeros = 1.0 - np.asarray((matrix != 0).mean(axis=0)).ravel()
    return {"mean": mean, "variance": np.maximum(square - mean**2, 0.0), "zero_fraction": zeros}


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    flat = min(np.ptp(a), np.ptp(b)) <= 1e-12
    return float("nan") if flat else float(np.corrcoef(a, b)[0, 1])


def _markers(x: np.ndarray, mask: np.ndarray, n_top: int) -> set[int]:
    difference = x[mask].mean(axis=0) - x[~mask].mean(axis=0)
    found = pd.DataFrame({"p": rank_sum(x, mask).p, "gap": -difference}, index=range(x.shape[1]))
    higher = found[found["gap"] < 0]
    return set(higher.sort_values(["p", "gap"], kind="stable").index[:n_top])
