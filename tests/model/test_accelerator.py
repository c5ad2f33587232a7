"""Every model on every device: trained there, asked there, moved to the CPU, saved and loaded.

The rows of an accelerator are skipped where there is none; those of the CPU hold the file itself to the models.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scvi.model._utils import parse_device_args

from cellsmith import model as models
from cellsmith.datasets import toy_counts

SMALL = {"n_latent": 4, "n_hidden": 16}
DENOISER = {"n_denoiser_hidden": 16, "n_denoiser_layers": 1}


def counts() -> AnnData:
    return toy_counts(160, 60, n_types=3, n_batches=2)


def scored() -> AnnData:
    """Cells of three types in an embedding, with noisy scores."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, 160)
    adata = AnnData(obsm={"X_pca": (6 * np.eye(3, 5)[kind] + rng.normal(size=(160, 5))).astype(np.float32)})
    adata.obsm["scores"] = np.exp(np.eye(3)[kind] + rng.normal(size=(160, 3)))
    adata.obsm["scores"] /= adata.obsm["scores"].sum(axis=1, keepdims=True)
    adata.uns["scores"] = {"classes": ["B", "NK", "T"]}
    return adata


def missing() -> AnnData:
    """A matrix of rank two plus noise, every fourth entry missing."""
    rng = np.random.default_rng(0)
    x = 3 + rng.normal(size=(160, 2)) @ rng.normal(size=(2, 60)) + 0.3 * rng.normal(size=(160, 60))
    x[rng.random(x.shape) < 0.25] = np.nan
    return AnnData(x.astype(np.float32))


def latent(model: Any) -> np.ndarray:
    return np.asarray(model.get_latent_representation())


def probabilities(model: Any) -> np.ndarray:
    return np.asarray(model.predict(soft=True), dtype=np.float64)


# Class (and variant) -> cells, setup, options, epochs, what it answers.
CASES: dict[str, tuple[Callable[[], AnnData], dict[str, Any], dict[str, Any], int | None, Callable[..., Any]]] = {
    "SCAGC paper": (counts, {}, {"n_clusters": 3, "variant": "paper"}, 2, latent),
    "ScSiameseClu paper": (counts, {}, {"n_clusters": 3, "variant": "paper"}, 2, latent),
    "SCLD": (counts, {"labels_key": "cell_type", "batch_key": "batch"}, SMALL | DENOISER, 2, latent),
    "SCDD": (counts, {"labels_key": "cell_type", "batch_key": "batch"}, SMALL | DENOISER, 2, latent),
    "SCE2TM": (counts, {"batch_key": "batch"}, {"n_topics": 4, "n_hidden": 16, "n_embedding": 8}, 2, latent),
    "SCAGC": (counts, {"batch_key": "batch"}, SMALL | {"n_clusters": 3, "graph_weight": 0.3}, 2, latent),
    "ScSiameseClu": (counts, {"batch_key": "batch"}, SMALL | {"n_clusters": 3, "n_neighbors": 8}, 4, latent),
    "DPDCAN": (
        counts,
        {},
        SMALL | {"n_clusters": 3, "n_components": 6, "dp_pca_fraction": 0.7, "n_steps": 6, "unsafe_reproducible": True},
        None,
        latent,
    ),
    "GRIT": (scored, {"scores_key": "scores"}, {}, None, probabilities),
    "BCPCA": (missing, {}, {"n_latent": 2, "compare": False, "min_overlap": 0}, None, latent),
}


@pytest.fixture(params=["cpu", "cuda", "mps"])
def accelerator(request: pytest.FixtureRequest) -> str:
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present[request.param]:
        pytest.skip(f"this machine has no {request.param} device")
    return str(request.param)


def fit(name: str, accelerator: str) -> Any:
    make, setup, options, epochs, _ = CASES[name]
    adata = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = getattr(models, name.split()[0])
        kind.setup_anndata(adata, **setup)
        model = kind(adata, **options)
        length = {} if epochs is None else {"max_epochs": epochs}
        model.train(accelerator=accelerator, devices=1, enable_progress_bar=False, seed=0, **length)
    return model


@pytest.mark.parametrize("name", CASES)
def test_trained_there_and_asked_here(name: str, accelerator: str, tmp_path: Path) -> None:
    """The answer of a device is that of the CPU with the same weights, and survives a file."""
    model, answer = fit(name, accelerator), CASES[name][-1]
    device = parse_device_args(accelerator=accelerator, devices=1, return_device="torch")[2]
    assert torch.device(model.device_).type == device.type
    there = answer(model)
    assert np.isfinite(there).all()
    model.save(tmp_path / name)
    loaded = type(model).load(tmp_path / name, adata=model.adata, accelerator="cpu")
    # float32 on two kinds of processor
    np.testing.assert_allclose(answer(loaded), there, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", CASES)
def test_the_same_seed_gives_the_same_answer(name: str, accelerator: str) -> None:
    """Sums on an accelerator have no fixed order, so that answers there agree up to rounding, not to the bit."""
    first, second = (CASES[name][-1](fit(name, accelerator)) for _ in range(2))
    if accelerator == "cpu":
        np.testing.assert_array_equal(first, second)
    else:
        np.testing.assert_allclose(first, second, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", ["SCLD", "SCDD"])
def test_cells_are_written_there(name: str, accelerator: str) -> None:
    """Sampling runs on the device of the model."""
    model = fit(name, accelerator)
    made = model.generate(conditions=pd.DataFrame({"cell_type": ["type_0", "type_1"] * 5, "batch": ["batch_0"] * 10}))
    assert made.shape == (10, 60)
    assert np.isfinite(made.X.data if hasattr(made.X, "data") else made.X).all()
