"""The command line: ``cellsmith demo`` and ``cellsmith --version``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

import cellsmith
from cellsmith._errors import CellsmithError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments without the program's name; None takes those of the process.

    Returns
    -------
    Exit status: 0 on success, 1 when a command failed, 2 when none was given.

    Examples
    --------
    >>> from cellsmith.cli import main
    >>> main([])
    2
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    # Imported here: the demo loads torch, and `cellsmith --version` should not wait for it.
    from cellsmith.demo import run_demo

    try:
        run_demo(arguments.out, seed=arguments.seed, quick=arguments.quick, say=_writer(sys.stdout))
    except (CellsmithError, OSError) as error:
        sys.stderr.write(f"cellsmith demo: {error}\n")
        return 1
    return 0


def _writer(stream: TextIO) -> Callable[[str], None]:
    """Bind the stream now: the demo redirects ``sys.stdout`` while the trainers talk."""

    def say(line: str) -> None:
        stream.write(line + "\n")
        stream.flush()

    return say


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cellsmith", description="Single-cell methods for AnnData.")
    parser.add_argument("--version", action="version", version=f"cellsmith {cellsmith.__version__}")
    commands = parser.add_subparsers(dest="command", title="commands")
    demo = commands.add_parser(
        "demo",
        help="show what the package does, on real cells that travel with it",
        description="Trains on a real experiment, generates cells, scores them against held-out real cells, names "
        "cells from a weak classifier's scores, and writes report.html (open it in a browser), generated.h5ad and "
        "figures/*.png. A few minutes on two cores; no download.",
    )
    demo.add_argument("--out", default="cellsmith-demo", metavar="DIR", help="folder for the results [%(default)s]")
    demo.add_argument("--seed", type=_seed, default=0, help="the same seed gives the same cells [%(default)s]")
    demo.add_argument("--quick", action="store_true", help="under a minute: shows that it works, not how well")
    return parser


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"found {value}; expected 0 or more")
    return value
