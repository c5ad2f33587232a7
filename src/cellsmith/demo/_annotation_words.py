"""The words of the annotation section: its tables, its limits, its glossary, and the code to type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cellsmith.demo._report import Cell, Table

__all__ = [
    "CODE",
    "GLOSSARY",
    "LIMITS",
    "METHODS",
    "METRICS",
    "comparison_table",
    "largest_mistake",
    "rejection_table",
    "summary_table",
]

METHODS = {
    "grit_raw": "classifier alone",
    "knn": "mean of neighbours",
    "vote": "vote in clusters",
    "grit": "GRIT",
}
"""Column of ``.obs`` -> the method in plain words."""

METRICS = {"accuracy": "cells named rightly", "macro_f1": "macro-F1, every type alike"}

GLOSSARY = (
    ("Classifier", "A program that was shown some cells with their types and gives every other cell a score for each."),
    ("Score", "How strongly a cell is believed to be of a type; the scores of a cell sum to 1."),
    (
        "Neighbours, graph",
        "Every cell is joined to the cells whose genes are most like its own. All joints together are the graph.",
    ),
    ("GRIT", "Asks for scores that stay close to those of the classifier and change little between neighbours."),
    (
        "Vote in clusters",
        "Cut the cells into many small clusters; all cells of a cluster get its most frequent name. The tool "
        "CellTypist does this.",
    ),
    ("Mean of neighbours", "Average the scores of every cell with those of its neighbours, once."),
    (
        "Macro-F1",
        "1 is perfect. Every type counts alike, so that losing a rare type costs as much as losing a common one.",
    ),
    ("Held-out truth", "The types given by the authors of a reference analysis, which no method saw for these cells."),
    ("Anchor", "A cell whose true type is revealed, to find out how far the scores can be trusted."),
    ("Rejection", "Leaving a cell without a name rather than guessing."),
    ("CTRL and STIM", "Blood cells left alone, and blood cells six hours after interferon beta."),
)

LIMITS = (
    "**A smooth wrong answer is more convincing than a noisy wrong one.** GRIT removes the speckle by which one sees "
    "that something is off. A mistake that whole neighbourhoods share is not repaired; it comes out clean. Always "
    "look at the raw labels, which every result keeps, and at marker genes.",
    "The plain vote in clusters is a strong rival: where the mistakes are random noise it does as well or better. What "
    "GRIT adds there is a score for every cell instead of one name a cluster, from which a rejection can choose.",
    "Where the classifier is already good there is little to gain, and rare types can be swallowed by large "
    "neighbours. A warning names types that vanish; it cannot name types that merely shrink.",
    "A type that the classifier does not know gets the name of the most similar one that it does know. Rejection can "
    "leave such cells unnamed, and often does not.",
    "The promise of a rejection holds for anchors drawn at random from the cells that are to be named. Anchors picked "
    "by eye or by cluster, or from another experiment, void it.",
    "One experiment and one set of authors' types, which are themselves an opinion. A few draws: differences of a few "
    "hundredths are within what another seed would change.",
)

CODE = """import cellsmith

cellsmith.tl.grit(adata, scores)             # scores: cells x types, a DataFrame or a key of adata.obsm
adata.obs[["grit", "grit_raw", "grit_confidence"]]
cellsmith.pl.grit_flow(adata)                # who changed its name

# leave cells unnamed where the error would be above one in five;
# adata.obs["anchor"]: types of a random sample of cells, "unknown" elsewhere
cellsmith.tl.reject(adata, labels_key="anchor", level=0.2)
named = adata[~adata.obs["grit_rejected"]]

