"""Clusters of new cells under a trained model, written as `tl.scsiameseclu` writes those of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellsmith import _keys

if TYPE_CHECKING:
    from anndata import AnnData

    from cellsmith.model import ScSiameseClu

__all__ = ["scsiameseclu_transfer"]


def scsiameseclu_transfer(
    adata: AnnData,
    *,
    model: ScSiameseClu,
    use_graph: bool = True,
    reject_below: float | None = None,
    key_added: str = "scsiameseclu",
    copy: bool = False,
) -> AnnData | None:
    """Give new cells the clusters of a trained model, each by itself and without training.

    Parameters
    ----------
    adata
        Raw counts of the new cells, in the layer that the model was trained on; genes in any order, matched by name.
    model
        Trained :class:`cellsmith.model.ScSiameseClu`; not changed.
    use_graph
        Whether the nearest training cells take part.
    reject_below
        Confidence below which ``key_rejected`` is true; None marks no cell.
    key_added
        Name of the outputs.
    copy
        Write into a copy and return it.

    Returns
    -------
    None, or the copy. Written are the outputs of :func:`cellsmith.tl.scsiameseclu` without a graph.

    Raises
    ------
    NotTrainedError
        If the model is not trained.
    SetupError
        If the counts cannot be used, or too few genes match.

    Examples
    --------
    >>> cellsmith.tl.scsiameseclu_transfer(new_cells, model=model)  # doctest: +SKIP
    """
    from cellsmith.model.scsiameseclu.report import cluster_result

    _keys.validate(key_added)
    model._require_trained("results")
    result = cluster_result(model, adata, use_graph=use_graph, reject_below=reject_below)
    goal = adata.copy() if copy else adata
    model.write(goal, result=result, key_added=key_added)
    return goal if copy else None
