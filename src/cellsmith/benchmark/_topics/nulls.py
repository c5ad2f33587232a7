"""What is selected where there is nothing to find."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from cellsmith._rng import Streams
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._topics.cases import drawn, prepare, raw
from cellsmith.benchmark._topics.conditions import FILE, N_TOPICS, cells_of
from cellsmith.benchmark._topics.ours import DEFAULT, fit_model

__all__ = ["TASK", "nulls"]

TASK, DONORS = "no effect", "kang_ctrl_8donors"
N_SPLITS, MAX_CELLS = 50, 3_000


def nulls(seeds: Iterable[int], *, directory: Path, store: Store) -> None:
    """Split control cells at random, and eight untreated donors four against four; count splits with a selected topic.

    Parameters
    ----------
    seeds
        Seeds of the models.
    directory
        The benchmark data directory.
    store
        Where the rows go.
    """
    for seed in seeds:
        if not store.has(task=TASK, file=FILE, seed=seed):
            adata = raw(directory, FILE)
            cells = cells_of(prepare(adata[(adata.obs["condition"] == "CTRL").to_numpy()].copy(), file=FILE))
            cells.obs["half"] = "one"
            model, rng, hits = fit_model(cells, N_TOPICS, seed), Streams(seed).numpy("halves"), []
            for _ in range(N_SPLITS):
                cells.obs["half"] = np.where(rng.permutation(cells.n_obs) % 2, "one", "other")
                hits.append(len(model.select_topics("half", "one", "other")) > 0)
            store.record(TASK, SimpleNamespace(file=FILE, seed=seed), DEFAULT, {"selected": float(np.mean(hits))})
        if not store.has(task=TASK, file=DONORS, seed=seed):
            cells = cells_of(drawn(prepare(raw(directory, DONORS), file=DONORS), MAX_CELLS))
            model, hits, plain = fit_model(cells, N_TOPICS, seed), [], []
            names = sorted(set(cells.obs["batch"]))
            for chosen in combinations(names[1:], len(names) // 2 - 1):
                cells.obs["half"] = np.where(np.isin(cells.obs["batch"], [names[0], *chosen]), "one", "other")
                hits.append(len(model.select_topics("half", "one", "other", sample_key="batch")) > 0)
                plain.append(len(model.select_topics("half", "one", "other")) > 0)
            values = {"selected": float(np.mean(hits)), "selected_by_cells": float(np.mean(plain))}
            store.record(TASK, SimpleNamespace(file=DONORS, seed=seed), DEFAULT, values)
