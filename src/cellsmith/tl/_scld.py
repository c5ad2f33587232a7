"""The door of SCLD: one line from raw counts to new cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cellsmith import _keys
from cellsmith._errors import SetupError
from cellsmith.tl._door import open_door

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["scld"]


def scld(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    labels_key: str | None = None,
    n_cells: int | None = None,
    key_added: str = "scld",
    copy: bool = False,
    rng: Any = 0,
    random_state: int | None = None,
    model_kwargs: Mapping[str, Any] = {},
    train_kwargs: Mapping[str, Any] = {},
    generate_kwargs: Mapping[str, Any] = {},
) -> AnnData:
    """Learn a population of cells and generate new ones by latent diffusion.

    Parameters
    ----------
    adata
        Raw counts, cells x genes.
    layer
        Layer with the counts; None is ``.X``.
    batch_key, labels_key
        Columns of ``.obs`` that condition the cells.
    n_cells
        How many cells to generate; None is the number of cells in ``adata``.
    key_added
        Name of the block in ``.uns`` of the answer, and of its columns.
    copy
        Register a copy, so that not even registration columns are added to ``adata``.
    rng
        Seed of training and generation.
    random_state
        Another name for ``rng``, as in older scanpy.
    model_kwargs
        Arguments of :class:`cellsmith.model.SCLD` and those of its ``setup_anndata`` that this function lacks.
    train_kwargs
        Arguments of ``train``.
    generate_kwargs
        Arguments of ``generate``.

    Returns
    -------
    AnnData of new cells: integer counts, the registered columns of ``.obs``, ``.obs["is_synthetic"]``,
    ``.obsm["X_scld"]`` and ``.uns["scld"]``.

    Raises
    ------
    SetupError
        If the counts or a column cannot be used, or a mapping has an unknown name.

    Examples
    --------
    >>> import cellsmith
    >>> adata = cellsmith.datasets.kang_pbmc()
    >>> new = cellsmith.tl.scld(adata, labels_key="cell_type", n_cells=500)  # doctest: +SKIP
    """
    from cellsmith.model import SCLD

    # Before the minutes of training, not after them.
    _keys.validate(key_added)
    if "n_cells" in generate_kwargs:
        raise SetupError("generate_kwargs names 'n_cells', which this function takes itself. Type n_cells=...")
    model, seed = open_door(
        SCLD,
        adata,
        setup={"layer": layer, "batch_key": batch_key, "labels_key": labels_key},
        model_kwargs=model_kwargs,
        train_kwargs=train_kwargs,
        queries={"generate_kwargs": (SCLD.generate, generate_kwargs)},
        copy=copy,
        rng=rng if random_state is None else random_state,
    )
    model.key_added_ = key_added
    return model.generate(n_cells, **{"seed": seed, **generate_kwargs})
