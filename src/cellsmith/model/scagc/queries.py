"""What a trained SCAGC is asked: latents, graph, clusters, expression."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from torch import Tensor

from cellsmith._errors import SetupError, nearest
from cellsmith._rng import Streams, resolve_seed
from cellsmith.data.splits import CellReader
from cellsmith.math import assign, graph
from cellsmith.model.scagc import equations as eq
from cellsmith.model.scagc.clusters import measure_stability, perturb

__all__ = ["QueryMixin"]

KINDS = ("connectivities", "distances")
BATCH_SIZE = 1024
N_HUBS = 10


class QueryMixin:
    """Queries of :class:`cellsmith.model.SCAGC` that return and never write."""

    @property
    def classes(self) -> np.ndarray:
        """Names of the clusters, "0" the largest; none where none were asked for."""
        return np.array([str(c) for c in range(self.n_clusters_ or 0)], dtype=object)

    def _is_reference(self, adata: Any) -> bool:
        """Tell whether an object holds the cells of training, whose answers are stored."""
        cells = self.adata if adata is None else adata
        if cells is None:  # a model without data still knows its own cells
            return True
        if cells is self.adata and self.adata_manager._source_registry is None:
            return True
        names = np.asarray(cells.obs_names, dtype=object)
        return len(names) == len(self.reference_) and bool((names == self.reference_).all())

    def _latents(self, adata: Any, indices: Any, batch_size: int | None) -> np.ndarray:
        rows = slice(None) if indices is None else indices
        if self._is_reference(adata):
            return self.module.fitted.z.cpu().numpy()[rows].copy()
        cells = self.adata if adata is None else adata
        return self.map_query(cells, batch_size=batch_size or BATCH_SIZE).latent[rows]

    def get_latent_representation(
        self, adata: Any = None, *, indices: Any = None, batch_size: int | None = None
    ) -> np.ndarray:
        """Return the latents, smoothed over the graph.

        Parameters
        ----------
        adata
            Cells; None is the training object. Other cells are mapped, see :meth:`map_query`.
        indices
            Positions of the cells; None is all.
        batch_size
            Cells a forward pass; the answer does not depend on it.

        Returns
        -------
        (n, d) float32.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If the cells cannot be used.
        """
        self._require_trained("get_latent_representation")
        return self._latents(adata, indices, batch_size)

    # --- the graph ------------------------------------------------------------------------------------------------

    def get_learned_graph(self, *, kind: str = "connectivities") -> sparse.csr_matrix:
        """Return the graph of the training cells.

        Parameters
        ----------
        kind
            "connectivities": weights in (0, 1]; "distances": sqrt(2 - 2 cos) of what cells are
            alone (S8), centred; at least 1e-6.

        Returns
        -------
        (n, n) CSR float32, symmetric, connected, without diagonal; the two have the same pattern.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            For an unknown kind.
        """
        self._require_trained("get_learned_graph")
        if kind not in KINDS:
            raise SetupError(f"kind={kind!r}. {nearest(kind, KINDS)}")
        fitted = self.module.fitted
        values = fitted.weights if kind == "connectivities" else fitted.distances
        n = len(fitted.z)
        parts = (values, fitted.indices, fitted.indptr)
        return sparse.csr_matrix(tuple(part.cpu().numpy().copy() for part in parts), shape=(n, n))

    def get_edge_probabilities(self, *, n_draws: int = 32, seed: Any = 0) -> sparse.csr_matrix:
        """Return how often each candidate is chosen when the graph is drawn with noise.

        Parameters
        ----------
        n_draws
            Draws of the graph, with noise of the scale that training began with.
        seed
            Seed of the noise.

        Returns
        -------
        (n, n) CSR, entry (i, j): share of the draws in which cell i chose cell j; rows sum to k.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If there is no draw.
        """
        self._require_trained("get_edge_probabilities")
        if n_draws < 1:
            raise SetupError(f"n_draws={n_draws!r}; expected at least 1. Type n_draws=32.")
        streams, logits = Streams(resolve_seed(seed)), self._fitted_logits()
        found = torch.zeros_like(logits)
        for draw in range(n_draws):
            found += graph.gumbel_topk(
                logits,
                self.n_neighbors_,
                noise_scale=self._noise_scale,
                relaxation_temperature=self._rule["relaxation_temperature"],
                generator=streams.torch("noise", draw),
            )[0]
        return graph.table_matrix(self.module.fitted.candidates.cpu().numpy(), (found / n_draws).numpy(), len(logits))

    def get_degree_report(self) -> pd.DataFrame:
        """Compare the hubs of the graph with those of the k nearest cells in the space that it is drawn in.

        Returns
        -------
        Rows "learned" and "knn"; ``degree_cv`` (standard deviation over mean of the number of edges a cell),
        ``largest_degree``, ``in_degree_cv``, ``largest_in_degree`` (of the directed choice) and ``hubs``, the names of
        the ten cells with most edges.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        self._require_trained("get_degree_report")
        fitted, k = self.module.fitted, self.n_neighbors_
        candidates = fitted.candidates.cpu().numpy()
        best = self._fitted_logits().topk(k, dim=1).indices.numpy()
        nearest_cells = graph.knn_table(fitted.alone.cpu().numpy(), k, exact_below=50_000, seed=0)[0]
        tables = {"learned": np.take_along_axis(candidates, best, axis=1), "knn": nearest_cells}
        names, rows = self.reference_, {}
        for name, table in tables.items():
            listed = graph.table_matrix(table, np.ones(table.shape), len(table))
            degree = np.diff(graph.probabilistic_union(listed).indptr)
            inward = np.bincount(table.reshape(-1), minlength=len(table))
            hubs = np.argsort(-degree, kind="stable")[:N_HUBS]
            rows[name] = {
                "degree_cv": float(degree.std() / degree.mean()),
                "largest_degree": int(degree.max()),
                "in_degree_cv": float(inward.std() / inward.mean()),
                "largest_in_degree": int(inward.max()),
                "hubs": tuple(str(names[i]) for i in hubs),
            }
        return pd.DataFrame.from_dict(rows, orient="index")

    # --- clusters -------------------------------------------------------------------------------------------------

    def get_merge_path(self) -> pd.DataFrame:
        """Return how ``n_clusters="auto"`` merged the clusters of Leiden.

        Returns
        -------
        One row a merge: ``step``, ``first`` and ``second`` (numbered by falling size of the clusters that merging began
        with; the second disappears), ``score`` (marker genes in the direction that has fewer), ``threshold`` that all
        pairs had to reach, ``n_clusters`` left. Empty where nothing merged, or for another rule.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        self._require_trained("get_merge_path")
        columns = ("step", "first", "second", "score", "threshold", "n_clusters")
        return pd.DataFrame({name: self.merges_.get(name, np.zeros(0)) for name in columns})

    def get_stability(self) -> pd.DataFrame:
        """Return how stable clusters are over resolutions, by Leiden on perturbed graphs.

        Coarse partitions are stable by nature: look at the next finer plateau as well.

        Returns
        -------
        One row a resolution: ``resolution``, ``n_clusters`` (median), ``stability`` (mean adjusted Rand index between
        runs), ``plateau`` (0 the best one, -1 none).

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        self._require_trained("get_stability")
        if not self.stability_:
            streams = Streams(resolve_seed(self.seed_))
            self.stability_ = measure_stability(
                lambda n: self._perturbed_graphs(n, streams), len(self.module.fitted.z), seed=streams.integer("init", 2)
            )
        return pd.DataFrame(self.stability_)

    def _perturbed_graphs(self, n_graphs: int, streams: Streams) -> list[Any]:
        """Return graphs of the fitted candidates, drawn anew by noise, with edges dropped."""
        logits, listed = self._fitted_logits().numpy(), self.module.fitted.candidates.cpu().numpy()
        generators = (streams.numpy("augment", 1, number) for number in range(n_graphs))
        return [perturb(logits, listed, k=self.n_neighbors_, generator=g) for g in generators]

    def _fitted_logits(self) -> Tensor:
        """S3: logits (n, M) of the fitted latents, without noise."""
        fitted = self.module.fitted
        return graph.edge_logits(
            (fitted.alone - fitted.center).cpu(),
            fitted.candidates.cpu(),
            edge_temperature=float(fitted.temperature),
            hub_penalty=self._hub_penalty(),
            in_degrees=fitted.in_degree.cpu(),
            k=self.n_neighbors_,
        )

    def predict(
        self, adata: Any = None, *, soft: bool = False, batch_size: int | None = None
    ) -> pd.Series | pd.DataFrame:
        """Return the cluster of every cell.

        Parameters
        ----------
        adata
            Cells; None is the training object. Other cells are mapped, see :meth:`map_query`.
        soft
            Return the probabilities of all clusters.
        batch_size
            Cells a forward pass.

        Returns
        -------
        Categorical Series indexed by obs_names; with ``soft=True`` a DataFrame, cells x clusters, rows sum to 1.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If the model has no clusters, or the cells cannot be used.
        """
        self._require_trained("predict")
        if self.n_clusters_ is None:
            raise SetupError("The model was built with n_clusters=None and has no clusters. Type n_clusters='auto'.")
        if not self._is_reference(adata):
            found = self.map_query(self.adata if adata is None else adata, batch_size=batch_size or BATCH_SIZE)
            return found.proba if soft else found.labels
        names = pd.Index(self.reference_)
        if soft:
            return pd.DataFrame(self._own_proba(), index=names, columns=self.classes)
        return self._named(self.module.fitted.cluster.cpu().numpy(), names)

    def _named(self, codes: np.ndarray, index: pd.Index) -> pd.Series:
        return pd.Series(
            pd.Categorical.from_codes(codes, categories=list(self.classes)), index=index, name=self._method
        )

    def _own_proba(self) -> np.ndarray:
        """Return soft clusters (n, C) of the training cells: by the head where there is one, else by vote."""
        if self._has_head():
            return self._head_proba(self.module.fitted.z)
        clusters = self.module.fitted.cluster.cpu().numpy()
        return eq.vote(
            self.get_learned_graph().astype(np.float64), clusters, n_clusters=int(self.n_clusters_), own=True
        )

    def _has_head(self) -> bool:
        return self._cluster_head == "dec" and not self.is_untrained_

    @torch.no_grad()
    def _head_proba(self, z: Tensor) -> np.ndarray:
        return assign.student_t(z.cpu().double(), self.module.centers.cpu().double()).numpy()

    # --- expression -------------------------------------------------------------------------------------------------

    def get_normalized_expression(
        self,
        adata: Any = None,
        *,
        indices: Any = None,
        transform_batch: Any = None,
        library_size: float = 1e4,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Return the expression that latents stand for.

        Parameters
        ----------
        adata
            Cells; None is the training object.
        indices
            Positions of the cells; None is all.
        transform_batch
            Decode all cells as if they came from this batch; None: from their own.
        library_size
            What the rows sum to, counts.
        batch_size
            Cells a forward pass.

        Returns
        -------
        (n, G) float32.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If nothing was trained (``max_epochs=0``), or for an unknown batch or cells that cannot be used.
        """
        self._require_trained("get_normalized_expression")
        self._require_decoder("get_normalized_expression")
        z, levels = self._latents(adata, indices, batch_size), self._levels_of(adata, indices)
        if transform_batch is not None:
            levels[:, :1] = self._batch_number(transform_batch)
        step = batch_size or BATCH_SIZE
        parts = [
            library_size * self._decode(z[start : start + step], levels[start : start + step]).rho.numpy()
            for start in range(0, len(z), step)
        ]
        return np.concatenate(parts)

    def _require_decoder(self, query: str) -> None:
        if self.is_untrained_:
            raise SetupError(
                f"{query} decodes latents, but nothing was trained (max_epochs=0). Type model.train() first."
            )

    @torch.no_grad()
    def _decode(self, z: np.ndarray, levels: np.ndarray) -> Any:
        """Return the parameters of the counts, on the CPU, of latents (n, d) and levels (n, C)."""
        module = self.module.eval()
        decoded = module.decoder(torch.from_numpy(z).to(module.device), torch.from_numpy(levels).to(module.device))
        return type(decoded)(*(None if part is None else part.cpu() for part in decoded))

    def _levels_of(self, adata: Any, indices: Any) -> np.ndarray:
        """Return the levels of the registered columns, (n, C), of cells."""
        manager = self.get_anndata_manager(self._validate_anndata(adata), required=True)
        n, rows = manager.adata.n_obs, slice(None) if indices is None else indices
        if not self._n_levels:
            return np.zeros((n, 0), dtype=np.int64)[rows]
        columns = [np.asarray(manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY)).reshape(-1, 1)]
        if REGISTRY_KEYS.CAT_COVS_KEY in manager.data_registry:
            columns.append(np.asarray(manager.get_from_registry(REGISTRY_KEYS.CAT_COVS_KEY)))
        return np.concatenate(columns, axis=1).astype(np.int64)[rows]

    def _libraries_of(self, adata: Any, rows: np.ndarray) -> np.ndarray:
        """Return size factor x median total (len(rows),) of cells."""
        reader = CellReader(self.get_anndata_manager(self._validate_anndata(adata), required=True))
        parts = [
            self.module.library(
                {k: v.to(self.module.device) for k, v in reader[rows[start : start + BATCH_SIZE]].items()}
            )
            for start in range(0, len(rows), BATCH_SIZE)
        ]
        return torch.cat(parts).cpu().numpy()

    def _batch_number(self, batch: Any) -> int:
        names = list(self.registry["field_registries"]["batch"]["state_registry"]["categorical_mapping"])
        if batch not in names:
            raise SetupError(f"transform_batch={batch!r} is no registered batch. {nearest(batch, names)}")
        return names.index(batch)
