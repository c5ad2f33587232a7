"""The command line of the scSiameseClu benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path

from cellsmith.benchmark._clustering.cases import FILES
from cellsmith.benchmark._files import data_directory
from cellsmith.benchmark._scsiameseclu import later, markers, paper, peer, structure
from cellsmith.benchmark._scsiameseclu.ablation import BATCH_FILE, TUNING, ablation
from cellsmith.benchmark._scsiameseclu.report import report
from cellsmith.benchmark._scsiameseclu.speed import speed
from cellsmith.benchmark._store import SPEED, TASKS, Store

__all__ = ["PARTS", "add_arguments", "run"]

PARTS = ("ablation", "paper", "smoothed", "planted", "nulls", "held-out", "technologies", "markers", "orders", "speed")
"""In the order of what a reader asks first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its parser."""
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="default: all; none: the page")
    parser.add_argument("--rows", nargs="+", help="of the ablation, by name; default: all")
    parser.add_argument("--tasks", nargs="+", help="of speed; default: all")


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
    if options.parts:
        store, directory = Store(TASKS, options.out / "scsiameseclu.csv"), data_directory(options.data)
        for part in PARTS:
            if part in options.parts:
                _run(part, options, directory, store)
    return report(options.out)


def _run(part: str, options: argparse.Namespace, directory: Path, store: Store) -> None:
    seeds, files = options.seeds, options.files
    shared = {"directory": directory, "store": store}
    if part == "ablation":
        ablation(files or (*TUNING, BATCH_FILE), seeds, **shared, rows=options.rows)
    elif part == "paper":
        paper.paper(files or FILES, seeds, **shared)
    elif part == "smoothed":
        peer.smoothed(files or FILES, seeds, **shared)
    elif part == "planted":
        structure.planted(seeds, **shared)
    elif part == "nulls":
        structure.nulls(seeds, store=store)
    elif part == "held-out":
        later.held_out(files or FILES, seeds, **shared)
    elif part == "technologies":
        later.technologies(seeds, **shared)
    elif part == "markers":
        markers.annotation(seeds, **shared)
    elif part == "orders":
        structure.orders(files or ("worm_neuron", "pbmc_facs"), seeds, **shared)
    else:
        fast = Store(SPEED, options.out / "scsiameseclu_speed.csv")
        speed(directory=directory, store=fast, tasks=options.tasks)
