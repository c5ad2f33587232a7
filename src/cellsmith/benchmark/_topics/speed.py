"""How fast: epochs beside the peers' in turn, the transport plan, a whole fit, the gate of a view, and queries."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from cellsmith._rng import Streams, isolated
from cellsmith.benchmark._process import report_cost, run_alone
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._synthesis.speed import alternate
from cellsmith.benchmark._topics.cases import TUNING, read
from cellsmith.benchmark._topics.views import KEY

__all__ = ["speed"]

logger = logging.getLogger("cellsmith")

BATCH = 128
SHORT, LONG = 4, 12  # epochs of two trainings, whose difference is free of set-up
REPEATS = 3
FIT_CELLS, MANY_CELLS, QUERY_CELLS = 3_000, 12_261, 100_000
TABLE_TOPICS, STEP = 100, 1e-3  # of the plan: topics, and how far entries of the tables move


def _ours(cells: AnnData, n_topics: int, *, view: bool = False, **options: Any) -> Callable[[int], Any]:
    from cellsmith.model import SCE2TM

    def train(epochs: int) -> Any:
        data = cells.copy()
        SCE2TM.setup_anndata(data, external_obsm_key=KEY if view else None)
        model = SCE2TM(data, n_topics=n_topics, **options)
        lengths = {"topics": 1, "guide": epochs} if view else {"topics": epochs}
        model.train(
            max_epochs=lengths, batch_size=BATCH, train_size=1.0, accelerator="cpu", enable_progress_bar=False, seed=0
        )
        return model

    return train


def _peer(name: str, cells: AnnData, n_topics: int) -> Callable[[int], Any]:
    import scvi

    size = {"AmortizedLDA": "n_topics", "LinearSCVI": "n_latent"}[name]

    def train(epochs: int) -> Any:
        data = cells.copy()
        cls = getattr(scvi.model, name)
        with isolated(0):
            cls.setup_anndata(data)
            model = cls(data, **{size: n_topics})
            model.train(
                max_epochs=epochs,
                batch_size=BATCH,
                train_size=1.0,
                accelerator="cpu",
                enable_progress_bar=False,
                logger=False,
            )
        return model

    return train


def epoch_seconds(train: Callable[[int], Any]) -> float:
    """Return CPU seconds of an epoch: the difference of a longer and a shorter training."""
    taken = []
    for epochs in (SHORT, LONG):
        started = time.process_time()
        train(epochs)
        taken.append(time.process_time() - started)
    return (taken[1] - taken[0]) / (LONG - SHORT)


def in_turn(runs: Mapping[str, Callable[[int], Any]]) -> dict[str, float]:
    """Return the median CPU seconds of an epoch of each training, repeated in turn."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for train in runs.values():
        train(1)
    for _ in range(REPEATS):
        for name, train in runs.items():
            found[name].append(epoch_seconds(train))
    return {name: float(np.median(values)) for name, values in found.items()}


def epochs(directory: Path, file: str) -> dict[str, float]:
    """Time epochs at equal batches: without and with a view, 100 topics, and the peers at 20."""
    from cellsmith.benchmark._topics.views import components

    case = read(directory, file)
    cells = case.cells.copy()
    cells.obsm[KEY] = components(case.log, 0)
    found = in_turn(
        {
            "plain": _ours(cells, 20),
            "lda": _peer("AmortizedLDA", cells, 20),
            "linear": _peer("LinearSCVI", cells, 20),
            "view": _ours(cells, 20, view=True, view_gate=1.0),
            "topics100": _ours(cells, 100),
        }
    )
    out = {f"epoch_s, {name}, {file}": value for name, value in found.items()}
    ratios = {"over_lda": ("plain", "lda"), "over_linear": ("plain", "linear"), "view_over_plain": ("view", "plain")}
    return out | {f"{name}, {file}": found[a] / found[b] for name, (a, b) in ratios.items()}


def transport(directory: Path) -> dict[str, float]:
    """Time the plan with its gradient in the state of a training, and its share of a step at 20 topics.

    Tables of a short training are moved by the size of an optimiser's step; `implicit` begins where the plan before the
    move ended, as in training, and `unrolled` from nothing, as it must.
    """
    cells = read(directory, "pbmc4k_10x").cells
    whole = epoch_seconds(_ours(cells, 20)) / np.ceil(cells.n_obs / BATCH)
    runs = {n: {g: _plan(cells, n, g) for g in ("implicit", "unrolled")} for n in (20, TABLE_TOPICS)}
    implicit, unrolled, ratio = alternate(*runs[TABLE_TOPICS].values(), n_warm=2, n_steps=10)
    small = alternate(runs[20]["implicit"], runs[20]["unrolled"], n_warm=2, n_steps=10)[0]
    values = {"implicit_s": implicit, "unrolled_s": unrolled, "implicit_over_unrolled": ratio}
    return {**values, "plan_s": small, "step_s": whole, "plan_share": small / whole}


