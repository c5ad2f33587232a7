"""One small trained model, shared by the tests of SCAGC; no test may change it."""

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
from cellsmith.model import SCAGC

# so few genes give too few markers for "auto"
SMALL: dict[str, Any] = {"n_hidden": 16, "n_latent": 5, "n_neighbors": 6, "n_candidates": 16, "n_clusters": 3}
# what is off by default is on here, so that it is tested
SMALL |= {"graph": "learned", "graph_weight": 0.3, "contrast_weight": 0.1}
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}


def make(n_cells: int = 120, n_genes: int = 40, **kwargs: Any) -> AnnData:
    """Counts of three types in two batches, in a layer too."""
    adata = toy_counts(n_cells, n_genes, **{"n_types": 3, "n_batches": 2, **kwargs})
    adata.layers["counts"] = adata.X.copy()
    return adata


def fit(adata: AnnData, *, setup: dict[str, Any] | None = None, seed: int = 0, **kwargs: Any) -> SCAGC:
    """Register, build and train for a moment."""
    SCAGC.setup_anndata(adata, **(setup or {}))
    train = kwargs.pop("train", {"max_epochs": 2})
    model = SCAGC(adata, **{**SMALL, **kwargs})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(**{**QUIET, "batch_size": 64, **train}, seed=seed)
    return model


@pytest.fixture(scope="session")
def model() -> SCAGC:
    with one_thread():
        return fit(
            make(),
            setup={"layer": "counts", "batch_key": "batch"},
            train={"max_epochs": 12, "batch_size": 32},
            n_hidden=32,
        )


@pytest.fixture(scope="session")
def untrained() -> SCAGC:
    with one_thread():
        return fit(make(), train={"max_epochs": 0})


@pytest.fixture(scope="session")
def published() -> SCAGC:
    """The paper's variant after a few epochs."""
    with one_thread():
        adata = make(60, 30)
        SCAGC.setup_anndata(adata, layer="counts")
        model = SCAGC(adata, variant="paper", n_clusters=3)
        model.train(max_epochs=9, **QUIET)
    return model


@pytest.fixture(scope="session")
def cells() -> Callable[..., AnnData]:
    """``cells(n_cells, n_genes, **kwargs)``: fresh toy counts."""
    return make


@pytest.fixture(scope="session")
def fitted() -> Callable[..., SCAGC]:
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


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(0)
