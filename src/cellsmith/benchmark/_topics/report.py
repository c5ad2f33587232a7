"""Write the page of results from the tables on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cellsmith.benchmark._annotation.bars import mark
from cellsmith.benchmark._annotation.results import number
from cellsmith.benchmark._missingness.results import Tables
from cellsmith.benchmark._store import SPEED, TASKS, Store
from cellsmith.benchmark._topics import batches, choice, conditions, enriched, later, nulls, views
from cellsmith.benchmark._topics.bars import chosen_space, task_of
from cellsmith.benchmark._topics.cases import FILES, TUNING
from cellsmith.benchmark._topics.ours import ABLATIONS, DEFAULT, VARIANTS
from cellsmith.benchmark._topics.peers import LDA, LIFT, LINEAR, NMF, PCA
from cellsmith.benchmark._topics.use_bars import BARS

__all__ = ["COMMANDS", "report"]

COMMANDS = """```bash
export CELLSMITH_DATA=<the benchmark data directory>
export OMP_NUM_THREADS=1
python -m cellsmith.benchmark topics --out docs/benchmarks --fits <a folder that keeps the fits>
```"""
ORDER = (PCA, NMF, LDA, LIFT, LINEAR, *VARIANTS)
TOPICS_SHOWN = {"td_unique": "TD unique", "td_once": "TD once", "npmi": "NPMI", "tq": "TQ", "redundancy": "redundancy"}
CELLS_SHOWN = {
    "kmeans_ari_theta": "k-means ARI",
    "kmeans_nmi_theta": "NMI",
    "kmeans_ari_mu": "k-means ARI, mu",
    "leiden_ari_theta": "Leiden ARI",
    "leiden_nmi_theta": "NMI",
    "leiden_ari_mu": "Leiden ARI, mu",
    "ceiling_ari_theta": "best resolution (labels)",
    "ceiling_ari_mu": "the same, mu",
    "rare_f1_theta": "rare F1",
    "purity": "purity",
}


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _bars(results: Tables) -> str:
    rows = []
    for bar in BARS:
        found = bar.measure(results)
        shown = found.text if found else bar.tests or "-"
        rows.append([bar.check, shown, bar.must, bar.stretch, f"**{mark(bar, found)}**"])
    return _grid(["check", "measured", "must", "stretch", "mark"], rows)


def _order(names: Iterable[str]) -> list[str]:
    found = list(dict.fromkeys(map(str, names)))
    return [name for name in ORDER if name in found] + sorted(set(found) - set(ORDER))


def _spread(results: Tables, task: str, variant: str, metric: str, file: str) -> str:
    found = results.of_seed(task, variant, metric, file=file)
    if found.empty:
        return "-"
    spread = f" ± {found.std(ddof=1):.3f}" if len(found) > 1 else ""
    return f"{number(float(found.median()))}{spread}"


def _file(results: Tables, task: str, file: str, *, only: Sequence[str] | None = None) -> list[str]:
    names = _order(results.of(task, file=file)["variant"])
    names = [n for n in names if (n not in ABLATIONS if only is None else n in only)]
    if not names:
        return []
    seeds = sorted({int(s) for s in results.of(task, file=file)["seed"]})
    rows = [[n, *(_spread(results, task, n, m, file) for m in (*TOPICS_SHOWN, *CELLS_SHOWN, "cpu_s"))] for n in names]
    words = ", ".join(map(str, seeds))
    return [
        f"### {file}, {task.removeprefix('topics, ')} (seeds {words})",
        "",
        _grid(["", *TOPICS_SHOWN.values(), *CELLS_SHOWN.values(), "CPU s"], rows),
        "",
    ]


def _quality(results: Tables, n_topics: int) -> list[str]:
    out = [line for file in FILES for line in _file(results, task_of(n_topics), file)]
    return out or ["Not run.", ""]


def _ablations(results: Tables) -> list[str]:
    names = (DEFAULT, *ABLATIONS)
    out = []
    for file in TUNING:
        rows = []
        for name in _order(v for v in results.of(task_of(), file=file)["variant"] if v in names):
            gaps = [
                "-" if name == DEFAULT else f"{results.gap(task_of(), name, DEFAULT, metric=m, file=file).mean:+.3f}"
                for m in ("tq", "kmeans_ari_theta", "rare_f1_theta")
            ]
            shown = [
                _spread(results, task_of(), name, m, file) for m in ("td_unique", "npmi", "tq", "kmeans_ari_theta")
            ]
            runs = len(results.of_seed(task_of(), name, "tq", file=file))
            rows.append([name, str(runs), *shown, *gaps])
        head = ["", "seeds", "TD unique", "NPMI", "TQ", "k-means ARI", "minus default: TQ", "k-means ARI", "rare F1"]
        out += [f"### {file}", "", _grid(head, rows) if len(rows) > 1 else "Not run.", ""]
    return out


def _choices(results: Tables) -> list[str]:
    """Show what the rules of the notes read, and what they chose."""
    rows, winner, out = results.of("choice"), choice.FORMER, []
    for step in (choice.first_step, choice.second_step):
        names = step(winner)
        if not set(names) <= set(results.of(choice.TASK)["variant"]):
            return [*out, "Not run.", ""]
        winner, read = choice.chosen(rows, names, winner)
        columns = [c for c in read if c not in ("near", "varied")]
        lines = [[str(n), str(r[0]), *(number(float(v)) for v in r[1:])] for n, r in _lines(read, columns)]
        out += [_grid(["candidate", *columns], lines), "", f"Chosen: {winner}.", ""]
    for task in (choice.SELECTION, choice.ON_TOYS):
        if results.of(task).empty:
            return [*out, "Not run.", ""]
        value, read = choice.chosen_effect(rows, task)
        lines = [[f"{e:g}", *(number(float(v)) for v in r)] for e, r in _lines(read, list(read))]
        out += [_grid(["`min_effect`", *(c.replace("_", " ") for c in read)], lines), "", f"By {task}: {value:g}.", ""]
    return out


def _lines(table: pd.DataFrame, columns: Sequence[str]) -> Iterable[tuple[Any, list[Any]]]:
    return ((name, [row[c] for c in columns]) for name, row in table.iterrows())


def _summary(results: Tables, task: str, metrics: Sequence[str], *, file: str | None = None) -> str:
    """Return means over runs, one row a task and variant."""
    rows, table = [], results.of(task, file=file)
    for (name, each, where), _ in table.groupby(["variant", "task", "file"], sort=False):
        values = (results.mean(str(each), str(name), m, file=str(where)) for m in metrics)
        rows.append([str(where), str(each), str(name), *(number(v) for v in values)])
    return _grid(["file", "task", "", *(m.replace("_", " ") for m in metrics)], rows) if rows else "Not run."


def _conditions(results: Tables) -> list[str]:
    out = ["Median over types of Spearman's correlation between predicted and observed log2 fold changes, means over"]
    out += [
        "seeds; `slope` is the size of the prediction (1 is right), `top20` how many of the 20 most raised genes are"
    ]
    out += [
        "right, `random` the same with random topics, `nearer` the share of cells nearer to the other condition.",
        "",
    ]
    out += [f"`{conditions.SAME}` is how far the truth, which is noisy, agrees with itself.", ""]
    metrics = ("spearman", "slope", "top20", "random", "nearer", "n_selected", "n_types")
    for task in ("held-out cells", "donor", "held-out type", "planted"):
        out += [f"### {task}", "", _summary(results, task, metrics), ""]
    return out


def _views(results: Tables) -> list[str]:
    metrics = ("q", "kmeans_ari_theta", "kmeans_ari_mu", "purity", "td_unique", "npmi", "perplexity")
    parts = [_summary(results, views.TASK, metrics), _summary(results, views.GRADED, metrics)]
    return ["\n\n".join(parts), ""]


def _speed(results: Tables) -> str:
    names = [str(n) for n in results._speed.index]
    return _grid(["quantity", "value", ""], [[n, number(results.quantity(n)), results.detail(n)] for n in names])


def _absent(results: Tables) -> str:
    """List what the protocol asks for and the tables do not have."""
    lines = []
    for n_topics in (20, 100):
        for file in FILES:
            for name in (NMF, LDA, LINEAR, PCA, DEFAULT):
                have = results.of_seed(task_of(n_topics), name, "kmeans_ari_theta", file=file)
                missing = sorted({0, 1, 2} - {int(s) for s in have.index.get_level_values("seed")})
                if missing:
                    lines.append(f"* {file}, K = {n_topics}, {name}: seeds {', '.join(map(str, missing))}")
    for file in TUNING:
        for name in ABLATIONS:
            n = len(results.of_seed(task_of(), name, "tq", file=file))
            if n < 5:
                lines.append(f"* ablation, {file}, {name}: {n} of 5 seeds")
    lines += [f"* {bar.check}" for bar in BARS if mark(bar, bar.measure(results)) == "not run"]
    return "\n".join([*lines, "* the public program itself, and anything on an accelerator"])


def _page(results: Tables, notes: str) -> str:
    out = ["# Topics: results", ""]
    out += ["This page is written by `python -m cellsmith.benchmark topics` from the tables beside it;"]
    out += ["[how we measure](index.md) says what the words mean. To run it all again:", "", COMMANDS, ""]
    out += [
        "Defaults were tuned on pbmc68k and pbmc4k_10x; the other files only report. `SCE2TM, paper` is the published"
    ]
    out += [
        "form after the public code. Nothing here is a verdict on the published method. A row that was not measured on"
    ]
    out += ["all the files that it asks for is a FAIL.", ""]
    out += ["## The bars", "", _bars(results), ""]
    out += ["## Topics and cells, K = 20", "", "Medians over seeds ± standard deviation. Topics by their ten strongest"]
    out += ["genes, which needs no label; cells by k-means with the true number of types and Leiden at resolution 1.0."]
    out += [
        f"Leiden is judged on {chosen_space(results)}, the better space on the tuning files. The best resolution is"
    ]
    out += ["picked with the labels: a ceiling, not a result.", "", *_quality(results, 20)]
    out += ["## Topics and cells, K = 100", "", *_quality(results, 100)]
    out += ["## One change at a time", "", "Tuning files, K = 20. A change becomes the default only if it raises TQ or"]
    out += [
        "k-means ARI by .01 and lowers neither, nor the F1 of rare types, by more than .01.",
        "",
        *_ablations(results),
    ]
    out += [
        "## How defaults were chosen",
        "",
        "Without labels, by the rules in the notes below: nats a count of cells left out,",
    ]
    out += [
        "redundancy, and `replicated`, TD x NPMI x agreement of seeds, on each tuning file. `min_effect`: share of the"
    ]
    out += [
        "planted genes found, topics selected, and share of random halves in which any is selected.",
        "",
        *_choices(results),
    ]
    out += ["## Topics switched in cells", "", *_conditions(results)]
    out += ["### Where nothing differs", "", _summary(results, nulls.TASK, ("selected", "selected_by_cells")), ""]
    out += ["## External views", "", *_views(results)]
    out += ["## Stability and the number of topics", "", _summary(results, "stability", ("cosine",)), ""]
    out += [_summary(results, "12 planted topics", ("proposal", "found", "cosine")), ""]
    out += ["## Cells that come later", "", _summary(results, later.LATER, ("accuracy", "accuracy_joint", "alone")), ""]
    out += [_summary(results, later.MISSING, ("accuracy", "accuracy_whole", "overlap")), ""]
    out += [_summary(results, later.TECHNOLOGY, ("macro_f1", "accuracy")), ""]
    out += ["## Enriched sets", "", _summary(results, enriched.TASK, ("n_enriched", "n_unique", "unique_ratio")), ""]
    ranks = tuple(f"rank {t}" for t in conditions.INTERFERON)
    out += [_summary(results, enriched.SELECTED, ("n_selected", "n_up", *ranks)), ""]
    out += ["## Twenty cells of a type", "", _summary(results, "twenty cells of a type", ("capture_f1",)), ""]
    out += ["## Batch", "", _summary(results, batches.TASK, ("nmi_batch", "ari")), ""]
    out += ["## Speed", "", _speed(results), "", "## Not run", "", _absent(results), ""]
    return "\n".join([*out, "## Notes", "", notes.strip(), ""])


def report(out: Path) -> Path:
    """Write ``topics.md`` from the tables in a directory.

    Parameters
    ----------
    out
        Directory with ``topics.csv`` and ``topics_speed.csv`` (each may be missing) and ``_topics_notes.md``, written
        by hand.

    Returns
    -------
    Path of the page.
    """
    rows, fast = (Store(c, out / n).table for c, n in ((TASKS, "topics.csv"), (SPEED, "topics_speed.csv")))
    notes = out / "_topics_notes.md"
    text = notes.read_text(encoding="utf-8") if notes.is_file() else "None."
    if text.startswith("---\n"):
        # Settings of the documentation builder, for a file that is no page of its own.
        text = text.split("---\n", 2)[2]
    page = out / "topics.md"
    page.write_text(_page(Tables(rows, fast), text), encoding="utf-8")
    return page
