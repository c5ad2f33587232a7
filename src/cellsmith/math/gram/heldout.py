"""Entries kept aside, and how well a loading matrix predicts them: the label-free score (sections 4.17 and 6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError
from cellsmith.math.gram._rows import tiles
from cellsmith.math.gram.blocks import Block, Blocks

__all__ = ["HeldOut", "hold_out", "permute_within_mask", "prediction_error"]

Array: TypeAlias = npt.NDArray[np.float64]
Index: TypeAlias = npt.NDArray[np.int64]
_ENTRIES = 1 << 21  # entries looked at once


@dataclass(frozen=True)
class HeldOut:
    """Data without some of its observed entries, and those entries.

    Attributes
    ----------
    blocks
        Rows of the data in which the held-out entries are missing.
    source
        Rows of the data with them.
    share, seed
        What was held out: an entry is chosen by a hash of (seed, cell, feature), hence the same ones whatever the
        chunks in which the data are read.
    """

    blocks: Blocks
    source: Blocks
    share: float
    seed: int

    def entries(self) -> Iterator[tuple[int, Index, Index, Array]]:
        """Yield (start of the block, row in it, feature, value) of the held-out entries."""
        for start, block in self.source():
            rows, features, values = _chosen(block, start, self.share, self.seed)
            yield start, rows, features, values


def hold_out(blocks: Blocks, *, share: float = 0.05, seed: int) -> HeldOut:
    """Set aside a share of the observed entries.

    Parameters
    ----------
    blocks
        Rows of the data.
    share
        Expected share of the observed entries, in (0, 1).
    seed
        Chooses the entries; an integer of the stream "split".

    Raises
    ------
    SetupError
        If the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise SetupError(f"share={share}, expected a number between 0 and 1.")

    def rest() -> Iterator[tuple[int, Block]]:
        for start, block in blocks():
            rows, features, _ = _chosen(block, start, share, seed)
            yield start, block.without(rows, features)

    return HeldOut(rest, blocks, share, seed)


def prediction_error(held: HeldOut, scores: npt.NDArray[Any], loadings: npt.NDArray[Any], *, means: Any) -> float:
    """Root mean square error of the held-out entries, predicted as mu_d + scores_i . loadings_d.

    Parameters
    ----------
    held
        What was held out.
    scores, loadings
        (n, k) and (D, k), fitted without it.
    means
        mu, (D,).

    Returns
    -------
    The error in the unit of the data; NaN where nothing was held out.
    """
    total, count = 0.0, 0
    for start, rows, features, values in held.entries():
        predicted = means[features] + np.einsum("ek,ek->e", scores[start + rows], loadings[features])
        total += float(np.square(values - predicted).sum())
        count += values.size
    return float(np.sqrt(total / count)) if count else float("nan")


def permute_within_mask(blocks: Blocks, *, generator: np.random.Generator) -> Blocks:
    """Shuffle the observed values of each feature among the cells that observed it (parallel analysis, Eq. 14).

    The mask stays, and with it the heterogeneity; what goes is everything that cells share. Every block is shuffled in
    itself: hand in one block, or large ones.

    Parameters
    ----------
    blocks
        Rows of the data.
    generator
        Draws one seed; every pass over the result then gives the same shuffle.
    """
    seed = int(generator.integers(2**62))

    def shuffled() -> Iterator[tuple[int, Block]]:
        for start, block in blocks():
            yield start, block.shuffled(np.random.default_rng([seed, start]))

    return shuffled


def _chosen(block: Block, start: int, share: float, seed: int) -> tuple[Index, Index, Array]:
    found = []
    for i, j in tiles(block.shape[0], max(1, _ENTRIES // block.shape[1])):
        rows, features, values, weights = block.entries(i, j)
        # an entry of small weight says little about its own value
        keep = (_uniform(rows + start, features, seed) < share) & (weights > 0.5)
        found.append((rows[keep], features[keep], values[keep]))
    if not found:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]


def _uniform(rows: Index, features: Index, seed: int) -> Array:
    """Return a number in [0, 1) for each (row, feature): splitmix64 of both."""
    with np.errstate(over="ignore"):
        x = _mix(rows.astype(np.uint64) + _mix(np.uint64(seed)))
        x = _mix(x + features.astype(np.uint64))
    return np.asarray((x >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mix(x: Any) -> Any:
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
