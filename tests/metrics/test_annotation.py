"""The report on an annotation: what it reads, what it refuses, what its intervals promise."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cellsmith import metrics
from cellsmith._errors import SetupError
from cellsmith.math.conformal import apply_temperature
from cellsmith.math.ontology import Ontology
from cellsmith.metrics import _annotation_scores as scores

CLASSES = np.array(["T", "B", "NK", "Mono"], dtype=object)
LABELS = {"key": "grit", "labels_key": "truth"}


def annotated(n: int = 600, *, seed: int = 0) -> ad.AnnData:
    """What tl.grit writes, with a fifth type that is no class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 5, n)
    logits = rng.normal(size=(n, 4)) + 2.0 * np.eye(5, 4)[y]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    raw = np.where(rng.random(n) < 0.3, rng.integers(0, 4, n), p.argmax(axis=1))
    obs = pd.DataFrame(index=[f"c{i}" for i in range(n)])
    obs["truth"] = pd.Categorical(np.append(CLASSES, "DC")[y])
    obs["grit"] = pd.Categorical(CLASSES[p.argmax(axis=1)], CLASSES)
    obs["grit_raw"] = pd.Categorical(CLASSES[raw], CLASSES)
    obs["grit_confidence"], obs["grit_rejected"] = p.max(axis=1), p.max(axis=1) < 0.5
    obs["batch"] = rng.choice(["one", "two"], n)
    return ad.AnnData(obs=obs, obsm={"grit_proba": p}, uns={"grit": {"classes": CLASSES}})


@pytest.fixture
def adata() -> ad.AnnData:
    return annotated()


def snapshot(adata: ad.AnnData):
    return adata.obs.copy(), adata.obsm["grit_proba"].copy(), sorted(adata.uns["grit"])


def test_report_holds_everything_and_writes_nothing(adata):
    obs, proba, block = snapshot(adata)
    report = metrics.annotation_report(adata, **LABELS, by="batch")
    pd.testing.assert_frame_equal(adata.obs, obs)
    np.testing.assert_array_equal(adata.obsm["grit_proba"], proba)
    assert sorted(adata.uns["grit"]) == block
    assert (list(adata.obsm), list(adata.uns)) == (["grit_proba"], ["grit"])
    filled = report.table[report.table["value"].notna()]["metric"].tolist()
    assert set(report.table["metric"]) - set(filled) == {"hierarchical_f1"}
    assert report["accuracy"] > 0.5 > report["ece"] > 0
    assert report.per_class["support"].sum() == report.confusion.to_numpy().sum() == 600
    assert report.per_group["n_cells"].sum() == 600
    assert report.settings["n_outside"] == (adata.obs["truth"] == "DC").sum() > 0
    with pytest.raises(FrozenInstanceError):
        report.table = None
    with pytest.raises(KeyError):
        report["acuracy"]


def test_text_shows_value_interval_and_what_refinement_changed(adata):
    text = str(metrics.annotation_report(adata, **LABELS))
    assert text.splitlines()[0].startswith("Annotation 'grit' against 'truth': 600 cells; ")
    row = next(line for line in text.splitlines() if line.strip().startswith("accuracy"))
    assert row.count(" to ") == 2
    assert "hierarchical_f1" not in text
    plain = metrics.annotation_report(adata, key="batch", labels_key="truth", n_boot=0)
    assert " to " not in repr(plain)
    assert "delta" not in repr(plain)
    assert "<table" in plain._repr_html_()


def test_delta_is_refined_minus_raw_on_the_same_resamples(adata):
    table = metrics.annotation_report(adata, **LABELS).table.set_index("metric")
    raw = metrics.annotation_report(adata, key="grit_raw", labels_key="truth", n_boot=0).table.set_index("metric")
    for name in scores.LABEL_SCORES:
        row = table.loc[name]
        assert row["raw"] == pytest.approx(raw.loc[name, "value"], abs=1e-12)
        assert row["delta"] == pytest.approx(row["value"] - row["raw"], abs=1e-12)
        assert row["low"] < row["value"] < row["high"]
        assert row["delta_low"] < row["delta"] < row["delta_high"]
    adata.obs["grit_raw"] = adata.obs["grit"]
    same = metrics.annotation_report(adata, **LABELS).table.set_index("metric").loc["accuracy"]
    assert same["delta"] == same["delta_low"] == same["delta_high"] == 0.0  # paired: no noise is left
    other = metrics.annotation_report(adata, **LABELS, raw_key="batch").table.set_index("metric")
    assert other.loc["accuracy", "raw"] == 0.0


def test_a_plain_column_is_enough(adata):
    plain = ad.AnnData(obs=adata.obs[["truth", "grit"]].rename(columns={"grit": "mine"}))
    report = metrics.annotation_report(plain, key="mine", labels_key="truth")
    full = metrics.annotation_report(adata, **LABELS)
    known = report.table[report.table["value"].notna()]["metric"].tolist()
    assert known == list(scores.LABEL_SCORES)
    assert [report[m] for m in known] == [full[m] for m in known]
    assert report.table["raw"].isna().all()
    assert report.per_group.empty
    assert report.curves == {}


