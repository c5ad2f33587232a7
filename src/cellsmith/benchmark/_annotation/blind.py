"""Whether class masses are evened out by default: once, on files that no other row uses, by a rule written before."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from cellsmith.benchmark._annotation.compare import run_case
from cellsmith.benchmark._annotation.peers import grit, raw
from cellsmith.benchmark._annotation.results import Difference, Results, difference
from cellsmith.benchmark._annotation.transfer import few_cells, leave_out, prepare
from cellsmith.benchmark._files import load
from cellsmith.benchmark._store import Store

__all__ = ["CANDIDATES", "FILES", "SEEDS", "TASK", "blind", "file_gains", "gain"]

FILES: dict[str, str | None] = {
    "worm_neuron": None,
    "young_kidney": None,
    "paul15": None,
    "sc_mixology_5cl": None,
    "kang_ctrl_8donors": "batch",
}
"""File -> column whose parts are left out one by one, beside the task of 10 cells a type."""
SEEDS = tuple(range(5))
CANDIDATES = {
    "A: no correction, lambda 5": {"prior_correction": None, "smoothness_weight": 5.0},
    "B: half, lambda 5": {"prior_correction": "half", "smoothness_weight": 5.0},
    "C: half, lambda 2": {"prior_correction": "half", "smoothness_weight": 2.0},
}
"""Candidate -> what it passes to the door."""
TASK = "blind, "
"""What the names of these tasks start with."""


def blind(*, directory: Path, store: Store, files: Iterable[str] = FILES, seeds: Iterable[int] = SEEDS) -> None:
    """Run the candidates, and the raw scores beside them; rows that exist are skipped.

    Parameters
    ----------
    directory
        The benchmark data directory.
    store
        Where the rows go.
    files
        Names, of ``FILES``.
    seeds
        Seeds of the cells that teach.
    """
    methods = {"raw": raw}
    methods |= {name: lambda case, given=given: grit(case, **given) for name, given in CANDIDATES.items()}
    seeds = list(seeds)
    for file in files:
        data, key = prepare(load(directory, file), file=file), FILES[file]
        for seed in seeds:
            run_case(few_cells(data, seed), methods, store=store, prefix=TASK)
        for case in leave_out(data, key, seeds) if key is not None else ():
            run_case(case, methods, store=store, prefix=TASK)


def _by_file(results: Results, metric: str) -> pd.DataFrame:
    """Return seeds x (variant, file): parts of a kind first, then kinds of task."""
    rows = results.of(TASK)
    rows = rows[rows["metric"] == metric].copy()
    rows["kind"] = np.where(rows["task"].astype(str).str.startswith(f"{TASK}transfer"), "parts", "few")
    kinds = rows.groupby(["seed", "variant", "file", "kind"])["value"].mean()
    return kinds.groupby(level=["seed", "variant", "file"]).mean().unstack(["variant", "file"])


def file_gains(results: Results, ours: str, theirs: str, *, metric: str) -> pd.Series:
    """Return ours minus theirs by file, mean over the seeds."""
    table = _by_file(results, metric).mean()
    return table[ours] - table[theirs]


def gain(results: Results, ours: str, theirs: str, *, metric: str) -> Difference:
    """Return ours minus theirs, mean over the files; its interval is over the seeds, paired."""
    table = _by_file(results, metric)
    return difference((table[ours] - table[theirs]).mean(axis=1).to_numpy(dtype=float))
