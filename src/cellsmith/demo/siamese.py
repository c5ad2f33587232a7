"""Section "siamese": clusters of blood cells past a treatment, and new cells placed with a confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cellsmith.demo import _siamese_words as words
from cellsmith.demo._context import Context
from cellsmith.demo._report import Block, Code, Heading, Section, Terms, Tiles

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["section"]

LABELS, BATCH = "cell_type", "condition"
MOST_CELLS, QUICK_CELLS = 1_000, 200
MOST_GENES, QUICK_GENES = 1_000, 150
HELD_OUT = 5  # every fifth cell
# Enough for 800 cells, and a third of what the default takes.
EPOCHS = {"warmup": 40, "transport": 16}


@dataclass(frozen=True)
class _Run:
    """Everything that was computed, before any word is written about it."""

    cells: AnnData
    scores: dict[str, dict[str, float]]
    bands: dict[str, dict[str, float]]
    n_new: int
    right: float


def section(context: Context) -> Section:
    """Cluster real cells, place cells that were put aside, score, and tell the story.

    Parameters
    ----------
    context
        Folder, seed and length of the run.

    Returns
    -------
    The section, with a short table for the command line.
    """
    run = _compute(context)
    context.say("drawing the pictures")
    scores = words.score_table(run.scores)
    blocks: list[Block] = [
        *_opening(context, run),
        Heading("Against names that it never saw"),
        scores,
        Heading("Cells that were put aside"),
        words.band_table(run.bands),
        Heading("What this does not show"),
        *words.LIMITS,
        Heading("On your own data"),
        "The same in Python, on any AnnData object with raw counts:",
        Code(words.CODE),
        Heading("Words of this part"),
        Terms(words.GLOSSARY),
    ]
    return Section("Clusters that know how sure they are", "siamese", blocks, summary=scores)


def _compute(context: Context) -> _Run:
    from cellsmith.model import ScSiameseClu

    reference, new = _cells(context)
    context.say(f"clustering {reference.n_obs:,} cells x {reference.n_vars:,} genes from two views of each")
    ScSiameseClu.setup_anndata(reference, batch_key=BATCH)
    model = ScSiameseClu(reference)
    epochs: Any = 1 if context.quick else EPOCHS
    model.train(epochs, seed=context.seed, enable_progress_bar=context.shows_progress)
    model.write()
    found = model.predict()
    scores = {words.PCA: _against(reference, _scanpy(reference, seed=context.seed))}
    scores[words.OURS] = _against(reference, found.to_numpy())
    context.say(f"placing {new.n_obs} cells that were put aside")
    soft = model.predict(new, soft=True)
    named = reference.obs[LABELS].astype(str).groupby(found.astype(str).to_numpy()).agg(lambda t: t.mode()[0])
    right = soft.idxmax(axis=1).map(named).to_numpy() == new.obs[LABELS].astype(str).to_numpy()
    return _Run(reference, scores, _bands(soft.max(axis=1).to_numpy(), right), new.n_obs, float(right.mean()))


def _cells(context: Context) -> tuple[AnnData, AnnData]:
    """Return the cells that are clustered, and every fifth one, which is put aside."""
    from cellsmith.datasets import kang_pbmc

    adata = kang_pbmc()
    total = np.asarray(adata.X.sum(axis=0)).ravel()
    # By expression and at random, so that no label chooses a gene or a cell.
    genes = np.sort(np.argsort(-total, kind="stable")[: QUICK_GENES if context.quick else MOST_GENES])
    order = np.random.default_rng(context.seed).permutation(adata.n_obs)
    rows = np.sort(order[: QUICK_CELLS if context.quick else MOST_CELLS])
    few = adata[rows][:, genes]
    few = few[np.asarray(few.X.sum(axis=1)).ravel() > 0].copy()
    aside = np.arange(few.n_obs) % HELD_OUT == HELD_OUT - 1
    return few[~aside].copy(), few[aside].copy()


def _scanpy(adata: AnnData, *, seed: int) -> np.ndarray:
    """Return what most people would do: logarithms, 50 components, 15 neighbours, Leiden at resolution 1."""
    from cellsmith.demo.clustering import _scanpy as leiden

    return leiden(adata, seed=seed)


def _against(adata: AnnData, found: np.ndarray) -> dict[str, float]:
    from cellsmith.metrics import ari, nmi

    truth = adata.obs[LABELS]
    return {
        "clusters": float(len(set(found))),
        "ari": ari(truth, found),
        "nmi": nmi(truth, found),
        "batch": nmi(adata.obs[BATCH], found),
    }


def _bands(confidence: np.ndarray, right: np.ndarray) -> dict[str, dict[str, float]]:
    """Return thirds of the new cells by confidence."""
    order = np.argsort(-confidence, kind="stable")
    names = ("the surest third", "the middle third", "the least sure third")
    return {
        name: {"cells": len(rows), "confidence": float(confidence[rows].mean()), "right": float(right[rows].mean())}
        for name, rows in zip(names, np.array_split(order, 3), strict=True)
    }


def _opening(context: Context, run: _Run) -> list[Block]:
    import matplotlib.pyplot as plt
    import scanpy as sc

    from cellsmith.pl import scsiameseclu_clusters

    block, sure = run.cells.uns["scsiameseclu"], float(run.cells.obs["scsiameseclu_confidence"].mean())
    sc.tl.umap(run.cells, neighbors_key="scsiameseclu", random_state=context.seed)
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    scsiameseclu_clusters(run.cells, ax=axes)
    best, worst = (run.bands[name]["right"] for name in ("the surest third", "the least sure third"))
    picture = context.picture(
        "siamese_clusters",
        figure,
        title="Clusters, how sure they are, and how their number was found",
        how_to_read="Left: every dot is a cell, coloured by its cluster. Middle: how clearly the cells of each cluster "
        "belong to it. Right: clusters left after each step; it starts with too many, and merges those "
        "that too few genes tell apart.",
        finding=f"{block['params']['n_clusters_found']} clusters were left. A short walk from a cell "
        f"ends in its own cluster in {sure:.0%} of the cases.",
    )
    return [
        "**Which cells lie between two groups?** A clustering gives every cell a group, "
        "and rarely says where it is guessing. Here each cell is seen twice during training, with some of its "
        "molecules left out, and both sights must lead to the same group.",
        f"{run.cells.n_obs:,} blood cells of lupus patients, half of them treated with interferon (Kang and "
        "colleagues, 2018, GSE96583). The method is told which cells were treated, and asked to look past it; "
        "it is told no type.",
        Tiles(
            [
                (f"{block['params']['n_clusters_found']}", "clusters, a number that it found by itself"),
                (f"{sure:.0%}", "of short walks from a cell end in its own cluster"),
                (f"{run.right:.0%}", f"of {run.n_new} cells that nobody had seen get the right name"),
                (f"{best:.0%} and {worst:.0%}", "of the surest and of the least sure third of them"),
            ]
        ),
        picture,
    ]
