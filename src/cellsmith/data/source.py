"""Taking over a trained scvi-tools model: what it is, on what data, and how to build it again."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data._constants import _ADATA_MINIFY_TYPE_UNS_KEY

from cellsmith._errors import NotTrainedError, SetupError

__all__ = ["OBSERVED_TOTAL", "POSTERIOR_MEAN", "POSTERIOR_VARIANCE", "build_source", "describe_source"]

# Where the AnnData behind a minified source keeps the posterior. The names are scvi-tools' own for such an object, so
# that it loads a file whose counts are all zero; columns of .obs that start so are left out of every answer.
POSTERIOR_MEAN, POSTERIOR_VARIANCE, OBSERVED_TOTAL = (
    "_scvi_latent_qzm",
    "_scvi_latent_qzv",
    "_scvi_observed_lib_size",
)

ACCEPTED = ("SCVI", "SCANVI")


def describe_source(model: Any, adata: Any = None) -> tuple[dict[str, Any], AnnData, dict[str, Any]]:
    """Return how to rebuild the model's module, an AnnData that shares its counts, and how to register that.

    Parameters
    ----------
    model
        Trained SCVI or SCANVI.
    adata
        Cells to use; None is the model's own.

    Returns
    -------
    ``{"class": path, "kwargs": plain arguments, "cells": "counts" or the kind of minification}``; an AnnData of its own
    with the same count matrix, and the posterior where the object is minified; the arguments of ``setup_anndata``.

    Raises
    ------
    NotTrainedError
        If the model is not trained.
    SetupError
        For another class, a "normal" likelihood, a logistic-normal latent, or other genes.
    """
    import scvi

    if not isinstance(model, scvi.model.SCVI | scvi.model.SCANVI):
        raise SetupError(
            f"from_scvi_model got {type(model).__name__}; accepted: {', '.join(ACCEPTED)} (scvi.model.SCVI, "
            "scvi.model.SCANVI)."
        )
    if not model.is_trained:
        raise NotTrainedError("from_scvi_model needs a trained model: call model.train() first.")
    module = model.module
    if module.gene_likelihood not in ("nb", "zinb", "poisson"):
        raise SetupError(
            f"The model has gene_likelihood={module.gene_likelihood!r}; accepted: 'nb', 'zinb', 'poisson' (counts)."
        )
    if module.latent_distribution != "normal":
        raise SetupError(
            f"The model has latent_distribution={module.latent_distribution!r}; accepted: 'normal' (a diffusion needs "
            "latents without a constraint)."
        )
    source_data = model.adata if adata is None else adata
    genes = np.asarray(model.registry["field_registries"]["X"]["state_registry"]["column_names"], dtype=object)
    found = np.asarray(source_data.var_names, dtype=object)
    if not np.array_equal(genes, found):
        raise SetupError(
            f"adata has {len(found)} genes, of which {len(set(genes) & set(found))} are among the {len(genes)} genes "
            "of the model. Order them as in the model: adata = adata[:, model.get_var_names()]."
        )
    args = model.registry["setup_args"]
    carrier = _carrier(source_data, model.registry, _posterior(model, source_data))
    setup = {
        name: args.get(name)
        for name in (
            "layer",
            "batch_key",
            "labels_key",
            "categorical_covariate_keys",
            "continuous_covariate_keys",
            "size_factor_key",
        )
    }
    state = model.registry["field_registries"]["labels"]["state_registry"]
    setup["unlabeled_category"] = state.get("unlabeled_category")
    path = f"{type(module).__module__}.{type(module).__qualname__}"
    cells = source_data.uns.get(_ADATA_MINIFY_TYPE_UNS_KEY, "counts")
    return {"class": path, "kwargs": _module_arguments(model), "cells": cells}, carrier, setup


def _posterior(model: Any, adata: AnnData) -> dict[str, np.ndarray] | None:
    """Return what a minified object keeps of every cell: posterior mean and variance (n, d) and total (n,)."""
    if adata.uns.get(_ADATA_MINIFY_TYPE_UNS_KEY) is None:
        return None
    mean, variance, total = model._LATENT_QZM_KEY, model._LATENT_QZV_KEY, model._OBSERVED_LIB_SIZE_KEY
    if mean not in adata.obsm or variance not in adata.obsm or total not in adata.obs:
        raise SetupError(
            f"adata is minified, but not by this {type(model).__name__}: it lacks .obsm[{mean!r}], .obsm[{variance!r}] "
            f"or .obs[{total!r}]. Minify it with this model, or hand over the cells with their counts."
        )
    out = {
        POSTERIOR_MEAN: np.array(adata.obsm[mean], dtype=np.float32),
        POSTERIOR_VARIANCE: np.array(adata.obsm[variance], dtype=np.float32),
        OBSERVED_TOTAL: np.array(adata.obs[total], dtype=np.float32),
    }
    shape = (adata.n_obs, int(model.module.n_latent))
    for key in (POSTERIOR_MEAN, POSTERIOR_VARIANCE):
        if out[key].shape != shape or not np.isfinite(out[key]).all():
            raise SetupError(
                f"The posterior of the minified adata has the shape {out[key].shape}; expected finite numbers of shape "
                f"{shape}. Minify it again: model.adata.obsm['X_latent_qzm'], model.adata.obsm['X_latent_qzv'] = "
                "model.get_latent_representation(return_dist=True); model.minify_adata()."
            )
    if not (out[POSTERIOR_VARIANCE].min() > 0 and out[OBSERVED_TOTAL].min() > 0):
        raise SetupError(
            f"The minified adata has a variance of {out[POSTERIOR_VARIANCE].min():g} or a total of "
            f"{out[OBSERVED_TOTAL].min():g}; expected positive numbers. Drop cells without counts before minifying."
        )
    return out


def _carrier(adata: AnnData, registry: Mapping[str, Any], posterior: Mapping[str, np.ndarray] | None) -> AnnData:
    """Return a new AnnData that shares the count matrix; categories are ordered as in the model."""
    obs = adata.obs[[c for c in adata.obs.columns if not c.startswith("_scvi")]].copy()
    fields = registry["field_registries"]
    orders = {}
    for key in ("batch", "labels"):
        state = fields[key]["state_registry"]
        if state.get("original_key") in obs:
            orders[state["original_key"]] = state["categorical_mapping"]
    extra = fields.get(REGISTRY_KEYS.CAT_COVS_KEY, {}).get("state_registry", {})
    orders |= {k: extra["mappings"][k] for k in extra.get("field_keys", ())}
    for column, order in orders.items():
        obs[column] = pd.Categorical(obs[column], categories=list(order))
    obsm = {}
    if posterior is not None:
        obs[OBSERVED_TOTAL] = posterior[OBSERVED_TOTAL]
        obsm = {k: posterior[k] for k in (POSTERIOR_MEAN, POSTERIOR_VARIANCE)}
    var = pd.DataFrame(index=adata.var_names)
    return AnnData(X=adata.X, obs=obs, var=var, layers=dict(adata.layers), obsm=obsm)


def _module_arguments(model: Any) -> dict[str, Any]:
    """Collect plain arguments that build a module of the same shape; its weights follow from the state dict."""
    module, stats = model.module, model.summary_stats
    given = model.init_params_
    known = {
        name
        for cls in type(module).__mro__
        if "__init__" in vars(cls)
        for name in inspect.signature(cls.__init__).parameters
    }
    kwargs = {k: v for k, v in given["non_kwargs"].items() if k in known}
    for extra in given["kwargs"].values():
        kwargs.update(extra)
    covariates = model.registry["field_registries"].get(REGISTRY_KEYS.CAT_COVS_KEY, {}).get("state_registry", {})
    per_covariate = covariates.get("n_cats_per_key")
    kwargs.update(
        n_input=int(stats["n_vars"]),
        n_batch=int(stats["n_batch"]),
        n_labels=int(module.n_labels),
        n_continuous_cov=int(stats.get("n_extra_continuous_covs", 0)),
        n_cats_per_cov=None if not per_covariate else [int(n) for n in per_covariate],
        use_size_factor_key=bool(module.use_size_factor_key),
        n_latent=int(module.n_latent),
    )
    if hasattr(module, "library_log_means"):
        for name in ("library_log_means", "library_log_vars"):
            kwargs[name] = np.asarray(getattr(module, name).cpu())
    return kwargs


def build_source(description: Mapping[str, Any]) -> Any:
    """Return a module of the described class with fresh weights.

    Raises
    ------
    SetupError
        If the class does not come from scvi-tools: a saved model must not choose what code runs.
    """
    module_name, _, class_name = description["class"].rpartition(".")
    if not module_name.startswith("scvi.module"):
        raise SetupError(
            f"The saved source is of class {description['class']!r}; only classes of scvi.module are built."
        )
    cls = getattr(importlib.import_module(module_name), class_name)
    return cls(**description["kwargs"])
