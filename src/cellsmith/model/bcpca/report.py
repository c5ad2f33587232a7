"""What BC-PCA writes: the embedding, what it rests on, and the block of ``.uns``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cellsmith import _record
from cellsmith.math import gram
from cellsmith.model.bcpca.placing import Placed
from cellsmith.model.bcpca.state import Answer

__all__ = ["of_new_cells", "of_training"]


def of_training(
    answer: Answer, *, options: Mapping[str, Any], setup: Mapping[str, Any], provenance: Mapping[str, Any]
) -> _record.Result:
    """Return the result of the training cells.

    Parameters
    ----------
    answer
        The fit.
    options, setup
        Arguments of the constructor and of the set-up, for ``params``.
    provenance
        The record of the run.
    """
    loadings = np.full((len(answer.live), answer.n_latent), np.nan, dtype=np.float32)
    loadings[answer.live] = answer.loadings
    return _record.Result(
        method="bcpca",
        obs={"{k}_overlap": answer.overlap, "{k}_observed_rate": answer.observed_rate},
        obsm={"X_{k}": answer.latent, **{f"X_{{k}}_{name}": x for name, x in answer.baselines.items()}},
        varm={"{k}_loadings": loadings},
        uns=_block(answer, options=options, setup=setup, provenance=provenance),
    )


def of_new_cells(
    answer: Answer,
    placed: Placed,
    *,
    features: tuple[np.ndarray, np.ndarray],
    options: Mapping[str, Any],
    setup: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> _record.Result:
    """Return the result of other cells: their place, and the loadings of the features that they have.

    Parameters
    ----------
    answer
        The fit.
    placed
        Where the cells are.
    features
        Names of the features of the fit, and of the object.
    options, setup, provenance
        As in :func:`of_training`.
    """
    wanted, here = features
    own = np.full((len(answer.live), answer.n_latent), np.nan, dtype=np.float32)
    own[answer.live] = answer.loadings
    if np.array_equal(wanted, here):
        loadings = own
    else:
        place = {name: i for i, name in enumerate(wanted)}
        rows = np.array([place.get(name, -1) for name in here])
        loadings = np.where((rows >= 0)[:, None], own[rows], np.nan)
    return _record.Result(
        method="bcpca",
        obs={"{k}_overlap": placed.overlap, "{k}_observed_rate": placed.observed_rate},
        obsm={"X_{k}": placed.latent},
        varm={"{k}_loadings": loadings},
        uns=_block(answer, options=options, setup=setup, provenance=provenance, own=False),
    )


def _block(
    answer: Answer,
    *,
    options: Mapping[str, Any],
    setup: Mapping[str, Any],
    provenance: Mapping[str, Any],
    own: bool = True,
) -> dict[str, Any]:
    facts, k = answer.facts, answer.n_latent
    total = facts["positive_mass"]
    params = {name: value for name, value in options.items() if name != "prob_covariates"}
    params["prob"] = options["prob"] if isinstance(options["prob"], str) else "given"
    params["prob_covariates"] = [str(name) for name in options["prob_covariates"]]
    params |= {name: setup.get(name) for name in ("layer", "mask", "batch_key")}
    table = facts["baselines"] if own else {}
    return {
        "params": params,
        "eigenvalues": answer.values[:k],
        "all_eigenvalues": answer.values,
        "variance_ratio": answer.values[:k] / total if total > 0 else np.full(k, np.nan),
        "negative_mass": facts["negative_mass"],
        "negative_mass_exact": facts["negative_mass_exact"],
        "residuals": answer.residuals,
        "prob": {"model": facts["model"], "margin_error": facts["margin_error"], **(_spread(answer) if own else {})},
        "overlap": {
            "rank": int(answer.factors_s.size),
            "error": facts["factors_error"],
            "angle_bound": facts["angle_bound"],
            "levels": np.array(gram.QUANTILES),
            "quantiles": np.array(facts["overlap_quantiles"]),
            "below_min": facts["diagnostics"]["below_min"],
        },
        "fit": {"cells": answer.in_fit, "features": answer.live} if own else {"features": answer.live},
        "baselines": {name: np.array(column) for name, column in table.items()},
        "diagnostics": dict(facts["diagnostics"]),
        "refine": dict(facts["refine"]) or {"method": "none"},
        "provenance": dict(provenance),
    }


def _spread(answer: Answer) -> dict[str, Any]:
    """Return the arrays of the probabilities, one row a cell or feature of the object, NaN where none was fitted."""
    fitted = answer.fitted_probability()
    if fitted is None:
        return {}
    out: dict[str, Any] = {}
    for name, value in fitted.state().items():
        if name not in gram.STATE_AXES:
            out[name] = float(value.reshape(-1)[0])
            continue
        chosen = answer.in_fit if gram.STATE_AXES[name] == "cells" else answer.live
        whole = np.full((len(chosen), *value.shape[1:]), np.nan)
        whole[chosen] = value
        out[name] = whole
    return out
