"""The tasks, each of them once for every file and seed; rows that exist are skipped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from cellsmith._errors import SetupError, nearest
from cellsmith.benchmark._augmentation import KEPT, augmentation
from cellsmith.benchmark._donors import donor_privacy
from cellsmith.benchmark._files import FILES, Split, load, split
from cellsmith.benchmark._fits import Fits
from cellsmith.benchmark._guidance import post_guidance, pre_guidance, rare_types
from cellsmith.benchmark._paths import interpolation, teaching
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._transfer import frequent_types, held_out_condition

__all__ = ["TASKS", "WRITTEN", "run_task"]

logger = logging.getLogger("cellsmith")

N_HELD_OUT = 3
ENDS = {"klein_mes_1k": ("day0", "day7"), "paul15": ("7MEP", "2Ery")}
CONDITIONS = {"kang_ifnb": ("CTRL", "STIM")}
RARE_FILES = ("pbmc4k_10x", "young_kidney", "pbmc_facs", "worm_neuron")
SHALLOW = ("young_kidney", "worm_neuron")
"""Files whose rarest types have too few cells to keep 50 of them."""

TASKS: dict[str, tuple[str, ...]] = {
    "pre_guidance": ("pbmc4k_10x",),
    "post_guidance": ("pbmc4k_10x", "young_kidney", "kang_ifnb"),
    "rare_types": RARE_FILES,
    "augmentation": RARE_FILES,
    "transfer": ("kang_ifnb",),
    "interpolation": ("klein_mes_1k", "paul15"),
    "teaching": ("pbmc_3tech", "kang_ifnb", "kang_stim_4samples", "pbmc_facs", "paul15", "klein_mes_1k"),
    "donors": ("kang_ctrl_8donors",),
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
    for kind in frequent_types(part.train, **keys)[:N_HELD_OUT]:
        if not store.has(task=f"translate ({kind})", file=part.file, seed=part.seed):
            held_out_condition(part, kind, source=source, target=target, store=store, max_epochs=max_epochs)


def run_task(
    task: str,
    file: str,
    *,
    seeds: Iterable[int],
    directory: Path,
    store: Store,
    max_epochs: int | None = None,
) -> None:
    """Run one task on one file.

    Parameters
    ----------
    task
        Key of :data:`TASKS`.
    file
        Name of the file.
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
    if task not in TASKS:
        msg = f"The task {task!r} is unknown. {nearest(task, TASKS)}"
        raise SetupError(msg)
    adata = load(directory, file)
    shared: dict[str, Callable[[Split, Fits, Store], None]] = {
        "pre_guidance": pre_guidance,
        "post_guidance": post_guidance,
        "rare_types": rare_types,
        "teaching": teaching,
        "interpolation": lambda part, fits, s: interpolation(part, fits, s, ends=ENDS[part.file]),
    }
    for seed in seeds:
        if task == "donors":
            if not store.has(task=WRITTEN[task], file=file, seed=seed):
                donor_privacy(adata, file=file, seed=seed, store=store, max_epochs=max_epochs)
            continue
        part = split(adata, file=file, seed=seed, batch_key=_batch_of(file))
        if task == "augmentation":
            _augment(part, store, max_epochs)
        elif task == "transfer":
            _transfer(part, store, max_epochs)
        elif not store.has(task=WRITTEN.get(task, task), file=file, seed=seed):
            options = {"labels_key": part.labels_key, "batch_key": part.batch_key}
            shared[task](part, Fits(part.train, **options, seed=seed, max_epochs=max_epochs), store)
