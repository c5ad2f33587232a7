"""How much of a batch is left in topics whose decoder knows the batch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

from cellsmith.benchmark._store import Store
from cellsmith.benchmark._topics.cases import read
from cellsmith.benchmark._topics.conditions import cells_of
from cellsmith.benchmark._topics.ours import as_fit, fit_model
from cellsmith.benchmark._topics.peers import PCA, PEERS, Fit
from cellsmith.benchmark._topics.scoring import clusters
from cellsmith.metrics import ari, nmi

__all__ = ["FILE", "REGISTERED", "TASK", "UNREGISTERED", "batches"]

TASK, FILE = "batch", "kang_ifnb"
REGISTERED, UNREGISTERED = "SCE2TM, batch registered", "SCE2TM, no batch"
N_TOPICS = 20


def batches(seeds: Iterable[int], *, directory: Path, store: Store) -> None:
    """Compare topics with and without a registered batch, and principal components.

    Parameters
    ----------
    seeds
        Seeds of the models.
    directory
        The benchmark data directory.
    store
        Where the rows go.
    """
    case = read(directory, FILE)
    cells = cells_of(case)
    for seed in seeds:

        def ours(key: str | None, seed: int = seed) -> Fit:
            setup = {} if key is None else {"batch_key": key}
            return as_fit(fit_model(cells.copy(), N_TOPICS, seed, **setup))

        runs = {
            PCA: lambda seed=seed: PEERS[PCA](case, N_TOPICS, seed),
            UNREGISTERED: lambda: ours(None),
            REGISTERED: lambda: ours("batch"),
        }
        for name, run in runs.items():
            if store.has(task=TASK, file=FILE, seed=seed, variant=name):
                continue
            found = clusters(run().spaces["theta"], seed)
            values = {"nmi_batch": nmi(case.obs["batch"].astype(str).to_numpy(), found)}
            store.record(TASK, SimpleNamespace(file=FILE, seed=seed), name, {**values, "ari": ari(case.labels, found)})
