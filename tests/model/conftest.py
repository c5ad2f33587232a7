"""Toy data and one trained model, shared by all tests of the models."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from cellsmith.datasets import toy_counts
from cellsmith.model import SCLD

SMALL = {"n_latent": 4, "n_hidden": 24, "n_denoiser_hidden": 24, "n_denoiser_layers": 2}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def make_toy(n_cells: int = 160, n_genes: int = 40, *, n_types: int = 3, n_batches: int = 2, rng: int = 0) -> AnnData:
    """Counts with two categorical and one continuous covariate."""
    adata = toy_counts(n_cells, n_genes, n_types=n_types, n_batches=n_batches, rng=rng)
    generator = np.random.default_rng(rng)
    adata.obs["donor"] = np.array(["d1", "d2", "d3"])[generator.integers(0, 3, n_cells)]
    adata.obs["score"] = generator.normal(3.0, 2.0, n_cells)
    return adata


def build(adata: AnnData, *, setup: dict[str, Any] | None = None, **model_kwargs: Any) -> SCLD:
    """Register and build a small model, by default on batch and label."""
    SCLD.setup_anndata(adata, **({"batch_key": "batch", "labels_key": "cell_type"} if setup is None else setup))
    return SCLD(adata, **{**SMALL, **model_kwargs})


def train(model: SCLD, *, epochs: int = 2, steps: int = 10, **kwargs: Any) -> SCLD:
    """Train for a moment; the quality of the answer is of no interest."""
    model.n_diffusion_steps_ = steps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=kwargs.pop("max_epochs", epochs), **{**QUIET, **kwargs})
    return model


@pytest.fixture(scope="session")
def make() -> Callable[..., AnnData]:
    return make_toy


@pytest.fixture(scope="session")
def quick() -> Callable[..., SCLD]:
    """``quick(adata, setup=..., **model_kwargs)``: a model trained for a moment."""

    def make_quick(adata: AnnData, *, setup: dict[str, Any] | None = None, seed: int = 0, **kwargs: Any) -> SCLD:
        return train(build(adata, setup=setup, **kwargs), seed=seed)

    return make_quick


@pytest.fixture(scope="session")
def built() -> Callable[..., SCLD]:
    return build


@pytest.fixture(scope="session")
def trained_for_a_moment() -> Callable[..., SCLD]:
    return train


@pytest.fixture(scope="session")
def model() -> SCLD:
    """The one model that is trained in earnest: 240 cells, batch and label; no test may change it."""
    adata = make_toy(240, 50)
    return train(build(adata), max_epochs={"autoencode": 30, "diffuse": 8}, steps=800, batch_size=32)
