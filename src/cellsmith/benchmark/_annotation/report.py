"""Write the page of results from the tables on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cellsmith.benchmark._annotation import blind, toys
from cellsmith.benchmark._annotation.bars import BARS, mark, transfer_table
from cellsmith.benchmark._annotation.guarantee import LEVELS, SIZES
from cellsmith.benchmark._annotation.peers import DEFAULT, METHODS
from cellsmith.benchmark._annotation.results import Difference, Results, difference, number, points
from cellsmith.benchmark._annotation.speed import GROWTH, LARGEST
from cellsmith.benchmark._annotation.transfer import FEW, FILES
from cellsmith.benchmark._store import SPEED, TASKS, Store

__all__ = ["COMMANDS", "report"]

COMMANDS = """```bash
export CELLSMITH_DATA=<the benchmark data directory>
export OMP_NUM_THREADS=1
python -m cellsmith.benchmark annotation --out docs/benchmarks --largest
```"""
TRANSFER_SEEDS = (0, 1, 2)


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _interval(found: Difference) -> str:
    if found.runs == 0:
        return "-"
    spread = f" ({points(found.low)} to {points(found.high)})" if np.isfinite(found.low) else ""
    return f"{points(found.mean)}{spread}"


def _bars(results: Results) -> str:
    rows = []
    for bar in BARS:
        found = bar.measure(results)
        rows.append(
            [bar.check, found.text if found else bar.tests or "-", bar.must, bar.stretch, f"**{mark(bar, found)}**"]
        )
    return _grid(["check", "measured", "must", "stretch", "mark"], rows)


def _order(names: Iterable[str]) -> list[str]:
    found = list(dict.fromkeys(names))
    return [m for m in METHODS if m in found] + sorted(set(found) - set(METHODS))


def _methods_table(results: Results, task: str, *, file: str) -> str:
    """Return means of every method, and GRIT minus it with the interval over the runs."""
    rows = []
    has_rare = (results.of(task, file=file)["metric"] == "rare_recall").any()
    for name in _order(results.of(task, file=file)["variant"]):
        values = [results.mean(task, name, m, file=file) for m in ("accuracy", "macro_f1", "rare_recall")]
        gaps = [results.paired(task, DEFAULT, name, metric=m, file=file) for m in ("accuracy", "macro_f1")]
        shown = ["-", "-"] if name == DEFAULT else [_interval(g) for g in gaps]
        rows.append([name, *map(number, values[: 3 if has_rare else 2]), *shown])
    head = ["method", "accuracy", "macro-F1", *(["rare recall"] if has_rare else [])]
    return _grid([*head, f"{DEFAULT} minus it, accuracy", "the same, macro-F1"], rows)


def _runs(results: Results, task: str, file: str) -> str:
    runs = results.values(task, DEFAULT, "accuracy", file=file)
    seeds = sorted({int(s) for s in runs.index.get_level_values("seed")})
    parts = runs.index.get_level_values("task").nunique()
    parts_text = f"{parts} parts, " if parts > 1 else ""
    return f"{parts_text}seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{parts_text}seed {seeds}"


def _toys(results: Results) -> list[str]:
    out = []
    for task, words in (("easy", "Easy task"), ("coherent", "Coherent task")):
        out += [f"### {words}, {toys.FILE}", ""]
        if results.values(task, DEFAULT, "accuracy", file=toys.FILE).empty:
            out += ["Not run.", ""]
            continue
        out += [f"{_runs(results, task, toys.FILE)}; differences in points, 95 % intervals over the seeds.", ""]
        out += [_methods_table(results, task, file=toys.FILE), ""]
    return out


def _transfer(results: Results) -> list[str]:
    out = []
    for file in (*FILES, FEW):
        task = "transfer to" if file in FILES else "10 cells a type"
        if results.values(task, DEFAULT, "accuracy", file=file).empty:
            continue
        out += [f"### {file}, {task if file == FEW else 'one part left out'}", ""]
        out += [f"{_runs(results, task, file)}; differences in points, 95 % intervals over the runs.", ""]
        out += [_methods_table(results, task, file=file), ""]
    return out or ["Not run.", ""]


def _overview(results: Results) -> str:
    """Return one row a method: means over the files, and its worst part against the raw scores."""
    rows = []
    found = {m: transfer_table(results, m) for m in ("accuracy", "macro_f1", "rare_recall")}
    for name in _order(found["accuracy"].columns):
        gaps = found["accuracy"][name] - found["accuracy"].get("raw", np.nan)
        means = [t[name].groupby(level="file").mean().mean() if name in t else np.nan for t in found.values()]
        below = f"{int((gaps < -0.005 - 1e-9).sum())} of {int(gaps.notna().sum())}"
        rows.append([name, *map(number, means), points(float(gaps.min())), below])
    head = [
        "method",
        "accuracy",
        "macro-F1",
        "rare recall",
        "worst part against raw",
        "parts below raw by more than 0.5",
    ]
    return _grid(head, rows)


def _blind(results: Results) -> str:
    """Return accuracy / macro-F1 of the candidates on the blind files, and the differences that the rule asks for."""
    table = results.of(blind.TASK)
    if table.empty:
        return "Not run."
    shown, rows = ("raw", *blind.CANDIDATES), []
    for key, words in (("10 cells", "10 cells a type"), ("transfer", "one part left out")):
        for file in blind.FILES:
            task = f"{blind.TASK}{key}"
            found = [[results.mean(task, name, m, file=file) for m in ("accuracy", "macro_f1")] for name in shown]
            if np.isfinite(found).any():
                rows.append([file, words, *(" / ".join(map(number, pair)) for pair in found)])
    a, b, c = blind.CANDIDATES
    lines = []
    for ours, theirs in ((b, a), (c, b)):
        for metric, words in (("macro_f1", "macro-F1"), ("accuracy", "accuracy")):
            better = int((blind.file_gains(results, ours, theirs, metric=metric) > 0).sum())
            gain = _interval(blind.gain(results, ours, theirs, metric=metric))
            lines.append(
                f"* {ours[0]} minus {theirs[0]}, {words}: {gain}; better in {better} of {len(blind.FILES)} files"
            )
    return "\n".join([_grid(["file", "task", *shown], rows), "", *lines])


def _parts(results: Results) -> str:
    """Return one row a part: raw, the vote and GRIT."""
    shown, rows = ("raw", "CellTypist-style vote", "kNN mean", DEFAULT, "GRIT half prior", "GRIT protect 0.5"), []
    table = results.of("transfer to")
    table = pd.concat([table, results.of("10 cells a type")])
    for (file, task), part in table.groupby(["file", "task"], sort=False):
        cells = [file, task]
        for metric in ("accuracy", "macro_f1"):
            own = part[part["metric"] == metric].groupby("variant")["value"].mean()
            cells.append(" / ".join(number(float(own.get(name, np.nan))) for name in shown))
        rows.append(cells)
    return _grid(["file", "part", "accuracy: " + " / ".join(shown), "macro-F1"], rows) if rows else "Not run."


def _rare(results: Results) -> str:
    """Return one row a rare type and part."""
    shown = ("raw", "CellTypist-style vote", "label spreading", DEFAULT, "GRIT half prior", "GRIT protect 0.5")
    rows = []
    table = results.of("transfer to")
    table = table[table["metric"].astype(str).str.startswith("recall ")]
    for (file, task, metric), part in table.groupby(["file", "task", "metric"], sort=False):
        own = part.groupby("variant")["value"].mean()
        rows.append([file, task, metric.removeprefix("recall "), *(number(float(own.get(n, np.nan))) for n in shown)])
    return _grid(["file", "part", "type", *shown], rows) if rows else "None of the parts has such a type."


def _summary(results: Results, task: str, metrics: Sequence[str], *, file: str | None = None) -> str:
    """Return the mean of metrics a variant."""
    rows, table = [], results.of(task, file=file)
    for name in dict.fromkeys(table["variant"]):
        rows.append([str(name), *(number(results.mean(task, str(name), m, file=file)) for m in metrics)])
    return _grid(["", *(m.replace("_", " ") for m in metrics)], rows) if rows else "Not run."


def _unknown(results: Results) -> str:
    rows = []
    for file in (toys.FILE, FEW):
        for name in dict.fromkeys(results.of("unknown", file=file)["variant"]):
            found = results.values("unknown", str(name), "auroc", file=file)
            raw = results.values("unknown", "raw max-prob", "auroc", file=file)
            gap = difference((found - raw).dropna().groupby(level="task").mean().to_numpy())
            rows.append([file, str(name), str(len(found)), number(float(found.mean())), _interval(gap)])
    head = ["file", "score", "runs", "AUROC", "minus raw max-prob, x 100 (over types)"]
    return _grid(head, rows) if rows else "Not run."


def _guards(results: Results) -> str:
    table = results.of("guard")
    if table.empty:
        return "Not run."
    wide = table.pivot_table(index=["task", "seed", "variant"], columns="metric", values="value").reset_index()
    wide["worse"] = (wide["macro_f1"] < wide["raw_macro_f1"]).astype(float)
    wide["lost"] = (wide["lost_classes"] > 0).astype(float)
    columns = ["raw_accuracy", "accuracy", "raw_macro_f1", "macro_f1", "lost", "worse", "warned"]
    means = wide.groupby(["task", "variant"])[columns].mean().reset_index()
    means["weight"] = means["variant"].str.split(" ").str[1].astype(float)
    means = means.sort_values(
        ["task", "variant", "weight"], key=lambda c: c.str.split(" ").str[0] if c.name == "variant" else c
    )
    rows = [
        [r["task"].removeprefix("guard, "), r["variant"], *(number(r[c]) for c in columns)] for _, r in means.iterrows()
    ]
    words = ["raw accuracy", "accuracy", "raw macro-F1", "macro-F1", "runs that lose a class"]
    return _grid(["task", "Laplacian, lambda", *words, "runs below raw macro-F1", "runs that warn"], rows)


def _rejection(results: Results) -> str:
    rows = []
    for level in LEVELS:
        for m in SIZES:
            for target in ("coverage", "selective", "accepted_wrong"):
                name, task = f"{target}, level {level:g}", f"{m} anchors"
                get = {k: results.mean(task, name, k) for k in ("value", "se", "violated", "accepted")}
                if not np.isfinite(get["value"]):
                    continue
                oracle = results.mean(task, f"{name}, oracle", "accepted")
                rows.append([f"{level:g}", str(m), target, *map(number, get.values()), number(oracle)])
    head = ["level", "anchors", "target", "mean", "s.e.", "draws that violate it", "accepted", "accepted by the oracle"]
    return _grid(head, rows) if rows else "Not run."


def _queries(results: Results) -> str:
    parts = [_summary(results, "20 % later", ("agreement", "accuracy_raw", "accuracy_joint", "accuracy_later"))]
    parts += [_summary(results, "self-query", ("difference",))]
    columns = ("n_cells", "cpu_s", "accuracy_raw", "accuracy", "accepted", "wrong_among_accepted")
    parts += [_summary(results, "full door", (*columns, "differs_h5ad", "differs_zarr"))]
    return "\n\n".join(parts)


def _speed(results: Results) -> str:
    rows = []
    for n in (*GROWTH, LARGEST):
        get = [results.quantity(f"{k}_{n}") for k in ("cpu_s", "wall_s", "extra_mib", "iterations", "uncertified")]
        rows.append([f"{n:,}", *map(number, get), results.detail(f"cpu_s_{n}") or "not run"])
    table = _grid(["cells", "CPU-s", "s", "MiB extra", "iterations", "uncertified", ""], rows)
    names = ("cg_s", "lu_s", "cg_over_lu", "chebyshev_s", "chebyshev_over_cg", "slope")
    names = (*names, "lu_s, 4 dimensions", "cg_over_lu, 4 dimensions")
    more = [[n, number(results.quantity(n)), results.detail(n) or "not run"] for n in names]
    return f"{table}\n\n{_grid(['quantity', 'value', ''], more)}"


def _absent(results: Results) -> str:
    """List what the protocol asks for and the tables do not have."""
    lines = []
    wanted = [("easy", toys.FILE, toys.SEEDS), ("coherent", toys.FILE, toys.SEEDS)]
    wanted += [("transfer to", file, TRANSFER_SEEDS) for file in FILES] + [("10 cells a type", FEW, TRANSFER_SEEDS)]
    for task, file, seeds in wanted:
        have = results.values(task, DEFAULT, "accuracy", file=file)
        missing = sorted(set(seeds) - {int(s) for s in have.index.get_level_values("seed")})
        if missing:
            lines.append(f"* {task}, {file}: seeds {', '.join(map(str, missing))}")
    lines += [f"* {bar.check}" for bar in BARS if mark(bar, bar.measure(results)) == "not run"]
    lines += ["* scale on 8 cores, and anything on an accelerator"]
    lines += ["* the released programs CellTypist, popV, SingleR and scPRINT-2: the peers follow their published rules"]
    return "\n".join(lines)


def _page(results: Results, notes: str) -> str:
    out = ["# Annotation: results", ""]
    out += ["This page is written by `python -m cellsmith.benchmark annotation` from the tables beside it;"]
    out += ["[how we measure](index.md) says what the words mean. To run it all again:", "", COMMANDS, ""]
    out += ["## The bars", "", f"{DEFAULT} is the default: symmetric Laplacian, lambda 5. Differences are in points,"]
    out += [f"{DEFAULT} minus the peer.", "", _bars(results), ""]
    out += ["## Toy tasks on real cells", "", *_toys(results)]
    out += ["### Lambda without labels, easy task", ""]
    out += [_summary(results, "label-free", ("accuracy", "macro_f1", "lambda")), ""]
    out += ["### Calibration at lambda 10, easy task", ""]
    out += [_summary(results, "calibration", ("ece", "mean_confidence", "accuracy", "temperature")), ""]
    out += ["### Smoothing far too much", "", _guards(results), ""]
    out += ["## Unknown types, lambda 10", "", _unknown(results), ""]
    out += ["## Real transfers", "", "### All files", "", _overview(results), ""]
    out += [*_transfer(results), "### Part by part", "", _parts(results), ""]
    out += ["### Recall of types under 3 % (at least 10 cells)", "", _rare(results), ""]
    out += ["## Files for one decision: even out class masses by default?", ""]
    out += [
        "The rule was written before these files were run; it stands in the notes. Accuracy / macro-F1, means over "
    ]
    out[-1] += "parts and five seeds; differences in points over the files, 95 % intervals over the seeds."
    out += ["", _blind(results), ""]
    out += ["## Rejection: 500 draws of anchors", "", _rejection(results), ""]
    out += ["## Cells that come later, and the whole door", "", _queries(results), ""]
    out += ["## Speed", "", _speed(results), ""]
    out += ["## Not run", "", _absent(results), "", "## Notes", "", notes.strip(), ""]
    return "\n".join(out)


def report(out: Path) -> Path:
    """Write ``annotation.md`` from the tables in a directory.

    Parameters
    ----------
    out
        Directory with ``annotation.csv`` and ``annotation_speed.csv`` (each may be missing) and
        ``_annotation_notes.md``, written by hand.

    Returns
    -------
    Path of the page.
    """
    rows, fast = (Store(c, out / n).table for c, n in ((TASKS, "annotation.csv"), (SPEED, "annotation_speed.csv")))
    notes = out / "_annotation_notes.md"
    text = notes.read_text(encoding="utf-8") if notes.is_file() else "None."
    if text.startswith("---\n"):
        # Settings of the documentation builder, for a file that is no page of its own.
        text = text.split("---\n", 2)[2]
    page = out / "annotation.md"
    page.write_text(_page(Results(rows, fast), text), encoding="utf-8")
    return page
