"""New cells on a trained SCAGC: placed among the cells of training, which stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from torch import Tensor

from cellsmith._errors import SetupError
from cellsmith.data.checks import check_counts, check_covariates, counts_carrier, place_of
from cellsmith.data.genes import match_genes
from cellsmith.data.splits import csr_tensor
from cellsmith.math import graph
from cellsmith.model.scagc import equations as eq
from cellsmith.model.scagc.first_space import place_counts

__all__ = ["MappingMixin", "QueryMap"]


@dataclass(frozen=True, eq=False)
class QueryMap:
    """Where new cells lie among those of training.

    Parameters
    ----------
    latent
        (m, d).
    proba
        Soft clusters, cells x clusters, rows sum to 1; None where the model has no clusters.
    labels
        The most probable cluster of each cell.
    neighbors
        (m, k) positions of the cells of training that it is near, the nearest first.
    weights
        (m, k) weights of these edges, the first 1.
    gene_overlap
        Share of the registered genes that the query has.
    missing
        Names of the genes that it lacks.
    """

    latent: np.ndarray
    proba: pd.DataFrame | None
    labels: pd.Series | None
    neighbors: np.ndarray
    weights: np.ndarray
    gene_overlap: float
    missing: tuple[str, ...]


class MappingMixin:
    """New cells under a trained :class:`cellsmith.model.SCAGC`."""

    def map_query(self, query: Any, *, batch_size: int = 512, min_gene_overlap: float = 0.8) -> QueryMap:
        """Place new cells, without training and without changing anything.

        Every cell is placed by itself: edges run from it to cells of training only, so that neither its companions nor
        their number matter. The encoder reads no batch, so cells of new batches are placed as well.

        Parameters
        ----------
        query
            AnnData with raw counts where the training object has them (same layer), or a MuData with that modality;
            genes in any order, matched by name, absent ones count as 0. Nothing is written into it.
        batch_size
            Cells a forward pass.
        min_gene_overlap
            Share of the registered genes that it must have.

        Returns
        -------
        Latents, soft clusters, neighbours and what was matched.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If the counts cannot be used, too few genes match, or the variant places no new cells.
        """
        self._require_trained("map_query")
        if self._variant == "paper":
            raise SetupError("variant='paper' embeds all cells at once and places no new ones. Take variant='default'.")
        setup = self.registry["setup_args"]
        carrier = counts_carrier(query, setup.get("modalities"))
        check_counts(carrier, setup.get("layer"), min_cells=1)
        genes = [str(name) for name in self._training_genes()]
        places = match_genes(genes, carrier.var_names, min_overlap=min_gene_overlap)
        x = carrier.X if setup.get("layer") is None else carrier.layers[setup["layer"]]
        counts = _matched(x, places)
        factor = self._query_factor(query)
        parts = [
            self._place(
                counts[start : start + batch_size], None if factor is None else factor[start : start + batch_size]
            )
            for start in range(0, counts.shape[0], batch_size)
        ]
        latent, neighbors, weights = (np.concatenate(side) for side in zip(*parts, strict=True))
        proba = labels = None
        if self.n_clusters_ is not None:
            proba = pd.DataFrame(
                self._vote_of(latent, neighbors, weights), index=carrier.obs_names, columns=self.classes
            )
            labels = self._named(proba.to_numpy().argmax(axis=1), carrier.obs_names)
        missing = tuple(name for name, place in zip(genes, places, strict=True) if place < 0)
        overlap = float((places >= 0).mean())
        return QueryMap(latent, proba, labels, neighbors, weights, overlap, missing)

    def _query_factor(self, query: Any) -> np.ndarray | None:
        """Return the registered size factor of new cells (m,); None where totals are used."""
        setup = self.registry["setup_args"]
        key = setup.get("size_factor_key")
        if key is None:
            return None
        obs = place_of(query, setup.get("modalities"), "size_factor_key").obs
        check_covariates(obs, categorical={}, positive=key)
        return np.asarray(obs[key], dtype=np.float32)

    @torch.no_grad()
    def _place(self, counts: sparse.csr_matrix, factor: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return latents (b, d), neighbours (b, k) and weights (b, k) of some cells (b, G)."""
        module, fitted, k = self.module.eval(), self.module.fitted, self.n_neighbors_
        if self.is_untrained_:
            alone = torch.from_numpy(self._place_first(counts))
        else:
            tensors = {REGISTRY_KEYS.X_KEY: csr_tensor(counts)}
            if factor is not None:
                tensors[REGISTRY_KEYS.SIZE_FACTOR_KEY] = torch.from_numpy(factor)
            h = module.hidden({name: value.to(module.device) for name, value in tensors.items()})
            alone = module.alone(h).cpu() if len(fitted.hops) else (h @ module.hop_weights[0] + module.hop_bias).cpu()
        m = fitted.candidates.shape[1]
        found = graph.cross_knn(alone.numpy(), fitted.alone.cpu().numpy(), m, exact_below=50_000, seed=0)[0]
        listed = torch.from_numpy(found.astype(np.int64))
        chosen, weights = self._query_edges(alone, listed, k)
        neighbors = torch.gather(listed, 1, chosen)
        z = self._smooth_query(h, neighbors) if len(fitted.hops) else alone
        return z.numpy(), neighbors.numpy(), weights.numpy()

    def _place_first(self, counts: sparse.csr_matrix) -> np.ndarray:
        fitted = self.module.fitted
        axes = {name[5:]: value.cpu().numpy() for name, value in fitted.named_buffers() if name.startswith("axis_")}
        if not axes:
            raise SetupError(
                "Nothing was trained, and the latents are those of use_rep, in which counts cannot be placed. Train "
                "the model, or leave out use_rep."
            )
        return place_counts(counts, axes)

    def _query_edges(self, alone: Tensor, listed: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the places (b, k) of the best candidates of new cells, best first, and their weights."""
        fitted, flat = self.module.fitted, listed.reshape(-1)
        center = fitted.center.cpu()
        logits = graph.edge_logits(
            alone - center,
            torch.arange(flat.numel()).reshape(listed.shape),
            fitted.alone.cpu()[flat] - center,
            edge_temperature=float(fitted.temperature),
            hub_penalty=self._hub_penalty(),
            in_degrees=fitted.in_degree.cpu()[flat],
            k=k,
        )
        top = logits.topk(k, dim=1)
        return top.indices, (top.values - top.values[:, :1]).exp()

    def _smooth_query(self, h: Tensor, neighbors: Tensor) -> Tensor:
        """Return z_q = h_q W_0 + b + sum_j A_qj T_1,j, with the degrees and hops of training."""
        fitted, module = self.module.fitted, self.module
        k = neighbors.shape[1]
        weights = (k * fitted.degree.cpu()[neighbors].clamp(min=1e-8)).rsqrt()
        around = torch.einsum("nk,nkd->nd", weights, fitted.hops[0].cpu()[neighbors])
        return (h @ module.hop_weights[0] + module.hop_bias).cpu() + around

    def _vote_of(self, latent: np.ndarray, neighbors: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return soft clusters (m, C) of new cells: by the head where there is one, else by vote."""
        if self._has_head():
            return self._head_proba(torch.from_numpy(latent))
        clusters = self.module.fitted.cluster.cpu().numpy()
        table = graph.table_matrix(neighbors, np.maximum(weights, 1e-30).astype(np.float64), len(clusters))
        return eq.vote(table, clusters, n_clusters=int(self.n_clusters_), own=False)


def _matched(x: Any, places: np.ndarray) -> sparse.csr_matrix:
    """Return the counts (m, G) of the registered genes, 0 for absent ones."""
    rows = sparse.csr_matrix(x[:] if not sparse.issparse(x) else x)
    there = np.flatnonzero(places >= 0)
    part = rows[:, places[there]].tocoo()
    return sparse.csr_matrix((part.data, (part.row, there[part.col])), (rows.shape[0], len(places)))
