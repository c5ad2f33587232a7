"""Is the mask as the model assumes, how much do cells share, and which embedding predicts held-out entries best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellsmith import _record
from cellsmith._errors import SetupError
from cellsmith.math import gram, missing

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["MissingnessReport", "missingness_report", "subspace_error"]

_FEW = 10.0  # features; below so many shared ones an inner product is mostly noise
_UNEVEN = 3.0  # standard errors
_DIAGNOSTICS = ("row_z", "col_z", "row_share", "col_share", "model_share", "rate_mean_correlation")
_EMBEDDINGS = ("name", "heldout_error", "sin_theta")


def subspace_error(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Return how far two subspaces lie apart: the root mean square of the sines of their principal angles.

    Parameters
    ----------
    x, y
        Embeddings (n, k) of the same cells; only the spaces that their columns span count.

    Returns
    -------
    sin-theta, ``sqrt((k - |Q^T V|_F^2) / k)``: 0 for the same space, 1 for orthogonal ones.

    Raises
    ------
    SetupError
        If the shapes differ, a row is not finite, or columns are linearly dependent.

    Examples
    --------
    >>> import numpy as np
    >>> float(subspace_error(np.eye(3)[:, :2], np.eye(3)[:, 1:]).__round__(3))
    0.707
    """
    return gram.sin_theta(x, y)


@dataclass(frozen=True, eq=False, repr=False)
class MissingnessReport:
    """What :func:`missingness_report` found.

    Parameters
    ----------
    summary
        ``n_cells``, ``n_features``, ``observed_rate``; ``empty_cells``, ``empty_features`` (no observed entry);
        ``groups`` of cells that share features, directly or through others (1 is well); ``below_min`` (cells whose
        mean effective overlap is below ``min_overlap``); ``row_z``, ``col_z`` (variance of the counts of cells and
        features against a binomial, in standard errors); ``row_share``, ``col_share``, ``model_share`` (of the
        variance of the mask that cells, features and the fitted probabilities explain); ``rate_mean_correlation``
        (Spearman, over features).
    overlap
        Quantiles over cells of the mean effective overlap: columns ``level``, ``features``.
    cells
        One row a cell: ``observed_rate``, ``overlap`` (features).
    features
        One row a feature: ``observed_rate``, ``mean`` (of the observed values).
    embeddings
        Stored embeddings, best first: ``name``, ``heldout_error`` (root mean square, in the unit of the data),
        ``sin_theta`` to BC-PCA; empty without ``key``.
    notes
        What to be careful about, in words.
    """

    summary: dict[str, float]
    overlap: pd.DataFrame
    cells: pd.DataFrame
    features: pd.DataFrame
    embeddings: pd.DataFrame
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> float:
        """Return one number of the summary."""
        return self.summary[name]

    def __repr__(self) -> str:
        """Return the report as text."""
        s = self.summary
        lines = [
            f"Missingness: {s['n_cells']:.0f} x {s['n_features']:.0f} entries, {s['observed_rate']:.1%} observed",
            *(f"  {name}: {s[name]:.4g}" for name in (*_DIAGNOSTICS, "empty_cells", "empty_features", "below_min")),
            "  shared features, median over cells: "
            f"{np.interp(0.5, self.overlap['level'], self.overlap['features']):.4g}",
        ]
        if len(self.embeddings):
            lines += ["Embeddings by held-out error:", self.embeddings.to_string(index=False)]
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])

    def to_uns(self) -> dict[str, Any]:
        """Return the report as nested dictionaries of arrays and scalars, safe for h5ad and zarr."""
        tables = {"overlap": self.overlap, "embeddings": self.embeddings}
        block: dict[str, Any] = {
            name: {str(column): table[column].to_numpy() for column in table} for name, table in tables.items()
        }
        return _record.storable({"summary": self.summary, **block, "notes": np.array(self.notes, dtype=object)})


