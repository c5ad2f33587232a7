"""The door of GRIT: one line from scores to refined labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from cellsmith import _keys
from cellsmith._errors import SetupError, nearest
from cellsmith._rng import resolve_seed
from cellsmith.model.grit.defaults import SCORE_TEMPERATURE, SMOOTHNESS_WEIGHT

if TYPE_CHECKING:
    from anndata import AnnData

    from cellsmith.model.grit.sources import Scores

__all__ = ["grit"]


def grit(
    adata: AnnData,
    scores: Any,
    *,
    classes: Sequence[str] | None = None,
    neighbors_key: str | None = None,
    use_rep: str = "X_pca",
    n_neighbors: int = 15,
    labels_key: str | None = None,
    unlabeled_category: str = "unknown",
    batch_key: str | None = None,
    smoothness_weight: float = SMOOTHNESS_WEIGHT,
    laplacian: str = "sym",
    fidelity: Any = "uniform",
    space: str = "auto",
    score_temperature: float = SCORE_TEMPERATURE,
    anchors: str = "split",
    prior_correction: str | None = None,
    protect: float | None = None,
    calibrate: str = "auto",
    split_scores: tuple[Any, Any] | None = None,
    solver: str = "auto",
    tol: float = 1e-4,
    variant: str = "default",
    key_added: str = "grit",
    copy: bool = False,
    overwrite: bool = False,
    rng: Any = 0,
    random_state: int | None = None,
) -> AnnData | None:
    """Refine the scores of any annotator over the cell graph, with error bounds.

    A smooth wrong answer is more convincing than a noisy wrong one: the raw label stays beside the refined one, in
    ``.obs["grit_raw"]``. Only results are written; scores, graph and ``.X`` are not touched, ``.X`` is not even read.

    Parameters
    ----------
    adata
        Cells x genes.
    scores
        Scores of classes (n, C): a key of ``.obsm``, an array, a DataFrame (matched by obs_names), a Series of hard
        labels, :class:`~cellsmith.model.grit.sources.Scores`, or a function of ``adata`` that returns these.
    classes
        Names of the classes, for scores that carry none.
    neighbors_key
        A graph: "neighbors" is scanpy's; None builds one from ``use_rep``.
    use_rep
        Key of ``.obsm`` with the embedding of that graph.
    n_neighbors
        Its neighbours, the cell itself counted, as in scanpy.
    labels_key, unlabeled_category
        Column of ``.obs`` with known labels, and its value for "not known".
    batch_key
        Column of ``.obs`` for a report by batch.
    smoothness_weight
        lambda; no default with ``variant="paper"``.
    laplacian
        "sym", "rw" or "comb".
    fidelity
        "uniform", "confidence", a column of ``.obs`` or an array of weights.
    space
        "prob", "ovr", "similarity", "logit", "raw", or "auto" to infer it.
    score_temperature
        Unit of similarities and logits; must be given for similarities.
    anchors
        Use of known labels: "split", "clamp" or "calibrate".
    prior_correction
        None or "half".
    protect
        None, or the largest share of its raw cells that a class may lose.
    calibrate
        "auto" or "none".
    split_scores
        Scores from two independent halves of the data (keys of ``.obsm``, arrays or DataFrames), to calibrate without
        labels.
    solver
        "auto", "lu", "cg" or "chebyshev".
    tol
        Relative residual of the iterative solvers.
    variant
        "default" or "paper".
    key_added
        Name of what is written.
    copy
        Return a copy with the results instead of writing into ``adata``.
    overwrite
        Replace what another method wrote under these names.
    rng
        Seed of the anchor split (and of the approximate neighbour search above 50,000 cells).
    random_state
        Another name for ``rng``, as in older scanpy.

    Returns
    -------
    None, or the copy. Written are, with k = ``key_added``: ``.obs[k]``, ``.obs[k_raw]``, ``.obs[k_confidence]``,
    ``.obs[k_margin]`` and ``.obs[k_entropy]``; ``.obsm[k_proba]`` (n, C); ``.uns[k]``; and the graph in ``.obsp``, if
    it was built here.

    Raises
    ------
    SetupError
        If scores, graph, labels or an option cannot be used. Nothing is then written.
    ConvergenceError
        If the solver does not reach ``tol``.

    Examples
    --------
    >>> cellsmith.tl.grit(adata, "scores")  # doctest: +SKIP
    >>> adata.obs[["grit_raw", "grit", "grit_confidence"]]  # doctest: +SKIP
    """
    from cellsmith.model import GRIT

    _keys.validate(key_added)
    given = _resolve(adata, scores, classes)
    setup = {"neighbors_key": neighbors_key, "use_rep": use_rep, "labels_key": labels_key, "batch_key": batch_key}
    skeleton, scores_key = _skeleton(adata, given, key=scores, setup=setup, fidelity=fidelity)
    GRIT.setup_anndata(skeleton, scores_key=scores_key, unlabeled_category=unlabeled_category, **setup)
    model = None
    try:
        model = GRIT(
            skeleton,
            smoothness_weight=smoothness_weight,
            laplacian=laplacian,
            fidelity=fidelity,
            space=given.space if space == "auto" else space,
            score_temperature=score_temperature,
            n_neighbors=n_neighbors,
            anchors=anchors,
            prior_correction=prior_correction,
            protect=protect,
            calibrate=calibrate,
            solver=solver,
            tol=tol,
            variant=variant,
            store_rep=False,
        )
        if split_scores is not None:
            model.use_score_halves(*(adata.obsm[s] if isinstance(s, str) else s for s in split_scores))
        model.train(seed=resolve_seed(rng if random_state is None else random_state))
        result = model._results(None, check=False)  # the graph was read a moment ago
        target = adata.copy() if copy else adata
        result = replace(result, uns={**result.uns, "source": given.source})
        model.write(target, result=result, key_added=key_added, overwrite=overwrite)
    finally:
        # scvi-tools keeps every registered object for the life of the process
        GRIT._setup_adata_manager_store.pop(skeleton.uns["_scvi_uuid"], None)
        if model is not None:
            GRIT._per_instance_manager_store.pop(model.id, None)
    return target if copy else None


def _resolve(adata: Any, scores: Any, classes: Sequence[str] | None) -> Scores:
    """Return scores in the order of the cells, with names of classes."""
    from cellsmith.model.grit.inputs import class_names, dense, reindexed, stored_classes
    from cellsmith.model.grit.sources import Scores, from_labels

    if hasattr(adata, "mod"):
        raise SetupError(
            "The object is a MuData; expected an AnnData. Type GRIT.setup_mudata(mdata, ..., modalities=...), or pass "
            "one modality, mdata.mod[name]."
        )
    source = "array"
    if callable(scores) and not isinstance(scores, Scores):
        source = getattr(scores, "__name__", type(scores).__name__)
        scores = scores(adata)
    if isinstance(scores, pd.Series):
        scores = from_labels(scores)
    if isinstance(scores, Scores):
        names = scores.obs_names
        where = f"The scores of {scores.source!r}"
        values = scores.values if names is None else reindexed(scores.values, names, adata.obs_names, where=where)
        return replace(scores, values=values, obs_names=None)
    where = "scores"
    if isinstance(scores, str):
        if scores not in adata.obsm:
            hint = f"Type from_labels(adata.obs[{scores!r}]) for hard labels. " if scores in adata.obs else ""
            raise SetupError(f"scores={scores!r} is not in .obsm. {hint}{nearest(scores, adata.obsm)}")
        classes = stored_classes(adata.uns, scores) if classes is None else classes
        where, source, scores = f".obsm[{scores!r}]", f"obsm:{scores}", adata.obsm[scores]
    found = class_names(scores if hasattr(scores, "shape") else dense(scores, where=where), classes, where=where)
    if isinstance(scores, pd.DataFrame):
        scores = reindexed(scores, scores.index, adata.obs_names, where=where)
    return Scores(dense(scores, where=where), found, "auto", None, source)


def _skeleton(
    adata: AnnData, given: Scores, *, key: Any, setup: Mapping[str, Any], fidelity: Any
) -> tuple[AnnData, str]:
    """Return an object that shares the arrays of the user's, so that registration never touches it."""
    from anndata import AnnData

    if given.values.shape[0] != adata.n_obs:
        raise SetupError(f"The scores have {given.values.shape[0]} rows; expected {adata.n_obs}, one a cell.")
    columns = [setup["labels_key"], setup["batch_key"]]
    if isinstance(fidelity, str) and fidelity not in ("uniform", "confidence"):
        columns.append(fidelity)
    for column in columns:
        if column is not None and column not in adata.obs:
            raise SetupError(f"{column!r} is not a column of .obs. {nearest(column, adata.obs.columns)}")
    scores_key = key if isinstance(key, str) else "scores"
    graphs = {k: v for k, v in adata.uns.items() if isinstance(v, Mapping) and "connectivities_key" in v}
    skeleton = AnnData(
        obs=adata.obs[list(dict.fromkeys(c for c in columns if c is not None))].copy(),
        var=pd.DataFrame(index=adata.var_names),
        obsm={**adata.obsm, scores_key: given.values},
        obsp=dict(adata.obsp) if setup["neighbors_key"] is not None else {},
        uns={**graphs, scores_key: {"classes": list(given.classes)}},
    )
    return skeleton, scores_key
