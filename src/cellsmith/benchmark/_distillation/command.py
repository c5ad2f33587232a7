"""The command line of the distillation benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path

from cellsmith.benchmark._distillation.cases import EMBEDDED, FILES, cut, labelled_counts, read
from cellsmith.benchmark._distillation.compare import COLUMNS, Recipe, missing, run_cut
from cellsmith.benchmark._distillation.ours import ABLATION
from cellsmith.benchmark._distillation.peers import DEFAULT_PEERS, SHOWN, pick
from cellsmith.benchmark._distillation.recipe import MODELS
from cellsmith.benchmark._distillation.report import ABLATION_TABLE, report
from cellsmith.benchmark._files import data_directory
from cellsmith.benchmark._store import Store

__all__ = ["add_arguments", "run"]

LABELS = "cell_type"
MAX_TRAIN = 1_000
# Cuts of the one file that settings were tried on; no other table has them.
TRIED = (101, 102)
COMPARED = ("metacell_mean_log", "scdd_readers", "scdd_codes_only", *ABLATION)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its parser."""
    parser.add_argument("--methods", nargs="*", choices=SHOWN, default=list(DEFAULT_PEERS), help="none: the page only")
    parser.add_argument("--budgets", nargs="+", type=int, default=[1, 5, 10], help="rows a class")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="classifiers")
    parser.add_argument("--model-seeds", type=int, default=5, help="repetitions of random classifiers")
    parser.add_argument("--max-train", type=int, default=MAX_TRAIN, help="most training cells of a file")
    parser.add_argument("--metrics", choices=("core", "all"), default="core")
    parser.add_argument("--ablation", action="store_true", help=f"only change one part at a time, on {EMBEDDED}")
    # Seed 0 was looked at when the protocol was made.
    parser.set_defaults(seeds=list(range(1, 21)))


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
    files = list(options.files or FILES) if options.methods else []
    if options.ablation:
        options.seeds, files, options.methods = list(TRIED), [EMBEDDED], list(COMPARED)
    store = Store(COLUMNS, options.out / (ABLATION_TABLE if options.ablation else "distillation.csv"))
    directory = data_directory(options.data) if set(files) - {EMBEDDED} else Path()
    recipe = Recipe(options.models, n_seeds=options.model_seeds, metrics=options.metrics, soft=options.ablation)
    chosen = pick(options.methods, labels_key=LABELS) if files else {}
    data = {file: labelled_counts(read(file, directory), LABELS, layer=None, batch_key=None) for file in files}
    for seed in options.seeds:
        for file in files:
            todo = missing(store, file, seed, methods=chosen, budgets=options.budgets)
            if todo:
                part = cut(data[file], LABELS, file=file, split=seed, max_train=options.max_train)
                for one in todo:
                    store.add(run_cut(part, [one], chosen, recipe=recipe))
    return report(options.out)
