"""Reading the tables: the ablation against the default, and the rule that decides on it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from cellsmith.benchmark._annotation.results import Difference, difference
from cellsmith.benchmark._missingness.results import Tables
from cellsmith.benchmark._scsiameseclu.ablation import TASK, TUNING
from cellsmith.benchmark._scsiameseclu.variants import BATCHED, CHANGES, DEFAULT, Change

__all__ = ["MARGIN", "SCORES", "against_default", "named", "row_values"]

SCORES = ("ari", "rare_f1", "nmi", "macro_f1")
MARGIN = 0.01


def row_values(results: Tables, name: str, metric: str, *, files: tuple[str, ...] = TUNING) -> pd.Series:
    """Return one value a file and seed: the mean over the ways that the row can touch."""
    ways = {**BATCHED, **CHANGES}[name].ways
    found = [results.values(TASK + way, name, metric) for way in ways]
    table = pd.concat([v.groupby(level=["file", "seed"]).mean() for v in found], axis=1)
    # A file and seed counts where all its ways were run.
    means = table.dropna().mean(axis=1)
    return means[means.index.get_level_values("file").isin(files)]


def against_default(
    results: Tables, name: str, metric: str, *, files: tuple[str, ...] = TUNING, ways: tuple[str, ...] | None = None
) -> Difference:
    """Return the row minus the default over file x seed, ways paired; None: all ways that the row can touch."""
    parts = []
    for way in {**BATCHED, **CHANGES}[name].ways if ways is None else ways:
        pair = [results.values(TASK + way, n, metric).groupby(level=["file", "seed"]).mean() for n in (name, DEFAULT)]
        parts.append(pair[0] - pair[1])
    table = pd.concat(parts, axis=1).dropna().mean(axis=1)
    return difference(table[table.index.get_level_values("file").isin(files)].to_numpy(dtype=float))


def named(gaps: Mapping[str, float], change: Change, *, first: tuple[str, str] = ("ari", "rare_f1")) -> bool | None:
    """Apply the rule to one row: whether it should replace the default.

    Parameters
    ----------
    gaps
        Score -> mean of the row minus the default, higher is better.
    change
        Whether it adds or takes away.
    first
        The scores of which one has to be better.

    Returns
    -------
    None, where a score is not known.
    """
    if not np.isfinite([gaps[s] for s in (*first, "nmi", "macro_f1")]).all():
        return None
    sign = 1.0 if change.adds else -1.0
    # What is there (or comes in) has to be better in one of the first two and not worse in the others.
    better = any(sign * gaps[s] >= MARGIN for s in first)
    worse = any(sign * gaps[s] < -MARGIN for s in ("nmi", "macro_f1"))
    earns = better and not worse
    return earns if change.adds else not earns
