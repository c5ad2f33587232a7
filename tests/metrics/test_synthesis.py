"""The report on synthetic cells: what passes, what fails, what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellsmith._errors import SetupError
from cellsmith.metrics import SyntheticReport, evaluate_synthetic
from cellsmith.metrics._bands import METRICS, SYMMETRIC, Band

CHEAP = ["mmd", "one_nn", "lfc_slope", "label_fidelity", "zero_fraction_mae", "ks_library", "composition"]


@pytest.fixture(scope="module")
def report(toy) -> SyntheticReport:
    """Fresh real cells in the place of synthetic ones, everything scored."""
    return evaluate_synthetic(
        toy.test, toy.fresh, toy.train, control=toy.control, labels_key="cell_type", batch_key="batch"
    )


def test_real_cells_pass(report):
    assert report.passed, report
    assert report.failed == []
    assert abs(report["rf_auc_pca"] - 0.5) < 0.1
    assert abs(report["lfc_slope"] - 1) < 0.05


def test_table_has_a_control_for_every_number(report):
    table = report.table
    assert list(table.columns) == ["metric", "value", "control", "excess", "ideal", "band", "passed"]
    assert list(table["metric"]) == [*METRICS, *(f"{m}_symmetric" for m in SYMMETRIC)]
    assert table[["value", "control", "ideal"]].notna().all().all()
    np.testing.assert_allclose(table["excess"], table["value"] - table["control"])
    judged = table.loc[table["passed"].map(lambda p: p is not None)]
    assert set(judged["metric"]) == {name for name, metric in METRICS.items() if metric.band is not None}
    assert (judged["band"] != "").all()


def test_control_is_what_real_cells_score(toy, report):
    swapped = evaluate_synthetic(
        toy.test, toy.control, toy.train, control=toy.fresh, labels_key="cell_type", metrics=CHEAP
    )
    back = evaluate_synthetic(
        toy.test, toy.fresh, toy.train, control=toy.control, labels_key="cell_type", metrics=CHEAP
    )
    for name in CHEAP:
        mine = back.table.set_index("metric").loc[name]
        other = swapped.table.set_index("metric").loc[name]
        assert mine["value"] == pytest.approx(other["control"])
        assert mine["value"] == pytest.approx(report[name])


@pytest.mark.parametrize("form", ["expression", "counts"])
def test_average_of_20_neighbours_fails(toy, form):
    average = toy.averages()
    if form == "expression":
        layer = {"layer": "counts"}
        del average.layers["counts"]
        real = {}
        for name in ("test", "train", "control"):
            real[name] = getattr(toy, name).copy()
            real[name].layers["counts"] = real[name].X
    else:
        layer, real = {}, {name: getattr(toy, name) for name in ("test", "train", "control")}
        average.X = average.layers["counts"]
    got = evaluate_synthetic(
        real["test"],
        average,
        real["train"],
        control=real["control"],
        metrics=["rf_auc_pca", "rf_auc_genes", "precision", "recall"],
        **layer,
    )
    assert not got.passed
    assert {"rf_auc_pca", "rf_auc_genes"} <= set(got.failed)
    assert got["rf_auc_genes"] > 0.95
    # What makes such averages look good elsewhere is visible here too: they are precise, and miss the spread.
    assert got["precision"] > 0.9
    assert got["recall"] < 0.2


def test_attenuated_fold_changes_fail(toy):
    weak = toy.fresh.copy()
    generator = np.random.default_rng(0)
    strangers = toy.train.X[generator.choice(toy.train.n_obs, weak.n_obs)]
    blend = (weak.X + strangers).toarray().astype(int)
    weak.X = sparse.csr_matrix(generator.binomial(blend, 0.5).astype(float))
    got = evaluate_synthetic(
        toy.test, weak, toy.train, control=toy.control, labels_key="cell_type", metrics=["lfc_slope", "de_overlap"]
    )
    assert got["lfc_slope"] < 0.8
    assert "lfc_slope" in got.failed


def test_log_scale_cells_have_no_count_scores(toy):
    real = toy.test.copy()
    real.layers["counts"] = real.X
    train = toy.train.copy()
    train.layers["counts"] = train.X
    got = evaluate_synthetic(real, toy.averages(), train, layer="counts", metrics="mmd")
    assert got.settings["synthetic_holds_counts"] is True  # the layer is used where the object has it
    average = toy.averages()
    del average.layers["counts"]
    got = evaluate_synthetic(real, average, train, layer="counts", metrics=["ks_library", "mean_variance", "mmd"])
    rows = got.table.set_index("metric")
    assert got.settings["synthetic_holds_counts"] is False
    assert rows.loc[["ks_library", "mean_variance"], "value"].isna().all()
    assert rows.loc["ks_library", "passed"] is None
    assert np.isfinite(rows.loc["mmd", "value"])
    with pytest.raises(SetupError, match=r"does not hold counts: cell .* Name the layer of counts with `layer=`"):
        evaluate_synthetic(toy.test, average, toy.train)


def test_without_train_and_control_half_of_real_is_the_control(toy):
    got = evaluate_synthetic(toy.test, toy.fresh, labels_key="cell_type", metrics=[*CHEAP, "tstr_ratio", "tstr"])
    assert got.settings["n_cells"] == 150
    assert got.settings["control"] == "half of real"
    assert got.settings["space"] == "reference and candidate"
    assert not got.table["metric"].str.endswith("_symmetric").any()
    rows = got.table.set_index("metric")
    assert rows.loc["tstr_ratio", "control"] == pytest.approx(1.0)
    assert rows.loc["tstr_ratio", "value"] == pytest.approx(rows.loc["tstr", "value"] / got.settings["trtr"])
    assert 0.8 < rows.loc["label_fidelity", "control"] <= 1.0


def test_sides_are_cut_to_one_size(toy):
    got = evaluate_synthetic(toy.test, toy.train, control=toy.control[:120], metrics="mmd")
    assert got.settings["n_cells"] == 120
    got = evaluate_synthetic(toy.test, toy.train, control=toy.control, metrics="mmd", max_cells=70)
    assert got.settings["n_cells"] == 70
    assert len(got.curves["real_library"]) == 70


def test_same_seed_same_report(toy):
    first, second, other = (
        evaluate_synthetic(
            toy.test, toy.fresh, labels_key="cell_type", metrics=["mmd", "ks_library", "rf_auc_pca"], rng=seed
        )
        for seed in (5, 5, 6)
    )
    pd.testing.assert_frame_equal(first.table, second.table)
    assert not first.table["value"].equals(other.table["value"])
    generator = np.random.default_rng(0)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    evaluate_synthetic(toy.test, toy.fresh, metrics="rf_auc_pca", rng=generator)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_inputs_are_left_alone(toy):
    before = [x.copy() for x in (toy.test, toy.fresh, toy.train)]
    evaluate_synthetic(toy.test, toy.fresh, toy.train, labels_key="cell_type", metrics=CHEAP)
    for old, new in zip(before, (toy.test, toy.fresh, toy.train), strict=True):
        assert (old.X != new.X).nnz == 0
        pd.testing.assert_frame_equal(old.obs, new.obs)
        assert set(old.uns) == set(new.uns)


def test_order_of_genes_does_not_matter(toy):
    shuffled = toy.fresh[:, np.random.default_rng(0).permutation(toy.fresh.n_vars)].copy()
    a = evaluate_synthetic(toy.test, toy.fresh, metrics=["mmd", "gg_correlation", "zero_fraction_mae"])
    b = evaluate_synthetic(toy.test, shuffled, metrics=["mmd", "gg_correlation", "zero_fraction_mae"])
    pd.testing.assert_frame_equal(a.table, b.table)


def test_missing_labels_are_ignored(toy):
    gaps = toy.fresh.copy()
    gaps.obs.loc[gaps.obs_names[:60], "cell_type"] = np.nan
    got = evaluate_synthetic(toy.test, gaps, toy.train, control=toy.control, labels_key="cell_type", metrics=CHEAP)
    assert got.per_label["n_synthetic"].sum() == 240
    assert got["label_fidelity"] > 0.9
    assert abs(got["lfc_slope"] - 1) < 0.1


def test_one_type_has_no_fold_changes(toy):
    only = [x[x.obs["cell_type"] == "type_0"].copy() for x in (toy.test, toy.fresh, toy.train)]
    got = evaluate_synthetic(*only, labels_key="cell_type", metrics=CHEAP)
    assert np.isnan(got["lfc_slope"])
    assert got["label_fidelity"] == 1.0


def test_per_label_and_fold_changes(report):
    table = report.per_label
    assert table["label"].tolist() == ["type_0", "type_1", "type_2"]
    assert (table[["n_reference", "n_synthetic", "n_control"]].sum() == 300).all()
    assert table[["w2", "w2_control", "fidelity", "f1", "lfc_slope", "de_overlap"]].notna().all().all()
    folds = report.lfc
    assert len(folds) == 3 * (150 // 4)
    slope = (folds["real"] * folds["synthetic"]).sum() / (folds["real"] ** 2).sum()
    assert report["lfc_slope"] == pytest.approx(slope)


def test_report_survives_h5ad(report, toy, tmp_path):
    adata = toy.test.copy()
    adata.uns["scld_evaluation"] = report.to_uns()
    bare = evaluate_synthetic(toy.test, toy.fresh, metrics="mmd")
    adata.uns["bare"] = bare.to_uns()
    adata.write_h5ad(tmp_path / "x.h5ad")
    stored = ad.read_h5ad(tmp_path / "x.h5ad").uns
    back = SyntheticReport.from_uns(stored["scld_evaluation"])
    pd.testing.assert_frame_equal(back.table, report.table)
    pd.testing.assert_frame_equal(back.lfc, report.lfc, check_dtype=False)
    assert back.bounds == report.bounds
    assert back.failed == report.failed
    assert SyntheticReport.from_uns(stored["bare"])["mmd"] == bare["mmd"]


def test_report_prints_a_verdict(report, toy):
    text = repr(report)
    assert text.startswith("Synthetic cells against real ones: passed")
    assert "w2_per_type" in text
    assert "<table" in report._repr_html_()
    strict = evaluate_synthetic(toy.test, toy.fresh, metrics=["mmd"], bands={"mmd": (None, -1.0)})
    assert "FAILED: mmd" in repr(strict)
    assert not strict.passed
    with pytest.raises(KeyError):
        strict["w2"]


def test_bands_of_the_user(toy):
    got = evaluate_synthetic(
        toy.test, toy.fresh, metrics=["mmd", "ks_library"], bands={"mmd": None, "ks_library": (0, 1)}
    )
    rows = got.table.set_index("metric")
    assert rows.loc["mmd", "passed"] is None
    assert rows.loc["ks_library", "band"] == "0 to 1"
    assert rows.loc["ks_library", "passed"] is True
    with pytest.raises(SetupError, match=r"unknown metric 'ks_libary'.*Did you mean 'ks_library'"):
        evaluate_synthetic(toy.test, toy.fresh, bands={"ks_libary": (0, 1)})
    with pytest.raises(SetupError, match=r"expected a pair \(low, high\)"):
        evaluate_synthetic(toy.test, toy.fresh, metrics="mmd", bands={"mmd": 0.1})


def test_default_bands_follow_the_control():
    assert Band(high=1.2, relative="ratio").at(10.0, 10.0) == (-np.inf, 12.0)
    assert Band(low=-0.05, high=0.05, relative="difference").at(0.9, 0.8) == pytest.approx((0.75, 0.85))
    usual = Band(low=0.975, usual=0.987)
    assert usual.at(0.98, 1.0) == (0.975, np.inf)
    # Where real data of the same kind do worse than the fixed limit, the limit keeps its distance from them.
    assert usual.at(0.90, 1.0)[0] == pytest.approx(0.888)
    # A range for a number that is chance alone follows the law of chance below the 1,000 cells it was set for.
    chance = Band(low=0.44, high=0.56, null=0.5)
    assert chance.at(0.5, 0.5, 4000) == (0.44, 0.56)
    assert chance.at(0.5, 0.5, 250) == pytest.approx((0.38, 0.62))


def test_ranges_for_a_thousand_cells_are_the_published_ones():
    expected = {
        "gg_correlation": (0.975, np.inf),
        "mmd": (-np.inf, 0.006),
        "w2": (-np.inf, 1.2 * 8.2),
        "w2_per_type": (-np.inf, 1.1 * 8.2),
        "ilisi": (0.92, np.inf),
        "one_nn": (-np.inf, 0.63),
        "rf_auc_pca": (-np.inf, 0.62),
        "rf_auc_genes": (-np.inf, 0.64),
        "precision": (0.74, np.inf),
        "coverage": (0.78, np.inf),
        "label_fidelity": (0.85, 0.95),
        "tstr_ratio": (0.96, np.inf),
        "lfc_slope": (0.93, 1.07),
        "de_overlap": (0.80, np.inf),
        "zero_fraction_mae": (-np.inf, 0.015),
        "ks_library": (-np.inf, 0.07),
        "ks_genes_detected": (-np.inf, 0.07),
    }
    judged = {name: metric.band for name, metric in METRICS.items() if metric.band is not None}
    assert set(judged) == set(expected)
    for name, band in judged.items():
        control = 8.2 if name.startswith("w2") else band.usual
        assert band.at(control, 0.9, 1000) == pytest.approx(expected[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["nn_auc_genes"]}, r"'nn_auc_genes' is refused: a nearest-neighbour classifier in gene space"),
        ({"metrics": ["gene_mean_correlation"]}, r"is refused: the correlation of gene means is near 1"),
        ({"metrics": ["w3"]}, r"'w3' is unknown. Did you mean 'w2'"),
        ({"metrics": []}, r"`metrics` is empty"),
        ({"metrics": "tstr"}, r"needs labels, and `labels_key` is None"),
        ({"metrics": "w2_per_batch"}, r"needs batches, and `batch_key` is None"),
        ({"labels_key": "celltype"}, r"`real.obs` has no column 'celltype'. Did you mean 'cell_type'"),
        ({"layer": "raw"}, r"`real` has no layer 'raw'"),
        ({"max_cells": 5}, r"Only 5 cells are left a side"),
    ],
)
def test_arguments_that_are_refused(toy, change, message):
    with pytest.raises(SetupError, match=message):
        evaluate_synthetic(toy.test, toy.fresh, **change)


def test_data_that_are_refused(toy):
    with pytest.raises(SetupError, match=r"`synthetic` has 100 genes, the first object 150; 100 names are in both"):
        evaluate_synthetic(toy.test, toy.fresh[:, :100])
    renamed = toy.fresh.copy()
    renamed.obs["cell_type"] = renamed.obs["cell_type"].astype(str) + " (new)"
    with pytest.raises(SetupError, match=r"No label of `real.obs\['cell_type'\]` \(type_0, type_1, type_2\) occurs"):
        evaluate_synthetic(toy.test, renamed, labels_key="cell_type")
    broken = toy.fresh.copy()
    broken.X = broken.X.copy()
    broken.X[3, 7] = np.nan
    name, gene = broken.obs_names[3], broken.var_names[7]
    with pytest.raises(
        SetupError, match=rf"1 values that are NaN or infinite, the first in cell '{name}', gene '{gene}'"
    ):
        evaluate_synthetic(toy.test, broken)
    fractional = toy.test.copy()
    fractional.X = fractional.X * 0.5
    with pytest.raises(SetupError, match=r"`real` does not hold counts"):
        evaluate_synthetic(fractional, toy.fresh)
    with pytest.raises(SetupError, match=r"`synthetic` has 5 cells"):
        evaluate_synthetic(toy.test, toy.fresh[:5])


def _data() -> Path | None:
    for folder in (os.environ.get("CELLSMITH_DATA"), Path(__file__).parents[3] / "shared" / "data"):
        if folder and (Path(folder) / "pbmc4k_10x.h5ad").exists():
            return Path(folder) / "pbmc4k_10x.h5ad"
    return None


@pytest.mark.slow
@pytest.mark.needs_data
@pytest.mark.skipif(_data() is None, reason="pbmc4k_10x.h5ad is not here")
def test_reference_values_on_real_cells():
    adata = ad.read_h5ad(_data())
    order = np.random.default_rng(0).permutation(adata.n_obs)
    train, test, control = (adata[order[a:b]].copy() for a, b in ((0, 2000), (2000, 3000), (3000, None)))
    copies = train[np.random.default_rng(1).choice(2000, 1000)].copy()
    copies.obs_names_make_unique()
    got = evaluate_synthetic(test, copies, train, control=control, labels_key="cell_type").table.set_index("metric")
    expected = {  # metric: (control, memoriser, tolerance)
        "gg_correlation": (0.987, 0.985, 0.003),
        "gg_mae": (0.035, 0.036, 0.002),
        "mmd": (0.000, 0.002, 0.001),
        "w2": (8.20, 9.26, 0.25),
        "w2_per_type": (8.68, 9.59, 0.30),
        "ilisi": (0.991, 0.800, 0.03),
        "one_nn": (0.489, 0.721, 0.03),
        "rf_auc_pca": (0.494, 0.833, 0.03),
        "rf_auc_genes": (0.497, 0.671, 0.03),
        "precision": (0.92, 0.57, 0.03),
        "recall": (0.91, 0.99, 0.03),
        "coverage": (0.98, 0.57, 0.03),
        "label_fidelity": (0.913, 0.931, 0.01),
        "tstr": (0.865, 0.856, 0.02),
        "lfc_slope": (1.011, 1.022, 0.01),
        "de_overlap": (0.850, 0.830, 0.015),
        "zero_fraction_mae": (0.008, 0.008, 0.001),
        "ks_library": (0.032, 0.042, 0.015),
    }
    for name, (real, memoriser, tolerance) in expected.items():
        assert got.loc[name, "control"] == pytest.approx(real, abs=tolerance), name
        assert got.loc[name, "value"] == pytest.approx(memoriser, abs=tolerance), name
