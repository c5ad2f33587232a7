"""Small cells of four types, and one model trained on them, shared by the tests of this folder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

from cellsmith.datasets import toy_counts
from cellsmith.model import ScSiameseClu

SMALL = {"n_hidden": 24, "n_latent": 8, "n_neighbors": 10}


def fit(adata: AnnData, *, setup: dict[str, Any] | None = None, train: dict[str, Any] | None = None, **options: Any):
    """Register, build and train a model for a moment."""
    ScSiameseClu.setup_anndata(adata, **(setup or {}))
    model = ScSiameseClu(adata, **{**SMALL, "n_clusters": 4, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(accelerator="cpu", enable_progress_bar=False, **{"max_epochs": 12, **(train or {})})
    return model


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-equal results need one number of threads, whatever other tests left behind."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cells() -> AnnData:
    """160 cells of 4 types in 2 batches, 60 genes."""
    return toy_counts(160, 60, n_types=4, n_batches=2)


@pytest.fixture(scope="session")
def model(cells: AnnData, one_thread: None) -> ScSiameseClu:
    """The model that is trained in earnest; no test may change it."""
    return fit(cells.copy(), setup={"batch_key": "batch"}, train={"max_epochs": {"warmup": 40, "transport": 16}})


@pytest.fixture(scope="session")
def fitted():
    return fit


@pytest.fixture
def fresh(cells: AnnData) -> AnnData:
    """A copy of the cells that a test may change."""
    return cells.copy()


@pytest.fixture(scope="session")
def other(cells: AnnData) -> AnnData:
    """40 cells of the same types that no model has seen."""
    return toy_counts(200, 60, n_types=4, n_batches=2)[160:].copy()


def labels(adata: AnnData) -> np.ndarray:
    return adata.obs["cell_type"].to_numpy()
