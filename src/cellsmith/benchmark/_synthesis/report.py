"""Write the page of results from the tables on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cellsmith.benchmark._files import FILES
from cellsmith.benchmark._store import SPEED, SYNTHESIS, TASKS, Store
from cellsmith.benchmark._synthesis import peers
from cellsmith.benchmark._synthesis.bars import OTHER_FILES, QUALITY, SPEED_BARS, Bar, mark
from cellsmith.benchmark._synthesis.task_bars import TASK_BARS
from cellsmith.benchmark._synthesis.tasks import TASKS as TASK_FILES
from cellsmith.benchmark._synthesis.tasks import WRITTEN
from cellsmith.metrics._bands import METRICS, PRIVACY_METRICS

__all__ = ["COMMANDS", "report"]

MAIN = "pbmc4k_10x"
SEEDS = (0, 1, 2)
COMMANDS = """```bash
export CELLSMITH_DATA=<the benchmark data directory>
python -m cellsmith.benchmark synthesis --out docs/benchmarks
```"""
SHOWN = {
    "gg_correlation": "gene-gene r",
    "mmd": "MMD",
    "w2": "W2",
    "w2_per_type": "W2 per type",
    "ilisi": "iLISI",
    "one_nn": "1NN",
    "rf_auc_pca": "RF PCs",
    "rf_auc_genes": "RF genes",
    "precision": "prec.",
    "recall": "recall",
    "coverage": "cov.",
    "label_fidelity": "fidelity",
    "tstr_ratio": "TSTR/TRTR",
    "lfc_slope": "LFC slope",
    "de_overlap": "DE overlap",
    "zero_fraction_mae": "zero MAE",
    "ks_library": "KS library",
    "nearest_share": "share",
    "exact_copies": "exact",
    "membership_auc": "memb. AUC",
}
PAIRED = ("w2", "w2_per_type", "mmd", "rf_auc_pca", "rf_auc_genes", "one_nn", "ilisi", "coverage", "precision")
PAIRED += ("lfc_slope", "de_overlap", "tstr_ratio", "ks_library", "ks_genes_detected")
ORDER = (peers.CONTROL, *peers.PEERS, *peers.SCLD_VARIANTS)


def _number(value: float) -> str:
    if not np.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    return f"{value:.2f}" if abs(value) >= 2 else f"{value:.3f}"


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


class _Medians:
    """Medians over seeds of one file; with `having`, over the seeds that this generator has."""

    def __init__(self, table: pd.DataFrame, file: str, *, having: str | None = None) -> None:
        self.rows = table[table["file"] == file]
        if having is not None:
            own = self.rows.loc[self.rows["generator"] == having, "seed"].unique()
            self.rows = self.rows[self.rows["seed"].isin(own)]
        self._value = self.rows.groupby(["generator", "metric"])["value"].median()
        self._control = self.rows.groupby(["metric"])["control"].median()

    def generators(self) -> list[str]:
        found = self.rows["generator"].unique()
        return [g for g in ORDER if g in found] + sorted(g for g in found if g not in ORDER)

    def seeds(self, generator: str) -> list[int]:
        return sorted(int(s) for s in self.rows.loc[self.rows["generator"] == generator, "seed"].unique())

    def value(self, generator: str, metric: str) -> float:
        return float(self._value.get((generator, metric), np.nan))

    def control(self, metric: str) -> float:
        real = self.value(peers.CONTROL, metric)
        return real if np.isfinite(real) else float(self._control.get(metric, np.nan))


def _all_generators(medians: _Medians) -> str:
    head = ["generator", "seeds", *SHOWN.values()]
    rows = []
    for name in medians.generators():
        seeds = ", ".join(map(str, medians.seeds(name)))
        rows.append([name, seeds, *(_number(medians.value(name, m)) for m in SHOWN)])
    return _grid(head, rows)


def _scored(medians: _Medians, bar: Bar, generator: str = "SCLD") -> tuple[tuple[float, float, float], str]:
    """Return the numbers of a generator, of the control and of the peer, and the mark of the first."""
    value, control = medians.value(generator, bar.metric), medians.control(bar.metric)
    peer = medians.value(peers.POSTERIOR, bar.metric)
    return (value, control, peer), mark(bar, value, control=control, peer=peer)


def _judged(medians: _Medians, bars: Sequence[Bar], generator: str = "SCLD") -> str:
    if not medians.seeds(generator):
        return f"{generator} was not run."
    rows = []
    for bar in bars:
        numbers, verdict = _scored(medians, bar, generator)
        rows.append([bar.title, *map(_number, numbers), bar.must, bar.stretch, f"**{verdict}**"])
    return _grid(["quantity", generator, "control", "peer", "must", "stretch", "mark"], rows)


def _on_files(table: pd.DataFrame, files: Sequence[str]) -> str:
    """Count the files on which a bar of the other files is met; all but one must."""
    rows, must = [], len(FILES) - 2
    for bar in OTHER_FILES:
        marks = {file: _scored(_Medians(table, file, having="SCLD"), bar)[1] for file in files}
        missed = [file for file, found in marks.items() if found not in ("pass", "stretch")]
        n_met = len(files) - len(missed)
        verdict = "**pass**" if n_met >= must else "**FAIL**"
        rows.append([bar.title, bar.must, f"{n_met} of {len(files)}", ", ".join(missed) or "-", verdict])
    return _grid(["quantity", "must", "met on", "not on", f"mark (at least {must} files)"], rows)


def _beaten(medians: _Medians) -> str:
    """Compare SCLD with scVI's prior on every line that is scored for both."""
    rows = []
    for bar in QUALITY:
        ours, prior = (medians.value(g, bar.metric) for g in ("SCLD", "scVI prior N(0 I)"))
        if bar.metric in ("valid_counts", "exact_composition") or not np.isfinite(ours + prior):
            continue
        known = {**METRICS, **PRIVACY_METRICS}.get(bar.metric)
        ideal = medians.control(bar.metric) if known is None or known.ideal is None else known.ideal
        rows.append((bar.title, abs(ours - ideal) <= abs(prior - ideal)))
    lost = [title for title, better in rows if not better]
    if not rows:
        return "scVI's prior was not run."
    text = f"SCLD lies nearer to the ideal than scVI's prior N(0, I) on {len(rows) - len(lost)} of {len(rows)} lines"
    return f"{text}; not on: {', '.join(lost)}. Must: on all. **FAIL**" if lost else f"{text}. Must: on all. **pass**"


