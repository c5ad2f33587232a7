"""Topics of new cells under a trained model, written as `tl.sce2tm` writes those of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellsmith import _keys, _record

if TYPE_CHECKING:
    from anndata import AnnData

    from cellsmith.model import SCE2TM

__all__ = ["sce2tm_transfer"]


def sce2tm_transfer(
    adata: AnnData,
    *,
    model: SCE2TM,
    min_gene_overlap: float = 0.5,
    bulk: bool = False,
    key_added: str = "sce2tm",
    copy: bool = False,
) -> AnnData | None:
    """Give new cells the topics of a trained model, without training.

    Parameters
    ----------
    adata
        Raw counts of the new cells, in the layer that the model was trained on; genes in any order, matched by name.
    model
        Trained :class:`cellsmith.model.SCE2TM`; not changed.
    min_gene_overlap
        Share of the modelled genes that ``adata`` must have. Absent ones get their mean in training.
    bulk
        The rows are bulk samples, at least 10: any non-negative values, and scores z-scored over them.
    key_added
        Name of the outputs.
    copy
        Write into a copy and return it.

    Returns
    -------
    None, or the copy. Written are the outputs of :func:`cellsmith.tl.sce2tm`, with ``.obs[key_gene_overlap]``: the
    share of the modelled genes that the cells have, by which ``key_confidence`` is multiplied. ``.uns[key]["query"]``
    lists the missing genes, and the batches that the model does not know (topics do not depend on them).

    Raises
    ------
    NotTrainedError
        If the model is not trained.
    SetupError
        If the counts cannot be used, or too few genes match.

    Examples
    --------
    >>> cellsmith.tl.sce2tm_transfer(new_cells, model=model)  # doctest: +SKIP
    """
    from cellsmith.model.sce2tm.report import query_result

    _keys.validate(key_added)
    query = model.map_query(adata, min_gene_overlap=min_gene_overlap, bulk=bulk)
    goal = adata.copy() if copy else adata
    _record.write(goal, key_added, query_result(model, query, adata.var_names))
    return goal if copy else None