def test_missing_truth_is_left_out_and_missing_predictions_are_wrong(adata):
    adata.obs["truth"] = adata.obs["truth"].astype(object)
    adata.obs.iloc[:100, adata.obs.columns.get_loc("truth")] = None
    adata.obs.iloc[100:150, adata.obs.columns.get_loc("grit")] = np.nan
    adata.obs.iloc[100:150, adata.obs.columns.get_loc("grit_confidence")] = np.nan
    adata.obsm["grit_proba"][100:150] = np.nan
    report = metrics.annotation_report(adata, **LABELS)
    right = adata.obs["truth"].astype(str) == adata.obs["grit"].astype(str)
    assert report["accuracy"] == pytest.approx(right[100:].mean(), abs=1e-12)
    s = report.settings
    assert (s["n_cells"], s["n_unlabelled"], s["n_without_label"], s["n_probabilities"]) == (500, 100, 50, 450)
    assert report.confusion["(no label)"].sum() == 50
    assert all(math.isfinite(report[m]) for m in ("ece", "brier", "nll", "aurc", "rejection_auroc"))


def test_coarse_truth(adata):
    coarse = {"T": "lymphoid", "B": "lymphoid", "NK": "lymphoid"}
    adata.obs["coarse"] = [coarse.get(t, t) for t in adata.obs["truth"]]
    report = metrics.annotation_report(adata, key="grit", labels_key="coarse", label_map=coarse)
    mapped = adata.obs["grit"].astype(str).replace(coarse)
    assert report["accuracy"] == (mapped == adata.obs["coarse"]).mean()
    p = adata.obsm["grit_proba"]
    merged = np.column_stack([p[:, :3].sum(axis=1), p[:, 3]])
    truth = pd.Index(["lymphoid", "Mono"]).get_indexer(adata.obs["coarse"])
    assert report["brier"] == pytest.approx(scores.brier(merged, truth), abs=1e-12)
    own = np.where(mapped == "lymphoid", merged[:, 0], merged[:, 1])
    expected, _ = scores.reliability(own, (mapped == adata.obs["coarse"]).to_numpy())
    assert report["ece"] == pytest.approx(expected, abs=1e-12)
    with pytest.raises(SetupError, match=r"`label_map` renames 'Tt', which is no class.*Valid: 'B'"):
        metrics.annotation_report(adata, **LABELS, label_map={"Tt": "T"})


def test_probabilities_are_read_at_the_fitted_temperature(adata):
    adata.uns["grit"]["calibration"] = {"temperature": 0.5}
    truth = pd.Index(CLASSES).get_indexer(adata.obs["truth"])
    expected = scores.brier(apply_temperature(adata.obsm["grit_proba"], 0.5), truth)
    assert metrics.annotation_report(adata, **LABELS)["brier"] == pytest.approx(expected, abs=1e-12)
    adata.uns["grit"]["calibration"] = {"temperature": float("nan")}
    assert metrics.annotation_report(adata, **LABELS)["brier"] == pytest.approx(
        scores.brier(adata.obsm["grit_proba"], truth), abs=1e-12
    )


def test_rejection_is_scored(adata):
    report = metrics.annotation_report(adata, **LABELS)
    accepted = ~adata.obs["grit_rejected"].to_numpy()
    right = (adata.obs["truth"].astype(str) == adata.obs["grit"].astype(str)).to_numpy()
    assert report["accepted_share"] == pytest.approx(accepted.mean())
    assert report["accepted_accuracy"] == pytest.approx(right[accepted].mean())
    assert report["accepted_wrong"] == pytest.approx((accepted & ~right).mean())
    assert report["novel_auroc"] > 0.6
    adata.obs["grit_rejected"] = True
    none = metrics.annotation_report(adata, **LABELS)
    assert (none["accepted_share"], none["accepted_wrong"]) == (0.0, 0.0)
    assert math.isnan(none["accepted_accuracy"])


def test_groups_are_scored_on_their_own_cells(adata):
    report = metrics.annotation_report(adata, **LABELS, by="batch")
    part = metrics.annotation_report(adata[adata.obs["batch"] == "two"], **LABELS)
    row = report.per_group.set_index("group").loc["two"]
    for name in (*scores.LABEL_SCORES, "ece", "accepted_share"):
        assert row[name] == pytest.approx(part[name], abs=1e-12)
    assert row["delta_accuracy"] == pytest.approx(part.table.set_index("metric").loc["accuracy", "delta"], abs=1e-12)


def test_scores_on_another_scale_leave_out_what_needs_probabilities(adata):
    adata.obsm["grit_proba"] = np.log(adata.obsm["grit_proba"])
    adata.obs["grit_confidence"] = 10 * adata.obs["grit_confidence"] - 20
    report = metrics.annotation_report(adata, **LABELS)
    assert all(math.isnan(report[m]) for m in ("ece", "brier", "nll"))
    fresh = metrics.annotation_report(annotated(), **LABELS)
    assert report["aurc"] == pytest.approx(fresh["aurc"], abs=1e-12)  # ranks are what counts


