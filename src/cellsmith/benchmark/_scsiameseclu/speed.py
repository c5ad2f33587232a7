"""How fast and how large: epochs and a fit beside scVI, PageRank beside PyG, the transport's share, many cells."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from cellsmith._rng import Streams, isolated
from cellsmith.benchmark._files import load
from cellsmith.benchmark._process import report_cost, run_alone
from cellsmith.benchmark._scsiameseclu.fits import Comparable, fit
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._synthesis.speed import alternate
from cellsmith.benchmark._topics.speed import in_turn
from cellsmith.math import graph
from cellsmith.math.counts import binomial_thin

__all__ = ["speed"]

logger = logging.getLogger("cellsmith")

FILE, FIT_CELLS, BATCH, N_HIDDEN = "pbmc4k_10x", 2_100, 512, 128
N_CLUSTERS, MANY_CLUSTERS, PEER_EPOCHS, KEPT_SHARE = 50, 20, 100, 0.9
TELEPORT, N_KEPT, TOLERANCE, N_NEIGHBORS = 0.5, 32, 1e-4, 15


def _cells(directory: Path, n: int = FIT_CELLS) -> AnnData:
    """Return cells of pbmc4k_10x; more than it has are drawn again and thinned, so that no two are alike."""
    counts = load(directory, FILE).X.tocsr()
    generator = Streams(0).numpy("sample")
    if n <= counts.shape[0]:
        return AnnData(counts[np.sort(generator.permutation(counts.shape[0])[:n])])
    drawn = binomial_thin(counts[generator.integers(counts.shape[0], size=n)], KEPT_SHARE, generator=generator)
    return AnnData(drawn.astype(np.float32))


def _ours(cells: AnnData, stage: str) -> Callable[[int], Any]:
    """Return a training whose length is that of one stage; the other has one epoch."""
    lengths = {"warmup": 1, "transport": 1}
    return lambda n: fit(cells, n_clusters=N_CLUSTERS, max_epochs={**lengths, stage: n})


def _scvi(cells: AnnData) -> Callable[[int], Any]:
    from scvi.model import SCVI

    def train(epochs: int) -> None:
        data = cells.copy()
        with isolated(0):
            SCVI.setup_anndata(data)
            model = SCVI(data, gene_likelihood="nb", n_hidden=N_HIDDEN)
            model.train(
                max_epochs=epochs,
                batch_size=BATCH,
                train_size=1.0,
                accelerator="cpu",
                enable_progress_bar=False,
                logger=False,
            )

    return train


def epochs(directory: Path) -> dict[str, float]:
    """Time epochs of both stages and of scVI, in turn, at batches of 512."""
    cells = _cells(directory)
    found = in_turn({"warmup": _ours(cells, "warmup"), "transport": _ours(cells, "transport"), "scvi": _scvi(cells)})
    ratios = {f"{name} over scVI, epoch": found[name] / found["scvi"] for name in ("warmup", "transport")}
    return {f"{name}, epoch, s": value for name, value in found.items()} | ratios


def pagerank(directory: Path) -> dict[str, float]:
    """Time PageRank rows on an unweighted graph of neighbours, beside PyG's, which counts no weights."""
    import torch
    from torch_geometric.utils import get_ppr

    from cellsmith.benchmark._clustering.methods import pca

    index, _ = graph.knn_table(pca(_cells(directory), None, 0, None).latent, N_NEIGHBORS, seed=0)
    n = len(index)
    a = graph.table_matrix(index, np.ones(index.shape), n)
    looped = graph.self_loops(a.maximum(a.T))
    looped.data[:] = 1.0
    edges = torch.from_numpy(np.stack(looped.nonzero())).long()
    ours, theirs, ratio = alternate(
        lambda _: graph.ppr_rows(looped, teleport=TELEPORT, k=N_KEPT, tol=TOLERANCE),
        lambda _: get_ppr(edges, alpha=TELEPORT, eps=TOLERANCE, num_nodes=n),
        n_warm=1,
        n_steps=7,
    )
    return {"PageRank, s": ours, "PageRank, PyG, s": theirs, "PageRank over PyG": ratio}


