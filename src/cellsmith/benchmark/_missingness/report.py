"""Write the page of results from the tables on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cellsmith.benchmark._annotation.bars import mark
from cellsmith.benchmark._annotation.results import Difference, number
from cellsmith.benchmark._missingness import mechanisms as masks
from cellsmith.benchmark._missingness import queries, zeros
from cellsmith.benchmark._missingness.bars import BARS
from cellsmith.benchmark._missingness.decision import described
from cellsmith.benchmark._missingness.methods import BC, COLUMNS, CONTROLS
from cellsmith.benchmark._missingness.real import FILES, N_LATENT, RARE, TASK
from cellsmith.benchmark._missingness.reference import FILE_C, SIZES
from cellsmith.benchmark._missingness.results import Tables
from cellsmith.benchmark._missingness.speed import GROWTH, LARGEST, PROBS
from cellsmith.benchmark._store import SPEED, TASKS, Store

__all__ = ["COMMANDS", "report"]

COMMANDS = """```bash
export CELLSMITH_DATA=<the benchmark data directory>
export OMP_NUM_THREADS=1
python -m cellsmith.benchmark missingness --seeds 0 1 2 3 4 --out docs/benchmarks --largest
```"""
SEEDS = (0, 1, 2, 3, 4)
LABELLED = ("ari", "nmi", "macro_f1")


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _interval(found: Difference) -> str:
    if found.runs == 0:
        return "-"
    spread = f" ({found.low:+.3f} to {found.high:+.3f})" if np.isfinite(found.low) else ""
    return f"{found.mean:+.3f}{spread}"


def _order(names: Iterable[str]) -> list[str]:
    found, known = list(dict.fromkeys(names)), [*COLUMNS, *CONTROLS]
    return [name for name in known if name in found] + sorted(set(found) - set(known))


def _seeds(results: Tables, task: str, file: str | None = None) -> str:
    found = sorted({int(seed) for seed in results.of(task, file=file, variant=BC)["seed"]})
    return f"seeds {', '.join(map(str, found))}" if found else "not run"


def _bars(results: Tables) -> str:
    rows = []
    for bar in BARS:
        found = bar.measure(results)
        shown = found.text if found else bar.tests or "-"
        rows.append([bar.check, shown, bar.must, bar.stretch, f"**{mark(bar, found)}**"])
    return _grid(["check", "measured", "must", "stretch", "mark"], rows)


def _wide(results: Tables, tasks: Sequence[str], metric: str, *, prefix: str) -> str:
    """Return tasks x columns: the mean, the standard deviation over the seeds, and BC logistic minus the column."""
    names = _order(v for task in tasks for v in results.of(task)["variant"])
    head, rows = ["", *(task.removeprefix(prefix).removesuffix(", ") for task in tasks)], []
    for name in names:
        cells = []
        for task in tasks:
            found = results.of_seed(task, name, metric)
            gap = "" if name == BC else f"; {_interval(results.gap(task, BC, name, metric=metric))}"
            spread = f" ± {found.std(ddof=1):.3f}" if len(found) > 1 else ""
            cells.append(f"{number(float(found.mean()))}{spread}{gap}" if len(found) else "-")
        rows.append([name, *cells])
    return _grid(head, rows) if rows else "Not run."


def _reference(results: Tables) -> list[str]:
    out = [f"Mean ± standard deviation over the seeds; after the semicolon {BC} minus the column, paired within seeds,"]
    out += ["with its 95 % interval.", "", f"### A: sin-theta, a known space ({_seeds(results, 'A, ')})", ""]
    out += [_wide(results, [f"A, {name}, " for name in masks.REFERENCE], "sin_theta", prefix="A, "), ""]
    out += [f"### B: ARI, three clusters in two dimensions ({_seeds(results, 'B, ')})", ""]
    out += [_wide(results, [f"B, D = {d}, " for d in SIZES], "ari", prefix="B, "), ""]
    out += [f"### C: {FILE_C}, logistic mask, 10 PCs ({_seeds(results, 'C, ')})", ""]
    return [*out, _columns(results, "C, logistic, ", FILE_C, (10,)), ""]


def _columns(results: Tables, task: str, file: str, sizes: Sequence[int]) -> str:
    """Return one row a column: means at each number of components, and BC logistic minus the column."""
    rows = []
    metrics = ["sin_theta", "recall", *LABELLED]
    if (results.of(task, file=file)["metric"] == "rare_f1").any():
        metrics.append("rare_f1")
    for name in _order(results.of(task, file=file)["variant"]):
        cells = []
        for metric in metrics:
            each = [results.mean(f"{task}{k} PCs", name, metric, file=file) for k in sizes]
            cells.append(" / ".join(number(v) for v in each))
        gaps = [results.gap(task, BC, name, metric=m, file=file) for m in ("sin_theta", "ari")]
        taken = results.of_seed(task, name, "accepted", file=file)
        shown = f"{name} (taken in {100 * taken.mean():.0f} %)" if len(taken) else name
        rows.append([shown, *cells, *(["-", "-"] if name == BC else [_interval(g) for g in gaps])])
    words = [f"{m.replace('_', ' ')} {'/'.join(map(str, sizes))}" for m in metrics]
    return _grid(["column", *words, f"{BC} minus it, sin-theta", "the same, ARI"], rows) if rows else "Not run."


def _real(results: Tables) -> list[str]:
    out = []
    for file in (*FILES, RARE):
        for name in masks.MECHANISMS:
            task = f"{TASK}, {name}, "
            if results.of(task, file=file).empty:
                continue
            words = ", a stress that is not judged" if name == masks.STRESS else ""
            out += [f"### {file}, {name}{words} ({_seeds(results, task, file)})", ""]
            out += [_columns(results, task, file, N_LATENT), ""]
    return out or ["Not run.", ""]


def _summary(results: Tables, task: str, metrics: Sequence[str], *, file: str | None = None) -> str:
    rows, table = [], results.of(task, file=file)
    for name in dict.fromkeys(table["variant"]):
        rows.append([str(name), *(number(results.mean(task, str(name), m, file=file)) for m in metrics)])
    return _grid(["", *(m.replace("_", " ") for m in metrics)], rows) if rows else "Not run."


def _zeros(results: Tables) -> list[str]:
    out = []
    for file in (FILE_C, zeros.FILE):
        found = results.of(zeros.TASK + ", ", file=file)
        out += [f"### {file} ({len(set(found['seed']))} seeds)", ""]
        rows = []
        for name in dict.fromkeys(found["variant"]):
            get = {
                m: [results.mean(f"{zeros.TASK}, {k} PCs", str(name), m, file=file) for k in N_LATENT]
                for m in ("observed", *LABELLED)
            }
            cells = [number(get["observed"][0]), *(" / ".join(map(number, get[m])) for m in LABELLED)]
            gap = results.gap(f"{zeros.TASK}, ", str(name), "PCA", metric="ari", file=file)
            rows.append([str(name), *cells, "-" if name == "PCA" else _interval(gap)])
        head = ["zeros that are missing, method", "observed", *(f"{m.replace('_', ' ')} 10/20" for m in LABELLED)]
        out += [_grid([*head, "minus PCA, ARI"], rows) if rows else "Not run.", ""]
    return out


def _speed(results: Tables) -> str:
    rows = []
    for n in (*GROWTH, LARGEST):
        for prob in PROBS:
            get = {
                k: results.quantity(f"{k}_{prob}_{n}")
                for k in ("cpu_s", "wall_s", "csr_mib", "extra_mib", "peak_mib", "rank", "sin_theta")
            }
            ratio = 1.0 + get["extra_mib"] / get["csr_mib"] if get["csr_mib"] else float("nan")
            cells = [number(v) for v in get.values()]
            rows.append([f"{n:,}", prob, *cells, number(ratio), results.detail(f"cpu_s_{prob}_{n}") or "not run"])
    head = ["cells", "p", "CPU-s", "s", "CSR MiB", "MiB extra", "MiB resident", "terms", "sin-theta"]
    table = _grid([*head, "(CSR + extra) / CSR", ""], rows)
    names = (
        "implicit_s",
        "dense_s",
        "dense_over_implicit",
        "published_s",
        "published_over_implicit",
        *(f"slope_{prob}" for prob in PROBS),
    )
    more = [[n, number(results.quantity(n)), results.detail(n) or "not run"] for n in names]
    return f"{table}\n\n{_grid(['quantity', 'value', ''], more)}"


def _short(results: Tables, file: str) -> list[str]:
    """List columns with missing seeds of one file; masks that miss the same stand together."""
    missing: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for name in COLUMNS:
        per_mask: dict[str, list[str]] = {}
        for mechanism in masks.MECHANISMS:
            have = results.of_seed(f"{TASK}, {mechanism}, ", name, "sin_theta", file=file)
            seeds = sorted(set(SEEDS) - {int(s) for s in have.index.get_level_values("seed")})
            if seeds:
                per_mask.setdefault(", ".join(map(str, seeds)), []).append(mechanism)
        for seeds_text, found in per_mask.items():
            missing.setdefault(tuple(found), {}).setdefault(seeds_text, []).append(name)
    out = []
    for found, by_seeds in missing.items():
        where = "all masks" if len(found) == len(masks.MECHANISMS) else ", ".join(found)
        out += [f"{where}, seeds {seeds}: {', '.join(names)}" for seeds, names in by_seeds.items()]
    return out


def _absent(results: Tables) -> str:
    """List what the protocol asks for and the tables do not have."""
    lines = [f"* protocol R, {file}, {text}" for file in (*FILES, RARE) for text in _short(results, file)]
    lines += [f"* {bar.check}" for bar in BARS if mark(bar, bar.measure(results)) == "not run"]
    lines += ["* the released programs primePCA and softImpute (both in R): the peers follow their published equations"]
    return "\n".join([*lines, "* anything on an accelerator, or on a cluster of workers"])


def _page(results: Tables, notes: str) -> str:
    out = ["# Missingness: results", ""]
    out += ["This page is written by `python -m cellsmith.benchmark missingness` from the tables beside it;"]
    out += ["[how we measure](index.md) says what the words mean. To run it all again:", "", COMMANDS, ""]
    out += ["Entries of complete data are taken away; the truth is what the complete data give. sin-theta is 0 for the"]
    out += [
        "same space and 1 for an orthogonal one; recall is that of the 15 nearest cells; ARI, NMI and F1 are those of"
    ]
    out += ["k-means with the true number of types. `complete` is the control, not a method.", ""]
    out += ["## The bars", "", "On real data a number is the mean over 10 and 20 components and over seeds.", ""]
    out += [_bars(results), "", "## The default of `refine`", "", described(results), ""]
    out += ["## Reference tables", "", *_reference(results)]
    out += ["## Real data, six masks", "", "Values at 10 / 20 components; differences are means over both, paired"]
    out += ["within seeds, with 95 % intervals over the seeds.", "", *_real(results)]
    out += [f"## Cells that come later ({queries.FILE}, logistic mask, {_seeds(results, queries.TASK)})", ""]
    metrics = ("agreement_joint", "agreement_later", "placed", "identity")
    out += [_summary(results, queries.TASK, metrics), ""]
    out += ["## Zeros of UMI counts as missing entries", "", "Reported without a claim: that some zeros are missing"]
    out += ["is an assumption, and these differences are within the noise of clusterings.", "", *_zeros(results)]
    out += ["## Speed", "", _speed(results), ""]
    out += ["## Not run", "", _absent(results), "", "## Notes", "", notes.strip(), ""]
    return "\n".join(out)


def report(out: Path) -> Path:
    """Write ``missingness.md`` from the tables in a directory.

    Parameters
    ----------
    out
        Directory with ``missingness.csv`` and ``missingness_speed.csv`` (each may be missing) and
        ``_missingness_notes.md``, written by hand.

    Returns
    -------
    Path of the page.
    """
    rows, fast = (Store(c, out / n).table for c, n in ((TASKS, "missingness.csv"), (SPEED, "missingness_speed.csv")))
    notes = out / "_missingness_notes.md"
    text = notes.read_text(encoding="utf-8") if notes.is_file() else "None."
    if text.startswith("---\n"):
        # Settings of the documentation builder, for a file that is no page of its own.
        text = text.split("---\n", 2)[2]
    page = out / "missingness.md"
    page.write_text(_page(Tables(rows, fast), text), encoding="utf-8")
    return page
