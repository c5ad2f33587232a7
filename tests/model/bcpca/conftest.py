"""Data with a known space and uneven missingness, and small fits of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from cellsmith._errors import CellsmithWarning
from cellsmith.model import BCPCA

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def simulate(
    n: int = 300, d: int = 1000, k: int = 3, *, mechanism: str = "logistic", spread: float = 1.0, seed: int = 0
) -> AnnData:
    """A low-rank matrix plus noise, NaN where missing; ``.obsm["truth"]`` spans the true space."""
    generator = np.random.default_rng(seed)
    u = generator.normal(size=(n, k)) * np.linspace(2.0, 1.0, k)
    x = generator.normal(3.0, 0.3, d) + 0.25 * u @ generator.normal(size=(k, d)) + 2.0 * generator.normal(size=(n, d))
    if mechanism == "logistic":
        eta = spread * generator.normal(size=(n, 1)) + generator.normal(-0.5, 1.2, d)
        p = 1.0 / (1.0 + np.exp(-eta))
    elif mechanism == "rank1":
        p = generator.uniform(0.2, 1.0, (n, 1)) * generator.uniform(0.2, 1.0, d)
    else:
        p = np.ones((n, d))
    observed = generator.random((n, d)) < p
    adata = AnnData(np.where(observed, x, np.nan).astype(np.float32))
    adata.obsm["truth"] = u - u.mean(axis=0)
    adata.layers["complete"] = x.astype(np.float32)
    adata.layers["observed"] = observed.astype(np.float32)
    adata.layers["p"] = p * np.ones((n, d))
    adata.var_names = [f"g{i}" for i in range(d)]
    return adata


def build(adata: Any, *, setup: dict[str, Any] | None = None, seed: int = 0, **kwargs: Any) -> BCPCA:
    """Register, build and fit, without baselines and without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CellsmithWarning)
        BCPCA.setup_anndata(adata, **(setup or {}))
        model = BCPCA(adata, **{"n_latent": 3, "compare": False, "min_overlap": 0, **kwargs})
        model.train(seed=seed, **QUIET)
    return model


@pytest.fixture(scope="session")
def simulated() -> Callable[..., AnnData]:
    return simulate


@pytest.fixture(scope="session")
def fitted() -> Callable[..., BCPCA]:
    return build
