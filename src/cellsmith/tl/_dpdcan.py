"""The door of DP-DCAN: one line from raw counts to clusters, with a statement of privacy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cellsmith import _record
from cellsmith.tl._door import open_door

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["dpdcan"]

WRITTEN = {
    "obs": ("{k}", "{k}_confidence", "{k}_margin", "{k}_entropy"),
    "obsm": ("X_{k}", "{k}_proba"),
}


def dpdcan(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    n_clusters: int | None = None,
    target_epsilon: float = 4.0,
    key_added: str = "dpdcan",
    copy: bool = False,
    overwrite: bool = False,
    rng: Any = 0,
    random_state: int | None = None,
    model_kwargs: Mapping[str, Any] = {},
    train_kwargs: Mapping[str, Any] = {},
) -> AnnData | None:
    """Embed and cluster cells with a differentially private encoder.

    What is written here belongs to the owner of the cells: embeddings and clusters of training cells must not leave the
    building. To hand on a private encoder use :class:`cellsmith.model.DPDCAN` and its ``save``.

    Parameters
    ----------
    adata
        Raw counts, cells x genes.
    layer
        Layer with the counts; None is ``.X``.
    batch_key
        Column of ``.obs`` for the decoder; you declare its categories public.
    n_clusters
        Number of clusters; None takes Leiden, on your side.
    target_epsilon
        Hard budget, for adding or removing one cell, or one donor with ``model_kwargs={"privacy_unit_key": ...}``.
    key_added
        Name of the outputs.
    copy
        Write into a copy and return it.
    overwrite
        Replace what another method wrote under these names.
    rng
        Seed of weights and of the local clusters; noise comes from the operating system.
    random_state
        Another name for ``rng``, as in older scanpy.
    model_kwargs
        Arguments of :class:`cellsmith.model.DPDCAN` and those of its ``setup_anndata`` that this function lacks, such
        as ``gene_panel``.
    train_kwargs
        Arguments of ``train``.

    Returns
    -------
    None, or the copy. Written (k = ``key_added``): ``.obs["k"]`` clusters, with ``k_confidence``, ``k_margin`` and
    ``k_entropy``; ``.obsm["X_k"]`` and ``.obsm["k_proba"]``; ``.uns["k"]`` parameters, classes, provenance and the
    block ``privacy``: epsilon and delta of the executed events, output by output.

    Raises
    ------
    SetupError
        If counts, panel or columns cannot be used, or a mapping has an unknown name.
    PrivacyError
        If no promise could be kept.

    Examples
    --------
    >>> import cellsmith
    >>> adata = cellsmith.datasets.kang_pbmc()
    >>> cellsmith.tl.dpdcan(adata, n_clusters=8, model_kwargs={"gene_panel": 500})  # doctest: +SKIP
    """
    from cellsmith.model import DPDCAN

    # Before any budget is spent, not after.
    _record.check_free(adata, key_added, "dpdcan", names=WRITTEN, overwrite=overwrite)
    model, _ = open_door(
        DPDCAN,
        adata,
        setup={"layer": layer, "batch_key": batch_key},
        model_kwargs={"n_clusters": n_clusters, "target_epsilon": target_epsilon, **model_kwargs},
        train_kwargs=train_kwargs,
        queries={},
        copy=copy,
        rng=rng if random_state is None else random_state,
    )
    model.write(key_added=key_added, overwrite=overwrite)
    return model.adata if copy else None
