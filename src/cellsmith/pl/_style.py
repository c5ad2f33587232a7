"""The look that all pictures share: colours that colour-blind readers tell apart, quiet axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cellsmith._errors import SetupError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CATEGORIES", "CONTROL", "GRID", "INK", "MARKERS", "REAL", "SOFT", "SYNTHETIC", "panels", "tidy"]

# Okabe and Ito's palette: distinct under every common form of colour blindness.
REAL = "#0072B2"
SYNTHETIC = "#D55E00"
CONTROL = "#8A8F98"
INK = "#1F2933"
SOFT = "#5F6B7A"
GRID = "#E3E7EC"
CATEGORIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#9A8F00", "#4D4D4D")
MARKERS = "osD^vP"


def panels(
    ax: Any, n: int, *, size: tuple[float, float], columns: int | None = None, share: bool = False
) -> list[Axes]:
    """Return `n` Axes: those of the caller, or new ones.

    Parameters
    ----------
    ax
        Axes or a sequence of Axes of the caller; None makes a figure.
    n
        Axes that are needed.
    size
        Width and height of a new figure, inches.
    columns
        Columns of a new figure; None: all in one row.
    share
        Give new Axes common limits.
    """
    if ax is not None:
        given = list(np.ravel(np.asarray(ax, dtype=object)))
        if len(given) != n:
            msg = f"`ax` holds {len(given)} Axes; this picture has {n} panels. Type `ax=None` or give {n} Axes."
            raise SetupError(msg)
        return given
    import matplotlib.pyplot as plt

    columns = columns or n
    rows = -(-n // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=share, sharey=share
    )
    made = list(grid.ravel())
    for spare in made[n:]:
        figure.delaxes(spare)
    return made[:n]


def tidy(axes: Sequence[Axes] | Axes, *, grid: str | None = None) -> None:
    """Remove what carries no information; `grid` ("x", "y" or "both") adds faint lines."""
    for ax in axes if isinstance(axes, Sequence) else [axes]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color("#AAB2BD")
        ax.tick_params(colors=SOFT, labelsize=9)
        ax.xaxis.label.set_color(INK)
        ax.yaxis.label.set_color(INK)
        ax.title.set_color(INK)
        if grid is not None:
            ax.grid(axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
            ax.set_axisbelow(True)