def missingness_report(
    adata: AnnData, *, mask: Any, layer: str | None = None, key: str | None = None, min_overlap: float = _FEW
) -> MissingnessReport:
    """Describe which entries are missing, and rank stored embeddings without labels.

    Parameters
    ----------
    adata
        Cells x features.
    mask
        As in :func:`cellsmith.tl.bcpca`: "nan", "zero", a layer, an array (n, D), or None.
    layer
        Layer with the values; None is ``.X``.
    key
        Result of :func:`cellsmith.tl.bcpca`: its overlaps, diagnostics and baselines are read and nothing is fitted.
        None fits the probabilities of the logistic model to the margins of the mask.
    min_overlap
        Mean effective overlap, in features, below which a cell is counted.

    Returns
    -------
    The report; nothing is written.

    Raises
    ------
    SetupError
        If layer, mask or key cannot be read, nothing is observed, or an observed entry is not finite.

    Examples
    --------
    >>> cellsmith.metrics.missingness_report(adata, mask="nan", key="bcpca")  # doctest: +SKIP
    """
    rows, _ = missing.find_values(adata.X, adata.layers, layer=layer)
    found = missing.find_mask(mask, layers=adata.layers, uns=adata.uns, shape=rows.shape)
    blocks = missing.read_blocks(rows, found)
    stats = gram.observed_stats(blocks)
    cells, features = stats.live_cells, stats.live_features
    if not cells.any():
        raise SetupError("No entry is observed; expected some. Check the mask.")
    summary: dict[str, float] = {
        "n_cells": float(stats.n_cells),
        "n_features": float(stats.n_features),
        "empty_cells": float((~cells).sum()),
        "empty_features": float((~features).sum()),
    }
    if key is None:
        measured, overlap = _fitted(blocks, stats, min_overlap=min_overlap)
        embeddings = pd.DataFrame(columns=list(_EMBEDDINGS))
    else:
        measured, overlap, embeddings = _stored(adata, key, min_overlap=min_overlap)
    summary |= {**measured, "observed_rate": stats.observed_rate}
    levels = np.array(gram.QUANTILES)
    some = overlap[np.isfinite(overlap)]
    quantiles = np.quantile(some, levels) if some.size else np.full(len(levels), np.nan)
    return MissingnessReport(
        summary=summary,
        overlap=pd.DataFrame({"level": levels, "features": quantiles}),
        cells=pd.DataFrame({"observed_rate": stats.row_rates, "overlap": overlap}, index=adata.obs_names),
        features=pd.DataFrame(
            {"observed_rate": stats.col_rates, "mean": np.where(features, stats.means, np.nan)}, index=adata.var_names
        ),
        embeddings=embeddings,
        notes=tuple(_notes(summary, min_overlap)),
    )


def _fitted(blocks: gram.Blocks, stats: gram.Stats, *, min_overlap: float) -> tuple[dict[str, float], np.ndarray]:
    """Return diagnostics of the live part under the logistic model, and the mean overlap of every cell."""
    cells, features = stats.live_cells, stats.live_features
    live = blocks if cells.all() and features.all() else gram.select_blocks(blocks, cells=cells, features=features)
    part = stats if live is blocks else gram.observed_stats(live)
    probability = gram.fit_logistic(part.row_counts, part.col_counts)
    found = gram.diagnose(part, probability, min_overlap=min_overlap)
    overlap = np.full(stats.n_cells, np.nan)
    overlap[cells] = probability.mean_overlap
    groups = int(gram.cell_groups(live, part).max()) + 1 if part.observed_rate < 1.0 else 1
    numbers = {name: float(getattr(found, name)) for name in _DIAGNOSTICS}
    return {**numbers, "below_min": float(found.below_min), "groups": float(groups)}, overlap


def _stored(adata: Any, key: str, *, min_overlap: float) -> tuple[dict[str, float], np.ndarray, pd.DataFrame]:
    """Return what a result says: diagnostics, overlaps, and its embeddings by held-out error."""
    block = _record.read(adata, key)
    if block["provenance"]["method"] != "bcpca":
        raise SetupError(f".uns[{key!r}] was written by {block['provenance']['method']!r}; expected bcpca.")
    diagnostics: Mapping[str, Any] = block["diagnostics"]
    overlap = np.asarray(adata.obs[f"{key}_overlap"], dtype=float)
    below = float((overlap < min_overlap).sum())
    numbers = {name: float(diagnostics[name]) for name in _DIAGNOSTICS}
    table = pd.DataFrame({name: np.asarray(values) for name, values in block.get("baselines", {}).items()})
    if len(table):
        table["name"] = [str(name) for name in table["name"]]
    table = table.reindex(columns=list(_EMBEDDINGS)).sort_values("heldout_error", kind="stable", ignore_index=True)
    # A result exists only where all cells are connected.
    return {**numbers, "below_min": below, "groups": 1.0}, overlap, table


def _notes(summary: Mapping[str, float], min_overlap: float) -> list[str]:
    notes = []
    if summary["observed_rate"] == 1.0:
        notes.append("no entry is missing: BC-PCA is PCA.")
    elif abs(summary["row_z"]) < _UNEVEN and abs(summary["col_z"]) < _UNEVEN:
        notes.append(
            "cells and features are observed evenly: BC-PCA has nothing to correct and equals mean imputation."
        )
    if summary["groups"] > 1:
        notes.append(f"{summary['groups']:.0f} groups of cells share no feature: they cannot be embedded together.")
    if summary["below_min"]:
        notes.append(f"{summary['below_min']:.0f} cells share fewer than {min_overlap:g} features with the others.")
    if abs(summary["rate_mean_correlation"]) > gram.NOT_AT_RANDOM:
        side = "higher" if summary["rate_mean_correlation"] > 0 else "lower"
        notes.append(
            f"features that are observed more often have {side} means: entries may be missing because of their value, "
            "which no method here corrects."
        )
    return notes
