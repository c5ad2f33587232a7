"""The command line of the topic benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cellsmith.benchmark._files import data_directory
from cellsmith.benchmark._store import SPEED, TASKS, Store
from cellsmith.benchmark._topics import (
    ablation,
    batches,
    choice,
    conditions,
    enriched,
    later,
    nulls,
    rare,
    stability,
    views,
)
from cellsmith.benchmark._topics.cases import FILES
from cellsmith.benchmark._topics.compare import EVERY, pick, quality
from cellsmith.benchmark._topics.fits import Fits
from cellsmith.benchmark._topics.report import report
from cellsmith.benchmark._topics.speed import speed

__all__ = ["PARTS", "add_arguments", "run"]

PARTS = ("topics", "guard", "regularisation", "conditions", "views", "speed", "stability", "later", "enriched")
PARTS += ("rare", "batches", "nulls", "ablation", "choice")
"""In the order of what a reader asks first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its parser."""
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="default: all; none: the page")
    parser.add_argument("--methods", nargs="+", default=["all"], help="of topics: all, peers, or names")
    parser.add_argument("--topics", type=int, default=20, help="number of topics")
    parser.add_argument("--fits", type=Path, help="folder that keeps the fits of topics and ablation")
    parser.add_argument("--tasks", nargs="+", help="of conditions: cells, donors, types, planted; default: all")


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
        store = Store(TASKS, options.out / "topics.csv")
        shared = {"directory": data_directory(options.data), "store": store}
        for part in PARTS:
            if part in options.parts:
                _run(part, options, shared, Fits(EVERY, options.fits))
    return report(options.out)


def _run(part: str, options: argparse.Namespace, shared: dict[str, Any], fits: Fits) -> None:
    seeds, store = options.seeds, shared["store"]
    if part == "topics":
        chosen = list(pick(options.methods[0] if len(options.methods) == 1 else options.methods))
        quality(options.files or FILES, seeds, **shared, fits=fits, chosen=chosen, n_topics=options.topics)
    elif part == "guard":
        ablation.guard(seeds, **shared, fits=fits)
    elif part == "regularisation":
        ablation.regularisation(options.files or FILES, seeds, **shared, fits=fits)
    elif part == "ablation":
        ablation.ablation(seeds, **shared, fits=fits)
    elif part == "conditions":
        _conditions(options, shared)
    elif part == "views":
        views.noise(**shared)
        views.views(seeds, **shared)
        views.graded(seeds, **shared, gates=("explained", "overlap"))
    elif part == "speed":
        speed(directory=shared["directory"], store=Store(SPEED, options.out / "topics_speed.csv"))
    elif part == "stability":
        stability.stability(seeds, **shared, fits=fits, files=options.files or FILES)
        stability.number_of_topics(seeds, store=store)
    elif part == "later":
        later.later(seeds, **shared, files=options.files or FILES)
        later.technologies(seeds, **shared)
    elif part == "enriched":
        enriched.enriched(seeds, **shared, fits=fits)
    elif part == "choice":
        winner = choice.FORMER
        for step in (choice.first_step, choice.second_step):
            names = step(winner)
            choice.training(names, directory=shared["directory"], store=store)
            winner = choice.chosen(store.table, names, winner)[0]
        choice.selection(**shared)
        choice.toys(store=store)
    else:
        run_part = {"rare": rare.planted_types, "batches": batches.batches, "nulls": nulls.nulls}[part]
        run_part(seeds, **shared)


def _conditions(options: argparse.Namespace, shared: dict[str, Any]) -> None:
    seeds, chosen = options.seeds, options.tasks or ("cells", "donors", "types", "planted")
    if "cells" in chosen:
        conditions.held_out_cells(seeds, **shared)
    if "donors" in chosen:
        conditions.donors(seeds, **shared)
    if "types" in chosen:
        conditions.held_out_types(seeds, **shared)
    if "planted" in chosen:
        conditions.planted(seeds, store=shared["store"])
        conditions.laws(seeds, store=shared["store"])
