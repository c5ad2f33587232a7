"""Rejection thresholds and the guarantee that each of them carries (Eq. 17 of GRIT).

Symbols: P ``(n, C)`` class probabilities; m number of anchors (cells whose label is known and was used for nothing
else); a ``level``, the tolerated error rate in (0, 1). The guarantees assume that anchors are a random sample of the
cells to be labelled. Sources: split-conformal prediction (Vovk et al., 2005), conformal risk control (2208.02814 on
arXiv), fixed-sequence testing of risks (2110.01052 on arXiv).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr

from cellsmith._errors import SetupError

__all__ = [
    "Threshold",
    "accepted_wrong_threshold",
    "confidence_grid",
    "coverage_threshold",
    "nonconformity",
    "prediction_set",
    "selective_threshold",
]

Floats = npt.NDArray[np.float64]

_ROUNDING = 1e-9  # (m + 1)(1 - a) is an integer for common levels; rounding must not lift it to the next one


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it rests on.

    Parameters
    ----------
    value
        Infinite when the guarantee cannot be given: then accept nothing (coverage: every class is in every set).
    n_anchors
        Number m of anchors it was computed from.
    n_needed
        Fewest anchors with which this level can be met at all, and then only by faultless scores.
    """

    value: float
    n_anchors: int
    n_needed: int

    @property
    def enough(self) -> bool:
        """Whether there were at least `n_needed` anchors."""
        return self.n_anchors >= self.n_needed

    def accepts(self, confidence: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return which cells, ``(n,)`` of confidences, reach the threshold; NaN never does.

        Compared in float64: numpy would round a float64 threshold to a float32 array's precision, and a tie would slip
        through.
        """
        return np.asarray(np.asarray(confidence, dtype=np.float64) >= self.value)


def _check_rate(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise SetupError(
            f"Found {name}={value!r}, expected an error rate strictly between 0 and 1. Type for example {name}=0.05."
        )


def nonconformity(p: npt.ArrayLike, y: npt.ArrayLike) -> Floats:
    """Return 1 - P of each anchor's own class (Eq. 17, coverage).

    Parameters
    ----------
    p
        ``(m, C)`` refined scores before any temperature that was fitted on these anchors.
    y
        ``(m,)`` column of the class; negative for a label outside the classes, which no set can cover.

    Returns
    -------
    ``(m,)``; infinite for a label outside the classes and for a NaN row.
    """
    values, codes = np.asarray(p, dtype=np.float64), np.asarray(y, dtype=np.int64)
    own = values[np.arange(len(codes)), np.maximum(codes, 0)]
    return np.asarray(np.where((codes < 0) | np.isnan(own), np.inf, 1.0 - own))


def prediction_set(p: npt.ArrayLike, threshold: Threshold) -> npt.NDArray[np.bool_]:
    """Return which classes are in the set of each cell: P >= 1 - q (Eq. 17, coverage).

    Parameters
    ----------
    p
        ``(n, C)`` refined scores.
    threshold
        What `coverage_threshold` returned.

    Returns
    -------
    ``(n, C)`` mask. No class: novel; more than one: ambiguous; with an infinite threshold all classes.
    """
    # 1 - P <= q, as the scores of the anchors were computed: P >= 1 - q differs from it by rounding at ties
    return np.asarray(1.0 - np.asarray(p, dtype=np.float64) <= threshold.value) | (threshold.value == math.inf)


def _anchors_needed(level: float) -> int:
    """Fewest m with 1 / (m + 1) <= level."""
    return max(1, math.ceil((1.0 - level) / level - _ROUNDING))


def coverage_threshold(score: npt.ArrayLike, level: float) -> Threshold:
    """Return q so that the set {c: 1 - P_c <= q} holds the true class with probability >= 1 - a (Eq. 17).

    Parameters
    ----------
    score
        ``(m,)`` `nonconformity` of the anchors.
    level
        Error rate a.

    Returns
    -------
    The ceil((m + 1)(1 - a))-th smallest score; infinite if that exceeds m, or is the score of an anchor whose label
    lies outside the classes.

    Raises
    ------
    SetupError
        If ``level`` is not inside (0, 1).
    """
    _check_rate(level, "level")
    scores = np.sort(np.where(np.isnan(np.asarray(score, dtype=np.float64)), np.inf, score).ravel())
    m = int(scores.size)
    rank = math.ceil((m + 1) * (1.0 - level) - _ROUNDING)
    return Threshold(float(scores[rank - 1]) if rank <= m else math.inf, m, _anchors_needed(level))


def _anchors(confidence: npt.ArrayLike, wrong: npt.ArrayLike) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    values, errors = np.asarray(confidence).ravel(), np.asarray(wrong, dtype=bool).ravel()
    if values.size != errors.size:
        raise SetupError(f"Found {values.size} confidences and {errors.size} outcomes, expected one of each an anchor.")
    return (values if values.dtype.kind == "f" else values.astype(np.float64)), errors


def accepted_wrong_threshold(confidence: npt.ArrayLike, wrong: npt.ArrayLike, level: float) -> Threshold:
    """Return t so that the expected share of all cells that are accepted and wrong is <= a (Eq. 17).

    Conformal risk control: the smallest t with (m / (m + 1)) R_m(t) + 1 / (m + 1) <= a, where R_m(t) is the share of
    anchors with confidence >= t and a wrong label.

    Parameters
    ----------
    confidence
        ``(m,)`` confidences of the anchors in [0, 1]; a NaN is never accepted.
    wrong
        ``(m,)`` bool; an anchor whose label lies outside the classes is wrong.
    level
        Error rate a.

    Returns
    -------
    Accept where confidence >= value; 0 accepts all. The infimum is not attained when it is the confidence of a wrong
    anchor: then it is the next number of the precision of ``confidence`` (so hand over anchors in the precision of the
    cells).

    Raises
    ------
    SetupError
        If ``level`` is not inside (0, 1) or the lengths differ.
    """
    _check_rate(level, "level")
    values, errors = _anchors(confidence, wrong)
    m, needed = int(values.size), _anchors_needed(level)
    allowed = math.floor(level * (m + 1) - 1.0 + _ROUNDING)
    if allowed < 0:
        return Threshold(math.inf, m, needed)
    ranked = np.sort(values[errors & ~np.isnan(values)])[::-1]
    if ranked.size <= allowed:
        return Threshold(0.0, m, needed)
    return Threshold(float(np.nextafter(ranked[allowed], ranked.dtype.type(math.inf))), m, needed)


def confidence_grid(confidence: npt.ArrayLike, *, size: int = 100) -> npt.NDArray[Any]:
    """Return confidence quantiles of all cells, the thresholds among which `selective_threshold` chooses.

    Parameters
    ----------
    confidence
        ``(n,)`` confidences of all cells, labelled or not; no label may enter here. NaN is left out.
    size
        Number of quantile steps.

    Returns
    -------
    At most ``size + 1`` distinct values of ``confidence``, descending.
    """
    values = np.asarray(confidence).ravel()
    values = values[~np.isnan(values)]
    if not values.size:
        return np.asarray(values)
    steps = np.unique(np.quantile(values, np.linspace(0.0, 1.0, size + 1), method="higher"))
    return np.asarray(steps[::-1])


def selective_threshold(
    confidence: npt.ArrayLike, wrong: npt.ArrayLike, grid: npt.ArrayLike, *, level: float, delta: float
) -> Threshold:
    """Return t so that, with probability >= 1 - delta, the error rate among accepted cells is <= a (Eq. 17).

    Fixed-sequence tests down the grid, from the strictest t at which ceil(ln delta / ln(1 - a)) anchors are accepted
    (below that number not even a faultless sample can pass). A t passes when the exact upper bound (Clopper and
    Pearson, one-sided) of its error rate at confidence 1 - delta is <= a; the first failure stops.

    Parameters
    ----------
    confidence
        ``(m,)`` confidences of the anchors; a NaN is never accepted.
    wrong
        ``(m,)`` bool; an anchor whose label lies outside the classes is wrong.
    grid
        ``(g,)`` candidate thresholds in any order, chosen without labels (`confidence_grid`).
    level
        Error rate a among accepted cells.
    delta
        Probability with which the statement may fail.

    Returns
    -------
    Accept where confidence >= value; infinite when the first test fails or too few anchors are accepted anywhere.

    Raises
    ------
    SetupError
        If ``level`` or ``delta`` is not inside (0, 1) or the lengths differ.
    """
    _check_rate(level, "level")
    _check_rate(delta, "delta")
    values, errors = _anchors(confidence, wrong)
    needed = math.ceil(math.log(delta) / math.log1p(-level) - _ROUNDING)
    steps = np.asarray(grid).ravel()
    steps = np.unique(steps[~np.isnan(steps)])[::-1]
    usable = ~np.isnan(values)
    # counts of values >= t, by position in the ascending order
    accepted, mistakes = (
        side.size - np.searchsorted(np.sort(side), steps, side="left")
        for side in (values[usable], values[usable & errors])
    )
    # accepted counts rise down the grid; the bound at 1 - delta is <= a exactly when so few errors have probability
    # <= delta under an error rate of a
    start = int(np.searchsorted(accepted, needed))
    passed = bdtr(mistakes[start:], accepted[start:], level) <= delta * (1.0 + _ROUNDING)
    stop = start + (int(np.argmin(passed)) if not passed.all() else passed.size)
    return Threshold(float(steps[stop - 1]) if stop > start else math.inf, int(values.size), needed)
