"""The command line of the missingness benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path

from cellsmith.benchmark._files import data_directory
from cellsmith.benchmark._missingness.laws import laws
from cellsmith.benchmark._missingness.methods import pick
from cellsmith.benchmark._missingness.queries import queries
from cellsmith.benchmark._missingness.real import FILES, RARE, complete_mask, real
from cellsmith.benchmark._missingness.reference import reference
from cellsmith.benchmark._missingness.report import report
from cellsmith.benchmark._missingness.speed import speed
from cellsmith.benchmark._missingness.zeros import zeros
from cellsmith.benchmark._store import SPEED, TASKS, Store

__all__ = ["add_arguments", "run"]

PARTS = ("reference", "laws", "real", "queries", "zeros", "speed")
NEED_DATA = ("real", "queries", "zeros")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its parser."""
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="default: all; none: the page")
    parser.add_argument("--columns", nargs="+", default=["all"], help="of real: all, peers, bcpca, or names")
    parser.add_argument("--largest", action="store_true", help="speed: a million cells from disk, too")


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
    store = Store(TASKS, options.out / "missingness.csv")
    columns = pick(options.columns[0] if len(options.columns) == 1 else options.columns)
    directory = data_directory(options.data) if set(options.parts) & set(NEED_DATA) else Path()
    if "reference" in options.parts:
        reference(options.seeds, store=store)
    if "laws" in options.parts:
        laws(store=store)
    if "real" in options.parts:
        complete_mask(FILES, directory=directory, store=store)
        real(options.files or [*FILES, RARE], options.seeds, directory=directory, store=store, columns=columns)
    if "queries" in options.parts:
        queries(options.seeds, directory=directory, store=store)
    if "zeros" in options.parts:
        zeros(options.seeds, directory=directory, store=store)
    if "speed" in options.parts:
        speed(store=Store(SPEED, options.out / "missingness_speed.csv"), largest=options.largest)
    return report(options.out)
