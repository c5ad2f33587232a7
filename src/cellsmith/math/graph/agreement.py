"""What neighbour tables share: mutual neighbours, overlap of two tables, variance that neighbours explain."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError

__all__ = ["explained_variance", "mutual_neighbors", "neighbor_overlap", "permuted_table"]

_BLOCK = 1 << 24  # comparisons held together: 16 MiB of booleans, 64 MiB of indices
_Indices = npt.NDArray[np.int32]


def mutual_neighbors(indices: npt.ArrayLike, *, at_least: int = 3) -> tuple[_Indices, _Indices]:
    """Keep the neighbours that name the cell in return; fill up with the nearest one-way neighbours (scE2TM T15).

    Parameters
    ----------
    indices
        ``(n, k)`` neighbours of every cell, other cells only, nearest first, as of :func:`knn_table`.
    at_least
        Neighbours that every cell keeps: where fewer are mutual, its nearest one-way neighbours fill the places. With
        k < ``at_least`` all k are kept. 0: mutual neighbours only.

    Returns
    -------
    ``(table, counts)``. ``(n, k)`` int32: the mutual neighbours, nearest first, then what fills up, nearest first,
    then -1; ``(n,)`` int32: how many entries of each row are neighbours. A uniform draw for cell i is
    ``table[i, integers(counts[i])]``.

    Raises
    ------
    SetupError
        If the table is not of shape (n, k) with entries from 0 to n - 1, lists a cell as its own neighbour, or
        ``at_least`` is negative.
    """
    table = _checked(indices)
    if at_least < 0:
        raise SetupError(f"Found at_least={at_least}, expected 0 or more.")
    n, k = table.shape
    mutual = np.empty((n, k), dtype=bool)
    step = max(1, _BLOCK // max(1, k * k))
    for first in range(0, n, step):
        block = slice(first, first + step)
        cells = np.arange(n, dtype=np.int32)[block]
        mutual[block] = (table[table[block]] == cells[:, None, None]).any(axis=2)
    order = np.argsort(~mutual, axis=1, kind="stable")
    counts = np.maximum(mutual.sum(axis=1), min(at_least, k)).astype(np.int32)
    kept = np.take_along_axis(table, order, axis=1)
    kept[np.arange(k) >= counts[:, None]] = -1
    return kept, counts


def explained_variance(y: npt.ArrayLike, indices: npt.ArrayLike) -> float:
    """Return how much of y the means of neighbours explain, the R2 of scE2TM's T21.

    1 - sum_i |y_i - mean of y over the neighbours of i|^2 / sum_i |y_i - mean of y|^2. Neighbours that say nothing
    about y give about -1/k: their mean is the overall mean plus noise.

    Parameters
    ----------
    y
        ``(n, d)`` coordinates.
    indices
        ``(n, k)`` neighbours of every cell, other cells only.

    Returns
    -------
    At most 1; 0 where y is constant.

    Raises
    ------
    SetupError
        If y has not one finite row for each cell, or the table is out of range.
    """
    table = _checked(indices)
    values = np.asarray(y, dtype=np.float64)
    if values.ndim != 2 or len(values) != len(table) or not np.isfinite(values).all():
        raise SetupError(f"Found y of shape {values.shape}, expected {len(table)} finite rows, one for each cell.")
    values = values - values.mean(axis=0)
    total = float((values**2).sum())
    if total == 0:
        return 0.0
    mean = np.zeros_like(values)
    for neighbor in table.T:  # a place at a time: no (n, k, d) array
        mean += values[neighbor]
    return float(1.0 - ((values - mean / table.shape[1]) ** 2).sum() / total)


def neighbor_overlap(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return the mean share of neighbours that two tables have in common (scE2TM T21b).

    Parameters
    ----------
    a, b
        ``(n, k)`` neighbours of the same cells, without repeats in a row; k may differ.

    Returns
    -------
    From 0 to 1: common neighbours of a cell divided by the smaller k, mean over cells.

    Raises
    ------
    SetupError
        If a table is out of range, or they are not of the same cells.
    """
    first, second = _checked(a), _checked(b)
    if len(first) != len(second):
        raise SetupError(f"Found tables of {len(first)} and {len(second)} cells, expected the same cells.")
    common = sum(int((first == neighbor[:, None]).sum()) for neighbor in second.T)
    return float(common / (len(first) * min(first.shape[1], second.shape[1])))


def permuted_table(indices: npt.ArrayLike, order: npt.ArrayLike) -> _Indices:
    """Return the neighbour table of the same coordinates with their rows permuted, without another search.

    Parameters
    ----------
    indices
        ``(n, k)`` neighbours that belong to coordinates x.
    order
        ``(n,)`` permutation of 0 to n - 1.

    Returns
    -------
    ``(n, k)`` int32, the neighbours that belong to ``x[order]``.

    Raises
    ------
    SetupError
        If the table is out of range or ``order`` is no permutation of its rows.
    """
    table, places = _checked(indices), np.asarray(order)
    if places.shape != (len(table),) or not np.array_equal(np.sort(places), np.arange(len(table))):
        raise SetupError(f"Found an order of shape {places.shape}, expected a permutation of {len(table)} rows.")
    return np.asarray(np.argsort(places)[table[places]], dtype=np.int32)


def _checked(indices: Any) -> _Indices:
    table = np.asarray(indices)
    if table.ndim != 2 or table.size == 0 or table.dtype.kind not in "iu":
        raise SetupError(f"Found a table of shape {table.shape} and {table.dtype}, expected integers (n, k).")
    n = len(table)
    own = np.arange(n)[:, None]
    wrong = (table < 0) | (table >= n) | (table == own)
    if wrong.any():
        i, s = np.argwhere(wrong)[0]
        raise SetupError(f"Found neighbor {table[i, s]} of cell {i}, expected other cells from 0 to {n - 1}.")
    return np.asarray(table, dtype=np.int32)
