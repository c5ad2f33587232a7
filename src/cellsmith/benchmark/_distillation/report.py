"""Write the page of results from the table on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellsmith.benchmark._annotation.bars import Bar, mark
from cellsmith.benchmark._annotation.results import number, points
from cellsmith.benchmark._distillation.bars import BARS, METACELLS, NOT_RUN, SCDD, SPEED_BARS, TRANSFER_BARS
from cellsmith.benchmark._distillation.cases import EMBEDDED, FILES
from cellsmith.benchmark._distillation.compare import COLUMNS
from cellsmith.benchmark._distillation.peers import FULL
from cellsmith.benchmark._distillation.recipe import CORE, MODELS
from cellsmith.benchmark._distillation.results import MEAN, Gap, Results
from cellsmith.benchmark._distillation.scoring import NO_MODEL
from cellsmith.benchmark._store import SPEED, Store

__all__ = ["ABLATION_TABLE", "SPEED_TABLE", "TRANSFER_TABLE", "report"]

ABLATION_TABLE = "distillation_ablation.csv"
TRANSFER_TABLE, SPEED_TABLE = "distillation_transfer.csv", "distillation_speed.csv"

COMMANDS = """```bash
python -m cellsmith.benchmark distillation --data <directory>
python -m cellsmith.benchmark distillation --data <directory> --ablation    # or --transfer, or --speed
```"""
ENOUGH = 20
PARTS = f"""Cuts of {EMBEDDED} that no other table has: settings were tried there, so that these numbers say
which part does something, not how well it will do. Differences are points of accuracy. In the columns `lr` and `mlp`
with `soft` beside them stand accuracies after learning from hard labels and from the class probabilities of a
cross-fitted teacher. `CPU-s` of the first row with a model includes its training."""
ELSEWHERE = """Learnt from four fifths of the cells of all batches but one, tested on that one; with `within_batch`
rows are made of each class in each batch, so that there are more of them. On pbmc68k_reduced, cuts of the main table:
gradients and distributions are matched on linear networks alone, and MLP and forest judge."""


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _interval(gap: Gap) -> str:
    """Write a difference in points with its plain interval, and the corrected one in round brackets."""
    if gap.runs == 0:
        return "-"
    if gap.runs == 1:
        return points(gap.mean)
    plain = f"[{points(gap.low)}, {points(gap.high)}]"
    corrected = f"({points(gap.corrected_low)}, {points(gap.corrected_high)})"
    return f"{points(gap.mean)} {plain} {corrected}, {gap.runs} cuts"


def _bars(bars: Sequence[Bar], results: Any) -> str:
    rows = []
    for bar in bars:
        found = bar.measure(results)
        text = "-" if found is None else found.text
        # What was run says nothing of what was not.
        verdict = mark(bar, found) + (" so far" if text.endswith(NOT_RUN) and found.meets else "")
        rows.append([bar.check, bar.must, bar.stretch, text, verdict])
    return _grid(["check", "must", "stretch", "found", ""], rows)


def _places(results: Results, file: str) -> list[tuple[str, int]]:
    """Return (method, budget) of a file in the order of the tables: all cells first, then budget by budget."""
    rows = results.rows[results.rows["file"] == file]
    ran = set(zip(rows["method"], rows["budget"], strict=True))
    return [(m, b) for b in (0, *results.budgets(file)) for m in results.methods(file) if (m, b) in ran]


def _runs(results: Results, file: str) -> str:
    counts = {len(results.values(file, m, budget=b, model="lr")) for m, b in _places(results, file)} - {0}
    if not counts:
        return ""
    least, most = min(counts), max(counts)
    text = f"{most} {'cut' if most == 1 else 'cuts'}" if least == most else f"{least} to {most} cuts"
    sizes = [results.mean(file, m, budget=0, metric=k, model=NO_MODEL) for m in (FULL,) for k in ("n_train", "n_test")]
    return f"{text}; {sizes[0]:,.0f} training and {sizes[1]:,.0f} test cells" if np.isfinite(sizes).all() else text


def _accuracy(results: Results, file: str) -> str:
    rows = []
    for method, budget in _places(results, file):
        get = [results.mean(file, method, budget=budget, model=m) for m in (*MODELS, MEAN)]
        get += [results.mean(file, method, budget=budget, metric=m) for m in ("macro_f1", "rare_recall")]
        cuts = len(results.values(file, method, budget=budget, model="lr"))
        rows.append([str(budget) if budget else "all", method, *map(number, get), str(cuts)])
    return _grid(["a class", "method", *MODELS, MEAN, "macro-F1", "rare recall", "cuts"], rows)


def _differences(results: Results, file: str) -> str:
    rows = []
    for method, budget in _places(results, file):
        if method not in (FULL, METACELLS[0]) and budget:
            rows.append(
                [str(budget), method, *(_interval(results.gap(file, method, m, budget=budget)) for m in METACELLS)]
            )
    for budget in results.budgets(file):
        gaps = [_interval(results.gap(file, m, FULL, budget=budget)) for m in METACELLS]
        rows.append([str(budget), "metacells minus all cells", *gaps])
    return _grid(["a class", "method minus", *METACELLS], rows)


def _cost(results: Results) -> str:
    rows = []
    for file in FILES:
        for method, budget in _places(results, file):
            if budget in (0, 10):
                names = ("n_rows", "bytes", "cpu_seconds")
                get = [results.mean(file, method, budget=budget, metric=m, model=NO_MODEL) for m in names]
                rows.append([file, method, f"{get[0]:,.0f}", f"{get[1] / 1024:,.0f}", number(get[2])])
    return _grid(["file", "method", "rows", "KiB of counts", "CPU-s"], rows)


def _ablation(results: Results) -> str:
    """Compare every variant with the means of groups; of one file."""
    bar, rows = METACELLS[1], []
    (file,) = set(results.rows["file"])
    for budget in results.budgets(file):
        for method in results.methods(file):
            if (method, budget) not in _places(results, file):
                continue
            gaps = [results.gap(file, method, bar, budget=budget, model=m).mean for m in (MEAN, *CORE, "forest")]
            soft = [results.mean(file, method, budget=budget, model=m) for m in ("lr", "lr_soft", "mlp", "mlp_soft")]
            seconds = results.mean(file, method, budget=budget, metric="cpu_seconds", model=NO_MODEL)
            rows.append([str(budget), method, *map(points, gaps), *map(number, soft), f"{seconds:.0f}"])
    head = ["a class", "method minus means of groups", MEAN, *CORE, "forest", "lr", "soft", "mlp", "soft", "CPU-s"]
    return _grid(head, rows)


def _transfer(results: Results) -> list[str]:
    out = ["## Where sets were not made", "", ELSEWHERE, "", _bars(TRANSFER_BARS, results), ""]
    for file in dict.fromkeys(results.rows["file"]):
        out += [f"### {file}", "", _runs(results, file) + ".", "", _accuracy(results, file), ""]
    return out


def _speed(table: pd.DataFrame) -> list[str]:
    values: Mapping[str, float] = table.set_index("quantity")["value"].astype(float).to_dict()
    rows = [[row.quantity, number(float(row.value)), row.detail] for row in table.itertuples()]
    return ["## Seconds and memory", "", _bars(SPEED_BARS, values), "", _grid(["quantity", "value", ""], rows), ""]


def _absent(results: Results) -> str:
    """List what the protocol asks for and the table does not have."""
    lines = []
    have = set(results.methods())
    if SCDD not in have:
        lines.append("* scDD itself: no row of this table is of it")
    for file in FILES:
        runs = len(results.values(file, METACELLS[1], budget=1))
        if runs < ENOUGH:
            lines.append(f"* {file}: {runs} of {ENOUGH} cuts; a difference of one point needs them all")
    lines.append("* readings without a gate, more than 1,000 training cells")
    return "\n".join(lines)


def _page(results: Results, more: Mapping[str, pd.DataFrame], notes: str) -> str:
    out = ["# Distillation: results", ""]
    out += ["This page is written by `python -m cellsmith.benchmark distillation` from the tables beside it;"]
    out += ["[how we measure](index.md) says what the words mean. To run it all again:", "", COMMANDS, ""]
    words = f"""Every method makes 1, 5 or 10 rows a class from the training cells of a cut; five classifiers that are
