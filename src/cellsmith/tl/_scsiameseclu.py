"""The door of scSiameseClu: one line from raw counts to clusters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cellsmith import _keys, _record
from cellsmith.tl._door import open_door

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["scsiameseclu"]


def scsiameseclu(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    n_clusters: int | str = "auto",
    neighbors_key: str | None = None,
    key_added: str = "scsiameseclu",
    copy: bool = False,
    overwrite: bool = False,
    rng: Any = 0,
    random_state: int | None = None,
    model_kwargs: Mapping[str, Any] = {},
    train_kwargs: Mapping[str, Any] = {},
) -> AnnData | None:
    """Cluster cells by two perturbed views of each, a cell graph and optimal transport; no label is read.

    Parameters
    ----------
    adata
        Raw counts, cells x genes.
    layer
        Layer with the counts; None is ``.X``.
    batch_key
        Column of ``.obs`` whose levels the clusters should not follow.
    n_clusters
        A number (at most that many clusters), or "auto".
    neighbors_key
        A cell graph of your own, as scanpy names it; None builds one.
    key_added
        Name of the outputs.
    copy
        Write into a copy and return it.
    overwrite
        Replace what another method wrote under these names.
    rng
        Seed of training.
    random_state
        Another name for ``rng``, as in older scanpy.
    model_kwargs
        Arguments of :class:`cellsmith.model.ScSiameseClu` and those of its ``setup_anndata`` that this function lacks.
    train_kwargs
        Arguments of ``train``.

    Returns
    -------
    None, or the copy. Written (k = ``key_added``): ``.obs["k"]`` clusters, "0" the largest, with ``k_confidence``,
    ``k_margin``, ``k_entropy`` and ``k_rejected``; ``.obsm["X_k"]`` the embedding and ``.obsm["k_proba"]`` soft
    clusters; ``.obsp["k_connectivities"]`` and ``.obsp["k_distances"]`` the cell graph, which scanpy's functions take
    with ``neighbors_key=k``; ``.uns["k"]`` parameters, how the number of clusters was found, and provenance.

    Raises
    ------
    SetupError
        If the counts, a column or the graph cannot be used, or a mapping has an unknown name.

    Examples
    --------
    >>> import cellsmith
    >>> adata = cellsmith.datasets.kang_pbmc()
    >>> cellsmith.tl.scsiameseclu(adata, batch_key="condition")  # doctest: +SKIP
    """
    from cellsmith.model import ScSiameseClu
    from cellsmith.model.scsiameseclu.report import WRITTEN

    # Before the minutes of training, not after them.
    _record.check_free(adata, _keys.validate(key_added), "scsiameseclu", names=WRITTEN, overwrite=overwrite)
    model, _ = open_door(
        ScSiameseClu,
        adata,
        setup={"layer": layer, "batch_key": batch_key, "neighbors_key": neighbors_key},
        model_kwargs={"n_clusters": n_clusters, **model_kwargs},
        train_kwargs=train_kwargs,
        queries={},
        copy=copy,
        rng=rng if random_state is None else random_state,
    )
    model.write(key_added=key_added, overwrite=overwrite)
    return model.adata if copy else None
