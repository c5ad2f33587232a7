"""Pictures of topics: where they are active, what they are made of, and how many of them there should be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith import _record
from cellsmith._errors import SetupError, nearest
from cellsmith.pl import _style as style
from cellsmith.pl._topic_edits import SMALLEST, topic_number, topic_perturbation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["n_topics_curve", "topic_enrichment", "topic_genes", "topic_heatmap", "topic_map", "topic_perturbation"]

SHADES = "Blues"  # one hue from white: reads the same with and without colour vision, and zero stays quiet
PANELS = {
    "perplexity": "perplexity of held-out cells\n(lower is better)",
    "npmi": "coherence of top genes, NPMI\n(higher is better)",
    "diversity": "distinct top genes\n(higher is better)",
    "redundancy": "redundant topics\n(lower is better)",
    "stability": "agreement of seeds\n(higher is better)",
}
LETTERS = 48  # of the name of a gene set
LIMITS = {"redundancy": 0.2, "stability": 0.6}  # the bounds that sce2tm_choose_n_topics asks for


def topic_heatmap(adata: Any, groupby: str, key: str = "sce2tm", *, ax: Axes | None = None) -> Axes:
    """Draw the mean share of every topic in every group of cells.

    Parameters
    ----------
    adata
        Object with the results of :func:`cellsmith.tl.sce2tm`.
    groupby
        Column of ``.obs`` with the groups.
    key
        Key of the results.
    ax
        Axes to draw into; None makes a figure.

    Returns
    -------
    The Axes: groups in rows, topics in columns, ordered by the group in which they are largest.

    Raises
    ------
    SetupError
        If there are no results or no such column.

    Examples
    --------
    >>> cellsmith.pl.topic_heatmap(adata, "cell_type")  # doctest: +SKIP
    """
    names, theta = _proportions(adata, key)
    if groupby not in adata.obs:
        raise SetupError(f"groupby={groupby!r} is not a column of .obs. {nearest(groupby, adata.obs.columns)}")
    column = adata.obs[groupby].astype("category").cat.remove_unused_categories()
    groups = list(column.cat.categories)
    means = np.stack([theta[(column == g).to_numpy()].mean(axis=0) for g in groups])
    order = np.lexsort((-means.max(axis=0), means.argmax(axis=0)))
    width = 1.8 + 0.09 * max(len(str(g)) for g in groups) + 0.24 * len(names)
    [axes] = style.panels(ax, 1, size=(width, 1.5 + 0.26 * len(groups)))
    # the scale ends at the largest mean: shares of 20 topics and more are small everywhere
    image = axes.pcolormesh(means[:, order], cmap=SHADES, vmin=0, edgecolors=style.GRID, linewidth=0.5)
    axes.set_yticks(np.arange(len(groups)) + 0.5, [str(g) for g in groups])
    axes.set_xticks(np.arange(len(names)) + 0.5, [topic_number(names[k]) for k in order], rotation=90)
    axes.invert_yaxis()
    axes.set(xlabel="topic", ylabel=groupby)
    axes.figure.colorbar(image, ax=axes, label="mean share", pad=0.015, fraction=0.03)
    style.tidy(axes)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[["left", "bottom"]].set_visible(False)
    return axes


def topic_genes(
    adata: Any, key: str = "sce2tm", *, n_genes: int = 8, topics: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Write the top genes of every topic, shaded by how much of the gene belongs to it.

    Parameters
    ----------
    adata
        Object with the results of :func:`cellsmith.tl.sce2tm`.
    key
        Key of the results.
    n_genes
        Genes a topic.
    topics
        Names of topics; None is all.
    ax
        Axes to draw into; None makes a figure.

    Returns
    -------
    The Axes: one row a topic, its genes by falling loading beta. White: the gene is shared evenly by all topics; the
    darker, the more of it belongs to this one. A gene that is in the rows of two topics is in italics.

    Raises
    ------
    SetupError
        If there are no results or no such topic.

    Examples
    --------
    >>> cellsmith.pl.topic_genes(adata, n_genes=10)  # doctest: +SKIP
    """
    names = _classes(adata, key)
    beta = np.asarray(_slot(adata.varm, f"{key}_loadings", ".varm"))
    shown = list(names if topics is None else topics)
    for name in shown:
        if name not in names:
            raise SetupError(f"topics names {name!r}. {nearest(name, names)}")
    genes = np.asarray(adata.var_names, dtype=str)
    rows = [np.argsort(-beta[:, names.index(t)], kind="stable")[:n_genes] for t in shown]
    used, times = np.unique(np.concatenate(rows), return_counts=True)
    repeated = set(used[times > 1])
    letters = max(len(genes[g]) for row in rows for g in row)
    n_columns = len(rows[0])
    wide = 0.2 + 0.085 * max(letters, 7)
    [axes] = style.panels(ax, 1, size=(1.2 + wide * n_columns, 1.0 + 0.24 * len(shown)))
    shade = np.array([[beta[g, names.index(t)] for g in row] for t, row in zip(shown, rows, strict=True)])
    # from the even share: how far loadings rise above it depends on the length of training, their order hardly
    low, high = 1 / len(names), max(shade.max(), 1.01 / len(names))
    image = axes.pcolormesh(shade, cmap=SHADES, vmin=low, vmax=high, edgecolors="white", linewidth=1.2)
    for i, row in enumerate(rows):
        for j, g in enumerate(row):
            axes.text(
                j + 0.5,
                i + 0.5,
                genes[g],
                ha="center",
                va="center",
                fontsize=8,
                style="italic" if g in repeated else "normal",
                color="white" if shade[i, j] - low > 0.6 * (high - low) else style.INK,
            )
    axes.set_yticks(np.arange(len(shown)) + 0.5, [topic_number(t) for t in shown])
    axes.set_xticks(np.arange(n_columns) + 0.5, [str(j + 1) for j in range(n_columns)])
    axes.invert_yaxis()
    axes.set(xlabel="rank", ylabel="topic")
    axes.figure.colorbar(
        image, ax=axes, label=f"loading (white: even share, {low:.2g})", pad=0.015, fraction=0.03, aspect=30
    )
    style.tidy(axes)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[["left", "bottom"]].set_visible(False)
    return axes


