"""Rejection: what it promises holds, and it never promises more than the anchors give."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from anndata import AnnData

from cellsmith import tl
from cellsmith._errors import DataWarning, SetupError
from cellsmith.math.conformal.temperature import BOUNDS
from cellsmith.model import GRIT
from cellsmith.model.grit.anchors import NONE, OUTSIDE
from cellsmith.model.grit.rejection import usable_anchors, with_anchors, without_anchors
from cellsmith.model.grit.summary import shares


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
    for target, needed in (("selective", 50), ("coverage", 19), ("accepted_wrong", 19)):
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
    assert "c: 0 of 24" in found.record["reason"]
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


def test_independent_probabilities_stay_small() -> None:
    small = np.array([[0.05, 0.0], [0.9, 0.1], [0.9, 0.6]])
    rows = shares(small, "ovr")
    np.testing.assert_allclose(rows, [[0.05, 0.0], [0.9, 0.1], [0.6, 0.4]])
    assert list(without_anchors(rows, threshold=0.5).rejected) == [True, False, False]
    np.testing.assert_allclose(shares(small, "ovr", 1.0), rows)
    sharp = shares(small, "ovr", 0.5)  # what is missing takes part: 0.05^2 / (0.05^2 + 0.95^2)
    np.testing.assert_allclose(sharp[0], [0.0025 / 0.905, 0], atol=1e-12)
    assert shares(small, "prob")[0, 0] == 1
    np.testing.assert_allclose(shares(np.log(np.array([[0.2, 0.8]])), "raw"), [[0.2, 0.8]])


def test_clamped_anchors_never_calibrate() -> None:
    codes = np.array([0, 1, OUTSIDE, NONE])
    assert list(usable_anchors(codes, np.array([0]))) == [1, 2]
    with pytest.raises(SetupError, match=r"3 anchors, 3 of them clamped.*or spent"):
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
    assert found.record["m"] == 250  # 50 of the 300 fitted the temperature
    assert model.reject(level=0.1, by="batch").record["m"] == 250
    assert fit(adata, setup={"labels_key": "anchor"}, anchors="calibrate", calibrate="none").reject().record["m"] == 300
    with pytest.raises(SetupError, match="by='bach'"):
        model.reject(by="bach")
    with pytest.warns(DataWarning, match="nothing can be accepted"):
        assert model.reject(level=0.001).rejected.all()


def test_model_without_usable_anchors(cells: Callable[..., AnnData], fit: Callable[..., GRIT]) -> None:
    with pytest.raises(SetupError, match="No anchors are registered"):
        fit(cells()).reject()
    with pytest.raises(SetupError, match="clamped"):
        fit(cells(), setup={"labels_key": "truth"}, anchors="clamp").reject()


def with_known(adata: AnnData, every: int) -> AnnData:
    adata.obs["anchor"] = np.where(np.arange(adata.n_obs) % every, "unknown", adata.obs["truth"])
    return adata


@pytest.mark.parametrize(
    ("anchors", "noise", "every", "target"),
    [
        ("calibrate", 2.0, 4, "selective"),
        ("calibrate", 2.0, 4, "accepted_wrong"),
        ("split", 3.5, 8, "selective"),
    ],
)
def test_one_confidence_for_reading_and_for_rejecting(
    cells: Callable[..., AnnData], anchors: str, noise: float, every: int, target: str
) -> None:
    """The threshold of a rejection is one of the confidences in ``.obs``, and the other way round."""
    adata = with_known(cells(800, noise=noise), every)
    tl.grit(adata, "scores", labels_key="anchor", anchors=anchors)
    assert adata.uns["grit"]["calibrated"]
    assert adata.uns["grit"]["calibration"]["temperature"] != 1
    sure = adata.obs["grit_confidence"].to_numpy()
    tl.reject(adata, target=target, level=0.1)
    rejected = adata.obs["grit_rejected"].to_numpy()
    threshold = adata.uns["grit"]["rejection"]["threshold"]
    assert 0 < rejected.mean() < 1
    np.testing.assert_array_equal(rejected, ~(sure.astype(float) >= threshold))
    tl.reject(adata, threshold=threshold)
    np.testing.assert_array_equal(adata.obs["grit_rejected"], rejected)
    limit = float(adata.obs["grit_entropy"].iloc[7])
    tl.reject(adata, target="entropy", threshold=limit)
    np.testing.assert_array_equal(adata.obs["grit_rejected"], adata.obs["grit_entropy"] > limit)


def test_anchors_of_the_temperature_do_not_calibrate(cells: Callable[..., AnnData]) -> None:
    adata = with_known(cells(600), 2)
    for anchors, fitted in (("split", 150), ("calibrate", 50)):
        tl.grit(adata, "scores", labels_key="anchor", anchors=anchors)
        found = adata.uns["grit"]["calibration"]
        assert len(found["fitted"]) == fitted
        assert np.intersect1d(found["fitted"], found["anchors"]).size == 0
        tl.reject(adata, level=0.1)
        assert adata.uns["grit"]["rejection"]["m"] == len(found["anchors"]) == 300 - fitted


def test_the_temperature_of_held_anchors_is_that_of_cells_that_are_not_held(cells: Callable[..., AnnData]) -> None:
    adata = with_known(cells(800, noise=3.5), 8)
    tl.grit(adata, "scores", labels_key="anchor", anchors="split")
    found = adata.uns["grit"]["calibration"]
    # held cells as they are would be sure of their labels, and T at its lower bound
    assert found["temperature"] > 2 * BOUNDS[0]
    free = np.setdiff1d(np.arange(800), found["clamped"])
    right = (adata.obs["grit"] == adata.obs["truth"]).to_numpy()[free]
    assert adata.obs["grit_confidence"].to_numpy()[free].mean() == pytest.approx(right.mean(), abs=0.1)
