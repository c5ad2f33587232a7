"""What is written of a trained scSiameseClu."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from cellsmith import _record
from cellsmith.math import assign, graph

__all__ = ["WRITTEN", "cluster_result", "named_for_scanpy", "sureness"]


def sureness(q: np.ndarray, *, coverage: float = 1.0) -> dict[str, np.ndarray]:
    """S26: confidence, the largest soft cluster, margin of the best over the second, entropy over log K, each (n,).

    Parameters
    ----------
    q
        (n, K) probabilities.
    coverage
        Share of the counts that the cells can show; confidence and margin are multiplied by it.
    """
    return {
        "confidence": (q.max(axis=1) * coverage).astype(np.float32),
        "margin": (assign.margin(q) * coverage).astype(np.float32),
        "entropy": assign.entropy(q).astype(np.float32),
    }


WRITTEN = {
    "obs": ("{k}", "{k}_confidence", "{k}_margin", "{k}_entropy", "{k}_rejected"),
    "obsm": ("X_{k}", "{k}_proba"),
}
"""What every run writes; the graph comes with it where none was given."""


def cluster_result(
    model: Any, adata: Any = None, *, use_graph: bool = True, reject_below: float | None = None
) -> _record.Result:
    """Return clusters, confidences, embedding and graph of cells, and the block of ``.uns``.

    Parameters
    ----------
    model
        A trained :class:`cellsmith.model.ScSiameseClu`.
    adata
        Cells; None is the training object.
    use_graph
        Whether neighbours take part.
    reject_below
        Confidence below which a cell is marked as rejected; None marks none.
    """
    placed = model._placed(adata, use_graph=use_graph)
    q = placed.soft
    names = model._class_names()
    sure = sureness(q, coverage=placed.coverage)
    limit = -1.0 if reject_below is None else reject_below
    obs: dict[str, Any] = {"{k}": pd.Categorical.from_codes(q.argmax(axis=1), categories=names)}
    obs |= {f"{{k}}_{name}": values for name, values in sure.items()}
    obs["{k}_rejected"] = sure["confidence"] < limit
    is_training = placed.cells.graph is not None
    return _record.Result(
        method="scsiameseclu",
        obs=obs,
        obsm={"X_{k}": placed.swept.fused, "{k}_proba": q.astype(np.float32)},
        obsp=_graph(placed) if is_training else {},
        uns=_block(model, placed, names),
    )


def named_for_scanpy(result: _record.Result, key: str) -> _record.Result:
    """Return a result whose block lets scanpy's functions take ``neighbors_key=key``.

    Parameters
    ----------
    result
        Of :func:`cluster_result`.
    key
        Name of the outputs.
    """
    if not result.obsp:
        return result
    params = {"use_rep": f"X_{key}"} | result.uns["params"]
    names = {f"{what}_key": f"{key}_{what}" for what in ("connectivities", "distances")}
    return replace(result, uns={**result.uns, "params": params, **names})


def _graph(placed: Any) -> dict[str, Any]:
    """Return the graph that was built here, joined where it is in pieces; nothing where the user named one."""
    found = placed.cells.graph
    if found.distances is None:
        return {}
    # sc.tl.paga fails where no edge joins two groups.
    joined = graph.connect_components(found.connectivities, placed.swept.fused)
    return {"{k}_connectivities": joined, "{k}_distances": found.distances}


def _block(model: Any, placed: Any, names: list[str]) -> dict[str, Any]:
    given = model.init_params_["non_kwargs"] | model.init_params_["kwargs"]
    args = {k: v for k, v in model.registry["setup_args"].items() if v is not None}
    path = pd.DataFrame(model.k_path_, columns=["stage", "epoch", "n_clusters", "reason"])
    gate = placed.swept.gate
    block = {
        "params": {k: v for k, v in given.items() if v is not None} | {"n_clusters_found": len(names)} | args,
        "classes": np.array(names, dtype=object),
        "proportions": np.bincount(model.codes_, minlength=len(names)) / len(model.codes_),
        "k_path": {name: path[name].to_numpy() for name in path},
        "gate": {f"q{q}": float(np.quantile(gate, q / 100)) for q in (5, 25, 50, 75, 95)},
        "sinkhorn": dict(model.sinkhorn_),
        "coverage": float(placed.coverage),
        **model.graph_summary_,
        "provenance": model._provenance(inputs=args, extra={"variant": model._variant}),
    }
    key = model._neighbors_key()
    if key is not None and placed.cells.graph is not None:
        found = model._place(model.adata, "neighbors_key").uns.get(key) or {}
        block |= {k: found[k] for k in ("connectivities_key", "distances_key") if k in found}
        block["params"] |= {"neighbors_key": key}
    else:
        block["params"] |= {"n_neighbors": model._n_neighbors, "method": "umap", "metric": "euclidean"}
        block["params"]["random_state"] = model.seed_
    return block
