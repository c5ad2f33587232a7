"""What is checked before a data set is registered: counts, names, columns, embeddings, modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cellsmith._errors import SetupError, nearest
from cellsmith.math.counts import first_bad_count, library_totals

__all__ = [
    "check_counts",
    "check_covariates",
    "check_names",
    "check_registration",
    "check_rep",
    "counts_carrier",
    "modality_of",
    "place_of",
    "setup_arguments",
]

MIN_CELLS = 50
# Counts of a cell go far beyond this; logarithms of them do not.
LARGEST_LOGARITHM = 20.0


def setup_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the user typed in ``setup_anndata`` or ``setup_mudata``, from their ``locals()``.

    Parameters
    ----------
    given
        ``locals()`` in the first line of the method.

    Returns
    -------
    Argument name -> value, without the class, the object and the registry of a saved model.
    """
    return {k: v for k, v in given.items() if k not in ("cls", "adata", "mdata", "source_registry", "__class__")}


def check_registration(data: Any, args: Mapping[str, Any], *, min_cells: int = MIN_CELLS) -> None:
    """Check everything that the usual arguments of ``setup_anndata`` and ``setup_mudata`` name.

    Parameters
    ----------
    data
        AnnData; or MuData, where ``args["modalities"]`` says in which modality each argument lives.
    args
        ``layer``, ``batch_key``, ``labels_key``, ``categorical_covariate_keys``, ``continuous_covariate_keys``,
        ``size_factor_key``, ``use_rep``, ``modalities``: those that the method has.
    min_cells
        Fewest cells to accept.

    Raises
    ------
    SetupError
        Naming what cannot be used; nothing has been written by then.
    """
    carrier = counts_carrier(data, args.get("modalities"))
    check_names(carrier)
    check_counts(carrier, args.get("layer"), min_cells=min_cells)
    for name in ("batch_key", "labels_key"):
        check_covariates(place_of(data, args.get("modalities"), name).obs, categorical={name: args.get(name)})
    name = "categorical_covariate_keys"
    columns = {f"{name}[{i}]": column for i, column in enumerate(args.get(name) or ())}
    check_covariates(place_of(data, args.get("modalities"), name).obs, categorical=columns)
    for name, kind in (("continuous_covariate_keys", "continuous"), ("size_factor_key", "positive")):
        if args.get(name):
            obs = place_of(data, args.get("modalities"), name).obs
            check_covariates(obs, categorical={}, **{kind: args[name]})
    check_rep(place_of(data, args.get("modalities"), "use_rep"), args.get("use_rep"))


def counts_carrier(data: Any, modalities: Mapping[str, str | None] | None) -> Any:
    """Return the AnnData with the counts: the object itself, or the modality of ``layer``.

    Raises
    ------
    SetupError
        If ``modalities`` is None for a MuData, or lacks "layer".
    """
    carrier = place_of(data, modalities, "layer")
    if hasattr(carrier, "mod"):
        raise SetupError(f"modalities lacks 'layer'. Type modalities={{'layer': <one of {list(data.mod)}>}}.")
    return carrier


def place_of(data: Any, modalities: Mapping[str, str | None] | None, argument: str) -> Any:
    """Return the AnnData itself; of a MuData, the modality that an argument lives in, or its top level."""
    return modality_of(data, modalities, argument) if hasattr(data, "mod") else data


