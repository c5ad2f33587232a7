"""From a matrix and a mask, in any of their forms, to the blocks that the operators of `cellsmith.math.gram` read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellsmith._errors import SetupError, nearest
from cellsmith.math import gram
from cellsmith.math.missing.sources import Rows, aligned_rows, chunk_bounds, rows_of

__all__ = ["WORDS", "Pattern", "checked_weights", "find_mask", "find_values", "read_blocks"]

WORDS = ("nan", "zero")


@dataclass(frozen=True)
class Pattern:
    """A mask that is stored as a matrix.

    Parameters
    ----------
    rows
        Reader of the matrix ``(n, D)``, values in [0, 1].
    marks
        ``"observed"``: the values are the weights of the entries; ``"missing"``: they are one minus the weights.
    where
        How messages call it.
    """

    rows: Rows
    marks: str
    where: str = "mask"


Mask = str | Pattern | None


def find_values(x: Any, layers: Mapping[str, Any], *, layer: str | None) -> tuple[Rows, str]:
    """Return the reader of the values, and their place.

    Parameters
    ----------
    x, layers
        ``.X`` and ``.layers`` of the object, matrices ``(n, D)``.
    layer
        Name of a layer; None is ``x``.

    Raises
    ------
    SetupError
        If there is no such layer, or it is no matrix of numbers.
    """
    if layer is not None and layer not in layers:
        raise SetupError(f"layer={layer!r} is not in .layers. {nearest(layer, layers)}")
    where = ".X" if layer is None else f".layers[{layer!r}]"
    return rows_of(x if layer is None else layers[layer], where=where), where


def find_mask(mask: Any, *, layers: Mapping[str, Any], uns: Mapping[str, Any], shape: tuple[int, int]) -> Mask:
    """Return what a user's ``mask`` means.

    Parameters
    ----------
    mask
        None (all observed), ``"nan"``, ``"zero"``, the name of a layer, or an array ``(n, D)`` of weights in [0, 1]
        in any form that :func:`rows_of` reads.
    layers, uns
        Of the object; ``uns[<layer>]["marks"]`` says whether a layer marks observed or missing entries.
    shape
        ``(n, D)`` that the mask must have.

    Raises
    ------
    SetupError
        For an unknown name, another shape, or another type.
    """
    if mask is None or (isinstance(mask, str) and mask in WORDS):
        return mask
    marks = "observed"
    if isinstance(mask, str):
        if mask not in layers:
            raise SetupError(f"mask={mask!r} is neither a word nor a layer. {nearest(mask, [*WORDS, *layers])}")
        block = uns.get(mask)
        found = block.get("marks") if isinstance(block, Mapping) else None
        marks, where, matrix = str(found or "observed"), f".layers[{mask!r}]", layers[mask]
        if marks not in ("observed", "missing"):
            raise SetupError(f".uns[{mask!r}]['marks'] is {marks!r}; expected 'observed' or 'missing'.")
    else:
        where, matrix = "mask", mask
    rows = rows_of(matrix, where=where)
    if rows.shape != shape:
        raise SetupError(
            f"{where} has shape {rows.shape}; expected {shape}, one value an entry of the data. "
            "Type a mask with one row a cell and one column a feature."
        )
    return Pattern(rows, marks, where)


def read_blocks(
    values: Rows,
    mask: Mask,
    *,
    chunk_size: int | None = None,
    columns: npt.NDArray[np.int64] | None = None,
) -> gram.Blocks:
    """Return the blocks of a matrix with its mask, as `cellsmith.math.gram` streams them.

    Parameters
    ----------
    values
        Reader of the data ``(n, D)``.
    mask
        As :func:`find_mask` returns it.
    chunk_size
        Rows a block; None is about 64 MB.
    columns
        ``(E,)`` columns to take, in order; -1 stands for a feature that the data lack, all entries of which are
        missing. None takes all.

    Returns
    -------
    A callable; each call starts a fresh pass of ``(start, Block)``.

    Raises
    ------
    SetupError
        From a pass, for NaN with ``mask="zero"`` and mask values outside [0, 1].
    """
    absent = None
    if columns is not None and not (len(columns) == values.shape[1] and (columns == np.arange(len(columns))).all()):
        absent = columns < 0
        if isinstance(mask, Pattern):
            mask = Pattern(aligned_rows(mask.rows, columns, absent=0.0), mask.marks, mask.where)
        values = aligned_rows(values, columns, absent=np.nan)

    def one_pass() -> Iterator[tuple[int, gram.Block]]:
        for start, stop in chunk_bounds(values, chunk_size):
            yield start, _block(values.read(start, stop), mask, start, stop, absent=absent)

    return one_pass


def _block(x: Any, mask: Mask, start: int, stop: int, *, absent: npt.NDArray[np.bool_] | None) -> gram.Block:
    if isinstance(mask, Pattern):
        weights = checked_weights(mask.rows.read(start, stop), mask.where, start=start, stop=stop)
        return _patterned(x, weights, mask.marks, absent=absent)
    if mask == "zero":
        values = x if sp.issparse(x) else sp.csr_matrix(np.where(_known(absent, x), x, 0.0))
        if np.isnan(values.data).any():
            row = int(np.searchsorted(values.indptr, np.flatnonzero(np.isnan(values.data))[0], side="right")) - 1
            raise SetupError(
                f'mask="zero" found NaN in row {start + row}; expected values without NaN. '
                'Type mask="nan", or fill what should be a zero.'
            )
        return gram.observed_block(values)
    if not sp.issparse(x):
        return gram.dense_block(x, None if mask == "nan" else _known(absent, x))
    gone = _absent_pattern(x.shape, absent)
    if mask == "nan" and np.isnan(x.data).any():
        lost = np.isnan(x.data)
        gone = gone + _entries(x, lost)
        x = sp.csr_matrix((np.where(lost, 0, x.data), x.indices, x.indptr), shape=x.shape)
    return gram.missing_block(x, gone)


def checked_weights(m: Any, where: str, *, start: int, stop: int) -> Any:
    """Return weights as they are, or raise `SetupError` if one is outside [0, 1].

    Parameters
    ----------
    m
        (stop - start, D), dense or CSR.
    where
        How the message calls them.
    start, stop
        Which rows they are, for the message.
    """
    data = m.data if sp.issparse(m) else m
    if data.size and not (data.min() >= 0 and data.max() <= 1):
        wrong = data[~((data >= 0) & (data <= 1))].flat[0]
        raise SetupError(
            f"{where} holds {float(wrong)} in rows {start} to {stop - 1}; expected values from 0 to 1: "
            "1 = observed, 0 = missing, a fraction = probability that the entry informs."
        )
    return m


def _patterned(x: Any, m: Any, marks: str, *, absent: npt.NDArray[np.bool_] | None) -> gram.Block:
    """Return the block of values and a stored pattern; values under a weight of zero do not count."""
    if not sp.issparse(x):
        weights = m.toarray() if sp.issparse(m) else m
        weights = weights if marks == "observed" else 1 - weights
        return gram.dense_block(x, weights if absent is None else np.where(absent, 0, weights))
    if not sp.issparse(m) and 2 * np.count_nonzero(m) > m.size:
        marks, m = "missing" if marks == "observed" else "observed", 1 - m
    pattern = sp.csr_matrix(m)
    if marks == "observed":
        return gram.observed_block(x, pattern)
    return gram.missing_block(x, pattern.maximum(_absent_pattern(x.shape, absent)))


def _known(absent: npt.NDArray[np.bool_] | None, x: Any) -> Any:
    return np.broadcast_to(True if absent is None else ~absent, x.shape)


def _absent_pattern(shape: tuple[int, int], absent: npt.NDArray[np.bool_] | None) -> sp.csr_matrix:
    if absent is None or not absent.any():
        return sp.csr_matrix(shape, dtype=np.float32)
    columns = np.flatnonzero(absent)
    indices = np.tile(columns, shape[0])
    return sp.csr_matrix(
        (np.ones(len(indices), np.float32), indices, np.arange(shape[0] + 1) * len(columns)), shape=shape
    )


def _entries(x: Any, chosen: npt.NDArray[np.bool_]) -> sp.csr_matrix:
    """Return the pattern of some stored entries of a CSR matrix."""
    kept = sp.csr_matrix((chosen.astype(np.float32), x.indices, x.indptr), shape=x.shape, copy=True)
    kept.eliminate_zeros()
    return kept
