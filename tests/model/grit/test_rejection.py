"""Rejection: what it promises holds, and it never promises more than the anchors give."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from anndata import AnnData

from cellsmith._errors import DataWarning, SetupError
from cellsmith.model import GRIT
from cellsmith.model.grit.anchors import NONE, OUTSIDE
from cellsmith.model.grit.rejection import graded, usable_anchors, with_anchors, without_anchors


def population(n: int = 4000, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are neither calibrated nor useless, and the truth; 3 % of the cells are of no class."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, n)
    logits = 3.0 * np.eye(5)[truth] + 1.0 * rng.normal(size=(n, 5))
    p = np.exp(0.5 * logits)
    truth[rng.random(n) < 0.03] = OUTSIDE
    return p / p.sum(axis=1, keepdims=True), truth


def draw(truth: np.ndarray, m: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    anchors = np.random.default_rng(seed).choice(truth.size, m, replace=False)
    codes = np.full(truth.size, NONE)
    codes[anchors] = truth[anchors]
    return codes, anchors


@pytest.mark.parametrize("m", [100, 300])
def test_selective_guarantee_holds(m: int) -> None:
    p, truth = population()
    wrong = p.argmax(axis=1) != truth
    failed = accepted = 0
    for seed in range(150):
        found = with_anchors(p, *draw(truth, m, seed), target="selective", level=0.1, delta=0.1)
        taken = ~found.rejected
        accepted += taken.mean()
        failed += bool(taken.any()) and wrong[taken].mean() > 0.1
    assert failed <= 15 + 3 * np.sqrt(150 * 0.1 * 0.9)
    assert accepted / 150 > 0.1


def test_accepted_wrong_guarantee_holds() -> None:
    p, truth = population()
    wrong = p.argmax(axis=1) != truth
    share = [
        (wrong & ~with_anchors(p, *draw(truth, 100, s), target="accepted_wrong", level=0.1).rejected).mean()
        for s in range(150)
    ]
    assert np.mean(share) <= 0.1 + 3 * np.std(share) / np.sqrt(150)
    assert np.mean(share) > 0.05


def test_coverage_guarantee_holds() -> None:
    p, truth = population()
    inside, hits = truth >= 0, []
    for seed in range(150):
        codes, anchors = draw(truth, 100, seed)
        found = with_anchors(p, codes, anchors, target="coverage", level=0.1)
        sets = 1 - p <= found.record["threshold"]
        hits.append(sets[np.flatnonzero(inside), truth[inside]].sum() / truth.size)
        assert set(found.reason[sets.sum(axis=1) == 0]) <= {"novel"}
        assert set(found.reason[sets.sum(axis=1) > 1]) <= {"ambiguous"}
        assert (found.rejected == (sets.sum(axis=1) != 1)).all()
    assert np.mean(hits) >= 0.9 - 3 * np.std(hits) / np.sqrt(150)


def test_a_label_outside_the_classes_counts_as_wrong() -> None:
    p, truth = population()
    known = np.where(truth == OUTSIDE, p.argmax(axis=1), truth)
    codes, anchors = draw(truth, 400, 0)
    blind = codes.copy()
    blind[anchors] = known[anchors]
    honest, naive = (with_anchors(p, c, anchors, target="accepted_wrong", level=0.03) for c in (codes, blind))
    assert honest.record["outside"] == (truth[anchors] == OUTSIDE).sum() > 0
    assert honest.record["threshold"] > naive.record["threshold"]


def test_too_few_anchors_reject_everything_and_say_how_many_are_needed() -> None:
    p, truth = population(200)
    for target, needed in (("selective", 45), ("coverage", 19), ("accepted_wrong", 19)):
        found = with_anchors(p, *draw(truth, 10, 0), target=target, level=0.05)
        assert found.rejected.all()
        assert f"10 of {needed}" in found.record["reason"]
        assert "nothing can be accepted" in found.note


def test_groups_are_calibrated_apart() -> None:
    p, truth = population(3000)
    groups = np.array(["a", "b", "c"], dtype=object)[np.arange(3000) % 3]
    q = p.copy()
    bad = groups == "b"
    q[bad] = np.roll(p[bad], 1, axis=1)  # confident, and wrong
    codes, anchors = draw(truth, 600, 0)
    anchors = anchors[groups[anchors] != "c"]
    found = with_anchors(q, codes, anchors, level=0.1, groups=groups)
    assert found.rejected[bad].all()
    assert found.rejected[groups == "c"].all()
    assert found.rejected[groups == "a"].mean() < 0.9
    assert "c: 0 of 22" in found.record["reason"]
    assert list(found.record["groups"]["name"]) == ["a", "b", "c"]


def test_without_anchors() -> None:
    p = np.array([[0.9, 0.1, 0.0], [0.45, 0.4, 0.15], [0.5, 0.2, 0.3], [np.nan] * 3, [0.4, 0.1, 0.1]])
    found = without_anchors(p, threshold=0.5)
    assert list(found.rejected) == [False, True, False, True, True]
    assert list(found.reason) == ["", "ambiguous", "", "", "novel"]
    assert "none" in found.record["guarantee"]
    assert without_anchors(p, quantile=0.5).rejected.sum() == 3
    assert not without_anchors(p[:3], quantile=0.0).rejected.any()
    assert without_anchors(p[:3], quantile=1.0).rejected.all()
    assert list(without_anchors(p[:3], target="entropy", threshold=0.5).rejected) == [False, True, True]
    for wrong in ({}, {"threshold": 0.5, "quantile": 0.5}, {"quantile": 2.0}):
        with pytest.raises(SetupError, match="quantile="):
            without_anchors(p, **wrong)


def test_independent_probabilities_are_not_normalised() -> None:
    small = np.array([[0.05, 0.0], [0.9, 0.1]])
    assert list(without_anchors(graded(small, "ovr"), threshold=0.5).rejected) == [True, False]
    assert graded(small, "prob")[0, 0] == 1
    np.testing.assert_allclose(graded(np.log(np.array([[0.2, 0.8]])), "raw"), [[0.2, 0.8]])


def test_clamped_anchors_never_calibrate() -> None:
    codes = np.array([0, 1, OUTSIDE, NONE])
    assert list(usable_anchors(codes, np.array([0]))) == [1, 2]
    with pytest.raises(SetupError, match=r"3 anchors, 3 of them clamped"):
        usable_anchors(codes, np.array([0, 1, 2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"target": "selectiv"}, "Did you mean 'selective'"), ({"level": 0.0}, "level=0"), ({"delta": 1.0}, "delta=1")],
)
def test_options_that_are_refused(options: dict[str, object], message: str) -> None:
    p, truth = population(200)
    with pytest.raises(SetupError, match=message):
        with_anchors(p, *draw(truth, 100, 0), **options)


def test_model_rejects_with_its_own_anchors(cells: Callable[..., AnnData], fit: Callable[..., GRIT]) -> None:
    adata = cells(600)
    adata.obs["anchor"] = np.where(np.arange(600) % 2, adata.obs["truth"], "unknown")
    model = fit(adata, setup={"labels_key": "anchor"}, anchors="calibrate")
    found = model.reject(level=0.1)
    right = (model.predict() == adata.obs["truth"]).to_numpy()
    assert right[~found.rejected].mean() >= 0.9
    assert found.record["m"] == 300
    assert model.reject(level=0.1, by="batch").record["m"] == 300
    with pytest.raises(SetupError, match="by='bach'"):
        model.reject(by="bach")
    with pytest.warns(DataWarning, match="nothing can be accepted"):
        assert model.reject(level=0.001).rejected.all()


def test_model_without_usable_anchors(cells: Callable[..., AnnData], fit: Callable[..., GRIT]) -> None:
    with pytest.raises(SetupError, match="No anchors are registered"):
        fit(cells()).reject()
    with pytest.raises(SetupError, match="clamped"):
        fit(cells(), setup={"labels_key": "truth"}, anchors="clamp").reject()
