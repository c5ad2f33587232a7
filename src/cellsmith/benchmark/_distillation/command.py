"""The command line of the distillation benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path

from cellsmith.benchmark._distillation.cases import EMBEDDED, FILES, cut, labelled_counts, read
from cellsmith.benchmark._distillation.compare import COLUMNS, Recipe, missing, run_cut
from cellsmith.benchmark._distillation.ours import ABLATION
from cellsmith.benchmark._distillation.peers import DEFAULT_PEERS, SHOWN, pick
from cellsmith.benchmark._distillation.recipe import MODELS
from cellsmith.benchmark._distillation.report import ABLATION_TABLE, SPEED_TABLE, TRANSFER_TABLE, report
from cellsmith.benchmark._distillation.speed import TASKS, speed
from cellsmith.benchmark._distillation.transfer import FILES as TRANSFER_FILES
from cellsmith.benchmark._distillation.transfer import SEEDS as TRANSFER_SEEDS
from cellsmith.benchmark._distillation.transfer import transfer
from cellsmith.benchmark._files import data_directory
from cellsmith.benchmark._store import SPEED, Store

__all__ = ["add_arguments", "run"]

LABELS = "cell_type"
MAX_TRAIN = 1_000
# Cuts of the one file that settings were tried on; no other table has them.
TRIED = (101, 102)
COMPARED = ("metacell_mean_log", "scdd_readers", "scdd_codes_only", *ABLATION)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its parser."""
    parser.add_argument("--methods", nargs="*", choices=(*SHOWN, *ABLATION), help="none: the page only")
    parser.add_argument("--budgets", nargs="+", type=int, default=[1, 5, 10], help="rows a class")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="classifiers")
    parser.add_argument("--model-seeds", type=int, default=5, help="repetitions of random classifiers")
    parser.add_argument("--max-train", type=int, default=MAX_TRAIN, help="most training cells of a file")
    parser.add_argument("--metrics", choices=("core", "all"), default="core")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--ablation", action="store_true", help=f"only change one part at a time, on {EMBEDDED}")
    part.add_argument("--transfer", action="store_true", help="only learn from one batch and name the cells of another")
    part.add_argument("--speed", nargs="*", choices=TASKS, help="only measure seconds and memory; none named: all")
    parser.set_defaults(seeds=None)


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
    if options.speed is not None:
        store = Store(SPEED, options.out / SPEED_TABLE)
        speed(data_directory(options.data), store=store, chosen=options.speed)
    elif options.transfer:
        transfer(
            data_directory(options.data),
            store=Store(COLUMNS, options.out / TRANSFER_TABLE),
            files=options.files or TRANSFER_FILES,
            seeds=options.seeds or TRANSFER_SEEDS,
            budgets=options.budgets,
            recipe=Recipe(options.models, n_seeds=options.model_seeds, metrics=options.metrics),
        )
    else:
        _compare(options)
    return report(options.out)


def _compare(options: argparse.Namespace) -> None:
    """Run the main table, or that of the parts of the method."""
    methods = options.methods
    if methods is None:
        methods = COMPARED if options.ablation else DEFAULT_PEERS
    # Seed 0 was looked at when the protocol was made.
    seeds = options.seeds or (TRIED if options.ablation else range(1, 21))
    files = [EMBEDDED] if options.ablation else list(options.files or FILES)
    files = files if methods else []
    store = Store(COLUMNS, options.out / (ABLATION_TABLE if options.ablation else "distillation.csv"))
    directory = data_directory(options.data) if set(files) - {EMBEDDED} else Path()
    recipe = Recipe(options.models, n_seeds=options.model_seeds, metrics=options.metrics, soft=options.ablation)
    chosen = pick(methods, labels_key=LABELS) if files else {}
    data = {file: labelled_counts(read(file, directory), LABELS, layer=None, batch_key=None) for file in files}
    for seed in seeds:
        for file in files:
            todo = missing(store, file, seed, methods=chosen, budgets=options.budgets)
            if todo:
                part = cut(data[file], LABELS, file=file, split=seed, max_train=options.max_train)
                for one in todo:
                    store.add(run_cut(part, [one], chosen, recipe=recipe))
