"""Rows of an incomplete matrix: values with a pattern of what was observed (sections 4.1 and 4.11).

A data set is a ``Blocks``: a callable that returns a fresh iterator of ``(start, Block)`` in a fixed order, so that it
can be read from memory or from a disk as often as an algorithm wants. Nothing here makes a sparse matrix dense.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith.math.gram.centred import Centred

__all__ = ["Block", "Blocks", "CentredBlocks", "centred_blocks", "row_blocks", "select_blocks"]

Array: TypeAlias = npt.NDArray[np.float64]
Bad: TypeAlias = "tuple[int, int, float] | None"


class Block(ABC):
    """Consecutive cells: values Y and the weight M of each entry (1 observed, 0 missing, fractions between)."""

    shape: tuple[int, int]

    @abstractmethod
    def mask_dot(self, b: npt.NDArray[Any]) -> Array:
        """``M @ b``, (rows, p) float64, for ``b`` of shape (D, p)."""

    @abstractmethod
    def mask_tdot(self, b: npt.NDArray[Any]) -> Array:
        """``M.T @ b``, (D, p) float64, for ``b`` of shape (rows, p)."""

    @abstractmethod
    def col_sums(self) -> Array:
        """Sum over the rows of M * Y, (D,)."""

    @abstractmethod
    def first_bad(self) -> Bad:
        """(row, feature, value) of the first entry with a weight above 0 that is not finite; None if there is none."""

    @abstractmethod
    def take(self, cells: Any, features: Any) -> Block:
        """Return the block of some rows and features; cells: a slice or a boolean mask; None for all."""

    @abstractmethod
    def centred(self, means: npt.NDArray[Any], *, dtype: Any = np.float32) -> Centred:
        """Z = M * (Y - 1 mu^T), zero where missing (Eq. 1), for ``means`` mu of shape (D,)."""

    @abstractmethod
    def without(self, rows: npt.NDArray[np.int64], features: npt.NDArray[np.int64]) -> Block:
        """Return the block with the named entries missing; both (m,), rows ascending."""

    @abstractmethod
    def entries(self, start: int, stop: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Array, Array]:
        """(row, feature, value, weight) of the entries of some rows with a weight above 0, in row-major order."""

    @abstractmethod
    def shuffled(self, generator: np.random.Generator) -> Block:
        """Return the block with the values of each feature permuted among the rows with a weight above 0."""

    def row_counts(self) -> Array:
        """Sum of the weights of each row, (rows,)."""
        return self.mask_dot(np.ones((self.shape[1], 1)))[:, 0]

    def col_counts(self) -> Array:
        """Sum of the weights of each feature over the rows, (D,)."""
        return self.mask_tdot(np.ones((self.shape[0], 1)))[:, 0]


Blocks: TypeAlias = Callable[[], Iterator[tuple[int, Block]]]
CentredBlocks: TypeAlias = Callable[[], Iterator[tuple[int, Centred]]]


def row_blocks(block: Block, n_rows: int | None = None) -> Blocks:
    """Hand out one block held in memory, whole or in parts.

    Parameters
    ----------
    block
        (n, D) in memory.
    n_rows
        Cells at a time; None for all at once.
    """
    step = n_rows or max(1, block.shape[0])

    def blocks() -> Iterator[tuple[int, Block]]:
        for start in range(0, block.shape[0], step):
            stop = min(block.shape[0], start + step)
            yield start, block if step >= block.shape[0] else block.take(slice(start, stop), None)

    return blocks


def select_blocks(
    blocks: Blocks, *, cells: npt.NDArray[Any] | None = None, features: npt.NDArray[Any] | None = None
) -> Blocks:
    """Keep some cells and features; ``start`` then counts the kept cells.

    Parameters
    ----------
    blocks
        The whole data.
    cells, features
        Boolean, (n,) and (D,); None keeps all.
    """

    def chosen() -> Iterator[tuple[int, Block]]:
        seen = 0
        for start, block in blocks():
            rows = None if cells is None else cells[start : start + block.shape[0]]
            part = block if rows is None and features is None else block.take(rows, features)
            if part.shape[0]:
                yield seen, part
            seen += part.shape[0]

    return chosen


def centred_blocks(
    blocks: Blocks, means: npt.NDArray[Any], *, dtype: Any = np.float32, keep: bool = False
) -> CentredBlocks:
    """Z of every block (Eq. 1).

    Parameters
    ----------
    blocks
        Rows of the data.
    means
        mu, (D,): mean of each feature over its observed entries.
    dtype
        Type of the products; sums over cells are float64 whatever it is.
    keep
        Hold every Z in memory after the first pass (it shares the indices of the input) instead of forming it anew.
    """
    held: list[tuple[int, Centred]] = []
    whole = [False]

    def centred() -> Iterator[tuple[int, Centred]]:
        if whole[0]:
            yield from held
            return
        held.clear()
        for start, block in blocks():
            z = block.centred(means, dtype=dtype)
            if keep:
                held.append((start, z))
            yield start, z
        whole[0] = keep

    return centred
