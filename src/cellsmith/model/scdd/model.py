"""SCDD: the model class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.model._utils import get_max_epochs_heuristic

from cellsmith import _record
from cellsmith._errors import SetupError, nearest
from cellsmith.data.checks import setup_arguments
from cellsmith.data.fields import cell_fields
from cellsmith.data.source import build_source, describe_source
from cellsmith.math.counts import library_totals
from cellsmith.model._base import CellModel
from cellsmith.model._stage import Optim, Ramp, Stage
from cellsmith.model.scdd.distillation import DistillMixin
from cellsmith.model.scdd.module import SCDDModule
from cellsmith.model.scdd.queries import QueryMixin
from cellsmith.model.scdd.registration import check_setup
from cellsmith.model.scdd.training import TrainingMixin
from cellsmith.nn.autoencoder import ForeignAutoencoder

__all__ = ["SCDD"]

MAX_EPOCHS = 200
# Optimiser steps that settle the generator; more cells need fewer passes for them.
GENERATOR_STEPS = 1_000
GENERATOR_BATCH = 256


class SCDD(TrainingMixin, DistillMixin, QueryMixin, CellModel):
    """Distillation of a labelled data set into a few profiles a class that train classifiers in its place.

    The design published as scDD (arXiv 2503.04357): codes in the latent space of a count autoencoder go through a
    conditional diffusion generator in one step, are decoded to counts, and are optimised so that networks learn from
    them what they learn from the cells. It has nothing to do with the Bioconductor package of the same name, scDD,
    which tests for differential distributions.

    Parameters
    ----------
    adata
        Object registered with :meth:`setup_anndata` or :meth:`setup_mudata`.
    registry
        Registry of an earlier set-up, to build a model without data.
    n_latent
        Latent dimensions.
    n_hidden, n_layers
        Width and hidden layers of encoder and decoder.
    dropout_rate
        Dropout on the encoder's input and before the decoder's last layer.
    gene_likelihood
        "nb" or "zinb".
    n_denoiser_hidden, n_denoiser_layers
        Width and residual blocks of the generator.
    kl_weight
        Weight of the KL term at the end of its rise.
    label_weight
        Weight of the classes in the autoencoder.
    foundation_weight
        Weight of the agreement with ``use_rep``; without one the term is absent.
    reconstruction_weight, separation_weight, diversity_weight
        Weights of what the generator is told beside denoising: counts, classes, and distance from its last estimates.
    source
        Description of a trained scvi-tools module; set by :meth:`from_scvi_model`.

    Raises
    ------
    SetupError
        For an unknown likelihood.

    Examples
    --------
    >>> import cellsmith
    >>> adata = cellsmith.datasets.pbmc68k_counts()
    >>> cellsmith.model.SCDD.setup_anndata(adata, labels_key="cell_type")
    >>> model = cellsmith.model.SCDD(adata)  # doctest: +SKIP
    >>> model.train()  # doctest: +SKIP
    >>> small = model.distill(10)  # doctest: +SKIP

    Notes
    -----
    Its own start, the mean of the log-normalised cells of k-means groups, is the bar: where no optimised iterate is
    clearly better on held-out training cells, that start is what is returned. No privacy is claimed: a profile of one
    cell is that cell.
    """

    _method = "scdd"
    _module_cls = SCDDModule

    def __init__(
        self,
        adata: Any = None,
        *,
        registry: Mapping[str, Any] | None = None,
        n_latent: int = 32,
        n_hidden: int = 128,
        n_layers: int = 2,
        dropout_rate: float = 0.1,
        gene_likelihood: str = "nb",
        n_denoiser_hidden: int = 256,
        n_denoiser_layers: int = 4,
        kl_weight: float = 0.1,
        label_weight: float = 1.0,
        foundation_weight: float = 0.1,
        reconstruction_weight: float = 1e-3,
        separation_weight: float = 0.1,
        diversity_weight: float = 0.008,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(adata, registry)
        if gene_likelihood not in ("nb", "zinb"):
            raise SetupError(f"gene_likelihood={gene_likelihood!r}. {nearest(gene_likelihood, ('nb', 'zinb'))}")
        self.init_params_ = self._get_init_params(locals())
        self._source = None if source is None else dict(source)
        if self._source is not None:
            n_latent = int(self._source["kwargs"].get("n_latent", 10))
        self._module_kwargs = {
            "n_latent": n_latent,
            "n_hidden": n_hidden,
            "n_layers": n_layers,
            "dropout_rate": dropout_rate,
            "gene_likelihood": gene_likelihood,
            "n_denoiser_hidden": n_denoiser_hidden,
            "n_denoiser_layers": n_denoiser_layers,
        }
        self._autoencoder_weights = {
            "kl": Ramp(kl_weight, fraction=1 / 3, max_epochs=40),
            "label": label_weight,
            "foundation": foundation_weight,
        }
        self._generator_weights = {
            "reconstruction": reconstruction_weight,
            "separation": separation_weight,
            "diversity": diversity_weight,
        }
        self.refit_: dict[str, Any] = {"done": False}
        self.response_: dict[str, Any] = {}
        self.median_library_: np.ndarray | None = None
        self.training_codes_: np.ndarray | None = None
        self.module = self._new_module()
        self._model_summary_string = f"SCDD: {self._n_cells()} cells, {len(self.classes)} classes, {n_latent} latents"

    def _new_module(self) -> SCDDModule:
        foreign = None if self._source is None else ForeignAutoencoder(build_source(self._source))
        return SCDDModule(
            int(self.summary_stats["n_vars"]),
            n_batch=int(self.summary_stats["n_batch"]),
            n_labels=len(self.classes),
            autoencoder=foreign,
            **self._module_kwargs,
        )

    @property
    def _copied(self) -> tuple[str, ...]:
        return () if self._source is None else ("autoencoder.",)

    @property
    def owns_decoder(self) -> bool:
        """Whether encoder and decoder are SCDD's own, not those of a model of scvi-tools."""
        return self._source is None

    @property
    def classes(self) -> np.ndarray:
        """Names of the classes (K,), in the order of the registered column."""
        return np.asarray(self._categories(REGISTRY_KEYS.LABELS_KEY))

    @property
    def batches(self) -> np.ndarray:
        """Names of the batches."""
        return np.asarray(self._categories(REGISTRY_KEYS.BATCH_KEY))

    def _categories(self, key: str) -> Any:
        return self.registry["field_registries"][key]["state_registry"]["categorical_mapping"]

    @property
    def n_registered(self) -> int:
        """Number of registered cells, labelled or not."""
        return self._n_cells()

    def count_object(self) -> AnnData | None:
        """Return the AnnData that holds the counts; None for a model without data."""
        if self.adata is None:
            return None
        return self.adata.mod[self._count_modality] if hasattr(self.adata, "mod") else self.adata

    def source_hash(self) -> str:
        """Return the hash of the names of the registered cells, in order."""
        return _record.hash_names(self.adata.obs_names)

    @classmethod
    def setup_anndata(
        cls,
        adata: Any,
        *,
        labels_key: str,
        layer: str | None = None,
        batch_key: str | None = None,
        size_factor_key: str | None = None,
        use_rep: str | None = None,
        unlabeled_category: str | None = None,
        source_registry: Any = None,
    ) -> None:
        """Register an AnnData of raw counts with labels.

        Parameters
        ----------
        adata
            Cells x genes.
        labels_key
            Column of ``.obs`` with the classes; missing values are allowed, and train the autoencoder only.
        layer
            Layer with the counts; None is ``.X``.
        batch_key
            Column of ``.obs``: an input of encoder and decoder.
        size_factor_key
            Positive column of ``.obs``, any scale; rescaled so that its median equals the median total.
        use_rep
            Key of ``.obsm`` with an embedding of a foundation model, computed elsewhere, that the latents shall agree
            with.
        unlabeled_category
            Label that means "not labelled".
        source_registry
            Registry of a saved model; set by ``load``.

        Raises
        ------
        SetupError
            If the counts or a column cannot be used; the object is then untouched.
        """
        args = setup_arguments(locals())
        check_setup(adata, args, labelled=source_registry is None)
        cls._register(adata, cell_fields(**args), args, source_registry=source_registry)

    @classmethod
    def setup_mudata(
        cls,
        mdata: Any,
        *,
        labels_key: str,
        layer: str | None = None,
        batch_key: str | None = None,
        size_factor_key: str | None = None,
        use_rep: str | None = None,
        unlabeled_category: str | None = None,
        modalities: Mapping[str, str | None] | None = None,
        source_registry: Any = None,
    ) -> None:
        """Register one modality of a MuData.

        Parameters
        ----------
        mdata
            The object.
        labels_key, batch_key, size_factor_key, use_rep, unlabeled_category
            As in :meth:`setup_anndata`.
        layer
            Layer with the counts in the modality ``modalities["layer"]``.
        modalities
            Argument name -> modality; an argument that is not in it is looked up at the top level.
        source_registry
            Registry of a saved model; set by ``load``.

        Raises
        ------
        SetupError
            If ``modalities`` is None, or a modality or column cannot be used.
        """
        args = setup_arguments(locals())
        check_setup(mdata, args, labelled=source_registry is None)
        cls._register(mdata, cell_fields(**args), args, source_registry=source_registry)

    @classmethod
    def from_scvi_model(
        cls,
        model: Any,
        *,
        labels_key: str,
        adata: Any = None,
        unlabeled_category: str | None = None,
        n_denoiser_hidden: int = 256,
        n_denoiser_layers: int = 4,
        reconstruction_weight: float = 1e-3,
        separation_weight: float = 0.1,
        diversity_weight: float = 0.008,
    ) -> SCDD:
        """Build on a trained scVI or scANVI model: its encoder and decoder are copied and frozen.

        Parameters
        ----------
        model
            Trained :class:`scvi.model.SCVI` or :class:`scvi.model.SCANVI`; it is not modified.
        labels_key
            Column of ``.obs`` with the classes.
        adata
            Cells to distil; None is the model's own.
        unlabeled_category, n_denoiser_hidden, n_denoiser_layers
            As in :meth:`setup_anndata` and the constructor.
        reconstruction_weight, separation_weight, diversity_weight
            As in the constructor.

        Returns
        -------
        An untrained SCDD without the stage "autoencoder".

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            For another class of model, one with covariates beyond the batch, or cells whose counts are gone.
        """
        description, carrier, setup = describe_source(model, adata)
        beyond = [k for k in ("categorical_covariate_keys", "continuous_covariate_keys") if setup[k]]
        if beyond:
            raise SetupError(
                f"The model has {beyond[0]}={setup[beyond[0]]}; SCDD conditions its decoder on the batch only."
            )
        if description["cells"] != "counts":
            raise SetupError(
                "The cells of the model are minified, so that their counts are gone. Pass adata= with them."
            )
        given = {k: setup[k] for k in ("layer", "batch_key", "size_factor_key")}
        unlabeled = setup["unlabeled_category"] if setup["labels_key"] == labels_key else None
        cls.setup_anndata(carrier, labels_key=labels_key, unlabeled_category=unlabeled_category or unlabeled, **given)
        new = cls(
            carrier,
            source=description,
            n_denoiser_hidden=n_denoiser_hidden,
            n_denoiser_layers=n_denoiser_layers,
            reconstruction_weight=reconstruction_weight,
            separation_weight=separation_weight,
            diversity_weight=diversity_weight,
        )
        new.module.autoencoder.source.load_state_dict(model.module.state_dict())
        return new

    # --- stages ---------------------------------------------------------------------------------------------------

    def stages(self) -> tuple[Stage, ...]:
        """Return ``autoencoder`` and ``calibrate`` (both only of an own decoder), ``generator`` and ``respond``."""
        n = self._n_cells()
        own = (
            Stage(
                name="autoencoder",
                max_epochs=min(MAX_EPOCHS, get_max_epochs_heuristic(n)),
                trains=("autoencoder", "label_head"),
                loss="loss_autoencoder",
                weights=self._autoencoder_weights,
                refresh="_start_autoencoder",
                plan=Optim(lr_factors={"autoencoder.log_theta": 10.0}, patience=15),
            ),
            Stage(name="calibrate", solve="_calibrate"),
        )
        return (
            *(own if self.owns_decoder else ()),
            Stage(
                name="generator",
                max_epochs=int(np.clip(round(GENERATOR_STEPS * GENERATOR_BATCH / n), 2, MAX_EPOCHS)),
                trains=("denoiser",),
                loss="loss_generator",
                weights=self._generator_weights,
                batch_size=GENERATOR_BATCH,
                refresh="_start_generator",
                plan=Optim(optimizer="adam", clip=1.0, patience=10, average=("denoiser", "ema_denoiser")),
            ),
            Stage(name="respond", solve="_respond"),
        )

    # --- what is written ------------------------------------------------------------------------------------------

    def results(self, adata: Any = None) -> _record.Result:
        """Return the latents of cells and the block of ``.uns``.

        Parameters
        ----------
        adata
            Cells; None is the training object.

        Returns
        -------
        What :meth:`write` writes.
        """
        self._require_trained("results")
        return _record.Result(
            method="scdd",
            obsm={"X_{k}": self.get_latent_representation(adata)},
            uns={**self._block(params={}), "classes": np.asarray(self.classes, dtype=str)},
        )

    def _block(self, **entries: Any) -> dict[str, Any]:
        source = self._source or {}
        return {
            **entries,
            "response": self.response_,
            "refit": self.refit_,
            "provenance": self._provenance(
                inputs=self.registry.get("setup_args", {}), extra={"source": source.get("class", "own")}
            ),
        }

    def _remember_composition(self) -> None:
        """Keep class and batch of the labelled cells, and the median total of each class, for :meth:`generate`."""
        labels, totals = self._label_codes(), library_totals(self._counts())
        batch = np.asarray(self.adata_manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY)).reshape(-1)
        known = labels < len(self.classes)
        self.training_codes_ = np.stack([labels[known], batch[known]], axis=1).astype(np.int32)
        self.median_library_ = np.array(
            [np.median(totals[labels == k]) if (labels == k).any() else 1.0 for k in range(len(self.classes))]
        )

    def _counts(self) -> Any:
        return self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
