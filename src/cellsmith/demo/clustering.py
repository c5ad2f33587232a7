"""Section "clustering": groups of blood cells with a reason for every merge, and new cells placed among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith.demo import _clustering_words as words
from cellsmith.demo._context import Context
from cellsmith.demo._report import Block, Code, Heading, Section, Terms, Tiles

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

__all__ = ["section"]

LABELS = "cell_type"
MOST_GENES, QUICK_GENES, MOST_CELLS, QUICK_CELLS = 1_000, 150, 1_500, 200
HELD_OUT = 5  # every fifth cell


@dataclass(frozen=True)
class _Run:
    """Everything that was computed, before any word is written about it."""

    cells: AnnData
    scores: pd.DataFrame
    n_new: int
    share_right: float


def section(context: Context) -> Section:
    """Cluster real cells in three ways, place cells that were put aside, score, and tell the story.

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
    blocks: list[Block] = [
        *_opening(context, run),
        Heading("The scores"),
        words.score_table(run.scores),
        Heading("What this does not show"),
        *words.LIMITS,
        Heading("On your own data"),
        "The same in Python, on any AnnData object with raw counts:",
        Code(words.CODE),
        Heading("Words of this part"),
        Terms(words.GLOSSARY),
    ]
    return Section(
        "Clustering: groups of cells with a reason",
        "clustering",
        blocks,
        summary=words.summary_table(run.scores),
    )


def _compute(context: Context) -> _Run:
    reference, new = _cells(context)
    context.say(f"clustering {reference.n_obs:,} cells x {reference.n_vars:,} genes, without training and with")
    plain = _fit(reference, context, epochs=0)
    plain.write(reference)
    trained = _fit(reference.copy(), context, epochs=1 if context.quick else 8)
    truth = reference.obs[LABELS]
    labels = {
        words.SCANPY: _scanpy(reference, seed=context.seed),
        words.UNTRAINED: plain.predict().to_numpy(),
        words.TRAINED: trained.predict().to_numpy(),
    }
    context.say(f"placing {new.n_obs} cells that were put aside")
    found = plain.map_query(new)
    names = truth.astype(str).groupby(plain.predict().to_numpy(), observed=True).agg(lambda t: t.mode()[0])
    right = float((found.labels.astype(str).map(names).to_numpy() == new.obs[LABELS].astype(str).to_numpy()).mean())
    return _Run(reference, _scores(truth, labels), new.n_obs, right)


def _cells(context: Context) -> tuple[AnnData, AnnData]:
    """Return the cells that are clustered, and every fifth one, which is put aside."""
    from cellsmith.datasets import kang_pbmc

    adata = kang_pbmc()
    total = np.asarray(adata.X.sum(axis=0)).ravel()
    # By expression, so that no label chooses a gene by what it tells apart.
    genes = np.sort(np.argsort(-total, kind="stable")[: QUICK_GENES if context.quick else MOST_GENES])
    few = adata[: QUICK_CELLS if context.quick else MOST_CELLS, genes]
    few = few[np.asarray(few.X.sum(axis=1)).ravel() > 0].copy()
    aside = np.arange(few.n_obs) % HELD_OUT == HELD_OUT - 1
    return few[~aside].copy(), few[aside].copy()


def _fit(adata: AnnData, context: Context, *, epochs: int) -> Any:
    from cellsmith.model import SCAGC

    SCAGC.setup_anndata(adata)
    model = SCAGC(adata)
    model.train(max_epochs=epochs, seed=context.seed, enable_progress_bar=context.shows_progress)
    return model


def _scanpy(adata: AnnData, *, seed: int) -> np.ndarray:
    """Return what most people would do: logarithms, 50 components, 15 neighbours, Leiden at resolution 1."""
    import scanpy as sc

    own = adata.copy()
    sc.pp.normalize_total(own, target_sum=1e4)
    sc.pp.log1p(own)
    sc.pp.pca(own, n_comps=min(50, own.n_obs - 1, own.n_vars - 1), random_state=seed)
    sc.pp.neighbors(own, random_state=seed)
    sc.tl.leiden(own, flavor="igraph", n_iterations=2, random_state=seed)
    return own.obs["leiden"].to_numpy()


def _scores(truth: Any, labels: dict[str, Any]) -> pd.DataFrame:
    from cellsmith.metrics import ari, macro_f1, nmi

    rows = [
        {
            "way": name,
            "clusters": len(set(found)),
            "ari": ari(truth, found),
            "nmi": nmi(truth, found),
            "f1": macro_f1(truth, found),
        }
        for name, found in labels.items()
    ]
    return pd.DataFrame(rows).set_index("way")


def _opening(context: Context, run: _Run) -> list[Block]:
    block = run.cells.uns["scagc"]
    n_merges = len(block["merges"]["step"])
    report = block["graph"]
    map_picture = context.picture(
        "clustering_map",
        _map(run.cells, seed=context.seed),
        title="The cells, coloured by cluster and by the names that the authors gave them",
        how_to_read="Every dot is a cell; cells that are linked lie near one another. Left: clusters, found without "
        "any name; right: the names. Where a colour on the left covers one colour on the right, the cluster is a type.",
        finding=f"{run.cells.obs['scagc'].nunique()} clusters, {run.cells.obs[LABELS].nunique()} names.",
    )
    blocks: list[Block] = [
        "**How many kinds of cells are there, and who says so?** Programs find as many groups as their resolution is "
        "set to. Here a group stays only if marker genes tell it from every other group, in both directions.",
        f"{run.cells.n_obs:,} blood cells (Kang and colleagues, 2018, GSE96583) were linked to the cells most like "
        "them, with a penalty on cells that everybody links to. Names were put aside until the scores.",
        Tiles(
            [
                (str(run.cells.obs["scagc"].nunique()), f"clusters; merges for want of marker genes: {n_merges}"),
                (f"{run.share_right:.2f}", f"of {run.n_new} new cells placed in a cluster of their own type"),
                (
                    f"{report['largest_degree']}",
                    f"links of the largest hub (plain nearest neighbours: {report['knn_largest_degree']})",
                ),
            ]
        ),
        Heading("Three ways to cluster"),
        Terms(words.WAYS),
        map_picture,
    ]
    if n_merges:
        picture = context.picture(
            "clustering_merges",
            _merges(run.cells),
            title="Why clusters were merged",
            how_to_read="One bar for each merge, from the first at the top: how many marker genes the pair had in the "
            "direction that has fewer. The dashed line is what every pair must reach to stay apart.",
        )
        blocks += [Heading("A reason for every merge"), picture]
    return blocks


def _map(adata: AnnData, *, seed: int) -> Figure:
    """Draw UMAP of the exported graph twice: clusters, and the authors' names."""
    import matplotlib.pyplot as plt
    import scanpy as sc

    from cellsmith.pl._style import CATEGORIES

    sc.tl.umap(adata, neighbors_key="scagc", random_state=seed)
    figure, axes = plt.subplots(1, 2, figsize=(11.4, 4.6), layout="constrained")
    for axis, column in zip(axes, ("scagc", LABELS), strict=True):
        groups = adata.obs[column].astype("category")
        for i, name in enumerate(groups.cat.categories):
            own = (groups == name).to_numpy()
            axis.scatter(*adata.obsm["X_umap"][own].T, s=5, color=CATEGORIES[i % len(CATEGORIES)], label=str(name))
        axis.set(xticks=[], yticks=[], title="clusters" if column == "scagc" else "names")
        axis.legend(frameon=False, fontsize=7.5, markerscale=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _merges(adata: AnnData) -> Figure:
    from cellsmith.pl import merge_path

    return merge_path(adata).figure
