"""GRIT: the model class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cellsmith import _record
from cellsmith._errors import SetupError, nearest
from cellsmith.model._fitted import Fit, FittedModel
from cellsmith.model.grit import equations as eq
from cellsmith.model.grit.anchors import ANCHORS
from cellsmith.model.grit.defaults import SCORE_TEMPERATURE, SMOOTHNESS_WEIGHT, Default
from cellsmith.model.grit.fitting import FittingMixin
from cellsmith.model.grit.queries import QueryMixin
from cellsmith.model.grit.results import ResultsMixin
from cellsmith.model.grit.setup import check_setup, fields_of

__all__ = ["GRIT"]

CHOICES = {
    "laplacian": ("sym", "rw", "comb"),
    "space": ("auto", *eq.SPACES),
    "anchors": ANCHORS,
    "prior_correction": (None, "half"),
    "calibrate": ("auto", "none"),
    "solver": ("auto", "lu", "cg", "chebyshev"),
    "dtype": ("float32", "float64"),
    "variant": ("default", "paper"),
}


class GRIT(FittingMixin, QueryMixin, ResultsMixin, FittedModel):
    """Refinement of class scores over the cell graph, with error bounds, calibration and rejection.

    The refined scores minimise a convex objective: stay close to the given scores, and be alike in neighbouring cells.
    One linear solve, no training, no labels. A smooth wrong answer is more convincing than a noisy wrong one: every
    result keeps the raw label beside the refined one.

    Parameters
    ----------
    adata
        Object registered with :meth:`setup_anndata` or :meth:`setup_mudata`.
    registry
        Registry of an earlier set-up, to build a model without data.
    smoothness_weight
        lambda >= 0. With "sym" and "rw" it means the same on every graph; "comb" scales with the mean degree. No
        default with ``variant="paper"``.
    laplacian
        "sym" (normalised), "rw" (random walk; keeps rows on the simplex) or "comb" (D - A).
    fidelity
        How much each cell keeps to its own scores: "uniform"; "confidence" (less where its scores are flat: helps
        against noise, hurts against confident errors); a column of ``.obs`` or an array (n,) of weights >= 0.
    space
        What the scores are: "prob", "ovr" (independent probabilities of each class), "similarity", "logit", "raw"
        (used as given), or "auto" to infer it, which is recorded.
    score_temperature
        Unit of similarities and logits in the softmax. Must be given for similarities; 0.05 for CLIP-style ones.
    n_neighbors
        Neighbours of a graph that is built here, the cell itself counted, as in scanpy.
    anchors
        Use of registered labels: "split" (half are held fixed and set the temperature, half calibrate rejections; below
        50 all are held), "clamp" or "calibrate" (of 50 or more, a half, at most 50, sets the temperature).
    prior_correction
        None, or "half": class masses are evened out with exponent 0.5.
    protect
        None, or the largest share of its raw cells that a class may lose, in [0, 1).
    calibrate
        "auto" (from anchors, else from score halves, else none) or "none".
    solver
        "auto" (LU up to 3,000 cells, else block CG), "lu", "cg" or "chebyshev".
    tol
        Relative residual of the iterative solvers.
    dtype
        "float32" or "float64": precision of iterations and stored scores. Certificates are always float64.
    variant
        "default", or "paper": L = D - A, W = I, scores used as given, neither guards nor calibration.
    store_rep
        Keep the embedding of the training cells, which :meth:`predict` needs for new ones.

    Raises
    ------
    SetupError
        If an option does not exist or is out of range.
    """

    _method = "grit"
    _writes_beside = "scores_key"
    _steps = ("scores", "graph", "solve", "certify", "calibrate")

    def __init__(
        self,
        adata: Any = None,
        *,
        registry: Mapping[str, Any] | None = None,
        smoothness_weight: float = SMOOTHNESS_WEIGHT,
        laplacian: str = "sym",
        fidelity: str | Sequence[float] | np.ndarray = "uniform",
        space: str = "auto",
        score_temperature: float = SCORE_TEMPERATURE,
        n_neighbors: int = 15,
        anchors: str = "split",
        prior_correction: str | None = None,
        protect: float | None = None,
        calibrate: str = "auto",
        solver: str = "auto",
        tol: float = 1e-4,
        dtype: str = "float32",
        variant: str = "default",
        store_rep: bool = True,
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "adata", "registry", "__class__")}
        _check_options(given)  # first, because scvi-tools keeps every model that was begun
        super().__init__(adata, registry)
        self.params_ = {k: float(v) if isinstance(v, Default) else v for k, v in given.items()}
        self.temperature_given_ = not isinstance(score_temperature, Default)
        if variant == "paper":
            self.params_ |= {"laplacian": "comb", "fidelity": "uniform", "prior_correction": None, "protect": None}
            self.params_ |= {"calibrate": "none", "space": "raw"}
        self.classes_: tuple[str, ...] = ()
        self.space_, self.summary_ = "", {}
        self._halves: tuple[Any, Any] | None = None
        self.module = self._new_module()
        self._model_summary_string = f"GRIT: {laplacian}, smoothness_weight {float(smoothness_weight):g}, {variant}"
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls,
        adata: Any,
        *,
        scores_key: str,
        neighbors_key: str | None = None,
        use_rep: str = "X_pca",
        labels_key: str | None = None,
        unlabeled_category: str = "unknown",
        batch_key: str | None = None,
        source_registry: Any = None,
    ) -> None:
        """Register scores, graph and, on request, anchors and batches.

        Parameters
        ----------
        adata
            The object. ``.X`` is never read.
        scores_key
            Key of ``.obsm``: (n, C) array, DataFrame, sparse or dask. Class names are the columns of a DataFrame, or
            ``.uns[scores_key]["classes"]``.
        neighbors_key
            A graph: "neighbors" is scanpy's; any key of ``.uns`` or ``.obsp``. None builds one from ``use_rep``; a
            graph that nobody named is never used.
        use_rep
            Key of ``.obsm``, the embedding (n, d) of a graph that is built here, and of new cells.
        labels_key
            Column of ``.obs`` with known labels (anchors). A label outside the classes is "known to be something
            else", which calibrates and is never held fixed.
        unlabeled_category
            Value of that column that means "not known"; so does a missing one.
        batch_key
            Column of ``.obs`` for reports and for a rejection by batch; the graph decides whether batches mix.
        source_registry
            Registry of a saved model; set by ``load``.

        Raises
        ------
        SetupError
            If a key does not exist, or the scores carry no class names.
        """
        args = {k: v for k, v in locals().items() if k not in ("cls", "adata", "source_registry", "__class__")}
        check_setup(adata, args)
        cls._register(adata, fields_of(adata, args), args, source_registry=source_registry)

    @classmethod
    def setup_mudata(
        cls,
        mdata: Any,
        *,
        scores_key: str,
        neighbors_key: str | None = None,
        use_rep: str = "X_pca",
        labels_key: str | None = None,
        unlabeled_category: str = "unknown",
        batch_key: str | None = None,
        modalities: Mapping[str, str | None] | None = None,
        source_registry: Any = None,
    ) -> None:
        """Register a MuData; results go into the modality of the scores.

        Parameters
        ----------
        mdata
            The object.
        scores_key, neighbors_key, use_rep
            As in :meth:`setup_anndata`.
        labels_key, unlabeled_category, batch_key
            As in :meth:`setup_anndata`.
        modalities
            Argument name -> modality; an argument that is not in it is looked up at the top level. It must name the
            modality of ``scores_key``.
        source_registry
            Registry of a saved model; set by ``load``.

        Raises
        ------
        SetupError
            If ``modalities`` is None or a key does not exist, or the cells of two places differ.
        """
        args = {k: v for k, v in locals().items() if k not in ("cls", "mdata", "source_registry", "__class__")}
        check_setup(mdata, args)
        cls._register(mdata, fields_of(mdata, args), args, source_registry=source_registry)

    def _fit(self, fit: Fit) -> Mapping[str, Any]:
        return self._refine(fit)

    def use_score_halves(self, first: Any, second: Any) -> None:
        """Hand over scores from two independent halves of the data; the next :meth:`train` calibrates with them.

        Parameters
        ----------
        first, second
            (n, C) arrays or DataFrames in the space of the scores, from disjoint genes or thinned counts.
        """
        self._halves = (first, second)

    def results(self, adata: Any = None) -> _record.Result:
        """Return what :meth:`write` writes: labels, confidences, refined scores, and the block of ``.uns``.

        Parameters
        ----------
        adata
            Cells; None is the training object. New cells get labels and scores, and no flow.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        self._require_trained("results")
        return self._results(adata)

    def get_var_names(self, legacy_mudata_format: bool = False) -> Any:
        """Return the names of the genes; none where the model holds no data, since no gene is ever read.

        Parameters
        ----------
        legacy_mudata_format
            As in scvi-tools.
        """
        return super().get_var_names(legacy_mudata_format) if self.adata is not None else np.array([], dtype=object)

    def _n_cells(self) -> int:
        return len(self._value("raw_label"))

    def _labels_frame(self, codes: np.ndarray, names: Any) -> pd.Series:
        return pd.Series(pd.Categorical.from_codes(codes, categories=list(self.classes_)), index=names, name="grit")


def _check_options(given: Mapping[str, Any]) -> None:
    for name, valid in CHOICES.items():
        if given[name] not in valid:
            raise SetupError(f"{name}={given[name]!r}. {nearest(given[name], valid)}")
    weight = given["smoothness_weight"]
    if given["variant"] == "paper" and isinstance(weight, Default):
        raise SetupError(
            "variant='paper' has no default smoothness_weight, because the published text gives none; expected a "
            "number. Type for example smoothness_weight=0.1, which an earlier public implementation uses."
        )
    positive = {"score_temperature": given["score_temperature"], "tol": given["tol"]}
    for name, value in {"smoothness_weight": weight, **positive}.items():
        if not (np.isfinite(value) and value >= 0) or (name in positive and value == 0):
            raise SetupError(f"{name}={value}; expected a finite number {'> 0' if name in positive else '>= 0'}.")
    protect, k = given["protect"], given["n_neighbors"]
    if protect is not None and not 0 <= protect < 1:
        raise SetupError(f"protect={protect}; expected the share of its cells a class may lose, in [0, 1), or None.")
    if int(k) != k or k < 2:
        raise SetupError(f"n_neighbors={k}; expected an integer of at least 2: the cell itself counts, as in scanpy.")
