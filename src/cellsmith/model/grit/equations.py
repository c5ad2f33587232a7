"""GRIT: graph-regularised refinement of class scores (arXiv 2508.04747).

The published text fixes Eq. 1 with W = I and its closed form P = (I + lambda L)^-1 P0. The rest is this package's own
design; ``DEVIATIONS`` says so first.

Symbols: n cells; C classes; P0 (n, C) scores as given, unitless; P (n, C) refined scores; A (n, n) symmetric weights
>= 0 with a zero diagonal; d (n,) their row sums, D = diag(d); W = diag(w), w >= 0 the fidelity of a cell to its own
scores; L (n, n) a Laplacian of A; lambda >= 0 the weight of smoothness; M = W + lambda L.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellsmith.math import assign, conformal, graph, ontology, solve
from cellsmith.model.grit.deviations import DEVIATIONS

__all__ = [
    "DEVIATIONS",
    "EQUATIONS",
    "SPACES",
    "class_factors",
    "confidence_fidelity",
    "effective_classes",
    "factor_range",
    "infer_space",
    "modularity",
    "normalise_rows",
    "objective",
    "oversmoothed",
    "residual_bound",
    "to_scores",
]

Floats = npt.NDArray[np.floating[Any]]

SPACES = ("prob", "ovr", "similarity", "logit", "raw")
ROW_SUM_SLACK = 1e-3  # how far from one a row of probabilities may sum
LEAST_FIDELITY = 0.01
# Of the raw effective number of classes. Where refinement helped it was 0.62 to 0.95 (noise that is removed evens
# labels out); where macro-F1 fell below raw it was 0.56 and less (pbmc68k_reduced, both tasks of the tests).
EFFECTIVE_SHARE = 0.6


def objective(p: Floats, p0: Floats, *, fidelity: Floats, laplacian: Any, smoothness_weight: float) -> float:
    """Eq. 1: tr[(P - P0)^T W (P - P0)] + lambda tr(P^T L P), which the refined scores minimise.

    Parameters
    ----------
    p, p0
        Refined and given scores, (n, C).
    fidelity
        w, (n,).
    laplacian
        L, sparse (n, n).
    smoothness_weight
        lambda.

    Returns
    -------
    The value, in squared units of the scores.
    """
    stay = float((fidelity[:, None] * (p - p0) ** 2).sum())
    return stay + smoothness_weight * float((p * (laplacian @ p)).sum())


def infer_space(values: Floats) -> str:
    """Eq. 3: say what scores look like.

    Non-negative with rows within 1e-3 of one: "prob"; all in [0, 1]: "ovr", independent probabilities of each class;
    max |x| <= 1 with negatives: "similarity"; otherwise "logit".

    Parameters
    ----------
    values
        Scores (n, C); rows with NaN play no role.

    Returns
    -------
    One of ``SPACES``.
    """
    known = values[~np.isnan(values).any(axis=1)]
    if not known.size:
        return "prob"
    low, high = float(known.min()), float(known.max())
    if low >= 0 and np.abs(known.sum(axis=1, dtype=np.float64) - 1.0).max() <= ROW_SUM_SLACK:
        return "prob"
    if low >= 0 and high <= 1:
        return "ovr"
    return "similarity" if max(-low, high) <= 1 else "logit"


def to_scores(values: Floats, space: str, *, temperature: float = 1.0) -> Floats:
    """Eq. 3: bring scores of a space to where they are smoothed.

    Parameters
    ----------
    values
        (n, C); a row may be all NaN.
    space
        One of ``SPACES``: "similarity" and "logit" go through softmax(x / temperature), the others stay.
    temperature
        Unit of similarities and logits.

    Returns
    -------
    P0, (n, C), of the dtype of ``values``.
    """
    if space not in ("similarity", "logit"):
        return values
    z = values / values.dtype.type(temperature)
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(z / z.sum(axis=1, keepdims=True))


def normalise_rows(p: Floats) -> Floats:
    """Divide rows by their sums.

    Parameters
    ----------
    p
        (n, C); entries below zero (rounding) count as zero.

    Returns
    -------
    (n, C), rows sum to one; a row of zeros becomes uniform, one with NaN stays NaN.
    """
    positive = np.maximum(p, 0)
    total = positive.sum(axis=1, keepdims=True)
    uniform = positive.dtype.type(1.0 / p.shape[1])
    return np.asarray(np.where(total == 0, uniform, positive / np.where(total == 0, 1, total)))


def confidence_fidelity(p0: Floats, *, mean: float | None = None) -> tuple[Floats, float]:
    """Eq. 5: w = max(0.01, 1 - H(P0) / ln C), divided by its mean.

    Parameters
    ----------
    p0
        Scores (n, C), rows normalised here; a row with NaN gets 0 and does not enter the mean.
    mean
        Mean of an earlier call, for cells that come later.

    Returns
    -------
    w (n,) and the mean that divided it.
    """
    sure = np.maximum(LEAST_FIDELITY, 1.0 - assign.entropy(normalise_rows(p0)))
    known = np.isfinite(sure)
    scale = mean if mean is not None else float(sure[known].mean()) if known.any() else 1.0
    return np.where(known, sure / scale, 0.0), scale


def residual_bound(residual: Floats, right: Floats) -> Floats:
    """Eq. 10: for W = I, |e_c|_2 <= |r_c|_2, because the smallest eigenvalue of M is at least one.

    Parameters
    ----------
    residual
        |B_c - M P_c| / |B_c| of every class, (C,), recomputed in float64.
    right
        B, (n, C).

    Returns
    -------
    Bounds of |e_c|_2, (C,), in units of the scores.
    """
    return np.asarray(residual * np.sqrt((right.astype(np.float64) ** 2).sum(axis=0)))


def class_factors(p: Floats, *, power: float = 0.5) -> Floats:
    """Eq. 13: factors g_c = mean_i(P_ic)^-power of class-mass normalisation; 1 for a class without mass.

    Parameters
    ----------
    p
        Refined scores (n, C), >= 0; rows with NaN play no role.
    power
        0.5 is the half correction; 1 would force equal class masses.

    Returns
    -------
    g, (C,).
    """
    mass = np.nanmean(np.maximum(p, 0), axis=0, dtype=np.float64) if len(p) else np.zeros(p.shape[1])
    return np.asarray(np.where(mass > 0, np.where(mass > 0, mass, 1.0) ** -power, 1.0))


def factor_range(p: Floats, bound: Floats, *, power: float = 0.5) -> tuple[Floats, Floats]:
    """Eq. 13 in Eq. 12: between which factors those of the exact solution lie.

    The factors are made of the solution, so its error is in them, too: the exact mean of a class is within the mean of
    its bounds.

    Parameters
    ----------
    p
        Approximate refined scores (n, C).
    bound
        Bounds of their errors (n, C).
    power
        As in :func:`class_factors`.

    Returns
    -------
    Smallest and largest factor (C,); the largest is infinite where the mass may be zero.
    """
    if not len(p):
        return np.ones(p.shape[1]), np.ones(p.shape[1])
    mass, error = (x.mean(axis=0, dtype=np.float64) for x in (np.maximum(p, 0), bound))
    known = mass - error > 0
    high = np.where(known, np.where(known, mass - error, 1.0) ** -power, np.inf)
    low = np.where(mass + error > 0, np.where(mass + error > 0, mass + error, 1.0) ** -power, 1.0)
    empty = mass + error == 0  # a class that was never solved has the factor 1
    return np.asarray(low), np.asarray(np.where(empty, 1.0, high))


def effective_classes(labels: npt.NDArray[np.int64]) -> float:
    """Eq. 14: exp of the entropy of the shares of labels.

    Of labels and not of scores: smoothing keeps the mean score of every class (exactly for "comb"), so that a number
    made of the means could not fall.

    Parameters
    ----------
    labels
        Codes (n,), -1 for none.

    Returns
    -------
    Between 1 and C; 0 without any label.
    """
    known = labels[labels >= 0]
    if not known.size:
        return 0.0
    share = np.bincount(known) / known.size
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def oversmoothed(raw: npt.NDArray[np.int64], refined: npt.NDArray[np.int64], *, most: float) -> npt.NDArray[np.int64]:
    """Eq. 14: classes with at least 5 raw cells that lost more than the share ``most`` of them.

    Parameters
    ----------
    raw, refined
        Labels (n,) as codes; -1 is none.
    most
        Share of its raw cells that a class may lose.

    Returns
    -------
    Codes of the classes.
    """
    n_classes = int(max(raw.max(initial=-1), refined.max(initial=-1))) + 1
    known = raw >= 0
    before = np.bincount(raw[known], minlength=n_classes)
    kept = np.bincount(raw[known & (raw == refined)], minlength=n_classes)
    return np.flatnonzero((before >= 5) & (before - kept > most * before))


def modularity(weights: Any, labels: npt.NDArray[np.int64]) -> float:
    """Eq. 19: Newman modularity of labels on a graph.

    Parameters
    ----------
    weights
        A, sparse (n, n), symmetric.
    labels
        Codes (n,); a cell with -1 is a class of its own.

    Returns
    -------
    Between -1/2 and 1; 0 for a graph without edges.
    """
    total = float(weights.sum())
    if total == 0:
        return 0.0
    degree = graph.degrees(weights)
    entries = weights.tocoo()
    same = (labels[entries.row] == labels[entries.col]) & (labels[entries.row] >= 0)
    known = labels >= 0
    shares = np.bincount(labels[known], weights=degree[known]) / total
    lone = degree[~known] / total
    return float(entries.data[same].sum(dtype=np.float64) / total - (shares**2).sum() - (lone**2).sum())


EQUATIONS = {
    "1": objective,
    "2": solve.system,
    "3": to_scores,
    "4": graph.fuzzy_union,
    "5": confidence_fidelity,
    "6": solve.System.right_hand_side,
    "7": solve.extend,
    "8": solve.choose_solver,
    "9": solve.a_priori_steps,
    "10": residual_bound,
    "11": solve.error_bound,
    "12": solve.certified_argmax,
    "13": class_factors,
    "14": oversmoothed,
    "15": conformal.fit_temperature,
    "16": "cellsmith.model.grit.rejection.without_anchors",
    "17": conformal.selective_threshold,
    "18": ontology.roll_up,
    "19": modularity,
}
