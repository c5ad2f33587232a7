"""Real data with entries taken away by six mechanisms; the truth is the principal-component space of the complete."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from cellsmith.benchmark._missingness import mechanisms as masks
from cellsmith.benchmark._missingness.cases import Complete, masked, read
from cellsmith.benchmark._missingness.compare import run_case
from cellsmith.benchmark._missingness.methods import Column
from cellsmith.benchmark._store import Store

__all__ = ["FILES", "N_LATENT", "RARE", "TASK", "complete_mask", "real"]

logger = logging.getLogger("cellsmith")

TASK = "R"
FILES = ("klein_mes_1k", "pbmc4k_10x", "pbmc_facs")
RARE = "young_kidney"
N_LATENT = (10, 20)


def real(
    files: Iterable[str], seeds: Iterable[int], *, directory: Path, store: Store, columns: Mapping[str, Column]
) -> None:
    """Run what is not in the table yet; seeds on the outside, so that an interrupted run has few seeds of everything.

    Parameters
    ----------
    files
        Names without ``.h5ad``.
    seeds
        Seeds of masks, k-means and held-out entries.
    directory
        The benchmark data directory.
    store
        Where the rows go.
    columns
        Name -> column.
    """
    data: dict[str, Complete] = {}
    chosen = list(files)
    for seed in seeds:
        for file in chosen:
            if file not in data:
                data[file] = read(directory, file)
            for name, mechanism in masks.MECHANISMS.items():
                case = masked(data[file], name, mechanism, seed=seed, task=f"{TASK}, {name}")
                run_case(case, columns, N_LATENT, store=store)


def complete_mask(files: Sequence[str], *, directory: Path, store: Store, n_latent: int = 50) -> None:
    """Compare the door on complete data with scanpy's principal components.

    Written are the largest difference of the scores after the signs are matched, over the largest score, and the
    largest entry of L^T L - I of the loadings.

    Parameters
    ----------
    files, directory, store
        As in :func:`real`.
    n_latent
        Number of components.
    """
    import anndata as ad
    import scanpy as sc

    from cellsmith import tl

    for file in files:
        if store.has(task="complete mask", file=file):
            continue
        complete = read(directory, file)
        cells = ad.AnnData(complete.values.astype(np.float64))
        tl.bcpca(cells, mask="nan", n_latent=n_latent, compare=False, tol=1e-6)
        sc.pp.pca(cells, n_comps=n_latent, svd_solver="full")
        ours, theirs = (np.asarray(cells.obsm[key], dtype=np.float64) for key in ("X_bcpca", "X_pca"))
        sign = np.sign((ours * theirs).sum(axis=0))
        gap = np.abs(ours * sign - theirs).max() / np.abs(theirs).max()
        loadings = np.asarray(cells.varm["bcpca_loadings"], dtype=np.float64)
        off = np.abs(loadings.T @ loadings - np.eye(n_latent)).max()
        head = {"task": "complete mask", "file": file, "seed": 0, "variant": "tl.bcpca"}
        values = {"scores": gap, "loadings": off}
        store.add([{**head, "metric": m, "value": v} for m, v in values.items()])
        logger.info("complete mask, %s: %s", file, values)