def check_names(adata: Any) -> None:
    """Refuse names of cells or genes that occur twice.

    Raises
    ------
    SetupError
        Naming the first.
    """
    for what, names in (("var_names", adata.var_names), ("obs_names", adata.obs_names)):
        if not names.is_unique:
            first = names[names.duplicated()][0]
            raise SetupError(
                f".{what} holds {first!r} twice; expected distinct names. Type adata.{what}_make_unique()."
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


def modality_of(mdata: Any, modalities: Mapping[str, str | None] | None, argument: str) -> Any:
    """Return the AnnData of a MuData that an argument lives in (the MuData itself for the top level).

    Raises
    ------
    SetupError
        If ``modalities`` is None or names a modality that the object lacks.
    """
    if modalities is None:
        raise SetupError(
            "modalities=None, but a MuData object needs to know where its counts are. "
            f"Type modalities={{'layer': <name>}}; this object has {list(mdata.mod)}."
        )
    name = modalities.get(argument)
    if name is None:
        return mdata
    if name not in mdata.mod:
        raise SetupError(f"modalities[{argument!r}]={name!r} is not a modality. {nearest(name, mdata.mod)}")
    return mdata.mod[name]


def check_counts(adata: Any, layer: str | None, *, min_cells: int = MIN_CELLS) -> None:
    """Refuse anything that a count likelihood cannot describe, naming the first offending cell and gene.

    Parameters
    ----------
    adata
        AnnData with ``n`` cells and ``G`` genes.
    layer
        Layer with the counts; None is ``.X``.
    min_cells
        Fewest cells to accept.

    Raises
    ------
    SetupError
        If the layer is missing; if there are fewer than ``min_cells`` cells or fewer than 2 genes; if a value is
        negative, fractional, NaN or infinite; if a cell has no count at all.
    """
    if hasattr(adata, "mod"):
        raise SetupError(
            f"Found a MuData with the modalities {list(adata.mod)}; expected an AnnData. Type mdata.mod[...], or "
            "setup_mudata(mdata, modalities={'layer': ...})."
        )
    where = ".X" if layer is None else f".layers[{layer!r}]"
    if layer is not None and layer not in adata.layers:
        raise SetupError(f"layer={layer!r} is not in .layers. {nearest(layer, adata.layers)}")
    x = adata.X if layer is None else adata.layers[layer]
    if x is None:
        raise SetupError(f"{where} is empty. Put raw counts there, or name the layer that has them with layer=.")
    n_obs, n_vars = x.shape
    if n_obs < min_cells or n_vars < 2:
        raise SetupError(f"Found {n_obs} cells and {n_vars} genes; at least {min_cells} cells and 2 genes are needed.")
    bad = first_bad_count(x)
    if bad is not None:
        i, g, value = bad
        raise SetupError(
            f"{where} must hold raw counts, but cell {adata.obs_names[i]!r}, gene {adata.var_names[g]!r} is {value!r} "
            "(negative, fractional or not finite). Name the layer with the raw counts: layer='counts'; "
            f"layers here: {[k for k in adata.layers if k is not None] or '(none)'}.{_looks_logarithmic(x)}"
        )
    totals = library_totals(x)
    empty = np.flatnonzero(totals == 0)
    if len(empty):
        names = ", ".join(map(repr, adata.obs_names[empty[:3]]))
        raise SetupError(
            f"{len(empty)} cells have a total of zero (first: {names}); the logarithm of their total is undefined. "
            "Remove them first: sc.pp.filter_cells(adata, min_counts=1)."
        )


def _looks_logarithmic(x: Any) -> str:
    largest = float(x.max())
    return f" The values look log-normalised (largest {largest:.3g})." if 0 < largest < LARGEST_LOGARITHM else ""


def check_covariates(
    obs: pd.DataFrame,
    *,
    categorical: Mapping[str, str | None],
    continuous: Sequence[str] = (),
    positive: str | None = None,
) -> None:
    """Refuse columns of ``.obs`` that are missing or have missing values.

    Parameters
    ----------
    obs
        Table of the cells.
    categorical
        Argument name -> column name; a name starting with ``labels_key`` may have missing values.
    continuous
        Columns that must be finite numbers.
    positive
        Column that must be finite and above zero.

    Raises
    ------
    SetupError
        Naming the argument, the column and the first offending cell.
    """
    for argument, column in categorical.items():
        if column is None:
            continue
        if column not in obs:
            raise SetupError(f"{argument}={column!r} is not a column of .obs. {nearest(column, obs.columns)}")
        if argument != "labels_key" and obs[column].isna().any():
            first = obs.index[np.flatnonzero(obs[column].isna())[0]]
            raise SetupError(
                f".obs[{column!r}] ({argument}) is missing for {int(obs[column].isna().sum())} cells, first {first!r}. "
                "Only labels_key may have missing values: fill the column or drop the cells."
            )
    for column in (*continuous, *([positive] if positive else [])):
        if column not in obs:
            raise SetupError(f"{column!r} is not a column of .obs. {nearest(column, obs.columns)}")
        values = pd.to_numeric(obs[column], errors="coerce").to_numpy(dtype=float)
        wrong = ~np.isfinite(values) | (values <= 0 if column == positive else False)
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            need = "a positive finite number" if column == positive else "a finite number"
            raise SetupError(f".obs[{column!r}] of cell {obs.index[i]!r} is {obs[column].iloc[i]!r}; expected {need}.")
