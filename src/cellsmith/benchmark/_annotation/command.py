"""The command line of the annotation benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path

from cellsmith.benchmark._annotation import blind, confidence, guarantee, queries, toys, transfer
from cellsmith.benchmark._annotation.choice import label_free
from cellsmith.benchmark._annotation.compare import run_case
from cellsmith.benchmark._annotation.laws import laws
from cellsmith.benchmark._annotation.peers import pick
from cellsmith.benchmark._annotation.report import report
from cellsmith.benchmark._annotation.speed import speed
from cellsmith.benchmark._files import data_directory
from cellsmith.benchmark._store import SPEED, TASKS, Store

__all__ = ["add_arguments", "run"]

PARTS = ("toys", "transfer", "blind", "guarantee", "queries", "laws", "speed")
NEED_DATA = ("transfer", "blind", "guarantee", "queries")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its parser."""
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="default: all; none: the page")
    parser.add_argument(
        "--methods", nargs="+", default=["all"], help="of toys and transfer: all, peers, grit, or names"
    )
    parser.add_argument("--toy-seeds", type=int, default=len(toys.SEEDS), help="number of seeds of the toy tasks")
    parser.add_argument("--draws", type=int, default=guarantee.DRAWS, help="draws of anchors")
    parser.add_argument("--largest", action="store_true", help="speed: a million cells, too")


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
    store = Store(TASKS, options.out / "annotation.csv")
    chosen = pick(options.methods[0] if len(options.methods) == 1 else options.methods)
    directory = data_directory(options.data) if set(options.parts) & set(NEED_DATA) else Path()
    if "toys" in options.parts:
        for seed in range(options.toy_seeds):
            _toys(seed, store, chosen)
    if "transfer" in options.parts:
        files = options.files or [*transfer.FILES, transfer.FEW]
        transfer.transfer(files, options.seeds, directory=directory, store=store, chosen=chosen)
        if transfer.FEW in files:
            transfer.unknown_real(range(confidence.UNKNOWN_SEEDS), directory=directory, store=store)
    if "blind" in options.parts:
        blind.blind(directory=directory, store=store)
    if "guarantee" in options.parts:
        guarantee.guarantee(guarantee.weak_case(directory), store=store, draws=options.draws)
    if "queries" in options.parts:
        queries.queries(options.seeds, directory=directory, store=store)
    if "laws" in options.parts:
        laws(store=store)
    if "speed" in options.parts:
        speed(store=Store(SPEED, options.out / "annotation_speed.csv"), largest=options.largest)
    return report(options.out)


def _toys(seed: int, store: Store, chosen: dict) -> None:
    """Run the toy tasks of one seed; the dear ones only for the first seeds."""
    easy, coherent = toys.easy_case(seed), toys.coherent_case(seed)
    for case in (easy, coherent):
        run_case(case, chosen, store=store)
        if seed < confidence.GUARD_SEEDS:
            confidence.guards(case, store=store)
    confidence.calibration(easy, store=store)
    label_free(easy, store=store)
    if seed < confidence.UNKNOWN_SEEDS:
        confidence.unknown_toy(seed, store=store)
