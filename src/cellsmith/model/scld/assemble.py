"""Building the AnnData of generated cells, and reading the covariates of a request from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from cellsmith import _record
from cellsmith._errors import SetupError, nearest
from cellsmith.model.scld.request import Covariates, Request

__all__ = ["assemble_cells", "check_condition_table", "new_cells"]


def check_condition_table(
    covariates: Covariates, conditions: pd.DataFrame | None, like: AnnData | None
) -> pd.DataFrame:
    """Return the table of covariates that ``conditions=`` or ``like=`` asks for.

    Raises
    ------
    SetupError
        If ``conditions`` is not a DataFrame, or ``like`` lacks a registered column.
    """
    valid = [*covariates.names, *covariates.continuous]
    if conditions is not None:
        if not isinstance(conditions, pd.DataFrame):
            raise SetupError(
                f"conditions is a {type(conditions).__name__}; expected a DataFrame with the columns {valid}."
            )
        return conditions
    absent = [name for name in valid if name not in like.obs]
    if absent:
        raise SetupError(f"like.obs lacks {absent[0]!r}. {nearest(absent[0], like.obs.columns)}")
    return like.obs[valid]


def covariate_columns(
    covariates: Covariates, request: Request, decoded_codes: np.ndarray | None = None
) -> pd.DataFrame:
    """Return the covariates of a request under their original names and categories; unknown is missing."""
    columns: dict[str, Any] = {}
    for k, name in enumerate(covariates.names):
        codes = request.codes[:, k]
        if decoded_codes is not None and k == covariates.batch:
            # The decoder needed a batch even where none was asked for: that batch is what the counts look like.
            codes = decoded_codes[:, k]
        codes = np.where(codes >= covariates.n_cats[k], -1, codes)
        columns[name] = pd.Categorical.from_codes(codes, categories=covariates.categories[k])
    for j, name in enumerate(covariates.continuous):
        columns[name] = np.where(request.continuous_known, request.continuous[:, j], np.nan)
    return pd.DataFrame(columns, index=pd.RangeIndex(request.n))


def new_cells(model: Any, x: Any, obs: pd.DataFrame, *, prefix: str = "scld") -> AnnData:
    """Return an AnnData of new cells with the genes of training."""
    genes = model._training_genes()
    var = pd.DataFrame(index=pd.Index(genes.astype(str)))
    source = model.adata
    if source is not None:
        carrier = source.mod[model._count_modality] if hasattr(source, "mod") else source
        var = carrier.var.copy()
    obs = obs.set_index(pd.Index([f"{prefix}_{i}" for i in range(len(obs))]))
    return AnnData(X=x, obs=obs, var=var)


def assemble_cells(
    model: Any,
    request: Request,
    cells: Mapping[str, Any],
    *,
    params: Mapping[str, Any],
    post_guidance: Mapping[str, Any],
    min_cells: int,
    extra_obs: Mapping[str, Any] | None = None,
) -> AnnData:
    """Return generated cells with covariates, latents and the block of ``.uns``.

    Parameters
    ----------
    model
        The trained model.
    request
        Who was generated.
    cells
        ``x``, ``z``, ``totals`` and ``codes`` of :meth:`GenerationMixin._decode_states`.
    params, post_guidance
        What is recorded.
    min_cells
        Recorded with the fallback.
    extra_obs
        Further columns, templates to values.
    """
    covariates = model.covariates
    out = new_cells(model, cells["x"], covariate_columns(covariates, request, cells["codes"]), prefix=model.key_added_)
    obs: dict[str, Any] = {"is_synthetic": np.ones(request.n, dtype=bool), "{k}_library": cells["totals"]}
    fallback = np.zeros(request.n, dtype=bool) if request.fallback is None else request.fallback
    if fallback.any():
        obs["{k}_fallback"] = fallback
    rejected = post_guidance.get("rejected")
    if rejected is not None:
        obs["{k}_rejected"] = np.asarray(rejected, dtype=bool)
    composition = {
        name: {
            "category": np.asarray(covariates.categories[k], dtype=str),
            "requested": np.bincount(request.codes[:, k], minlength=n + 1)[:n],
            "delivered": np.asarray(out.obs[name].value_counts(sort=False)),
        }
        for k, (name, n) in enumerate(zip(covariates.names, covariates.n_cats, strict=True))
    }
    block = model._block(
        params=dict(params),
        composition=composition,
        post_guidance={k: v for k, v in post_guidance.items() if k != "rejected"},
        fallback={"n_cells": int(fallback.sum()), "min_cells": int(min_cells)},
    )
    result = _record.Result(
        method="scld", obs={**obs, **(extra_obs or {})}, obsm={"X_{k}": np.asarray(cells["z"])}, uns=block
    )
    _record.write(out, model.key_added_, result)
    return out
