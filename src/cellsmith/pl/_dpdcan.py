"""Pictures of privacy: what a budget costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith._errors import SetupError
from cellsmith.pl._style import CATEGORIES, CONTROL, INK, MARKERS, panels, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["privacy_curve"]


def privacy_curve(
    table: pd.DataFrame, *, metric: str = "ari", ceiling: str | None = None, floor: str | None = None, ax: Any = None
) -> Axes:
    """Draw a score against epsilon, between what needs no privacy and what looks at no cell.

    Parameters
    ----------
    table
        Rows of :func:`cellsmith.benchmark.privacy`: arm, epsilon, metric, value; means over seeds are drawn, and their
        range.
    metric
        Which score.
    ceiling, floor
        Arms drawn as horizontal lines.
    ax
        Where to draw; None makes a figure.

    Returns
    -------
    The Axes.

    Raises
    ------
    SetupError
        If the table has no such metric.

    Examples
    --------
    >>> cellsmith.pl.privacy_curve(table, ceiling="PCA 50, all genes")  # doctest: +SKIP
    """
    rows = table[table["metric"] == metric]
    if rows.empty:
        raise SetupError(f"metric={metric!r} is not in the table; it has {sorted(set(table['metric']))}.")
    (axes,) = panels(ax, 1, size=(6.0, 4.0))
    for name, style in ((ceiling, "-"), (floor, ":")):
        if name is not None:
            value = float(rows.loc[rows["arm"] == name, "value"].mean())
            axes.axhline(value, color=CONTROL, linestyle=style, label=name)
    arms = [arm for arm in rows["arm"].unique() if arm not in (ceiling, floor)]
    for i, arm in enumerate(arms):
        by = rows[(rows["arm"] == arm) & np.isfinite(rows["epsilon"].astype(float))].groupby("epsilon")["value"]
        middle, color = by.mean(), CATEGORIES[i % len(CATEGORIES)]
        axes.plot(middle.index, middle, marker=MARKERS[i % len(MARKERS)], color=color, label=arm)
        axes.fill_between(middle.index, by.min(), by.max(), color=color, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    ticks = sorted(set(rows["epsilon"].astype(float)) - {np.inf})
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xlabel("epsilon, add or remove one unit (left: stronger promise)", color=INK)
    axes.set_ylabel({"ari": "agreement with the types (ARI)"}.get(metric, metric), color=INK)
    axes.legend(frameon=False)
    tidy(axes)
    return axes
