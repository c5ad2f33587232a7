"""What is checked and registered before a model is built: columns and embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cellsmith._errors import SetupError, nearest
from cellsmith.data.fields import check_covariates

__all__ = ["check_columns", "check_rep"]


def check_columns(obs: Any, args: Mapping[str, Any]) -> None:
    """Refuse columns of ``.obs`` that arguments of ``setup_anndata`` name and that cannot be used.

    Raises
    ------
    SetupError
        Naming the argument, the column and the first offending cell.
    """
    categorical = {k: args.get(k) for k in ("batch_key", "labels_key")}
    for i, column in enumerate(args.get("categorical_covariate_keys") or ()):
        categorical[f"categorical_covariate_keys[{i}]"] = column
    check_covariates(
        obs,
        categorical=categorical,
        continuous=args.get("continuous_covariate_keys") or (),
        positive=args.get("size_factor_key"),
    )


def check_rep(adata: Any, use_rep: str | None) -> None:
    """Refuse an embedding that is absent or not finite.

    Raises
    ------
    SetupError
        Naming the key.
    """
    if use_rep is None:
        return
    if use_rep not in adata.obsm:
        raise SetupError(f"use_rep={use_rep!r} is not in .obsm. {nearest(use_rep, adata.obsm)}")
    if not np.isfinite(np.asarray(adata.obsm[use_rep], dtype=float)).all():
        raise SetupError(f".obsm[{use_rep!r}] has values that are not finite. Compute it for every cell.")
