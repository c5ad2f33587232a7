"""Write the page of results from the table on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cellsmith.benchmark._privacy.arms import FREE, ORDER
from cellsmith.benchmark._privacy.bars import BARS, DEFAULT, MAIN, ONE_SHOT, PCA, Results
from cellsmith.benchmark._privacy.cases import CASES
from cellsmith.benchmark._privacy.compare import COLUMNS, RECALL
from cellsmith.benchmark._store import Store

__all__ = ["report"]

EPSILONS = (1.0, 2.0, 4.0, 8.0)
HEAD = """Every arm embeds 2,100 random cells of a file; k-means with the true number of types and 20 starts clusters
every embedding alike; labels score and do nothing else. Epsilon is for adding or removing one *cell*, delta 1e-5; noise
comes from the seed (a simulation). Means over seeds, their number in brackets.

**How public are the genes?** The 2,000 genes of `pbmc4k_10x` and `young_kidney` were selected on those cells before the
files were made, so that panel is not strictly public, nor, less so, a random part of it. The worm's panels are drawn by
name alone, and that of `kang_ifnb` comes from another study (`pbmc_facs`): those two are the clean ones.

"published, no guarantee" stands under its *nominal* epsilon, which means nothing; "labels pick the epoch" is the same
training, shown at the epoch of its clustering stage that agrees best with the types, as the public code does: an
inflated number; "200 steps" is the same scheme, cut short. "DPDCAN centres" are clusters around bought centres
(`cluster_head="dp"`) and may leave; all other arms cluster locally. "PCA 50" is scanpy's, on all genes. "untrained
encoder" and "random projection" look at no cell."""
RARE = """Recall of each type with less than 3 % of the cells of a draw (and at least 10), clusters named after types
so that most cells are right; means over the seeds in which the type is rare. A type with a recall near 0 is lost: its
cells lie in the clusters of larger types."""


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _cell(results: Results, case: str, arm: str, epsilon: float) -> str:
    found = results.values(case, arm, epsilon)
    return f"{found.mean():.3f} ({len(found)})" if len(found) else "-"


def _scores(results: Results, case: str) -> str:
    rows = []
    for arm in ORDER:
        if arm in FREE:
            cells = [_cell(results, case, arm, np.inf)] + [""] * (len(EPSILONS) - 1)
        else:
            cells = [_cell(results, case, arm, e) for e in EPSILONS]
        if set(cells) - {"-", ""}:
            nmi = results.mean(case, arm, 8.0, metric="nmi")
            seconds = results.mean(case, arm, 8.0, metric="seconds")
            rows.append([arm, *cells, f"{nmi:.3f}" if np.isfinite(nmi) else "-", f"{seconds:.1f}"])
    return _grid(["arm", *(f"eps {e:g}" for e in EPSILONS), "NMI (eps 8)", "CPU-s"], rows)


def _rare(results: Results) -> str:
    """Recall of every rare type with private axes, and without privacy."""
    rows = []
    for case in MAIN:
        found = results.rows.loc[results.rows["case"] == case, "metric"]
        for metric in sorted(m for m in found.unique() if m.startswith(RECALL)):
            cells = [
                results.values(case, arm, e, metric=metric)
                for arm, e in ((ONE_SHOT, 4.0), (ONE_SHOT, 8.0), (DEFAULT, 4.0), (DEFAULT, 8.0), (PCA, np.inf))
            ]
            rows.append([case, metric.removeprefix(RECALL), *(f"{v.mean():.2f}" if len(v) else "-" for v in cells)])
    head = [f"{arm}, eps {e}" for arm in (ONE_SHOT, DEFAULT) for e in (4, 8)]
    return _grid(["file", "type below 3 %", *head, PCA], rows)


def _bars(results: Results) -> str:
    rows = []
    for bar in BARS:
        found = bar.measure(results)
        text, verdict = ("not run", "") if found is None else (found[0], "met" if found[1] else "**missed**")
        rows.append([bar.check, bar.must, text, verdict])
    return _grid(["check", "must", "found", ""], rows)


def report(out: Path) -> Path:
    """Write ``privacy.md`` from the table in a directory.

    Parameters
    ----------
    out
        Directory with ``privacy.csv`` (which may be missing) and ``_privacy_notes.md``, written by hand.

    Returns
    -------
    Path of the page.
    """
    results = Results(Store(COLUMNS, out / "privacy.csv").table)
    notes = out / "_privacy_notes.md"
    text = notes.read_text(encoding="utf-8") if notes.is_file() else "None."
    if text.startswith("---\n"):
        # Settings of the documentation builder, for a file that is no page of its own.
        text = text.split("---\n", 2)[2]
    lines = ["# Privacy: results", ""]
    lines += [
        "This page is written by `python -m cellsmith.benchmark privacy --data <directory>` from the table beside it."
    ]
    lines += ["", HEAD, "", "## The bars", "", _bars(results), ""]
    lines += ["## Agreement with the types (ARI)", ""]
    for case in CASES:
        if (results.rows["case"] == case).any():
            lines += [f"### {case}", "", _scores(results, case), ""]
    if results.rows["metric"].astype(str).str.startswith(RECALL).any():
        lines += ["## Rare types", "", RARE, "", _rare(results), ""]
    lines += ["## Notes", "", text.strip(), ""]
    page = out / "privacy.md"
    page.write_text("\n".join(lines), encoding="utf-8")
    return page