def _steps(table: pd.DataFrame) -> str:
    """Compare 20 steps with other numbers of steps, over the seeds that have both."""
    rows = []
    for name in ("SCLD (10 steps)", "SCLD (200 steps)"):
        medians = _Medians(table, MAIN, having=name)
        pair = [medians.value(g, m) for m in ("w2", "rf_auc_pca", "rf_auc_genes") for g in ("SCLD", name)]
        if not np.isfinite(pair).all():
            continue
        near = [abs(a - b) for a, b in zip(pair[2::2], pair[3::2], strict=True)]
        fine = abs(pair[0] / pair[1] - 1) <= 0.02 and max(near) <= 0.02
        shown = [f"{_number(a)} / {_number(b)}" for a, b in zip(pair[::2], pair[1::2], strict=True)]
        rows.append(
            [f"20 steps / {name}", ", ".join(map(str, medians.seeds(name))), *shown, "**pass**" if fine else "**FAIL**"]
        )
    if not rows:
        return "Not run."
    return _grid(["compared", "seeds", "W2 (within 2 %)", "RF PCs (within .02)", "RF genes (within .02)", "mark"], rows)


def _on_scvi(table: pd.DataFrame) -> str:
    """Say what the diffusion adds to a trained scVI."""
    name, gaussian, prior = peers.SCLD_VARIANTS[-1], "scVI Gaussian per type", "scVI prior N(0 I)"
    medians = _Medians(table, MAIN, having=name)
    auc = [medians.value(g, "rf_auc_pca") for g in (name, gaussian)]
    slope = [medians.value(g, "lfc_slope") for g in (name, prior)]
    if not np.isfinite([*auc, *slope]).all():
        return "Not run."
    seeds = ", ".join(map(str, medians.seeds(name)))
    rows = [
        ["forest AUC, 30 PCs", *map(_number, auc), "<= Gaussian per type - .03", auc[0] <= auc[1] - 0.03],
        ["LFC slope", *map(_number, slope), ">= prior + .3", slope[0] >= slope[1] + 0.3],
    ]
    body = [[*row[:-1], "**pass**" if row[-1] else "**FAIL**"] for row in rows]
    return _grid([f"quantity (seeds {seeds})", name, "scVI's own", "must", "mark"], body)