report = cellsmith.metrics.annotation_report(adata, key="grit", labels_key="cell_type")
"""

Scores = Mapping[str, Sequence[Mapping[str, float]]]


def _mean(situation: Sequence[Mapping[str, float]], name: str) -> float:
    return float(np.mean([draw[name] for draw in situation]))


def comparison_table(scores: Scores) -> Table:
    """Put the methods side by side, situation by situation.

    Parameters
    ----------
    scores
        Situation -> draws -> ``"<method> <metric>"`` -> value.

    Returns
    -------
    Two rows a situation; green is better than the classifier alone by more than a hundredth, red worse.
    """
    rows: list[list[str | Cell]] = []
    for name, situation in scores.items():
        for metric, words in METRICS.items():
            values = {method: _mean(situation, f"{method} {metric}") for method in METHODS}
            row: list[str | Cell] = [f"{name.replace(chr(10), ' ')}: {words}"]
            for value in values.values():
                change = value - values["grit_raw"]
                row.append(Cell(f"{value:.3f}", "good" if change > 0.01 else "bad" if change < -0.01 else ""))
            rows.append(row)
    return Table(
        "The same scores, refined in three ways",
        ["", *METHODS.values()],
        rows,
        note="All scores are over cells that taught nobody. Green: better than the classifier alone by more than a "
        "hundredth; red: worse by more than a hundredth. Situations with few labels are means over the draws.",
    )


def rejection_table(rows: Sequence[Mapping[str, float | str]], *, delta: float, n_anchors: int, n_draws: int) -> Table:
    """Show what a rejection keeps, and whether its promise held when the anchors were drawn again.

    Parameters
    ----------
    rows
        Mappings with ``situation``, ``level``, ``kept``, ``error``, ``broken`` (share of the draws) and ``empty``.
    delta
        Share of draws that may break the promise.
    n_anchors, n_draws
        Cells revealed a draw; number of draws.

    Returns
    -------
    One row a situation and level.
    """
    shown: list[list[str | Cell]] = []
    for row in rows:
        error, level = float(row["error"]), float(row["level"])
        shown.append(
            [
                f"{row['situation']}, at most {level:.0%} wrong",
                f"{row['kept']:.0%}",
                "no cell kept" if np.isnan(error) else Cell(f"{error:.1%}", "good" if error <= level else "bad"),
                Cell(f"{row['broken']:.0%}", "good" if float(row["broken"]) <= delta else "bad"),
                f"{row['empty']:.0%}",
            ]
        )
    return Table(
        f"Rejection with {n_anchors} random anchors",
        [
            "",
            "cells that keep a name",
            "wrong among them",
            f"promise broken, of {n_draws} draws (allowed {delta:.0%})",
            "draws in which no cell was kept",
        ],
        shown,
        note="The first two numbers are of one draw of anchors; the last two of many draws. Where the anchors cannot "
        "show that any group of cells is good enough, none is kept: the promise is never relaxed in silence.",
    )


def summary_table(scores: Scores, kept: Mapping[str, float | str]) -> Table:
    """Make the short table of the command line.

    Parameters
    ----------
    scores
        As in :func:`comparison_table`.
    kept
        One row of :func:`rejection_table`.

    Returns
    -------
    Two rows a situation, two on the rejection.
    """
    rows: list[list[str | Cell]] = []
    for name, situation in scores.items():
        for metric, words in METRICS.items():
            values = [_mean(situation, f"{method} {metric}") for method in METHODS]
            rows.append([f"{name.replace(chr(10), ' ')}: {words}", *(f"{value:.3f}" for value in values)])
    start = f"{kept['situation']}, rejection at {kept['level']:.0%}: "
    error = float(kept["error"])
    rows.append([f"{start}cells kept", "-", "-", "-", f"{kept['kept']:.3f}"])
    rows.append([f"{start}named rightly", "-", "-", "-", "-" if np.isnan(error) else f"{1 - error:.3f}"])
    return Table("Naming cells: one classifier's scores, refined in three ways", ["", *METHODS.values()], rows)


def largest_mistake(truth: pd.Series, raw: pd.Series, refined: pd.Series) -> tuple[str, str, int, int]:
    """Find the commonest mistake after refinement.

    Parameters
    ----------
    truth, raw, refined
        Types of the same cells, (n,).

    Returns
    -------
    True type, wrong name, cells with this mistake before, and after.
    """
    wrong = truth.astype(str) != refined.astype(str)
    pairs = pd.Series(list(zip(truth[wrong].astype(str), refined[wrong].astype(str), strict=True)))
    if pairs.empty:
        return "", "", 0, 0
    true, name = pairs.value_counts().index[0]
    before = int(((truth.astype(str) == true) & (raw.astype(str) == name)).sum())
    return true, name, before, int((pairs == (true, name)).sum())
