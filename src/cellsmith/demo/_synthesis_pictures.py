"""The pictures of the synthesis section that are made for this experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "RESPONSE_GENES",
    "figure_of",
    "fold_changes",
    "log_normalised",
    "maps",
    "response_heatmap",
    "response_scatter",
    "shared_map",
    "slope",
    "strongest",
    "values_of",
]

RESPONSE_GENES = ("ISG15", "IFI6", "IFIT1", "IFIT3", "MX1", "OAS1", "ISG20", "LY6E", "CXCL10", "CCL8")
PALETTE = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#999933",
    "#ee8866",
    "#332288",
    "#44bb99",
    "#882255",
    "#777777",
    "#bbcc33",
)


def log_normalised(adata: ad.AnnData) -> sparse.csr_matrix:
    """Scale every cell of ``adata`` to 10,000 counts and take log(1 + x); CSR, shape ``(cells, genes)``."""
    x = sparse.csr_matrix(adata.X, dtype=np.float64)
    total = np.asarray(x.sum(axis=1)).ravel()
    x = sparse.diags(1e4 / np.maximum(total, 1.0)) @ x
    return sparse.csr_matrix(x.log1p())


def shared_map(
    real: ad.AnnData, synthetic: ad.AnnData, *, seed: int, quick: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Place real and synthetic cells on one map.

    Parameters
    ----------
    real, synthetic
        Counts of the same genes.
    seed
        Integer.
    quick
        True: the first two principal components, because compiling UMAP takes longer than the rest of a quick run.

    Returns
    -------
    Two arrays of coordinates, shape ``(cells, 2)``, no unit: UMAP of 30 principal components of both together.
    """
    from sklearn.decomposition import PCA

    both = sparse.vstack([log_normalised(real), log_normalised(synthetic)]).toarray()
    scores = PCA(min(30, min(both.shape) - 1), random_state=seed, svd_solver="randomized").fit_transform(both)
    if quick:
        return scores[: real.n_obs, :2], scores[real.n_obs :, :2]
    import umap

    place = umap.UMAP(n_neighbors=20, min_dist=0.35, random_state=seed, n_jobs=1).fit_transform(scores)
    return place[: real.n_obs], place[real.n_obs :]


