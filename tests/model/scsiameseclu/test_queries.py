"""Queries of a trained scSiameseClu: training cells, new cells, saved models, and what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse

from cellsmith._errors import CellsmithWarning, SetupError
from cellsmith.metrics.clustering import ari
from cellsmith.model import ScSiameseClu


def test_shapes_rows_and_names(model: ScSiameseClu) -> None:
    soft, hard = model.predict(soft=True), model.predict()
    np.testing.assert_allclose(soft.sum(axis=1), 1.0, atol=1e-6)
    assert list(soft.index) == list(hard.index) == list(model.adata.obs_names)
    assert isinstance(hard.dtype, pd.CategoricalDtype)
    assert (soft.columns[soft.to_numpy().argmax(axis=1)] == hard.to_numpy()).all()
    counts = hard.value_counts()
    assert list(counts.index) == sorted(counts.index, key=lambda c: -counts[c])
    gate = model.get_gate()
    assert gate.shape == (160,)
    assert ((gate >= 0) & (gate <= 1)).all()
    for branch in ("fused", "gene", "graph"):
        assert model.get_latent_representation(branch=branch).shape == (160, 8)
    np.testing.assert_array_equal(model.get_latent()[:5], model.get_latent_representation(indices=np.arange(5)))
    assert model.get_prototypes().shape == (model.n_prototypes_, 8)
    assert np.diff(model.get_propagation().indptr).max() <= 32
    with pytest.raises(SetupError, match="Did you mean 'fused'"):
        model.get_latent_representation(branch="fusd")


def test_confidence_is_where_a_walk_from_the_cell_ends(model: ScSiameseClu) -> None:
    hard = model._assign(model.get_latent_representation())
    expected = model.get_propagation().toarray().astype(float) @ hard
    np.testing.assert_allclose(model.predict(soft=True), expected, atol=1e-6)
    # a cell among cells of other clusters is less sure than one among its own
    own = np.array([hard.argmax(1) == c for c in hard.argmax(1)])
    share = (model.get_propagation().toarray() * own).sum(axis=1)
    assert np.corrcoef(share, model.predict(soft=True).max(axis=1))[0, 1] > 0.8


def test_rejection_leaves_names_out(model: ScSiameseClu) -> None:
    limit = float(model.predict(soft=True).max(axis=1).quantile(0.2))
    assert 0 < model.predict(reject_below=limit).isna().mean() <= 0.25
    assert model.predict(reject_below=0.0).notna().all()


def test_new_cells_one_by_one_equal_all_at_once(model: ScSiameseClu, other: AnnData) -> None:
    before = other.copy()
    together = model.predict(other, soft=True)
    for i in (0, 7, 39):
        alone = model.predict(other[[i]].copy(), soft=True)
        np.testing.assert_allclose(alone.to_numpy()[0], together.to_numpy()[i], atol=1e-5)
    assert ari(other.obs["cell_type"], model.predict(other)) > 0.8
    assert list(other.obs.columns) == list(before.obs.columns)
    assert not set(other.uns) - set(before.uns)
    assert not np.allclose(together, model.predict(other, soft=True, use_graph=False))


def test_training_cells_as_new_ones_get_their_clusters(model: ScSiameseClu) -> None:
    again = model.predict(model.adata.copy())
    assert ari(again, model.predict()) > 0.9


def test_genes_are_matched_by_name(model: ScSiameseClu, other: AnnData) -> None:
    order = np.random.default_rng(0).permutation(60)
    np.testing.assert_allclose(model.predict(other, soft=True), model.predict(other[:, order].copy(), soft=True))
    few = other[:, 6:].copy()
    with pytest.warns(CellsmithWarning, match="6 of 60 modelled genes are missing"):
        result = model.results(few)
    coverage = result.uns["coverage"]
    assert 0.5 < coverage < 1
    assert result.obs["{k}_confidence"].max() <= coverage + 1e-6
    with pytest.raises(SetupError, match=r"30 of the 60 modelled genes are missing \(first: gene_0"):
        model.predict(other[:, 30:].copy())


def test_unknown_batch_is_the_mean_of_the_known_ones(model: ScSiameseClu, other: AnnData) -> None:
    moved = other.copy()
    moved.obs["batch"] = "elsewhere"
    with pytest.warns(CellsmithWarning, match="elsewhere"):
        found = model.predict(moved, soft=True)
    np.testing.assert_allclose(found, model.predict(other, soft=True))


def test_cells_that_are_no_counts_are_refused(model: ScSiameseClu, other: AnnData) -> None:
    wrong = other.copy()
    wrong.X = wrong.X * 0.5
    with pytest.raises(SetupError, match="must hold raw counts"):
        model.predict(wrong)


def test_expression_and_decoding(model: ScSiameseClu) -> None:
    own = model.get_normalized_expression()
    assert own.shape == (160, 60)
    np.testing.assert_allclose(model.get_normalized_expression(library_size=1e4).sum(axis=1), 1e4, rtol=1e-4)
    z, batch = model.get_latent_representation(), model.adata.obs["batch"].to_numpy()
    np.testing.assert_allclose(model.decode(z, library_size=own.sum(axis=1), batch=batch), own, rtol=1e-4)
    observed = model.adata.X.toarray()
    assert np.corrcoef(np.log1p(own).ravel(), np.log1p(observed).ravel())[0, 1] > 0.7
    with pytest.raises(SetupError, match="expected"):
        model.decode(z[:, :3], library_size=100)
    with pytest.raises(SetupError, match="batch_0"):
        model.decode(z, library_size=100, batch="none")


def test_generated_cells_are_of_their_cluster(model: ScSiameseClu) -> None:
    made = model.generate(60, condition={"cluster": "1"}, seed=3)
    assert made.shape == (60, 60)
    assert made.obs["is_synthetic"].all()
    assert (made.obs["scsiameseclu"] == "1").all()
    assert made.X.min() >= 0
    assert (model.predict(made) == "1").mean() > 0.8
    np.testing.assert_array_equal(made.X.toarray(), model.generate(60, condition={"cluster": "1"}, seed=3).X.toarray())
    table = pd.DataFrame({"cluster": ["0", "2"], "batch": ["batch_1", "batch_0"]})
    assert model.generate(conditions=table).obs["batch"].tolist() == ["batch_1", "batch_0"]
    for wrong, words in (({"cluster": "9"}, "Valid"), ({"clster": "0"}, "Did you mean 'cluster'")):
        with pytest.raises(SetupError, match=words):
            model.generate(5, condition=wrong)


def test_posterior_predictive_samples_have_all_genes(model: ScSiameseClu) -> None:
    pytest.importorskip("sparse")
    drawn = model.posterior_predictive_sample(n_samples=2, indices=np.arange(10))
    assert drawn.shape == (10, 60, 2)


@pytest.mark.parametrize("trained", [False, True])
def test_saved_models_answer_alike(model: ScSiameseClu, cells: AnnData, tmp_path: Path, trained: bool) -> None:
    """F21: a file of the public code fits one number of cells in one order."""
    if not trained:
        adata = cells.copy()
        ScSiameseClu.setup_anndata(adata)
        untrained = ScSiameseClu(adata, n_clusters=3, n_top_genes=20)
        untrained.save(tmp_path / "m")
        assert not ScSiameseClu.load(tmp_path / "m", adata=adata).is_trained_
        return
    model.save(tmp_path / "m")
    order = np.random.default_rng(0).permutation(160)
    loaded = ScSiameseClu.load(tmp_path / "m", adata=model.adata[order].copy())
    expected = model.predict(soft=True)
    np.testing.assert_allclose(loaded.predict(soft=True).loc[expected.index], expected, atol=1e-4)


def test_a_model_without_its_training_object_places_new_cells(
    model: ScSiameseClu, other: AnnData, tmp_path: Path
) -> None:
    model.save(tmp_path / "m")
    expected = model.predict(other, soft=True)
    few = other.copy()
    loaded = ScSiameseClu.load(tmp_path / "m", adata=few)
    np.testing.assert_allclose(loaded.predict(soft=True), expected, atol=1e-5)


def test_reference_is_a_stratified_sample_where_there_are_many_cells(fresh: AnnData, fitted: Any) -> None:
    model = fitted(fresh, max_reference_cells=60, train={"max_epochs": 8})
    kept = len(model.reference_["h"])
    assert kept < 160
    assert kept >= min(50, np.bincount(model.codes_).max())


def test_use_rep_and_own_graph(fresh: AnnData, fitted: Any) -> None:
    fresh.obsm["X_own"] = np.log1p(fresh.X.toarray())[:, :10]
    graph = sparse.random(160, 160, density=0.05, random_state=0, format="csr")
    graph = graph + graph.T
    graph.setdiag(0)
    graph.eliminate_zeros()
    fresh.obsp["own"] = graph.tocsr()
    fresh.uns["mine"] = {"connectivities_key": "own", "distances_key": "own", "params": {"use_rep": "X_own"}}
    model = fitted(fresh, setup={"neighbors_key": "mine"}, train={"max_epochs": 2})
    assert model.reference_["points"].shape == (160, 10)
    model.write()
    assert fresh.uns["scsiameseclu"]["connectivities_key"] == "own"
    assert "scsiameseclu_connectivities" not in fresh.obsp
    new = fresh.copy()
    del new.obsm["X_own"]
    with pytest.raises(SetupError, match="X_own"):
        model.predict(new)


def test_size_factors_of_any_scale(fresh: AnnData, fitted: Any) -> None:
    total = np.asarray(fresh.X.sum(axis=1)).ravel()
    fresh.obs["factor"] = total / 1000
    model = fitted(fresh, setup={"size_factor_key": "factor"}, train={"max_epochs": 1})
    np.testing.assert_allclose(model._placed().cells.library.numpy(), total, rtol=1e-4)


def test_written_block_survives_both_files_and_serves_scanpy(model: ScSiameseClu, tmp_path: Path) -> None:
    import scanpy as sc

    adata = model.adata
    model.write(key_added="clu")
    assert adata.obs["clu"].dtype == "category"
    for name in ("confidence", "margin", "entropy", "rejected"):
        assert f"clu_{name}" in adata.obs
    assert adata.obsm["X_clu"].shape == (160, 8)
    block = adata.uns["clu"]
    assert block["provenance"]["method"] == "scsiameseclu"
    assert set(block["k_path"]) == {"stage", "epoch", "n_clusters", "reason"}
    # sc.tl.umap reads the space from here; the demonstration and the tutorial draw one.
    assert block["params"]["use_rep"] == "X_clu"
    sc.tl.leiden(adata, neighbors_key="clu", flavor="igraph", n_iterations=2, directed=False)
    sc.tl.paga(adata, groups="clu", neighbors_key="clu")
    for suffix, write, read in (("h5ad", "write_h5ad", ad.read_h5ad), ("zarr", "write_zarr", ad.read_zarr)):
        getattr(adata, write)(tmp_path / f"a.{suffix}")
        back = read(tmp_path / f"a.{suffix}")
        np.testing.assert_array_equal(back.obsm["clu_proba"], adata.obsm["clu_proba"])
        assert list(back.uns["clu"]["classes"]) == list(block["classes"])


def test_what_is_returned_can_be_changed_without_changing_the_model(model: ScSiameseClu) -> None:
    """Answers come from arrays that are kept; whoever gets one gets a copy."""
    before = model.predict(soft=True)
    for array in (model.get_latent_representation(), model.get_gate(), model.get_prototypes()):
        array[:] = 0
    model.get_propagation().data[:] = 0
    table = model.predict(soft=True)
    table.iloc[:, :] = 0
    np.testing.assert_array_equal(model.predict(soft=True), before)
    assert all(np.abs(a).sum() > 0 for a in (model.get_latent_representation(), model.get_gate()))
    assert np.abs(model.get_prototypes()).sum() > 0
    np.testing.assert_allclose(model.get_propagation().sum(axis=1), 1.0, atol=1e-5)


def test_the_propagation_is_that_of_the_training_cells(model: ScSiameseClu, other: AnnData, tmp_path: Path) -> None:
    model.save(str(tmp_path / "model"), overwrite=True)
    loaded = ScSiameseClu.load(str(tmp_path / "model"), adata=other.copy())
    with pytest.raises(SetupError, match="training cells"):
        loaded.get_propagation()


def test_weights_of_a_users_graph_may_be_of_any_size(fresh: AnnData, fitted: Any) -> None:
    sc.pp.pca(fresh, n_comps=10)
    sc.pp.neighbors(fresh, n_neighbors=10, key_added="mine")
    largest, found = fresh.obsp["mine_connectivities"].max(), {}
    for factor in (1.0, 1e5):
        cells = fresh.copy()
        cells.obsp["mine_connectivities"] = fresh.obsp["mine_connectivities"] * (factor / largest)
        found[factor] = fitted(cells, setup={"neighbors_key": "mine"}, train={"max_epochs": 2}).get_propagation()
        np.testing.assert_allclose(found[factor].sum(axis=1), 1.0, atol=1e-5)
    assert found[1e5].nnz > 2 * fresh.n_obs  # neighbours, not the cell alone
    assert abs(found[1.0] - found[1e5]).max() < 1e-4


def test_the_space_of_a_users_graph_is_kept_with_the_model(fresh: AnnData, fitted: Any, tmp_path: Path) -> None:
    sc.pp.pca(fresh, n_comps=10)
    sc.pp.neighbors(fresh, n_neighbors=10, key_added="mine", use_rep="X_pca")
    model = fitted(fresh, setup={"neighbors_key": "mine"}, train={"max_epochs": 2})
    model.save(str(tmp_path / "model"), overwrite=True)
    new = fresh[:60].copy()
    expected = model.predict(new, soft=True)
    del new.uns["mine"]
    loaded = ScSiameseClu.load(str(tmp_path / "model"), adata=new)
    np.testing.assert_allclose(loaded.predict(soft=True), expected, atol=1e-5)
    assert loaded._rep_key() == "X_pca"


def test_new_cells_whose_genes_have_one_name_twice_are_refused(model: ScSiameseClu, other: AnnData) -> None:
    twice = other.copy()
    twice.var_names = [other.var_names[1], *other.var_names[1:]]
    with pytest.raises(SetupError, match="twice"):
        model.predict(twice)
