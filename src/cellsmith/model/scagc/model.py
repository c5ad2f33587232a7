"""SCAGC: the model class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cellsmith import _record
from cellsmith._errors import DataWarning
from cellsmith._rng import isolated
from cellsmith.data.checks import check_registration, setup_arguments
from cellsmith.data.fields import cell_fields
from cellsmith.model._base import CellModel
from cellsmith.model._stage import Stage
from cellsmith.model.scagc.arguments import check_size, settle_arguments, settle_sizes
from cellsmith.model.scagc.mapping import MappingMixin, QueryMap
from cellsmith.model.scagc.module import SCAGCModule
from cellsmith.model.scagc.published import PublishedMixin, PublishedModule
from cellsmith.model.scagc.queries import QueryMixin
from cellsmith.model.scagc.report import graph_result, query_result
from cellsmith.model.scagc.sampling import SamplingMixin
from cellsmith.model.scagc.schedule import EXPORT, INDEX, fixed_stages, learned_stages, number_of_epochs
from cellsmith.model.scagc.training import TrainingMixin

__all__ = ["SCAGC"]


class SCAGC(PublishedMixin, MappingMixin, QueryMixin, SamplingMixin, TrainingMixin, CellModel):
    """Clusters of cells on a sparse graph that is learned together with their embedding.

    Raw counts are embedded cell by cell, and a graph is formed from the embedding, with a penalty on hubs; with
    ``graph="learned"`` it is drawn during training and smooths the embedding. What comes out is a latent space, a graph
    that every graph tool of scanpy accepts, soft clusters, whose number is chosen by evidence of marker genes, and a
    map for new cells. No label is ever read, and no array of cells x cells is formed.

    Parameters
    ----------
    adata
        Object registered with :meth:`setup_anndata` or :meth:`setup_mudata`.
    registry
        Registry of an earlier set-up, to build a model without data.
    n_hidden, n_layers
        Width and depth of the encoder.
    n_latent
        Latent dimensions.
    n_hops
        Steps of the graph over which a cell is smoothed; 0: none.
    n_neighbors
        Other cells that every cell chooses.
    n_candidates
        Nearest cells that it chooses them from.
    graph
        What smooths cells while the network is trained. "none" (the default, since nothing else was better, see the
        user guide): each cell by itself; the graph that is written and clustered is formed from the trained latents.
        "learned": the graph is drawn from the latents during training, as published. Controls: "knn" (the first graph,
        fixed), "random" (as many edges, at random); neither has a penalty on hubs.
    edge_temperature
        Divides the cosine of two latents: how much similarity outweighs noise.
    relaxation_temperature
        Of the soft selection that carries the gradient; it changes no selected edge. If it is small, the gradient
        through the edges drowns that of the counts.
    noise_scale
        Scale of the Gumbel noise at the start of training; 0: no noise.
    hub_penalty
        How much a cell loses that many others choose, logits; 0: nothing.
    gene_likelihood
        "nb" or "zinb".
    dispersion
        "gene", or "gene-batch": one for every gene, or for every gene and batch.
    dropout_rate
        Dropout in the encoder.
    graph_weight, n_negatives
        Weight of the term that predicts edges from latents (0: off), and drawn pairs for every edge.
    first_weight
        Weight of the term that keeps latents near the first coordinates of counts that the encoder did not see.
    contrast_weight, contrast_temperature
        Weight of the term that tells a cell on two draws of the graph from other cells (0: off), and its temperature.
    cluster_head
        "none", or "dec": clusters are sharpened in a last stage; needs ``graph="learned"``.
    cluster_weight
        Weight of that stage's term.
    n_clusters
        "auto": Leiden at resolution .5, then clusters are merged until marker genes separate all; "stability": the
        widest range of resolutions with a stable number; a number; None: embedding and graph only.
    variant
        "default", or "paper": the published design, dense, up to 5,000 cells, with its repairs (see the user guide).

    Raises
    ------
    SetupError
        For an unknown choice, a number out of range, or an argument that contradicts ``variant="paper"``.
    SizeError
        For ``variant="paper"`` with too many cells.

    Examples
    --------
    >>> import cellsmith
    >>> adata = cellsmith.datasets.kang_pbmc()
    >>> cellsmith.model.SCAGC.setup_anndata(adata)
    >>> model = cellsmith.model.SCAGC(adata)
    >>> model.train()  # doctest: +SKIP
    >>> model.predict()  # doctest: +SKIP

    Notes
    -----
    After scAGC (arXiv 2508.09180; BIBM 2025), of which the abstract and an implementation without a licence were
    available; the rest is this package's design. ``train(max_epochs=0)`` trains nothing and clusters the same graph of
    components of Pearson residuals: compare before you pay for training (see the user guide).
    """

    _method = "scagc"
    _one_device = "Historical tables and negatives of the whole batch belong to one process."

    def __init__(
        self,
        adata: Any = None,
        *,
        registry: Mapping[str, Any] | None = None,
        n_hidden: int = 128,
        n_layers: int = 1,
        n_latent: int = 20,
        n_hops: int = 3,
        n_neighbors: int = 15,
        n_candidates: int = 50,
        graph: str = "none",
        edge_temperature: float = 0.05,
        relaxation_temperature: float = 5.0,
        noise_scale: float = 1.0,
        hub_penalty: float = 1.0,
        gene_likelihood: str = "nb",
        dispersion: str = "gene",
        dropout_rate: float = 0.1,
        graph_weight: float = 0.0,
        n_negatives: int = 5,
        first_weight: float = 1.0,
        contrast_weight: float = 0.0,
        contrast_temperature: float = 0.5,
        cluster_head: str = "none",
        cluster_weight: float = 1.5,
        n_clusters: int | str | None = "auto",
        variant: str = "default",
    ) -> None:
        super().__init__(adata, registry)
        given = locals()
        self.init_params_ = self._get_init_params(given)
        n_cells, n_genes = self._n_cells(), int(self.summary_stats["n_vars"])
        loaded = self.adata is not None and self.adata_manager._source_registry is not None
        given = settle_arguments(given, n_cells=1 << 40 if loaded or adata is None else n_cells)
        self.n_candidates_, self.n_neighbors_ = int(given["n_candidates"]), int(given["n_neighbors"])
        if self.adata is not None and not loaded:
            check_size(n_cells, n_genes, variant=variant)
            self.n_candidates_, self.n_neighbors_, told = settle_sizes(given, n_cells=n_cells)
            if told and variant == "default":
                self._note(told, DataWarning)
        self._variant, self._graph = variant, given["graph"]
        self._rule = {name: float(given[name]) for name in ("edge_temperature", "relaxation_temperature")}
        self._hub = float(given["hub_penalty"])
        self._noise_scale = float(given["noise_scale"])
        self._weights = {name: float(given[f"{name}_weight"]) for name in ("first", "graph", "contrast", "cluster")}
        self._cluster_head, self._n_clusters = given["cluster_head"], given["n_clusters"]
        self._n_levels = _levels(self.registry)
        self.n_clusters_: int | None = None
        self.is_untrained_ = False
        self.merges_: dict[str, np.ndarray] = {}
        self.stability_: dict[str, np.ndarray] = {}
        self.graph_: dict[str, Any] = {}
        self.reference_: np.ndarray | None = None
        self._cells: Any = None
        self._turnovers: list[float] = []
        taken = ("n_hidden", "n_layers", "n_latent", "n_hops", "dropout_rate", "gene_likelihood", "dispersion")
        taken += ("n_negatives", "contrast_temperature")
        self._module_kwargs = {name: given[name] for name in taken}
        with isolated():
            self.module = self._new_module()
        self._model_summary_string = (
            f"SCAGC: {n_cells} cells, {n_genes} genes, {given['n_latent']} latents, graph {self._graph!r}, "
            f"n_clusters={self._n_clusters!r}"
        )

    def _new_module(self) -> SCAGCModule | PublishedModule:
        n_genes = int(self.summary_stats["n_vars"])
        if self._variant == "paper":
            return PublishedModule(n_genes)
        return SCAGCModule(n_genes, n_levels=self._n_levels, n_clusters=self._head_size(), **self._module_kwargs)

    def _head_size(self) -> int | None:
        """Return the number of centres that the module has: none before the clusters are known."""
        return self.n_clusters_ if self._cluster_head == "dec" else None

    def _sizes(self) -> tuple[int, int]:
        return self.n_candidates_, self.n_neighbors_

    def _hub_penalty(self) -> float:
        """Return the penalty on hubs: the controls have none."""
        return 0.0 if self._graph in ("knn", "random") else self._hub

    @classmethod
    def setup_anndata(
        cls,
        adata: Any,
        *,
        layer: str | None = None,
        batch_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        size_factor_key: str | None = None,
        use_rep: str | None = None,
        source_registry: Any = None,
    ) -> None:
        """Register an AnnData of raw counts. There is no argument for labels.

        Parameters
        ----------
        adata
            Cells x genes.
        layer
            Layer with the counts; None is ``.X``.
        batch_key
            Column of ``.obs``: an input of the decoder; every batch gives candidates to every cell.
        categorical_covariate_keys
            Further columns of ``.obs`` that the decoder reads.
        size_factor_key
            Positive column of ``.obs``, any scale; rescaled so that its median equals the median total.
        use_rep
            Key of ``.obsm`` with an embedding in which the first candidates are near; None: 20 components of Pearson
            residuals. Needed in training only.
        source_registry
            Registry of a saved model; set by ``load``.

        Raises
        ------
        SetupError
            If the counts, a column or the embedding cannot be used; the object is then untouched.
        """
        cls._set_up(adata, setup_arguments(locals()), source_registry)

    @classmethod
    def setup_mudata(
        cls,
        mdata: Any,
        *,
        layer: str | None = None,
        batch_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        size_factor_key: str | None = None,
        use_rep: str | None = None,
        modalities: Mapping[str, str | None] | None = None,
        source_registry: Any = None,
    ) -> None:
        """Register one modality of a MuData.

        Parameters
        ----------
        mdata
            The object.
        layer
            Layer with the counts in the modality ``modalities["layer"]``.
        batch_key, categorical_covariate_keys, size_factor_key, use_rep
            As in :meth:`setup_anndata`.
        modalities
            Argument name -> modality; an argument that is not in it is looked up at the top level.
        source_registry
            Registry of a saved model; set by ``load``.

        Raises
        ------
        SetupError
            If ``modalities`` is None, or a modality, column or embedding cannot be used.
        """
        cls._set_up(mdata, setup_arguments(locals()), source_registry)

    @classmethod
    def _set_up(cls, data: Any, args: Mapping[str, Any], source_registry: Any) -> None:
        loaded = source_registry is not None
        # A loaded model may be asked about one cell, and without the embedding that its training began with.
        checked = {k: v for k, v in args.items() if not (loaded and k == "use_rep")}
        check_registration(data, checked, min_cells=1 if loaded else 10)
        fields = cell_fields(**{k: v for k, v in args.items() if k != "use_rep"})
        cls._register(data, fields, args, source_registry=source_registry)

    # --- stages ---------------------------------------------------------------------------------------------------

    def stages(self) -> tuple[Stage, ...]:
        """Return ``index``, ``warmup``, ``graph`` and ``export``.

        With a learned graph ``anneal`` and ``settle`` come before ``export``, and with a head two more after it; the
        paper's variant has stages of its own.
        """
        if self._variant == "paper":
            return self._published_stages()
        n_epochs = number_of_epochs(self._n_cells())
        if self._graph != "learned":
            without = {"graph": 0.0} if self._graph == "none" else {}
            return fixed_stages(n_epochs, self._weights | without)
        head = self._cluster_head == "dec"
        return learned_stages(n_epochs, self._weights, noise_scale=self._noise_scale, head=head)

    def _planned_stages(
        self, max_epochs: Any, plan_kwargs: Mapping[str, Any], batch_size: int | None, *, again: bool = False
    ) -> tuple[Stage, ...]:
        """Return the stages that the caller wants; ``max_epochs=0`` leaves what is solved and trains nothing."""
        untrained = isinstance(max_epochs, int) and not isinstance(max_epochs, bool) and max_epochs == 0
        if not again:
            self.is_untrained_ = untrained
        if untrained:
            return INDEX, EXPORT
        return super()._planned_stages(max_epochs, plan_kwargs, batch_size, again=again)

    # --- what is written ------------------------------------------------------------------------------------------

    def results(self, adata: Any = None) -> _record.Result:
        """Return latents, graph and clusters, and the block of ``.uns``.

        Parameters
        ----------
        adata
            Cells; None is the training object. Other cells are mapped; they get no graph.

        Returns
        -------
        What :meth:`write` writes.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        self._require_trained("results")
        if not self._is_reference(adata):
            return query_result(self, self.map_query(adata))
        return graph_result(self, key=self._method)

    def write(
        self,
        adata: Any = None,
        *,
        result: _record.Result | QueryMap | None = None,
        key_added: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write the results into an AnnData, or what :meth:`map_query` found into the query.

        Parameters
        ----------
        adata
            Where to write; None is the training object (of MuData, the modality with the counts).
        result
            What to write: None is ``results()``; an answer of :meth:`map_query` is accepted as well.
        key_added
            Name of the outputs; None is "scagc".
        overwrite
            Replace what another method wrote under these names.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        self._require_trained("write")
        given = query_result(self, result) if isinstance(result, QueryMap) else result
        if given is None and self._is_reference(adata):
            given = graph_result(self, key=key_added or self._method)
        super().write(adata, result=given, key_added=key_added, overwrite=overwrite)


def _levels(registry: Mapping[str, Any]) -> list[int]:
    """Return the number of levels of each registered column; none where there is nothing to correct."""
    fields = registry["field_registries"]
    n_batch = len(fields["batch"]["state_registry"]["categorical_mapping"])
    extra = fields.get("extra_categorical_covs", {}).get("state_registry", {})
    sizes = [int(n) for n in extra.get("n_cats_per_key", [])]
    return [n_batch, *sizes] if n_batch > 1 or sizes else []
