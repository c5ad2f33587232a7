"""Results as rows of a CSV file, written as they come, so that an interrupted run resumes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

__all__ = ["SPEED", "SYNTHESIS", "TASKS", "Store"]

logger = logging.getLogger("cellsmith")

SYNTHESIS = ("file", "seed", "generator", "metric", "value", "control")
SPEED = ("quantity", "value", "detail")
TASKS = ("task", "file", "seed", "variant", "metric", "value")


class Store:
    """A tidy table on disk, or in memory.

    Parameters
    ----------
    columns
        Names of the columns.
    path
        CSV file; None keeps the rows in memory.
    """

    def __init__(self, columns: Sequence[str], path: Path | None = None) -> None:
        self.columns, self.path = list(columns), path
        self._rows = pd.DataFrame(columns=self.columns)
        if path is not None and path.is_file():
            self._rows = pd.read_csv(path)

    def has(self, **values: object) -> bool:
        """Tell whether a row with these values exists."""
        keep = pd.Series(True, index=self._rows.index)
        for column, value in values.items():
            keep &= self._rows[column].astype(str) == str(value)
        return bool(keep.any())

    def add(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Append rows; those of one call reach the file together.

        Parameters
        ----------
        rows
            Column -> value; numbers are kept to 6 digits.
        """
        new = pd.DataFrame(list(rows), columns=self.columns)
        for column in ("value", "control"):
            if column in new:
                new[column] = [float(f"{v:.6g}") for v in new[column].astype(float)]
        self._rows = new if self._rows.empty else pd.concat([self._rows, new], ignore_index=True)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = not self.path.is_file()
            new.to_csv(self.path, mode="a", header=fresh, index=False, lineterminator="\n")

    @property
    def table(self) -> pd.DataFrame:
        """All rows."""
        return self._rows.copy()

    def record(self, task: str, part: Any, variant: str, values: Mapping[str, float]) -> None:
        """Append the metrics of one variant of a task.

        Parameters
        ----------
        task
            Name of the task.
        part
            The cut, with ``file`` and ``seed``.
        variant
            What was run.
        values
            Metric -> value.
        """
        head = {"task": task, "file": part.file, "seed": part.seed, "variant": variant}
        self.add([{**head, "metric": m, "value": v} for m, v in values.items()])
        shown = {k: round(v, 3) for k, v in values.items()}
        logger.info("%s, %s, seed %d, %s: %s", task, part.file, part.seed, variant, shown)
