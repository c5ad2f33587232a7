"""Reading the tables: means over seeds for each file, over resolutions, and differences between methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from cellsmith.benchmark._clustering.cases import FILES
from cellsmith.benchmark._clustering.compare import BETWEEN
from cellsmith.benchmark._clustering.scoring import GRID, KNN

__all__ = ["MAIN", "THREE", "Clusters", "minus", "over_files"]

MAIN = "1200"
"""Which cells the bars judge: so many of a file."""
THREE = ("ari", "nmi", "macro_f1")
PerFile = Mapping[str, float]


def over_files(values: PerFile) -> float:
    """Return the mean over the files of the protocol; NaN unless all are there."""
    return float(np.mean([values[f] for f in FILES])) if set(FILES) <= set(values) else float("nan")


class Clusters:
    """The rows of ``clustering.csv`` and ``clustering_facts.csv``, for one choice of cells.

    Parameters
    ----------
    rows, facts
        The tables.
    cells
        Value of their column ``cells``.
    queries, speed
        ``clustering_queries.csv`` and ``clustering_speed.csv``; None: not there.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        facts: pd.DataFrame,
        cells: str = MAIN,
        *,
        queries: pd.DataFrame | None = None,
        speed: pd.DataFrame | None = None,
    ) -> None:
        keys = ["file", "seed", "method"]
        rows, facts = rows[rows["cells"].astype(str) == cells], facts[facts["cells"].astype(str) == cells]
        self.rows = rows.drop_duplicates([*keys, "reading"], keep="last")
        self.facts = facts.drop_duplicates([*keys, "metric"], keep="last")
        self.queries = pd.DataFrame() if queries is None else queries
        self._speed = {} if speed is None else dict(zip(speed["quantity"], speed["value"].astype(float), strict=True))

    def speed(self, quantity: str) -> float:
        """Return a quantity of ``clustering_speed.csv``; NaN where it was not measured."""
        return float(self._speed.get(quantity, np.nan))

    def query(self, lengths: str, metric: str) -> dict[str, float]:
        """Return the mean over seeds of a row of ``clustering_queries.csv`` for every file."""
        if self.queries.empty:
            return {}
        mine = self.queries[(self.queries["lengths"] == lengths) & (self.queries["metric"] == metric)]
        return {str(f): float(v) for f, v in mine.groupby("file")["value"].mean().items()}

    def methods(self) -> list[str]:
        """Return the methods that were run, in the order of the rows."""
        return list(dict.fromkeys(self.rows["method"]))

    def seeds(self, method: str) -> int:
        """Return how many seeds of a method every file has, at least."""
        mine = self.rows[self.rows["method"] == method]
        return min((mine.loc[mine["file"] == f, "seed"].nunique() for f in FILES), default=0)

    def per_file(self, method: str, reading: str, metric: str = "ari") -> dict[str, float]:
        """Return the mean over seeds of every file that has the reading."""
        mine = self.rows[(self.rows["method"] == method) & (self.rows["reading"] == reading)]
        means = mine.groupby("file")[metric].mean().dropna()
        return {str(file): float(value) for file, value in means.items()}

    def mean(self, method: str, reading: str, metric: str = "ari") -> float:
        """Return the mean over the files; NaN unless all are there."""
        return over_files(self.per_file(method, reading, metric))

    def three(self, method: str, reading: str) -> dict[str, float]:
        """Return the mean of ARI, NMI and macro-F1 for every file."""
        found = [self.per_file(method, reading, metric) for metric in THREE]
        return {file: float(np.mean([f[file] for f in found])) for file in found[0]}

    def grid(self, method: str, *, common: bool = False) -> dict[str, float]:
        """Return the mean ARI over the seven resolutions for every file.

        With ``common`` on the 15 nearest neighbours of the latent, else on the graph of the method.
        """
        own = f"{KNN}Leiden {GRID[0]}" in set(self.rows.loc[self.rows["method"] == method, "reading"])
        prefix = KNN if common and own else ""
        found = [self.per_file(method, f"{prefix}Leiden {r}") for r in GRID]
        return {file: float(np.mean([f[file] for f in found])) for file in found[0]}

    def best_of_grid(self, method: str) -> dict[str, float]:
        """Return, for every file, the best mean ARI of a resolution on the method's graph: it uses the labels."""
        found = [self.per_file(method, f"Leiden {r}") for r in GRID]
        return {file: max(f[file] for f in found) for file in found[0]}

    def fact(self, method: str, metric: str) -> dict[str, float]:
        """Return the mean over seeds of a fact for every file."""
        mine = self.facts[(self.facts["method"] == method) & (self.facts["metric"] == metric)]
        return {str(file): float(value) for file, value in mine.groupby("file")["value"].mean().items()}

    def agreement(self, method: str) -> dict[str, float]:
        """Return the mean ARI between the clusters of two seeds for every file."""
        mine = self.facts[(self.facts["method"] == method) & self.facts["metric"].str.startswith(BETWEEN)]
        return {str(file): float(value) for file, value in mine.groupby("file")["value"].mean().items()}


def minus(a: PerFile, b: PerFile, files: Iterable[str] = tuple(FILES)) -> dict[str, float]:
    """Return a minus b of the files that both have."""
    return {f: a[f] - b[f] for f in files if f in a and f in b}
