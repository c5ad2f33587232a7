"""Real data with entries taken away by six mechanisms; the truth is the principal-component space of the complete."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

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
    """Compare BC-PCA on complete data with scanpy's principal components.

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

    from cellsmith.model import BCPCA

    for file in files:
        complete = read(directory, file)
        cells = ad.AnnData(complete.values.astype(np.float64))
        sc.pp.pca(cells, n_comps=n_latent, svd_solver="full")
        theirs = np.asarray(cells.obsm["X_pca"], dtype=np.float64)
        for variant, dtype in (("BCPCA, float32", "float32"), ("BCPCA, float64", "float64")):
            if store.has(task="complete mask", file=file, variant=variant):
                continue
            BCPCA.setup_anndata(cells, mask="nan")
            model = BCPCA(cells, n_latent=n_latent, compare=False, tol=1e-7, dtype=dtype)
            model.train(max_iter=300)
            ours = np.asarray(model.get_latent_representation(), dtype=np.float64)
            loadings = model.get_loadings().to_numpy(dtype=np.float64)
            sign = np.sign((ours * theirs).sum(axis=0))
            values = {
                "scores": float(np.abs(ours * sign - theirs).max() / np.abs(theirs).max()),
                "loadings": float(np.abs(loadings.T @ loadings - np.eye(n_latent)).max()),
            }
            store.record("complete mask", SimpleNamespace(file=file, seed=0), variant, values)