class Clocked(Comparable):
    """Counts CPU seconds of the transport, of what happens between epochs, and of the whole stage."""

    def _begin_transport(self, streams: Streams) -> Any:
        cells, self.clock = super()._begin_transport(streams), {"plans": 0.0, "between": 0.0}
        self.module._transport = self._timed("plans", self.module._transport)
        self.module.keeper = self._timed("between", self.module.keeper)
        self.clock["stage"] = -time.process_time()
        return cells

    def _finish(self, streams: Streams) -> None:
        self.clock["stage"] += time.process_time()
        super()._finish(streams)

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            started = time.process_time()
            out = function(*args)
            self.clock[name] += time.process_time() - started
            return out

        return run


def transport(directory: Path) -> dict[str, float]:
    """Time the transport of both views to 50 clusters, beside the steps of its stage."""
    cells = _cells(directory)
    Clocked.setup_anndata(cells)
    model = Clocked(cells, n_clusters=N_CLUSTERS)
    lengths = {"warmup": 5, "transport": 20}
    model.train(max_epochs=lengths, accelerator="cpu", enable_progress_bar=False)
    steps = model.clock["stage"] - model.clock["between"]
    sweeps = model.sinkhorn_["mean_sweeps"]
    return {"transport, share of a step": model.clock["plans"] / steps, "transport, sweeps a plan": sweeps}


def child(task: str, directory: str) -> None:
    """Run one task in a process of its own, which says what it took."""
    kind, _, n = task.partition(" ")

    def run(cells: AnnData) -> None:
        if kind == "scvi":
            _scvi(cells)(PEER_EPOCHS)
        elif kind == "fit":
            fit(cells)
        else:
            # A cell that is drawn a dozen times is a community of its own: the number is told.
            fit(cells, n_clusters=MANY_CLUSTERS, max_epochs={"warmup": 1, "transport": 1})

    report_cost(lambda: _cells(Path(directory), int(n)), run)


CHILDREN = {
    f"fit {FIT_CELLS}": "a whole fit at the defaults, a process of its own",
    f"scvi {FIT_CELLS}": f"scVI, {PEER_EPOCHS} epochs, a process of its own",
    "short 20000": "one epoch of either stage, 20 clusters, cells drawn again and thinned, a process of its own",
    "short 40000": "the same",
    "short 50000": "the same",
}


def speed(*, directory: Path, store: Store, tasks: Iterable[str] | None = None) -> None:
    """Run what is not in the table yet.

    Parameters
    ----------
    directory
        The benchmark data directory.
    store
        Where the rows go.
    tasks
        "epochs", "pagerank", "transport", or names such as "fit 2100"; None: all.
    """

    def add(found: Mapping[str, float], detail: str) -> None:
        store.add([{"quantity": k, "value": v, "detail": detail} for k, v in found.items()])
        logger.info("%s", {k: round(v, 4) for k, v in found.items()})

    words = f"{FILE}, {FIT_CELLS:,} cells, one thread"
    within: dict[str, tuple[str, Callable[[Path], dict[str, float]], str]] = {
        "epochs": ("scvi, epoch, s", epochs, f"{words}, batches of {BATCH}, in turn, median of 3"),
        "pagerank": ("PageRank, s", pagerank, f"{words}, unweighted graph, in turn, median of 7"),
        "transport": ("transport, share of a step", transport, f"{words}, {N_CLUSTERS} clusters, batch and queue"),
    }
    for task in [*within, *CHILDREN] if tasks is None else tasks:
        if task in within:
            first, run, detail = within[task]
            if not store.has(quantity=first):
                add(run(directory), detail)
        elif not store.has(quantity=f"{task}, wall_s"):
            add({f"{task}, {k}": v for k, v in run_alone(__name__, task, str(directory)).items()}, CHILDREN[task])