never tuned learn from them and name the test cells. `mean` is that of {", ".join(CORE)}. Differences are in points,
paired over cuts, with the plain 95 % interval in square brackets and, in round ones, the corrected interval that allows
for cells which cuts share."""
    out += [words, ""]
    out += ["## The bars", "", _bars(BARS, results), ""]
    for file in FILES:
        if results.methods(file):
            out += [f"## {file}", "", _runs(results, file) + ".", "", "Accuracy:", "", _accuracy(results, file), ""]
            out += ["Mean of three classifiers, method minus metacells:", "", _differences(results, file), ""]
    if len(more[ABLATION_TABLE]):
        ablation = Results(more[ABLATION_TABLE])
        out += ["## What each part earns", "", PARTS, "", _runs(ablation, EMBEDDED) + ".", "", _ablation(ablation), ""]
    if len(more[TRANSFER_TABLE]):
        out += _transfer(Results(more[TRANSFER_TABLE]))
    if len(more[SPEED_TABLE]):
        out += _speed(more[SPEED_TABLE])
    out += ["## Cost", "", _cost(results), "", "## Not run", "", _absent(results), ""]
    out += ["## Notes", "", notes.strip(), ""]
    return "\n".join(out)


def report(out: Path) -> Path:
    """Write ``distillation.md`` from the tables in a directory.

    Parameters
    ----------
    out
        Directory with ``distillation.csv`` and the further tables (each may be missing) and ``_distillation_notes.md``,
        written by hand.

    Returns
    -------
    Path of the page.
    """
    notes = out / "_distillation_notes.md"
    text = notes.read_text(encoding="utf-8") if notes.is_file() else "None."
    if text.startswith("---\n"):
        # Settings of the documentation builder, for a file that is no page of its own.
        text = text.split("---\n", 2)[2]
    page = out / "distillation.md"
    columns = {ABLATION_TABLE: COLUMNS, TRANSFER_TABLE: COLUMNS, SPEED_TABLE: SPEED}
    more = {name: Store(own, out / name).table for name, own in columns.items()}
    results = Results(Store(COLUMNS, out / "distillation.csv").table)
    page.write_text(_page(results, more, text), encoding="utf-8")
    return page
