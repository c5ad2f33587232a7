"""Run the sections of the demo one after the other and write the report.

A further method adds one file with a function ``section(context) -> Section`` and one line to ``SECTIONS``.
"""

from __future__ import annotations

import io
import logging
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cellsmith
from cellsmith._compat import kept_threads
from cellsmith._errors import CellsmithWarning
from cellsmith.demo import annotation, clustering, distillation, missingness, privacy, siamese, synthesis, topics
from cellsmith.demo._context import Context
from cellsmith.demo._report import Cell, Report, Section, Table, write

__all__ = ["SECTIONS", "run_demo", "text_table"]

SECTIONS: tuple[Callable[[Context], Section], ...] = (
    synthesis.section,
    annotation.section,
    missingness.section,
    topics.section,
    distillation.section,
    clustering.section,
    siamese.section,
    privacy.section,
)

LIBRARIES = ("anndata", "scanpy", "scvi-tools", "torch", "lightning", "numpy", "scipy", "scikit-learn", "umap-learn")


def run_demo(
    out: str | Path = "cellsmith-demo", *, seed: int = 0, quick: bool = False, say: Callable[[str], None] | None = None
) -> Path:
    """Run every section and write ``report.html``, ``generated.h5ad`` and ``figures/*.png``.

    Parameters
    ----------
    out
        Folder for the results; made where it is missing, files of an earlier run are replaced.
    seed
        The same seed gives the same cells on the same machine.
    quick
        True: under a minute, to see that everything works. The numbers are then not meant to be good.
    say
        Called with one line of progress at a time; None is silent.

    Returns
    -------
    Path of ``report.html``.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    def tell(line: str) -> None:
        if say is not None:
            say(f"[{time.perf_counter() - start:5.0f} s] {line}")

    sections = []
    with _quiet() as caught:
        for number, make in enumerate(SECTIONS, start=1):
            tell(f"part {number} of {len(SECTIONS)}")
            with kept_threads():  # UMAP of one part must not slow the training of the next
                sections.append(make(Context(out=folder, seed=seed, quick=quick, say=tell)))
    notes = list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, CellsmithWarning)))
    for note in notes:
        tell(f"note: {note}")
    for section in sections:
        if section.summary is not None and say is not None:
            say("\n" + text_table(section.summary) + "\n")
    report = Report(
        title="cellsmith: what it does, shown on real cells",
        lead="Everything on this page was computed on this machine a moment ago, from a real experiment that travels "
        "with the package. You need not read any code to follow it.",
        sections=sections,
        provenance=_provenance(seed, quick=quick, seconds=time.perf_counter() - start)
        | ({"Notes of the run": " ".join(notes)} if notes else {}),
    )
    path = write(report, folder / "report.html")
    tell(f"done: {path}")
    return path


def text_table(table: Table) -> str:
    """Lay a table out for a terminal: left-aligned names, right-aligned values.

    Parameters
    ----------
    table
        What to show.

    Returns
    -------
    Lines without a final line break.
    """
    rows = [[cell.text if isinstance(cell, Cell) else cell for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    lines = [
        "  ".join(
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([table.title, lines[0], "-" * len(lines[0]), *lines[1:]])


@contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Silence the trainers' banners; collect warnings, of which ours are shown at the end."""
    before = logging.root.manager.disable
    # Not by the names of the loggers: importing Lightning sets their levels again.
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as caught, redirect_stdout(io.StringIO()):
            warnings.simplefilter("always")
            yield caught
    finally:
        logging.disable(before)


def _provenance(seed: int, *, quick: bool, seconds: float) -> dict[str, str]:
    import torch

    return {
        "Made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Command": f"cellsmith demo --seed {seed}{' --quick' if quick else ''}",
        "Seed": str(seed),
        "Time": f"{seconds:.0f} seconds, {torch.get_num_threads()} thread(s)",
        "Machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "cellsmith": cellsmith.__version__,
        **{name: _version(name) for name in LIBRARIES},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
