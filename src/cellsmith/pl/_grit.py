"""The picture of a refinement: where the cells of every class came from and went to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cellsmith import _record
from cellsmith._errors import SetupError, nearest
from cellsmith.pl import _style as style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["grit_flow"]

NORMALIZE = ("raw", "refined", "none")
BAR = 0.08  # width of the bars, in units of the distance between them
GAP = 0.015  # white space between classes, of the whole height
FAINT, STRONG = 0.25, 0.6
SPAN, LETTER, LINE = 3.0, 0.075, 0.19  # inches: between the bars, width of a letter, height of a line


def grit_flow(
    adata: Any, key: str = "grit", *, normalize: str = "raw", min_cells: int = 5, ax: Axes | None = None
) -> Axes:
    """Draw how cells moved from raw to refined classes.

    Bands that stay in their class are faint; what changed stands out. Reads ``.uns`` only.

    Parameters
    ----------
    adata
        Object with the results of :func:`cellsmith.tl.grit`.
    key
        Their key.
    normalize
        Numbers at the bars: "raw" (share of each raw class that stayed), "refined" (share of each refined class that
        was there before) or "none" (cells).
    min_cells
        Bands of fewer cells are left out; the bars count all.
    ax
        Axes to draw into; None makes a figure.

    Returns
    -------
    The Axes.

    Raises
    ------
    SetupError
        If there are no results, or ``normalize`` does not exist.

    Examples
    --------
    >>> cellsmith.pl.grit_flow(adata)  # doctest: +SKIP
    """
    block = _record.read(adata, key)
    if "flow" not in block or "classes" not in block:
        raise SetupError(f".uns[{key!r}] holds no flow; expected results of cellsmith.tl.grit on the cells themselves.")
    if normalize not in NORMALIZE:
        raise SetupError(f"normalize={normalize!r}. {nearest(normalize, NORMALIZE)}")
    flow, classes = np.asarray(block["flow"]), [str(c) for c in block["classes"]]
    used = np.flatnonzero((flow.sum(axis=0) > 0) | (flow.sum(axis=1) > 0))
    flow, classes = flow[np.ix_(used, used)], [classes[c] for c in used]
    margin = LETTER * (max(map(len, classes), default=0) + 12) / SPAN
    width, height = SPAN * (1 + 2 * margin), 1.6 + 0.42 * max(len(classes), 4)
    [axes] = style.panels(ax, 1, size=(width, height))
    axes.set_axis_off()
    if not len(used):
        axes.text(0.5, 0.5, "no cell has both labels", ha="center", va="center", color=style.SOFT)
        return axes
    colours = [style.CATEGORIES[i % len(style.CATEGORIES)] for i in range(len(classes))]
    gap = GAP * flow.sum()
    left, right = _stacks(flow.sum(axis=1), gap), _stacks(flow.sum(axis=0), gap)
    _bands(axes, flow, left, right, colours=colours, min_cells=min_cells)
    apart = (flow.sum() + gap * len(classes)) * LINE / height
    for side, starts, sizes in (("raw", left, flow.sum(axis=1)), ("refined", right, flow.sum(axis=0))):
        words = [f"{name}  {_number(flow, i, side=side, normalize=normalize)}" for i, name in enumerate(classes)]
        axes.bar([float(side == "refined")] * len(classes), sizes, BAR, bottom=starts, color=colours, zorder=3)
        _words(axes, words, _apart(starts + sizes / 2, apart), side=side, lost=sizes == 0)
    _finish(axes, flow, min_cells)
    axes.set_xlim(-margin, 1 + margin)
    return axes


def _words(axes: Axes, words: list[str], heights: np.ndarray, *, side: str, lost: np.ndarray) -> None:
    """Write the name of every class beside its bar; a class that lost all its cells stands out."""
    for text, y, gone in zip(words, heights, lost, strict=True):
        axes.annotate(
            text,
            (float(side == "refined"), y),
            xytext=(-14 if side == "raw" else 14, 0),
            textcoords="offset points",
            ha="right" if side == "raw" else "left",
            va="center",
            fontsize=9,
            color=style.SYNTHETIC if gone and side == "refined" else style.INK,
        )


def _apart(heights: np.ndarray, least: float) -> np.ndarray:
    """Move heights, which descend, so far apart that words do not overlap."""
    moved = heights.astype(float)
    for i in range(1, len(moved)):
        moved[i] = min(moved[i], moved[i - 1] - least)
    return moved


def _stacks(sizes: np.ndarray, gap: float) -> np.ndarray:
    """Lower ends of bars, the first class on top."""
    ends = np.cumsum(sizes + gap)
    return ends[-1] - ends


def _number(flow: np.ndarray, i: int, *, side: str, normalize: str) -> str:
    total = flow[i].sum() if side == "raw" else flow[:, i].sum()
    if total == 0:
        return "lost" if side == "refined" else "0"
    if normalize == side:
        return f"{flow[i, i] / total:.0%} stayed" if side == "raw" else f"{flow[i, i] / total:.0%} from it"
    return f"{total:,}"


def _bands(
    axes: Axes, flow: np.ndarray, left: np.ndarray, right: np.ndarray, *, colours: list[str], min_cells: int
) -> None:
    x = np.linspace(0.0, 1.0, 60)
    bend = x**2 * (3 - 2 * x)
    from_top, to_top = left + flow.sum(axis=1), right + flow.sum(axis=0)
    for i in range(len(flow)):
        for j in range(len(flow)):
            size = flow[i, j]
            from_top[i] -= size
            to_top[j] -= size
            if size and size >= min_cells:
                low = from_top[i] + (to_top[j] - from_top[i]) * bend
                axes.fill_between(
                    x, low, low + size, color=colours[i], alpha=FAINT if i == j else STRONG, linewidth=0, zorder=2
                )


def _finish(axes: Axes, flow: np.ndarray, min_cells: int) -> None:
    changed = int(flow.sum() - np.trace(flow))
    hidden = int(flow[(flow > 0) & (flow < min_cells)].sum())
    axes.set_title(f"raw → refined: {changed:,} of {int(flow.sum()):,} labels changed", fontsize=11, color=style.INK)
    if hidden:
        note = f"bands of fewer than {min_cells} cells are not drawn ({hidden:,} cells)"
        axes.text(0.5, -0.02, note, transform=axes.transAxes, ha="center", va="top", fontsize=8, color=style.SOFT)
