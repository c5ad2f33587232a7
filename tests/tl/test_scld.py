"""The door: one line from counts to new cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from anndata import AnnData

import cellsmith
from cellsmith._errors import CellsmithError, SetupError

QUICK: dict[str, Any] = {
    "model_kwargs": {"n_latent": 3, "n_hidden": 16, "n_denoiser_hidden": 16, "n_denoiser_layers": 1}
    | {"n_diffusion_steps": 5},
    "train_kwargs": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
}


def data() -> AnnData:
    return cellsmith.datasets.toy_counts(80, 20, n_types=2, n_batches=2)


@pytest.fixture(scope="module")
def new() -> AnnData:
    return cellsmith.tl.scld(data(), labels_key="cell_type", n_cells=30, **QUICK)


def test_one_line_gives_new_cells(new: AnnData) -> None:
    assert new.shape == (30, 20)
    assert new.X.dtype == np.int32
    assert {"cell_type", "is_synthetic", "scld_library"} <= set(new.obs)
    assert "scld" in new.uns
    assert new.uns["scld"]["provenance"]["seed"] == 0


def test_key_added_names_everything() -> None:
    made = cellsmith.tl.scld(data(), labels_key="cell_type", n_cells=8, key_added="mine", **QUICK)
    assert list(made.uns) == ["mine"]
    assert "mine_library" in made.obs
    assert "X_mine" in made.obsm
    assert made.obs_names[0] == "mine_0"


@pytest.mark.parametrize("key", ["", "a/b"])
def test_impossible_key_is_refused_before_training(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cellsmith.model.SCLD, "train", lambda *a, **k: pytest.fail("trained first"))
    with pytest.raises(CellsmithError):
        cellsmith.tl.scld(data(), key_added=key, **QUICK)


def test_copy_leaves_the_input_untouched() -> None:
    adata = data()
    before = adata.copy()
    cellsmith.tl.scld(adata, labels_key="cell_type", n_cells=5, copy=True, **QUICK)
    assert list(adata.obs) == list(before.obs)
    assert set(adata.uns) == set(before.uns)
    assert (adata.X != before.X).nnz == 0
    registered = data()
    cellsmith.tl.scld(registered, labels_key="cell_type", n_cells=5, **QUICK)
    assert "_scvi_uuid" in registered.uns
    assert "scld" not in registered.uns


def test_random_state_is_another_name_of_rng(new: AnnData) -> None:
    same, other = (
        cellsmith.tl.scld(data(), labels_key="cell_type", n_cells=30, **how, **QUICK)
        for how in ({"random_state": 0}, {"rng": 1})
    )
    assert (same.X != new.X).nnz == 0
    assert (other.X != new.X).nnz > 0
    assert other.uns["scld"]["provenance"]["seed"] == 1


@pytest.mark.parametrize(
    ("mapping", "name", "nearest"),
    [
        ("model_kwargs", "n_latnet", "n_latent"),
        ("model_kwargs", "continuous_covariate_key", "continuous_covariate_keys"),
        ("model_kwargs", "labels_key", "Valid"),
        ("train_kwargs", "max_epoch", "max_epochs"),
        ("generate_kwargs", "guidnace", "guidance"),
        ("generate_kwargs", "n_cells", "n_cells="),
    ],
)
def test_unknown_names_in_mappings_raise_with_the_nearest(mapping: str, name: str, nearest: str) -> None:
    adata = data()
    with pytest.raises(SetupError, match=rf"{mapping}.*{name}.*{nearest}"):
        cellsmith.tl.scld(adata, **{mapping: {name: 1}})
    assert "_scvi_uuid" not in adata.uns


def test_mappings_reach_the_set_up_the_model_and_the_query() -> None:
    adata = data()
    kwargs = {**QUICK, "model_kwargs": {**QUICK["model_kwargs"], "continuous_covariate_keys": ["library"]}}
    made = cellsmith.tl.scld(
        adata,
        labels_key="cell_type",
        batch_key="batch",
        n_cells=6,
        generate_kwargs={"library_size": 50, "condition": {"cell_type": "type_0"}},
        **kwargs,
    )
    assert (np.asarray(made.X.sum(axis=1)).ravel() == 50).all()
    assert (made.obs["cell_type"] == "type_0").all()
    assert {"batch", "library"} <= set(made.obs)
    assert made.obsm["X_scld"].shape[1] == 3


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_answer_survives_a_file(form: str, new: AnnData, tmp_path: Path) -> None:
    getattr(new, f"write_{form}")(tmp_path / f"a.{form}")
    back = getattr(anndata, f"read_{form}")(tmp_path / f"a.{form}")
    assert (back.X != new.X).nnz == 0
    assert back.obs["cell_type"].tolist() == new.obs["cell_type"].tolist()
    assert back.obs["is_synthetic"].all()
    np.testing.assert_array_equal(back.obsm["X_scld"], new.obsm["X_scld"])
    assert set(back.uns["scld"]) == set(new.uns["scld"])
