"""What a trained model answers: graph, clusters, expression, new counts, new cells, files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData, read_h5ad, read_zarr
from scipy import sparse

from cellsmith._errors import NotTrainedError, SetupError
from cellsmith.model import SCAGC

Cells = Callable[..., AnnData]
Fit = Callable[..., SCAGC]


def test_graph_is_symmetric_connected_and_has_k_choices_a_cell(model: SCAGC) -> None:
    graph, lengths = model.get_learned_graph(), model.get_learned_graph(kind="distances")
    assert (graph != graph.T).nnz == 0
    assert graph.diagonal().sum() == 0
    assert sparse.csgraph.connected_components(graph)[0] == 1
    np.testing.assert_array_equal(graph.indices, lengths.indices)
    assert graph.data.min() > 0
    assert graph.data.max() == pytest.approx(1.0)
    assert lengths.data.min() >= 1e-6
    # k counts other cells (the released code has k - 1 of them)
    chosen = model.get_edge_probabilities(n_draws=4)
    np.testing.assert_allclose(chosen.sum(axis=1), 6.0, atol=1e-5)
    assert chosen.diagonal().sum() == 0
    assert np.diff(graph.indptr).min() >= 6


def test_distances_are_chords_of_what_cells_are_alone(model: SCAGC) -> None:
    lengths = model.get_learned_graph(kind="distances").tocoo()
    alone = model.module.fitted.alone.numpy()
    z = alone - alone.mean(axis=0)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    np.testing.assert_allclose(lengths.data, np.linalg.norm(unit[lengths.row] - unit[lengths.col], axis=1), atol=1e-4)


def test_answers_do_not_change_when_asked_twice(model: SCAGC) -> None:
    """The released code draws a new graph for its final labels."""
    assert model.predict().equals(model.predict())
    pd.testing.assert_frame_equal(model.predict(soft=True), model.predict(soft=True))
    assert not np.array_equal(
        model.get_edge_probabilities(n_draws=1, seed=0).indices, model.get_edge_probabilities(n_draws=1, seed=1).indices
    )


def test_soft_clusters_sum_to_one_and_name_the_cells(model: SCAGC) -> None:
    proba, labels = model.predict(soft=True), model.predict()
    np.testing.assert_allclose(proba.sum(axis=1), 1.0)
    assert list(proba.index) == list(labels.index) == list(model.adata.obs_names)
    assert list(proba.columns) == list(labels.cat.categories)
    assert (proba.to_numpy().argmax(1) == labels.cat.codes).mean() > 0.9


def test_degree_report_compares_hubs_and_the_penalty_takes_them_away(cells: Cells, fitted: Fit) -> None:
    model = fitted(cells(150), n_candidates=50, n_neighbors=8, train={"max_epochs": 0})
    report = model.get_degree_report()
    assert list(report.index) == ["learned", "knn"]
    assert report.loc["learned", "degree_cv"] < 0.8 * report.loc["knn", "degree_cv"]
    assert report.loc["learned", "largest_in_degree"] < report.loc["knn", "largest_in_degree"]
    assert len(report.loc["knn", "hubs"]) == 10


def test_written_graph_serves_scanpy_and_survives_files(model: SCAGC, tmp_path: Path) -> None:
    """E14."""
    adata = model.adata.copy()
    model.write(adata, key_added="mine")
    assert (adata.obsp["mine_connectivities"] != model.get_learned_graph()).nnz == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.tl.leiden(adata, neighbors_key="mine", flavor="igraph", n_iterations=2)
        sc.tl.umap(adata, neighbors_key="mine", maxiter=2)
        sc.tl.paga(adata, groups="mine", neighbors_key="mine")
        sc.tl.diffmap(adata, neighbors_key="mine", n_comps=4)
    block = adata.uns["mine"]
    assert block["params"]["use_rep"] == "X_mine"
    assert block["params"]["method"] == "umap"
    assert set(adata.obs) >= {"mine", "mine_confidence", "mine_margin", "mine_entropy"}
    assert block["provenance"]["learned_graph_claim"] in ("clustering", "hubness")
    del adata.uns["_scvi_uuid"], adata.uns["_scvi_manager_uuid"]
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for back in (read_h5ad(tmp_path / "a.h5ad"), read_zarr(tmp_path / "a.zarr")):
        # UMAP drops the weakest edges of the graph that it is given
        assert (back.obsp["mine_connectivities"] != adata.obsp["mine_connectivities"]).nnz == 0
        assert list(back.uns["mine"]["classes"]) == list(model.classes)


def test_saved_and_loaded_with_and_without_cells(model: SCAGC, cells: Cells, tmp_path: Path) -> None:
    model.save(tmp_path / "m", overwrite=True)
    back = SCAGC.load(tmp_path / "m", adata=cells(), accelerator="cpu")
    np.testing.assert_array_equal(back.get_latent(), model.get_latent())
    assert back.predict().equals(model.predict())
    np.testing.assert_array_equal(back.generate(5).X.toarray(), model.generate(5).X.toarray())
    others = cells(30, rng=1)
    others.obs_names = [f"new_{i}" for i in range(30)]
    elsewhere = SCAGC.load(tmp_path / "m", adata=others, accelerator="cpu")
    np.testing.assert_allclose(elsewhere.get_latent(), model.map_query(others).latent, atol=1e-6)


@pytest.mark.parametrize("kwargs", [{"train": {"max_epochs": 0}}, {"cluster_head": "dec", "n_clusters": 3}])
def test_other_kinds_are_saved_and_loaded(cells: Cells, fitted: Fit, tmp_path: Path, kwargs: dict) -> None:
    adata = cells(60)
    model = fitted(adata, **kwargs)
    model.save(tmp_path / "m", overwrite=True)
    back = SCAGC.load(tmp_path / "m", adata=cells(60), accelerator="cpu")
    assert back.predict().equals(model.predict())
    np.testing.assert_allclose(back.map_query(adata).latent, model.map_query(adata).latent, atol=1e-6)


def test_untrained_models_say_so_and_can_be_saved(cells: Cells, tmp_path: Path) -> None:
    adata = cells(60)
    SCAGC.setup_anndata(adata)
    model = SCAGC(adata)
    model.save(tmp_path / "m", overwrite=True)
    for query in ("predict", "get_latent_representation", "get_learned_graph", "get_merge_path", "generate"):
        with pytest.raises(NotTrainedError, match=query):
            getattr(model, query)()


def test_expression_sums_to_the_library_and_follows_the_batch(model: SCAGC) -> None:
    found = model.get_normalized_expression(library_size=500.0)
    np.testing.assert_allclose(found.sum(axis=1), 500.0, rtol=1e-4)
    moved = model.get_normalized_expression(transform_batch="batch_1", indices=[0, 1], library_size=500.0)
    same = (model.adata.obs["batch"].to_numpy()[:2] == "batch_1")[:, None]
    np.testing.assert_array_equal(np.isclose(moved, found[:2]).all(axis=1), same[:, 0])
    with pytest.raises(SetupError, match="Did you mean 'batch_1'"):
        model.get_normalized_expression(transform_batch="batch1")


def test_generated_cells_have_the_condition_and_library(model: SCAGC) -> None:
    made = model.generate(40, condition={"cluster": "1", "batch": "batch_0"}, library_size=300)
    assert (made.obs["scagc"] == "1").all()
    assert (made.obs["batch"] == "batch_0").all()
    assert made.obs["is_synthetic"].all()
    assert made.X.sum(axis=1).mean() == pytest.approx(300, rel=0.2)
    np.testing.assert_array_equal(
        made.X.toarray(),
        model.generate(40, condition={"cluster": "1", "batch": "batch_0"}, library_size=300).X.toarray(),
    )
    rows = pd.DataFrame({"cluster": ["0", "1", "0"]})
    assert list(model.generate(conditions=rows).obs["scagc"]) == ["0", "1", "0"]
    with pytest.raises(SetupError, match="No training cell has cluster='9'"):
        model.generate(3, condition={"cluster": "9"})
    with pytest.raises(SetupError, match=r"no registered column\. Did you mean 'batch'"):
        model.generate(3, condition={"batches": "batch_0"})
    again = model.posterior_predictive_sample(indices=[0, 1, 2], n_samples=2)
    assert again.shape == (3, 40, 2)


def test_mudata_results_go_into_the_modality(cells: Cells, fitted: Fit) -> None:
    rna = cells(60)
    other = AnnData(np.ones((60, 3), dtype=np.float32), obs=pd.DataFrame(index=rna.obs_names))
    mdata = mudata.MuData({"rna": rna, "adt": other})
    with pytest.raises(SetupError, match="modalities"):
        SCAGC.setup_mudata(mdata, layer="counts")
    SCAGC.setup_mudata(mdata, layer="counts", batch_key="batch", modalities={"layer": "rna", "batch_key": "rna"})
    model = SCAGC(mdata, n_hidden=8, n_latent=3, n_neighbors=5, n_candidates=10)
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    model.write()
    assert "scagc" in mdata.mod["rna"].obs
    assert "scagc_connectivities" in mdata.mod["rna"].obsp
    assert "X_scagc" not in mdata.mod["adt"].obsm
    assert model.map_query(mdata).latent.shape == (60, 3)
