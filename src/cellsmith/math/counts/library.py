"""Models of the total number of counts of a cell (E10, E11)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError

__all__ = ["LogLibrary", "empirical_library", "lognormal_library"]

_MIN_CELLS = 20  # below this a condition borrows from its parent
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LogLibrary:
    """Scale of the log totals: u = (log l - mean) / sd (E10).

    Attributes
    ----------
    mean, sd
        Of the natural log of the totals; ``sd`` is 1 where all totals are equal.
    """

    mean: float
    sd: float

    @classmethod
    def fit(cls, totals: npt.ArrayLike) -> LogLibrary:
        """Measure the scale.

        Parameters
        ----------
        totals
            ``(n,)`` counts per cell, > 0.

        Returns
        -------
        The fitted scale.

        Raises
        ------
        SetupError
            If a total is not positive and finite.
        """
        logs = np.log(_positive(totals))
        sd = float(logs.std())
        return cls(float(logs.mean()), sd if sd > 1e-6 else 1.0)

    def standardise(self, totals: npt.ArrayLike) -> _Floats:
        """Map totals ``(n,)`` in counts to u ``(n,)``."""
        return np.asarray((np.log(_positive(totals)) - self.mean) / self.sd)

    def restore(self, u: npt.ArrayLike) -> _Floats:
        """Map u ``(n,)`` back to totals ``(n,)`` in counts (not rounded)."""
        return np.asarray(np.exp(np.asarray(u, dtype=np.float64) * self.sd + self.mean))


def lognormal_library(
    totals: npt.ArrayLike,
    conditions: npt.ArrayLike,
    wanted: npt.ArrayLike,
    *,
    generator: np.random.Generator,
    min_cells: int = _MIN_CELLS,
) -> _Floats:
    """Draw totals from a lognormal law fitted within each condition (E11, ``lognormal``).

    Parameters
    ----------
    totals
        ``(n,)`` counts per training cell, > 0.
    conditions
        ``(n,)`` or ``(n, K)`` integer codes of the training cells, the broadest covariate first.
    wanted
        ``(m,)`` or ``(m, K)`` codes of the cells to make; -1 = not specified.
    generator
        Source of randomness.
    min_cells
        A condition with fewer training cells uses its parent: the last covariate is dropped, then the one before.

    Returns
    -------
    ``(m,)`` totals in counts, float64, not rounded.
    """
    pool, table, rows = _prepared(totals, conditions, wanted)
    out = np.empty(rows.shape[0])
    for members, places in _matched(table, rows, min_cells):
        scale = LogLibrary.fit(pool[members])
        sd = scale.sd if np.ptp(pool[members]) > 0 else 0.0
        out[places] = np.exp(scale.mean + sd * generator.standard_normal(places.size))
    return out


def empirical_library(
    totals: npt.ArrayLike,
    conditions: npt.ArrayLike,
    wanted: npt.ArrayLike,
    *,
    generator: np.random.Generator,
    min_cells: int = _MIN_CELLS,
) -> _Floats:
    """Bootstrap totals within each condition (E11, ``empirical``).

    Parameters
    ----------
    totals
        ``(n,)`` counts per training cell, > 0.
    conditions
        ``(n,)`` or ``(n, K)`` integer codes of the training cells, the broadest covariate first.
    wanted
        ``(m,)`` or ``(m, K)`` codes of the cells to make; -1 = not specified.
    generator
        Source of randomness.
    min_cells
        A condition with fewer training cells uses its parent: the last covariate is dropped, then the one before.

    Returns
    -------
    ``(m,)`` totals in counts, float64, each the total of a training cell.
    """
    pool, table, rows = _prepared(totals, conditions, wanted)
    out = np.empty(rows.shape[0])
    for members, places in _matched(table, rows, min_cells):
        out[places] = pool[members[generator.integers(members.size, size=places.size)]]
    return out


def _positive(totals: npt.ArrayLike) -> _Floats:
    values = np.asarray(totals, dtype=np.float64).reshape(-1)
    bad = np.flatnonzero(~((values > 0) & np.isfinite(values)))
    if bad.size:
        raise SetupError(
            f"Found {bad.size} cells whose total is not positive, the first at position {bad[0]} ({values[bad[0]]}); "
            "expected totals > 0. Remove empty cells, e.g. with sc.pp.filter_cells(adata, min_counts=1)."
        )
    return values


def _prepared(totals: npt.ArrayLike, conditions: npt.ArrayLike, wanted: npt.ArrayLike) -> tuple[_Floats, Any, Any]:
    pool = _positive(totals)
    table, rows = (np.asarray(a, dtype=np.int64) for a in (conditions, wanted))
    table = table[:, None] if table.ndim == 1 else table
    rows = rows[:, None] if rows.ndim == 1 else rows
    if pool.size == 0 or table.shape[0] != pool.size or rows.shape[1] != table.shape[1]:
        raise SetupError(
            f"Found {pool.size} totals, conditions of shape {table.shape} and wanted conditions of shape {rows.shape}; "
            "expected one row of conditions for each total and the same covariates in both."
        )
    return pool, table, rows


def _matched(table: Any, rows: Any, min_cells: int) -> list[tuple[Any, Any]]:
    """Training cells that stand for each distinct wanted row, with the places of that row."""
    distinct, inverse = np.unique(rows, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    order = np.argsort(inverse, kind="stable")
    bounds = np.searchsorted(inverse[order], np.arange(distinct.shape[0] + 1))
    matched = []
    for k, row in enumerate(distinct):
        members = np.arange(table.shape[0])
        for depth in range(row.size, -1, -1):
            asked = np.flatnonzero(row[:depth] >= 0)
            members = np.flatnonzero((table[:, asked] == row[asked]).all(axis=1))
            if members.size >= min_cells:
                break
        matched.append((members, order[bounds[k] : bounds[k + 1]]))
    return matched
