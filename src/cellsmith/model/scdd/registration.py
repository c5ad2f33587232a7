"""What is checked before a data set is registered for distillation."""

from __future__ import annotations

from typing import Any

import numpy as np

from cellsmith._errors import SetupError, nearest
from cellsmith.data.fields import check_counts, check_covariates

__all__ = ["check_columns", "check_labels", "check_object", "check_rep"]

# Counts of a cell go far beyond this; logarithms of them do not.
LARGEST_LOGARITHM = 20.0


def check_object(adata: Any, layer: str | None, **limits: int) -> None:
    """Refuse views, repeated gene names and values that are no counts.

    Raises
    ------
    SetupError
        Naming the gene, or the first offending cell and gene.
    """
    if getattr(adata, "is_view", False):
        raise SetupError("The object is a view of another one. Type adata = adata.copy() first.")
    repeated = adata.var_names[adata.var_names.duplicated()]
    if len(repeated):
        raise SetupError(
            f"{len(repeated)} gene names occur repeatedly, first {repeated[0]!r}. Type adata.var_names_make_unique()."
        )
    try:
        check_counts(adata, layer, **limits)
    except SetupError as error:
        if "must hold raw counts" in str(error) and _largest(adata, layer) < LARGEST_LOGARITHM:
            raise SetupError(
                f"{error} The values look log-normalised (largest {_largest(adata, layer):.3g})."
            ) from None
        raise


def _largest(adata: Any, layer: str | None) -> float:
    x = adata.X if layer is None else adata.layers[layer]
    return float(x.max())


def check_columns(obs: Any, *, batch_key: str | None = None, size_factor_key: str | None = None) -> None:
    """Refuse columns of ``.obs`` that are absent, or have missing or impossible values.

    Raises
    ------
    SetupError
        Naming the argument, the column and the first offending cell.
    """
    check_covariates(obs, categorical={"batch_key": batch_key}, positive=size_factor_key)


def check_labels(obs: Any, labels_key: str, unlabeled_category: str | None) -> None:
    """Refuse a label column that is absent or does not have at least two classes.

    Raises
    ------
    SetupError
        With the nearest column, or with what the column holds.
    """
    if labels_key is None or labels_key not in obs:
        raise SetupError(f"labels_key={labels_key!r} is not a column of .obs. {nearest(labels_key, obs.columns)}")
    column = obs[labels_key]
    known = column.notna() & (column.astype(object) != unlabeled_category)
    classes = column[known].unique()
    if len(classes) < 2:
        found = "no label at all" if not len(classes) else f"the label {classes[0]!r} alone"
        raise SetupError(
            f".obs[{labels_key!r}] holds {found} ({len(obs)} cells); distillation needs at least two classes. "
            "Name another column with labels_key."
        )


def check_rep(adata: Any, use_rep: str | None) -> None:
    """Refuse an embedding that is absent or not finite.

    Raises
    ------
    SetupError
        Naming the key, or the first bad row.
    """
    if use_rep is None:
        return
    if use_rep not in adata.obsm:
        raise SetupError(f"use_rep={use_rep!r} is not in .obsm. {nearest(use_rep, adata.obsm)}")
    values = np.asarray(adata.obsm[use_rep], dtype=float)
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        raise SetupError(
            f".obsm[{use_rep!r}] is not finite in {len(bad)} rows, first cell {adata.obs_names[bad[0]]!r}. "
            "Compute it for every cell."
        )
