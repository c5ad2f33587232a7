"""Run the benchmarks: ``python -m cellsmith.benchmark synthesis|speed|tasks|report``."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from cellsmith._errors import CellsmithError
from cellsmith.benchmark import _tasks
from cellsmith.benchmark._files import FILES, data_directory, load, split
from cellsmith.benchmark._report import report
from cellsmith.benchmark._speed import speed
from cellsmith.benchmark._store import SPEED, TASKS, Store
from cellsmith.benchmark._synthesis import synthesis

__all__ = ["main"]

logger = logging.getLogger("cellsmith")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cellsmith.benchmark", description=__doc__)
    parser.add_argument("what", choices=("synthesis", "speed", "tasks", "report"))
    parser.add_argument("--data", type=Path, help="the benchmark data directory; default: $CELLSMITH_DATA")
    parser.add_argument("--files", nargs="+", help="names without .h5ad; default: all of the protocol")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of the cuts")
    parser.add_argument("--generators", nargs="+", default=["all"], help="all, peers, scld, or names")
    parser.add_argument("--tasks", nargs="+", default=list(_tasks.TASKS), help="names of tasks")
    parser.add_argument("--max-epochs", type=int, help="cap on the epochs of every training, for a trial")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="directory of tables and page")
    return parser


def _run(options: argparse.Namespace) -> None:
    if options.what == "report":
        logger.info("wrote %s", report(options.out))
        return
    directory = data_directory(options.data)
    if options.what == "synthesis":
        chosen = options.generators[0] if len(options.generators) == 1 else options.generators
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
    elif options.what == "speed":
        file = (options.files or list(FILES))[0]
        part = split(load(directory, file), file=file, seed=options.seeds[0], batch_key=FILES.get(file))
        speed(part, store=Store(SPEED, options.out / "synthesis_speed.csv"))
    else:
        store = Store(TASKS, options.out / "synthesis_tasks.csv")
        for task in options.tasks:
            for file in _tasks.TASKS.get(task, ()) if options.files is None else options.files:
                _tasks.run_task(
                    task,
                    file,
                    seeds=options.seeds,
                    directory=directory,
                    store=store,
                    max_epochs=options.max_epochs,
                )
    logger.info("wrote %s", report(options.out))


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
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("cellsmith").setLevel(logging.INFO)
    # Trainers announce devices and lengths at every fit.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    try:
        _run(options)
    except CellsmithError as error:
        logger.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
