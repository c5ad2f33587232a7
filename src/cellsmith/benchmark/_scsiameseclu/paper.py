"""The default beside the published form, equal cells and equal numbers of clusters."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cellsmith._errors import ConvergenceError
from cellsmith.benchmark._clustering.cases import Case, read
from cellsmith.benchmark._scsiameseclu.ablation import MAX_CELLS
from cellsmith.benchmark._scsiameseclu.fits import Fit, fit
from cellsmith.benchmark._scsiameseclu.scoring import scores
from cellsmith.benchmark._store import Store

__all__ = ["DEFAULT", "PAPER", "TASK", "paper"]

TASK, DEFAULT, PAPER = "published form", "default", "paper"
FILES = ("worm_neuron", "pbmc4k_10x", "pbmc_facs", "sc_mixology_5cl", "kang_ifnb")
"""Those with at most 5,000 cells; no batch is registered, which the published form cannot use."""


def paper(files: Iterable[str], seeds: Iterable[int], *, directory: Path, store: Store) -> None:
    """Fit both forms, told the number of types.

    Parameters
    ----------
    files, seeds
        Names of files; seeds of the fits.
    directory
        The benchmark data directory.
    store
        Where the rows go.
    """
    chosen = [file for file in files if file in FILES]
    for seed in seeds:
        for file in chosen:
            case = replace(read(directory, file, max_cells=MAX_CELLS), batch_key=None)
            for name, run in ((DEFAULT, _default), (PAPER, _paper)):
                if not store.has(task=TASK, file=file, seed=seed, variant=name):
                    store.record(TASK, SimpleNamespace(file=file, seed=seed), name, _measured(case, run, seed))


def _measured(case: Case, run: Any, seed: int) -> dict[str, float]:
    try:
        found = run(case, seed)
    except ConvergenceError:
        return {"diverged": 1.0}
    history = found.model.history_
    n_epochs = sum(len(history[name]) for name in history if name.endswith("/train_loss"))
    each = 1e6 * found.seconds / max(1, n_epochs) / case.counts.n_obs
    return {**scores(case, found), "diverged": 0.0, "epochs": float(n_epochs), "us_per_cell_and_epoch": each}


def _default(case: Case, seed: int) -> Fit:
    return fit(case.counts, n_clusters=case.n_types, seed=seed)


def _paper(case: Case, seed: int) -> Fit:
    from cellsmith.model import ScSiameseClu

    started, cells = time.process_time(), case.counts.copy()
    ScSiameseClu.setup_anndata(cells)
    model = ScSiameseClu(cells, n_clusters=case.n_types, variant="paper")
    model.train(seed=seed, accelerator="cpu", enable_progress_bar=False)
    return Fit(model, model.predict().to_numpy(), [], time.process_time() - started)
