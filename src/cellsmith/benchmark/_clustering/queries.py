"""New cells (E15): a fifth of the cells is placed beside the others by a model that never saw them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from cellsmith._rng import Streams
from cellsmith.benchmark._clustering.cases import Case, read
from cellsmith.benchmark._clustering.methods import N_NEIGHBORS, pca
from cellsmith.benchmark._store import Store
from cellsmith.metrics import ari

__all__ = ["FILES", "QUERIES", "held_out", "queries"]

logger = logging.getLogger("cellsmith")

FILES = ("pbmc4k_10x", "kang_ifnb")
QUERIES = ("file", "seed", "lengths", "metric", "value")
SHARE = 0.2


def held_out(case: Case, seed: int, *, epochs: int | None) -> Mapping[str, float]:
    """Fit four fifths of the cells, place the rest, and compare with a fit of all.

    Parameters
    ----------
    case
        The cells.
    seed
        Of the cut and of both fits.
    epochs
        Of SCAGC; 0: nothing is trained.

    Returns
    -------
    "agreement": ARI of the clusters of the new cells with those of a fit of all cells; "transferred" and
    "transferred, PCA": accuracy of types voted by 15 neighbours in the latent space and on PCA of the old cells;
    "largest change": of a latent of an old cell while new ones were placed; "one by one": largest difference of a
    latent that is placed alone.
    """
    order = Streams(seed).numpy("split").permutation(case.counts.n_obs)
    n_new = int(SHARE * len(order))
    new, old = np.sort(order[:n_new]), np.sort(order[n_new:])
    whole, model = (_fit(case, rows, seed, epochs) for rows in (np.arange(len(order)), old))
    before = model.get_latent_representation()
    query = case.counts[new].copy()
    z, found = model.get_latent_representation(query), model.predict(query)
    alone = np.concatenate([model.get_latent_representation(query[i : i + 1].copy()) for i in range(5)])
    space = pca(case.counts, None, seed, None).latent
    return {
        "agreement": ari(whole.predict().to_numpy()[new], found.to_numpy()),
        "transferred": _vote(before, case.labels[old], z, case.labels[new]),
        "transferred, PCA": _vote(space[old], case.labels[old], space[new], case.labels[new]),
        "largest change": float(np.abs(model.get_latent_representation() - before).max()),
        "one by one": float(np.abs(alone - z[:5]).max()),
    }


def _fit(case: Case, rows: np.ndarray, seed: int, epochs: int | None) -> Any:
    from cellsmith.model import SCAGC

    cells: AnnData = case.counts[rows].copy()
    SCAGC.setup_anndata(cells, batch_key=case.batch_key)
    model = SCAGC(cells)
    model.train(max_epochs=epochs, seed=seed, accelerator="cpu", enable_progress_bar=False)
    return model


def _vote(known: np.ndarray, types: np.ndarray, new: np.ndarray, truth: np.ndarray) -> float:
    from sklearn.neighbors import KNeighborsClassifier

    named = KNeighborsClassifier(N_NEIGHBORS).fit(known, types.astype(str)).predict(new)
    return float((named == truth.astype(str)).mean())


def queries(files: Iterable[str], seeds: Iterable[int], *, directory: Path, store: Store, max_cells: int) -> None:
    """Run what is not in the table yet, trained and untrained.

    Parameters
    ----------
    files, seeds
        Files of `FILES`; seeds of cuts and fits.
    directory
        The benchmark data directory.
    store
        Where the rows go.
    max_cells
        Most cells of a file; 0: all.
    """
    for seed in seeds:
        for file in (f for f in files if f in FILES):
            for lengths, epochs in (("untrained", 0), ("trained", None)):
                head = {"file": file, "seed": seed, "lengths": lengths}
                if store.has(**head):
                    continue
                found = held_out(read(directory, file, max_cells=max_cells or None), seed, epochs=epochs)
                store.add([{**head, "metric": metric, "value": value} for metric, value in found.items()])
                logger.info("%s, seed %d, %s: %s", file, seed, lengths, found)
