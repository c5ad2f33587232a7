"""Reading the tables: means over seeds, and paired differences between columns with their intervals."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from cellsmith.benchmark._annotation.results import Difference, Results, difference

__all__ = ["Tables"]


class Tables(Results):
    """The rows of ``missingness.csv`` and ``missingness_speed.csv``.

    A task ends in its number of components, so that ``"R, logistic, "`` stands for the same masks at 10 and at 20.

    Parameters
    ----------
    rows
        Columns ``task, file, seed, variant, metric, value``.
    speed
        Columns ``quantity, value, detail``.
    """

    def __init__(self, rows: pd.DataFrame, speed: pd.DataFrame) -> None:
        keys = ["task", "file", "seed", "variant", "metric"]
        self._kept: dict[tuple[str, str | None, str | None], pd.DataFrame] = {}
        super().__init__(rows.drop_duplicates(keys, keep="last"), speed)

    def of(self, task: str, *, file: str | None = None, variant: str | None = None) -> pd.DataFrame:
        """Return the rows of tasks that start with `task`; kept, because the page asks the same again and again."""
        key = (task, file, variant)
        if key not in self._kept:
            self._kept[key] = super().of(task, file=file, variant=variant)
        return self._kept[key]

    def of_seed(self, task: str, variant: str, metric: str, *, file: str | None = None) -> pd.Series:
        """Return one value a file and seed: the mean over tasks that start with `task`, indexed by (file, seed)."""
        found = self.values(task, variant, metric, file=file)
        return found.groupby(level=["file", "seed"]).mean()

    def gap(self, task: str, ours: str, theirs: str, *, metric: str, file: str | None = None) -> Difference:
        """Return ours minus theirs over the runs that both have; components of one seed are averaged first."""
        a, b = (self.values(task, v, metric, file=file) for v in (ours, theirs))
        both = (a - b).dropna().groupby(level=["file", "seed"]).mean()
        return difference(both.to_numpy(dtype=float))

    def per_file(self, task: str, ours: str, theirs: str, *, metric: str, files: Iterable[str]) -> dict[str, float]:
        """Return the mean paired difference of each file; files without a run are left out."""
        found = {file: self.gap(task, ours, theirs, metric=metric, file=file).mean for file in files}
        return {file: value for file, value in found.items() if np.isfinite(value)}

    def complete(self, task: str, variant: str, files: Iterable[str], *, seeds: int = 3) -> bool:
        """Tell whether a column has at least so many seeds of a task on every file."""
        return all(len(self.of_seed(task, variant, "sin_theta", file=file)) >= seeds for file in files)
