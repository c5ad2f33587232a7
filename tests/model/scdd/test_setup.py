"""Registration, saving, other sources: what is refused, and what comes back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mudata
import numpy as np
import pytest
import scvi
from anndata import AnnData

from cellsmith._errors import SetupError
from cellsmith.model import SCDD

Cells = Callable[..., AnnData]
Fit = Callable[..., SCDD]
SMALL = {"n_latent": 4, "n_hidden": 16, "n_layers": 1, "n_denoiser_hidden": 16, "n_denoiser_layers": 1}


def test_the_name_is_told_apart() -> None:
    assert "Bioconductor" in (SCDD.__doc__ or "")


@pytest.mark.parametrize(
    ("break_it", "kwargs", "match"),
    [
        (lambda a: None, {"labels_key": "cell_typ"}, "Did you mean 'cell_type'"),
        (lambda a: a.obs.__setitem__("cell_type", "one"), {}, "the label 'one' alone"),
        (lambda a: a.obs.__setitem__("cell_type", np.nan), {}, "no label at all"),
        (lambda a: a.X.data.__setitem__(slice(None), 0.5), {}, r"0.5.*looks? log-normalised"),
        (lambda a: a.X.data.__setitem__(0, -1), {}, "negative"),
        (lambda a: a.obsm.__setitem__("E", np.full((60, 2), np.nan)), {"use_rep": "E"}, "not finite in 60 rows"),
        (lambda a: None, {"use_rep": "E"}, "not in .obsm"),
        (lambda a: a.__setattr__("var_names", ["g"] * a.n_vars), {}, "holds 'g' twice"),
        (lambda a: None, {"batch_key": "batches"}, "batch"),
    ],
)
def test_bad_input_is_refused_and_untouched(cells: Cells, break_it: Any, kwargs: dict[str, Any], match: str) -> None:
    adata = cells(60)
    break_it(adata)
    before = list(adata.obs)
    with pytest.raises(SetupError, match=match):
        SCDD.setup_anndata(adata, **{"labels_key": "cell_type", **kwargs})
    assert list(adata.obs) == before
    assert "_scvi_uuid" not in adata.uns


def test_views_empty_cells_and_unknown_likelihoods_are_refused(cells: Cells) -> None:
    adata = cells(80)
    with pytest.raises(SetupError, match=r"adata\.copy"):
        SCDD.setup_anndata(adata[:60], labels_key="cell_type")
    adata.X[0] = 0
    with pytest.raises(SetupError, match="total of zero"):
        SCDD.setup_anndata(adata, labels_key="cell_type")
    fresh = cells(60)
    SCDD.setup_anndata(fresh, labels_key="cell_type")
    with pytest.raises(SetupError, match="zinb"):
        SCDD(fresh, gene_likelihood="zimb")


def test_untrained_and_trained_models_survive_saving(cells: Cells, model: SCDD, small: AnnData, tmp_path: Path) -> None:
    adata = cells(60)
    SCDD.setup_anndata(adata, labels_key="cell_type")
    SCDD(adata, **SMALL).save(tmp_path / "untrained")
    assert not SCDD.load(tmp_path / "untrained", adata=adata, accelerator="cpu").is_trained_
    model.save(tmp_path / "trained")
    back = SCDD.load(tmp_path / "trained", adata=model.adata.copy(), accelerator="cpu")
    again = back.distill(2, objective="readers", max_steps=25, weights={"residual_weight": 0.0})
    assert again.uns["scdd"]["selected_step"] == small.uns["scdd"]["selected_step"]
    np.testing.assert_array_equal(back.get_latent(), model.get_latent())
    assert (again.X != small.X).nnz == 0
    np.testing.assert_array_equal(again.obsm["X_scdd"], small.obsm["X_scdd"])
    np.testing.assert_array_equal(back.generate(5).X.toarray(), model.generate(5).X.toarray())


def test_changed_gene_order_is_refused(model: SCDD) -> None:
    other = model.adata[:, ::-1].copy()
    with pytest.raises(SetupError, match="another order"):
        model.get_latent_representation(other)


def test_training_again_with_the_same_seed_gives_the_same_model(cells: Cells, fitted: Fit) -> None:
    first, second = (fitted(cells(80), train={"max_epochs": 1}) for _ in range(2))
    np.testing.assert_array_equal(first.get_latent(), second.get_latent())
    assert (
        first.distill(1, objective="readers", max_steps=2).X != second.distill(1, objective="readers", max_steps=2).X
    ).nnz == 0
    third = fitted(cells(80), train={"max_epochs": 1}, seed=1)
    assert not np.array_equal(first.get_latent(), third.get_latent())


def test_dense_and_sparse_counts_give_the_same_step_zero(cells: Cells, fitted: Fit) -> None:
    dense = cells(80)
    dense.X = dense.X.toarray()
    made = [fitted(a, train={"max_epochs": 1}).distill(2, max_steps=0) for a in (cells(80), dense)]
    assert (made[0].X != made[1].X).nnz == 0


def test_size_factors_and_foundation_embedding(cells: Cells, fitted: Fit) -> None:
    adata = cells(80)
    adata.obs["factor"] = np.asarray(adata.X.sum(axis=1)).ravel() / 100
    adata.obsm["E"] = np.random.default_rng(0).normal(size=(80, 3))
    model = fitted(adata, setup={"size_factor_key": "factor", "use_rep": "E"}, train={"max_epochs": 1})
    assert float(model.module.size_factor_scale) == pytest.approx(100, rel=1e-5)
    assert "autoencoder/train_foundation" in model.history_
    assert model.distill(1, objective="readers", max_steps=2).n_obs == 3


def test_zero_inflated_likelihood(cells: Cells, fitted: Fit) -> None:
    model = fitted(cells(80), gene_likelihood="zinb", train={"max_epochs": 1})
    assert model.distill(1, objective="readers", max_steps=2).n_obs == 3
    assert model.generate(3).n_obs == 3


def test_mudata_reads_and_writes_the_modality_of_the_counts(cells: Cells) -> None:
    rna = cells(80)
    mdata = mudata.MuData({"rna": rna})
    with pytest.raises(SetupError, match="modalities"):
        SCDD.setup_mudata(mdata, labels_key="cell_type")
    places = {"layer": "rna", "labels_key": "rna", "batch_key": "rna"}
    SCDD.setup_mudata(mdata, labels_key="cell_type", batch_key="batch", modalities=places)
    model = SCDD(mdata, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    made = model.distill(1, max_steps=0)
    assert made.var_names.equals(rna.var_names)
    model.write()
    assert "X_scdd" in mdata.mod["rna"].obsm


def test_trained_scvi_supplies_encoder_and_decoder(cells: Cells) -> None:
    adata = cells(80)
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    source = scvi.model.SCVI(adata, n_latent=3, n_hidden=16)
    with pytest.raises(RuntimeError, match="trained"):
        SCDD.from_scvi_model(source, labels_key="cell_type")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source.train(1, accelerator="cpu", enable_progress_bar=False)
        before = {k: v.clone() for k, v in source.module.state_dict().items()}
        model = SCDD.from_scvi_model(source, labels_key="cell_type", n_denoiser_hidden=16, n_denoiser_layers=1)
        model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    assert [s.name for s in model.stages()] == ["generator", "respond"]
    assert all(bool((before[k] == v).all()) for k, v in source.module.state_dict().items())
    np.testing.assert_allclose(model.get_latent(), source.get_latent_representation(), atol=1e-5)
    made = model.distill(2, objective="readers", max_steps=2)
    assert made.X.dtype == np.int32
    with pytest.raises(SetupError, match="multinomial"):
        model.distill(1, max_steps=0, count_mode="nb")


def test_data_module_is_refused(cells: Cells) -> None:
    from lightning.pytorch import LightningDataModule

    adata = cells(60)
    SCDD.setup_anndata(adata, labels_key="cell_type")
    with pytest.raises(SetupError, match="data module"):
        SCDD(adata, **SMALL).train(max_epochs=1, datamodule=LightningDataModule(), accelerator="cpu")
