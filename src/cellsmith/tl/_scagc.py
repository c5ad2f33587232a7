"""The door of SCAGC: one line from raw counts to a graph and clusters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cellsmith import _keys
from cellsmith.tl._door import open_door

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["scagc"]


def scagc(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    n_clusters: int | str | None = "auto",
    use_rep: str | None = None,
    key_added: str = "scagc",
    copy: bool = False,
    overwrite: bool = False,
    rng: Any = 0,
    random_state: int | None = None,
    model_kwargs: Mapping[str, Any] = {},
    train_kwargs: Mapping[str, Any] = {},
) -> AnnData | None:
    """Cluster cells on a graph with few hubs, learned or (``train_kwargs={"max_epochs": 0}``) formed without training.

    Parameters
    ----------
    adata
        Raw counts, cells x genes.
    layer
        Layer with the counts; None is ``.X``.
    batch_key
        Column of ``.obs``: an input of the decoder; every batch gives candidates to every cell.
    n_clusters
        "auto": clusters are merged until marker genes separate all; "stability"; a number; None: embedding and graph.
    use_rep
        Key of ``.obsm`` in which the first candidates are near; None: 20 components of Pearson residuals.
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
        Arguments of :class:`cellsmith.model.SCAGC` and those of its ``setup_anndata`` that this function lacks.
    train_kwargs
        Arguments of ``train``.

    Returns
    -------
    None, or the copy. Written (k = ``key_added``): ``.obs["k"]`` clusters ("0" the largest), with ``k_confidence``,
    ``k_margin`` and ``k_entropy``; ``.obsm["k_proba"]`` cells x clusters; ``.obsm["X_k"]`` latents;
    ``.obsp["k_connectivities"]`` and ``["k_distances"]``; ``.uns["k"]``, so that scanpy takes ``neighbors_key=k``.

    Raises
    ------
    SetupError
        If the counts, a column or the embedding cannot be used, or a mapping has an unknown name.

    Examples
    --------
    >>> import cellsmith
    >>> adata = cellsmith.datasets.kang_pbmc()
    >>> cellsmith.tl.scagc(adata, train_kwargs={"max_epochs": 0})  # doctest: +SKIP
    """
    from cellsmith.model import SCAGC

    # Before the minutes of training, not after them.
    _keys.validate(key_added)
    model, _ = open_door(
        SCAGC,
        adata,
        setup={"layer": layer, "batch_key": batch_key, "use_rep": use_rep},
        model_kwargs={"n_clusters": n_clusters, **model_kwargs},
        train_kwargs=train_kwargs,
        queries={},
        copy=copy,
        rng=rng if random_state is None else random_state,
    )
    model.write(key_added=key_added, overwrite=overwrite)
    return model.adata if copy else None
