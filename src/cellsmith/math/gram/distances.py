"""Corrected squared distances of named pairs of cells (Eq. 8)."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError
from cellsmith.math.gram._rows import tiles
from cellsmith.math.gram.blocks import CentredBlocks
from cellsmith.math.gram.centred import Centred
from cellsmith.math.gram.operator import Operator

__all__ = ["corrected_distances", "corrected_products"]

Array: TypeAlias = npt.NDArray[np.float64]
Index: TypeAlias = npt.NDArray[np.int64]
_ENTRIES = 1 << 22


def corrected_distances(operator: Operator, pairs: npt.ArrayLike) -> tuple[Array, float]:
    """G_ii + G_jj - 2 G_ij, floored at 0, per feature (Eq. 8).

    Parameters
    ----------
    operator
        The Gram operator.
    pairs
        (m, 2) cell numbers.

    Returns
    -------
    (m,) squared distances, 0 for a cell with itself, and the share of the pairs that was floored.

    Raises
    ------
    SetupError
        If a number is not that of a cell.
    """
    asked = _checked(operator, pairs)
    left, right = asked[:, 0], asked[:, 1]
    found = operator.diagonal[left] + operator.diagonal[right] - 2.0 * corrected_products(operator, asked)
    found[left == right] = 0.0
    floored = found < 0
    return np.where(floored, 0.0, found), float(floored.mean()) if asked.size else 0.0


def corrected_products(operator: Operator, pairs: npt.ArrayLike) -> Array:
    """G_ij of pairs of cells, (m, 2) -> (m,); reads the data once for every block that holds a first cell.

    Parameters
    ----------
    operator
        The Gram operator.
    pairs
        (m, 2) cell numbers.

    Raises
    ------
    SetupError
        If a number is not that of a cell.
    """
    asked = _checked(operator, pairs)
    if operator.dense is not None:
        return np.asarray(operator.dense[asked[:, 0], asked[:, 1]])
    if operator.factors is None:
        raise SetupError("The operator has neither factors nor a dense matrix.")
    products = _inner(operator.blocks, asked) * operator.factors.inverse_overlap(asked)
    same = asked[:, 0] == asked[:, 1]
    products[same] = operator.diagonal[asked[same, 0]]
    return products


def _checked(operator: Operator, pairs: npt.ArrayLike) -> Index:
    asked = np.asarray(pairs, dtype=np.int64)
    if asked.ndim != 2 or asked.shape[1] != 2:
        raise SetupError(f"Found pairs of shape {asked.shape}, expected (pairs, 2).")
    if asked.size and (asked.min() < 0 or asked.max() >= operator.n):
        raise SetupError(f"Found cell numbers from {asked.min()} to {asked.max()}, expected 0 to {operator.n - 1}.")
    return asked


def _inner(blocks: CentredBlocks, pairs: Index) -> Array:
    """z_i . z_j of pairs, in float64."""
    out = np.zeros(pairs.shape[0])
    # the smaller number first, so that no block has to look back
    low, high = pairs.min(axis=1), pairs.max(axis=1)
    for start, z in blocks():
        mine = np.flatnonzero((low >= start) & (low < start + z.shape[0]))
        if mine.size == 0:
            continue
        last = high[mine].max()
        for there, other in blocks():
            if there > last:
                break
            if there + other.shape[0] <= start:
                continue
            hit = mine[(high[mine] >= there) & (high[mine] < there + other.shape[0])]
            step = max(1, _ENTRIES // z.shape[1])
            for i, j in tiles(hit.size, step):
                part = hit[i:j]
                out[part] = _row_products((z, low[part] - start), (other, high[part] - there))
    return out


def _row_products(left: tuple[Centred, Index], right: tuple[Centred, Index]) -> Any:
    a, b = left[0].stored_rows(left[1]), right[0].stored_rows(right[1])
    # sparse rows multiply entry by entry; a common shift enters through its sums
    product = a[0].multiply(b[0]).sum(axis=1) if hasattr(a[0], "multiply") else np.einsum("id,id->i", a[0], b[0])
    out = np.asarray(product, dtype=np.float64).reshape(-1)
    if a[1] is not None:
        shift = a[1].astype(np.float64)
        out += shift @ shift - np.asarray(a[0] @ shift) - np.asarray(b[0] @ shift)
    return out
