"""Reading the tables: means over runs, paired differences and their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

__all__ = ["Difference", "Results", "number", "points"]


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with its 95 % interval (Student's t over the runs), and the number of runs."""

    mean: float
    low: float
    high: float
    runs: int


def difference(values: np.ndarray) -> Difference:
    """Return mean and interval of differences (m,); the interval of fewer than two is NaN."""
    from scipy.stats import t

    values = values[np.isfinite(values)]
    n = len(values)
    if n == 0:
        return Difference(np.nan, np.nan, np.nan, 0)
    mean = float(values.mean())
    half = float(t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan
    return Difference(mean, mean - half, mean + half, n)


def number(value: float) -> str:
    """Write a number with three digits after the point; a dash where there is none."""
    if not np.isfinite(value):
        return "-"
    return f"{value:.3f}" if 1e-3 <= abs(value) < 100 or value == 0 else f"{value:.3g}"


def points(value: float) -> str:
    """Write a difference of shares in points, with its sign."""
    return f"{100 * value:+.1f}" if np.isfinite(value) else "-"


class Results:
    """The rows of ``annotation.csv`` and ``annotation_speed.csv``.

    Parameters
    ----------
    rows
        Columns ``task, file, seed, variant, metric, value``.
    speed
        Columns ``quantity, value, detail``.
    """

    def __init__(self, rows: pd.DataFrame, speed: pd.DataFrame) -> None:
        self.rows = rows.astype({"value": float})
        self._speed = speed.drop_duplicates("quantity", keep="last").set_index("quantity")

    @cached_property
    def wide(self) -> pd.DataFrame:
        """Runs (task, file, seed, metric) x methods."""
        return self.rows.pivot_table(
            index=["task", "file", "seed", "metric"], columns="variant", values="value", aggfunc="last"
        )

    def of(self, task: str, *, file: str | None = None, variant: str | None = None) -> pd.DataFrame:
        """Return the rows of tasks that start with `task`."""
        keep = self.rows["task"].astype(str).str.startswith(task)
        for column, value in (("file", file), ("variant", variant)):
            if value is not None:
                keep &= self.rows[column].astype(str) == value
        return self.rows[keep]

    def values(self, task: str, variant: str, metric: str, *, file: str | None = None) -> pd.Series:
        """Return one value a run, indexed by (task, file, seed)."""
        rows = self.of(task, file=file, variant=variant)
        rows = rows[rows["metric"] == metric]
        return rows.set_index(["task", "file", "seed"])["value"]

    def mean(self, task: str, variant: str, metric: str, *, file: str | None = None) -> float:
        """Return the mean over runs; NaN where there is none."""
        found = self.values(task, variant, metric, file=file)
        return float(found.mean()) if len(found) else float("nan")

    def paired(self, task: str, ours: str, theirs: str, *, metric: str, file: str | None = None) -> Difference:
        """Return ours minus theirs over the runs that both have."""
        a, b = (self.values(task, v, metric, file=file) for v in (ours, theirs))
        return difference((a - b).dropna().to_numpy(dtype=float))

    def quantity(self, name: str) -> float:
        """Return a measured quantity of speed; NaN where it was not run."""
        return float(self._speed.loc[name, "value"]) if name in self._speed.index else float("nan")

    def detail(self, name: str) -> str:
        """Return what was said about it."""
        return str(self._speed.loc[name, "detail"]) if name in self._speed.index else ""
