"""Models of the probability p_id that an entry is observed (section 4.7), and what the estimator asks of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError
from cellsmith.math.gram._rows import tiles
from cellsmith.math.gram.blocks import Blocks
from cellsmith.math.gram.statistics import Stats

__all__ = [
    "FLOOR",
    "GroupedProbability",
    "Probability",
    "Rank1Probability",
    "ScalarProbability",
    "TableProbability",
    "custom_probability",
    "fit_grouped",
    "fit_rank1",
]

Array: TypeAlias = npt.NDArray[np.float64]
FLOOR = 1e-3  # lowest p: below it, an inverse overlap is noise
_ENTRIES = 1 << 22  # probabilities formed at once


class Probability(ABC):
    """p_id of n cells and D features; cells that share all their probabilities are one *type*."""

    n_cells: int
    n_features: int

    @cached_property
    @abstractmethod
    def types(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """A cell of each type (t,), and the type of each cell (n,)."""

    @abstractmethod
    def block(self, cells: npt.NDArray[np.int64]) -> Array:
        """Probabilities of some cells, (m, D)."""

    def state(self) -> dict[str, Array]:
        """Arrays from which the model of new cells can be built again; empty where there are none to keep."""
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
    def mean_overlap(self) -> Array:
        """Mean over the other cells j of N_ij = sum_d p_id p_jd, (n,), in features (section 4.5)."""
        return self.overlap_with(self._sums[2]) if self.n_cells > 1 else np.zeros(self.n_cells)

    def overlap_with(self, col_sums: Array) -> Array:
        """(sum_d p_id ``col_sums``_d - N_ii) / (n - 1), (n,), for the sums of p over the n cells, (D,)."""
        cells, kind = self.types
        step = max(1, _ENTRIES // max(1, self.n_features))
        with_all = np.concatenate([self.block(cells[i:j]) @ col_sums for i, j in tiles(cells.size, step)])
        return np.asarray((with_all[kind] - self.self_overlap) / max(1, self.n_cells - 1))

    def overlap(self, pairs: npt.ArrayLike) -> Array:
        """N_ij = sum_d p_id p_jd of pairs of cells (i, j), (m, 2) -> (m,); N_ii for a pair of a cell with itself."""
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
        """N_ij between all cells here and all cells of ``other``, (n, m)."""
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
        ``"logistic"``: t = a, f = b, p = max(1e-3, sigmoid(a_i + b_d)), b = +inf for a feature that every cell observed.
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
        _, first, kind = np.unique(self.scalars, return_index=True, return_inverse=True)
        return first, kind.reshape(-1)

    def curve(self, t: Array) -> Array:
        """Probabilities (m, D) at values ``t`` (m,) of the scalar."""
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
        """The scalar of each cell and of each feature."""
        return {"scalars": self.scalars, "features": self.features}


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
        _, first, kind = np.unique(self.row_rates, return_index=True, return_inverse=True)
        return first, kind.reshape(-1)

    def block(self, cells: npt.NDArray[np.int64]) -> Array:
        """Probabilities of some cells, (m, D)."""
        return np.asarray(self.row_rates[cells][:, None] * self.col_rates[None, :] / self.level)

    def new_cells(self, row_counts: npt.ArrayLike) -> Rank1Probability:
        """Probabilities of new cells from their numbers of observed entries (m,), the features fixed."""
        rates = np.asarray(row_counts, dtype=np.float64) / self.n_features
        return Rank1Probability(rates, self.col_rates, self.level)

    def state(self) -> dict[str, Array]:
        """Rates and level."""
        return {"scalars": self.row_rates, "features": self.col_rates, "level": np.array([self.level])}


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
    def n_cells(self) -> int:  # type: ignore[override]
        """Number of cells."""
        return self.groups.size

    @property
    def n_features(self) -> int:  # type: ignore[override]
        """Number of features."""
        return self.table.shape[1]

    @cached_property
    def types(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Cells of one group are one type."""
        _, first, kind = np.unique(self.groups, return_index=True, return_inverse=True)
        return first, kind.reshape(-1)

    def block(self, cells: npt.NDArray[np.int64]) -> Array:
        """Probabilities of some cells, (m, D)."""
        return np.asarray(self.table[self.groups[cells]])

    def new_cells(self, groups: npt.ArrayLike) -> GroupedProbability:
        """Probabilities of new cells of known groups, (m,) numbers as in the fit."""
        return GroupedProbability(np.asarray(groups, dtype=np.int64), self.table)

    def state(self) -> dict[str, Array]:
        """The table."""
        return {"groups": self.groups.astype(np.float64), "table": self.table}


@dataclass(frozen=True)
class TableProbability(Probability):
    """p_id as the caller gives it: ``rows`` maps cell numbers (m,) to probabilities (m, D)."""

    rows: Callable[[npt.NDArray[np.int64]], npt.NDArray[Any]]
    shape: tuple[int, int]
    names: str = field(default="prob")

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
        """Probabilities of some cells, (m, D), at least 1e-3."""
        p = np.asarray(self.rows(np.asarray(cells)), dtype=np.float64)
        if p.shape != (len(cells), self.n_features):
            raise SetupError(
                f"{self.names} returned shape {p.shape} for {len(cells)} cells, expected {(len(cells), self.n_features)}."
            )
        # A product of two factors may exceed 1 by rounding; anything beyond is no probability.
        if not (np.isfinite(p).all() and p.min(initial=0.0) >= 0 and p.max(initial=0.0) <= 1 + 1e-6):
            raise SetupError(
                f"{self.names} holds values from {np.nanmin(p)} to {np.nanmax(p)}, expected probabilities in [0, 1]."
            )
        return np.clip(p, FLOOR, 1.0)


