"""The door of scE2TM: one line from raw counts to topics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cellsmith import _record
from cellsmith.tl._door import open_door

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["sce2tm"]


def sce2tm(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    n_topics: int | None = None,
    external_obsm_key: str | None = None,
    key_added: str = "sce2tm",
    copy: bool = False,
    overwrite: bool = False,
    rng: Any = 0,
    random_state: int | None = None,
    model_kwargs: Mapping[str, Any] = {},
    train_kwargs: Mapping[str, Any] = {},
) -> AnnData | None:
    """Find topics of gene expression: every cell a mixture of topics, every topic a list of genes.

    Parameters
    ----------
    adata
        Raw counts, cells x genes.
    layer
        Layer with the counts; None is ``.X``.
    batch_key
        Column of ``.obs`` whose levels get an offset in the decoder. Never the condition of interest.
    n_topics
        Number of topics; None takes it from the number of cells alone.
    external_obsm_key
        Key of ``.obsm`` with an embedding from elsewhere that may guide the topics, weighed by what it is worth.
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
        Arguments of :class:`cellsmith.model.SCE2TM` and those of its ``setup_anndata`` that this function lacks.
    train_kwargs
        Arguments of ``train``.

    Returns
    -------
    None, or the copy. Written (k = ``key_added``): ``.obsm["X_k"]`` proportions and ``.obsm["k_mu"]`` scores, both
    cells x topics; ``.obs["k"]`` the largest topic, with ``k_confidence``, ``k_margin`` and ``k_entropy``;
    ``.varm["k_loadings"]`` genes x topics, 0 for genes that are not modelled; ``.uns["k"]`` parameters, names of the
    topics, their top genes, what the external view was worth, and provenance.

    Raises
    ------
    SetupError
        If the counts, a column or the embedding cannot be used, a mapping has an unknown name, or ``key_added`` is
        taken.

    Examples
    --------
    >>> import cellsmith
    >>> adata = cellsmith.datasets.kang_pbmc()
    >>> cellsmith.tl.sce2tm(adata, n_topics=20)  # doctest: +SKIP
    """
    from cellsmith.model import SCE2TM
    from cellsmith.model.sce2tm.report import WRITTEN

    # Before the minutes of training, not after them.
    _record.check_free(adata, key_added, "sce2tm", names=WRITTEN, overwrite=overwrite)
    model, _ = open_door(
        SCE2TM,
        adata,
        setup={"layer": layer, "batch_key": batch_key, "external_obsm_key": external_obsm_key},
        model_kwargs={"n_topics": n_topics, **model_kwargs},
        train_kwargs=train_kwargs,
        queries={},
        copy=copy,
        rng=rng if random_state is None else random_state,
    )
    model.write(key_added=key_added, overwrite=overwrite)
    return model.adata if copy else None
