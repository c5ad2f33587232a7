"""Temperatures and thresholds against brute force, and every edge where nothing may be accepted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta, binom

from cellsmith._errors import SetupError
from cellsmith.math.conformal import (
    Threshold,
    accepted_wrong_threshold,
    apply_temperature,
    coverage_threshold,
    first_share,
    fit_temperature,
    fixed_sequences,
    nonconformity,
    prediction_set,
    selective_threshold,
    split_half_accuracy,
    split_half_temperature,
)


def cells(n: int, *, seed: int = 0, c: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities and labels drawn from them."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(c, 0.4), n)
    return p, (rng.random((n, 1)) < p.cumsum(axis=1)).argmax(axis=1)


# ---------------------------------------------------------------- temperature


@pytest.mark.parametrize("distortion", [0.5, 1.0, 3.0])
def test_temperature_undoes_a_known_distortion(distortion):
    p, y = cells(8_000)
    found = fit_temperature(apply_temperature(p, distortion), y)
    assert found * distortion == pytest.approx(1.0, rel=0.05)


def test_temperature_is_the_minimum_of_the_likelihood():
    p, y = cells(60)
    flat = apply_temperature(p, 2.0)
    found = fit_temperature(flat, y)

    def loss(t):
        return -np.log(apply_temperature(flat, t)[np.arange(60), y]).mean()

    grid = np.geomspace(0.05, 5, 2_000)
    assert loss(found) <= min(loss(t) for t in grid) + 1e-9


def test_temperature_stays_in_its_bounds():
    p = np.tile([0.6, 0.4], (60, 1))
    assert fit_temperature(p, np.zeros(60, int)) == 0.05
    assert fit_temperature(p, np.ones(60, int)) == 5.0
    assert fit_temperature(p, np.zeros(60, int), bounds=(0.5, 2.0)) == 0.5


def test_temperature_survives_an_excluded_truth_and_leaves_out_strangers():
    p, y = cells(200)
    zero = p.copy()
    zero[0, y[0]] = 0.0
    assert 0.05 < fit_temperature(zero, y) <= 5.0
    strangers = np.vstack([p, np.full((50, 5), 0.2), np.full((1, 5), np.nan)])
    assert fit_temperature(strangers, np.r_[y, np.full(50, -1), 0]) == pytest.approx(fit_temperature(p, y))
    with pytest.raises(SetupError, match="no anchor whose label is among the classes"):
        fit_temperature(p, np.full(200, -1))
    with pytest.raises(SetupError, match="below 5"):
        fit_temperature(p, np.full(200, 5))


def test_applying_a_temperature_keeps_order_zeros_and_missing_rows():
    p = np.array([[0.0, 0.3, 0.7], [0.0, 0.0, 0.0], [np.nan, 0.5, 0.5]])
    out = apply_temperature(p, 0.5)
    np.testing.assert_allclose(out[0], [0.0, 0.09 / 0.58, 0.49 / 0.58])
    np.testing.assert_allclose(out[1], 1 / 3)
    assert np.isnan(out[2]).all()
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(SetupError, match="positive number"):
            apply_temperature(p, bad)


@pytest.mark.parametrize("accuracy", [0.35, 0.6, 0.9])
def test_two_halves_tell_the_accuracy(accuracy):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 6, 40_000)

    def half():
        wrong = (y + rng.integers(1, 6, y.size)) % 6
        return np.eye(6)[np.where(rng.random(y.size) < accuracy, y, wrong)]

    assert split_half_accuracy(half(), half()) == pytest.approx(accuracy, abs=0.02)


def test_less_agreement_than_chance_gives_chance():
    a = np.eye(4)[[0, 1, 2, 3]]
    assert split_half_accuracy(a, a[::-1]) == pytest.approx(0.25)
    assert split_half_accuracy(a, a) == 1.0
    assert split_half_accuracy(np.ones((3, 1)), np.ones((3, 1))) == 1.0


def test_split_half_temperature_sets_the_mean_confidence():
    p, _ = cells(3_000)
    rng = np.random.default_rng(1)
    halves = [apply_temperature(p * rng.gamma(3.0, size=p.shape), 1.0) for _ in range(2)]
    t = split_half_temperature(*halves, apply_temperature(p, 2.0))
    mean = apply_temperature(apply_temperature(p, 2.0), t).max(axis=1).mean()
    assert mean == pytest.approx(split_half_accuracy(*halves), abs=1e-6)


def test_halves_must_fit():
    with pytest.raises(SetupError, match=r"\(3, 2\) and \(3, 4\)"):
        split_half_accuracy(np.ones((3, 2)), np.ones((3, 4)))
    with pytest.raises(SetupError, match="no cell with scores in both halves"):
        split_half_accuracy(np.full((3, 2), np.nan), np.ones((3, 2)))


# ------------------------------------------------------------------- coverage


@pytest.mark.parametrize(("level", "needed"), [(0.05, 19), (0.1, 9), (0.2, 4), (0.3, 3), (0.5, 1)])
def test_coverage_takes_the_right_order_statistic_and_says_how_many_anchors_it_needs(level, needed):
    short = coverage_threshold(np.linspace(0, 0.5, needed - 1), level)
    assert short == Threshold(math.inf, needed - 1, needed)
    assert not short.enough
    enough = coverage_threshold(np.linspace(0, 0.5, needed), level)
    assert enough.enough
    assert enough.value == (0.5 if needed > 1 else 0.0)  # with just enough anchors it is the largest score


def test_coverage_rank_of_one_hundred():
    scores = np.random.default_rng(0).permutation(np.arange(1, 101) / 101)
    assert coverage_threshold(scores, 0.1).value == 91 / 101  # ceil(101 * 0.9) = 91


def test_sets_hold_the_anchor_that_sets_the_threshold():
    p, y = cells(200)
    p = p.astype(np.float32)
    scores = nonconformity(p, y)
    t = coverage_threshold(scores, 0.2)
    covered = prediction_set(p, t)[np.arange(200), y]
    assert covered.sum() == 161  # ceil(201 * 0.8), the tie included
    assert prediction_set(p, Threshold(math.inf, 3, 19)).all()


def test_strangers_are_never_covered():
    p, y = cells(50)
    y[:10] = -1
    scores = nonconformity(p, y)
    assert np.isinf(scores[:10]).all()
    assert coverage_threshold(scores, 0.1).value == math.inf
    assert coverage_threshold(scores, 0.3).value < math.inf


# ------------------------------------------------------------- accepted wrong


def brute_accepted_wrong(confidence, wrong, level):
    """Check the definition on a fine set of thresholds."""
    m = len(confidence)
    for t in np.sort(np.r_[0.0, np.nextafter(confidence, np.inf)]):
        if m / (m + 1) * np.mean((confidence >= t) & wrong) + 1 / (m + 1) <= level + 1e-12:
            return t
    return math.inf


@pytest.mark.parametrize("m", [5, 19, 20, 57, 100])
@pytest.mark.parametrize("level", [0.05, 0.1, 0.25])
def test_accepted_wrong_is_the_smallest_that_controls_the_risk(m, level):
    rng = np.random.default_rng(m)
    for _ in range(20):
        confidence = np.round(rng.random(m), 2)  # with ties
        wrong = rng.random(m) > confidence
        found = accepted_wrong_threshold(confidence, wrong, level)
        assert found.value == brute_accepted_wrong(confidence, wrong, level)
        assert (found.n_anchors, found.n_needed) == (m, math.ceil(1 / level - 1e-9) - 1)
        assert found.enough == (found.value < math.inf)


def test_threshold_steps_over_a_wrong_anchor_in_the_precision_of_the_cells():
    confidence = np.full(30, 0.3, dtype=np.float32)
    wrong = np.ones(30, dtype=bool)
    t = accepted_wrong_threshold(confidence, wrong, 0.05)
    assert not (confidence >= t.value).any()
    assert not t.accepts(confidence).any()
    assert t.accepts(np.float32([0.31])).all()
    assert accepted_wrong_threshold(confidence, ~wrong, 0.05).value == 0.0


def test_missing_confidences_are_never_accepted():
    t = accepted_wrong_threshold([np.nan] * 30, [True] * 30, 0.05)
    assert t.value == 0.0
    assert not t.accepts([np.nan]).any()


# ------------------------------------------------------------------ selective


def brute_selective(confidence, wrong, sequences, level, delta):
    """Walk along each sequence with the Clopper-Pearson bound."""
    value = math.inf
    for steps, part in sequences:
        for t in steps:
            n, k = int((confidence >= t).sum()), int(((confidence >= t) & wrong).sum())
            upper = 1.0 if k == n else beta.ppf(1 - part * delta, k + 1, n - k)
            if upper > level:
                break
            value = min(value, t)
    return value


@pytest.mark.parametrize(("level", "delta"), [(0.05, 0.1), (0.2, 0.1), (0.2, 0.01), (0.4, 0.5)])
def test_selective_equals_the_walk_with_the_exact_bound(level, delta):
    rng = np.random.default_rng(0)
    found = []
    for m in (1, 60, 200, 400):
        for power in (1, 4, 40):
            confidence = np.round(rng.random(m), 2)
            wrong = rng.random(m) > confidence ** (1 / power)
            cells = np.round(rng.random(1_000), 2)
            order = fixed_sequences(cells, m, level=level, delta=delta, size=50)
            mine = selective_threshold(confidence, wrong, order, level=level, delta=delta)
            found.append(mine.value)
            assert mine.value == brute_selective(confidence, wrong, order, level, delta)
    assert math.inf in found
    assert min(found) < math.inf


def test_selective_tests_in_the_order_that_it_is_given():
    confidence, wrong = np.repeat([0.9, 0.5], 100), np.repeat([True, False], 100)
    rates = {"level": 0.6, "delta": 0.1}
    # the strict threshold accepts only wrong anchors; a walk the other way stops before it
    assert selective_threshold(confidence, wrong, [([0.9, 0.5], 1)], **rates).value == math.inf
    assert selective_threshold(confidence, wrong, [([0.5, 0.9], 1)], **rates).value == 0.5
    assert selective_threshold(confidence, wrong, [([0.9], 0.5), ([0.5], 0.5)], **rates).value == 0.5
    for parts in ((0.6, 0.5), (1.0, 0.0), ()):
        with pytest.raises(SetupError, match="parts"):
            selective_threshold(confidence, wrong, [([0.9], part) for part in parts], **rates)


def test_selective_says_how_many_it_needs():
    one, rates = [([0.5], 1)], {"level": 0.05, "delta": 0.1}
    assert selective_threshold([], [], one, **rates) == Threshold(math.inf, 0, 45)
    one_short = selective_threshold(np.ones(44), np.zeros(44), one, **rates)
    assert (one_short.value, one_short.enough) == (math.inf, False)
    assert selective_threshold(np.ones(45), np.zeros(45), one, **rates).value == 0.5
    one_wrong = selective_threshold(np.ones(45), np.eye(1, 45)[0], one, **rates)
    assert (one_wrong.value, one_wrong.enough) == (math.inf, True)
    order = fixed_sequences(np.ones(9), 50, **rates)
    assert selective_threshold(np.ones(50), np.zeros(50), order, **rates) == Threshold(1.0, 50, 50)


def test_sequences_know_no_label_and_leave_out_missing_cells():
    values = np.r_[np.random.default_rng(0).random(500).astype(np.float32), np.float32(np.nan)]
    (half, most), (quarter, rest) = fixed_sequences(values, 2_000, level=0.1, delta=0.1, size=20)
    assert (most, rest) == (0.8, 0.2)
    for steps, shares in ((half, np.arange(0.5, 1.01, 0.05)), (quarter, np.arange(0.25, 1.01, 0.05))):
        assert steps.dtype == np.float32
        assert np.isin(steps, values).all()
        found = np.array([(values >= t).sum() / 500 for t in steps])
        np.testing.assert_allclose(found, shares, atol=0.0021)
        assert found[0] >= shares[0]
        assert found[-1] == 1
    empty = fixed_sequences([np.nan], 10, level=0.1, delta=0.1)
    assert [steps.size for steps, _ in empty] == [0, 0]
    assert selective_threshold([0.5], [False], empty, level=0.1, delta=0.1).value == math.inf


def test_the_first_test_accepts_as_many_cells_as_it_takes_to_pass():
    rates = {"level": 0.05, "delta": 0.1, "least": 0.5}
    assert first_share(1_000, **rates) == 0.5
    assert first_share(45, **rates) == first_share(3, **rates) == 1.0
    share = first_share(60, **rates)  # 45 of 60 have to be accepted
    assert share > 45 / 60
    assert binom.sf(44, 60, share) == pytest.approx(0.95)
    lowest = np.min([steps[0] for steps, _ in fixed_sequences(np.arange(100), 10, level=0.05, delta=0.1)])
    assert lowest == 0


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 5, math.nan])
def test_a_level_is_an_error_rate(level):
    for call in (
        lambda: coverage_threshold([0.1], level),
        lambda: accepted_wrong_threshold([0.1], [True], level),
        lambda: selective_threshold([0.1], [True], [([0.1], 1)], level=level, delta=0.1),
    ):
        with pytest.raises(SetupError, match=r"Type for example level=0\.05"):
            call()
    with pytest.raises(SetupError, match="delta"):
        selective_threshold([0.1], [True], [([0.1], 1)], level=0.1, delta=level)
    with pytest.raises(SetupError, match="2 confidences and 1 outcomes"):
        accepted_wrong_threshold([0.1, 0.2], [True], 0.1)
