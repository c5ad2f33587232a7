"""The privacy report: a memoriser fails, fresh cells pass, void comparisons are refused."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import roc_auc_score

from cellsmith._errors import PrivacyError, SetupError
from cellsmith.metrics import PrivacyReport, membership_auc, nearest_share, privacy_report
from cellsmith.metrics import _attack as parts


@pytest.fixture(scope="module")
def copied(toy) -> PrivacyReport:
    return privacy_report(toy.train, toy.test, toy.copies(), labels_key="cell_type")


@pytest.fixture(scope="module")
def clean(toy) -> PrivacyReport:
    return privacy_report(toy.train, toy.test, toy.fresh)


def test_a_memoriser_fails(copied):
    assert not copied.passed
    assert copied.failed == ["nearest_share", "exact_copies", "membership_auc"]
    assert copied["exact_copies"] == 1.0
    assert copied["distance_ratio"] == 0.0
    assert copied["nearest_share"] > 0.7
    low, high = copied.intervals["membership_auc"]
    assert 0.5 < low < copied["membership_auc"] < high


def test_fresh_cells_pass(clean):
    assert clean.passed, clean
    rows = clean.table.set_index("metric")
    assert rows.loc["exact_copies", "value"] == 0.0
    assert abs(rows.loc["nearest_share", "value"] - 0.5) < 0.06
    assert abs(rows.loc["nearest_share", "control"] - 0.5) < 0.1
    assert rows.loc["distance_ratio", "value"] == pytest.approx(rows.loc["distance_ratio", "control"], abs=0.02)
    assert "passing is no guarantee" in repr(clean)


def test_a_noisy_memoriser_is_caught_without_exact_copies(toy):
    noisy = toy.copies()
    counts = noisy.X.toarray().astype(int)
    noisy.X = sparse.csr_matrix(np.random.default_rng(0).binomial(counts, 0.95).astype(float))
    got = privacy_report(toy.train, toy.test, noisy)
    assert got["exact_copies"] == 0.0
    assert "membership_auc" in got.failed
    assert got["distance_ratio"] < 0.6


def test_per_cell_names_the_copied_cell(copied, toy):
    table = copied.per_cell
    assert len(table) == 300
    assert table["exact_copy"].all()
    source = toy.train[table["nearest_train"].tolist()].X
    assert (source != toy.copies().X).nnz == 0
    assert copied.per_label["label"].tolist() == ["type_0", "type_1", "type_2"]
    assert (copied.per_label["exact_copies"] == 1.0).all()


def test_shared_cells_make_the_report_void(toy):
    mixed = ad.concat([toy.test, toy.train[:7]])
    with pytest.raises(PrivacyError, match=r"share 7 cells \(first: .*every number of the report would be void"):
        privacy_report(toy.train, mixed, toy.fresh)
    # The same names for other cells are no fault: many files count their cells from 0.
    renamed = toy.test.copy()
    renamed.obs_names = toy.train.obs_names[: renamed.n_obs]
    assert privacy_report(toy.train, renamed, toy.fresh, n_bootstrap=0).passed


def test_donors(toy):
    train, test = toy.train.copy(), toy.test.copy()
    train.obs["donor"] = [f"a{i % 5}" for i in range(train.n_obs)]
    test.obs["donor"] = [f"b{i % 4}" for i in range(test.n_obs)]
    got = privacy_report(train, test, toy.copies(), donor_key="donor")
    rows = got.table.set_index("metric")
    assert 0 <= rows.loc["membership_auc_donor", "value"] <= 1
    assert rows.loc["membership_auc_donor", "passed"] is None
    assert rows.loc["membership_auc_donor", "value"] == 1.0  # every training donor is nearer than any other donor
    low, high = got.intervals["membership_auc_donor"]
    assert low <= high
    test.obs["donor"] = ["a1"] * 20 + ["b"] * (test.n_obs - 20)
    with pytest.raises(PrivacyError, match=r"1 donors are in `train` and in `holdout` \(first: a1\)"):
        privacy_report(train, test, toy.fresh, donor_key="donor")


def test_halves_share_no_donor(toy):
    from cellsmith.metrics._cells import read_cells

    test = toy.test.copy()
    test.obs["donor"] = ["x"] * 150 + ["y"] * 100 + ["z"] * 50
    cells = read_cells(test, name="test", genes=np.asarray(test.var_names, dtype=str), columns=("donor",))
    for seed in range(5):
        one, two = parts.halves(cells, "donor", np.random.default_rng(seed))
        assert one.n + two.n == 300
        assert min(one.n, two.n) >= 50
        assert not set(one.columns["donor"]) & set(two.columns["donor"])


def test_scores_against_second_implementations():
    generator = np.random.default_rng(0)
    train, holdout, synthetic = (generator.normal(size=(n, 3)) for n in (40, 40, 25))
    near = [np.sqrt(((s[:, None] - synthetic[None]) ** 2).sum(axis=2)).min(axis=1) for s in (train, holdout)]
    expected = roc_auc_score(np.r_[np.ones(40), np.zeros(40)], -np.concatenate(near))
    assert membership_auc(train, holdout, synthetic) == pytest.approx(expected)
    back = [np.sqrt(((synthetic[:, None] - s[None]) ** 2).sum(axis=2)).min(axis=1) for s in (train, holdout)]
    assert nearest_share(train, holdout, synthetic) == pytest.approx((back[0] < back[1]).mean())
    assert nearest_share(train, train, synthetic) == 0.5
    assert membership_auc(train, train, synthetic) == 0.5
    assert membership_auc(train, holdout, train) == 1.0
    with pytest.raises(SetupError, match=r"`train` has 40 rows, `holdout` 30; the share compares equal sizes"):
        nearest_share(train, holdout[:30], synthetic)


def test_same_seed_same_report(toy):
    first, second = (privacy_report(toy.train, toy.test, toy.fresh, rng=3, n_bootstrap=20) for _ in range(2))
    pd.testing.assert_frame_equal(first.table, second.table)
    assert first.intervals == second.intervals


def test_log_scale_cells_have_no_exact_copies(toy):
    real = [x.copy() for x in (toy.train, toy.test)]
    for x in real:
        x.layers["counts"] = x.X
    average = toy.averages()
    del average.layers["counts"]
    got = privacy_report(*real, average, layer="counts", n_bootstrap=0)
    assert np.isnan(got["exact_copies"])
    assert got.intervals == {}
    with pytest.raises(SetupError, match="does not hold counts"):
        privacy_report(*real, average)
    with pytest.raises(SetupError, match="at least 40"):
        privacy_report(toy.train, toy.test[:30], toy.fresh)


def test_report_survives_h5ad(copied, clean, toy, tmp_path):
    adata = toy.test.copy()
    adata.uns["scld_privacy"] = copied.to_uns()
    adata.uns["clean"] = clean.to_uns()
    adata.write_h5ad(tmp_path / "x.h5ad")
    stored = ad.read_h5ad(tmp_path / "x.h5ad").uns
    back = PrivacyReport.from_uns(stored["scld_privacy"])
    pd.testing.assert_frame_equal(back.table, copied.table)
    pd.testing.assert_frame_equal(back.per_cell, copied.per_cell, check_dtype=False)
    assert back.intervals == copied.intervals
    assert PrivacyReport.from_uns(stored["clean"]).passed
