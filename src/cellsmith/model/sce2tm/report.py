"""What is written of a trained scE2TM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith import _record
from cellsmith.math import assign, topics

if TYPE_CHECKING:
    from cellsmith.model.sce2tm.query import TopicQuery

__all__ = ["WRITTEN", "query_result", "topic_result"]

N_TOP = 10
WRITTEN = {
    "obs": ("{k}", "{k}_confidence", "{k}_margin", "{k}_entropy"),
    "obsm": ("X_{k}", "{k}_mu"),
    "varm": ("{k}_loadings",),
}
"""Names that :func:`topic_result` fills, beside the block."""


def topic_result(model: Any, adata: Any) -> _record.Result:
    """Return proportions, scores, largest topic and loadings of cells, and the block of ``.uns``.

    Parameters
    ----------
    model
        A trained :class:`cellsmith.model.SCE2TM`.
    adata
        Cells; None is the training object.
    """
    mu, theta = model._encode(adata)
    names, beta = model._topic_names(), model._reading("beta")
    # A cell that shows the model nothing has all scores at 0, and no topic of its own.
    told = (mu != 0).any(axis=1)
    loadings = np.zeros((len(model._training_genes()), len(names)), dtype=np.float32)
    loadings[model.gene_index_] = beta.T
    return _record.Result(
        method="sce2tm",
        obs=_columns(theta, told, names),
        obsm={"X_{k}": theta, "{k}_mu": mu},
        varm={"{k}_loadings": loadings},
        uns=_block(model, beta, names),
    )


def query_result(model: Any, query: TopicQuery, genes: Sequence[str]) -> _record.Result:
    """Return the same of new cells, whose genes need not be those of training.

    Parameters
    ----------
    model
        A trained :class:`cellsmith.model.SCE2TM`.
    query
        What its ``map_query`` said of the cells.
    genes
        Names of the genes of their object; a gene that is not modelled has loading 0.
    """
    theta, names, beta = query.theta.to_numpy(), list(query.theta.columns), model._reading("beta")
    obs = _columns(theta, ~query.empty, names)
    obs["{k}_confidence"] = obs["{k}_confidence"] * np.float32(query.gene_overlap)
    obs["{k}_gene_overlap"] = np.full(len(theta), query.gene_overlap, dtype=np.float32)
    places = pd.Index(model._genes).get_indexer(pd.Index(genes))
    loadings = np.where(places[:, None] >= 0, beta.T[places], 0.0).astype(np.float32)
    matched = {"gene_overlap": query.gene_overlap, "missing": np.array(query.missing, dtype=object)}
    matched["unseen_batches"] = np.array(query.unseen_batches, dtype=object)
    return _record.Result(
        method="sce2tm",
        obs=obs,
        obsm={"X_{k}": theta, "{k}_mu": query.mu.to_numpy()},
        varm={"{k}_loadings": loadings},
        uns=_block(model, beta, names) | {"query": matched},
    )


def _columns(theta: np.ndarray, told: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Return the largest topic of every cell, and how far it leads; no confidence where nothing was told."""
    return {
        "{k}": pd.Categorical.from_codes(theta.argmax(axis=1), categories=names),
        "{k}_confidence": np.where(told, theta.max(axis=1), 0.0).astype(np.float32),
        "{k}_margin": assign.margin(theta).astype(np.float32),
        "{k}_entropy": assign.entropy(theta).astype(np.float32),
    }


def _block(model: Any, beta: np.ndarray, names: list[str]) -> dict[str, Any]:
    n_top = min(N_TOP, beta.shape[1])
    best = topics.top_genes(beta, n_top)
    given = model.init_params_["non_kwargs"] | model.init_params_["kwargs"]
    return {
        "params": {k: v for k, v in given.items() if v is not None} | {"n_topics": len(names)},
        "classes": np.array(names, dtype=object),
        "top_genes": {name: model._genes[rows].astype(object) for name, rows in zip(names, best, strict=True)},
        "view": {k: float(v) for k, v in model.get_view_quality().items()},
        "sinkhorn": dict(model.sinkhorn_),
        "redundancy": topics.diversity(best, beta.shape[1]).redundancy,
        "likelihood": model.module.gene_likelihood,
        "n_modelled_genes": beta.shape[1],
        "provenance": model._provenance(inputs=model.registry.get("setup_args", {}), extra={"variant": model._variant}),
    }
