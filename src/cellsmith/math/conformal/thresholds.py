"""Rejection thresholds and the guarantee that each of them carries (Eq. 17 of GRIT).

Symbols: P ``(n, C)`` class probabilities; m number of anchors (cells whose label is known and was used for nothing
else); a ``level``, the tolerated error rate in (0, 1). The guarantees assume that anchors are a random sample of the
cells to be labelled. Sources: split-conformal prediction (Vovk et al., 2005), conformal risk control (2208.02814 on
arXiv), fixed-sequence testing of risks (2110.01052 on arXiv).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, betaincinv

from cellsmith._errors import SetupError

__all__ = [
    "Threshold",
    "accepted_wrong_threshold",
    "coverage_threshold",
    "first_share",
    "fixed_sequences",
    "nonconformity",
    "prediction_set",
    "selective_threshold",
]

Floats = npt.NDArray[np.float64]

_ROUNDING = 1e-9  # (m + 1)(1 - a) is an integer for common levels; rounding must not lift it to the next one
_STARTS = ((0.5, 0.8), (0.25, 0.2))  # share of the cells that a first test accepts; part of delta of its sequence
_LIKELY = 0.95


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


def _grid(confidence: npt.NDArray[Any], *, start: float, size: int) -> npt.NDArray[Any]:
    """Return distinct quantiles, descending: from the one that at least the share ``start`` reaches, to the lowest."""
    if not confidence.size:
        return confidence
    shares = np.linspace(0.0, 1.0, size + 1)
    rejected = np.r_[shares[shares < 1.0 - start], 1.0 - start]
    return np.asarray(np.unique(np.quantile(confidence, rejected, method="lower"))[::-1])


def _faultless_needed(level: float, delta: float) -> int:
    """Fewest accepted anchors with which a test can pass: (1 - a)^k <= delta."""
    return math.ceil(math.log(delta) / math.log1p(-level) - _ROUNDING)


def first_share(n_anchors: int, *, level: float, delta: float, least: float) -> float:
    """Return the share of the cells that the first test of a sequence should accept.

    ``least``, or as much more as it takes for ceil(ln delta / ln(1 - a)) of the anchors (fewer cannot pass even if all
    are right) to be among the accepted cells in 95 % of draws. It depends on the number of anchors and on the rates,
    not on the anchors.

    Parameters
    ----------
    n_anchors
        Number m of anchors.
    level
        Error rate a among accepted cells.
    delta
        Probability with which this sequence may fail.
    least
        Smallest share.

    Returns
    -------
    From ``least`` to 1.
    """
    needed = _faultless_needed(level, delta)
    if needed >= n_anchors:
        return 1.0
    # P(Binomial(m, share) >= needed), as a function of the share, is the distribution function of a beta law
    return max(least, float(betaincinv(needed, n_anchors - needed + 1, _LIKELY)))


def fixed_sequences(
    confidence: npt.ArrayLike, n_anchors: int, *, level: float, delta: float, size: int = 100
) -> tuple[tuple[npt.NDArray[Any], float], ...]:
    """Return the thresholds that `selective_threshold` tests, in its order, chosen without any label.

    Two sequences of confidence quantiles, each from a start to all cells. The first starts where half of the cells are
    accepted and may fail with probability 0.8 delta; the second, for scores of which less than half are good enough,
    starts at a quarter with 0.2 delta; later where there are too few anchors (`first_share`).

    Parameters
    ----------
    confidence
        ``(n,)`` confidences of all cells, labelled or not. NaN is left out.
    n_anchors
        Number m of anchors among them.
    level
        Error rate a among accepted cells.
    delta
        Probability with which the statement may fail.
    size
        Number of quantile steps from none to all of the cells.

    Returns
    -------
    (descending thresholds ``(g,)``, its part of delta) of each sequence.

    Raises
    ------
    SetupError
        If ``level`` or ``delta`` is not inside (0, 1).
    """
    _check_rate(level, "level")
    _check_rate(delta, "delta")
    values = np.asarray(confidence).ravel()
    values = values[~np.isnan(values)]
    return tuple(
        (_grid(values, start=first_share(n_anchors, level=level, delta=part * delta, least=least), size=size), part)
        for least, part in _STARTS
    )


def selective_threshold(
    confidence: npt.ArrayLike,
    wrong: npt.ArrayLike,
    sequences: Sequence[tuple[npt.ArrayLike, float]],
    *,
    level: float,
    delta: float,
) -> Threshold:
    """Return t so that, with probability >= 1 - delta, the error rate among accepted cells is <= a (Eq. 17).

    Fixed-sequence tests. A t passes when the exact upper bound (Clopper and Pearson, one-sided) of its error rate, at
    a confidence of one minus the sequence's part of delta, is <= a; the first failure ends a sequence, and the
    loosest t that passed in any of them is taken.

    Why this is valid wherever a sequence starts: thresholds and their order come from the confidences of all cells and
    from the number of anchors, so they are fixed before a label is looked at, and before the anchors are drawn. At a
    fixed t the errors among k accepted anchors are binomial with the error rate of all cells that t accepts, so a t
    whose rate is above a passes with probability at most the sequence's part of delta. To take any such t, a walk has
    to pass the first one in its order; so this happens with at most that probability, for any order, and without
    assuming that the rate falls as t rises. The parts sum to at most delta. What voids it: a start, or a further
    sequence, that is chosen with the labels. A start in the middle pays, because each test there counts more anchors;
    at the strictest t that can pass, one wrong anchor ends the walk.

    Parameters
    ----------
    confidence
        ``(m,)`` confidences of the anchors; a NaN is never accepted.
    wrong
        ``(m,)`` bool; an anchor whose label lies outside the classes is wrong.
    sequences
        (thresholds ``(g,)`` in the order in which they are tested, part of delta) of each, chosen without labels:
        `fixed_sequences`.
    level
        Error rate a among accepted cells.
    delta
        Probability with which the statement may fail.

    Returns
    -------
    Accept where confidence >= value; infinite when every first test fails, as it does with fewer than `n_needed`
    accepted anchors.

    Raises
    ------
    SetupError
        If ``level`` or ``delta`` is not inside (0, 1), the lengths differ, or the parts sum to more than one.
    """
    _check_rate(level, "level")
    _check_rate(delta, "delta")
    parts = [part for _, part in sequences]
    if not parts or min(parts) <= 0 or sum(parts) > 1.0 + _ROUNDING:
        raise SetupError(f"Found the parts {parts} of delta, expected positive numbers that sum to at most 1.")
    values, errors = _anchors(confidence, wrong)
    usable = ~np.isnan(values)
    sides = [np.sort(side) for side in (values[usable], values[usable & errors])]
    best = math.inf
    for steps, part in sequences:
        thresholds = np.asarray(steps).ravel()
        # counts of values >= t, by position in the ascending order
        accepted, mistakes = (side.size - np.searchsorted(side, thresholds, side="left") for side in sides)
        # the bound is <= a exactly when so few errors have probability <= part x delta under an error rate of a
        passed = bdtr(mistakes, accepted, level) <= part * delta * (1.0 + _ROUNDING)
        stop = int(np.argmin(passed)) if not passed.all() else passed.size
        best = min(best, float(thresholds[:stop].min(initial=np.inf)))
    return Threshold(best, int(values.size), _faultless_needed(level, max(parts) * delta))
