"""Write the page of results from the tables on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cellsmith.benchmark._annotation.bars import mark
from cellsmith.benchmark._annotation.results import number
from cellsmith.benchmark._clustering.compare import COLUMNS, FACTS
from cellsmith.benchmark._clustering.methods import SCVI, SIAMESE
from cellsmith.benchmark._clustering.results import Clusters
from cellsmith.benchmark._missingness.results import Tables
from cellsmith.benchmark._scsiameseclu import ablation, later, markers, paper, peer, structure
from cellsmith.benchmark._scsiameseclu.bars import Pages, interval, peeking
from cellsmith.benchmark._scsiameseclu.results import SCORES, against_default, named, row_values
from cellsmith.benchmark._scsiameseclu.use_bars import BARS
from cellsmith.benchmark._scsiameseclu.variants import BATCHED, CHANGES, DEFAULT, WAYS
from cellsmith.benchmark._store import SPEED, TASKS, Store

__all__ = ["report"]

COMMANDS = """```bash
export CELLSMITH_DATA=<the benchmark data directory>
export OMP_NUM_THREADS=1
python -m cellsmith.benchmark clustering --out docs/benchmarks --seeds 0 1 2 3 4
python -m cellsmith.benchmark scsiameseclu --out docs/benchmarks
```"""
SHOWN = {"ari": "ARI", "rare_f1": "rare F1", "nmi": "NMI", "macro_f1": "macro-F1"}
VERDICTS = {True: "changes the default", False: "default stays", None: "not judged"}


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _bars(pages: Pages) -> str:
    rows = []
    for bar in BARS:
        found = bar.measure(pages)
        shown = found.text if found else bar.tests or "-"
        rows.append([bar.check, shown, bar.must, bar.stretch, f"**{mark(bar, found)}**"])
    return _grid(["check", "measured", "must", "stretch", "mark"], rows)


def _ablation(tables: Tables) -> list[str]:
    rows, start = [], {metric: row_values(tables, DEFAULT, metric) for metric in SCORES}
    if start["ari"].empty:
        return ["Not run.", ""]
    means = ", ".join(f"{SHOWN[m]} {v.mean():.3f}" for m, v in start.items())
    for name, change in CHANGES.items():
        gaps = {metric: against_default(tables, name, metric) for metric in SCORES}
        each = [against_default(tables, name, "ari", ways=(way,)) for way in WAYS]
        if name == DEFAULT or not any(gap.runs for gap in each):
            continue
        verdict = named({m: g.mean for m, g in gaps.items()}, change)
        runs, shown = str(gaps["ari"].runs), [interval(gaps[m]) for m in SCORES]
        shown += [f"{gap.mean:+.3f} ({gap.runs})" if gap.runs else "-" for gap in each]
        words = VERDICTS[verdict] if gaps["ari"].runs >= 9 else f"({VERDICTS[verdict]})"
        rows.append([name, "adds" if change.adds else "takes away", runs, *shown, words])
    head = ["row minus default", "it", "runs", *SHOWN.values(), *(f"ARI, {way} (runs)" for way in WAYS), "by the rule"]
    return [f"The default: {means} ({len(start['ari'])} runs).", "", _grid(head, rows), ""]


def _batch(tables: Tables) -> list[str]:
    files, shown = (ablation.BATCH_FILE,), {"ari": "ARI", "nmi_batch": "NMI with the batch", "nmi": "NMI"}
    rows = []
    for name, change in BATCHED.items():
        values = {m: row_values(tables, name, m, files=files) for m in (*shown, "macro_f1")}
        if values["ari"].empty:
            continue
        gaps = {m: against_default(tables, name, m, files=files) for m in values}
        signs = {m: (-g.mean if m == "nmi_batch" else g.mean) for m, g in gaps.items()}
        verdict = "-" if name == DEFAULT else VERDICTS[named(signs, change, first=("ari", "nmi_batch"))]
        cells = [f"{values[m].mean():.3f}" + ("" if name == DEFAULT else f" ({interval(gaps[m])})") for m in shown]
        rows.append([name, str(len(values["ari"])), *cells, verdict])
    return [_grid(["kang_ifnb", "runs", *shown.values(), "by the rule"], rows) if rows else "Not run.", ""]


def _means(tables: Tables, task: str, metrics: Sequence[str]) -> str:
    """Return means over seeds, one row a task, file and variant."""
    rows = []
    for (each, file, name), own in tables.of(task).groupby(["task", "file", "variant"], sort=False):
        values = [tables.mean(str(each), str(name), m, file=str(file)) for m in metrics]
        rows.append([str(each), str(file), str(name), str(own["seed"].nunique()), *map(number, values)])
    head = ["task", "file", "", "seeds", *(m.replace("_", " ") for m in metrics)]
    return _grid(head, rows) if rows else "Not run."


def _absent(pages: Pages) -> str:
    """List what the protocol asks for and the tables do not have."""
    lines = [
        f"* {method}: {pages.clusters.seeds(method)} of 5 seeds on every file"
        for method in (SIAMESE, SCVI)
        if pages.clusters.seeds(method) < 5
    ]
    for name in CHANGES:
        runs = len(row_values(pages.tables, name, "ari"))
        if runs < 9:
            lines.append(f"* ablation, {name}: {runs} of 9 runs")
    lines += [f"* {bar.check}" for bar in BARS if mark(bar, bar.measure(pages)) == "not run"]
    lines.append(
        "* principal components in the place of counts as input: the encoder reads counts, there is no such form"
    )
    return "\n".join([*lines, "* whole files instead of 1,200 cells; the public program itself; anything on a GPU"])


def _page(pages: Pages, notes: str) -> str:
    tables = pages.tables
    parts = {
        "## The bars": [_bars(pages), ""],
        "## One change at a time": [
            f"Files {', '.join(ablation.TUNING)}; means over files, seeds and the two ways of finding the number of",
            f"clusters ({' and '.join(WAYS)}), with the 95 % interval of the paired difference.",
            "The rule stands in the notes; in brackets: fewer than 9 runs.",
            "",
            *_ablation(tables),
        ],
        "## Batch": _batch(tables),
        "## Beside the published form": [
            _means(tables, paper.TASK, ("ari", "nmi", "macro_f1", "acc", "cpu_s", "us_per_cell_and_epoch")),
            "",
        ],
        "## Without training": [_means(tables, peer.TASK, ("ari", "nmi", "macro_f1", "rare_f1")), ""],
        "## Twenty cells of a type": [_means(tables, structure.RARE, ("f1", "n_clusters")), ""],
        "## No structure": [_means(tables, structure.NULL, ("n_clusters", "largest")), ""],
        "## Cells that come later": [
            _means(tables, later.HELD_OUT, ("ari_training", "ari_held_out", "agreement_with_refit")),
            "",
            _means(tables, later.TECHNOLOGY, ("accuracy", "macro_f1")),
            "",
        ],
        "## Names by markers": [
            _means(tables, markers.TASK, ("accuracy", "rejected", "accuracy_kept", "accuracy_rejected")),
            "",
        ],
        "## Another order": [_means(tables, structure.ORDER, ("ari",)), ""],
        "## Peeking": [
            "What choosing the epoch of the transport by the types would add to the accuracy, number given.",
            "",
            _grid(["file", "gap"], [[f, number(v)] for f, v in peeking(pages).items()]),
            "",
        ],
        "## Time and memory": [_speed(tables), ""],
        "## Not run": [_absent(pages), ""],
    }
    out = ["# scSiameseClu: acceptance and ablation", ""]
    out += ["This page is written by `python -m cellsmith.benchmark scsiameseclu` from the tables beside it;"]
    out += ["[how we measure](index.md) says what the words mean. To run it all again:", "", COMMANDS, ""]
    out += ["At most 1,200 cells of a file, last epoch. Rows against peers read the tables of the"]
    out += ["[clustering page](clustering.md). Nothing here is a verdict on the published method.", ""]
    for title, lines in parts.items():
        out += [title, "", *lines]
    return "\n".join([*out, "## Notes", "", notes.strip(), ""])


def _speed(tables: Tables) -> str:
    names = [str(n) for n in tables._speed.index]
    rows = [[n, number(tables.quantity(n)), tables.detail(n)] for n in names]
    return _grid(["quantity", "value", ""], rows) if rows else "Not run."


def report(out: Path) -> Path:
    """Write ``scsiameseclu.md`` from the tables in a directory.

    Parameters
    ----------
    out
        Directory with ``scsiameseclu.csv``, ``scsiameseclu_speed.csv``, the tables of the clustering benchmark (each
        may be missing) and ``_scsiameseclu_notes.md``, written by hand.

    Returns
    -------
    Path of the page.
    """
    names = {"scsiameseclu": TASKS, "scsiameseclu_speed": SPEED, "clustering": COLUMNS, "clustering_facts": FACTS}
    own, speed, rows, facts = (Store(columns, out / f"{name}.csv").table for name, columns in names.items())
    notes = out / "_scsiameseclu_notes.md"
    text = notes.read_text(encoding="utf-8") if notes.is_file() else "None."
    if text.startswith("---\n"):
        # Settings of the documentation builder, for a file that is no page of its own.
        text = text.split("---\n", 2)[2]
    page = out / "scsiameseclu.md"
    page.write_text(_page(Pages(Tables(own, speed), Clusters(rows, facts)), text), encoding="utf-8")
    return page
