"""What SCAGC says of its clusters and of its graph: merges with their evidence, and hubs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cellsmith import _record
from cellsmith._errors import SetupError
from cellsmith.pl import _style as style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["graph_degrees", "merge_path"]


def merge_path(adata: Any, key: str = "scagc", *, ax: Axes | None = None) -> Axes:
    """Draw the merges of clusters, one bar each, against the number of marker genes that would have stopped them.

    Parameters
    ----------
    adata
        Object with the result of :func:`cellsmith.tl.scagc` (``n_clusters="auto"``).
    key
        Its ``key_added``.
    ax
        Where to draw; None makes a figure.

    Returns
    -------
    Axes. Bars: marker genes of the pair in the direction that has fewer; the dashed line: what all pairs had to reach.

    Raises
    ------
    SetupError
        If there is no such result, or its clusters were not chosen by markers.

    Examples
    --------
    >>> cellsmith.pl.merge_path(adata)  # doctest: +SKIP
    """
    table = _record.read(adata, key).get("merges", {})
    if "step" not in table or not len(table["step"]):
        raise SetupError(
            f".uns[{key!r}] records no merge: no two clusters were too alike, or markers did not choose their number. "
            "Type tl.scagc(adata, n_clusters='auto')."
        )
    (ax,) = style.panels(ax, 1, size=(6.2, 0.8 + 0.34 * len(table["step"])))
    steps, scores = np.asarray(table["step"]), np.asarray(table["score"])
    ax.barh(steps, scores, color=style.REAL, height=0.6)
    ax.axvline(float(table["threshold"][0]), color=style.INK, linestyle="--", linewidth=1)
    names = [f"{b} into {a}" for a, b in zip(table["first"], table["second"], strict=True)]
    ax.set_yticks(steps, [f"{name}, {left} left" for name, left in zip(names, table["n_clusters"], strict=True)])
    ax.invert_yaxis()
    ax.set_xlim(0, 1.15 * max(float(table["threshold"][0]), float(scores.max())))
    ax.set(xlabel="marker genes of the pair, in the direction with fewer", ylabel="merged")
    style.tidy([ax])
    return ax


def graph_degrees(adata: Any, key: str = "scagc", *, ax: Axes | None = None) -> Axes:
    """Draw how many edges the cells of a graph have: hubs are what lies far to the right.

    Parameters
    ----------
    adata
        Object with the result of :func:`cellsmith.tl.scagc`.
    key
        Its ``key_added``.
    ax
        Where to draw; None makes a figure.

    Returns
    -------
    Axes with a histogram; the marks show the largest degree here, and that of k nearest neighbours on the same latents.

    Raises
    ------
    SetupError
        If there is no such result.

    Examples
    --------
    >>> cellsmith.pl.graph_degrees(adata)  # doctest: +SKIP
    """
    block = _record.read(adata, key)
    slot = f"{key}_connectivities"
    if slot not in adata.obsp or "knn_largest_degree" not in block.get("graph", {}):
        raise SetupError(f".uns[{key!r}] is not a result of scagc with its graph. Type tl.scagc(adata) first.")
    degree = np.diff(adata.obsp[slot].tocsr().indptr)
    (ax,) = style.panels(ax, 1, size=(6.2, 3.4))
    ax.hist(degree, bins=min(60, int(np.ptp(degree)) + 1), color=style.REAL)
    marks = (("largest", degree.max(), style.REAL), ("largest of kNN", block["graph"]["knn_largest_degree"], style.INK))
    for name, value, colour in marks:
        ax.axvline(float(value), color=colour, linestyle="--", linewidth=1, label=f"{name}: {int(value)}")
    ax.set(xlabel="edges of a cell", ylabel="cells")
    ax.legend(frameon=False)
    style.tidy([ax])
    return ax
