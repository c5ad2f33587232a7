"""The picture of an edit of topics: which topics differ, how they were moved, and which genes follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cellsmith._errors import SetupError, nearest
from cellsmith.pl import _style as style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SMALLEST", "topic_number", "topic_perturbation"]

N_UNTOUCHED = 4  # topics beside the edited ones whose shares are drawn, for comparison
SMALLEST = 1e-300  # a p-value below what a double holds


def topic_perturbation(
    perturbation: Any,
    *,
    selection: Any = None,
    group: Any = None,
    n_genes: int = 20,
    ax: Sequence[Axes] | None = None,
) -> np.ndarray:
    """Draw what an edit of topics did.

    Parameters
    ----------
    perturbation
        Answer of :meth:`cellsmith.model.SCE2TM.perturb_topics`, with fold changes of groups or of cells.
    selection
        Answer of :meth:`cellsmith.model.SCE2TM.select_topics`; adds the volcano of all topics that were tested.
    group
        Row of ``perturbation.logfc`` whose genes are drawn; None is the mean of the rows.
    n_genes
        Genes with the largest fold changes to draw.
    ax
        Two Axes, or three with a selection; None makes a figure.

    Returns
    -------
    Array of Axes: (with a selection) the volcano, effect against adjusted p-value, one point a topic; the shift, mean
    share of topics before and after; the genes that change most.

    Raises
    ------
    SetupError
        If there is no such row, or the selection carries no table.

    Examples
    --------
    >>> cellsmith.pl.topic_perturbation(perturbation, selection=topics)  # doctest: +SKIP
    """
    logfc = perturbation.logfc
    if group is not None and group not in logfc.index:
        raise SetupError(f"group={group!r} is not a row of the fold changes. {nearest(group, logfc.index)}")
    change = logfc.mean(axis=0) if group is None else logfc.loc[group]
    n_panels = 2 if selection is None else 3
    axes = style.panels(ax, n_panels, size=(4.2 * n_panels, 1.4 + 0.19 * max(n_genes, 14)))
    if selection is not None:
        _volcano(axes[0], selection)
    _shift(axes[-2], perturbation)
    _genes(axes[-1], change, n_genes)
    if group is not None or len(logfc) == 1:
        axes[-1].set_title(f"expression of {group if group is not None else logfc.index[0]}", loc="left", fontsize=10.5)
    return np.asarray(axes, dtype=object)


def _volcano(ax: Axes, selection: Any) -> None:
    tested = selection.attrs.get("tested")
    if tested is None:
        raise SetupError("selection carries no table of the tested topics; expected the frame that select_topics gave.")
    names, effect = np.asarray(tested["topic"]), np.asarray(tested["effect"], dtype=float)
    height = -np.log10(np.maximum(np.asarray(tested["fdr"], dtype=float), SMALLEST))
    kept = np.isin(names, selection.index)
    ax.scatter(effect[~kept], height[~kept], s=26, color=style.CONTROL, linewidths=0, label="tested")
    ax.scatter(effect[kept], height[kept], s=40, color=style.SYNTHETIC, linewidths=0, label="selected")
    for x, y, name in zip(effect[kept], height[kept], names[kept], strict=True):
        side = 1 if x >= 0 else -1
        ax.annotate(
            topic_number(name),
            (x, y),
            xytext=(-5 * side, 4),
            textcoords="offset points",
            ha="right" if side > 0 else "left",
            fontsize=8.5,
        )
    least = selection.attrs["min_effect"]
    ax.axhline(-np.log10(selection.attrs["fdr"]), color=style.SOFT, linewidth=0.8, linestyle=":")
    for x in (-least, least):
        ax.axvline(x, color=style.SOFT, linewidth=0.8, linestyle=":")
    widest = 1.15 * max(np.abs(effect).max(), least)
    ax.set_xlim(-widest, widest)
    ax.set_ylim(0, 1.12 * max(height.max(), 2.0))
    versus = f"{selection.attrs['group']} minus {selection.attrs['reference']}"
    ax.set(xlabel=f"effect, sd: {versus}", ylabel="-log10 adjusted p-value")
    ax.set_title(f"volcano of topics (one {selection.attrs['unit']} a value)", loc="left", fontsize=10.5)
    ax.legend(frameon=False, fontsize=8.5, loc="lower right")
    style.tidy(ax)


def _shift(ax: Axes, perturbation: Any) -> None:
    """Draw the mean share of the edited topics before and after, and of the largest others."""
    before, after = perturbation.theta_before.mean(axis=0), perturbation.theta_after.mean(axis=0)
    edited = list(perturbation.topics.columns)
    others = before.drop(edited).sort_values(ascending=False).index[:N_UNTOUCHED]
    shown = [*edited, *others]
    y = np.arange(len(shown))[::-1]
    for i, name in zip(y, shown, strict=True):
        colour = style.SYNTHETIC if name in edited else style.CONTROL
        ax.annotate(
            "",
            (after[name], i),
            (before[name], i),
            arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0},
        )
    ax.scatter(before[shown], y, s=34, facecolors="white", edgecolors=style.INK, zorder=3, label="before")
    ax.scatter(after[shown], y, s=34, color=style.INK, linewidths=0, zorder=3, label="after")
    ax.set_yticks(y, [topic_number(name) for name in shown])
    for label, name in zip(ax.get_yticklabels(), shown, strict=True):
        label.set_fontweight("bold" if name in edited else "normal")
    ax.set_xlim(left=0)
    ax.margins(x=0.08)
    ax.set(xlabel="mean share of cells", ylabel="topic (edited in bold)")
    op, strength = perturbation.params["op"], perturbation.params["strength"]
    ax.set_title(f"shift: {op}, strength {strength:g}", loc="left", fontsize=10.5)
    ax.legend(frameon=False, fontsize=8.5, loc="lower right")
    style.tidy(ax, grid="x")


def _genes(ax: Axes, change: Any, n_genes: int) -> None:
    order = np.argsort(-np.abs(change.to_numpy()), kind="stable")[:n_genes]
    shown = change.iloc[order].sort_values()
    colours = [style.SYNTHETIC if value > 0 else style.REAL for value in shown]
    y = np.arange(len(shown))
    ax.barh(y, shown.to_numpy(), color=colours, height=0.72)
    ax.set_yticks(y, [str(gene) for gene in shown.index])
    ax.axvline(0, color=style.INK, linewidth=0.8)
    ax.set_ylim(-0.6, len(shown) - 0.4)
    ax.set(xlabel="log2 fold change of expression")
    ax.set_title("genes that change most", loc="left", fontsize=10.5)
    style.tidy(ax, grid="x")
    ax.tick_params(axis="y", length=0, labelsize=8)


def topic_number(name: object) -> str:
    """Return the number of a topic, which its axis already calls a topic."""
    return str(name).removeprefix("Topic_")
