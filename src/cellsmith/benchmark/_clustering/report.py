"""Write the page of results from the tables on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cellsmith.benchmark._annotation.bars import mark
from cellsmith.benchmark._annotation.results import number
from cellsmith.benchmark._clustering.bars import BARS, claim
from cellsmith.benchmark._clustering.cases import FILES
from cellsmith.benchmark._clustering.compare import COLUMNS, FACTS
from cellsmith.benchmark._clustering.methods import METHODS
from cellsmith.benchmark._clustering.queries import QUERIES
from cellsmith.benchmark._clustering.results import MAIN, THREE, Clusters, over_files
from cellsmith.benchmark._clustering.scoring import GIVEN, GRID, KMEANS, MATCHED, MERGED, MERGED_TO, OWN
from cellsmith.benchmark._store import SPEED, Store

__all__ = ["report"]

COMMANDS = """```bash
export CELLSMITH_DATA=<the benchmark data directory>
export OMP_NUM_THREADS=1
python -m cellsmith.benchmark clustering --out docs/benchmarks --fits <a folder that keeps what methods found>
python -m cellsmith.benchmark clustering --out docs/benchmarks --methods "PCA 50" "untrained graph" --max-cells 0
python -m cellsmith.benchmark clustering --out docs/benchmarks --methods --propagation --queries --scale
```"""
UNKNOWN = (OWN, "Leiden 0.3", "Leiden 0.5", "Leiden 1.0", MERGED)
KNOWN = (GIVEN, MATCHED, KMEANS, MERGED_TO)
CLAIMS = {
    "clustering": "C1, C2 and E4 pass: better clusters may be claimed of the learned graph.",
    "hubness": "C1, C2 or E4 fails: **no better clustering is claimed of the learned graph.** What is left of the "
    "claim is a graph with fewer hubs that scanpy reads (E6, E7), as far as those rows pass.",
    None: "C1, C2 and E4 have not been measured on all files: nothing is claimed of the learned graph.",
}


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _bars(results: Clusters) -> str:
    rows = []
    for bar in BARS:
        found = bar.measure(results)
        shown = found.text if found else bar.tests or "-"
        rows.append([bar.check, shown, bar.must, bar.stretch, f"**{mark(bar, found)}**"])
    return _grid(["check", "measured", "must", "stretch", "mark"], rows)


def _track(results: Clusters, chosen: Sequence[str]) -> str:
    """Return means over the files, one row a method and reading."""
    rows = []
    for method in results.methods():
        for reading in chosen:
            per_file = results.per_file(method, reading)
            if not per_file:
                continue
            means = [results.mean(method, reading, m) for m in (*THREE, "rare_f1", "n_clusters")]
            means[3] = _rare(results, method, reading)
            files = [number(per_file.get(f, float("nan"))) for f in FILES]
            rows.append([method, reading, str(results.seeds(method)), *map(number, means), *files])
    head = ["method", "reading", "seeds", "ARI", "NMI", "macro-F1", "rare F1", "clusters", *(f"ARI {f}" for f in FILES)]
    return _grid(head, rows) if rows else "Not run."


def _rare(results: Clusters, method: str, reading: str) -> float:
    found = results.per_file(method, reading, "rare_f1")
    return float(np.mean(list(found.values()))) if found else float("nan")


def _over_resolutions(results: Clusters) -> str:
    rows = []
    for method in results.methods():
        own, common = results.grid(method), results.grid(method, common=True)
        best = over_files(results.best_of_grid(method))
        means = [number(results.mean(method, f"Leiden {r}")) for r in GRID]
        rows.append([method, *means, number(over_files(own)), number(over_files(common)), number(best)])
    head = ["Leiden on the method's graph", *map(str, GRID), "mean", "mean, kNN of the latent", "best a file (labels)"]
    return _grid(head, rows) if rows else "Not run."


def _graphs(results: Clusters) -> str:
    rows = []
    for method in results.methods():
        names = [f"{g}_{what}" for what in ("homophily", "degree_cv", "degree_max") for g in ("graph", "knn")]
        values = [number(over_files(results.fact(method, name))) for name in names]
        cost = [number(over_files(results.fact(method, "cpu_seconds"))), number(over_files(results.agreement(method)))]
        rows.append([method, *values, *cost])
    head = ["method", "homophily", "kNN", "degree CV", "kNN", "largest degree", "kNN", "CPU s", "agreement of seeds"]
    return _grid(head, rows) if rows else "Not run."


def _absent(results: Clusters) -> str:
    """List what the protocol asks for and the tables do not have."""
    lines = []
    for method in METHODS:
        have = results.rows[results.rows["method"] == method].groupby("file")["seed"].nunique()
        missing = [f"{f}: {int(have.get(f, 0))} of 3 seeds" for f in FILES if have.get(f, 0) < 3]
        if missing:
            lines.append(f"* {method}: {'; '.join(missing)}")
    lines += [f"* {bar.check}" for bar in BARS if mark(bar, bar.measure(results)) == "not run"]
    return "\n".join([*lines, "* the published program itself"])


def _page(rows: pd.DataFrame, facts: pd.DataFrame, speed: pd.DataFrame, queries: pd.DataFrame, notes: str) -> str:
    results, whole = Clusters(rows, facts, queries=queries, speed=speed), Clusters(rows, facts, "all")
    out = ["# Clustering: results", ""]
    out += ["This page is written by `python -m cellsmith.benchmark clustering` from the tables beside it;"]
    out += ["[how we measure](index.md) says what the words mean. To run it all again:", "", COMMANDS, ""]
    out += [
        f"At most {int(MAIN):,} cells of a file, drawn once at random, for the time that scVI takes; seeds are those"
    ]
    out += [
        "of methods and readings. `auto` and `given` are clusters of a method itself, without and with the number of"
    ]
    out += [
        "types; the other readings are the same for all. All methods get the same cells and 2,000 genes, chosen without"
    ]
    out += ["labels, and are told the batch of kang_ifnb (the condition) and of no other file; PCA ignores it.", ""]
    out += ["## The bars", "", _bars(results), "", CLAIMS[claim(results)], ""]
    out += ["## Number of types unknown", "", _track(results, UNKNOWN), ""]
    out += ["## Number of types given", "", _track(results, KNOWN), ""]
    out += ["## Over resolutions", "", "Mean ARI over the files.", "", _over_resolutions(results), ""]
    out += [
        "## Graphs, time, seeds",
        "",
        "Means over the files; kNN: 15 nearest neighbours of the method's latent.",
        "",
    ]
    out += [_graphs(results), ""]
    out += ["## All cells of the files", "", _track(whole, (*UNKNOWN, *KNOWN)), ""]
    shown = [[str(r.quantity), number(float(r.value)), str(r.detail)] for r in speed.itertuples()]
    out += ["## Time, memory, and products with a sparse graph", ""]
    out += [_grid(["quantity", "value", ""], shown) if shown else "Not run.", ""]
    return "\n".join([*out, "## Not run", "", _absent(results), "", "## Notes", "", notes.strip(), ""])


def report(out: Path) -> Path:
    """Write ``clustering.md`` from the tables in a directory.

    Parameters
    ----------
    out
        Directory with ``clustering.csv``, ``clustering_facts.csv``, ``clustering_speed.csv``,
        ``clustering_queries.csv`` (each may be missing) and ``_clustering_notes.md``, written by hand.

    Returns
    -------
    Path of the page.
    """
    tables = {"": COLUMNS, "_facts": FACTS, "_speed": SPEED, "_queries": QUERIES}
    rows, facts, speed, queries = (
        Store(columns, out / f"clustering{name}.csv").table for name, columns in tables.items()
    )
    notes = out / "_clustering_notes.md"
    text = notes.read_text(encoding="utf-8") if notes.is_file() else "None."
    if text.startswith("---\n"):
        # Settings of the documentation builder, for a file that is no page of its own.
        text = text.split("---\n", 2)[2]
    page = out / "clustering.md"
    page.write_text(_page(rows, facts, speed, queries, text), encoding="utf-8")
    return page
