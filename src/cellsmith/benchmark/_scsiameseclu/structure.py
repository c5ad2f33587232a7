"""What is found where we know it: twenty cells of a type, no structure at all, and the same cells in another order."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from cellsmith._rng import Streams
from cellsmith.benchmark._clustering.cases import read
from cellsmith.benchmark._clustering.methods import pca
from cellsmith.benchmark._clustering.scoring import neighbor_graph
from cellsmith.benchmark._scsiameseclu.ablation import MAX_CELLS
from cellsmith.benchmark._scsiameseclu.fits import fit
from cellsmith.benchmark._scsiameseclu.scoring import best_f1
from cellsmith.benchmark._store import Store
from cellsmith.math import graph
from cellsmith.math.counts import nb_counts
from cellsmith.metrics import ari

__all__ = ["DEFAULT", "LEIDEN", "NULL", "ORDER", "RARE", "nulls", "orders", "planted"]

RARE, NULL, ORDER = "twenty cells of a type", "no structure", "another order"
DEFAULT, LEIDEN = "default", "PCA 50, Leiden 1.0"
FILE, N_CELLS, N_TYPES = "pbmc_facs", 20, 5
DEPTHS = (500, 2_000, 8_000)
NULL_CELLS, NULL_GENES, INVERSE_DISPERSION = 1_000, 1_000, 2.0
SMALL = 0.02  # a cluster below this share is not counted as structure


def planted(seeds: Iterable[int], *, directory: Path, store: Store) -> None:
    """Keep 20 cells of each of the five largest types in turn, and see how well a cluster holds them.

    Parameters
    ----------
    seeds
        Seeds of the kept cells and of the models.
    directory
        The benchmark data directory.
    store
        Where the rows go.
    """
    case = read(directory, FILE, max_cells=MAX_CELLS)
    labels = case.labels.astype(str)
    names, sizes = np.unique(labels, return_counts=True)
    for seed in seeds:
        for name in names[np.argsort(-sizes, kind="stable")][:N_TYPES]:
            task, part = f"{RARE}, {name}", SimpleNamespace(file=FILE, seed=seed)
            if store.has(task=task, file=FILE, seed=seed, variant=DEFAULT):
                continue
            kept = Streams(seed).numpy("rare").choice(np.flatnonzero(labels == name), N_CELLS, replace=False)
            rows = np.sort(np.concatenate([np.flatnonzero(labels != name), kept]))
            cells, own = case.counts[rows].copy(), labels[rows] == name
            near = neighbor_graph(pca(cells, None, seed, None).latent, seed)
            store.record(task, part, LEIDEN, {"f1": best_f1(own, graph.leiden(near, resolution=1.0, seed=seed))})
            found = fit(cells, seed=seed)
            values = {"f1": best_f1(own, found.labels), "n_clusters": float(len(set(found.labels)))}
            store.record(task, part, DEFAULT, values)


def nulls(seeds: Iterable[int], *, store: Store) -> None:
    """Cluster one negative binomial population at three depths; what holds more than 2 % of the cells is counted."""
    for seed in seeds:
        for depth in DEPTHS:
            file = f"{depth:,} counts a cell"
            if store.has(task=NULL, file=file, seed=seed, variant=DEFAULT):
                continue
            found = fit(_population(depth, seed), seed=seed)
            shares = np.unique(found.labels, return_counts=True)[1] / NULL_CELLS
            values = {"n_clusters": float((shares > SMALL).sum()), "largest": float(shares.max())}
            store.record(NULL, SimpleNamespace(file=file, seed=seed), DEFAULT, values)


def _population(depth: int, seed: int) -> AnnData:
    """Return cells that differ by chance and by depth alone."""
    generator = Streams(seed).numpy("sample")
    means = generator.lognormal(0.0, 1.5, NULL_GENES)
    rho = np.tile(means / means.sum(), (NULL_CELLS, 1))
    library = depth * generator.lognormal(0.0, 0.3, NULL_CELLS)
    counts = nb_counts(rho, np.full(NULL_GENES, INVERSE_DISPERSION), library, generator=generator)
    return AnnData(sparse.csr_matrix(counts, dtype=np.float32))


def orders(files: Iterable[str], seeds: Iterable[int], *, directory: Path, store: Store) -> None:
    """Fit the same cells in another order, and the same genes in another order.

    Parameters
    ----------
    files, seeds
        Names of files; seeds of orders and fits.
    directory
        The benchmark data directory.
    store
        Where the rows go.
    """
    names = list(files)
    for seed in seeds:
        for file in names:
            if store.has(task=ORDER, file=file, seed=seed):
                continue
            counts = read(directory, file, max_cells=MAX_CELLS).counts
            generator, first = Streams(seed).numpy("sample"), _named(counts, seed)
            moved = counts[generator.permutation(counts.n_obs)].copy()
            turned = counts[:, generator.permutation(counts.n_vars)].copy()
            for variant, other in (("cells", moved), ("genes", turned)):
                found = {"ari": ari(first, _named(other, seed).loc[first.index])}
                store.record(ORDER, SimpleNamespace(file=file, seed=seed), variant, found)


def _named(counts: AnnData, seed: int) -> pd.Series:
    return fit(counts, seed=seed).model.predict()