def _paired(rows: pd.DataFrame) -> str:
    wide = rows.pivot_table(index=["metric", "seed"], columns="generator", values="value")
    if not {"SCLD", peers.POSTERIOR} <= set(wide.columns):
        return "Not run."
    difference = (wide["SCLD"] - wide[peers.POSTERIOR]).dropna()
    lines = []
    for metric in PAIRED:
        if metric not in difference.index.get_level_values(0):
            continue
        d = difference.loc[metric].to_numpy()
        lines.append([metric, f"{np.median(d):+.3f}", f"{d.min():+.3f} to {d.max():+.3f}", str(len(d))])
    return _grid(["metric", "median difference", "spread over seeds", "seeds"], lines)


def _cost(medians: _Medians) -> str:
    rows = []
    for name in medians.generators():
        train, draw = (medians.value(name, m) for m in ("train_cpu_s", "generate_cpu_s"))
        if np.isfinite(draw):
            rows.append([name, _number(train), _number(draw)])
    return _grid(["generator", "training", "generation"], rows) if rows else "Not run."


def _symmetric(medians: _Medians) -> str:
    names = [m for m in ("w2", "rf_auc_pca", "rf_auc_genes", "mmd", "ilisi", "one_nn", "coverage") if m in SHOWN]
    shown = [g for g in (peers.CONTROL, peers.POSTERIOR, "SCLD") if np.isfinite(medians.value(g, "w2_symmetric"))]
    rows = [[g, *(_number(medians.value(g, f"{m}_symmetric")) for m in names)] for g in shown]
    return _grid(["generator", *(SHOWN[m] for m in names)], rows) if rows else "Not run."


def _speed(table: pd.DataFrame) -> str:
    found, rows = table.set_index("quantity"), []
    for bar in SPEED_BARS:
        if bar.quantity not in found.index:
            rows.append([bar.title, "not run", "", "", ""])
            continue
        value, detail = float(found.loc[bar.quantity, "value"]), str(found.loc[bar.quantity, "detail"])
        verdict = "" if bar.must is None else "**FAIL**" if value > bar.must else "**pass**"
        if bar.stretch is not None and value <= bar.stretch:
            verdict = "**stretch**"
        goal = "" if bar.must is None else f"<= {bar.must:g}{f' ({bar.stretch:g})' if bar.stretch else ''}"
        rows.append([bar.title, f"{_number(value)} {bar.unit}", goal, verdict, detail])
    return _grid(["quantity", "measured", "must (stretch)", "mark", "detail"], rows)


def _task_bars(table: pd.DataFrame) -> str:
    """Judge the tasks; a mark that does not rest on all files and seeds says so."""
    rows = []
    for bar in TASK_BARS:
        wanted = len(bar.files or TASK_FILES[bar.task]) * len(SEEDS)
        n_cuts = len(bar.rows(table)[["file", "seed"]].drop_duplicates())
        text, met = bar.measure(table) or ("not run", None)
        verdict = "" if met is None else "**pass**" if met else "**FAIL**"
        if met is not None and n_cuts < wanted:
            verdict += " so far"
        rows.append([bar.title, text, bar.must, f"{n_cuts} of {wanted}", verdict])
    return _grid(["task", "measured", "must", "cuts run", "mark"], rows)


def _tasks(table: pd.DataFrame) -> str:
    parts = []
    for (task, file), rows in table.groupby(["task", "file"], sort=False):
        wide = rows.pivot_table(index="variant", columns="metric", values="value", aggfunc="median", sort=False)
        seeds = ", ".join(str(s) for s in sorted(rows["seed"].unique()))
        body = [[str(v), *(_number(x) for x in values)] for v, values in zip(wide.index, wide.to_numpy(), strict=True)]
        parts += [f"### {task}, {file} (seeds {seeds})", "", _grid(["variant", *map(str, wide.columns)], body), ""]
    return "\n".join(parts) if parts else "Not run."


