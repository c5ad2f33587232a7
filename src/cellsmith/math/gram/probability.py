"""Models of the probability p_id that an entry is observed (Eq. 7), and what the estimator asks of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError
from cellsmith.math.gram._rows import tiles

__all__ = [
    "FLOOR",
    "GroupedProbability",
    "Probability",
    "Rank1Probability",
    "ScalarProbability",
    "TableProbability",
    "equal_rows",
    "margins_of",
    "sigmoid",
]

Array: TypeAlias = npt.NDArray[np.float64]
FLOOR = 1e-3  # lowest p: below it, an inverse overlap is noise
_ENTRIES = 1 << 20  # probabilities formed at once


class Probability(ABC):
    """p_id of n cells and D features; cells that share all their probabilities are one *type*."""

    n_cells: int
    n_features: int
    kind: str

    @cached_property
    @abstractmethod
    def types(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """A cell of each type (t,), and the type of each cell (n,)."""

    @abstractmethod
    def block(self, cells: npt.NDArray[np.int64]) -> Array:
        """Probabilities of some cells, (m, D)."""

    def state(self) -> dict[str, Array]:
        """Return the arrays from which :func:`probability_from_state` builds it again; empty for a custom one.

        They have the names by which users meet them, see :data:`STATE_AXES`.
        """
        return {}

    @cached_property
    def _sums(self) -> tuple[Array, Array, Array]:
        cells, kind = self.types
        size = np.bincount(kind, minlength=cells.size).astype(np.float64)
        rows, squares, cols = np.empty(cells.size), np.empty(cells.size), np.zeros(self.n_features)
        for i, j in tiles(cells.size, max(1, _ENTRIES // max(1, self.n_features))):
            p = self.block(cells[i:j])
            rows[i:j] = p.sum(axis=1)
            squares[i:j] = np.einsum("id,id->i", p, p)
            cols += size[i:j] @ p
        return rows[kind], squares[kind], cols

    @property
    def row_sums(self) -> Array:
        """sum_d p_id, (n,): the expected number of observed features of each cell."""
        return self._sums[0]

    @property
    def self_overlap(self) -> Array:
        """N_ii = sum_d p_id^2, (n,)."""
        return self._sums[1]

    @property
    def col_sums(self) -> Array:
        """sum_i p_id over the cells, (D,)."""
        return self._sums[2]

    @property
    def mean_overlap(self) -> Array:
        """Mean over the other cells j of N_ij = sum_d p_id p_jd, (n,), in features (Eq. 5)."""
        return self.overlap_with(self._sums[2]) if self.n_cells > 1 else np.zeros(self.n_cells)

    def overlap_with(self, col_sums: Array) -> Array:
        """(sum_d p_id C_d - N_ii) / (n - 1), (n,): the mean overlap with the other cells.

        Parameters
        ----------
        col_sums
            C_d = sum_i p_id over the n cells, (D,).
        """
        cells, kind = self.types
        step = max(1, _ENTRIES // max(1, self.n_features))
        with_all = np.concatenate([self.block(cells[i:j]) @ col_sums for i, j in tiles(cells.size, step)])
        return np.asarray((with_all[kind] - self.self_overlap) / max(1, self.n_cells - 1))

    def overlap(self, pairs: npt.ArrayLike) -> Array:
        """N_ij = sum_d p_id p_jd of pairs of cells (i, j), (m,); N_ii for a pair of a cell with itself.

        Parameters
        ----------
        pairs
            Cell numbers, (m, 2).
        """
        asked = np.asarray(pairs, dtype=np.int64)
        cells, kind = self.types
        left, right = cells[kind[asked[:, 0]]], cells[kind[asked[:, 1]]]
        out = np.empty(asked.shape[0])
        for i, j in tiles(asked.shape[0], max(1, _ENTRIES // max(1, 2 * self.n_features))):
            first, where = np.unique(left[i:j], return_inverse=True)
            second, there = np.unique(right[i:j], return_inverse=True)
            out[i:j] = np.einsum("id,id->i", self.block(first)[where], self.block(second)[there])
        return out

    def cross_overlap(self, other: Probability) -> Array:
        """N_ij between all cells here and all cells there, (n, m).

        Parameters
        ----------
        other
            Probabilities of m cells and the same features.
        """
        mine, kind = self.types
        theirs, other_kind = other.types
        right = other.block(theirs)
        step = max(1, _ENTRIES // max(1, self.n_features))
        table = [self.block(mine[i:j]) @ right.T for i, j in tiles(mine.size, step)]
        return np.asarray(np.concatenate(table)[kind][:, other_kind])


@dataclass(frozen=True)
class ScalarProbability(Probability):
    """p_id = link(t_i, f_d): one number for each cell, one for each feature.

    Attributes
    ----------
    kind
        ``"logistic"``: t = a, f = b, p = max(1e-3, sigmoid(a_i + b_d)), b = +inf for a feature that all cells observed.
        ``"rank1"``: t = r, f = c_d / c, p = min(1, max(1e-3, r_i c_d / c)).
    scalars
        t, (n,).
    features
        f, (D,).
    margin_error
        Largest difference between an observed and a fitted row count; NaN where nothing was fitted.
    history
        Margin error of each round.
    """

    kind: str
    scalars: Array
    features: Array
    margin_error: float = float("nan")
    history: tuple[float, ...] = ()

    @property
    def n_cells(self) -> int:  # type: ignore[override]
        """Number of cells."""
        return self.scalars.size

    @property
    def n_features(self) -> int:  # type: ignore[override]
        """Number of features."""
        return self.features.size

    @cached_property
    def types(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Cells of equal t are one type."""
        return equal_rows(self.scalars)

    def curve(self, t: Array) -> Array:
        """Probabilities (m, D) at values of the scalar.

        Parameters
        ----------
        t
            (m,).
        """
        if self.kind == "rank1":
            return np.clip(t[:, None] * self.features[None, :], FLOOR, 1.0)
        p = sigmoid(t[:, None] + self.features[None, :])
        return np.maximum(p, FLOOR, out=p)

    def block(self, cells: npt.NDArray[np.int64]) -> Array:
        """Probabilities of some cells, (m, D)."""
        return self.curve(self.scalars[cells])

    def at(self, scalars: Array) -> ScalarProbability:
        """Return the same features with other cells."""
        return ScalarProbability(self.kind, np.asarray(scalars, dtype=np.float64), self.features)

    def new_cells(self, row_counts: npt.ArrayLike) -> ScalarProbability:
        """Probabilities of new cells from their numbers of observed entries, the features fixed.

        Parameters
        ----------
        row_counts
            Observed entries of each new cell, (m,), above 0.
        """
        counts = np.asarray(row_counts, dtype=np.float64)
        if self.kind == "rank1":
            return self.at(counts / self.n_features)
        return self.at(_solve_scalars(counts, self.features))

    def state(self) -> dict[str, Array]:
        """Return a (n,) and b (D,), or r (n,) and c over its mean (D,)."""
        names = ("r", "c") if self.kind == "rank1" else ("a", "b")
        return dict(zip(names, (self.scalars, self.features), strict=True))


