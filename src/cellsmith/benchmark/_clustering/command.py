"""The command line of the clustering benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path

from cellsmith.benchmark._clustering.cases import FILES
from cellsmith.benchmark._clustering.compare import COLUMNS, FACTS, pick, quality
from cellsmith.benchmark._clustering.propagation import propagation
from cellsmith.benchmark._clustering.queries import QUERIES, queries
from cellsmith.benchmark._clustering.report import report
from cellsmith.benchmark._clustering.scale import TASKS, scale
from cellsmith.benchmark._files import data_directory
from cellsmith.benchmark._store import SPEED, Store

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its parser."""
    parser.add_argument("--methods", nargs="*", default=["all"], help="all, peers, or names; none: the page only")
    parser.add_argument("--max-cells", type=int, default=1_200, help="most cells of a file; 0: all")
    parser.add_argument("--propagation", action="store_true", help="time products with a sparse graph")
    parser.add_argument("--queries", action="store_true", help="place a fifth of the cells as new ones")
    parser.add_argument("--scale", nargs="*", choices=TASKS, help="time and memory; no name: all tasks")
    parser.add_argument("--fits", type=Path, help="folder that keeps what methods found; read before a method is run")


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
    if options.methods:
        quality(
            options.files or FILES,
            options.seeds,
            directory=data_directory(options.data),
            store=Store(COLUMNS, options.out / "clustering.csv"),
            further=Store(FACTS, options.out / "clustering_facts.csv"),
            chosen=pick(options.methods[0] if len(options.methods) == 1 else options.methods),
            max_cells=options.max_cells or None,
            fits=options.fits,
        )
    if options.queries:
        store = Store(QUERIES, options.out / "clustering_queries.csv")
        where = {"directory": data_directory(options.data), "store": store, "max_cells": options.max_cells}
        queries(options.files or FILES, options.seeds, **where)
    if options.scale is not None:
        store = Store(SPEED, options.out / "clustering_speed.csv")
        scale(directory=data_directory(options.data), store=store, tasks=tuple(options.scale or TASKS))
    if options.propagation:
        store = Store(SPEED, options.out / "clustering_speed.csv")
        for row in propagation().itertuples():
            quantity, graded = f"{row.backend}, {row.n_cells:,} cells", "with" if row.edge_gradient else "without"
            detail = f"ms, forward and backward, {graded} a gradient to the edges"
            store.add([{"quantity": quantity, "value": row.milliseconds, "detail": detail}])
    return report(options.out)
