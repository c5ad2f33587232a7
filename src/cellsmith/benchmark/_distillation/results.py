"""Reading the tables: means over cuts, paired differences and their two intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellsmith.benchmark._annotation.results import difference
from cellsmith.benchmark._distillation.peers import FULL
from cellsmith.benchmark._distillation.recipe import CORE
from cellsmith.benchmark._distillation.scoring import NO_MODEL

__all__ = ["MEAN", "Gap", "Results"]

MEAN = "mean"
"""The mean of logistic regression, MLP and nearest neighbour."""


@dataclass(frozen=True)
class Gap:
    """Mean of paired differences, its 95 % interval (Student's t), and the corrected one.

    Cuts share cells, so that the plain interval is too short; the corrected one has the variance
    sd^2 (1 / cuts + n_test / n_train) (Nadeau and Bengio, 2003).
    """

    mean: float
    low: float
    high: float
    corrected_low: float
    corrected_high: float
    runs: int


class Results:
    """The rows of ``distillation.csv``.

    Parameters
    ----------
    rows
        Columns ``file, split, method, budget, model, metric, value``.
    """

    def __init__(self, rows: pd.DataFrame) -> None:
        self.rows = rows.astype({"value": float, "budget": int, "split": int})
        # A page asks some thousand times; looking through all rows each time took half a minute.
        self._places = self.rows.groupby(["file", "method", "budget", "metric"]).indices

    def values(self, file: str, method: str, *, budget: int, metric: str = "accuracy", model: str = MEAN) -> pd.Series:
        """Return one value a cut, indexed by the seed of the cut."""
        places = self._places.get((file, method, 0 if method == FULL else budget, metric), [])
        rows = self.rows.iloc[places]
        table = rows.pivot_table(index="split", columns="model", values="value", aggfunc="last")
        wanted = list(CORE) if model == MEAN else [model]
        return table[wanted].mean(axis=1) if set(wanted) <= set(table.columns) else pd.Series(dtype=float)

    def mean(self, file: str, method: str, *, budget: int, metric: str = "accuracy", model: str = MEAN) -> float:
        """Return the mean over cuts; NaN where there is none."""
        found = self.values(file, method, budget=budget, metric=metric, model=model)
        return float(found.mean()) if len(found) else float("nan")

    def gap(
        self, file: str, ours: str, theirs: str, *, budget: int, metric: str = "accuracy", model: str = MEAN
    ) -> Gap:
        """Return ours minus theirs over the cuts that both have; NaN where there is none."""
        pair = [self.values(file, m, budget=budget, metric=metric, model=model) for m in (ours, theirs)]
        values = (pair[0] - pair[1]).dropna().to_numpy()
        plain = difference(values)
        ratio = self._ratio(file, ours, budget)
        # The plain half width is proportional to sqrt(1 / J).
        half = (plain.high - plain.mean) * np.sqrt(1.0 + plain.runs * ratio)
        return Gap(plain.mean, plain.low, plain.high, plain.mean - half, plain.mean + half, plain.runs)

    def _ratio(self, file: str, method: str, budget: int) -> float:
        sizes = [self.mean(file, method, budget=budget, metric=m, model=NO_MODEL) for m in ("n_test", "n_train")]
        return sizes[0] / sizes[1]

    def methods(self, file: str | None = None) -> list[str]:
        """Return the methods that were run, in the order of the rows."""
        rows = self.rows if file is None else self.rows[self.rows["file"] == file]
        return list(dict.fromkeys(rows["method"]))

    def budgets(self, file: str) -> list[int]:
        """Return the budgets that were run, ascending, without that of all cells."""
        found = self.rows.loc[self.rows["file"] == file, "budget"].unique()
        return sorted(int(b) for b in found if b > 0)
