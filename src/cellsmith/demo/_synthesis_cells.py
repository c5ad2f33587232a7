"""The cells of the synthesis section: who is held out, what is generated, and by whom."""

from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
from scipy import sparse

from cellsmith import datasets
from cellsmith._rng import Streams, isolated

__all__ = ["MIN_CELLS", "PEER_EPOCHS", "Split", "copies", "interferon_cells", "plain_copy", "scvi_redraw", "split"]

MIN_CELLS = 20  # a type with fewer cells than this cannot be both learnt and checked
PEER_EPOCHS = 150


@dataclass(frozen=True)
class Split:
    """Three groups of real cells that share no cell.

    Parameters
    ----------
    train
        What every generator may see.
    test
        Real cells that no generator saw; every generator is compared with them.
    control
        Further unseen real cells: how alike are two groups of real cells? No generator can do better than that.
    """

    train: ad.AnnData
    test: ad.AnnData
    control: ad.AnnData


def interferon_cells(seed: int, *, quick: bool) -> tuple[ad.AnnData, list[str]]:
    """Load the embedded data without its rarest types.

    Parameters
    ----------
    seed
        Chooses the cells of a quick run.
    quick
        True: about 900 cells and 400 genes.

    Returns
    -------
    The cells, and the names of the types that were left out for having fewer than ``MIN_CELLS`` cells.
    """
    adata = datasets.kang_pbmc()
    if quick:
        cells = np.sort(Streams(seed).numpy("pool").choice(adata.n_obs, 900, replace=False))
        totals = np.asarray(adata.X.sum(axis=0)).ravel() * (1 + 1e9 * adata.var["interferon_response"].to_numpy())
        adata = plain_copy(adata[cells, np.sort(np.argsort(-totals)[:400])])
    size = adata.obs["cell_type"].value_counts()
    rare = sorted(size.index[size < MIN_CELLS])
    adata = plain_copy(adata[~adata.obs["cell_type"].isin(rare).to_numpy()])
    return adata, rare


def split(adata: ad.AnnData, seed: int) -> Split:
    """Deal the cells of every type and condition into 55 % train, 25 % test and 20 % control.

    Parameters
    ----------
    adata
        Cells with ``.obs["cell_type"]`` and ``.obs["condition"]``.
    seed
        Integer.

    Returns
    -------
    Three objects that share no cell and no memory.
    """
    generator = Streams(seed).numpy("split")
    groups = adata.obs.groupby(["cell_type", "condition"], observed=True).indices
    position = np.empty(adata.n_obs)
    for name in sorted(groups):
        rows = groups[name]
        # A random offset rounds the shares of small groups up as often as down.
        position[generator.permutation(rows)] = (np.arange(len(rows)) + generator.random()) / len(rows)
    test, control = position < 0.25, (position >= 0.25) & (position < 0.45)
    return Split(
        train=plain_copy(adata[~test & ~control]), test=plain_copy(adata[test]), control=plain_copy(adata[control])
    )


def plain_copy(adata: ad.AnnData) -> ad.AnnData:
    """Copy counts and annotation only, with unused categories dropped.

    Parameters
    ----------
    adata
        An object or a view.

    Returns
    -------
    A new object; nothing that scvi-tools registered on the old one travels along.
    """
    obs = adata.obs.copy()
    for name in obs.columns[obs.dtypes == "category"]:
        obs[name] = obs[name].cat.remove_unused_categories()
    return ad.AnnData(sparse.csr_matrix(adata.X), obs=obs, var=adata.var.copy())


def copies(train: ad.AnnData, seed: int) -> ad.AnnData:
    """Draw training cells with replacement: a cheat that every honest test has to catch.

    Parameters
    ----------
    train
        Real cells.
    seed
        Integer.

    Returns
    -------
    As many cells as ``train`` has, all of them copies.
    """
    rows = Streams(seed).numpy("bootstrap").integers(0, train.n_obs, train.n_obs)
    out = plain_copy(train[rows])
    out.obs_names = [f"copy_{i}" for i in range(out.n_obs)]
    return out


def scvi_redraw(
    train: ad.AnnData, seed: int, *, max_epochs: int | None = None, show_progress: bool = False
) -> tuple[ad.AnnData, int]:
    """Let scVI re-draw every training cell (its posterior predictive).

    scVI cannot make a cell from nothing: it is handed a real cell and draws that cell's counts again. It is the
    closest well-known peer, and being handed real cells is an advantage.

    Parameters
    ----------
    train
        Real cells with ``.obs["condition"]``.
    seed
        Integer.
    max_epochs
        Length of training; None is scVI's own rule, 400 epochs for a set as small as this one.
    show_progress
        Draw the progress bar.

    Returns
    -------
    One cell for each training cell, with its type and condition; and the number of epochs that were run.
    """
    from scvi.model import SCVI

    data = plain_copy(train)
    everyone = np.arange(data.n_obs)
    with isolated(Streams(seed).integer("init", 1)):
        SCVI.setup_anndata(data, batch_key="condition")
        model = SCVI(data, gene_likelihood="nb")
        model.train(
            max_epochs=max_epochs,
            accelerator="cpu",
            enable_progress_bar=show_progress,
            logger=False,
            # Without this the split, and with it the result, would depend on entropy that no seed controls.
            datasplitter_kwargs={"external_indexing": [everyone, everyone[:0], everyone[:0]]},
        )
        drawn = model.posterior_predictive_sample(n_samples=1)
    counts = sparse.csr_matrix(drawn.to_scipy_sparse() if hasattr(drawn, "to_scipy_sparse") else drawn)
    out = ad.AnnData(counts.astype(np.float32), obs=data.obs[["cell_type", "condition"]].copy(), var=data.var.copy())
    out.obs_names = [f"redraw_{i}" for i in range(out.n_obs)]
    return out, int(model.trainer.current_epoch)
