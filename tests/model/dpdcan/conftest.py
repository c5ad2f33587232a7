"""Small cells and one trained model of each kind; no test may change them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

from cellsmith.datasets import toy_counts
from cellsmith.model import DPDCAN

SMALL: dict[str, Any] = {
    "n_clusters": 3,
    "n_components": 8,
    "n_latent": 4,
    "n_hidden": 8,
    "n_steps": 8,
    "dp_pca_fraction": 0.7,
    "unsafe_reproducible": True,
}
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}


def make_cells(n_cells: int = 150, n_genes: int = 60) -> AnnData:
    """Counts of three types in two batches, with donors."""
    adata = toy_counts(n_cells, n_genes, n_types=3, n_batches=2, rng=0)
    adata.X = sparse.csr_matrix(adata.X)
    adata.obs["donor"] = pd.Categorical([f"donor-{i % 40}" for i in range(n_cells)])
    return adata


def fit_model(
    adata: AnnData, *, setup: dict[str, Any] | None = None, train: dict[str, Any] | None = None, **given
) -> DPDCAN:
    """Register, build and train for a moment, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            DPDCAN.setup_anndata(adata, **(setup or {}))
            model = DPDCAN(adata, **{**SMALL, **given})
            model.train(**QUIET, **(train or {}))
        return model
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def adata() -> AnnData:
    return make_cells()


@pytest.fixture(scope="session")
def trained() -> DPDCAN:
    return fit_model(make_cells())


@pytest.fixture(scope="session")
def released() -> DPDCAN:
    """With everything that can be bought."""
    return fit_model(
        make_cells(),
        cluster_head="dp",
        latent_density="gaussian",
        n_units_policy="dp_count",
        setup={"batch_key": "batch"},
    )


@pytest.fixture(scope="session")
def make() -> Any:
    """150 cells of three types, 60 genes."""
    return make_cells


@pytest.fixture(scope="session")
def fit() -> Any:
    """Register, build and train for a moment."""
    return fit_model


@pytest.fixture
def numbers() -> np.random.Generator:
    return np.random.default_rng(0)
