"""Building the AnnData of generated cells, and reading the covariates of a request from one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from scipy import sparse

from cellsmith import _record
from cellsmith._errors import SetupError, nearest
from cellsmith.model.scld.request import Covariates, Request

__all__ = ["assemble_cells", "check_condition_table", "join_cells", "joint_block", "new_cells", "with_obs"]


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


def with_obs(real: AnnData, obs: pd.DataFrame) -> AnnData:
    """Return an object that shares everything of ``real`` but has other columns of ``.obs``."""
    real = real.to_memory() if real.isbacked else real
    slots = {name: dict(getattr(real, name)) for name in ("obsm", "varm", "layers")}
    return AnnData(X=real.X, obs=obs, var=real.var, **slots)


def join_cells(real: AnnData, parts: Sequence[AnnData], *, layer: str | None, prefix: str) -> tuple[AnnData, list[str]]:
    """Put generated cells below real ones.

    Parameters
    ----------
    real
        Real cells; counts in ``.X`` or in ``layer``.
    parts
        Generated cells of the same genes.
    layer
        Layer with the counts.
    prefix
        Of the names of generated cells.

    Returns
    -------
    The joint object: counts in ``.X`` and ``layer``, NaN where only real cells have numbers; and the names of what was
    left out, sparse matrices that would say 0 where "missing" is meant.
    """
    n_new = sum(part.n_obs for part in parts)
    rows = np.cumsum([real.n_obs, *(part.n_obs for part in parts)])
    names = pd.Index([*real.obs_names, *(f"{prefix}_{i}" for i in range(n_new))])
    names = names if names.is_unique else make_index_unique(names)
    frames = [real.obs.assign(is_synthetic=False), *(part.obs for part in parts)]
    cuts = np.split(np.arange(len(names)), rows[:-1] if parts else [])
    # AnnData's own rules for columns: categories are united, what a part lacks is missing.
    indexed = [AnnData(obs=f.set_axis(names[cut])) for f, cut in zip(frames, cuts, strict=True)]
    obs = anndata.concat(indexed, join="outer").obs
    obs["is_synthetic"] = obs["is_synthetic"].astype(bool)
    obsm, sparse_obsm = _padded(real.obsm, names)
    layers, sparse_layers = _padded({k: v for k, v in real.layers.items() if k != layer}, names)
    for key in parts[0].obsm if parts else ():
        block = np.concatenate([part.obsm[key] for part in parts])
        own = obsm.get(key)
        if not isinstance(own, np.ndarray) or own.shape[1:] != block.shape[1:]:
            own = np.full((len(names), *block.shape[1:]), np.nan, dtype=block.dtype)
        own[real.n_obs :] = block
        obsm[key] = own
    x = sparse.csr_matrix(real.X if layer is None else real.layers[layer])
    # Joined with int32, float32 would become float64, though it holds every count that a cell can have.
    dtype = x.dtype if x.dtype.kind == "f" else np.result_type(x.dtype, np.int32)
    counts = sparse.vstack([x, *(part.X for part in parts)], format="csr", dtype=dtype)
    if layer is not None:
        layers[layer] = counts.copy()
    out = AnnData(X=counts, obs=obs, var=real.var.copy(), varm=dict(real.varm), obsm=obsm, layers=layers)
    return out, [f".obsm[{k!r}]" for k in sparse_obsm] + [f".layers[{k!r}]" for k in sparse_layers]


def _padded(slots: Mapping[str, Any], names: pd.Index) -> tuple[dict[str, Any], list[str]]:
    """Return arrays and tables of numbers with NaN for further rows, as floats, and the names of everything else."""
    kept: dict[str, Any] = {}
    for key, values in slots.items():
        if isinstance(values, pd.DataFrame):
            kept[key] = values.reindex(names)
        elif isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
            n_new = len(names) - len(values)
            dtype = values.dtype if values.dtype.kind == "f" or not n_new else np.float64
            gap = np.zeros((n_new, *values.shape[1:]), dtype=dtype)
            kept[key] = np.concatenate([values.astype(dtype), gap if not n_new else np.full_like(gap, np.nan)])
    return kept, [key for key in slots if key not in kept]


def joint_block(
    parts: Sequence[AnnData], key: str, *, params: Mapping[str, Any], composition: Mapping[str, Any]
) -> dict[str, Any]:
    """Return one block of ``.uns`` for cells that were generated in several parts.

    Parameters
    ----------
    parts
        The generated cells, each with its own block.
    key
        Name of the block.
    params, composition
        What replaces the parts' own; parameters that all parts share stay.
    """
    blocks = [p.uns[key] for p in parts]
    shared = {k: v for k, v in blocks[0]["params"].items() if k not in ("condition", "seed", "n_additive")}
    guided = {k: [b["post_guidance"][k] for b in blocks] for k in blocks[0]["post_guidance"]}
    return {
        **blocks[0],
        "params": {**shared, **params},
        "composition": _record.storable(composition),
        # One number a part, in the order of the composition; what does not differ is said once.
        "post_guidance": {k: v[0] if len(set(v)) == 1 else np.asarray(v) for k, v in guided.items()},
        "fallback": {**blocks[0]["fallback"], "n_cells": sum(b["fallback"]["n_cells"] for b in blocks)},
    }
