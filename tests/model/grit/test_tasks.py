"""What refinement is worth, on real cells with known faults of the scores; a few seeds of the benchmark's 20."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from cellsmith.math import conformal, graph
from cellsmith.model.grit.equations import confidence_fidelity, normalise_rows
from cellsmith.model.grit.solving import Problem, label_codes, refine

Task = Callable[[int], tuple[np.ndarray, np.ndarray]]
SEEDS = range(4)


def refined(pbmc: SimpleNamespace, p: np.ndarray, weight: float = 5.0, kind: str = "sym", **more: object) -> np.ndarray:
    options = {"fidelity": np.ones(700), "clamped": np.full(700, -1), **more}
    return refine(Problem(pbmc.weights, p, laplacian=kind, smoothness_weight=weight, **options)).scores


def vote(pbmc: SimpleNamespace, labels: np.ndarray) -> np.ndarray:
    """Majority of every cluster of an over-clustering, the smoothing of CellTypist."""
    clusters, out = graph.leiden(pbmc.weights, resolution=5, seed=0), labels.copy()
    for c in np.unique(clusters):
        out[clusters == c] = np.bincount(labels[clusters == c], minlength=10).argmax()
    return out


def score(pbmc: SimpleNamespace, labels: np.ndarray, cells: np.ndarray) -> np.ndarray:
    from sklearn.metrics import f1_score

    found, truth = labels[cells], pbmc.truth[cells]
    return np.array([(found == truth).mean(), f1_score(truth, found, average="macro", zero_division=0)])


def mean_scores(pbmc: SimpleNamespace, task: Task) -> dict[str, np.ndarray]:
    rows: dict[str, list[np.ndarray]] = {"raw": [], "vote": [], "spread": [], "grit": []}
    for seed in SEEDS:
        p, cells = task(seed)
        raw = p.argmax(axis=1)
        found = {
            "raw": raw,
            "vote": vote(pbmc, raw),
            # label spreading with a = 0.9 is GRIT on one-hot scores with lambda = 9
            "spread": label_codes(refined(pbmc, np.eye(10)[raw], 9.0)),
            "grit": label_codes(refined(pbmc, p)),
        }
        for name, labels in found.items():
            rows[name].append(score(pbmc, labels, cells))
    return {name: np.mean(values, axis=0) for name, values in rows.items()}


def test_reference_graph(pbmc: SimpleNamespace) -> None:
    assert pbmc.weights.nnz / 700 == pytest.approx(22.7, abs=0.05)
    assert pbmc.weights.sum() / 700 == pytest.approx(6.93, abs=0.01)


def test_easy_task(pbmc: SimpleNamespace, easy: Task) -> None:
    """Independent errors: far above raw, and a plain vote is as good."""
    found = mean_scores(pbmc, easy)
    assert found["grit"][0] >= found["raw"][0] + 0.15
    assert found["grit"][1] >= found["raw"][1] + 0.10
    assert found["grit"][0] >= found["vote"][0] - 0.01


def test_coherent_task(pbmc: SimpleNamespace, coherent: Task) -> None:
    """An error that is confident and local outvotes a small cluster, but not the graph around it."""
    found = mean_scores(pbmc, coherent)
    assert found["grit"][0] >= found["vote"][0] + 0.05
    assert found["grit"][0] >= found["raw"][0] + 0.20
    assert found["grit"][0] >= found["spread"][0] + 0.03
    assert found["grit"] == pytest.approx([0.702, 0.664], abs=0.02)


def test_weak_settings_of_an_earlier_implementation(pbmc: SimpleNamespace, coherent: Task) -> None:
    gains = []
    for seed in SEEDS:
        p, cells = coherent(seed)
        weak = label_codes(refined(pbmc, np.log(p), 0.1, "comb"))
        gains.append(score(pbmc, label_codes(refined(pbmc, p)), cells)[0] - score(pbmc, weak, cells)[0])
    assert np.mean(gains) > 0.05


def test_confidence_weights_help_noise_and_hurt_coherent_errors(
    pbmc: SimpleNamespace, easy: Task, coherent: Task
) -> None:
    gain = {}
    for name, task in (("easy", easy), ("coherent", coherent)):
        pairs = []
        for seed in SEEDS:
            p, cells = task(seed)
            weighted = refined(pbmc, p, fidelity=confidence_fidelity(p)[0])
            pairs.append(
                score(pbmc, label_codes(weighted), cells)[0] - score(pbmc, label_codes(refined(pbmc, p)), cells)[0]
            )
        gain[name] = np.mean(pairs)
    assert gain["easy"] > 0 > gain["coherent"]


def calibration_error(p: np.ndarray, truth: np.ndarray) -> float:
    sure, right = p.max(axis=1), p.argmax(axis=1) == truth
    bins = np.minimum((sure * 10).astype(int), 9)
    return float(
        sum(abs(sure[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins))
    )


def test_a_temperature_from_fifty_anchors_calibrates(pbmc: SimpleNamespace, easy: Task) -> None:
    before, after = [], []
    for seed in SEEDS:
        p, cells = easy(seed)
        q = normalise_rows(refined(pbmc, p, 10.0))
        anchors = np.random.default_rng(seed).choice(cells, 50, replace=False)
        t = conformal.fit_temperature(q[anchors], pbmc.truth[anchors])
        rest = np.setdiff1d(cells, anchors)
        before.append(calibration_error(q[rest], pbmc.truth[rest]))
        after.append(calibration_error(conformal.apply_temperature(q[rest], t), pbmc.truth[rest]))
    assert np.mean(before) > 0.25  # smoothing leaves scores under-confident
    assert np.mean(after) <= 0.15


def test_an_unknown_type_stands_out_more_after_refinement(pbmc: SimpleNamespace) -> None:
    """A type is held out of the classifier; its cells should have low confidence."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    found = []
    for held_out in range(10):
        for seed in range(2):
            rng = np.random.default_rng(seed)
            known = [c for c in range(10) if c != held_out]
            train = np.concatenate([rng.choice(np.flatnonzero(pbmc.truth == c), 3, replace=False) for c in known])
            genes = rng.choice(pbmc.x.shape[1], 60, replace=False)
            model = LogisticRegression(C=0.5, max_iter=2000).fit(pbmc.x[train][:, genes], pbmc.truth[train])
            p = model.predict_proba(pbmc.x[:, genes])
            rest = np.setdiff1d(np.arange(700), train)
            new = pbmc.truth[rest] == held_out
            q = normalise_rows(refined(pbmc, p, 10.0))
            found.append([roc_auc_score(new, -x[rest].max(axis=1)) for x in (p, q)])
    raw, smooth = np.mean(found, axis=0)
    assert smooth >= raw + 0.10
