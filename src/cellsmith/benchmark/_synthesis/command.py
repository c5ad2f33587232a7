"""The command line of the synthesis benchmark."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cellsmith.benchmark._files import FILES, data_directory, load, split
from cellsmith.benchmark._store import SPEED, TASKS, Store
from cellsmith.benchmark._synthesis import tasks
from cellsmith.benchmark._synthesis.quality import synthesis
from cellsmith.benchmark._synthesis.report import report
from cellsmith.benchmark._synthesis.speed import speed

__all__ = ["add_arguments", "run"]

PARTS = ("quality", "speed", "tasks")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its parser."""
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="default: all; none: the page")
    parser.add_argument("--generators", nargs="+", default=["all"], help="of quality: all, peers, scld, or names")
    parser.add_argument("--tasks", nargs="+", default=list(tasks.TASKS), help="names of tasks")
    parser.add_argument("--max-epochs", type=int, help="cap on the epochs of every training, for a trial")


def run(options: argparse.Namespace) -> Path:
    """Run what is not in the tables yet, and write the page.

    Parameters
    ----------
    options
        What was typed.

    Returns
    -------
    Path of the page.
    """
    if not options.parts:
        return report(options.out)
    directory = data_directory(options.data)
    if "quality" in options.parts:
        _quality(options, directory)
    if "speed" in options.parts:
        file = (options.files or list(FILES))[0]
        part = split(load(directory, file), file=file, seed=options.seeds[0], batch_key=FILES.get(file))
        speed(part, store=Store(SPEED, options.out / "synthesis_speed.csv"))
    if "tasks" in options.parts:
        store = Store(TASKS, options.out / "synthesis_tasks.csv")
        tasks.run_tasks(
            options.tasks,
            options.files,
            seeds=options.seeds,
            directory=directory,
            store=store,
            max_epochs=options.max_epochs,
        )
    return report(options.out)


def _quality(options: argparse.Namespace, directory: Path) -> None:
    chosen: str | Sequence[str] = options.generators[0] if len(options.generators) == 1 else options.generators
    for file in options.files or FILES:
        synthesis(
            load(directory, file),
            batch_key=FILES.get(file),
            generators=chosen,
            seeds=options.seeds,
            name=file,
            out=options.out / "synthesis.csv",
            max_epochs=options.max_epochs,
        )
