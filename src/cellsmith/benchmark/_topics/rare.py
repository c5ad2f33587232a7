"""Rare types: those of the files, and twenty cells of a type that we leave in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from cellsmith._rng import Streams
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._topics.cases import read
from cellsmith.benchmark._topics.ours import DEFAULT, VARIANTS, method
from cellsmith.benchmark._topics.peers import NMF, PEERS
from cellsmith.benchmark._topics.scoring import capture

__all__ = ["TASK", "planted_types"]

TASK, FILE = "twenty cells of a type", "pbmc_facs"
N_CELLS, N_TYPES, N_TOPICS = 20, 5, 20


def planted_types(seeds: Iterable[int], *, directory: Path, store: Store) -> None:
    """Keep 20 cells of each of the five largest types in turn, and see which topic captures them.

    Parameters
    ----------
    seeds
        Seeds of the kept cells and of the models.
    directory
        The benchmark data directory.
    store
        Where the rows go.
    """
    case = read(directory, FILE)
    labels = np.asarray(case.labels, dtype=str)
    names, sizes = np.unique(labels, return_counts=True)
    for seed in seeds:
        for name in names[np.argsort(-sizes, kind="stable")][:N_TYPES]:
            own = np.flatnonzero(labels == name)
            kept = Streams(seed).numpy("rare").choice(own, N_CELLS, replace=False)
            rows = np.sort(np.concatenate([np.flatnonzero(labels != name), kept]))
            part = case.of(rows)
            for variant, run in ((DEFAULT, method(VARIANTS[DEFAULT])), (NMF, PEERS[NMF])):
                if store.has(task=f"{TASK}, {name}", file=FILE, seed=seed, variant=variant):
                    continue
                theta = run(part, N_TOPICS, seed).spaces["theta"]
                value = capture(theta, labels[rows])[name]
                store.record(f"{TASK}, {name}", SimpleNamespace(file=FILE, seed=seed), variant, {"capture_f1": value})
