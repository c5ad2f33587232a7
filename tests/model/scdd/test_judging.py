"""Selection on held-out training cells: who is held out, how readers are scored, and when step 0 stays."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier

from cellsmith.model.scdd.equations import best_iterate
from cellsmith.model.scdd.judging import HeldOut, folds_of


def test_every_cell_judges_once_and_small_classes_never() -> None:
    labels = np.repeat([0, 1, 2], [40, 5, 4])
    fold = folds_of(labels, n_folds=4, generator=np.random.default_rng(0))
    assert [np.bincount(fold[labels == 0]).tolist(), (fold[labels == 2] == -1).all()] == [[10] * 4, True]
    assert sorted(np.bincount(fold[labels == 1], minlength=4)) == [1, 1, 1, 2]


def test_folds_are_judged_together() -> None:
    (phi, labels), profiles = cells(0), np.eye(3, 8) * 2
    whole, parts = HeldOut(phi, labels, np.arange(3)), []
    for rows in (slice(0, 25), slice(25, None)):
        parts.append(HeldOut(phi[rows], labels[rows], np.arange(3)))
        for step, shift in ((0, 0.0), (25, 0.3)):
            parts[-1].judge(step, profiles + shift)
    for step, shift in ((0, 0.0), (25, 0.3)):
        whole.judge(step, profiles + shift)
    found = HeldOut.pooled(parts)
    np.testing.assert_array_equal(np.stack(found.wrong), np.stack(whole.wrong))
    np.testing.assert_allclose(found.curve()["linear"], whole.curve()["linear"])
    assert found.choose() == whole.choose()


def errors(n: int, *of_readers: tuple[int, ...]) -> np.ndarray:
    """Return wrong (R, n): the cells that each reader names wrongly."""
    out = np.zeros((len(of_readers), n), dtype=bool)
    for reader, cells in zip(out, of_readers, strict=True):
        reader[list(cells)] = True
    return out


def test_first_iterate_stays_unless_another_is_clearly_better() -> None:
    labels = np.repeat([0, 1], [30, 10])
    bad, best = (errors(40, range(c)) for c in (12, 4))
    better = errors(40, (*range(2, 12), 20))
    assert best_iterate(np.stack([bad, bad]), labels).position == 0
    # Two cells right, one wrong: a gain within one standard error.
    assert best_iterate(np.stack([bad, better]), labels).position == 0
    chosen = best_iterate(np.stack([bad, better, best, best]), labels)
    assert chosen.position == 2  # ties go to the earliest
    assert chosen.gain == pytest.approx(8 / 40)
    assert best_iterate(np.stack([best, bad]), labels).position == 0


def test_no_reader_may_make_more_errors() -> None:
    labels = np.repeat([0, 1], 20)
    start = errors(40, range(10), range(3))
    lopsided = errors(40, (), range(4))
    modest = errors(40, range(4), range(3))
    assert best_iterate(np.stack([start, lopsided]), labels).position == 0
    chosen = best_iterate(np.stack([start, lopsided, modest]), labels)
    assert chosen.position == 2
    assert chosen.gain == pytest.approx(6 / 80)


def test_rare_classes_may_not_pay_for_common_ones() -> None:
    labels = np.repeat([0, 1], [36, 4])
    start = errors(40, range(10))
    at_their_cost = errors(40, (*range(4), 38))
    assert best_iterate(np.stack([start, at_their_cost]), labels).position == 0
    assert best_iterate(np.stack([start, errors(40, range(4))]), labels).position == 1


def test_standard_error_is_that_of_paired_differences() -> None:
    generator = np.random.default_rng(0)
    wrong = np.stack([generator.random((2, 60)) < 0.5, generator.random((2, 60)) < 0.05])
    got = best_iterate(wrong, np.zeros(60, dtype=int))
    gains = wrong[0].mean(axis=0) - wrong[1].mean(axis=0)
    assert (got.position, got.gain) == (1, pytest.approx(gains.mean()))
    assert got.standard_error == pytest.approx(gains.std(ddof=1) / np.sqrt(60))


def cells(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(n) % 3)
    return np.eye(3, 8)[labels] * 2 + generator.normal(0, 0.5, (n, 8)), labels


def test_readers_are_those_of_scikit_learn_and_good_profiles_score_better() -> None:
    phi, labels = cells(0)
    profiles, own = np.eye(3, 8) * 2, np.arange(3)
    judge = HeldOut(phi, labels, own)
    reader = LogisticRegression(C=1.0, max_iter=200).fit(profiles, own)
    losses, named = judge._linear(profiles)
    assert losses.mean() == pytest.approx(log_loss(labels, reader.predict_proba(phi)))
    np.testing.assert_array_equal(named, reader.predict(phi))
    nearest = KNeighborsClassifier(1).fit(profiles, own)
    np.testing.assert_array_equal(judge._neighbour(profiles)[1], nearest.predict(phi))
    judge.judge(0, profiles)
    judge.judge(25, np.random.default_rng(1).normal(size=(3, 8)))
    assert judge.wrong[0].sum() < judge.wrong[1].sum()
    assert judge.choose().position == 0
    curve = judge.curve()
    assert curve["step"].tolist() == [0, 25]
    np.testing.assert_allclose(curve["loss"], (curve["linear"] + curve["centroid"] + curve["neighbour"]) / 3)


def test_neighbour_sees_profiles_that_drift_apart_and_keep_their_mean() -> None:
    phi, labels = cells(0)
    own = np.repeat(np.arange(3), 4)
    profiles = (np.eye(3, 8) * 2)[own]
    noise = np.random.default_rng(2).normal(0, 3, profiles.shape)
    for k in range(3):
        noise[own == k] -= noise[own == k].mean(axis=0)
    judge = HeldOut(phi, labels, own)
    judge.judge(0, profiles)
    judge.judge(25, profiles + noise)
    curve = judge.curve()
    assert curve["centroid"][1] == pytest.approx(curve["centroid"][0])
    assert curve["neighbour"][1] > curve["neighbour"][0] + 0.1
    assert judge.choose().position == 0


def test_class_without_profile_costs_and_does_not_fail() -> None:
    phi, labels = cells(0)
    judge = HeldOut(phi, labels, np.array([0, 1]))
    judge.judge(0, (np.eye(3, 8) * 2)[:2])
    assert judge.wrong[0].mean() >= (labels == 2).mean()
    assert judge.curve()["loss"][0] > 5
