"""The ablation table: one component changed at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pandas as pd

from cellsmith._errors import SetupError, nearest
from cellsmith.benchmark._clustering.cases import Case, case_of, read
from cellsmith.benchmark._scsiameseclu.fits import Warmups
from cellsmith.benchmark._scsiameseclu.scoring import scores
from cellsmith.benchmark._scsiameseclu.variants import BATCHED, CHANGES, Change
from cellsmith.benchmark._store import TASKS, Store

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["BATCH_FILE", "MAX_CELLS", "TASK", "TUNING", "ablation", "run_case", "scsiameseclu_ablation"]

TASK = "ablation, "
TUNING = ("worm_neuron", "young_kidney", "pbmc_facs")
"""Defaults may be chosen on these."""
BATCH_FILE = "kang_ifnb"
MAX_CELLS = 1_200


def run_case(case: Case, changes: Mapping[str, Change], seed: int, *, store: Store, warmups: Warmups) -> None:
    """Fit and score changes on one file, what acts late first; rows that exist are skipped.

    Parameters
    ----------
    case
        The cells.
    changes
        Name -> what differs from the default.
    seed
        Seed of the fits.
    store
        Where the rows go.
    warmups
        Fits.
    """
    part = SimpleNamespace(file=case.file, seed=seed)
    for name, change in sorted(changes.items(), key=lambda item: not item[1].late):
        for way in change.ways:
            if not store.has(task=TASK + way, file=case.file, seed=seed, variant=name):
                store.record(TASK + way, part, name, scores(case, warmups.fit(case, change, way, seed=seed)))


def ablation(
    files: Iterable[str], seeds: Iterable[int], *, directory: Path, store: Store, rows: Iterable[str] | None = None
) -> None:
    """Run rows of the ablation table that are not there yet, on the tuning files and on the file with a batch.

    Parameters
    ----------
    files
        Names of files.
    seeds
        Seeds of the fits; the cells are the same for all.
    directory
        The benchmark data directory.
    store
        Where the rows go.
    rows
        Names of changes; None: all.
    """
    names, warmups, cases = list(files), Warmups(), {}
    for seed in seeds:
        for file in names:
            every = BATCHED if file == BATCH_FILE else CHANGES
            chosen = every if rows is None else {name: every[name] for name in rows if name in every}
            if file not in cases:
                cases[file] = read(directory, file, max_cells=MAX_CELLS)
            run_case(cases[file], chosen, seed, store=store, warmups=warmups)


def scsiameseclu_ablation(
    adata: AnnData,
    *,
    layer: str | None = None,
    labels_key: str = "cell_type",
    batch_key: str | None = None,
    changes: Iterable[str] | None = None,
    seeds: Iterable[int] = (0, 1, 2),
    name: str = "data",
    out: str | Path | None = None,
) -> pd.DataFrame:
    """Fit scSiameseClu with one component changed at a time, and score its clusters.

    Every change starts from the default of :class:`cellsmith.model.ScSiameseClu`. All fits get the same cells and the
    same 2,000 variable genes (all where there are fewer), chosen without labels; changes that act only after the
    warm-up begin where the default's ended, which gives what a whole training would.

    Parameters
    ----------
    adata
        Raw counts (n, G).
    layer
        Layer of the counts; None: ``.X``.
    labels_key
        Column of ``.obs`` with types, read by the scores alone; cells without one are left out.
    batch_key
        Column of ``.obs`` with the batch; the rows are then those about the batch.
    changes
        Names of rows; None: all.
    seeds
        Seeds of the fits.
    name
        What the table calls the data.
    out
        CSV file to append to; rows that it has are not run again. None: in memory.

    Returns
    -------
    One row a seed, change, way and metric: ``task, file, seed, variant, metric, value``. The task ends in "auto", where
    the number of clusters is left to the method, or "given". ARI, NMI, macro-F1, F1 of rare types, accuracy and NMI
    with the batch lie in [0, 1] (ARI may be below), ``peeking`` is what choosing the epoch by the types would add to
    the accuracy, ``cpu_s`` is in CPU seconds (without a shared warm-up).

    Raises
    ------
    SetupError
        For a column or a change that does not exist.

    Examples
    --------
    >>> cellsmith.benchmark.scsiameseclu_ablation(adata, changes=["default", "no queue"])  # doctest: +SKIP
    """
    for argument, column in (("labels_key", labels_key), ("batch_key", batch_key)):
        if column is not None and column not in adata.obs:
            raise SetupError(f"{argument}={column!r} is not a column of .obs. {nearest(column, adata.obs.columns)}")
    every = CHANGES if batch_key is None else BATCHED
    names = list(every if changes is None else changes)
    for change in names:
        if change not in every:
            raise SetupError(f"There is no row {change!r}. {nearest(change, every)}")
    store, warmups = Store(TASKS, None if out is None else Path(out)), Warmups()
    case = case_of(adata, file=name, labels_key=labels_key, layer=layer, batch_key=batch_key)
    for seed in seeds:
        run_case(case, {n: every[n] for n in names}, int(seed), store=store, warmups=warmups)
    return store.table
