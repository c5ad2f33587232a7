"""What is written of a trained scE2TM."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cellsmith import _record
from cellsmith.math import assign, topics

__all__ = ["topic_result"]

N_TOP = 10


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
    names = model._topic_names()
    # A cell that shows the model nothing has all scores at 0, and no topic of its own.
    told = (mu != 0).any(axis=1)
    obs = {
        "{k}": pd.Categorical.from_codes(theta.argmax(axis=1), categories=names),
        "{k}_confidence": np.where(told, theta.max(axis=1), 0.0).astype(np.float32),
        "{k}_margin": assign.margin(theta).astype(np.float32),
        "{k}_entropy": assign.entropy(theta).astype(np.float32),
    }
    beta = model._reading("beta")
    loadings = np.zeros((len(model._training_genes()), len(names)), dtype=np.float32)
    loadings[model.gene_index_] = beta.T
    return _record.Result(
        method="sce2tm",
        obs=obs,
        obsm={"X_{k}": theta, "{k}_mu": mu},
        varm={"{k}_loadings": loadings},
        uns=_block(model, beta, names),
    )


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
