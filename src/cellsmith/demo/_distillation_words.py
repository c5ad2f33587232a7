"""The words of the distillation section: ways, tables, limits, a glossary."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from cellsmith.demo._report import Cell, Table

__all__ = [
    "BAR",
    "CODE",
    "GLOSSARY",
    "LIMITS",
    "MODELS",
    "NAMES",
    "OURS",
    "WAYS",
    "means",
    "score_table",
    "steps_told",
    "summary_table",
]

BAR, OURS = "metacell_mean_log", "scdd"
NAMES = {
    "random": "random cells",
    "herding": "chosen cells",
    "metacell": "sums of groups",
    BAR: "means of groups",
    OURS: "SCDD",
}
ALL = "all training cells"
MODELS = {
    "lr": "logistic regression",
    "mlp": "neural network",
    "knn1": "nearest neighbour",
    "forest": "random forest",
}
THREE = ("lr", "mlp", "knn1")

WAYS = (
    ("All training cells", "Nothing is left out."),
    ("Random cells", "One or ten cells of every type, drawn blindly."),
    ("Chosen cells", "Cells of every type whose mean stays closest to the mean of the type (herding)."),
    ("Sums of groups", "The cells of a type are split into groups of like cells, and each group is added up."),
    (
        "Means of groups",
        "The same groups, each as the mean of its cells after normalisation and logarithm. **This simple way is the "
        "bar**: what does not beat it is not worth the trouble.",
    ),
    (
        "SCDD",
        "Starts at the means of groups, then changes them so that classifiers which learn from them err less on the "
        "cells, and keeps a change only where fewer training cells that were put aside are named wrongly.",
    ),
)

LIMITS = (
    "One data set, one cut, one seed: differences of two or three hundredths are within what another cut would change.",
    "**With ten rows a type SCDD returns its start, the means of groups**; with one row a type it can gain. Where the "
    "means are all you need, `cellsmith.tl.sketch` makes them in a second.",
    "**A random forest learns badly from few deep rows.** It draws thresholds between profiles that have no noise, and "
    "single cells do not keep to them. Teach it with more rows, or with cells.",
    "A reduced set is not anonymous. A group of one cell is that cell.",
)

CODE = """import cellsmith

small = cellsmith.tl.sketch(adata, "cell_type", 10, method="metacell", method_kwargs={"summary": "mean_log"})
small = cellsmith.tl.scdd(adata, labels_key="cell_type", n_per_class=1, distill_kwargs={"objective": "readers"})

# which way is worth it on your data, with twenty cuts instead of one
table = cellsmith.benchmark.distillation(adata, "cell_type")
cellsmith.pl.distillation(table, baseline="metacell_mean_log")
"""

GLOSSARY = (
    ("Row, profile", "One line of a table of genes: a cell, or a group of cells made into one."),
    ("Classifier", "A program that learns names of cells from examples and then names other cells."),
    ("Deep", "With many counted molecules. A sum of a hundred cells is a hundred times as deep as a cell."),
    ("Named rightly", "The share of unseen cells that get the name which the authors gave them."),
    ("Rare types", "Types with at most 2 % of the training cells, or at most 20 cells."),
)


def means(table: pd.DataFrame) -> Mapping[tuple[str, int], float]:
    """Return the mean accuracy of three classifiers by (method, rows a type); 0 rows stand for all cells."""
    rows = table[(table["metric"] == "accuracy") & table["model"].isin(THREE)]
    found: Mapping[tuple[str, int], float] = rows.groupby(["method", "budget"])["value"].mean().to_dict()
    return found


def _value(table: pd.DataFrame, method: str, budget: int, *, metric: str, models: tuple[str, ...]) -> str:
    keep = (table["method"] == method) & (table["budget"] == budget) & (table["metric"] == metric)
    rows = table[keep & table["model"].isin(models)]
    return f"{rows['value'].mean():.3f}" if len(rows) else "-"


def _places(table: pd.DataFrame) -> list[tuple[str, int]]:
    return list(dict.fromkeys(zip(table["method"], table["budget"], strict=True)))


def score_table(table: pd.DataFrame) -> Table:
    """Put what every classifier learnt side by side.

    Parameters
    ----------
    table
        Rows of the benchmark.

    Returns
    -------
    One row a way and budget, one column a classifier.
    """
    rows: list[list[str | Cell]] = []
    for method, budget in _places(table):
        tone = "" if budget else "quiet"
        name = f"{NAMES[method]}, {budget} a type" if budget else ALL
        numbers = [_value(table, method, budget, metric="accuracy", models=(m,)) for m in MODELS]
        numbers.append(_value(table, method, budget, metric="rare_recall", models=THREE))
        rows.append([name, *(Cell(number, tone) for number in numbers)])
    return Table(
        "Share of unseen cells that are named rightly",
        ["", *MODELS.values(), "rare types"],
        rows,
        note="Rare types: their recall, mean of the first three classifiers. No classifier was tuned for any way.",
    )


def summary_table(table: pd.DataFrame) -> Table:
    """Shorten the scores for the command line: one row a way, one column a number of rows."""
    get = means(table)
    budgets = sorted({budget for _, budget in get if budget})
    rows = [[name, *(f"{get[method, b]:.3f}" for b in budgets)] for method, name in NAMES.items()]
    rows.append([ALL, *(f"{get['full', 0]:.3f}" for _ in budgets)])
    head = [f"{b} row{'s' if b > 1 else ''} a type" for b in budgets]
    return Table("Unseen cells named rightly after learning from few rows", ["", *head], rows)


def steps_told(steps: Mapping[int, int]) -> str:
    """Say which step SCDD kept at every number of rows."""
    parts = [
        f"with {n} a type " + (f"step {step} was kept" if step else "no step beat the start, which was kept")
        for n, step in steps.items()
    ]
    return f"SCDD judges its steps on training cells that were put aside: {'; '.join(parts)}."
