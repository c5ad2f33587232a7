"""BC-PCA: the model class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scvi import REGISTRY_KEYS
from scvi.data import fields as scvi_fields

from cellsmith import _record
from cellsmith._errors import SetupError, nearest
from cellsmith.data.checks import check_covariates, counts_carrier, modality_of
from cellsmith.model._fitted import Fit, FittedModel
from cellsmith.model.bcpca import fitting, report
from cellsmith.model.bcpca.covariates import describe_covariates
from cellsmith.model.bcpca.queries import QueryMixin
from cellsmith.model.bcpca.source import check_registration, keep_mask
from cellsmith.model.bcpca.state import Answer, pack

__all__ = ["BCPCA"]

CHOICES: dict[str, tuple[Any, ...]] = {
    "rank_rule": (None, "cng", "proportion", "parallel", "gap"),
    "prob": ("logistic", "rank1", "rank1-legacy", "grouped", "pairwise"),
    "refine": (None, "prime", "hetero"),
    "compare": ("auto", True, False),
    "dtype": ("float32", "float64"),
    "variant": ("default", "paper"),
}
PAPER = {"prob": "rank1-legacy", "rank_rule": "cng", "refine": None, "compare": False}


class BCPCA(QueryMixin, FittedModel):
    """Embedding of data whose entries are missing unevenly: PCA by a bias-corrected Gram matrix, nothing imputed.

    The inner product of two cells over the features that both have is divided by the number of features that they
    are expected to share, and the diagonal by the number that each is expected to have. The matrix stays an
    operator: it is never formed, and data stream from memory or disk.

    Parameters
    ----------
    adata
        Object registered with :meth:`setup_anndata` or :meth:`setup_mudata`.
    registry
        Registry of an earlier set-up, to build a model without data.
    n_latent
        Components to compute.
    rank_rule
        None keeps all of them; "cng", "proportion", "parallel" or "gap" keep the first k.
    prob
        Probability that an entry is observed: "logistic", "rank1", "rank1-legacy" (as the authors' code), "grouped"
        (rate of each batch and feature; needs ``batch_key``), "pairwise" (counts of shared features; up to 5,000
        cells), an array (n, D), a pair of factors (n, q) and (D, q), or a callable from cell numbers (m,) to
        probabilities (m, D).
    prob_covariates
        Columns of ``.obs`` and ``.var`` that are added to the logistic predictor.
    refine
        None; "prime" (repeated projection, kept only where it predicts held-out entries better) or "hetero" (diagonal
        re-estimated; for comparison).
    compare
        Also compute the baselines: "auto" (mean imputation up to 50,000 cells, pairwise-complete up to 5,000), True,
        or False.
    min_overlap
        Cells whose mean effective overlap with the others is lower (in features) leave the fit and are placed after
        it.
    oversample
        Columns of the block solver beyond ``n_latent``.
    tol
        Residual of an eigenpair, relative to the largest eigenvalue.
    overlap_tol
        Relative error to which 1 / overlap is factored.
    chunk_size
        Cells read at once; None is about 64 MB.
    dtype
        Type of the products, "float32" or "float64"; sums over cells are float64.
    variant
        "default", or "paper": ``prob="rank1-legacy"``, ``rank_rule="cng"``, no refinement and no baselines.

    Raises
    ------
    SetupError
        For an unknown choice, or a number out of range.

    Examples
    --------
    >>> import cellsmith
    >>> cellsmith.model.BCPCA.setup_anndata(adata, mask="nan")  # doctest: +SKIP
    >>> model = cellsmith.model.BCPCA(adata, n_latent=20)  # doctest: +SKIP
    >>> model.train()  # doctest: +SKIP
    >>> model.get_latent_representation(more)  # doctest: +SKIP

    Notes
    -----
    The unbiased Gram matrix for heterogeneous missingness is that of Ling, Liu and Xue (arXiv 2109.11765); the
    probabilities, the implicit operator and everything around it are this package's own.
    """

    _method = "bcpca"
    _steps = ("statistics", "probability", "overlap", "eigen", "refine", "compare")

    def __init__(
        self,
        adata: Any = None,
        *,
        registry: Mapping[str, Any] | None = None,
        n_latent: int = 50,
        rank_rule: str | None = None,
        prob: Any = "logistic",
        prob_covariates: Sequence[str] = (),
        refine: str | None = None,
        compare: bool | str = "auto",
        min_overlap: float = 10.0,
        oversample: int = 10,
        tol: float = 1e-3,
        overlap_tol: float = 1e-4,
        chunk_size: int | None = None,
        dtype: str = "float32",
        variant: str = "default",
    ) -> None:
        super().__init__(adata, registry)
        given = locals()
        for name, valid in CHOICES.items():
            if (name != "prob" or isinstance(prob, str)) and given[name] not in valid:
                raise SetupError(f"{name}={given[name]!r}. {nearest(given[name], valid)}")
        for name, least in (("n_latent", 1), ("oversample", 0), ("chunk_size", 1), ("min_overlap", 0)):
            if given[name] is not None and not given[name] >= least:
                raise SetupError(f"{name}={given[name]}; expected at least {least}.")
        for name in ("tol", "overlap_tol"):
            if not 0 < given[name] < 1:
                raise SetupError(f"{name}={given[name]}; expected a number between 0 and 1, for example 1e-3.")
        self.init_params_ = self._get_init_params(given)
        options = {name: given[name] for name in fitting.OPTIONS}
        self.options_: dict[str, Any] = {**options, **(PAPER if variant == "paper" else {}), "variant": variant}
        self._check_probability()
        # Kept for new cells: a model that is loaded without data knows its predictors.
        self.covariates_: dict[str, Any] | None = None
        if prob_covariates and adata is not None:
            self.covariates_ = describe_covariates(self._carrier(adata), prob_covariates)
        self.module = self._new_module()
        self._model_summary_string = (
            f"BC-PCA: {self._n_cells()} cells, {int(self.summary_stats['n_vars'])} features, {n_latent} components"
        )

    def _check_probability(self) -> None:
        prob, batch = self.options_["prob"], self._setup_args.get("batch_key")
        if isinstance(prob, str) and prob == "grouped" and batch is None:
            raise SetupError('prob="grouped" needs groups: BCPCA.setup_anndata(adata, batch_key=<column of .obs>).')
        if self.options_["prob_covariates"] and not (isinstance(prob, str) and prob == "logistic"):
            raise SetupError('prob_covariates enter the logistic predictor. Type prob="logistic".')

    @classmethod
    def setup_anndata(
        cls,
        adata: Any,
        *,
        layer: str | None = None,
        mask: Any = "nan",
        batch_key: str | None = None,
        source_registry: Any = None,
    ) -> None:
        """Register an AnnData.

        Parameters
        ----------
        adata
            Cells x features, in memory or backed.
        layer
            Layer with the values (for single-cell counts a log-normalised one); None is ``.X``.
        mask
            "nan" (NaN in dense data, stored NaN in CSR, masked arrays), "zero" (every zero is missing), the name of a
            layer (see :func:`cellsmith.pp.missing_mask`), an array (n, D) with 1 = observed, 0 = missing and fractions
            = probability that the entry informs (it is kept in ``.layers["bcpca_mask"]``), or None (all observed).
        batch_key
            Column of ``.obs`` with the groups of ``prob="grouped"``.
        source_registry
            Registry of a saved model; set by ``load``.

        Raises
        ------
        SetupError
            If layer, mask or column cannot be used; the object is then untouched.
        """
        mask = _prepare(adata, layer=layer, mask=mask, obs=adata.obs, batch_key=batch_key, source=source_registry)
        fields = [scvi_fields.LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False, correct_data_format=False)]
        if batch_key is not None:
            fields.append(scvi_fields.CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key))
        args = {"layer": layer, "mask": mask, "batch_key": batch_key}
        cls._register(adata, fields, args, source_registry=source_registry)

    @classmethod
    def setup_mudata(
        cls,
        mdata: Any,
        *,
        layer: str | None = None,
        mask: Any = "nan",
        batch_key: str | None = None,
        modalities: Mapping[str, str | None] | None = None,
        source_registry: Any = None,
    ) -> None:
        """Register one modality of a MuData.

        Parameters
        ----------
        mdata
            The object.
        layer, mask
            As in :meth:`setup_anndata`, in the modality ``modalities["layer"]``.
        batch_key
            As in :meth:`setup_anndata`.
        modalities
            Argument name -> modality; an argument that is not in it is looked up at the top level.
        source_registry
            Registry of a saved model; set by ``load``.

        Raises
        ------
        SetupError
            If ``modalities`` is None or lacks the layer, or layer, mask or column cannot be used.
        """
        carrier, groups = counts_carrier(mdata, modalities), modality_of(mdata, modalities, "batch_key")
        mask = _prepare(carrier, layer=layer, mask=mask, obs=groups.obs, batch_key=batch_key, source=source_registry)
        fields = [
            scvi_fields.MuDataLayerField(
                REGISTRY_KEYS.X_KEY,
                layer,
                is_count_data=False,
                correct_data_format=False,
                mod_key=modalities["layer"],
                mod_required=True,
            )
        ]
        if batch_key is not None:
            place = modalities.get("batch_key")
            fields.append(scvi_fields.MuDataCategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key, mod_key=place))
        args = {"layer": layer, "mask": mask, "batch_key": batch_key, "modalities": dict(modalities)}
        cls._register(mdata, fields, args, source_registry=source_registry)

    # --- fitting and what is written ------------------------------------------------------------------------------

    def _fit(self, fit: Fit) -> Mapping[str, Any]:
        adata = self.adata
        job = fitting.Job(
            source=self._open(adata, own=True),
            options=self.options_,
            groups=self._groups(adata),
            designs=self._designs(adata),
            fit=fit,
            note=self._note,
        )
        return pack(fitting.run(job))

    def results(self, adata: Any = None) -> _record.Result:
        """Return embedding, overlap and loadings, and the block of ``.uns``.

        Parameters
        ----------
        adata
            Cells; None is the training object.

        Returns
        -------
        What :meth:`write` writes.
        """
        self._require_trained("results")
        answer: Answer = self._answer()
        provenance = self._provenance(inputs={k: v for k, v in self._setup_args.items() if k != "modalities"})
        if adata is None or adata is self.adata:
            return report.of_training(answer, options=self.options_, setup=self._setup_args, provenance=provenance)
        carrier = self._carrier(adata)
        placed = self._place(adata)
        names = np.asarray(carrier.var_names, dtype=object)
        return report.of_new_cells(
            answer,
            placed,
            features=(self._training_genes(), names),
            options=self.options_,
            setup=self._setup_args,
            provenance=provenance,
        )


def _prepare(adata: Any, *, layer: str | None, mask: Any, obs: Any, batch_key: str | None, source: Any) -> Any:
    """Check everything before anything is registered, and return the mask in the form that a registry can hold."""
    check_covariates(obs, categorical={"batch_key": batch_key})
    check_registration(adata, layer=layer, mask=mask, quiet=source is not None)
    return mask if mask is None or isinstance(mask, str) else keep_mask(adata, mask)