@dataclass(frozen=True)
class Rank1Probability(Probability):
    """p_id = r_i c_d / c', exactly of rank one (Eq. 9).

    Attributes
    ----------
    row_rates, col_rates
        r (n,) and c (D,): observed shares.
    level
        c': the mean share c, in the legacy form the largest product r_i c_d where that exceeds c.
    """

    row_rates: Array
    col_rates: Array
    level: float

    @property
    def kind(self) -> str:  # type: ignore[override]
        """``"product"``."""
        return "product"

    @property
    def n_cells(self) -> int:  # type: ignore[override]
        """Number of cells."""
        return self.row_rates.size

    @property
    def n_features(self) -> int:  # type: ignore[override]
        """Number of features."""
        return self.col_rates.size

    @property
    def kappa(self) -> float:
        """c'^2 / sum_d c_d^2, so that 1 / N_ij = kappa / (r_i r_j)."""
        return float(self.level**2 / np.sum(self.col_rates**2))

    @cached_property
    def types(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Cells of equal r are one type."""
        return equal_rows(self.row_rates)

    def block(self, cells: npt.NDArray[np.int64]) -> Array:
        """Probabilities of some cells, (m, D)."""
        return np.asarray(self.row_rates[cells][:, None] * self.col_rates[None, :] / self.level)

    def new_cells(self, row_counts: npt.ArrayLike) -> Rank1Probability:
        """Probabilities of new cells from their numbers of observed entries (m,), the features fixed."""
        rates = np.asarray(row_counts, dtype=np.float64) / self.n_features
        return Rank1Probability(rates, self.col_rates, self.level)

    def state(self) -> dict[str, Array]:
        """Return r (n,), c (D,) and the level c'."""
        return {"r": self.row_rates, "c": self.col_rates, "level": np.array([self.level])}


@dataclass(frozen=True)
class GroupedProbability(Probability):
    """p_id = table[group of i, d].

    Attributes
    ----------
    groups
        Number of the group of each cell, (n,).
    table
        (groups, D) probabilities.
    """

    groups: npt.NDArray[np.int64]
    table: Array

    @property
    def kind(self) -> str:  # type: ignore[override]
        """``"grouped"``."""
        return "grouped"

    @property
    def n_cells(self) -> int:  # type: ignore[override]
        """Number of cells."""
        return self.groups.size

    @property
    def n_features(self) -> int:  # type: ignore[override]
        """Number of features."""
        return int(self.table.shape[1])

    @cached_property
    def types(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Cells of one group are one type."""
        return equal_rows(self.groups)

    def block(self, cells: npt.NDArray[np.int64]) -> Array:
        """Probabilities of some cells, (m, D)."""
        return np.asarray(self.table[self.groups[cells]])

    def new_cells(self, groups: npt.ArrayLike) -> GroupedProbability:
        """Probabilities of new cells of known groups, (m,) numbers as in the fit."""
        return GroupedProbability(np.asarray(groups, dtype=np.int64), self.table)

    def state(self) -> dict[str, Array]:
        """Return the groups (n,) and the table, (D, groups)."""
        return {"groups": self.groups.astype(np.float64), "table": self.table.T}


@dataclass(frozen=True)
class TableProbability(Probability):
    """p_id as the caller gives it.

    Attributes
    ----------
    rows
        Maps cell numbers (m,) to probabilities (m, D).
    shape
        (n, D).
    """

    rows: Callable[[npt.NDArray[np.int64]], npt.NDArray[Any]]
    shape: tuple[int, int]

    @property
    def kind(self) -> str:  # type: ignore[override]
        """``"given"``."""
        return "given"

    @property
    def n_cells(self) -> int:  # type: ignore[override]
        """Number of cells."""
        return self.shape[0]

    @property
    def n_features(self) -> int:  # type: ignore[override]
        """Number of features."""
        return self.shape[1]

    @cached_property
    def types(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Every cell is a type of its own."""
        every = np.arange(self.n_cells)
        return every, every

    def block(self, cells: npt.NDArray[np.int64]) -> Array:
        """Probabilities of some cells, (m, D), at least 1e-3.

        Parameters
        ----------
        cells
            Numbers of the cells, (m,).

        Raises
        ------
        SetupError
            If the caller's values have another shape or are no probabilities.
        """
        p = np.asarray(self.rows(np.asarray(cells)), dtype=np.float64)
        if p.shape != (len(cells), self.n_features):
            raise SetupError(
                f"prob returned shape {p.shape} for {len(cells)} cells, expected {(len(cells), self.n_features)}."
            )
        # A product of two factors may exceed 1 by rounding; anything beyond is no probability.
        if not (np.isfinite(p).all() and p.min(initial=0.0) >= 0 and p.max(initial=0.0) <= 1 + 1e-6):
            raise SetupError(
                f"prob holds values from {np.nanmin(p)} to {np.nanmax(p)}, expected probabilities in [0, 1]."
            )
        return np.clip(p, FLOOR, 1.0)


def equal_rows(x: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the first of each set of equal rows of x (n, ...), and the set of every row (n,)."""
    # numbers alone sort many times faster than rows of one
    _, first, kind = np.unique(x, axis=0 if x.ndim > 1 else None, return_index=True, return_inverse=True)
    return first, kind.reshape(-1)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow; exactly 0 and 1 at the infinities."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


def margins_of(t: Array, features: Array, sizes: Array) -> tuple[Array, Array]:
    """Return the sums over d of sizes_d p_d and of sizes_d p_d (1 - p_d) for p_d = sigmoid(t + f_d), both (m,).

    Parameters
    ----------
    t
        (m,).
    features, sizes
        f (D,), and how often each feature counts, (D,).
    """
    total, slope = np.empty(t.size), np.empty(t.size)
    for i, j in tiles(t.size, max(1, _ENTRIES // max(1, features.size))):
        p = sigmoid(t[i:j, None] + features[None, :])
        total[i:j] = p @ sizes
        p *= 1.0 - p
        slope[i:j] = p @ sizes
    return total, slope


def _solve_scalars(counts: Array, features: Array) -> Array:
    """Solve for a: sum_d sigmoid(a + b_d) = count, by safeguarded Newton; |a| <= 8."""
    distinct, where = np.unique(counts, return_inverse=True)
    free = features[np.isfinite(features)]
    target = distinct - (features.size - free.size)
    low, high = np.full(distinct.size, -8.0), np.full(distinct.size, 8.0)
    a = np.clip(np.log((target.clip(0) + 0.5) / (free.size - target + 1).clip(0.5)), -8, 8)
    for _ in range(60):
        total, slope = margins_of(a, free, np.ones(free.size))
        gap = total - target
        low, high = np.where(gap < 0, a, low), np.where(gap > 0, a, high)
        step = a - gap / np.maximum(slope, 1e-12)
        # outside the bracket Newton overshot: halve the bracket instead
        new = np.where((step > low) & (step < high), step, 0.5 * (low + high))
        new = np.where((a >= 8) & (gap < 0), 8.0, np.where((a <= -8) & (gap > 0), -8.0, new))
        if np.max(np.abs(new - a), initial=0.0) < 1e-12:
            break
        a = new
    return np.asarray(a[where.reshape(-1)])
