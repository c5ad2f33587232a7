"""Scores of labels and probabilities against scikit-learn, to 1e-12."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from cellsmith import metrics
from cellsmith.math.assign import adjusted_rand
from cellsmith.metrics import _annotation_scores as scores

EXACT = {"rel": 0, "abs": 1e-12}
CLASSES = np.array(list("abcde"), dtype=object)


@pytest.fixture(scope="module")
def frame() -> ad.AnnData:
    """Fixed cells: class 'e' is never predicted, class 'd' never true, one row is certain and wrong."""
    rng = np.random.default_rng(0)
    n = 500
    y = rng.choice([0, 1, 2, 4], n, p=[0.5, 0.3, 0.15, 0.05])
    p = rng.dirichlet(np.ones(5), n) + 0.8 * np.eye(5)[np.where(y == 4, 3, y)]
    p[:, 4] *= 0.01
    p[0] = np.eye(5)[(y[0] + 1) % 4]
    p /= p.sum(axis=1, keepdims=True)
    obs = pd.DataFrame({"truth": CLASSES[y], "k": CLASSES[p.argmax(axis=1)]}, index=[f"c{i}" for i in range(n)])
    obs["k_raw"] = rng.choice(CLASSES, n)
    return ad.AnnData(obs=obs, obsm={"k_proba": p}, uns={"k": {"classes": CLASSES}})


@pytest.fixture(scope="module")
def report(frame):
    return metrics.annotation_report(frame, key="k", labels_key="truth", n_boot=0)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        ("accuracy", sk.accuracy_score),
        ("balanced_accuracy", sk.balanced_accuracy_score),
        ("macro_f1", lambda y, q: sk.f1_score(y, q, average="macro", zero_division=0)),
        ("weighted_f1", lambda y, q: sk.f1_score(y, q, average="weighted", zero_division=0)),
    ],
)
def test_label_scores(frame, report, metric, reference):
    row = report.table.set_index("metric").loc[metric]
    assert row["value"] == pytest.approx(reference(frame.obs["truth"], frame.obs["k"]), **EXACT)
    assert row["raw"] == pytest.approx(reference(frame.obs["truth"], frame.obs["k_raw"]), **EXACT)


def test_per_class_and_confusion(frame, report):
    truth, predicted = frame.obs["truth"], frame.obs["k"]
    assert report.per_class["label"].tolist() == list(CLASSES)
    expected = sk.precision_recall_fscore_support(truth, predicted, labels=CLASSES, zero_division=0)
    for column, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(report.per_class[column], values, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(report.confusion, sk.confusion_matrix(truth, predicted, labels=CLASSES))


def test_probability_scores(frame, report):
    truth, p = frame.obs["truth"], frame.obsm["k_proba"]
    assert report["nll"] == pytest.approx(sk.log_loss(truth, p, labels=CLASSES), **EXACT)
    one_hot = truth.to_numpy()[:, None] == CLASSES
    assert report["brier"] == pytest.approx(((p - one_hot) ** 2).sum(axis=1).mean(), **EXACT)
    each = [sk.brier_score_loss(one_hot[:, c].astype(int), p[:, c]) for c in range(5)]
    assert report["brier"] == pytest.approx(sum(each), **EXACT)


def test_confidence_scores(frame, report):
    right = (frame.obs["truth"] == frame.obs["k"]).to_numpy()
    confidence = frame.obsm["k_proba"].max(axis=1)
    assert report["rejection_auroc"] == pytest.approx(sk.roc_auc_score(~right, -confidence), **EXACT)
    ece = 0.0
    for low in np.arange(10) / 10:
        inside = (confidence > low) & (confidence <= low + 0.1)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert report["ece"] == pytest.approx(ece, **EXACT)
    risks = [1 - right[np.argsort(-confidence)[:k]].mean() for k in range(1, len(right) + 1)]
    assert report["aurc"] == pytest.approx(np.mean(risks), **EXACT)


def test_ties_of_confidence_count_as_their_mean_over_orders():
    confidence, right = np.round(np.random.default_rng(0).random(60), 1), np.random.default_rng(1).random(60) < 0.6
    rng, areas = np.random.default_rng(2), []
    for _ in range(4_000):
        order = rng.permutation(60)
        order = order[np.argsort(-confidence[order], kind="stable")]
        areas.append((np.cumsum(~right[order]) / np.arange(1, 61)).mean())
    found, curve = scores.risk_coverage(confidence, right)
    assert found == pytest.approx(np.mean(areas), abs=4 * np.std(areas) / np.sqrt(4_000))
    assert curve["risk"][-1] == pytest.approx(1 - right.mean())
    assert scores.auroc(-confidence, ~right) == pytest.approx(sk.roc_auc_score(~right, -confidence), **EXACT)


@pytest.mark.parametrize(("n", "first", "second"), [(1, 1, 1), (2, 2, 1), (50, 5, 3), (1_000, 1, 1), (5_000, 40, 7)])
def test_adjusted_rand(n, first, second):
    rng = np.random.default_rng(n)
    a = rng.integers(0, first, n)
    b = np.where(rng.random(n) < 0.4, rng.integers(0, second, n), a % second)
    assert adjusted_rand(a, b) == pytest.approx(sk.adjusted_rand_score(a, b), **EXACT)
    assert adjusted_rand(a.astype(str), b) == adjusted_rand(b, a)
    assert metrics.ari(a, b) == pytest.approx(adjusted_rand(a, b), **EXACT)
    assert metrics.nmi(a, b) == pytest.approx(sk.normalized_mutual_info_score(a, b), **EXACT)


def test_adjusted_rand_of_a_million_cells_does_not_overflow():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, 1_000_000), rng.integers(0, 2, 1_000_000)
    assert abs(adjusted_rand(a, b)) < 1e-4
    assert adjusted_rand(a, 1 - a) == 1.0
