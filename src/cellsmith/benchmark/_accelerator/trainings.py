"""What is timed: one short training of every method, and of scVI, on cells that are made up."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from anndata import AnnData

from cellsmith._rng import isolated
from cellsmith.datasets import toy_counts

__all__ = ["CLOSED", "TRAINED", "cells", "measure"]

# Epochs of two trainings, whose difference is free of set-up and of what is done once.
SHORT, LONG = 1, 4
# A private step reads a tenth of the units.
STEPS_AN_EPOCH = 10

TRAINED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "SCLD": ({"labels_key": "cell_type", "batch_key": "batch"}, {}),
    "SCDD": ({"labels_key": "cell_type"}, {}),
    "SCE2TM": ({"batch_key": "batch"}, {"n_topics": 20}),
    "SCAGC": ({"batch_key": "batch"}, {"n_clusters": None}),
    "ScSiameseClu": ({"batch_key": "batch"}, {"n_clusters": 8, "n_top_genes": None}),
    "DPDCAN": ({}, {"n_clusters": 8, "dp_pca_fraction": 0.7, "sample_rate": 0.1, "unsafe_reproducible": True}),
    "scVI": ({"batch_key": "batch"}, {"gene_likelihood": "nb"}),
}
"""Method -> its set-up and options; an epoch of all its stages is timed."""

CLOSED = ("BCPCA", "GRIT")
"""Methods without epochs: a whole fit is timed."""


def cells(n_cells: int, n_genes: int) -> AnnData:
    """Return made-up counts, CSR, with 8 types and 2 batches; only their size matters."""
    made = toy_counts(n_cells, n_genes, n_types=8, n_batches=2, rng=0)
    return AnnData(made.X, obs=made.obs[["cell_type", "batch"]].copy())


def _train(name: str, data: AnnData, *, accelerator: str, epochs: int) -> None:
    if name == "scVI":
        from scvi.model import SCVI as Model
    else:
        from cellsmith import model

        Model = getattr(model, name)
    setup, options = TRAINED[name]
    more: dict[str, Any] = {"max_epochs": epochs}
    if name == "DPDCAN":
        options, more = {**options, "n_steps": epochs * STEPS_AN_EPOCH}, {}
    with isolated(0):
        Model.setup_anndata(data, **setup)
        Model(data, **options).train(
            accelerator=accelerator, devices=1, enable_progress_bar=False, logger=False, **more
        )


def _scored(n_cells: int) -> AnnData:
    """Return cells of eight types in 30 dimensions with noisy scores."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 8, n_cells)
    data = AnnData(obsm={"X_pca": (4 * np.eye(8, 30)[kind] + rng.normal(size=(n_cells, 30))).astype(np.float32)})
    scores = np.exp(np.eye(8)[kind] + rng.normal(size=(n_cells, 8)))
    data.obsm["scores"] = scores / scores.sum(axis=1, keepdims=True)
    data.uns["scores"] = {"classes": [f"type_{i}" for i in range(8)]}
    return data


def _fit(name: str, n_cells: int, n_genes: int, *, accelerator: str) -> float:
    """Return the seconds of a fit in closed form."""
    from cellsmith import model

    if name == "GRIT":
        data, setup, options = _scored(n_cells), {"scores_key": "scores"}, {}
    else:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(n_cells, 5)) @ rng.normal(size=(5, n_genes)) + rng.normal(size=(n_cells, n_genes))
        x[rng.random(x.shape) < 0.3] = np.nan
        data, setup, options = AnnData(x.astype(np.float32)), {}, {"compare": False}
    kind = getattr(model, name)
    kind.setup_anndata(data, **setup)
    fitted: Any = kind(data, **options)
    started = time.perf_counter()
    fitted.train(accelerator=accelerator, devices=1, enable_progress_bar=False)
    return time.perf_counter() - started


def measure(name: str, accelerator: str, *, n_cells: int, n_genes: int) -> Mapping[str, float]:
    """Time one method on one kind of device.

    Parameters
    ----------
    name
        Of `TRAINED` or `CLOSED`.
    accelerator
        "cpu" or "cuda".
    n_cells, n_genes
        Size of the data.

    Returns
    -------
    Seconds of an epoch of all stages (of a fit, where there are no epochs), and the most bytes that tensors took on the
    accelerator.
    """
    warnings.simplefilter("ignore")
    on_cuda = accelerator == "cuda"
    if on_cuda:
        torch.zeros(1, device="cuda")  # the start of the device is not timed
        torch.cuda.reset_peak_memory_stats()
    if name in CLOSED:
        # the second: the first compiles and allocates
        seconds = [_fit(name, n_cells, n_genes, accelerator=accelerator) for _ in range(2)][1]
    else:
        data, taken = cells(n_cells, n_genes), []
        for epochs in (SHORT, SHORT, LONG):
            started = time.perf_counter()
            _train(name, data.copy(), accelerator=accelerator, epochs=epochs)
            taken.append(time.perf_counter() - started)
        seconds = (taken[2] - taken[1]) / (LONG - SHORT)
    found = {"seconds": seconds}
    if on_cuda:
        found["device_bytes"] = float(torch.cuda.max_memory_allocated())
    return found
