"""What one pass over the data tells: margins of the mask, means of the features, and which cells can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError, SizeError
from cellsmith.math.gram._rows import tiles
from cellsmith.math.gram.blocks import Blocks

__all__ = ["MAX_DENSE", "Stats", "cell_groups", "check_live", "check_size", "observed_stats", "shared_counts"]

Array: TypeAlias = npt.NDArray[np.float64]
MAX_DENSE = 5_000  # cells above which nothing n x n is allocated
_TINY = 1e-6  # weights are float32: the sum of those of a missing pattern may be off zero by rounding


@dataclass(frozen=True)
class Stats:
    """Margins of the mask and means over the observed entries.

    Attributes
    ----------
    row_counts
        Observed entries of each cell (sum of the weights), (n,).
    col_counts
        Observed cells of each feature, (D,).
    means
        mu: mean of each feature over its observed entries, (D,); 0 for a feature that was never observed.
    """

    row_counts: Array
    col_counts: Array
    means: Array

    @property
    def n_cells(self) -> int:
        """Number of cells n."""
        return self.row_counts.size

    @property
    def n_features(self) -> int:
        """Number of features D."""
        return self.col_counts.size

    @property
    def row_rates(self) -> Array:
        """Observed share r_i of each cell, (n,)."""
        return self.row_counts / max(1, self.n_features)

    @property
    def col_rates(self) -> Array:
        """Observed share c_d of each feature, (D,)."""
        return self.col_counts / max(1, self.n_cells)

    @property
    def observed_rate(self) -> float:
        """Mean c of both."""
        return float(self.row_counts.sum() / max(1, self.n_cells * self.n_features))

    @property
    def live_cells(self) -> npt.NDArray[np.bool_]:
        """Cells with any observed entry, (n,)."""
        return np.asarray(self.row_counts > 0)

    @property
    def live_features(self) -> npt.NDArray[np.bool_]:
        """Features that any cell observed, (D,)."""
        return np.asarray(self.col_counts > 0)


def observed_stats(blocks: Blocks) -> Stats:
    """Return counts and means over the observed entries (Eq. 1), in one pass.

    Parameters
    ----------
    blocks
        Rows of the data.

    Raises
    ------
    SetupError
        If there is no row, or an observed entry is not finite; the message names its cell and feature by number.
    """
    rows: list[Array] = []
    cols = sums = np.zeros(0)
    for start, block in blocks():
        bad = block.first_bad()
        if bad is not None:
            raise SetupError(
                f"The entry of cell {start + bad[0]} and feature {bad[1]} is {bad[2]}, but the mask says that it was "
                "observed; expected a finite number. Mark it as missing, or correct it."
            )
        if not rows:
            cols, sums = np.zeros(block.shape[1]), np.zeros(block.shape[1])
        rows.append(block.row_counts())
        cols += block.col_counts()
        sums += block.col_sums()
    if not rows:
        raise SetupError("Found no cells, expected at least one block of rows.")
    means = np.divide(sums, cols, out=np.zeros_like(sums), where=cols > 0)
    return Stats(np.concatenate(rows), cols, means)


def shared_counts(blocks: Blocks, stats: Stats) -> Array:
    """M M^T: features that each pair of cells both observed, (n, n); the diagonal holds the row counts.

    Parameters
    ----------
    blocks
        Rows of the data.
    stats
        Their margins.

    Raises
    ------
    SizeError
        If there are more than 5,000 cells.
    """
    check_size(stats.n_cells)
    mask = np.zeros((stats.n_cells, stats.n_features), dtype=np.float32)
    for start, block in blocks():
        for i, j in tiles(block.shape[0]):
            rows, features, _, weights = block.entries(i, j)
            mask[start + rows, features] = weights
    counts = (mask @ mask.T).astype(np.float64)
    np.fill_diagonal(counts, stats.row_counts)
    return np.asarray(counts)


def cell_groups(blocks: Blocks, stats: Stats) -> npt.NDArray[np.int64]:
    """Find the groups of cells between which no chain of shared features runs.

    Cells of two groups have no observed feature in common, directly or through others, so that nothing in the data
    says how they lie to each other.

    Parameters
    ----------
    blocks
        Rows of the data.
    stats
        Their margins.

    Returns
    -------
    (n,) group number of each cell, 0 for the group of the cell with most observed entries; -1 for a cell without any.
    """
    groups = np.full(stats.n_cells, -1, dtype=np.int64)
    free = stats.row_counts > 0
    number = 0
    while free.any():
        seed = int(np.argmax(np.where(free, stats.row_counts, -1.0)))
        reached, cells = _reach(blocks, stats, seed)
        groups[cells] = number
        free &= ~cells
        number += 1
        if reached.all():
            # Every feature is taken: what is left has none of them, hence nothing observed.
            break
    return groups


def check_size(n: int) -> None:
    """Refuse an array of n x n cells.

    Raises
    ------
    SizeError
        If there are more than 5,000.
    """
    if n > MAX_DENSE:
        raise SizeError(
            f"An array of {n} x {n} cells would take {8 * n * n / 1e9:.1f} GB; at most {MAX_DENSE} cells are allowed. "
            "Type prob='logistic', which never forms it."
        )


def check_live(row_counts: Array, col_counts: Array) -> None:
    """Refuse margins with an empty cell or feature.

    Raises
    ------
    SetupError
        Naming the first of them by number.
    """
    for name, counts in (("cells", row_counts), ("features", col_counts)):
        empty = np.flatnonzero(~(counts > 0))
        if empty.size:
            raise SetupError(
                f"{empty.size} {name} have no observed entry (first: number {empty[0]}); their probabilities are "
                "undetermined. Leave them out with select_blocks."
            )


def _reach(blocks: Blocks, stats: Stats, seed: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Features and cells that a chain of shared observations connects with the cell ``seed``."""
    features = np.zeros(stats.n_features, dtype=bool)
    cells = np.zeros(stats.n_cells, dtype=bool)
    cells[seed] = True
    live = stats.row_counts > 0
    while True:
        before = (int(features.sum()), int(cells.sum()))
        for start, block in blocks():
            rows = slice(start, start + block.shape[0])
            now: npt.NDArray[Any] = (block.mask_dot(features[:, None].astype(np.float64))[:, 0] > _TINY) | cells[rows]
            cells[rows] = now & live[rows]
            features |= block.mask_tdot(cells[rows][:, None].astype(np.float64))[:, 0] > _TINY
        if (int(features.sum()), int(cells.sum())) == before:
            return features, cells
