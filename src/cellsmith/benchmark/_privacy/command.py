"""The command line of the privacy benchmark."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np

from cellsmith.benchmark._files import data_directory
from cellsmith.benchmark._privacy.arms import ARMS, FREE
from cellsmith.benchmark._privacy.cases import CASES, case
from cellsmith.benchmark._privacy.compare import COLUMNS, known, run_arm
from cellsmith.benchmark._privacy.report import report
from cellsmith.benchmark._store import Store

__all__ = ["add_arguments", "run"]

logger = logging.getLogger("cellsmith")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its parser."""
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS), help="none: the page only")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--epsilons", nargs="+", type=float, default=[1.0, 2.0, 4.0, 8.0])
    parser.set_defaults(seeds=[0, 1, 2, 3, 4])


def run(options: argparse.Namespace) -> Path:
    """Run what is not in the table yet, and write the page.

    Parameters
    ----------
    options
        What was typed.

    Returns
    -------
    Path of the page.
    """
    store = Store(COLUMNS, options.out / "privacy.csv")
    arms = known(options.arms)
    directory = data_directory(options.data) if arms else Path()
    for seed in options.seeds if arms else ():
        for name in options.cases:
            todo = [
                (arm, epsilon)
                for arm in arms
                for epsilon in ((np.inf,) if arm in FREE else options.epsilons)
                if not store.has(case=name, seed=seed, arm=arm, epsilon=epsilon)
            ]
            if not todo:
                continue
            cells = case(name, directory, seed=seed)
            for arm, epsilon in todo:
                rows = run_arm(cells, arm, epsilon)
                store.add(rows)
                logger.info("%s, seed %d, %s, epsilon %s: ARI %.3f", name, seed, arm, epsilon, rows[0]["value"])
    return report(options.out)