def _absent(quality: pd.DataFrame, tasks: pd.DataFrame) -> str:
    """List what the protocol asks for and the tables do not have."""
    lines = []
    for file in FILES:
        own = quality[(quality["file"] == file) & (quality["generator"] == "SCLD")]
        missing = sorted(set(SEEDS) - {int(s) for s in own["seed"]})
        if missing:
            lines.append(f"* {file}: seeds {', '.join(map(str, missing))}")
    for task, files in TASK_FILES.items():
        start = WRITTEN.get(task, task)
        for file in files:
            rows = tasks[(tasks["file"] == file) & tasks["task"].astype(str).str.startswith(start)]
            missing = sorted(set(SEEDS) - {int(s) for s in rows["seed"]})
            if missing:
                lines.append(f"* task {task}, {file}: seeds {', '.join(map(str, missing))}")
    return "\n".join(lines) if lines else "Nothing."


def _page(quality: pd.DataFrame, fast: pd.DataFrame, tasks: pd.DataFrame, notes: str) -> str:
    main, judged = _Medians(quality, MAIN), _Medians(quality, MAIN, having="SCLD")
    out = [
        "# Synthesis: results",
        "",
        "This page is written by `python -m cellsmith.benchmark synthesis` from the tables",
    ]
    out += ["beside it; [how we measure](index.md) says what the words mean. To run it all again:", "", COMMANDS, ""]
    out += [f"## {MAIN}: the bars", ""]
    seeds = ", ".join(map(str, judged.seeds("SCLD"))) or "none yet"
    out += [f"Medians over the seeds {seeds}. Peer: the scVI posterior predictive of the same cuts, which is handed"]
    out += ["real cells. Control: spare real cells in place of generated ones.", ""]
    out += [_judged(judged, QUALITY), "", _beaten(judged), "", "### Steps of the sampler", "", _steps(quality), ""]
    out += ["### The diffusion on top of a trained scVI", "", _on_scvi(quality), ""]
    out += ["### Paired differences, SCLD minus scVI posterior predictive", "", _paired(main.rows), ""]
    out += [f"## {MAIN}: every generator", "", _all_generators(main), ""]
    out += ["### Components and genes chosen on both sides together", "", _symmetric(main), ""]
    out += [
        "### CPU seconds",
        "",
        "They depend on machine and load; the ratios under Speed hardly do.",
        "",
        _cost(main),
        "",
    ]
    out += ["## Other files", ""]
    files = set(quality["file"].unique())
    ordered = [f for f in FILES if f != MAIN and f in files] + sorted(files - set(FILES))
    for file in ordered:
        ours = _judged(_Medians(quality, file, having="SCLD"), OTHER_FILES)
        out += [f"### {file}", "", ours, "", _all_generators(_Medians(quality, file)), ""]
    out += ["### The bars over these files", "", _on_files(quality, ordered), ""] if ordered else ["Not run.", ""]
    out += ["## Speed", "", _speed(fast), "", "## Tasks", ""]
    out += ["Medians over the seeds that were run; the numbers behind them follow.", "", _task_bars(tasks), ""]
    out += [_tasks(tasks)]
    out += ["## Not run", "", _absent(quality, tasks), "", "## Notes", "", notes.strip(), ""]
    return "\n".join(out)


def report(out: Path) -> Path:
    """Write ``synthesis.md`` from the tables in a directory.

    Parameters
    ----------
    out
        Directory with ``synthesis.csv``, ``synthesis_speed.csv``, ``synthesis_tasks.csv`` (each may be missing) and
        ``_synthesis_notes.md``, written by hand.

    Returns
    -------
    Path of the page.
    """
    files = {"synthesis.csv": SYNTHESIS, "synthesis_speed.csv": SPEED, "synthesis_tasks.csv": TASKS}
    tables = [Store(columns, out / name).table for name, columns in files.items()]
    notes = out / "_synthesis_notes.md"
    text = notes.read_text(encoding="utf-8") if notes.is_file() else "None."
    if text.startswith("---\n"):
        # Settings of the documentation builder, for a file that is no page of its own.
        text = text.split("---\n", 2)[2]
    page = out / "synthesis.md"
    page.write_text(_page(*tables, notes=text), encoding="utf-8")
    return page
