"""The pictures of the missingness section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cellsmith.demo import _missingness_cells as cells
from cellsmith.demo._synthesis_pictures import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "bars", "first_axis", "maps", "rates"]

COLOURS = {
    cells.COMPLETE: "#1f2933",
    cells.ZERO: "#d55e00",
    cells.MEAN: "#e69f00",
    cells.PAIRWISE: "#56b4e9",
    cells.BC: "#0072b2",
    cells.REFINED: "#009e73",
}
CHANCE = "#8a8f98"


def rates(observed: npt.NDArray[np.bool_]) -> Figure:
    """Draw how much is left of each cell and of each gene.

    Parameters
    ----------
    observed
        True where an entry is left, (n, D).

    Returns
    -------
    The figure.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.0), layout="constrained")
    for axis, across, name in zip(axes, (1, 0), ("cells", "genes"), strict=True):
        axis.hist(observed.mean(axis=across), bins=np.linspace(0, 1, 31), color=COLOURS[cells.BC])
        axis.set(xlabel="share of entries that are left", ylabel=f"number of {name}", xlim=(0, 1))
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def maps(embeddings: Mapping[str, npt.NDArray[np.float64]], types: Sequence[str]) -> Figure:
    """Draw the first two axes of every embedding, coloured by type.

    Parameters
    ----------
    embeddings
        Title -> (n, at least 2); the first one decides which way the axes of the others point.
    types
        Type of each cell, (n,).

    Returns
    -------
    The figure.
    """
    import matplotlib.pyplot as plt

    labels, reference = np.asarray(types), next(iter(embeddings.values()))[:, :2]
    figure, axes = plt.subplots(2, -(-len(embeddings) // 2), figsize=(11.4, 7.4), layout="constrained", squeeze=False)
    for axis, (title, x) in zip(axes.ravel(), embeddings.items(), strict=False):
        # The sign of a principal axis means nothing; without this, equal pictures would look mirrored.
        sign = np.where((x[:, :2] * reference).sum(axis=0) < 0, -1.0, 1.0)
        place = x[:, :2] * sign
        for name, colour in zip(sorted(set(labels)), PALETTE, strict=False):
            own = labels == name
            axis.scatter(*place[own].T, s=7, color=colour, label=name, linewidths=0, alpha=0.85)
        low, high = np.quantile(place, [0.002, 0.998], axis=0)
        frame = np.stack([low, high], axis=1) + 0.08 * (high - low)[:, None] * [-1, 1]
        axis.set(title=title, xticks=[], yticks=[], xlabel="axis 1", ylabel="axis 2", xlim=frame[0], ylim=frame[1])
        axis.spines[:].set_color("#cccccc")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False, markerscale=2.5)
    return figure


def first_axis(
    embeddings: Mapping[str, npt.NDArray[np.float64]], rate: npt.NDArray[np.float64], follows: Mapping[str, float]
) -> Figure:
    """Draw the first axis of each embedding against how much of the cell was observed.

    Parameters
    ----------
    embeddings
        Title -> (n, at least 1); one panel each.
    rate
        Share of entries that are left of each cell, (n,).
    follows
        Title -> absolute rank correlation, written above the panel.

    Returns
    -------
    The figure.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(embeddings), figsize=(3.6 * len(embeddings), 3.5), layout="constrained", squeeze=False
    )
    for axis, (title, x) in zip(axes[0], embeddings.items(), strict=True):
        axis.scatter(rate, x[:, 0], s=6, color=COLOURS[title], linewidths=0, alpha=0.7)
        axis.set(title=f"{title}\ncorrelation {follows[title]:.2f}", xlabel="share of entries that are left", yticks=[])
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("first axis")
    return figure


def bars(scores: Mapping[str, Mapping[str, float]], shown: Mapping[str, str], chance: Mapping[str, float]) -> Figure:
    """Draw one panel a score, one bar a way.

    Parameters
    ----------
    scores
        Way -> score -> number.
    shown
        Score -> title of its panel.
    chance
        Score -> what a random embedding reaches, drawn as a line.

    Returns
    -------
    The figure.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(shown), figsize=(3.7 * len(shown), 3.3), layout="constrained", sharey=True)
    names = list(scores)
    for axis, (metric, title) in zip(np.atleast_1d(axes), shown.items(), strict=True):
        values = [scores[name][metric] for name in names]
        axis.barh(names, values, color=[COLOURS[name] for name in names])
        for i, value in enumerate(values):
            axis.text(value, i, f" {value:.2f}", va="center", fontsize=9)
        if metric in chance:
            axis.axvline(chance[metric], color=CHANCE, ls="--", lw=1)
        axis.set(xlim=(0, 1.18), title=title, xticks=[0, 0.5, 1])
        axis.spines[["top", "right"]].set_visible(False)
    np.atleast_1d(axes)[0].invert_yaxis()
    return figure
