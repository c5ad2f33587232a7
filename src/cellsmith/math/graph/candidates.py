"""Which edges a sparse learned graph may have: candidates of every cell, and the undirected pairs they form."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError
from cellsmith.math.graph.neighbors import knn_table

__all__ = ["Pairs", "candidate_table", "pair_list"]

SMALLEST_QUOTA = 5
"""Candidates of every batch; where the table has no room for that many, there are no quotas."""

_Integers = npt.NDArray[np.int64]


class Pairs(NamedTuple):
    """Undirected pairs of cells, each once; answer of :func:`pair_list`.

    Attributes
    ----------
    row, col
        ``(E,)`` the two cells; ``col`` is a candidate of ``row``.
    slot
        ``(E,)`` place of ``col`` among the candidates of ``row``.
    reverse_slot
        ``(E,)`` place of ``row`` among the candidates of ``col``, -1 where it is none of them.
    """

    row: Any
    col: Any
    slot: Any
    reverse_slot: Any


def candidate_table(
    x: npt.ArrayLike, m: int, *, batches: npt.ArrayLike | None = None, exact_below: int = 50_000, seed: int
) -> npt.NDArray[np.int32]:
    """List the cells that may become neighbours of every cell, its m nearest ones (scAGC S2).

    Parameters
    ----------
    x
        ``(n, d)`` coordinates, finite.
    m
        Candidates of a cell, M, from 1 to n - 1; the cell itself is never one.
    batches
        ``(n,)`` batch of every cell. Each then gives at least ``m // n_batches`` candidates to every cell (all it has,
        if it has fewer), the other places go to the nearest cells left. No quotas where that were fewer than 5.
    exact_below
        Largest n for the exact search.
    seed
        Seed of the approximate search above it.

    Returns
    -------
    ``(n, M)`` int32, nearest first, ties by index.

    Raises
    ------
    SetupError
        If m is out of range, or coordinates are not finite.
    """
    groups = None if batches is None else np.asarray(batches)
    if groups is not None and len(np.unique(groups.astype(str))) > m / SMALLEST_QUOTA:
        groups = None
    return knn_table(x, m, groups=groups, exact_below=exact_below, seed=seed)[0]


def pair_list(candidates: npt.ArrayLike) -> Pairs:
    """Form the undirected pairs of a table of candidates, each with its places in the table (scAGC S2).

    Parameters
    ----------
    candidates
        ``(n, M)`` candidates of every cell, other cells only, without repeats in a row.

    Returns
    -------
    int64 arrays, by row, then by column. A pair that names each other has row < col; else the row is the one that
    names the other.

    Raises
    ------
    SetupError
        If the table is not of shape (n, M) with entries from 0 to n - 1.
    """
    table = np.asarray(candidates)
    n = len(table)
    if table.ndim != 2 or table.size == 0 or table.min() < 0 or table.max() >= n:
        raise SetupError(f"Found candidates of shape {table.shape}, expected (n, M) with entries from 0 to n - 1.")
    row = np.repeat(np.arange(n, dtype=np.int64), table.shape[1])
    col, slot = table.reshape(-1).astype(np.int64), np.tile(np.arange(table.shape[1], dtype=np.int64), n)
    order = np.argsort(row * n + col, kind="stable")
    row, col, slot = row[order], col[order], slot[order]
    forward, back = row * n + col, col * n + row
    place = np.minimum(np.searchsorted(forward, back), forward.size - 1)
    reverse: _Integers = np.where(forward[place] == back, slot[place], -1)
    kept = (reverse < 0) | (row < col)
    return Pairs(row[kept], col[kept], slot[kept], reverse[kept])
