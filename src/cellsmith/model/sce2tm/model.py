"""scE2TM: the model class."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from cellsmith import _record
from cellsmith._errors import SetupError, nearest
from cellsmith._rng import isolated
from cellsmith.data.checks import check_registration, setup_arguments
from cellsmith.data.fields import cell_fields
from cellsmith.model._base import CellModel
from cellsmith.model._stage import Optim, Stage
from cellsmith.model.sce2tm import equations as eq
from cellsmith.model.sce2tm.coding import CodingMixin
from cellsmith.model.sce2tm.editing import PerturbationMixin
from cellsmith.model.sce2tm.module import SCE2TMModule
from cellsmith.model.sce2tm.queries import QueryMixin
from cellsmith.model.sce2tm.query import QueryMappingMixin
from cellsmith.model.sce2tm.report import topic_result
from cellsmith.model.sce2tm.sampling import SamplingMixin
from cellsmith.model.sce2tm.training import TrainingMixin
from cellsmith.model.sce2tm.views import check_view

__all__ = ["SCE2TM"]

logger = logging.getLogger("cellsmith")

CHOICES = {
    "variant": ("default", "paper"),
    "gene_likelihood": ("log-multinomial", "multinomial", "nb"),
    "decoder_scale": ("free", "fixed"),
    "loss_scale": ("mass", "paper"),
    "ecr_gradient": ("unrolled", "implicit", "envelope"),
}
GATES = ("explained", "overlap", "off")
# What variant="paper" fixes: argument -> (its default, its value there).
PAPER = {
    "n_top_genes": (2000, 5000),
    "n_neighbors": (15, 15),
    "gene_likelihood": ("log-multinomial", "log-multinomial"),
    "prior_concentration": (1.0, 1.0),
    "topic_gene_temperature": (0.2, 0.2),
    "decoder_scale": ("free", "free"),
    "loss_scale": ("mass", "paper"),
    "ecr_weight": (100.0, 100.0),
    "ecr_temperature": (0.05, 0.05),
    "ecr_gradient": ("implicit", "unrolled"),
    "cross_weight": (20.0, 1.0),
    "balance_weight": (5.0, 5.0),
    "contrast_temperature": (0.5, 0.5),
    "view_gate": ("explained", "explained"),
    "dropout_rate": (0.0, 0.0),
}
POSITIVE = (
    "n_hidden",
    "n_embedding",
    "n_top_genes",
    "n_neighbors",
    "prior_concentration",
    "topic_gene_temperature",
    "ecr_temperature",
    "contrast_temperature",
)
NOT_NEGATIVE = ("ecr_weight", "cross_weight", "balance_weight")


class SCE2TM(PerturbationMixin, QueryMappingMixin, QueryMixin, SamplingMixin, CodingMixin, TrainingMixin, CellModel):
    """Topics of gene expression that can be read, guided by outside knowledge, and perturbed.

    Every cell is a mixture of topics (rows of proportions sum to one), every topic a ranking of genes that does not
    repeat the others': each gene is shared out among the topics, and a transport term spreads topics over the genes. An
    embedding from elsewhere may guide the topics; it gets the weight that it is worth, and none if it is worth nothing.

    Parameters
    ----------
    adata
        Object registered with :meth:`setup_anndata` or :meth:`setup_mudata`.
    registry
        Registry of an earlier set-up, to build a model without data.
    variant
        "default", or "paper": the published objective, as in its public code (see the user guide).
    n_topics
        Number of topics; None takes it from the number of cells alone, between 10 and 50.
    n_hidden
        Width of the encoder.
    n_embedding
        Width of the embeddings of topics and genes.
    n_top_genes
        Genes that are modelled: the most variable ones.
    n_neighbors
        Other cells in the neighbour lists of both views.
    gene_likelihood
        "log-multinomial" (log-normalised values as weights), "multinomial" or "nb" (raw counts).
    prior_concentration
        Of the Dirichlet prior of the proportions; below 1 cells have few topics.
    topic_gene_temperature
        How sharply genes are shared out among topics; small: one topic a gene.
    decoder_scale
        "free": the decoder learns a scale for every gene; "fixed": it does not, and beta alone reconstructs.
    loss_scale
        "mass": the reconstruction is brought to a common size, so that weights mean the same on all data; "paper".
    ecr_weight
        Weight of the transport term that spreads topics over the genes.
    ecr_temperature
        Its entropy.
    ecr_gradient
        "implicit", that of the exact plan, each solve begun where the last one ended; "unrolled", through the sweeps,
        as published; "envelope" is wrong on purpose, for comparison.
    cross_weight
        Weight of the external view, times its measured quality.
    balance_weight
        Weight, within the cross-view term, of the entropy that keeps all topics in use.
    contrast_temperature
        Temperature of the cross-view contrast.
    view_gate
        How the view is weighed: "explained", "overlap", a number in [0, 1], or "off" (full weight).
    dropout_rate
        Dropout in the encoder.

    Raises
    ------
    SetupError
        For an unknown choice, a number out of range, or an argument that contradicts ``variant="paper"``.

    Examples
    --------
    >>> import cellsmith
    >>> adata = cellsmith.datasets.kang_pbmc()
    >>> cellsmith.model.SCE2TM.setup_anndata(adata)
    >>> model = cellsmith.model.SCE2TM(adata, n_topics=20)
    >>> model.train()  # doctest: +SKIP
    >>> model.get_top_genes(n=5)  # doctest: +SKIP

    Notes
    -----
    After scE2TM (arXiv 2507.08355; bioRxiv 2025.11.27.691023). Only the abstracts and the public code were available;
    what differs from the code, and why, is listed in the user guide.
    """

    _method = "sce2tm"
    _module_cls = SCE2TMModule
    _one_device = (
        "Batch norm, the contrast between topics and the balance term are statistics of the whole batch, and would "
        "be computed apart on each device."
    )

    def __init__(
        self,
        adata: Any = None,
        *,
        registry: Mapping[str, Any] | None = None,
        variant: str = "default",
        n_topics: int | None = None,
        n_hidden: int = 200,
        n_embedding: int = 200,
        n_top_genes: int = 2000,
        n_neighbors: int = 15,
        gene_likelihood: str = "log-multinomial",
        prior_concentration: float = 1.0,
        topic_gene_temperature: float = 0.2,
        decoder_scale: str = "free",
        loss_scale: str = "mass",
        ecr_weight: float = 100.0,
        ecr_temperature: float = 0.05,
        ecr_gradient: str = "implicit",
        cross_weight: float = 20.0,
        balance_weight: float = 5.0,
        contrast_temperature: float = 0.5,
        view_gate: str | float = "explained",
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__(adata, registry)
        given = locals()
        self.init_params_ = self._get_init_params(given)
        given = _settle(given)
        n_cells, n_genes = self._n_cells(), int(self.summary_stats["n_vars"])
        self._variant, self._n_top_genes = variant, int(given["n_top_genes"])
        n_modelled = min(self._n_top_genes, n_genes)
        if not self._is_loaded():
            given["n_topics"] = _number_of_topics(n_topics, n_cells, n_modelled, variant=variant)
        # Loading sets it, and then the shape of the module, to what training had: the cells at hand may be others.
        self.n_topics_ = int(given["n_topics"] or 2)
        given["n_topics"] = self.n_topics_
        self._n_neighbors, self._view_gate = int(given["n_neighbors"]), given["view_gate"]
        self._loss_scale = given["loss_scale"]
        self._loss_weights = {k: float(given[f"{k}_weight"]) for k in ("ecr", "cross")}
        self._external_key = self.registry["setup_args"].get("external_obsm_key")
        self._level_names, n_levels = _levels(self.registry)
        self.gene_index_ = np.arange(n_modelled)
        self.view_: dict[str, Any] | None = None
        self.sinkhorn_: dict[str, Any] = {}
        self.mean_mass_ = float("nan")
        self._cells = self._neighbors = None
        taken = ("n_topics", "n_hidden", "n_embedding", "dropout_rate", "gene_likelihood", "decoder_scale")
        taken += ("prior_concentration", "topic_gene_temperature", "ecr_temperature", "ecr_gradient")
        self._module_kwargs = {name: given[name] for name in (*taken, "balance_weight", "contrast_temperature")}
        self._module_kwargs |= {
            "n_all_genes": n_genes,
            "n_levels": n_levels,
            "own_draw_for_cross": variant == "paper",
        }
        with isolated():
            self.module = self._new_module()
        self._describe()

    def _describe(self) -> None:
        """Set what printing the model shows."""
        view = f"guided by {self._external_key!r}" if self._external_key else "no external view"
        self._model_summary_string = (
            f"SCE2TM: {self._n_cells()} cells, {self.n_topics_} topics of {len(self.gene_index_)} genes, {view}"
        )

    def _is_loaded(self) -> bool:
        """Tell whether the cells were registered for a saved model rather than for training."""
        return self.adata is not None and self.adata_manager._source_registry is not None

    def _new_module(self, n_view: int | None = None) -> SCE2TMModule:
        return SCE2TMModule(len(self.gene_index_), n_view=n_view, **self._module_kwargs)

    @classmethod
    def setup_anndata(
        cls,
        adata: Any,
        *,
        layer: str | None = None,
        batch_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        external_obsm_key: str | None = None,
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
            Column of ``.obs``; the decoder gets an offset for each batch. Never the condition that you want to perturb:
            the offset would absorb it.
        categorical_covariate_keys
            Further columns of ``.obs`` with an offset each.
        external_obsm_key
            Key of ``.obsm`` with an embedding from elsewhere (cells x columns) that may guide the topics. Rows of NaN:
            the cell has none. Needed in training only.
        source_registry
            Registry of a saved model; set by ``load``.

        Raises
        ------
        SetupError
            If the counts, a column or the embedding cannot be used; the object is then untouched.
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
        categorical_covariate_keys: Sequence[str] | None = None,
        external_obsm_key: str | None = None,
        modalities: Mapping[str, str | None] | None = None,
        source_registry: Any = None,
    ) -> None:
        """Register one modality of a MuData; another may be its external view.

        Parameters
        ----------
        mdata
            The object.
        layer
            Layer with the counts in the modality ``modalities["layer"]``.
        batch_key, categorical_covariate_keys
            As in :meth:`setup_anndata`.
        external_obsm_key
            As in :meth:`setup_anndata`; "X" means the matrix of the modality ``modalities["external_obsm_key"]`` as it
            is, at most 2,000 columns, normalised by you.
        modalities
            Argument name -> modality; an argument that is not in it is looked up at the top level.
        source_registry
            Registry of a saved model; set by ``load``.

        Raises
        ------
        SetupError
            If ``modalities`` is None, or a modality, column or embedding cannot be used.
        """
        args = setup_arguments(locals())
        cls._set_up(mdata, args, source_registry)

    @classmethod
    def _set_up(cls, data: Any, args: Mapping[str, Any], source_registry: Any) -> None:
        # Training needs many cells; a loaded model may be asked about one, and without its view.
        loaded = source_registry is not None
        check_registration(data, args, **({"min_cells": 1} if loaded else {}))
        if not loaded:
            check_view(data, args)
        # The external view is read where it lies, in training only: a query needs none.
        fields = cell_fields(**{k: v for k, v in args.items() if k != "external_obsm_key"})
        cls._register(data, fields, args, source_registry=source_registry)

    # --- stages ---------------------------------------------------------------------------------------------------

    def stages(self) -> tuple[Stage, ...]:
        """Return ``index``, ``topics``, ``guide`` where an external view has a weight, and ``order``."""
        index, order = Stage(name="index", solve="_index"), Stage(name="order", solve="_order_topics")
        trained = ("encoder", "topic_table", "gene_table", "decoder_norm", "level_offset", "log_theta")
        # No clipping: the reconstruction's gradient is far above any usual norm, and RMSprop at a clipped one takes
        # such large steps that topics end alike (half of the diversity on the tuning set).
        plan = Optim(optimizer="rmsprop", lr=1e-3, schedule="constant", patience=20, carry=True)
        common: dict[str, Any] = {"batch_size": 512, "min_batch": 2}
        weights = {"ecr": self._loss_weights["ecr"]}
        guided = self._external_key is not None and (self.view_ is None or self.view_["q"] > 0)
        if self._variant == "paper":
            plan = Optim(optimizer="rmsprop", lr=1e-3, schedule="halving", halve_every=125, patience=None)
            joint = Stage(
                name="joint",
                max_epochs=500,
                trains=(*trained, "head") if guided else trained,
                loss="loss_guide" if guided else "loss_topics",
                weights={**weights, "cross": self._loss_weights["cross"]},
                refresh="_read_paired" if guided else "_read_alone",
                plan=plan,
                **common,
            )
            return index, joint, order
        n_epochs = self._number_of_epochs()
        n_alone = -(-n_epochs // 5) if guided else n_epochs
        topics = Stage(
            name="topics",
            max_epochs=n_alone,
            trains=trained,
            loss="loss_topics",
            weights=weights,
            refresh="_read_alone",
            plan=plan,
            **common,
        )
        if not guided:
            return index, topics, order
        guide = Stage(
            name="guide",
            max_epochs=n_epochs - n_alone,
            trains=(*trained, "head"),
            loss="loss_guide",
            weights={**weights, "cross": self._loss_weights["cross"]},
            refresh="_read_paired",
            watch="guard_view",
            plan=plan,
            **common,
        )
        return index, topics, guide, order

    def _number_of_epochs(self) -> int:
        """Return E: 600 steps of 512 cells, within 40 and 100 epochs."""
        steps = max(1, round(0.9 * self._n_cells() / 512))
        return int(min(100, max(40, -(-600 // steps))))

    # --- what is written ------------------------------------------------------------------------------------------

    def results(self, adata: Any = None) -> _record.Result:
        """Return proportions, scores and loadings, and the block of ``.uns``.

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
        return topic_result(self, adata)


