"""Columns of ``.obs`` and ``.var`` as predictors of what is observed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cellsmith._errors import SetupError, nearest

__all__ = ["describe_covariates", "design_matrix"]


def describe_covariates(adata: Any, columns: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return how columns become predictors: categories of text, mean and standard deviation of numbers.

    Parameters
    ----------
    adata
        AnnData.
    columns
        Names of columns of ``.obs`` or ``.var``.

    Returns
    -------
    ``{"cells": [...], "features": [...]}``, one mapping a column.

    Raises
    ------
    SetupError
        For a name in neither table or in both, and for missing values.
    """
    if isinstance(columns, str):
        raise SetupError(f"prob_covariates={columns!r}; expected a sequence of names. Type ({columns!r},).")
    found: dict[str, list[dict[str, Any]]] = {"cells": [], "features": []}
    for name in columns:
        places = [kind for kind, table in (("cells", adata.obs), ("features", adata.var)) if name in table]
        if len(places) != 1:
            where = "both .obs and .var" if places else "neither .obs nor .var"
            hint = "Rename one of them." if places else nearest(name, [*adata.obs, *adata.var])
            raise SetupError(f"prob_covariates names {name!r}, which is in {where}. {hint}")
        table = adata.obs if places[0] == "cells" else adata.var
        found[places[0]].append(_describe(table[name], name))
    return found


def _describe(column: pd.Series, name: str) -> dict[str, Any]:
    if column.isna().any():
        first = column.index[np.flatnonzero(column.isna())[0]]
        raise SetupError(f"The covariate {name!r} is missing for {first!r}; expected a value everywhere. Fill it.")
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        values = column.to_numpy(dtype=float)
        sd = float(values.std())
        return {"name": name, "mean": float(values.mean()), "sd": sd if sd > 0 else 1.0}
    return {"name": name, "categories": sorted({str(v) for v in column})}


def design_matrix(table: pd.DataFrame, described: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """Return the predictors of the rows of a table, (rows, q) float64; None where there are none.

    Parameters
    ----------
    table
        ``.obs`` or ``.var``.
    described
        Answer of :func:`describe_covariates` for this table; numbers are standardised by it, each category but the
        first becomes an indicator.

    Raises
    ------
    SetupError
        If a column is missing or has a category that the fit did not see.
    """
    parts = []
    for entry in described:
        name = entry["name"]
        if name not in table:
            raise SetupError(f"The covariate {name!r} of the fit is not a column here. {nearest(name, table)}")
        if "mean" in entry:
            values = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=float)
            if not np.isfinite(values).all():
                raise SetupError(f"The covariate {name!r} has values that are no finite numbers. Fill them.")
            parts.append(((values - entry["mean"]) / entry["sd"])[:, None])
            continue
        values = table[name].astype(str).to_numpy()
        unknown = sorted(set(values) - set(entry["categories"]))
        if unknown:
            raise SetupError(
                f"The covariate {name!r} is {unknown[0]!r}, which the fit did not see. "
                f"{nearest(unknown[0], entry['categories'])}"
            )
        parts.append((values[:, None] == np.array(entry["categories"][1:])[None, :]).astype(float))
    return np.concatenate(parts, axis=1) if parts else None
