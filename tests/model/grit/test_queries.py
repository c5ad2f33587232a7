"""Queries: new cells, diagnostics, files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from cellsmith._errors import DataWarning, SetupError
from cellsmith.math import graph
from cellsmith.model import GRIT

Cells = Callable[..., AnnData]
Fitted = Callable[..., GRIT]


@pytest.mark.parametrize("laplacian", ["sym", "rw", "comb"])
@pytest.mark.parametrize("fidelity", ["uniform", "confidence"])
def test_self_query_reproduces_the_solution(laplacian: str, fidelity: str, cells: Cells, fit: Fitted) -> None:
    """The training rows as new cells, with the rows of the graph as their neighbours: Eq. 7 is Eq. 1 in one row."""
    adata = cells()
    model = fit(adata, laplacian=laplacian, fidelity=fidelity, dtype="float64")
    links = graph.fuzzy_union(*graph.knn_table(adata.obsm["X_pca"], 14, seed=0))
    again = model._extend(links, adata.obsm["scores"])
    np.testing.assert_allclose(again, model.module.solution.numpy(), atol=1e-6)


@pytest.mark.parametrize("laplacian", ["sym", "rw", "comb"])
def test_new_cells_agree_with_the_joint_solve(
    laplacian: str, pbmc: SimpleNamespace, easy: Callable[[int], tuple[np.ndarray, np.ndarray]], fit: Fitted
) -> None:
    p = easy(0)[0]
    whole = AnnData(obsm={"scores": p, "X_pca": pbmc.pcs}, uns={"scores": {"classes": pbmc.names}})
    # "comb" scales with the degree, 6.9 here
    weight = 1.0 if laplacian == "comb" else 5.0
    joint = fit(whole, laplacian=laplacian, smoothness_weight=weight).predict().to_numpy()
    new = np.random.default_rng(0).permutation(700)[:140]
    old = np.setdiff1d(np.arange(700), new)
    model = fit(whole[old].copy(), laplacian=laplacian, smoothness_weight=weight)
    found = model.predict(whole[new].copy()).to_numpy()
    assert (found == joint[new]).mean() >= 0.9


def test_new_cells_change_nothing_and_need_no_scores(cells: Cells, fit: Fitted) -> None:
    model, new = fit(cells()), cells(40, seed=5)
    before = model.get_latent().copy()
    with_scores = model.predict(new)
    del new.obsm["scores"]
    without = model.predict(new, soft=True)
    assert list(without.index) == list(new.obs_names)
    assert list(without.columns) == ["B", "NK", "T", "mono"]
    np.testing.assert_allclose(without.sum(axis=1), 1, atol=1e-5)
    assert (without.idxmax(axis=1) == new.obs["truth"]).mean() > 0.8
    assert (with_scores.astype(str) == new.obs["truth"]).mean() > 0.8
    assert "_scvi_uuid" not in new.uns
    np.testing.assert_array_equal(model.get_latent(), before)


def test_scores_of_new_cells_are_matched_by_name(cells: Cells, fit: Fitted) -> None:
    model, new = fit(cells()), cells(40, seed=5)
    table = pd.DataFrame(new.obsm.pop("scores"), index=new.obs_names, columns=["B", "NK", "T", "mono"])
    expected = model.predict(new, scores=table, soft=True)
    shuffled = table.iloc[::-1, [3, 1, 0, 2]]
    pd.testing.assert_frame_equal(model.predict(new, scores=shuffled, soft=True), expected)
    np.testing.assert_array_equal(model.predict(new, scores=table.to_numpy(), soft=True), expected)
    with pytest.raises(SetupError, match=r"\['DC', 'mono'\] differ"):
        model.predict(new, scores=table.rename(columns={"mono": "DC"}))
    with pytest.raises(SetupError, match="lacks 39 of 40 cells"):
        model.predict(new, scores=table.iloc[:1])
    table.iloc[0] = np.nan
    assert model.predict(new, scores=table).notna().all()


def test_new_cells_that_do_not_fit(cells: Cells, fit: Fitted) -> None:
    model, new = fit(cells()), cells(40, seed=5)
    new.obsm["X_pca"] = new.obsm["X_pca"][:, :3]
    with pytest.raises(SetupError, match=r"3 dimensions; expected 5.*sc\.tl\.ingest"):
        model.predict(new)
    del new.obsm["X_pca"]
    with pytest.raises(SetupError, match="use_rep='X_pca' is not in"):
        model.predict(new)
    with pytest.raises(SetupError, match="holds no embedding"):
        fit(cells(), store_rep=False).predict(cells(40))
    with pytest.raises(SetupError, match="is for new cells"):
        model.predict(scores=np.ones((160, 4)))


def test_indices_and_soft(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    model = fit(adata)
    rows = [5, 3]
    pd.testing.assert_series_equal(model.predict(indices=rows), model.predict().iloc[rows])
    np.testing.assert_array_equal(model.get_latent_representation(indices=rows), model.get_latent()[rows])
    assert model.get_latent().dtype == np.float32
    assert model.predict().index.equals(adata.obs_names)
    assert model.predict(soft=True).to_numpy().argmax(axis=1).tolist() == model.predict().cat.codes.tolist()


def test_path(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    GRIT.setup_anndata(adata, scores_key="scores")
    model = GRIT(adata)  # needs no fit
    rng = np.random.default_rng(0)
    halves = [np.clip(adata.obsm["scores"] + 0.1 * rng.normal(size=(160, 4)), 0, 1) for _ in range(2)]
    halves = [h / h.sum(axis=1, keepdims=True) for h in halves]
    table = model.path((0.3, 3, 30), split_scores=tuple(halves))
    assert table.index.tolist() == [0.3, 3, 30]
    assert table["changed"].is_monotonic_increasing
    assert table["cross_edges"].is_monotonic_decreasing
    assert table["agreement"].between(0, 1).all()
    assert table["modularity"].iloc[1] > table["modularity"].iloc[0]
    assert (table["split_error"] > 0).all()
    assert "agreement" not in model.path((1,))
    trained = fit(adata, smoothness_weight=3.0)
    changed = trained.summary_["flow"].sum() - np.trace(trained.summary_["flow"])
    assert table.loc[3, "changed"] == pytest.approx(changed / 160)


def test_another_graph_is_noticed(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    adata.obsp["g"] = graph.fuzzy_union(*graph.knn_table(adata.obsm["X_pca"], 14, seed=0))
    model = fit(adata, setup={"neighbors_key": "g"})
    model.results()
    adata.obsp["g"] = graph.fuzzy_union(*graph.knn_table(adata.obsm["X_pca"], 7, seed=0))
    for query in (model.results, model.path):
        with pytest.warns(DataWarning, match="fingerprint differs"):
            query()


def test_score_halves_give_a_temperature(cells: Cells, fit: Fitted) -> None:
    adata = cells()
    GRIT.setup_anndata(adata, scores_key="scores")
    model = GRIT(adata, smoothness_weight=20.0)
    model.use_score_halves(*(cells(160, seed=0, noise=x).obsm["scores"] for x in (1.0, 1.1)))
    model.train(enable_progress_bar=False)
    assert model.summary_["calibration"]["source"] == "split halves"
    assert 0.05 <= model.summary_["calibration"]["temperature"] < 1  # smoothed scores are under-confident
    plain = fit(adata, smoothness_weight=20.0)
    assert model.results().obs["{k}_confidence"].mean() > plain.results().obs["{k}_confidence"].mean()
    assert model.results().uns["calibrated"]
    assert not plain.results().uns["calibrated"]


@pytest.mark.parametrize("trained", [True, False])
def test_saved_and_loaded(trained: bool, cells: Cells, fit: Fitted, tmp_path: Path) -> None:
    adata = cells()
    adata.obs["anchor"] = np.where(np.arange(160) % 2, adata.obs["truth"], "unknown")
    setup = {"labels_key": "anchor", "batch_key": "batch"}
    model = fit(adata, setup=setup, laplacian="rw")
    if not trained:
        model = GRIT(adata, laplacian="rw")
    model.save(str(tmp_path / "m"), save_anndata=True)
    loaded = GRIT.load(str(tmp_path / "m"), accelerator="cpu")
    assert loaded.is_trained == trained
    assert loaded.params_ == model.params_
    if not trained:
        loaded.train(enable_progress_bar=False)
        model.train(enable_progress_bar=False)
    new = cells(30, seed=3)
    pd.testing.assert_series_equal(loaded.predict(), model.predict())
    pd.testing.assert_frame_equal(loaded.predict(new, soft=True), model.predict(new, soft=True))
    assert loaded.summary_["graph"] == model.summary_["graph"]
    loaded.write()
    assert loaded.adata.uns["grit"]["classes"].tolist() == ["B", "NK", "T", "mono"]


def test_loaded_without_data_it_still_answers_for_new_cells(cells: Cells, fit: Fitted, tmp_path: Path) -> None:
    model, new = fit(cells()), cells(30, seed=3)
    model.save(str(tmp_path / "m"))
    loaded: Any = GRIT.load(str(tmp_path / "m"), adata=False, accelerator="cpu")
    pd.testing.assert_series_equal(loaded.predict(new), model.predict(new))
    with pytest.raises(SetupError, match="loaded without data"):
        loaded.predict()
    loaded.save(str(tmp_path / "again"))


def test_results_for_new_cells(cells: Cells, fit: Fitted) -> None:
    model, new = fit(cells()), cells(30, seed=3)
    model.write(new)
    assert new.obs["grit"].tolist() == model.predict(new).tolist()
    assert list(new.obs["grit_raw"].cat.categories) == list(new.obs["grit"].cat.categories)
    assert "flow" not in new.uns["grit"]
    assert "grit_connectivities" not in new.obsp
