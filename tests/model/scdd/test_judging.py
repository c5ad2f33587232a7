"""Selection on held-out training cells: who is held out, how readers are scored, and when step 0 stays."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier

from cellsmith.model.scdd.equations import Choice, best_iterate
from cellsmith.model.scdd.judging import HeldOut, hold_out


def choose(losses: np.ndarray, labels: np.ndarray, wrong: np.ndarray | None = None) -> Choice:
    return best_iterate(losses, np.zeros(losses.shape, dtype=bool) if wrong is None else wrong, labels)


def test_small_classes_give_no_cell_away() -> None:
    labels = np.repeat([0, 1, 2], [40, 5, 4])
    held = hold_out(labels, fraction=0.15, generator=np.random.default_rng(0))
    assert [int(held[labels == k].sum()) for k in range(3)] == [6, 1, 0]


def test_first_iterate_stays_unless_another_is_clearly_better() -> None:
    labels = np.repeat([0, 1], [30, 10])
    noise = np.random.default_rng(0).normal(size=40)
    base = np.full(40, 1.0)
    assert choose(np.stack([base, base - 0.01 + noise - noise.mean()])[:, None], labels).position == 0
    chosen = choose(np.stack([base, base - 0.5, base - 0.5])[:, None], labels)
    assert chosen.position == 1  # ties go to the earliest
    assert chosen.gain == pytest.approx(0.5)
    assert choose(np.stack([base, base + 0.1])[:, None], labels).position == 0


def test_every_class_counts_the_same() -> None:
    labels = np.repeat([0, 1], [30, 2])
    worse_for_the_rare = np.where(labels == 0, 0.9, 1.5)
    assert choose(np.stack([np.ones(32), worse_for_the_rare])[:, None], labels).position == 0


def test_no_reader_may_lose() -> None:
    labels, base = np.repeat([0, 1], 20), np.ones((2, 40))
    lopsided = np.stack([base[0] - 0.9, base[1] + 0.01])
    modest = np.stack([base[0] - 0.1, base[1]])
    assert choose(np.stack([base, lopsided]), labels).position == 0
    chosen = choose(np.stack([base, lopsided, modest]), labels)
    assert chosen.position == 2
    assert chosen.gain == pytest.approx(0.05)


def test_no_reader_may_make_more_errors() -> None:
    labels = np.repeat([0, 1], 20)
    losses = np.stack([np.ones((1, 40)), np.full((1, 40), 0.5)])
    wrong = np.zeros(losses.shape, dtype=bool)
    wrong[1, 0, 3] = True
    assert choose(losses, labels, wrong).position == 0
    wrong[0, 0, 30] = True
    assert choose(losses, labels, wrong).position == 1


def test_standard_error_is_that_of_a_stratified_mean() -> None:
    labels = np.repeat([0, 1], [30, 10])
    gains = np.random.default_rng(0).normal(1.0, 0.2, 40)
    got = choose(np.stack([np.zeros(40), -gains])[:, None], labels)
    parts = [gains[labels == k] for k in (0, 1)]
    assert got.gain == pytest.approx(np.mean([p.mean() for p in parts]))
    assert got.standard_error == pytest.approx(np.sqrt(sum(p.var(ddof=1) / len(p) for p in parts)) / 2)


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
    good = judge.judge(0, profiles)
    bad = judge.judge(25, np.random.default_rng(1).normal(size=(3, 8)))
    assert good < bad
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
    assert judge.judge(0, (np.eye(3, 8) * 2)[:2]) > 5
