"""How fast and how large SCAGC is: epochs and a whole fit beside scVI, and memory up to 100,000 cells."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from cellsmith._rng import Streams, isolated
from cellsmith.benchmark._files import load
from cellsmith.benchmark._process import report_cost, run_alone
from cellsmith.benchmark._store import Store
from cellsmith.math.counts import binomial_thin

__all__ = ["DETAIL", "TASKS", "child", "many_cells", "scale"]

logger = logging.getLogger("cellsmith")

SMALL, LARGE = "pbmc4k_10x", "kang_ctrl_8donors"
FIT_CELLS = 2_100  # of SMALL, with its 2,000 genes; other sizes are of LARGE, so that they can be compared
KEPT_SHARE = 0.9
LENGTHS = (1, 3)  # epochs of two trainings, whose difference is free of what is done once
TASKS = (
    "fit 2100",
    "scvi 2100",
    "untrained 2100",
    "plain 2100",
    *(f"epoch {n}" for n in (2_000, 8_000, 32_000)),
    *(f"scvi-epoch {n}" for n in (2_000,)),
    "whole 12261",
    "memory 20000",
    "memory 100000",
)
DETAIL = "a process of its own, one thread"


def many_cells(directory: Path, n: int) -> AnnData:
    """Return n cells of a file; more than it has are drawn again and thinned, so that no two are alike."""
    counts = sparse.csr_matrix(load(directory, SMALL if n == FIT_CELLS else LARGE).X, dtype=np.float32)
    generator = Streams(0).numpy("sample")
    if n <= counts.shape[0]:
        return AnnData(counts[np.sort(generator.permutation(counts.shape[0])[:n])])
    drawn = binomial_thin(counts[generator.integers(counts.shape[0], size=n)], KEPT_SHARE, generator=generator)
    return AnnData(drawn[np.asarray(drawn.sum(axis=1)).ravel() > 0].astype(np.float32))


def _ours(cells: AnnData, epochs: int | None, **options: Any) -> None:
    from cellsmith.model import SCAGC

    data = cells.copy()
    SCAGC.setup_anndata(data)
    SCAGC(data, **options).train(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False)


def _scvi(cells: AnnData, epochs: int | None) -> None:
    from scvi.model import SCVI

    data = cells.copy()
    with isolated(0):
        SCVI.setup_anndata(data)
        model = SCVI(data, gene_likelihood="nb")
        model.train(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False, logger=False)


def _an_epoch(train: Callable[[int], None]) -> dict[str, float]:
    import time

    train(1)
    taken = []
    for epochs in LENGTHS:
        started = time.process_time()
        train(epochs)
        taken.append(time.process_time() - started)
    return {"epoch_s": (taken[1] - taken[0]) / (LENGTHS[1] - LENGTHS[0])}


def child(task: str, directory: str) -> None:
    """Run one of `TASKS` in this process."""
    kind, _, n = task.partition(" ")
    runs: dict[str, Callable[[AnnData], Any]] = {
        "fit": lambda cells: _ours(cells, None),
        "whole": lambda cells: _ours(cells, None),
        "untrained": lambda cells: _ours(cells, 0),
        "plain": lambda cells: _ours(cells, None, graph="none"),
        "memory": lambda cells: _ours(cells, 1),
        "scvi": lambda cells: _scvi(cells, None),
        "epoch": lambda cells: _an_epoch(lambda e: _ours(cells, e, n_clusters=None)),
        "scvi-epoch": lambda cells: _an_epoch(lambda e: _scvi(cells, e)),
    }
    report_cost(lambda: many_cells(Path(directory), int(n)), runs[kind])


def scale(*, directory: Path, store: Store, tasks: tuple[str, ...] = TASKS) -> None:
    """Run what is not in the table yet.

    Parameters
    ----------
    directory
        The benchmark data directory.
    store
        Where the rows go.
    tasks
        Some of `TASKS`.
    """
    for task in tasks:
        if store.has(quantity=f"{task}, wall_s"):
            continue
        found = run_alone(__name__, task, str(directory))
        store.add([{"quantity": f"{task}, {k}", "value": v, "detail": DETAIL} for k, v in found.items()])
        logger.info("%s: %s", task, {k: round(v, 4) for k, v in found.items()})
