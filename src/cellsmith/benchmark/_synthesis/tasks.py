"""The tasks, each of them once for every file and seed; rows that exist are skipped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cellsmith._errors import SetupError, nearest
from cellsmith.benchmark._files import FILES, Split, load, split
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._synthesis.augmentation import KEPT, augmentation
from cellsmith.benchmark._synthesis.density import log_density
from cellsmith.benchmark._synthesis.donors import donor_privacy
from cellsmith.benchmark._synthesis.fits import Fits
from cellsmith.benchmark._synthesis.guidance import post_guidance, pre_guidance, rare_types
from cellsmith.benchmark._synthesis.paths import interpolation, teaching
from cellsmith.benchmark._synthesis.transfer import frequent_types, held_out_condition, whole

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["TASKS", "WRITTEN", "run_tasks"]

logger = logging.getLogger("cellsmith")

N_HELD_OUT = 3
ENDS = {"klein_mes_1k": ("day0", "day7"), "paul15": ("7MEP", "2Ery")}
CONDITIONS = {"kang_ifnb": ("CTRL", "STIM"), "pbmc_3tech": ("5p", "3pv2")}
RARE_FILES = ("pbmc4k_10x", "young_kidney", "pbmc_facs", "worm_neuron")
SHALLOW = ("young_kidney", "worm_neuron")
"""Files whose rarest types have too few cells to keep 50 of them."""

TASKS: dict[str, tuple[str, ...]] = {
    "pre_guidance": ("pbmc4k_10x",),
    "post_guidance": ("pbmc4k_10x", "young_kidney", "kang_ifnb"),
    "rare_types": RARE_FILES,
    "augmentation": RARE_FILES,
    "transfer": ("kang_ifnb", "pbmc_3tech"),
    "interpolation": ("klein_mes_1k", "paul15"),
    "teaching": ("pbmc_3tech", "kang_ifnb", "kang_stim_4samples", "pbmc_facs", "paul15", "klein_mes_1k"),
    "donors": ("kang_ctrl_8donors",),
    "log_density": ("pbmc4k_10x", "kang_ifnb", "klein_mes_1k"),
}
"""Task -> files on which it runs."""

WRITTEN = {"transfer": "translate", "teaching": "train on synthetic", "donors": "donor privacy"}
"""Task -> how its rows begin, where that is not its name."""

_BATCHES = {**FILES, "pbmc_3tech": "batch", "kang_stim_4samples": "condition"}


def _batch_of(file: str) -> str | None:
    return _BATCHES.get(file)


def _augment(part: Split, store: Store, max_epochs: int | None) -> None:
    for kept in KEPT[:2] if part.file in SHALLOW else KEPT:
        if not store.has(task=f"augmentation ({kept} kept)", file=part.file, seed=part.seed, variant="SCLD"):
            augmentation(part, kept, store, max_epochs=max_epochs)


def _transfer(part: Split, store: Store, max_epochs: int | None) -> None:
    source, target = CONDITIONS[part.file]
    keys = {"labels_key": part.labels_key, "batch_key": str(part.batch_key), "condition": target}
    for kind in frequent_types(whole(part), **keys)[:N_HELD_OUT]:
        if not store.has(task=f"translate ({kind})", file=part.file, seed=part.seed):
            held_out_condition(part, kind, source=source, target=target, store=store, max_epochs=max_epochs)


def run_tasks(
    tasks: Iterable[str],
    files: Iterable[str] | None,
    *,
    seeds: Iterable[int],
    directory: Path,
    store: Store,
    max_epochs: int | None = None,
) -> None:
    """Run tasks, file after file and cut after cut: tasks of one cut share the models that they need.

    Parameters
    ----------
    tasks
        Keys of :data:`TASKS`.
    files
        Names of the files; None: those of each task.
    seeds
        Seeds of the cuts.
    directory
        Where the files lie.
    store
        Where the rows go.
    max_epochs
        Cap on the epochs of every training, for a trial.

    Raises
    ------
    SetupError
        For an unknown task.
    """
    chosen, seeds = list(tasks), list(seeds)
    for task in chosen:
        if task not in TASKS:
            msg = f"The task {task!r} is unknown. {nearest(task, TASKS)}"
            raise SetupError(msg)
    for file in dict.fromkeys(file for task in chosen for file in files or TASKS[task]):
        # A file that was named runs every task that was named.
        wanted = [task for task in chosen if files is not None or file in TASKS[task]]
        adata = load(directory, file)
        for seed in seeds:
            _run_cut(wanted, adata, file, seed=seed, store=store, max_epochs=max_epochs)


def _run_cut(
    tasks: Iterable[str], adata: AnnData, file: str, *, seed: int, store: Store, max_epochs: int | None
) -> None:
    shared: dict[str, Callable[[Split, Fits, Store], None]] = {
        "pre_guidance": pre_guidance,
        "post_guidance": post_guidance,
        "rare_types": rare_types,
        "teaching": teaching,
        "log_density": log_density,
        "interpolation": lambda part, fits, s: interpolation(part, fits, s, ends=ENDS[part.file]),
    }
    part = split(adata, file=file, seed=seed, batch_key=_batch_of(file))
    fits = Fits(part.train, labels_key=part.labels_key, batch_key=part.batch_key, seed=seed, max_epochs=max_epochs)
    for task in tasks:
        if task == "augmentation":
            _augment(part, store, max_epochs)
        elif task == "transfer":
            _transfer(part, store, max_epochs)
        elif store.has(task=WRITTEN.get(task, task), file=file, seed=seed):
            continue
        elif task == "donors":
            donor_privacy(adata, file=file, seed=seed, store=store, max_epochs=max_epochs)
        else:
            shared[task](part, fits, store)
