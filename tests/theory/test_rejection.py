"""Guarantees of the rejection thresholds, over many draws of anchors from a population whose rates are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cellsmith.math.conformal import (
    accepted_wrong_threshold,
    coverage_threshold,
    fixed_sequences,
    nonconformity,
    selective_threshold,
)

DRAWS, SIZES = 500, (50, 100, 300)


class Population:
    """Cells of a weak, overconfident classifier, some of types that are no class; rates of any threshold exactly."""

    def __init__(self, n: int = 20_000, *, strangers: float = 0.03) -> None:
        rng = np.random.default_rng(0)
        truth = rng.dirichlet(np.full(5, 0.15), n)
        y = (rng.random((n, 1)) < truth.cumsum(axis=1)).argmax(axis=1)
        y[rng.random(n) < strangers] = -1
        p = (truth + 0.02) ** 1.5 * rng.lognormal(0, 0.3, truth.shape)
        p /= p.sum(axis=1, keepdims=True)
        self.n = n
        self.confidence, self.wrong = p.max(axis=1), p.argmax(axis=1) != y
        self.score = nonconformity(p, y)
        self._orders = {}
        order = np.argsort(self.confidence)
        self._sorted = self.confidence[order]
        self._errors_above = np.r_[self.wrong[order][::-1].cumsum()[::-1], 0]

    def selective(self, anchors, *, level: float, delta: float = 0.1) -> float:
        """Threshold from these anchors, in the order of tests that the package takes."""
        order = self.order(len(anchors), level, delta)
        found = selective_threshold(self.confidence[anchors], self.wrong[anchors], order, level=level, delta=delta)
        return found.value

    def order(self, m: int, level: float, delta: float):
        key = (m, level, delta)
        if key not in self._orders:
            self._orders[key] = fixed_sequences(self.confidence, m, level=level, delta=delta)
        return self._orders[key]

    def grid(self, start: float) -> np.ndarray:
        """Thresholds that accept from a share of the cells up to all of them."""
        return np.quantile(self.confidence, 1 - np.linspace(start, 1, 100), method="lower")

    def draws(self, m: int):
        rng = np.random.default_rng(m)
        return (rng.choice(self.n, m) for _ in range(DRAWS))

    def accepted_wrong(self, t: float) -> float:
        return self._errors_above[np.searchsorted(self._sorted, t)] / self.n

    def error_rate(self, t: float) -> float:
        accepted = self.n - np.searchsorted(self._sorted, t)
        return self._errors_above[np.searchsorted(self._sorted, t)] / accepted if accepted else 0.0


@pytest.fixture(scope="module")
def cells() -> Population:
    return Population()


def standard_error(values) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def proportion_error(rate: float) -> float:
    return math.sqrt(rate * (1 - rate) / DRAWS)


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("level", [0.05, 0.1, 0.2])
def test_sets_cover_the_truth_and_not_much_more(cells, m, level):
    scores = np.sort(cells.score)
    covered = [
        np.searchsorted(scores, coverage_threshold(cells.score[i], level).value, side="right") / cells.n
        for i in cells.draws(m)
    ]
    assert np.mean(covered) >= 1 - level - 3 * standard_error(covered)
    # exact up to one rank: it lies below 1 - a + 1 / (m + 1), unless the strangers force the infinite threshold
    if level > 0.1:
        assert np.mean(covered) <= 1 - level + 1 / (m + 1) + 3 * standard_error(covered)


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("level", [0.05, 0.1])
def test_share_of_accepted_and_wrong_is_controlled_in_the_mean(cells, m, level):
    found = [
        cells.accepted_wrong(accepted_wrong_threshold(cells.confidence[i], cells.wrong[i], level).value)
        for i in cells.draws(m)
    ]
    assert np.mean(found) <= level + 3 * standard_error(found)
    # and the tolerance is used up: conformal risk control loses at most 2 / (m + 1)
    assert np.mean(found) >= level - 2 / (m + 1) - 3 * standard_error(found)


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize(("level", "delta"), [(0.05, 0.1), (0.1, 0.1), (0.2, 0.2)])
def test_error_among_accepted_exceeds_the_level_in_few_draws(cells, m, level, delta):
    violated = [cells.error_rate(cells.selective(i, level=level, delta=delta)) > level for i in cells.draws(m)]
    assert np.mean(violated) <= delta + 3 * proportion_error(delta)


@pytest.mark.parametrize("level", [0.1, 0.2])
def test_many_anchors_accept_nearly_what_an_oracle_would(level):
    cells = Population(strangers=0.0)
    grid = cells.grid(0.01)
    kept = (cells.confidence >= min(t for t in grid if cells.error_rate(t) <= level)).mean()
    shares = []
    for i in cells.draws(1_000):
        t = cells.selective(i, level=level)
        shares.append((cells.confidence >= t).mean())
    assert np.median(shares) >= kept - 0.10, (np.median(shares), kept)


@pytest.mark.parametrize("start", [0.2, 0.5, 0.8])
def test_the_promise_holds_wherever_the_tests_start(cells, start):
    """Also where the error rate does not fall as the threshold rises: here the surest cells are the wrong ones."""
    level, delta, steps = 0.1, 0.1, cells.grid(start)
    for sign in (1, -1):
        order, confidence = [(steps if sign == 1 else -steps[::-1], 1)], sign * cells.confidence
        violated = []
        for i in cells.draws(100):
            t = selective_threshold(confidence[i], cells.wrong[i], order, level=level, delta=delta).value
            accepted = confidence >= t
            violated.append(bool(accepted.any()) and cells.wrong[accepted].mean() > level)
        assert np.mean(violated) <= delta + 3 * proportion_error(delta)


def test_starting_in_the_middle_accepts_more_than_starting_at_the_top(cells):
    level, shares = 0.2, {0.1: [], 0.5: [], None: []}
    grids = {start: cells.grid(start) for start in (0.1, 0.5)}
    for i in cells.draws(300):
        for start, kept in shares.items():
            order = [(grids[start], 1)] if start else cells.order(300, level, 0.1)
            t = selective_threshold(cells.confidence[i], cells.wrong[i], order, level=level, delta=0.1).value
            kept.append((cells.confidence >= t).mean())
    assert np.mean(shares[0.5]) > np.mean(shares[0.1])
    assert np.mean(shares[None]) > np.mean(shares[0.1])


def test_confidence_that_means_nothing_is_accepted_with_probability_delta():
    """The hardest case: every threshold has an error rate just above the level, so any acceptance is a violation."""
    rng, level, delta = np.random.default_rng(0), 0.1, 0.1
    order = fixed_sequences(np.linspace(0, 1, 1_000), 200, level=level, delta=delta)
    accepted = [
        selective_threshold(rng.random(200), rng.random(200) < level + 1e-9, order, level=level, delta=delta).value
        < math.inf
        for _ in range(DRAWS)
    ]
    assert np.mean(accepted) <= delta + 3 * proportion_error(delta)
    assert np.mean(accepted) >= delta / 4  # not vacuous


def test_the_rule_of_thumb_fails_where_the_tests_hold(cells):
    """Taking the lowest threshold whose error on the anchors is fine breaks the promise, so these checks can fail."""
    level, violated, grid = 0.1, [], cells.grid(0.01)[::4]
    for i in cells.draws(100):
        confidence, wrong = cells.confidence[i], cells.wrong[i]
        fine = [t for t in grid if (confidence >= t).any() and wrong[confidence >= t].mean() <= level]
        violated.append(bool(fine) and cells.error_rate(min(fine)) > level)
    assert np.mean(violated) > 0.1 + 3 * proportion_error(0.1)