def _plan(cells: AnnData, n_topics: int, gradient: str) -> Callable[[int], None]:
    """Return one solve of the plan with its gradient, on tables of a training of twelve epochs."""
    import torch

    from cellsmith.math import topics

    tables = _tables(cells, n_topics)
    start = topics.ecr(topics.squared_distances(*tables), gradient="implicit")[1].col_potential
    generator = torch.Generator().manual_seed(0)
    moved = [t + STEP * torch.randn(t.shape, generator=generator) for t in tables]

    def run(_: int) -> None:
        leaves = [t.clone().requires_grad_() for t in moved]
        distances = topics.squared_distances(*leaves)
        topics.ecr(distances, gradient=gradient, start=start if gradient == "implicit" else None)[0].backward()

    return run


def _tables(cells: AnnData, n_topics: int) -> list[Any]:
    module = _ours(cells, n_topics)(LONG).module
    return [table.detach().clone() for table in (module.topic_table, module.gene_table)]


def child(task: str, directory: str) -> None:
    """Run one task in this process."""
    from cellsmith.benchmark._topics.cases import raw

    def cells() -> AnnData:
        if task == "gate_12261":
            return raw(Path(directory), "kang_ctrl_8donors")
        found = read(Path(directory), "pbmc4k_10x").cells
        return found if task == "query" else found[:FIT_CELLS].copy()

    run: Callable[[AnnData], Mapping[str, float] | None] = {"fit": _fit, "query": _query}.get(task, _gate)
    report_cost(cells, lambda data: {"n": float(data.n_obs), **(run(data) or {})})


def _fit(cells: AnnData) -> None:
    _model(cells).train(max_epochs={"topics": 100}, accelerator="cpu", enable_progress_bar=False)


def _model(cells: AnnData, **setup: Any) -> Any:
    from cellsmith.model import SCE2TM

    SCE2TM.setup_anndata(cells, **setup)
    return SCE2TM(cells, n_topics=20)


def _gate(cells: AnnData) -> None:
    """Prepare neighbours and gate with a view of 50 columns; one epoch is the least that a training takes."""
    from cellsmith.benchmark._topics.cases import log_expression
    from cellsmith.benchmark._topics.views import components

    cells.obsm[KEY] = components(log_expression(sparse.csr_matrix(cells.X)), 0)
    _model(cells, external_obsm_key=KEY).train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)


def _query(cells: AnnData) -> dict[str, float]:
    model = _model(cells)
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    rows = Streams(0).numpy("query").integers(cells.n_obs, size=QUERY_CELLS)
    query = AnnData(cells.X[rows], var=cells.var[[]].copy())
    started = (time.perf_counter(), time.process_time())
    model.map_query(query)
    return {"wall_s": time.perf_counter() - started[0], "cpu_s": time.process_time() - started[1]}


def speed(*, directory: Path, store: Store) -> None:
    """Run what is not in the table yet.

    Parameters
    ----------
    directory
        The benchmark data directory.
    store
        Where the rows go.
    """

    def add(found: Mapping[str, float], detail: str) -> None:
        store.add([{"quantity": k, "value": v, "detail": detail} for k, v in found.items()])
        logger.info("%s", {k: round(v, 4) for k, v in found.items()})

    for file in TUNING:
        if not store.has(quantity=f"over_lda, {file}"):
            add(epochs(directory, file), f"{file}, batches of {BATCH}, one thread, in turn, median of {REPEATS}")
    if not store.has(quantity="implicit_over_unrolled"):
        words = (
            f"plan and gradient at {TABLE_TOPICS} topics x 2,000 genes, in training; a step at 20 topics; pbmc4k_10x"
        )
        add(transport(directory), words)
    for task in ("fit", "gate_3000", "gate_12261", "query"):
        if store.has(quantity=f"{task}, wall_s"):
            continue
        found = run_alone(__name__, task, str(directory))
        add({f"{task}, {k}": v for k, v in found.items()}, "a process of its own, one thread")
