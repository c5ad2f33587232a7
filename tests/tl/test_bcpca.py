"""The door: one line from a matrix with missing entries to an embedding that scanpy goes on with."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

import cellsmith
from cellsmith._errors import CellsmithError, CellsmithWarning, ConvergenceError, DataWarning, SetupError, SizeError


def data(n: int = 120, d: int = 150, *, seed: int = 0) -> AnnData:
    generator = np.random.default_rng(seed)
    kind = np.arange(n) % 3
    x = generator.normal(size=(n, d)) + (2.0 * generator.normal(size=(3, d)))[kind]
    eta = generator.normal(size=(n, 1)) + generator.normal(size=d)
    adata = AnnData(np.where(generator.random((n, d)) < 1 / (1 + np.exp(-eta)), x, np.nan).astype(np.float32))
    adata.obs["kind"] = pd.Categorical(kind.astype(str))
    return adata


@pytest.fixture(scope="module")
def done() -> AnnData:
    adata = data()
    assert cellsmith.tl.bcpca(adata, n_latent=4) is None
    return adata


def test_one_line_writes_the_documented_slots(done: AnnData) -> None:
    assert set(done.obsm) == {"X_bcpca", "X_bcpca_mean", "X_bcpca_pairwise"}
    assert done.obsm["X_bcpca"].shape == (120, 4)
    assert done.obsm["X_bcpca"].dtype == np.float32
    assert done.varm["bcpca_loadings"].shape == (150, 4)
    assert {"bcpca_overlap", "bcpca_observed_rate"} <= set(done.obs)
    assert set(done.uns) == {"bcpca"}, "registration leaves no trace in the user's object"
    block = done.uns["bcpca"]
    assert np.all(np.diff(block["eigenvalues"]) <= 0)
    assert 0 < block["variance_ratio"].sum() <= 1
    assert 0 <= block["negative_mass"] < 1
    assert block["negative_mass_exact"]
    assert (block["residuals"] <= 1e-3 * block["eigenvalues"][0]).all()
    assert block["overlap"]["error"] <= 1e-4
    assert len(block["prob"]["a"]) == 120
    assert len(block["prob"]["b"]) == 150
    assert list(block["baselines"]["name"]) == ["bc", "mean", "pairwise"]
    assert block["provenance"]["seed"] == 0
    histories = block["provenance"]["histories"]
    assert {"statistics", "probability", "overlap", "compare"} <= set(histories)
    np.testing.assert_allclose(done.obs["bcpca_observed_rate"], (~np.isnan(done.X)).mean(axis=1), rtol=1e-6)


def test_no_output_says_imputed(done: AnnData) -> None:
    """Nothing is imputed, and nothing says so."""
    names = [*done.obs, *done.obsm, *done.varm, *done.layers, *map(str, done.uns["bcpca"])]
    assert not [name for name in names if "imput" in str(name).lower()]


def test_the_input_is_left_as_it_was() -> None:
    adata = data()
    before = adata.copy()
    made = cellsmith.tl.bcpca(adata, n_latent=2, copy=True, compare=False)
    for name in ("obs", "obsm", "uns", "layers", "varm"):
        assert set(getattr(adata, name)) == set(getattr(before, name))
    np.testing.assert_array_equal(adata.X, before.X)
    np.testing.assert_array_equal(made.X, before.X)
    assert "X_bcpca" in made.obsm


def test_the_data_are_shared_and_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = data()
    seen: list[Any] = []
    original = cellsmith.model.BCPCA.setup_anndata.__func__

    def spy(cls: Any, skeleton: AnnData, **kwargs: Any) -> None:
        seen.append(skeleton.X)
        original(cls, skeleton, **kwargs)

    monkeypatch.setattr(cellsmith.model.BCPCA, "setup_anndata", classmethod(spy))
    before = set(cellsmith.model.BCPCA._setup_adata_manager_store)
    cellsmith.tl.bcpca(adata, n_latent=2, compare=False)
    assert np.shares_memory(seen[0], adata.X)
    assert set(cellsmith.model.BCPCA._setup_adata_manager_store) <= before


def test_scanpy_goes_on_with_it(done: AnnData) -> None:
    adata = done.copy()
    cellsmith.pp.bc_neighbors(adata)
    sc.tl.leiden(adata, neighbors_key="bc_neighbors", resolution=0.3, flavor="igraph", n_iterations=2, directed=False)
    assert cellsmith.metrics.ari(adata.obs["kind"], adata.obs["leiden"]) > 0.9


def test_neighbours_by_corrected_distance(done: AnnData) -> None:
    adata = done.copy()
    cellsmith.pp.bc_neighbors(adata, metric="corrected", n_neighbors=8)
    distances = adata.obsp["bc_neighbors_distances"]
    assert adata.uns["bc_neighbors"]["ranked_by"] == "corrected"
    BCPCA = cellsmith.model.BCPCA
    BCPCA.setup_anndata(adata)
    model = BCPCA(adata, n_latent=4, compare=False)
    model.train(accelerator="cpu")
    coo = distances.tocoo()
    expected = np.sqrt(model.distances(np.column_stack([coo.row, coo.col])))
    np.testing.assert_allclose(coo.data, expected, rtol=1e-3, atol=1e-3)
    assert (np.diff(distances.indptr) == 7).all()
    assert 0.0 <= adata.uns["bc_neighbors"]["floored_share"] < 1.0
    kinds = adata.obs["kind"].to_numpy()
    assert (kinds[coo.row] == kinds[coo.col]).mean() > 0.95


def test_corrected_distances_need_what_the_fit_read() -> None:
    adata = data(60, 50)
    known = ~np.isnan(adata.X)
    cellsmith.tl.bcpca(adata, mask=known, n_latent=2, compare=False, min_overlap=0)
    assert adata.uns["bcpca"]["params"]["mask"] == "given"
    with pytest.raises(SetupError, match="was an array"):
        cellsmith.pp.bc_neighbors(adata, metric="corrected")
    cellsmith.tl.bcpca(adata, prob="pairwise", n_latent=2, compare=False, min_overlap=0)
    with pytest.raises(SetupError, match=r"model\.distances"):
        cellsmith.pp.bc_neighbors(adata, metric="corrected")


@pytest.mark.parametrize("prob", ["rank1", "rank1-legacy", "grouped", "covariates"])
def test_corrected_distances_after_every_kind_of_probability(prob: str) -> None:
    adata = data(70, 60)
    adata.X[3] = np.nan if prob != "rank1-legacy" else adata.X[3]
    adata.obs["batch"] = np.where(np.arange(70) % 2, "a", "b")
    how: dict[str, Any] = {"prob": prob} if prob != "covariates" else {"prob_covariates": ("batch",)}
    if prob == "grouped":
        how["batch_key"] = "batch"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CellsmithWarning)
        cellsmith.tl.bcpca(adata, n_latent=3, compare=False, min_overlap=0, **how)
        cellsmith.pp.bc_neighbors(adata, metric="corrected", n_neighbors=5)
    rows = np.diff(adata.obsp["bc_neighbors_distances"].indptr)
    if prob == "rank1-legacy":
        assert (rows == 4).all()
        return
    assert any(w.category is DataWarning and "1 cells have no embedding" in str(w.message) for w in caught)
    assert rows[3] == 0
    assert (np.delete(rows, 3) == 4).all()


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_result_survives_a_file(form: str, done: AnnData, tmp_path: Path) -> None:
    adata = done.copy()
    cellsmith.pp.bc_neighbors(adata)
    getattr(adata, f"write_{form}")(tmp_path / f"a.{form}")
    back = getattr(anndata, f"read_{form}")(tmp_path / f"a.{form}")
    np.testing.assert_array_equal(back.obsm["X_bcpca"], adata.obsm["X_bcpca"])
    assert set(back.uns["bcpca"]) == set(adata.uns["bcpca"])
    cellsmith.pp.bc_neighbors(back, metric="corrected", key_added="g")
    assert back.obsp["g_connectivities"].nnz
    cellsmith.pl.bcpca_baselines(back)
    report = cellsmith.metrics.missingness_report(back, mask="nan", key="bcpca")
    assert len(report.embeddings) == 3


def test_results_of_many_components_and_given_masks_survive_h5ad(tmp_path: Path) -> None:
    adata = data(60, 50)
    adata.obs["batch"] = np.where(np.arange(60) % 2, "a", "b")
    cellsmith.tl.bcpca(adata, mask=~np.isnan(adata.X), prob="grouped", batch_key="batch", n_latent=3, min_overlap=0)
    cellsmith.tl.bcpca(adata, n_latent=3, refine="hetero", rank_rule="gap", min_overlap=0, key_added="other")
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert back.uns["other"]["refine"]["method"] == "hetero"
    assert back.uns["bcpca"]["prob"]["model"] == "grouped"


def test_seeds_names_and_reruns(done: AnnData) -> None:
    adata = data()
    cellsmith.tl.bcpca(adata, n_latent=4, random_state=0)
    np.testing.assert_array_equal(adata.obsm["X_bcpca"], done.obsm["X_bcpca"])
    cellsmith.tl.bcpca(adata, n_latent=3, compare=False)  # replaces its own
    assert set(adata.obsm) == {"X_bcpca"}
    assert adata.obsm["X_bcpca"].shape == (120, 3)
    adata.obsm["X_mine"] = np.zeros((120, 2))
    with pytest.raises(SetupError, match="already exists"):
        cellsmith.tl.bcpca(adata, n_latent=3, compare=False, key_added="mine")
    cellsmith.tl.bcpca(adata, n_latent=3, compare=False, key_added="mine", overwrite=True)
    assert adata.obsm["X_mine"].shape == (120, 3)


def test_the_mark_of_a_stored_mask_is_read(done: AnnData) -> None:
    for share in (None, "observed"):
        adata = data()
        cellsmith.pp.missing_mask(adata)
        name = next(name for name in adata.layers if name)  # anndata 0.13 lists X too, as None
        if share:
            adata.layers["observed"] = sp.csr_matrix(1 - adata.layers.pop(name).toarray())
            adata.uns.pop(name)
            name = "observed"
        adata.X = np.nan_to_num(adata.X)
        cellsmith.tl.bcpca(adata, mask=name, n_latent=4, compare=False)
        np.testing.assert_allclose(adata.obsm["X_bcpca"], done.obsm["X_bcpca"], atol=1e-5)


def test_views_and_layers() -> None:
    adata = data()
    adata.layers["log"] = adata.X.copy()
    adata.X = np.zeros_like(adata.X)
    view = adata[:80]
    cellsmith.tl.bcpca(view, layer="log", n_latent=2, compare=False)
    assert view.obsm["X_bcpca"].shape == (80, 2)
    assert "X_bcpca" not in adata.obsm


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"key_added": "a/b"}, CellsmithError, "slash"),
        ({"layer": "log"}, SetupError, "layer='log'"),
        ({"mask": "observd"}, SetupError, "mask='observd'"),
        ({"prob": "grouped"}, SetupError, "batch_key"),
        ({"n_latent": 119}, SetupError, "positive eigenvalues; n_latent must be <="),
        ({"prob_covariates": ("depth",)}, SetupError, "'depth', which is in neither"),
        ({"min_overlap": 1e4}, SetupError, "min_overlap"),
        ({"prob": np.random.default_rng(0).random((120, 150)) ** 2}, ConvergenceError, "overlap_tol"),
        ({"rng": -1}, SetupError, "seed"),
    ],
)
def test_a_failure_writes_nothing(kwargs: dict[str, Any], error: type, text: str) -> None:
    adata = data()
    with pytest.raises(error, match=text):
        cellsmith.tl.bcpca(adata, **{"n_latent": 3, **kwargs})
    assert not adata.obsm
    assert not adata.uns
    assert not adata.layers
    assert list(adata.obs) == ["kind"]


def test_pairwise_refuses_many_cells_with_its_size() -> None:
    adata = AnnData(np.random.default_rng(0).normal(size=(5_001, 6)).astype(np.float32))
    adata.X[::7, 0] = np.nan
    with pytest.raises(SizeError, match=r"5001 cells would take 0\.2 GB"):
        cellsmith.tl.bcpca(adata, prob="pairwise", n_latent=2, min_overlap=0)


def test_mudata_is_told_what_to_type() -> None:
    with pytest.raises(SetupError, match="setup_mudata"):
        cellsmith.tl.bcpca(MuData({"a": data(20, 10)}))
