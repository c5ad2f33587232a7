"""The door of SCDD: one line from labelled counts to a few profiles a class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cellsmith import _keys
from cellsmith._errors import SetupError
from cellsmith.tl._door import open_door

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["scdd"]


def scdd(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    labels_key: str,
    n_per_class: int | Mapping[str, int] | None = 10,
    key_added: str = "scdd",
    copy: bool = False,
    rng: Any = 0,
    random_state: int | None = None,
    model_kwargs: Mapping[str, Any] = {},
    train_kwargs: Mapping[str, Any] = {},
    distill_kwargs: Mapping[str, Any] = {},
) -> AnnData:
    """Distil labelled cells into a few profiles a class that train classifiers in their place.

    Nothing to do with the Bioconductor package scDD, which tests for differential distributions.

    Parameters
    ----------
    adata
        Raw counts, cells x genes.
    layer
        Layer with the counts; None is ``.X``.
    batch_key
        Column of ``.obs`` that encoder and decoder read.
    labels_key
        Column of ``.obs`` with the classes; cells without a label train the autoencoder only.
    n_per_class
        Profiles of a class: a number for all, or class -> number; None where ``distill_kwargs`` has ``ratio``.
    key_added
        Name of the block in ``.uns`` of the answer, and of its columns.
    copy
        Register a copy, so that not even registration columns are added to ``adata``.
    rng
        Seed of training and distillation.
    random_state
        Another name for ``rng``, as in older scanpy.
    model_kwargs
        Arguments of :class:`cellsmith.model.SCDD` and those of its ``setup_anndata`` that this function lacks.
    train_kwargs
        Arguments of ``train``.
    distill_kwargs
        Arguments of ``distill``. To distil one data set several times train the class once and call that.

    Returns
    -------
    AnnData of profiles: integer counts in ``.X``, what classifiers read in ``.layers["scdd_log"]``, labels, and which
    cells each profile stands for in ``.uns["scdd"]``; see :meth:`cellsmith.model.SCDD.distill`.

    Raises
    ------
    SetupError
        If the counts or a column cannot be used, or a mapping has an unknown name.

    Examples
    --------
    >>> import cellsmith
    >>> adata = cellsmith.datasets.pbmc68k_counts()
    >>> small = cellsmith.tl.scdd(adata, labels_key="cell_type", n_per_class=5)  # doctest: +SKIP
    """
    from cellsmith.model import SCDD

    # Before the minutes of training, not after them.
    _keys.validate(key_added)
    for name in ("n_per_class", "key_added"):
        if name in distill_kwargs:
            raise SetupError(f"distill_kwargs names {name!r}, which this function takes itself. Type {name}=...")
    model, seed = open_door(
        SCDD,
        adata,
        setup={"layer": layer, "batch_key": batch_key, "labels_key": labels_key},
        model_kwargs=model_kwargs,
        train_kwargs=train_kwargs,
        queries={"distill_kwargs": (SCDD.distill, distill_kwargs)},
        copy=copy,
        rng=rng if random_state is None else random_state,
    )
    return model.distill(n_per_class, key_added=key_added, **{"seed": seed, **distill_kwargs})