def topic_enrichment(
    adata: Any, key: str = "sce2tm_enrich", *, n_terms: int = 3, fdr: float = 0.05, ax: Axes | None = None
) -> Axes:
    """Draw which gene sets topics are enriched in.

    Parameters
    ----------
    adata
        Object with the table of :func:`cellsmith.tl.sce2tm_enrich` or :func:`cellsmith.tl.sce2tm_gsea`.
    key
        Its key.
    n_terms
        Most gene sets a topic, those of the smallest adjusted p-values.
    fdr
        Largest adjusted p-value.
    ax
        Axes to draw into; None makes a figure.

    Returns
    -------
    The Axes: gene sets in rows, topics in columns; only topics and sets with a dot are shown. Larger: more common genes
    (of GSEA, a larger set); darker: a smaller adjusted p-value.

    Raises
    ------
    SetupError
        If there is no such table.

    Examples
    --------
    >>> cellsmith.pl.topic_enrichment(adata, fdr=0.01)  # doctest: +SKIP
    """
    table = _record.read(adata, key).get("table", {})
    if "term" not in table or "fdr" not in table:
        raise SetupError(f".uns[{key!r}] holds no enrichment; expected the table of cellsmith.tl.sce2tm_enrich.")
    hits = pd.DataFrame(dict(table))
    hits = hits[hits["fdr"] <= fdr]
    topics = list(dict.fromkeys(hits["topic"]))
    best = hits.sort_values(["fdr", "p_value"], kind="stable").groupby("topic", sort=False).head(n_terms)
    terms = list(dict.fromkeys(term for topic in topics for term in best.loc[best["topic"] == topic, "term"]))
    hits = hits[hits["term"].isin(terms)]
    letters = max((len(str(t)) for t in terms), default=10)
    width = 2.2 + 0.075 * min(letters, LETTERS) + 0.26 * max(len(topics), 4)
    [axes] = style.panels(ax, 1, size=(width, 1.3 + 0.23 * max(len(terms), 4)))
    if hits.empty:
        axes.set_axis_off()
        axes.text(0.5, 0.5, f"no gene set with an adjusted p-value up to {fdr:g}", ha="center", color=style.SOFT)
        return axes
    x, y = hits["topic"].map(topics.index), hits["term"].map(terms.index)
    sizes = hits["overlap"] if "overlap" in hits else hits["set_size"]
    strength = -np.log10(np.maximum(hits["fdr"], SMALLEST))
    area = 20 + 130 * sizes / sizes.max()
    dots = axes.scatter(x, y, s=area, c=strength, cmap=SHADES, vmin=0, edgecolors=style.SOFT, linewidths=0.5)
    axes.set_xticks(range(len(topics)), [topic_number(t) for t in topics], rotation=90)
    axes.set_yticks(range(len(terms)), [_cut(t) for t in terms])
    axes.set_xlim(-0.7, len(topics) - 0.3)
    axes.set_ylim(len(terms) - 0.3, -0.7)
    axes.set_xlabel("topic")
    what = "common genes" if "overlap" in hits else "genes of the set"
    axes.set_title(f"largest dot: {int(sizes.max())} {what}", loc="left", fontsize=9)
    axes.figure.colorbar(dots, ax=axes, label="-log10 adjusted p-value", pad=0.02, fraction=0.04, aspect=25)
    style.tidy(axes, grid="both")
    axes.tick_params(length=0, labelsize=8)
    return axes


