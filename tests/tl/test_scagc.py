"""The door: what it writes, where, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from cellsmith import tl
from cellsmith._errors import SetupError
from cellsmith.datasets import toy_counts

QUICK = {"max_epochs": 0, "accelerator": "cpu"}


def test_door_writes_graph_and_clusters_and_a_copy_leaves_the_input() -> None:
    adata = toy_counts(80, 40, n_types=3)
    adata.layers["counts"] = adata.X
    before = set(adata.obs), set(adata.obsm), set(adata.uns)
    out = tl.scagc(adata, layer="counts", n_clusters=3, key_added="c", copy=True, train_kwargs=QUICK, random_state=1)
    assert (set(adata.obs), set(adata.obsm), set(adata.uns)) == before
    assert out is not None
    assert out.obs["c"].nunique() == 3
    assert {"c_connectivities", "c_distances"} <= set(out.obsp)
    assert out.uns["c"]["provenance"]["seed"] == 1
    assert out.obsm["c_proba"].shape == (80, 3)


def test_without_clusters_there_are_no_labels_and_a_rerun_replaces_its_own() -> None:
    adata = toy_counts(60, 30, n_types=2)
    assert tl.scagc(adata, n_clusters=2, train_kwargs=QUICK) is None
    tl.scagc(adata, n_clusters=None, train_kwargs=QUICK)
    assert "scagc" not in adata.obs
    assert "scagc_proba" not in adata.obsm
    assert "X_scagc" in adata.obsm
    assert list(adata.uns["scagc"]["classes"]) == []


def test_names_of_others_and_unknown_options_are_refused() -> None:
    adata = toy_counts(60, 30, n_types=2)
    adata.obs["scagc"] = "mine"
    with pytest.raises(SetupError, match=r"\.obs\['scagc'\] already exists"):
        tl.scagc(adata, n_clusters=2, train_kwargs=QUICK)
    tl.scagc(adata, n_clusters=2, train_kwargs=QUICK, overwrite=True)
    assert set(np.unique(adata.obs["scagc"].astype(str))) == {"0", "1"}
    with pytest.raises(SetupError, match=r"no option 'n_latents'\. Did you mean 'n_latent'"):
        tl.scagc(adata, model_kwargs={"n_latents": 5}, train_kwargs=QUICK)
