"""One small trained model, shared by the tests of SCDD; no test may change it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

from cellsmith.datasets import toy_counts
from cellsmith.model import SCDD

SMALL: dict[str, Any] = {
    "n_latent": 4,
    "n_hidden": 16,
    "n_layers": 1,
    "n_denoiser_hidden": 16,
    "n_denoiser_layers": 1,
}
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}


def make(n_cells: int = 120, n_genes: int = 30, **kwargs: Any) -> AnnData:
    """Counts of three types in two batches, in a layer too, with colours."""
    adata = toy_counts(n_cells, n_genes, **{"n_types": 3, "n_batches": 2, **kwargs})
    adata.layers["counts"] = adata.X.copy()
    adata.uns["cell_type_colors"] = np.array(["#000000", "#111111", "#222222"])
    return adata


def fit(adata: AnnData, *, setup: dict[str, Any] | None = None, seed: int = 0, **kwargs: Any) -> SCDD:
    """Register, build and train for a moment."""
    given = {"labels_key": "cell_type", "batch_key": "batch", **(setup or {})}
    SCDD.setup_anndata(adata, **given)
    train = kwargs.pop("train", {"max_epochs": 2})
    model = SCDD(adata, **{**SMALL, **kwargs})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(**{**QUIET, **train}, seed=seed)
    return model


@pytest.fixture(scope="session")
def model() -> SCDD:
    with one_thread():
        return fit(make(), setup={"layer": "counts"}, train={"max_epochs": {"autoencoder": 20, "generator": 40}})


@pytest.fixture(scope="session")
def small(model: SCDD) -> AnnData:
    """Two profiles a class after a few steps."""
    with one_thread():
        return model.distill(2, objective="readers", max_steps=25, weights={"residual_weight": 0.0})


@pytest.fixture(scope="session")
def cells() -> Callable[..., AnnData]:
    """``cells(n_cells, n_genes, **kwargs)``: fresh toy counts."""
    return make


@pytest.fixture(scope="session")
def fitted() -> Callable[..., SCDD]:
    """``fitted(adata, setup=..., train=..., **model_kwargs)``: a model trained for a moment."""
    return fit


@contextmanager
def one_thread() -> Iterator[None]:
    """Equal seeds give equal bits for equal numbers of threads; numba, which scanpy calls, changes that of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # fixtures of the session are made before this one, and pin the number themselves
    with one_thread():
        yield
