"""Clusters of scSiameseClu on a map, how sure they are, and how their number was found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cellsmith._errors import SetupError, nearest
from cellsmith.pl._style import CATEGORIES, SOFT, panels, tidy

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

__all__ = ["scsiameseclu_clusters"]


def scsiameseclu_clusters(
    adata: AnnData, *, key: str = "scsiameseclu", basis: str | None = None, ax: Any = None
) -> list[Axes]:
    """Draw clusters on a map, the confidence of their cells, and the number of clusters through training.

    Parameters
    ----------
    adata
        Object with the outputs of :func:`cellsmith.tl.scsiameseclu`.
    key
        Name of those outputs.
    basis
        Key of ``.obsm`` whose first two columns are the map; None: ``"X_umap"`` where it exists, else the first two
        principal axes of the embedding.
    ax
        Three Axes; None makes a figure.

    Returns
    -------
    The three Axes.

    Raises
    ------
    SetupError
        If there are no such outputs, or the map does not exist.

    Examples
    --------
    >>> cellsmith.pl.scsiameseclu_clusters(adata)  # doctest: +SKIP
    """
    if key not in adata.uns or f"X_{key}" not in adata.obsm:
        raise SetupError(
            f"key={key!r} names no clusters. {nearest(key, adata.uns)} Type cellsmith.tl.scsiameseclu(adata)."
        )
    axes = panels(ax, 3, size=(13.0, 4.0))
    classes, codes = list(adata.uns[key]["classes"]), adata.obs[key].astype("category")
    names = [c for c in map(str, classes) if (codes.astype(str) == c).any()]
    _map(axes[0], _positions(adata, key, basis), codes.astype(str).to_numpy(), names)
    _confidence(axes[1], adata.obs[f"{key}_confidence"].to_numpy(), codes.astype(str).to_numpy(), names)
    _path(axes[2], adata.uns[key].get("k_path", {}))
    tidy(axes)
    return axes


def _positions(adata: AnnData, key: str, basis: str | None) -> np.ndarray:
    name = basis or ("X_umap" if "X_umap" in adata.obsm else None)
    if name is not None:
        if name not in adata.obsm:
            raise SetupError(f"basis={name!r} is not in .obsm. {nearest(name, adata.obsm)}")
        return np.asarray(adata.obsm[name])[:, :2]
    z = np.asarray(adata.obsm[f"X_{key}"], dtype=np.float64)
    centred = z - z.mean(axis=0)
    return np.asarray(centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T)


def _colour(i: int) -> str:
    return CATEGORIES[i % len(CATEGORIES)]


def _map(ax: Axes, xy: np.ndarray, codes: np.ndarray, names: list[str]) -> None:
    for i, name in enumerate(names):
        own = xy[codes == name]
        ax.scatter(own[:, 0], own[:, 1], s=5, linewidths=0, color=_colour(i), rasterized=True)
        middle = np.median(own, axis=0)
        ax.text(middle[0], middle[1], name, ha="center", va="center", fontsize=9, fontweight="bold")
    ax.set(title="Clusters", xticks=[], yticks=[])


def _confidence(ax: Axes, confidence: np.ndarray, codes: np.ndarray, names: list[str]) -> None:
    parts = [confidence[codes == name] for name in names]
    boxes = ax.boxplot(parts, showfliers=False, patch_artist=True, medianprops={"color": "black"})
    for i, box in enumerate(boxes["boxes"]):
        box.set(facecolor=_colour(i), alpha=0.8)
    ax.set_xticks(range(1, len(names) + 1), [f"{n}\n{len(p)}" for n, p in zip(names, parts, strict=True)], fontsize=8)
    ax.set(title="Confidence (below: number of cells)", ylim=(0, 1.02))


def _path(ax: Axes, path: Any) -> None:
    numbers = np.asarray(path.get("n_clusters", []), dtype=float)
    ax.step(np.arange(len(numbers)), numbers, where="post", color=SOFT)
    ax.plot(np.arange(len(numbers)), numbers, "o", ms=4, color=SOFT)
    ax.set(title="Number of clusters", xlabel="step", ylim=(0, None if len(numbers) else 1))
