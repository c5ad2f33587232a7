"""BC-PCA beside its baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cellsmith import _record
from cellsmith._errors import SetupError, nearest
from cellsmith.pl import _style as style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["bcpca_baselines"]

TITLES = {"bc": "BC-PCA", "mean": "mean imputation", "pairwise": "pairwise complete"}


def bcpca_baselines(
    adata: Any, key: str = "bcpca", *, color: str | None = None, ax: Sequence[Axes] | None = None
) -> np.ndarray:
    """Draw the BC-PCA embedding and the embeddings of its baselines side by side.

    Parameters
    ----------
    adata
        Object with the result of :func:`cellsmith.tl.bcpca`.
    key
        Its ``key_added``.
    color
        Column of ``.obs``; None is the observed rate of the cells, which no axis should follow.
    ax
        As many Axes as there are embeddings; None makes a figure.

    Returns
    -------
    Array of Axes, one an embedding: its first two components. The title gives sin-theta between the two spaces (0: the
    same, 1: orthogonal) and the error on held-out entries, where they were computed.

    Raises
    ------
    SetupError
        If there is no such result, no baseline, or no such column.

    Examples
    --------
    >>> cellsmith.pl.bcpca_baselines(adata, color="cell_type")  # doctest: +SKIP
    """
    block = _record.read(adata, key)
    slots = {"bc": f"X_{key}", "mean": f"X_{key}_mean", "pairwise": f"X_{key}_pairwise"}
    drawn = {name: np.asarray(adata.obsm[slot]) for name, slot in slots.items() if slot in adata.obsm}
    if block["provenance"]["method"] != "bcpca" or "bc" not in drawn:
        raise SetupError(f".uns[{key!r}] is not a result of bcpca with its embedding. Type tl.bcpca(adata) first.")
    if len(drawn) == 1:
        raise SetupError("The result has no baselines. Type tl.bcpca(adata, compare=True).")
    column = f"{key}_observed_rate" if color is None else color
    if column not in adata.obs:
        raise SetupError(f"color={color!r} is not a column of .obs. {nearest(column, adata.obs)}")
    axes = style.panels(ax, len(drawn), size=(4.4 * len(drawn) + 0.8, 4.2))
    table = _scores(block.get("baselines", {}))
    for panel, (name, x) in zip(axes, drawn.items(), strict=True):
        shown = _scatter(panel, x, adata.obs[column])
        panel.set_title("\n".join([TITLES[name], table.get(name, "")]).rstrip(), loc="left", fontsize=10.5)
        panel.set(xlabel="component 1", ylabel="component 2" if x.shape[1] > 1 else "")
        panel.set(xticks=[], yticks=[])
    style.tidy(axes)
    _key(axes[-1], shown, "observed rate" if color is None else color)
    return np.asarray(axes, dtype=object)


def _scores(table: Any) -> dict[str, str]:
    """Return the line under each title: what the stored table says of a baseline."""
    lines = {}
    for i, name in enumerate(table.get("name", [])):
        angle, error = float(table["sin_theta"][i]), float(table["heldout_error"][i])
        parts = [] if name == "bc" else [f"sin-theta to BC {angle:.2f}"]
        lines[str(name)] = ", ".join(parts + ([] if np.isnan(error) else [f"held-out error {error:.3f}"]))
    return lines


def _scatter(ax: Axes, x: np.ndarray, values: Any) -> Any:
    """Draw the first two components; returns the artist of numbers, or the categories with their colours."""
    import pandas as pd

    second = x[:, 1] if x.shape[1] > 1 else np.zeros(len(x))
    size = float(np.clip(6_000 / max(len(x), 1), 2, 22))
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return ax.scatter(x[:, 0], second, c=values.to_numpy(dtype=float), s=size, cmap="viridis", linewidths=0)
    categories = values.astype("category")
    handles = []
    for i, category in enumerate(categories.cat.categories):
        own = (categories == category).to_numpy()
        colour = style.CATEGORIES[i % len(style.CATEGORIES)]
        marker = style.MARKERS[(i // len(style.CATEGORIES)) % len(style.MARKERS)]
        handles.append(
            ax.scatter(x[own, 0], second[own], color=colour, marker=marker, s=size, linewidths=0, label=str(category))
        )
    return handles


def _key(ax: Axes, shown: Any, label: str) -> None:
    """Explain the colours, once, right of the last panel."""
    if isinstance(shown, list):
        ax.legend(handles=shown, title=label, frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        ax.figure.colorbar(shown, ax=ax, label=label)
