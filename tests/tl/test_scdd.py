"""The door: one line from labelled counts to profiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from anndata import AnnData

import cellsmith
from cellsmith._errors import SetupError

QUICK: dict[str, Any] = {
    "model_kwargs": {"n_latent": 3, "n_hidden": 16, "n_layers": 1, "n_denoiser_hidden": 16, "n_denoiser_layers": 1},
    "train_kwargs": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    "distill_kwargs": {"objective": "readers", "max_steps": 2},
}


def data() -> AnnData:
    return cellsmith.datasets.toy_counts(80, 20, n_types=2, n_batches=2)


def test_one_line_gives_profiles_and_random_state_is_rng() -> None:
    made = cellsmith.tl.scdd(data(), labels_key="cell_type", n_per_class=2, **QUICK)
    assert made.shape == (4, 20)
    assert made.X.dtype == np.int32
    assert made.uns["scdd"]["provenance"]["seed"] == 0
    same = cellsmith.tl.scdd(data(), labels_key="cell_type", n_per_class=2, random_state=0, **QUICK)
    assert (same.X != made.X).nnz == 0


def test_copy_leaves_the_input_untouched_and_the_key_names_everything() -> None:
    adata = data()
    before = adata.copy()
    made = cellsmith.tl.scdd(
        adata, labels_key="cell_type", batch_key="batch", n_per_class=1, key_added="mine", copy=True, **QUICK
    )
    assert list(adata.obs) == list(before.obs)
    assert set(adata.uns) == set(before.uns)
    assert "mine_library" in made.obs
    assert "mine_log" in made.layers
    assert made.obs_names[0] == "mine_0"


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"distill_kwargs": {"max_step": 1}}, "max_steps"),
        ({"distill_kwargs": {"n_per_class": 1}}, "takes itself"),
        ({"distill_kwargs": {"key_added": "x"}}, "takes itself"),
        ({"model_kwargs": {"n_latents": 1}}, "n_latent"),
        ({"train_kwargs": {"max_epoch": 1}}, "max_epochs"),
        ({"key_added": "a/b"}, "slash"),
    ],
)
def test_unknown_names_are_refused_before_training(kwargs: dict[str, Any], match: str) -> None:
    adata = data()
    with pytest.raises(SetupError, match=match):
        cellsmith.tl.scdd(adata, labels_key="cell_type", **kwargs)
    assert "_scvi_uuid" not in adata.uns
