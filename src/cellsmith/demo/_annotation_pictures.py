"""The pictures of the annotation section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np

from cellsmith.demo._synthesis_pictures import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cellsmith.metrics import AnnotationReport

__all__ = ["COLOURS", "bars", "maps", "place", "risk_coverage"]

COLOURS = {
    "grit_raw": "#8a8f98",
    "knn": "#56b4e9",
    "vote": "#e69f00",
    "grit": "#0072b2",
}
WRONG, RIGHT = "#c0392b", "#d5dae0"


def place(adata: ad.AnnData, *, seed: int, quick: bool = False) -> np.ndarray:
    """Place cells on a map, by the graph over which their scores were refined.

    Parameters
    ----------
    adata
        Cells with the results of GRIT and ``.obsm["X_pca"]``.
    seed
        Integer.
    quick
        True: the first two principal components, because compiling UMAP takes longer than the rest of a quick run.

    Returns
    -------
    Coordinates, shape ``(cells, 2)``, no unit.
    """
    if quick:
        return np.asarray(adata.obsm["X_pca"])[:, :2]
    import scanpy as sc

    found = sc.tl.umap(adata, neighbors_key="grit", maxiter=200, random_state=seed, copy=True)
    return np.asarray(found.obsm["X_umap"])


def maps(adata: ad.AnnData, places: np.ndarray, judged: np.ndarray) -> Figure:
    """Draw one map five times: three times coloured by type (authors, before, after), twice by right and wrong.

    Parameters
    ----------
    adata
        Cells with ``cell_type``, ``grit_raw`` and ``grit`` in ``.obs``.
    places
        Coordinates, shape ``(cells, 2)``.
    judged
        Cells that taught nobody, (n,) bool; shares of wrong labels are over them.

    Returns
    -------
    The figure.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12.6, 8.2), layout="constrained")
    truth = adata.obs["cell_type"].astype(str).to_numpy()
    names = sorted(set(truth))
    columns = (("cell_type", "authors' types"), ("grit_raw", "classifier"), ("grit", "after GRIT"))
    for axis, wrong_axis, (key, title) in zip(axes[0], axes[1], columns, strict=True):
        labels = adata.obs[key].astype(str).to_numpy()
        _types(axis, places, labels, names)
        axis.set_title(title)
        if key != "cell_type":
            wrong = labels != truth
            _errors(wrong_axis, places, wrong)
            wrong_axis.set_title(f"{title}: wrong for {wrong[judged].mean():.0%} of the cells")
    axes[1, 0].set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[1, 0].legend(handles, labels, loc="center", ncols=2, frameon=False, markerscale=3, title="types (upper row)")
    return figure


def _types(axis: Axes, places: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> None:
    for name, colour in zip(names, PALETTE, strict=False):
        here = labels == name
        axis.scatter(*places[here].T, s=5, color=colour, label=name, linewidths=0, alpha=0.9)
    _frame(axis)


def _errors(axis: Axes, places: np.ndarray, wrong: np.ndarray) -> None:
    for mask, colour in ((~wrong, RIGHT), (wrong, WRONG)):
        axis.scatter(*places[mask].T, s=5, color=colour, linewidths=0)
    _frame(axis)


def _frame(axis: Axes) -> None:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_color("#cccccc")


def bars(scores: Mapping[str, Sequence[Mapping[str, float]]], names: Mapping[str, str], *, metric: str) -> Figure:
    """Draw one group of bars a situation, one bar a method; a dot for every draw where there are several.

    Parameters
    ----------
    scores
        Situation -> draws -> ``"<method> <metric>"`` -> value between 0 and 1.
    names
        Method -> its name in plain words; the order of the bars.
    metric
        ``"accuracy"`` or ``"macro_f1"``.

    Returns
    -------
    The figure.
    """
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(10.5, 4.0), layout="constrained")
    width = 0.8 / len(names)
    for j, (method, text) in enumerate(names.items()):
        draws = [[draw[f"{method} {metric}"] for draw in situation] for situation in scores.values()]
        x = np.arange(len(scores)) + (j - (len(names) - 1) / 2) * width
        means = [float(np.mean(values)) for values in draws]
        axis.bar(x, means, width * 0.92, color=COLOURS[method], label=text)
        for position, values, mean in zip(x, draws, means, strict=True):
            axis.text(position, max(values) + 0.012, f"{mean:.2f}", ha="center", fontsize=8.5)
            if len(values) > 1:
                axis.plot([position] * len(values), values, ".", color="black", markersize=4)
    axis.set_xticks(range(len(scores)), list(scores))
    axis.set(ylim=(0, 1.05), ylabel={"accuracy": "share of cells named rightly", "macro_f1": "macro-F1"}[metric])
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(names), frameon=False)
    return figure


def risk_coverage(
    reports: Mapping[str, AnnotationReport], names: Mapping[str, str], *, chosen: Mapping[float, tuple[float, float]]
) -> Figure:
    """Draw the error among the surest cells against their share.

    Parameters
    ----------
    reports
        Method -> its report on the same cells.
    names
        Method -> its name in plain words.
    chosen
        Level -> share of cells that :func:`cellsmith.tl.reject` kept, and the error among them (NaN if none).

    Returns
    -------
    The figure.
    """
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.6, 4.4), layout="constrained")
    for method, report in reports.items():
        axis.plot(report.curves["coverage"], report.curves["risk"], color=COLOURS[method], label=names[method], lw=2)
    for (level, (share, error)), marker in zip(chosen.items(), "os^v", strict=False):
        axis.axhline(level, color="#aab2bd", lw=0.8, ls="--")
        if np.isfinite(error):
            text = f"kept by tl.reject at {level:.0%}"
            axis.plot(share, error, marker, color="black", markersize=8, label=text, zorder=4)
    axis.set(xlabel="share of cells that are named, surest first", ylabel="share of wrong names among them")
    axis.set(xlim=(0, 1), ylim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="upper left", frameon=False)
    return figure
