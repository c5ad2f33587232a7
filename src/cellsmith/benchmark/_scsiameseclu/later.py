"""Cells that come after training: held out, and of another technology."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData

from cellsmith._rng import Streams
from cellsmith.benchmark._clustering.cases import Case, read
from cellsmith.benchmark._files import load
from cellsmith.benchmark._scsiameseclu.ablation import MAX_CELLS
from cellsmith.benchmark._scsiameseclu.fits import fit
from cellsmith.benchmark._store import Store
from cellsmith.metrics import ari

__all__ = ["BY_REFERENCE", "BY_TRANSFER", "HELD_OUT", "REGRESSION", "TECHNOLOGY", "held_out", "technologies"]

HELD_OUT, TECHNOLOGY = "held-out cells", "a technology left out"
FILES = ("worm_neuron", "young_kidney", "pbmc4k_10x", "pbmc_facs")
TECHNOLOGIES, TYPES = "pbmc_3tech", "cell_type"
BY_TRANSFER, BY_REFERENCE = "names of the reference's clusters", "clusters named by the reference"
REGRESSION = "logistic regression on PCA 50"
N_COMPONENTS = 50


def held_out(files: Iterable[str], seeds: Iterable[int], *, directory: Path, store: Store) -> None:
    """Train on 80 % of the cells, map the others, and compare with a fit of all.

    Parameters
    ----------
    files, seeds
        Names of files; seeds of the splits. The fits have seed 0.
    directory
        The benchmark data directory.
    store
        Where the rows go.
    """
    wanted = list(seeds)
    for file in [f for f in files if f in FILES]:
        missing = [s for s in wanted if not store.has(task=HELD_OUT, file=file, seed=s)]
        if not missing:
            continue
        case = read(directory, file, max_cells=MAX_CELLS)
        whole = fit(case.counts).labels
        for seed in missing:
            store.record(HELD_OUT, SimpleNamespace(file=file, seed=seed), "default", _mapped(case, whole, seed))


def _mapped(case: Case, whole: npt.NDArray[Any], seed: int) -> dict[str, float]:
    order = Streams(seed).numpy("split").permutation(case.counts.n_obs)
    cut = int(0.8 * len(order))
    train, test = np.sort(order[:cut]), np.sort(order[cut:])
    found = fit(case.counts[train].copy())
    mapped = found.model.predict(case.counts[test].copy()).to_numpy()
    values = {"ari_training": ari(case.labels[train], found.labels), "ari_held_out": ari(case.labels[test], mapped)}
    return {**values, "agreement_with_refit": ari(whole[test], mapped)}


def technologies(seeds: Iterable[int], *, directory: Path, store: Store) -> None:
    """Leave each technology out in turn, and give its cells the types of the others.

    Parameters
    ----------
    seeds
        Seeds of the fits.
    directory
        The benchmark data directory.
    store
        Where the rows go.
    """
    adata = load(directory, TECHNOLOGIES)
    for seed in seeds:
        for name in sorted(set(adata.obs["batch"].astype(str))):
            task, out = f"{TECHNOLOGY}, {name}", (adata.obs["batch"].astype(str) == name).to_numpy()
            if store.has(task=task, file=TECHNOLOGIES, seed=seed):
                continue
            reference, query = adata[~out].copy(), adata[out].copy()
            truth = query.obs[TYPES].astype(str).to_numpy()
            del query.obs[TYPES]
            runs = ((REGRESSION, _regression), (BY_TRANSFER, _transferred), (BY_REFERENCE, _annotated))
            for variant, run in runs:
                values = _right(truth, run(reference, query.copy(), seed))
                store.record(task, SimpleNamespace(file=TECHNOLOGIES, seed=seed), variant, values)


def _right(truth: npt.NDArray[Any], named: npt.NDArray[Any]) -> dict[str, float]:
    from sklearn.metrics import f1_score

    score = f1_score(truth, named, average="macro", labels=np.unique(truth), zero_division=0)
    return {"accuracy": float((truth == named).mean()), "macro_f1": float(score)}


def _regression(reference: AnnData, query: AnnData, seed: int) -> npt.NDArray[Any]:
    from sklearn.linear_model import LogisticRegression

    from cellsmith.math.counts import log_normalized
    from cellsmith.math.pca import principal_axes

    sides = [log_normalized(a.X, np.asarray(a.X.sum(axis=1), dtype=np.float64).ravel()) for a in (reference, query)]
    axes = principal_axes(sides[0], N_COMPONENTS)
    model = LogisticRegression(max_iter=2_000).fit(axes.project(sides[0]), reference.obs[TYPES].astype(str))
    return np.asarray(model.predict(axes.project(sides[1])))


def _transferred(reference: AnnData, query: AnnData, seed: int) -> npt.NDArray[Any]:
    """Map cells into clusters of the reference; a cluster has the name of most of its reference cells."""
    found = fit(reference, batch_key="batch", seed=seed)
    types = reference.obs[TYPES].astype(str).to_numpy()
    names = pd.Series(types).groupby(found.labels, observed=True).agg(lambda own: own.mode().iloc[0])
    return names.loc[found.model.predict(query).to_numpy()].to_numpy()


def _annotated(reference: AnnData, query: AnnData, seed: int) -> npt.NDArray[Any]:
    """Cluster the cells by themselves, and name the clusters by the reference; the best name, however unsure."""
    from cellsmith import tl

    options = {"accelerator": "cpu", "enable_progress_bar": False}
    tl.scsiameseclu(query, rng=seed, train_kwargs=options)
    tl.scsiameseclu_annotate(query, reference=reference, labels_key=TYPES, reject_below=0.0)
    return query.obs["scsiameseclu_annotation"].astype(str).to_numpy()
