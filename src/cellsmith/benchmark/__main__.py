"""Run the benchmarks: ``python -m cellsmith.benchmark [topic] [options]``; without a topic, all of them.

A further topic adds a folder with a `command` module (``add_arguments(parser)``, ``run(options) -> page``) and one line
to ``TOPICS``. Rows that stand in the tables already are not run again; the page is written anew each time.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellsmith._errors import CellsmithError

__all__ = ["main"]

logger = logging.getLogger("cellsmith")

TOPICS = {
    "synthesis": "write new cells: SCLD",
    "annotation": "refine the scores of a classifier: GRIT",
    "missingness": "embed cells with missing entries: BC-PCA",
    "distillation": "a few rows a class in place of all cells: sketches, metacells, scDD",
    "clustering": "clusters, and whether a learned cell graph helps: SCAGC",
    "scsiameseclu": "acceptance and ablation of scSiameseClu",
    "topics": "topics of gene expression: scE2TM",
    "privacy": "embed cells under differential privacy: DP-DCAN, private PCA",
    "accelerator": "seconds of an epoch on a GPU and on the CPU: every method, and scVI",
}
"""Topic -> what its line of the help says; the code is in ``_<topic>/command.py``."""


def _parser(typed: Sequence[str]) -> argparse.ArgumentParser:
    # A topic that is typed loads nothing of the others, and does not need them whole.
    named = TOPICS.keys() & set(typed)
    parser = argparse.ArgumentParser(prog="python -m cellsmith.benchmark", description=(__doc__ or "").split("\n")[0])
    topics = parser.add_subparsers(dest="topic")
    for topic, words in TOPICS.items():
        own = topics.add_parser(topic, help=words)
        own.add_argument("--data", type=Path, help="the benchmark data directory; default: $CELLSMITH_DATA")
        own.add_argument("--files", nargs="+", help="names without .h5ad; default: all of the protocol")
        own.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of the cuts")
        own.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="directory of tables and pages")
        if topic in named or not named:
            _command(topic).add_arguments(own)
    return parser


def _command(topic: str) -> Any:
    return importlib.import_module(f"cellsmith.benchmark._{topic}.command")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments; None reads those of the process.

    Returns
    -------
    0, or 2 when something was typed that cannot be run.
    """
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(typed)
    options = parser.parse_args(typed)
    chosen = [options] if options.topic else [parser.parse_args([topic]) for topic in TOPICS]
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("cellsmith").setLevel(logging.INFO)
    # Trainers announce devices and lengths at every fit.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    try:
        for each in chosen:
            logger.info("wrote %s", _command(each.topic).run(each))
    except CellsmithError as error:
        logger.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