def test_same_seed_same_intervals(adata):
    a, b, c = (metrics.annotation_report(adata, **LABELS, rng=r).table for r in (0, 0, 1))
    pd.testing.assert_frame_equal(a, b)
    assert not a["low"].equals(c["low"])
    pd.testing.assert_series_equal(a["value"], c["value"])


def test_ontology_forgives_near_misses():
    ontology = Ontology(
        "", "", {"R": "cell", "L": "lymphocyte", "T": "T", "B": "B", "M": "Mono"},
        {"L": ("R",), "T": ("L",), "B": ("L",), "M": ("R",)},
    )  # fmt: skip
    obs = pd.DataFrame({"truth": ["T", "T", "odd"], "near": ["T", "B", "odd"], "far": ["T", "Mono", "new"]})
    adata = ad.AnnData(obs=obs.set_index(np.array(["a", "b", "c"])))
    near = metrics.annotation_report(adata, key="near", labels_key="truth", raw_key="far", ontology=ontology)
    # ancestors without the root: {L, T} twice and {odd} against {L, T}, {L, B}, {odd}
    assert near["hierarchical_f1"] == pytest.approx(2 * 4 / 10)
    row = near.table.set_index("metric").loc["hierarchical_f1"]
    assert row["raw"] == pytest.approx(2 * 2 / 9)  # {L, T}, {M}, {new}
    with pytest.raises(SetupError, match="type str; expected an Ontology"):
        metrics.annotation_report(adata, key="near", labels_key="truth", ontology="cl.obo")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "grid"}, r"`.obs\['grid'\]` \(key\) does not exist. Did you mean 'grit'"),
        ({"labels_key": "thruth"}, "Did you mean 'truth'"),
        ({"raw_key": "grit_row"}, "Did you mean 'grit_raw'"),
        ({"by": "bach"}, "Did you mean 'batch'"),
        ({"n_boot": -1}, "`n_boot` is -1"),
    ],
)
def test_wrong_arguments_say_what_to_type(adata, change, message):
    with pytest.raises(SetupError, match=message):
        metrics.annotation_report(adata, **(LABELS | change))


def test_probabilities_without_names_or_with_wrong_ones(adata):
    adata.uns["grit"] = {"classes": CLASSES[:3]}
    with pytest.raises(SetupError, match=r"4 columns.*3 names"):
        metrics.annotation_report(adata, **LABELS)
    adata.uns.clear()
    report = metrics.annotation_report(adata, **LABELS)  # the categories of .obs['grit'] name the columns
    assert report["nll"] == pytest.approx(metrics.annotation_report(annotated(), **LABELS)["nll"])
    adata.obs["grit"] = adata.obs["grit"].astype(str)
    with pytest.raises(SetupError, match=r"no names; expected them in `.uns\['grit'\]\['classes'\]`"):
        metrics.annotation_report(adata, **LABELS)
    adata.obs["truth"] = None
    adata.obsm.clear()
    with pytest.raises(SetupError, match="None of the 600 cells"):
        metrics.annotation_report(adata, **LABELS)


def test_bootstrap_intervals_cover():
    """95 +- 3 % of simulated data sets: accuracy of refined labels, and its difference to the raw ones."""
    rng, n, k, runs = np.random.default_rng(0), 300, 3, 700
    covered = np.zeros(2)
    for _ in range(runs):
        truth = rng.integers(0, k, n)
        right = rng.random(n) < 0.7
        refined = np.where(right, truth, (truth + 1) % k)
        # raw labels agree with refined ones often, so that only pairing gives intervals of the right width
        raw = np.where(rng.random(n) < 0.8, refined, (truth + 2) % k)
        draws = scores.bootstrap([truth, refined, raw], k, n_boot=200, generator=rng)
        for j, (sample, target) in enumerate(
            ((draws[0]["accuracy"], 0.7), (draws[0]["accuracy"] - draws[1]["accuracy"], 0.7 - 0.56))
        ):
            low, high = np.quantile(sample, [0.025, 0.975])
            covered[j] += low <= target <= high
    assert (np.abs(covered / runs - 0.95) <= 0.03).all(), covered / runs


def test_bootstrap_has_the_law_of_drawing_cells():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    found = scores.bootstrap([truth, predicted], 4, n_boot=4_000, generator=rng)[0]["macro_f1"]
    picks = rng.integers(0, 200, (4_000, 200))
    slow = [float(scores.label_scores(*scores.class_totals(truth[i], predicted[i], 4))["macro_f1"]) for i in picks]
    assert found.mean() == pytest.approx(np.mean(slow), abs=4 * np.std(slow) / math.sqrt(2_000))
    assert found.std() == pytest.approx(np.std(slow), rel=0.06)
