"""Cells with a known response, and one model trained on them, shared by the tests of this folder."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from cellsmith.datasets import toy_perturbation
from cellsmith.model import SCE2TM

SMALL = {"n_topics": 8, "n_hidden": 32, "n_embedding": 16}


def fit(adata: AnnData, *, epochs: int = 30, **options: Any) -> SCE2TM:
    """Train a registered model for about a hundred steps; a high learning rate, clipped, makes up for their number."""
    model = SCE2TM(adata, **{**SMALL, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(
            max_epochs={"topics": epochs},
            accelerator="cpu",
            batch_size=128,
            early_stopping=False,
            enable_progress_bar=False,
            plan_kwargs={"lr": 1e-2, "clip": 5.0},
        )
    return model


@pytest.fixture(scope="session")
def fit_topics():
    return fit


@pytest.fixture(scope="session")
def stimulated() -> AnnData:
    """400 cells of 3 types, half of each stimulated; a batch that says nothing, and one that says it all."""
    adata = toy_perturbation(400, 100, n_types=3, n_responding=20)
    order = np.random.default_rng(0).permutation(400)
    adata.obs["batch"] = np.where(order % 2, "b1", "b2")
    adata.obs["donor"] = [f"d{i}" for i in order % 4]
    adata.obs["confounded"] = np.where(adata.obs["condition"] == "ctrl", np.where(order % 2, "c1", "c2"), "s")
    return adata


@pytest.fixture(scope="session")
def topic_model(stimulated: AnnData) -> SCE2TM:
    """Trained with a batch; no test may change it."""
    SCE2TM.setup_anndata(stimulated, batch_key="batch")
    return fit(stimulated)
