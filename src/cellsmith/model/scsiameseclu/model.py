"""scSiameseClu: the model class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from cellsmith import _record
from cellsmith._errors import DataWarning, SetupError, SizeError, nearest
from cellsmith._rng import isolated
from cellsmith.data.checks import check_registration, place_of, setup_arguments
from cellsmith.data.fields import cell_fields
from cellsmith.data.graphs import given_graph, read_graph
from cellsmith.model._base import CellModel
from cellsmith.model._stage import Optim, Stage
from cellsmith.model.scsiameseclu.module import PrototypeModule, SiameseModule
from cellsmith.model.scsiameseclu.paper import PAPER
from cellsmith.model.scsiameseclu.paper_training import PaperMixin
from cellsmith.model.scsiameseclu.queries import QueryMixin
from cellsmith.model.scsiameseclu.report import cluster_result, named_for_scanpy
from cellsmith.model.scsiameseclu.sampling import SamplingMixin
from cellsmith.model.scsiameseclu.training import TRANSPORT, WARMUP, TrainingMixin

__all__ = ["ScSiameseClu"]

CHOICES = {
    "variant": ("default", "paper"),
    "gene_likelihood": ("nb", "zinb"),
}
PROPORTIONS = ("relaxed", "uniform", "init", "learned", "partial")
POSITIVE = ("propagation_tolerance", "transport_temperature", "max_reference_cells")
# Whole numbers, and the least of each; a cell counts among its own neighbours.
WHOLE = {"n_latent": 1, "n_hidden": 1, "n_layers": 1, "n_neighbors": 2, "n_propagation_neighbors": 1, "queue_size": 0}
WEIGHTS = ("reconstruction", "cell", "latent", "cluster", "propagation", "transport")
RATES = ("dropout_rate", "gene_mask_rate", "edge_drop_rate")


class ScSiameseClu(QueryMixin, SamplingMixin, PaperMixin, TrainingMixin, CellModel):
    """Clusters of cells with honest confidence, from two perturbed views of each cell, its neighbours, and transport.

    Every cell is seen twice, with thinned, noisy counts and over two propagations on the cell graph; both sights must
    agree and explain the raw counts. Prototypes in the common embedding become soft clusters by optimal transport
    that does not assume equal sizes. No label is read anywhere. New cells are mapped later without training.

    Parameters
    ----------
    adata
        Object registered with :meth:`setup_anndata` or :meth:`setup_mudata`.
    registry
        Registry of an earlier set-up, to build a model without data.
    variant
        "default", or "paper": the published full-batch method with its faults repaired, up to 5,000 cells.
    n_clusters
        A number (at most that many clusters), or "auto".
    n_latent, n_hidden, n_layers, dropout_rate
        Width of the embedding; width, number and dropout of the hidden layers of encoder and decoder.
    gene_likelihood
        "nb" or "zinb".
    n_top_genes
        Genes that are modelled, the most variable ones; None is all.
    n_neighbors
        Neighbours in the cell graph, the cell itself counted, as in scanpy.
    teleport
        Probability with which a walk over the graph goes back to its cell; 1 looks at no neighbour.
    n_propagation_neighbors, propagation_tolerance
        Cells that a propagation keeps, and what is too small to be pushed on.
    batch_balanced
        With a batch, take neighbours from every batch alike, and edges across batches where mutual.
    noise_scale, gene_mask_rate, thinning_fraction, edge_drop_rate
        How the two views differ from the cell: relative noise, share of genes missed, share of molecules kept, share
        of edges left out. Rates of 0 and a fraction of 1 switch an augmentation off.
    proportions
        Sizes of the clusters in the transport: "relaxed" (equal ones at a price), "uniform" (equal), "init" (those
        at the start), "learned", "partial" (unsure cells stay out), or shares that sum to 1.
    transport_temperature
        Entropy of the transport plan, nats.
    balance_weight
        Price of other sizes at the start and at the end of the stage.
    queue_size
        Cells of earlier batches that take part in the transport.
    reconstruction_weight, cell_weight, latent_weight, cluster_weight, propagation_weight, transport_weight
        Weights of the terms. ``transport_weight=0`` leaves the stage out: clusters are then
        those that prototypes would start from.
    min_markers
        Marker genes that keep two clusters apart at least, and that a rare cluster needs to stay.
    max_reference_cells
        Training cells kept in the model, to place new ones beside.

    Raises
    ------
    SetupError
        For an unknown choice or a number out of range.
    SizeError
        For ``variant="paper"`` with more than 5,000 cells.

    Examples
    --------
    >>> import cellsmith
    >>> adata = cellsmith.datasets.kang_pbmc()
    >>> cellsmith.model.ScSiameseClu.setup_anndata(adata, batch_key="condition")
    >>> model = cellsmith.model.ScSiameseClu(adata)
    >>> model.train()  # doctest: +SKIP
    >>> model.predict()  # doctest: +SKIP

    Notes
    -----
    After scSiameseClu (arXiv 2505.12626, IJCAI 2025, doi 10.24963/ijcai.2025/875). What differs, and why, is listed
    in the user guide.
    """

    _method = "scsiameseclu"
    _module_cls = SiameseModule
    _one_device = "The bank, the queue and the terms between cells of a batch are shared state of one process."

    def __init__(
        self,
        adata: Any = None,
        *,
        registry: Mapping[str, Any] | None = None,
        variant: str = "default",
        n_clusters: int | str = "auto",
        n_latent: int = 20,
        n_hidden: int = 128,
        n_layers: int = 2,
        dropout_rate: float = 0.1,
        gene_likelihood: str = "nb",
        n_top_genes: int | None = 2000,
        n_neighbors: int = 15,
        teleport: float = 0.5,
        n_propagation_neighbors: int = 32,
        propagation_tolerance: float = 1e-4,
        batch_balanced: bool = True,
        noise_scale: float = 0.1,
        gene_mask_rate: float = 0.2,
        thinning_fraction: float = 0.8,
        edge_drop_rate: float = 0.1,
        proportions: str | Sequence[float] | Mapping[str, float] = "relaxed",
        transport_temperature: float = 0.2,
        balance_weight: tuple[float, float] = (0.01, 0.001),
        queue_size: int = 4096,
        reconstruction_weight: float = 1.0,
        cell_weight: float = 0.0,
        latent_weight: float = 0.1,
        cluster_weight: float = 0.0,
        propagation_weight: float = 0.0,
        transport_weight: float = 1.0,
        min_markers: int = 5,
        max_reference_cells: int = 50_000,
    ) -> None:
        super().__init__(adata, registry)
        given = locals()
        self.init_params_ = self._get_init_params(given)
        n_cells, n_genes = self._n_cells(), int(self.summary_stats["n_vars"])
        _check(given)
        self._variant, self._n_clusters = variant, n_clusters
        if not self._is_loaded():
            self._check_sizes(n_clusters, n_cells)
        self._n_top_genes, self._n_neighbors = n_top_genes, int(n_neighbors)
        self._walk_kwargs = {"teleport": teleport, "k": int(n_propagation_neighbors), "tol": propagation_tolerance}
        self._batch_balanced, self._min_markers = bool(batch_balanced), int(min_markers)
        self._augmentation = (thinning_fraction, noise_scale, gene_mask_rate, edge_drop_rate)
        self._balance, self._queue_size = tuple(map(float, balance_weight)), int(queue_size)
        self._loss_weights = {name: float(given[f"{name}_weight"]) for name in WEIGHTS}
        self._max_reference = int(max_reference_cells)
        self._proportions_kind, self._given_sizes = _given_proportions(proportions, n_clusters)
        # For comparison only: what the ablation switches off.
        self._rare_guard = self._merges = self._refines = True
        self._start, self._merges_to_number, self._merges_nearest = "leiden", False, True
        self.n_prototypes_ = 2 if n_clusters == "auto" else int(n_clusters)
        if variant == "paper" and n_top_genes == 2000:
            self._n_top_genes = PAPER["n_top_genes"]
        self.gene_index_ = np.arange(min(self._n_top_genes or n_genes, n_genes))
        self.n_paper_ = (n_cells, min(PAPER["n_components"], n_cells - 1, len(self.gene_index_) - 1))
        self.axes_: Any = None
        self.graph_rep_: str | None = None
        self.cells_, self.factor_scale_ = "", 1.0
        self.temperature_ = 1.0
        self._own: Any = None
        self._module_kwargs: dict[str, Any] = {
            "n_batch": int(self.summary_stats["n_batch"]),
            "proportions": self._proportions_kind,
            **{
                name: given[name]
                for name in (
                    *("n_latent", "n_hidden", "n_layers", "dropout_rate"),
                    *("gene_likelihood", "transport_temperature"),
                )
            },
        }
        if self.registry["setup_args"].get("batch_key") is not None and self.summary_stats["n_batch"] == 1:
            self._note("The batch has one level; nothing is corrected.", DataWarning)
        with isolated():
            self.module = self._new_module()
        self._model_summary_string = (
            f"ScSiameseClu: {n_cells} cells, {len(self.gene_index_)} genes, n_clusters={n_clusters!r}"
        )

    def _is_loaded(self) -> bool:
        return self.adata is not None and self.adata_manager._source_registry is not None

    def _new_module(self) -> PrototypeModule:
        if self._variant == "paper":
            return self._new_paper_module()
        return SiameseModule(len(self.gene_index_), n_prototypes=self.n_prototypes_, **self._module_kwargs)

    def _check_sizes(self, n_clusters: int | str, n_cells: int) -> None:
        """Refuse a number of clusters that the cells do not allow."""
        if n_clusters != "auto" and not (
            isinstance(n_clusters, Integral) and not isinstance(n_clusters, bool) and 2 <= n_clusters <= n_cells // 5
        ):
            raise SetupError(
                f"n_clusters={n_clusters!r}; expected 'auto' or a whole number from 2 to {n_cells // 5}, a fifth of "
                f"the {n_cells} cells."
            )
        if self._variant == "paper":
            if n_clusters == "auto":
                raise SetupError("variant='paper' needs to be told the number of clusters: n_clusters=<number>.")
            if n_cells > MAX_PAPER_CELLS:
                size = 12 * 4 * n_cells**2
                raise SizeError(
                    f"variant='paper' holds a dozen arrays of {n_cells:,} x {n_cells:,} ({size:,} bytes); expected at "
                    f"most {MAX_PAPER_CELLS:,} cells. Take variant='default'."
                )
            if self.registry["setup_args"].get("batch_key") is not None:
                raise SetupError("variant='paper' corrects no batch; take variant='default', or leave out batch_key.")
            for key in ("use_rep", "neighbors_key"):
                if self._setup(key) is not None:
                    raise SetupError(
                        f"variant='paper' builds its own graph of ten neighbours and cannot use {key}="
                        f"{self._setup(key)!r}; take variant='default', or leave it out."
                    )

    @classmethod
    def setup_anndata(
        cls,
        adata: Any,
        *,
        layer: str | None = None,
        batch_key: str | None = None,
        size_factor_key: str | None = None,
        use_rep: str | None = None,
        neighbors_key: str | None = None,
        source_registry: Any = None,
    ) -> None:
        """Register an AnnData of raw counts.

        Parameters
        ----------
        adata
            Cells x genes.
        layer
            Layer with the counts; None is ``.X``.
        batch_key
            Column of ``.obs``; read by the decoder, and by the graph with ``batch_balanced``. Never by the encoder.
        size_factor_key
            Positive column of ``.obs``, any scale, for the likelihood; None: totals over all genes.
        use_rep
            Key of ``.obsm`` in which neighbours are sought; None is a PCA of 50 components inside the model.
        neighbors_key
            A graph of your own, as scanpy names it; ``use_rep`` then serves to place new cells.
        source_registry
            Registry of a saved model; set by ``load``.

        Raises
        ------
        SetupError
            If the counts, a column, an embedding or the graph cannot be used; the object is then untouched.
        """
        args = setup_arguments(locals())
        cls._set_up(adata, args, source_registry)

    @classmethod
    def setup_mudata(
        cls,
        mdata: Any,
        *,
        layer: str | None = None,
        batch_key: str | None = None,
        size_factor_key: str | None = None,
        use_rep: str | None = None,
        neighbors_key: str | None = None,
        modalities: Mapping[str, str | None] | None = None,
        source_registry: Any = None,
    ) -> None:
        """Register one modality of a MuData; embedding or graph may lie in another.

        Parameters
        ----------
        mdata
            The object.
        layer
            Layer with the counts in the modality ``modalities["layer"]``.
        batch_key, size_factor_key, use_rep, neighbors_key
            As in :meth:`setup_anndata`.
        modalities
            Argument name -> modality; an argument that is not in it is looked up at the top level.
        source_registry
            Registry of a saved model; set by ``load``.

        Raises
        ------
        SetupError
            If ``modalities`` is None, or something cannot be used.
        """
        args = setup_arguments(locals())
        cls._set_up(mdata, args, source_registry)

    @classmethod
    def _set_up(cls, data: Any, args: Mapping[str, Any], source_registry: Any) -> None:
        loaded = source_registry is not None
        check_registration(data, args, **({"min_cells": 1} if loaded else {}))
        carrier = place_of(data, args.get("modalities"), "layer")
        if getattr(carrier, "is_view", False):
            raise SetupError("The object is a view of another one. Type adata = adata.copy() first.")
        for name in ("use_rep", "neighbors_key"):
            place = place_of(data, args.get("modalities"), name)
            if args[name] is not None and not np.array_equal(place.obs_names, carrier.obs_names):
                raise SetupError(
                    f"The cells of {name}={args[name]!r} are not those of the counts, in their order. Type "
                    "mu.pp.intersect_obs(mdata)."
                )
        if args["neighbors_key"] is not None and not loaded:
            found, name = given_graph(place_of(data, args.get("modalities"), "neighbors_key"), args["neighbors_key"])
            read_graph(found, carrier.n_obs, where=f".obsp[{name!r}]")
        # Embedding and graph are read where they lie, and only when they are needed.
        fields = cell_fields(**{k: v for k, v in args.items() if k not in ("use_rep", "neighbors_key")})
        cls._register(data, fields, args, source_registry=source_registry)

    # --- stages ---------------------------------------------------------------------------------------------------

    def stages(self) -> tuple[Stage, ...]:
        """Return ``warmup``, ``transport`` (unless its weight is 0) and ``finish``; with "paper" the published ones."""
        if self._variant == "paper":
            return self._paper_stages()
        networks = ("encoder", "to_gene", "to_graph", "gate", "decoder", "head", "log_theta")
        plan = Optim(optimizer="adamw", lr=1e-3, weight_decay=1e-6, clip=5.0, schedule="constant", keep_best=False)
        weights = {k: self._loss_weights[k] for k in ("reconstruction", "cell", "latent", "propagation")}
        common: dict[str, Any] = {
            "loss": "loss_views",
            "batch_size": self._batch_size(),
            "min_batch": self._batch_size() // 2,
            "between": "between",
        }
        warmup = Stage(
            name="warmup",
            max_epochs=self._n_epochs(WARMUP),
            trains=networks,
            weights=weights,
            refresh="_begin_warmup",
            plan=plan,
            **common,
        )
        finish = Stage(name="finish", solve="_finish")
        if self._loss_weights["transport"] == 0:
            return warmup, finish
        transport = Stage(
            name="transport",
            max_epochs=self._n_epochs(TRANSPORT),
            trains=(*networks, "prototypes"),
            weights={**weights, **{k: self._loss_weights[k] for k in ("cluster", "transport")}},
            refresh="_begin_transport",
            plan=plan,
            **common,
        )
        return warmup, transport, finish

    # --- what is written ------------------------------------------------------------------------------------------

    def results(self, adata: Any = None) -> _record.Result:
        """Return clusters, confidences, embedding and graph, and the block of ``.uns``.

        Parameters
        ----------
        adata
            Cells; None is the training object.

        Returns
        -------
        What :meth:`write` writes.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        self._require_trained("results")
        return cluster_result(self, adata)

    def write(
        self,
        adata: Any = None,
        *,
        result: _record.Result | None = None,
        key_added: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write the results into an AnnData, with a graph that scanpy's ``neighbors_key=key_added`` serves.

        Parameters
        ----------
        adata
            Where to write; None is the training object (of MuData, the modality with the counts).
        result
            What to write; None is ``results()``.
        key_added
            Name of the outputs; None is "scsiameseclu".
        overwrite
            Replace what another method wrote under these names.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        self._require_trained("write")
        key = key_added or self._method
        result = named_for_scanpy(self.results(adata) if result is None else result, key)
        super().write(adata, result=result, key_added=key, overwrite=overwrite)


MAX_PAPER_CELLS = 5_000


def _check(given: Mapping[str, Any]) -> None:
    """Refuse constructor arguments that are out of range."""
    for name, valid in CHOICES.items():
        if given[name] not in valid:
            raise SetupError(f"{name}={given[name]!r}. {nearest(given[name], valid)}")
    for name in POSITIVE:
        value = given[name]
        if not (isinstance(value, Real) and np.isfinite(value) and value > 0):
            raise SetupError(f"{name}={value!r}; expected a positive number.")
    for name, least in WHOLE.items():
        if not (isinstance(given[name], Integral) and given[name] >= least):
            raise SetupError(f"{name}={given[name]!r}; expected a whole number of at least {least}.")
    for name in (*(f"{w}_weight" for w in WEIGHTS), "noise_scale", "min_markers"):
        value = given[name]
        if not (isinstance(value, Real) and np.isfinite(value) and value >= 0):
            raise SetupError(f"{name}={value!r}; expected a number >= 0.")
    for name in RATES:
        if not 0 <= given[name] < 1:
            raise SetupError(f"{name}={given[name]!r}; expected a number in [0, 1).")
    for name in ("teleport", "thinning_fraction"):
        if not 0 < given[name] <= 1:
            raise SetupError(f"{name}={given[name]!r}; expected a number in (0, 1].")
    balance = given["balance_weight"]
    if len(tuple(balance)) != 2 or not all(isinstance(v, Real) and v > 0 for v in balance):
        raise SetupError(f"balance_weight={balance!r}; expected two positive numbers, at the start and at the end.")
    if given["n_top_genes"] is not None and given["n_top_genes"] < 2:
        raise SetupError(f"n_top_genes={given['n_top_genes']!r}; expected at least 2, or None for all genes.")


def _given_proportions(proportions: Any, n_clusters: int | str) -> tuple[str, np.ndarray | None]:
    """Return the kind of proportions, and the shares that were given (K,)."""
    if isinstance(proportions, str):
        if proportions not in PROPORTIONS:
            raise SetupError(f"proportions={proportions!r}. {nearest(proportions, PROPORTIONS)}")
        return proportions, None
    values = proportions.values() if isinstance(proportions, Mapping) else proportions
    shares = np.asarray(list(values), dtype=np.float64).ravel()
    if n_clusters == "auto":
        raise SetupError(f"proportions gives {shares.size} shares, which needs n_clusters={shares.size}, not 'auto'.")
    if shares.size != n_clusters or (shares < 0).any() or not np.isclose(shares.sum(), 1.0, atol=1e-3):
        raise SetupError(
            f"proportions has {shares.size} shares, the smallest {shares.min(initial=np.inf):g}, with the sum "
            f"{shares.sum():g}; expected {n_clusters} shares >= 0 that sum to 1."
        )
    return "given", shares
