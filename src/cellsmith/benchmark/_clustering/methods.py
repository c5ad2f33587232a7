"""Methods that cluster, or give a space or a graph to cluster: ``(counts, batch_key, seed, n_clusters) -> Found``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from anndata import AnnData
from scipy import sparse

from cellsmith._rng import isolated

__all__ = [
    "KNN_GRAPH",
    "LEARNED",
    "METHODS",
    "NO_PENALTY",
    "PCA",
    "PEERS",
    "PUBLISHED",
    "RANDOM_GRAPH",
    "SCAGC",
    "SCVI",
    "SIAMESE",
    "UNTRAINED",
    "Found",
    "Method",
]

PCA, SCVI = "PCA 50", "scVI"
UNTRAINED, SCAGC = "untrained graph", "SCAGC"
LEARNED, KNN_GRAPH, RANDOM_GRAPH = "SCAGC, learned graph", "SCAGC, fixed kNN graph", "SCAGC, random graph"
NO_PENALTY = "SCAGC, no penalty on hubs"
PUBLISHED = "SCAGC, published"
SIAMESE, NO_TRANSPORT = "ScSiameseClu", "ScSiameseClu, no transport"
N_NEIGHBORS = 15
Labels = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Found:
    """What a method found.

    Parameters
    ----------
    latent
        Space (n, d) for k-means; None: no such reading.
    graph
        Symmetric weights (n, n), CSR, for Leiden; None: 15 neighbours of the latent.
    labels
        Clusters of its own, (n,): ``"auto"`` without and ``"given"`` with the number of types.
    """

    latent: npt.NDArray[np.float32] | None = None
    graph: Any = None
    labels: Mapping[str, Labels] = field(default_factory=dict)


def save_found(path: Path, found: Found, cost: Mapping[str, float]) -> None:
    """Write what a method found, and what it cost, to an ``.npz`` file."""
    parts: dict[str, Any] = {f"labels_{name}": np.asarray(v).astype(str) for name, v in found.labels.items()}
    parts |= {f"cost_{name}": value for name, value in cost.items()}
    if found.latent is not None:
        parts["latent"] = found.latent
    if found.graph is not None:
        graph = sparse.csr_matrix(found.graph)
        parts |= {"data": graph.data, "indices": graph.indices, "indptr": graph.indptr}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **parts)


def load_found(path: Path) -> tuple[Found, dict[str, float]]:
    """Read what :func:`save_found` wrote."""
    with np.load(path) as parts:
        labels = {name.removeprefix("labels_"): parts[name] for name in parts if name.startswith("labels_")}
        cost = {name.removeprefix("cost_"): float(parts[name]) for name in parts if name.startswith("cost_")}
        graph = None
        if "indptr" in parts:
            n = len(parts["indptr"]) - 1
            graph = sparse.csr_matrix((parts["data"], parts["indices"], parts["indptr"]), shape=(n, n))
        return Found(parts.get("latent"), graph, labels), cost


Method = Callable[[AnnData, str | None, int, int | None], Found]


def pca(counts: AnnData, batch_key: str | None, seed: int, n_clusters: int | None) -> Found:
    """Return 50 principal components of log1p counts at 10,000 a cell, not scaled; batches are not corrected."""
    import scanpy as sc

    cells = AnnData(counts.X.copy())
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.pp.pca(cells, n_comps=50, random_state=seed)
    return Found(np.asarray(cells.obsm["X_pca"], dtype=np.float32))


def scvi(counts: AnnData, batch_key: str | None, seed: int, n_clusters: int | None) -> Found:
    """Train scVI with a negative binomial, everything else at its defaults, the number of epochs among them."""
    from scvi.model import SCVI as Model

    cells = counts.copy()
    with isolated(seed):
        Model.setup_anndata(cells, batch_key=batch_key)
        model = Model(cells, gene_likelihood="nb")
        model.train(accelerator="cpu", enable_progress_bar=False, logger=False)
        return Found(np.asarray(model.get_latent_representation(), dtype=np.float32))


def scagc(
    counts: AnnData,
    batch_key: str | None,
    seed: int,
    n_clusters: int | None,
    *,
    epochs: int | None = None,
    **changed: Any,
) -> Found:
    """Train SCAGC, or a control of it: embedding, graph, clusters without and with the number of types."""
    from cellsmith.model import SCAGC as Model

    cells = counts.copy()
    Model.setup_anndata(cells, batch_key=batch_key)
    model = Model(cells, **changed)
    model.train(max_epochs=epochs, seed=seed, accelerator="cpu", enable_progress_bar=False)
    labels = {"auto": model.predict().to_numpy()}
    return Found(model.get_latent_representation(), model.get_learned_graph(), labels)


def siamese(
    counts: AnnData,
    batch_key: str | None,
    seed: int,
    n_clusters: int | None,
    *,
    ways: Sequence[str] = ("auto", "given"),
    **changed: Any,
) -> Found:
    """Train ScSiameseClu twice, left to find its number of clusters and told it; the space is that of the first."""
    from cellsmith.model import ScSiameseClu as Model

    spaces, labels = [], {}
    for way in ways:
        cells = counts.copy()
        Model.setup_anndata(cells, batch_key=batch_key)
        model = Model(cells, n_clusters="auto" if way == "auto" else int(n_clusters or 2), **changed)
        model.train(seed=seed, accelerator="cpu", enable_progress_bar=False)
        labels[way] = model.predict().to_numpy()
        spaces.append(model.get_latent_representation())
    return Found(spaces[0], labels=labels)


def published(counts: AnnData, batch_key: str | None, seed: int, n_clusters: int | None) -> Found:
    """Train the published form, which knows no batches, told the number of types; on a GPU where there is one."""
    from cellsmith.model import SCAGC as Model

    cells = counts.copy()
    Model.setup_anndata(cells)
    model = Model(cells, variant="paper", n_clusters=int(n_clusters or 2))
    model.train(seed=seed, devices=1, enable_progress_bar=False)
    return Found(model.get_latent_representation(), labels={"given": model.predict().to_numpy()})


PEERS: dict[str, Method] = {PCA: pca, SCVI: scvi}

METHODS: dict[str, Method] = {
    **PEERS,
    UNTRAINED: partial(scagc, epochs=0),
    SCAGC: scagc,
    LEARNED: partial(scagc, graph="learned"),
    KNN_GRAPH: partial(scagc, graph="knn"),
    RANDOM_GRAPH: partial(scagc, graph="random"),
    NO_PENALTY: partial(scagc, hub_penalty=0.0),
    PUBLISHED: published,
    SIAMESE: siamese,
    NO_TRANSPORT: partial(siamese, transport_weight=0),
}
"""Every method that can be named; a further one is one line here."""
