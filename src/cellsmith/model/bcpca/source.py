"""From a registered object to blocks of cells: which values, which mask, which features in which order."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellsmith import _record
from cellsmith._errors import DataWarning, MissingnessWarning, SetupError
from cellsmith.math import gram, missing

__all__ = ["MASK_LAYER", "Source", "check_registration", "keep_mask", "open_source"]

logger = logging.getLogger("cellsmith")

MASK_LAYER = "bcpca_mask"  # where a mask is kept that came as an array


@dataclass(frozen=True)
class Source:
    """Cells of an object, their features put into the order of the fit.

    Parameters
    ----------
    blocks
        A callable; each call starts a fresh pass of ``(start, Block)`` over all cells and features.
    n_cells
        Number of cells.
    shared
        ``(D,)`` booleans: features of the fit that the object has; all entries of the others are missing.
    names, features
        Names of the cells, and of the features of the fit.
    in_memory
        False where every pass reads a file.
    """

    blocks: gram.Blocks
    n_cells: int
    shared: np.ndarray
    names: np.ndarray
    features: np.ndarray
    in_memory: bool


def check_registration(adata: Any, *, layer: str | None, mask: Any, quiet: bool) -> None:
    """Refuse what cannot be read, and warn of masks that mislead.

    Parameters
    ----------
    adata
        AnnData of n cells and D features.
    layer, mask
        As in ``setup_anndata``.
    quiet
        Give no warning, because the same data were registered before.

    Raises
    ------
    SetupError
        If the layer or the mask cannot be used; see :func:`cellsmith.math.missing.find_mask`.
    """
    rows, where = missing.find_values(adata.X, adata.layers, layer=layer)
    if min(rows.shape) < 2:
        raise SetupError(f"Found {rows.shape[0]} cells and {rows.shape[1]} features; at least 2 of each are needed.")
    missing.find_mask(mask, layers=adata.layers, uns=adata.uns, shape=rows.shape)
    if quiet:
        return
    if isinstance(mask, str) and mask == "zero":
        warnings.warn(
            'mask="zero" treats every zero as missing. On UMI counts that hurts: most zeros there are true. '
            'Look at pp.missing_mask(adata, method="consensus"), and at mask=None beside it.',
            MissingnessWarning,
            stacklevel=4,
        )
    if missing.holds_counts(rows):
        warnings.warn(
            f"{where} holds raw counts, in which the largest genes decide everything. "
            "Type sc.pp.normalize_total(adata); sc.pp.log1p(adata), or name such a layer with layer=.",
            DataWarning,
            stacklevel=4,
        )


def keep_mask(adata: Any, mask: Any, *, name: str = MASK_LAYER) -> str:
    """Put a mask that came as an array into a layer, by its sparser pattern, and return the layer's name.

    Parameters
    ----------
    adata
        The object that is registered.
    mask
        Array (n, D) of weights in [0, 1].
    name
        Name of the layer.

    Raises
    ------
    SetupError
        For values outside [0, 1], and if someone else's layer has this name.
    """
    found = missing.find_mask(mask, layers={}, uns={}, shape=adata.shape)
    pattern, marks, rate = missing.sparser_pattern(found.rows, lambda start, stop, m: _checked(m, start, stop))
    block = {"marks": marks, "method": "array", "observed_rate": rate}
    _record.write(adata, name, _record.Result(method="missing_mask", layers={"{k}": pattern}, uns=block))
    return name


def _checked(m: Any, start: int, stop: int) -> np.ndarray:
    return missing.dense(missing.checked_weights(m, "mask", start=start, stop=stop))


def open_source(
    adata: Any,
    *,
    layer: str | None,
    mask: Any,
    chunk_size: int | None,
    features: np.ndarray | None = None,
) -> Source:
    """Return the cells of an object as a fit or a query reads them.

    Parameters
    ----------
    adata
        AnnData.
    layer, mask
        As registered.
    chunk_size
        Cells a block; None is about 64 MB.
    features
        Names of the features of the fit; None takes those of the object.

    Raises
    ------
    SetupError
        If layer or mask are missing, no feature is shared, names are ambiguous, or, in a pass, an observed entry is
        not finite; the message then names its cell and feature.
    """
    rows, where = missing.find_values(adata.X, adata.layers, layer=layer)
    found = missing.find_mask(mask, layers=adata.layers, uns=adata.uns, shape=rows.shape)
    names = np.asarray(adata.var_names, dtype=object)
    columns = None if features is None else _columns(names, features)
    blocks = missing.read_blocks(rows, found, chunk_size=chunk_size, columns=columns)
    labels = (np.asarray(adata.obs_names, dtype=object), names if features is None else features)
    shared = np.ones(len(labels[1]), dtype=bool) if columns is None else columns >= 0
    return Source(_finite(blocks, *labels, where=where), rows.shape[0], shared, *labels, in_memory=rows.in_memory)


def _columns(found: np.ndarray, wanted: np.ndarray) -> np.ndarray | None:
    """Return the column of every wanted feature, -1 where there is none; None where both are the same."""
    if len(found) == len(wanted) and np.array_equal(found, wanted):
        return None
    place: Mapping[Any, int] = {name: i for i, name in enumerate(found)}
    if len(place) < len(found) or len(set(wanted)) < len(wanted):
        raise SetupError(
            "Features are aligned by name, but some names occur twice; expected unique ones. "
            "Type adata.var_names_make_unique(), before the fit too."
        )
    columns = np.array([place.get(name, -1) for name in wanted], dtype=np.int64)
    if not (columns >= 0).any():
        raise SetupError(
            f"None of the {len(found)} features of the object is among the {len(wanted)} of the fit "
            f"(for example {found[0]!r} and {wanted[0]!r}). Name them as in the fit."
        )
    return columns


def _finite(blocks: gram.Blocks, cells: np.ndarray, features: np.ndarray, *, where: str) -> gram.Blocks:
    """Return the same blocks, in which an entry that is observed and not finite is an error with its names."""

    def one_pass() -> Iterator[tuple[int, gram.Block]]:
        for start, block in blocks():
            bad = block.first_bad()
            if bad is not None:
                raise SetupError(
                    f"{where} of cell {cells[start + bad[0]]!r}, feature {features[bad[1]]!r} is {bad[2]}, but the "
                    "mask says that it was observed; expected a finite number. Mark it as missing "
                    '(mask="nan" does that for NaN), or correct it.'
                )
            yield start, block

    return one_pass