def maps(real: ad.AnnData, synthetic: ad.AnnData, *, places: tuple[np.ndarray, np.ndarray]) -> Figure:
    """Draw the shared map four times: real and generated, coloured by type and by condition.

    Parameters
    ----------
    real, synthetic
        Objects with ``.obs["cell_type"]`` and ``.obs["condition"]``.
    places
        Their coordinates, as :func:`shared_map` returns them.

    Returns
    -------
    The figure.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10.5, 8.6), sharex=True, sharey=True)
    for row, (key, colours) in enumerate((("cell_type", PALETTE), ("condition", ["#4477aa", "#ee6677"]))):
        names = sorted(set(real.obs[key]))
        for column, (adata, place, who) in enumerate(
            ((real, places[0], "real, never seen in training"), (synthetic, places[1], "generated"))
        ):
            axis = axes[row, column]
            for name, colour in zip(names, colours, strict=False):
                here = (adata.obs[key] == name).to_numpy()
                axis.scatter(*place[here].T, s=7, color=colour, label=name, linewidths=0, alpha=0.85)
            axis.set(title=f"{who} ({adata.n_obs:,} cells)", xticks=[], yticks=[])
            axis.spines[:].set_color("#cccccc")
        axes[row, 1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, markerscale=2.5)
    figure.tight_layout()
    return figure


def figure_of(draw: Callable[..., Any], *args: Any, **kwargs: Any) -> Figure:
    """Call one of the package's pictures and return the figure that its Axes belong to.

    Parameters
    ----------
    draw
        A function of :mod:`cellsmith.pl`.
    *args, **kwargs
        Its arguments.

    Returns
    -------
    The figure.
    """
    axes = np.atleast_1d(draw(*args, **kwargs))
    return axes.ravel()[0].figure


def fold_changes(adata: ad.AnnData, *, min_cells: int = 10) -> pd.DataFrame:
    """Measure what interferon does to every gene in every type.

    Parameters
    ----------
    adata
        Counts with ``.obs["cell_type"]`` and ``.obs["condition"]`` (CTRL, STIM).
    min_cells
        A type needs this many cells under either condition.

    Returns
    -------
    Types x genes, log2 of the ratio of mean counts per 10,000 (STIM over CTRL, 0.5 added to both).
    """
    x = sparse.csr_matrix(adata.X, dtype=np.float64)
    x = sparse.csr_matrix(sparse.diags(1e4 / np.maximum(np.asarray(x.sum(axis=1)).ravel(), 1.0)) @ x)
    rows = {}
    for name in sorted(set(adata.obs["cell_type"])):
        here = (adata.obs["cell_type"] == name).to_numpy()
        sides = [here & (adata.obs["condition"] == side).to_numpy() for side in ("CTRL", "STIM")]
        if min(side.sum() for side in sides) >= min_cells:
            control, stimulated = (np.asarray(x[side].mean(axis=0)).ravel() + 0.5 for side in sides)
            rows[name] = np.log2(stimulated / control)
    return pd.DataFrame.from_dict(rows, orient="index", columns=adata.var_names)


def slope(real: np.ndarray, other: np.ndarray) -> float:
    """Least squares through zero of ``other`` on ``real``, both of one shape; 1 is neither damped nor exaggerated."""
    return float((real * other).sum() / (real**2).sum())


def strongest(chosen: pd.DataFrame, tables: Sequence[pd.DataFrame], *, n_genes: int = 50) -> dict[str, pd.Index]:
    """Name the genes of every type that respond most.

    Parameters
    ----------
    chosen
        Fold changes, types x genes, that choose.
    tables
        Fold changes that must have the type too.
    n_genes
        Genes a type.

    Returns
    -------
    Type -> genes, strongest first.
    """
    types = sorted(set.intersection(*(set(table.index) for table in (chosen, *tables))))
    return {name: chosen.loc[name].abs().nlargest(n_genes).index for name in types}


def values_of(table: pd.DataFrame, genes: Mapping[str, pd.Index]) -> np.ndarray:
    """Collect the fold changes of ``genes`` (type -> names) from ``table``, shape ``(sum of genes,)``."""
    return np.concatenate([table.loc[name, index].to_numpy() for name, index in genes.items()])


def response_heatmap(changes: Mapping[str, pd.DataFrame], *, genes: tuple[str, ...] = RESPONSE_GENES) -> Figure:
    """Draw the response of known genes in every type, one panel for each group of cells.

    Parameters
    ----------
    changes
        Title -> what :func:`fold_changes` returned.
    genes
        Columns to show; those that the data lack are skipped.

    Returns
    -------
    The figure.
    """
    import matplotlib.pyplot as plt

    types = sorted(set.intersection(*(set(table.index) for table in changes.values())))
    genes = tuple(gene for gene in genes if all(gene in table for table in changes.values()))
    limit = max(np.abs(table.loc[types, list(genes)].to_numpy()).max() for table in changes.values())
    figure, axes = plt.subplots(
        1, len(changes), figsize=(1.2 + 4.6 * len(changes), 1.4 + 0.36 * len(types)), sharey=True
    )
    image = None
    for axis, (title, table) in zip(np.atleast_1d(axes), changes.items(), strict=True):
        values = table.loc[types, list(genes)].to_numpy()
        image = axis.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        axis.set(title=title, xticks=range(len(genes)), yticks=range(len(types)), yticklabels=types)
        axis.set_xticklabels(genes, rotation=60, ha="right", fontsize=9)
        for (i, j), value in np.ndenumerate(values):
            axis.text(
                j,
                i,
                f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=7.5,
                color="white" if abs(value) > 0.6 * limit else "black",
            )
    figure.colorbar(image, ax=axes, label="log2 fold change, STIM over CTRL", fraction=0.03, pad=0.02)
    return figure


def response_scatter(
    changes: Mapping[str, pd.DataFrame], *, reference: pd.DataFrame, chosen: pd.DataFrame
) -> tuple[Figure, dict[str, float]]:
    """Draw fold changes of several groups of cells against those of unseen real cells.

    Parameters
    ----------
    changes
        Title -> fold changes of a group of cells; at most one panel for each.
    reference
        Fold changes of the unseen real cells.
    chosen
        Fold changes of the training cells; the 50 strongest of every type are shown, so that neither the
        reference nor a generator chooses the genes.

    Returns
    -------
    The figure, and the slope of each group (1 is ideal).
    """
    import matplotlib.pyplot as plt

    genes = strongest(chosen, [reference, *changes.values()])
    x = values_of(reference, genes)
    limit = 1.05 * np.abs(x).max()
    figure, axes = plt.subplots(
        1, len(changes), figsize=(4.1 * len(changes), 4.3), sharex=True, sharey=True, squeeze=False
    )
    slopes = {}
    for axis, (title, table) in zip(axes[0], changes.items(), strict=True):
        for (name, index), colour in zip(genes.items(), PALETTE, strict=False):
            axis.scatter(
                reference.loc[name, index], table.loc[name, index], s=9, color=colour, label=name, linewidths=0
            )
        slopes[title] = slope(x, values_of(table, genes))
        axis.axline((0, 0), slope=1, color="#999999", lw=1, ls="--")
        axis.axline((0, 0), slope=slopes[title], color="black", lw=1.3)
        axis.set(title=f"{title}\nslope {slopes[title]:.2f}", xlim=(-limit, limit), ylim=(-limit, limit))
        axis.set_xlabel("unseen real cells, log2 fold change")
    axes[0, 0].set_ylabel("this group, log2 fold change")
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, markerscale=2)
    figure.tight_layout()
    return figure, slopes