def fit_rank1(stats: Stats, *, legacy: bool = False) -> Rank1Probability | ScalarProbability:
    """p_id = r_i c_d / c from the margins (section 4.7).

    Parameters
    ----------
    stats
        Margins of the mask.
    legacy
        As the authors' public code: where a product r_i c_d exceeds c, *all* entries are divided by the largest
        product. By default such entries are clipped at 1.

    Returns
    -------
    :class:`Rank1Probability` where the product form holds exactly, :class:`ScalarProbability` where clipping bites.

    Raises
    ------
    SetupError
        If a cell or a feature has no observed entry.
    """
    _check_live(stats.row_counts, stats.col_counts)
    r, c, level = stats.row_rates, stats.col_rates, stats.observed_rate
    largest = float(r.max() * c.max())
    if legacy:
        return Rank1Probability(r, c, max(level, largest))
    if largest <= level * (1 + 1e-12) and float(r.min() * c.min()) >= FLOOR * level:
        return Rank1Probability(r, c, level)
    return ScalarProbability("rank1", r, c / level)


def fit_grouped(blocks: Blocks, groups: npt.ArrayLike) -> GroupedProbability:
    """Observed rate of each group and feature, shrunk: (x + 1/2) / (m + 1) of x observed among m cells.

    Parameters
    ----------
    blocks
        Rows of the data.
    groups
        Number of the group of each cell, (n,), counted from 0.

    Raises
    ------
    SetupError
        If there are not as many groups as cells.
    """
    codes = np.asarray(groups, dtype=np.int64)
    n_groups = int(codes.max(initial=-1)) + 1
    observed, seen = None, 0
    for start, block in blocks():
        rows = codes[start : start + block.shape[0]]
        if rows.size != block.shape[0]:
            raise SetupError(f"Found {codes.size} groups, expected one for each cell.")
        part = block.mask_tdot(np.eye(n_groups)[rows])
        observed = part if observed is None else observed + part
        seen += rows.size
    if observed is None or seen != codes.size:
        raise SetupError(f"Found {codes.size} groups for {seen} cells, expected one for each cell.")
    sizes = np.bincount(codes, minlength=n_groups)
    return GroupedProbability(codes, (observed.T + 0.5) / (sizes[:, None] + 1.0))


def custom_probability(values: Any, *, shape: tuple[int, int] | None = None) -> TableProbability:
    """Probabilities that the caller knows.

    Parameters
    ----------
    values
        An array (n, D); a pair of factors (n, q) and (D, q) whose product it is; or a callable that maps cell numbers
        (m,) to probabilities (m, D).
    shape
        (n, D); needed for a callable, checked for the others.

    Raises
    ------
    SetupError
        If the shape is not known or another one.
    """
    if callable(values):
        if shape is None:
            raise SetupError("A callable needs shape=(cells, features).")
        return TableProbability(values, shape)
    if isinstance(values, tuple):
        u, v = (np.asarray(x, dtype=np.float64) for x in values)
        if u.ndim != 2 or v.ndim != 2 or u.shape[1] != v.shape[1]:
            raise SetupError(f"Found factors of shape {u.shape} and {v.shape}, expected (cells, q) and (features, q).")
        found, rows = (u.shape[0], v.shape[0]), lambda cells: np.clip(u[cells] @ v.T, 0.0, 1.0)
    else:
        table = np.asarray(values)
        if table.ndim != 2:
            raise SetupError(f"Found probabilities of shape {table.shape}, expected (cells, features).")
        found, rows = (table.shape[0], table.shape[1]), lambda cells: table[cells]
    if shape is not None and tuple(shape) != found:
        raise SetupError(f"Found probabilities of shape {found}, expected {tuple(shape)}, the shape of the data.")
    return TableProbability(rows, found)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow; exactly 0 and 1 at the infinities."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


def _solve_scalars(counts: Array, features: Array) -> Array:
    """A with sum_d sigmoid(a + b_d) = count, by safeguarded Newton; |a| <= 8."""
    distinct, where = np.unique(counts, return_inverse=True)
    free = features[np.isfinite(features)]
    target = distinct - (features.size - free.size)
    low, high = np.full(distinct.size, -8.0), np.full(distinct.size, 8.0)
    a = np.clip(np.log((target.clip(0) + 0.5) / (free.size - target + 1).clip(0.5)), -8, 8)
    for _ in range(60):
        p = sigmoid(a[:, None] + free[None, :])
        gap = p.sum(axis=1) - target
        low, high = np.where(gap < 0, a, low), np.where(gap > 0, a, high)
        step = a - gap / np.maximum((p * (1 - p)).sum(axis=1), 1e-12)
        # outside the bracket Newton overshot: halve the bracket instead
        new = np.where((step > low) & (step < high), step, 0.5 * (low + high))
        new = np.where((a >= 8) & (gap < 0), 8.0, np.where((a <= -8) & (gap > 0), -8.0, new))
        if np.max(np.abs(new - a), initial=0.0) < 1e-12:
            break
        a = new
    return np.asarray(a[where.reshape(-1)])


def _check_live(row_counts: Array, col_counts: Array) -> None:
    for name, counts in (("cells", row_counts), ("features", col_counts)):
        empty = np.flatnonzero(~(counts > 0))
        if empty.size:
            raise SetupError(
                f"{empty.size} {name} have no observed entry (first: number {empty[0]}); their probabilities are "
                "undetermined. Leave them out with select_blocks."
            )
