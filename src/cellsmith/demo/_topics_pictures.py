"""The pictures of the topics section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cellsmith.demo import _topics_cells as cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["bars", "genes", "heatmap", "predictions"]

COLOURS = {cells.SWITCHED: "#0072b2", cells.SHIFT: "#e69f00", cells.OTHERS: "#8a8f98"}
N_NAMED = 8


def heatmap(task: cells.Task) -> Figure:
    """Draw the mean share of every topic in every type and condition.

    Parameters
    ----------
    task
        The topics.

    Returns
    -------
    The figure.
    """
    import matplotlib.pyplot as plt

    from cellsmith import pl

    task.train.obs["type and condition"] = (
        task.train.obs["cell_type"].astype(str) + ", " + task.train.obs[cells.CONDITION].astype(str)
    ).astype("category")
    figure, axis = plt.subplots(figsize=(9.0, 6.6), layout="constrained")
    pl.topic_heatmap(task.train, "type and condition", ax=axis)
    del task.train.obs["type and condition"]
    return figure


def genes(task: cells.Task, topics: Sequence[str]) -> Figure:
    """Write the top genes of some topics.

    Parameters
    ----------
    task
        The topics.
    topics
        Names.

    Returns
    -------
    The figure.
    """
    import matplotlib.pyplot as plt

    from cellsmith import pl

    figure, axis = plt.subplots(figsize=(9.6, 0.9 + 0.42 * len(topics)), layout="constrained")
    pl.topic_genes(task.train, n_genes=N_NAMED, topics=list(topics), ax=axis)
    return figure


def predictions(
    observed: npt.NDArray[np.float64], ways: Mapping[str, npt.NDArray[np.float64]], names: Sequence[str]
) -> Figure:
    """Draw predicted against observed fold changes of one type, one panel a way.

    Parameters
    ----------
    observed
        log2 fold changes (G,).
    ways
        Way -> prediction (G,).
    names
        Genes (G,).

    Returns
    -------
    The figure.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(ways), figsize=(4.0 * len(ways), 4.0), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    named = np.argsort(-observed)[:N_NAMED]
    for axis, (way, x) in zip(axes[0], ways.items(), strict=True):
        axis.axline((0, 0), slope=1, color="#c5ccd3", lw=1)
        axis.scatter(observed, x, s=8, color=COLOURS[way], linewidths=0, alpha=0.6)
        for i in named:
            axis.annotate(names[i], (observed[i], x[i]), fontsize=7, xytext=(2, 2), textcoords="offset points")
        axis.set(title=way, xlabel="observed change (log2)")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("predicted change (log2)")
    return figure


def bars(scores: Mapping[str, Mapping[str, float]], shown: Mapping[str, tuple[str, float]]) -> Figure:
    """Draw one panel a score, one bar a way.

    Parameters
    ----------
    scores
        Way -> score -> number.
    shown
        Score -> title of its panel and its ideal, which is drawn as a line.

    Returns
    -------
    The figure.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(shown), figsize=(3.9 * len(shown), 2.5), layout="constrained", sharey=True)
    for axis, (metric, (title, ideal)) in zip(np.atleast_1d(axes), shown.items(), strict=True):
        values = [numbers[metric] for numbers in scores.values()]
        axis.barh(list(scores), values, color=[COLOURS[way] for way in scores])
        for i, value in enumerate(values):
            axis.text(max(value, 0.0), i, f" {value:.2f}", va="center", fontsize=9)
        axis.axvline(ideal, color="#8a8f98", ls="--", lw=1)
        axis.set(title=title, xlim=(min(0.0, *values), 1.2 * max(ideal, *values)))
        axis.spines[["top", "right"]].set_visible(False)
    np.atleast_1d(axes)[0].invert_yaxis()
    return figure