def n_topics_curve(adata: Any, key: str = "sce2tm_n_topics", *, ax: Sequence[Axes] | None = None) -> np.ndarray:
    """Draw the scores of every number of topics that was tried.

    Parameters
    ----------
    adata
        Object with the table of :func:`cellsmith.tl.sce2tm_choose_n_topics`.
    key
        Its key.
    ax
        Five Axes; None makes a figure.

    Returns
    -------
    Array of Axes, one a score: dots are seeds, the line their mean, the dashed line the proposal. Of the perplexity
    the band reaches one standard error above the best; a dotted line is the bound that a proposal keeps.

    Raises
    ------
    SetupError
        If there is no such table.

    Examples
    --------
    >>> cellsmith.pl.n_topics_curve(adata)  # doctest: +SKIP
    """
    block = _record.read(adata, key)
    if "summary" not in block or "proposal" not in block:
        raise SetupError(f".uns[{key!r}] holds no curve; expected the table of cellsmith.tl.sce2tm_choose_n_topics.")
    summary, runs = block["summary"], block["runs"]
    tried = np.asarray(summary["n_topics"])
    axes = style.panels(ax, len(PANELS), size=(13.5, 3.0))
    for panel, (name, words) in zip(axes, PANELS.items(), strict=True):
        if name in runs:
            jitter = np.asarray(runs["n_topics"])
            panel.scatter(jitter, runs[name], s=16, color=style.CONTROL, linewidths=0, zorder=2)
        panel.plot(tried, summary[name], color=style.REAL, marker="o", markersize=4.5, linewidth=1.6, zorder=3)
        if name == "perplexity":
            best = int(np.argmin(summary[name]))
            low, error = summary[name][best], summary["perplexity_error"][best]
            panel.axhspan(low, low + error, color=style.GRID, linewidth=0, zorder=1)
        if name in LIMITS:
            panel.axhline(LIMITS[name], color=style.SOFT, linewidth=1, linestyle=":")
        panel.axvline(float(block["proposal"]), color=style.SYNTHETIC, linewidth=1.2, linestyle="--", zorder=1)
        panel.set_title(words, loc="left", fontsize=9)
        panel.set_xticks(tried)
        panel.set_xlabel("topics")
    for name, least in (("diversity", 1.0), ("redundancy", 0.25), ("stability", 1.0)):
        panel = axes[list(PANELS).index(name)]
        panel.set_ylim(0, max(least, panel.get_ylim()[1]) * 1.02)
    style.tidy(axes, grid="y")
    axes[0].annotate(
        f"proposal: {int(block['proposal'])}",
        (float(block["proposal"]), 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(4, -9),
        textcoords="offset points",
        fontsize=8.5,
        color=style.SYNTHETIC,
    )
    return np.asarray(axes, dtype=object)


def topic_map(model: Any, *, n_genes: int = 2, rng: int = 0, ax: Axes | None = None) -> Axes:
    """Draw genes and topics in one plane.

    Both lie in one space in training, where a gene belongs most to the topics near it. The plane is a t-SNE of that
    space: who is whose neighbour can be read from it, how far apart distant topics are cannot. Takes some ten seconds.

    Parameters
    ----------
    model
        Trained :class:`cellsmith.model.SCE2TM`.
    n_genes
        Top genes of every topic to name, those of :func:`topic_genes`; with more than 20 topics names overlap, and 0
        names none.
    rng
        Seed of the layout.
    ax
        Axes to draw into; None makes a figure.

    Returns
    -------
    The Axes: genes as dots, topics as numbered discs with the names of their top genes.

    Raises
    ------
    SetupError
        If the model has no embeddings.

    Examples
    --------
    >>> cellsmith.pl.topic_map(model)  # doctest: +SKIP
    """
    if not hasattr(model, "get_gene_embedding") or not hasattr(model, "get_topic_embedding"):
        raise SetupError(f"Found {type(model).__name__}; expected a trained cellsmith.model.SCE2TM.")
    from matplotlib import patheffects
    from sklearn.manifold import TSNE

    genes, topics = model.get_gene_embedding(), model.get_topic_embedding()
    both = np.concatenate([genes.to_numpy(), topics.to_numpy()])
    perplexity = min(30, (len(both) - 1) // 3)
    plane = TSNE(2, init="pca", random_state=rng, perplexity=perplexity).fit_transform(both)
    g, t = np.split(plane, [len(genes)])
    named = model.get_top_genes(n=max(n_genes, 1))
    [axes] = style.panels(ax, 1, size=(7.2, 6.4))
    axes.scatter(g[:, 0], g[:, 1], s=9, color=style.CONTROL, alpha=0.35, linewidths=0, zorder=1)
    halo = [patheffects.withStroke(linewidth=2.2, foreground="white")]
    axes.scatter(t[:, 0], t[:, 1], s=190, color=style.REAL, edgecolors="white", linewidths=1, zorder=3)
    for k, name in enumerate(topics.index):
        axes.annotate(topic_number(name), t[k], ha="center", va="center", fontsize=7.5, color="white", zorder=4)
        for j, gene in enumerate(named[name] if n_genes else ()):
            place = {"xytext": (11, 5 - 9 * j), "textcoords": "offset points"}
            axes.annotate(str(gene), t[k], **place, fontsize=7.5, path_effects=halo, zorder=2)
    axes.set(xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
    style.tidy(axes)
    return axes


def _cut(name: object) -> str:
    text = str(name)
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


def _classes(adata: Any, key: str) -> list[str]:
    block = _record.read(adata, key)
    if "classes" not in block or block["provenance"]["method"] != "sce2tm":
        raise SetupError(f".uns[{key!r}] is not a result of sce2tm. Type cellsmith.tl.sce2tm(adata) first.")
    return [str(name) for name in block["classes"]]


def _slot(slot: Any, name: str, where: str) -> Any:
    if name not in slot:
        raise SetupError(f"{where} has no {name!r}. {nearest(name, slot)}")
    return slot[name]


def _proportions(adata: Any, key: str) -> tuple[list[str], np.ndarray]:
    return _classes(adata, key), np.asarray(_slot(adata.obsm, f"X_{key}", ".obsm"))
