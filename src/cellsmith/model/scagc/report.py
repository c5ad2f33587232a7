"""What is written of a trained SCAGC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith import _record
from cellsmith.math import assign
from cellsmith.nn.propagation import DEFAULT_BACKEND

if TYPE_CHECKING:
    from cellsmith.model.scagc.mapping import QueryMap

__all__ = ["CLAIM", "graph_result", "query_result"]

# What the benchmark lets us say of the learned graph: "clustering" or "hubness" (see the user guide).
CLAIM = "hubness"


def graph_result(model: Any, *, key: str) -> _record.Result:
    """Return latents, graph and clusters of the training cells, and the block of ``.uns`` that scanpy reads.

    Parameters
    ----------
    model
        A trained :class:`cellsmith.model.SCAGC`.
    key
        Name of the outputs, which the block spells out for scanpy.
    """
    z = model.module.fitted.z.cpu().numpy()
    obs, obsm = {}, {"X_{k}": z}
    if model.n_clusters_ is not None:
        proba = model._own_proba()
        labels = pd.Categorical.from_codes(model.module.fitted.cluster.cpu().numpy(), categories=list(model.classes))
        obs = _columns(labels, proba)
        obsm["{k}_proba"] = proba.astype(np.float32)
    return _record.Result(
        method="scagc",
        obs=obs,
        obsm=obsm,
        obsp={
            "{k}_connectivities": model.get_learned_graph(),
            "{k}_distances": model.get_learned_graph(kind="distances"),
        },
        uns=_block(model, key=key),
    )


def query_result(model: Any, query: QueryMap) -> _record.Result:
    """Return latents and clusters of new cells.

    Parameters
    ----------
    model
        A trained :class:`cellsmith.model.SCAGC`.
    query
        What its ``map_query`` said of the cells.
    """
    obs: dict[str, Any] = {}
    obsm = {"X_{k}": query.latent}
    if query.proba is not None and query.labels is not None:
        proba = query.proba.to_numpy()
        obs = _columns(query.labels.array, proba)
        # Of what it would have if it had all genes.
        obs["{k}_confidence"] = obs["{k}_confidence"] * np.float32(query.gene_overlap)
        obsm["{k}_proba"] = proba.astype(np.float32)
    matched = {"gene_overlap": query.gene_overlap, "missing": np.array(query.missing, dtype=object)}
    return _record.Result(method="scagc", obs=obs, obsm=obsm, uns=_block(model) | {"query": matched})


def _columns(labels: Any, proba: np.ndarray) -> dict[str, Any]:
    return {
        "{k}": labels,
        "{k}_confidence": proba.max(axis=1).astype(np.float32),
        "{k}_margin": assign.margin(proba).astype(np.float32),
        "{k}_entropy": assign.entropy(proba).astype(np.float32),
    }


def _block(model: Any, *, key: str | None = None) -> dict[str, Any]:
    given = model.init_params_["non_kwargs"] | model.init_params_["kwargs"]
    params: dict[str, Any] = {"model": {k: v for k, v in given.items() if v is not None}}
    report = model.get_degree_report()
    statistics: Mapping[str, Any] = {
        **model.graph_,
        "degree_cv": float(report.loc["learned", "degree_cv"]),
        "largest_degree": int(report.loc["learned", "largest_degree"]),
        "knn_degree_cv": float(report.loc["knn", "degree_cv"]),
        "knn_largest_degree": int(report.loc["knn", "largest_degree"]),
    }
    block = {
        "classes": model.classes,
        "merges": dict(model.merges_),
        "stability": dict(model.stability_),
        "graph": dict(statistics),
        "provenance": model._provenance(
            inputs=model.registry.get("setup_args", {}),
            extra={
                "variant": model._variant,
                "graph": model._graph,
                "backend": DEFAULT_BACKEND,
                "trained": not model.is_untrained_,
                "bytes": sum(b.numel() * b.element_size() for b in model.module.fitted.buffers()),
                "learned_graph_claim": CLAIM,
            },
        ),
    }
    if key is not None:
        params |= {
            "n_neighbors": model.n_neighbors_,
            "method": "umap",
            "metric": "cosine",
            "use_rep": f"X_{key}",
            "random_state": model.seed_,
        }
        block |= {"connectivities_key": f"{key}_connectivities", "distances_key": f"{key}_distances"}
    return block | {"params": params}