def _settle(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the constructor's arguments, and put in what ``variant="paper"`` fixes."""
    out = dict(given)
    for name, valid in CHOICES.items():
        if out[name] not in valid:
            raise SetupError(f"{name}={out[name]!r}. {nearest(out[name], valid)}")
    for name in POSITIVE + NOT_NEGATIVE:
        value = out[name]
        if not (isinstance(value, Real) and np.isfinite(value) and value >= 0) or (value == 0 and name in POSITIVE):
            expected = "a positive number" if name in POSITIVE else "a number >= 0"
            raise SetupError(f"{name}={out[name]!r}; expected {expected}.")
    if not 0 <= out["dropout_rate"] < 1:
        raise SetupError(f"dropout_rate={out['dropout_rate']!r}; expected a number in [0, 1).")
    gate = out["view_gate"]
    if gate not in GATES and not (isinstance(gate, Real) and 0 <= gate <= 1):
        raise SetupError(f"view_gate={gate!r}; a number in [0, 1] is accepted as well. {nearest(gate, GATES)}")
    if out["variant"] == "paper":
        for name, (default, published) in PAPER.items():
            if out[name] not in (default, published):
                raise SetupError(
                    f"{name}={out[name]!r} contradicts variant='paper', where it is {published!r}. Leave it out, or "
                    "take variant='default'."
                )
            out[name] = published
    if out["ecr_gradient"] == "envelope":
        logger.warning(
            "ecr_gradient='envelope' holds the transport plan fixed, another objective: topics become alike. It is "
            "there for comparison only."
        )
    return out


def _number_of_topics(n_topics: int | None, n_cells: int, n_genes: int, *, variant: str) -> int:
    most = min(n_cells // 2, n_genes // 5)
    if n_topics is None:
        chosen = 100 if variant == "paper" else eq.choose_n_topics_by_size(n_cells)
        chosen = max(2, min(chosen, most))
        logger.info(
            "n_topics=%d was chosen by the size of the data alone; tl.sce2tm_choose_n_topics compares several.",
            chosen,
        )
        return chosen
    if not isinstance(n_topics, Integral) or not 2 <= n_topics <= most:
        raise SetupError(
            f"n_topics={n_topics!r}; expected a whole number from 2 to {most}, which is at most half of the {n_cells} "
            f"cells and a fifth of the {n_genes} genes that are modelled."
        )
    return int(n_topics)


def _levels(registry: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Return name and number of levels of each registered column; none where there is nothing to correct."""
    fields, setup = registry["field_registries"], registry["setup_args"]
    n_batch = len(fields["batch"]["state_registry"]["categorical_mapping"])
    extra = fields.get("extra_categorical_covs", {}).get("state_registry", {})
    sizes = [int(n) for n in extra.get("n_cats_per_key", [])]
    if n_batch == 1 and not sizes:
        return [], []
    return [setup.get("batch_key") or "batch", *extra.get("field_keys", [])], [n_batch, *sizes]
