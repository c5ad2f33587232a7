"""The words of the topics section: scores in plain language, tables, limits, a glossary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from cellsmith.demo import _topics_cells as cells
from cellsmith.demo._report import Cell, Table

__all__ = ["BARS", "CODE", "GLOSSARY", "LIMITS", "WAYS", "score_table", "selection_table", "set_table", "summary_table"]

SHOWN: dict[str, tuple[str, str]] = {
    "correlation": ("Predicted and observed changes agree (rank correlation, median over types)", "1"),
    "top20": ("Of the 20 genes most raised, how many are right", "20"),
    "size": ("Size of the predicted change over that of the observed one", "1"),
}
"""Score -> its name in plain words, and its ideal."""

BARS = {
    "correlation": ("agreement (long is good)", 1.0),
    "top20": ("right among the top 20", 20.0),
    "size": ("size of the change (1 is right)", 1.0),
}

WAYS = (
    (
        "Selected topics switched",
        "Control cells that the model never saw get the amount of the selected topics that stimulated cells have; all "
        "their other topics stay as they are. The model then writes down what such cells would express.",
    ),
    (
        "Mean shift of all cells",
        "The average change over all training cells, the same for every type. No topics are needed for it: this is the "
        "baseline that a model has to be held against.",
    ),
    (
        "All other topics switched",
        "The same with the topics that were not selected. If these predicted as well, the selection would be worth "
        "nothing.",
    ),
)

LIMITS = (
    "One experiment, one seed. The answer to interferon is strong and shared by almost all types, which is why the "
    "mean shift is so good here: **a model that only equals it has not shown more than it.** The merit of the topics "
    "is that they say which programmes change and which do not.",
    "A switched topic is a computed 'what if', not an experiment, and the predicted change is usually smaller than the "
    "observed one. A programme that the training cells never showed cannot be predicted.",
    "Cells of one sample are not independent of each other. The tests here count cells, because the embedded data do "
    "not say which donor a cell is from; with several donors a side, name the column of donors.",
    "Neighbouring seeds find somewhat different topics. What matters should be seen with several.",
)

CODE = """import cellsmith

cellsmith.tl.sce2tm(adata, layer="counts", n_topics=20)      # .obsm["X_sce2tm"]: the mixture of every cell
cellsmith.tl.sce2tm_enrich(adata, gene_sets="my_sets.gmt")   # no network
cellsmith.tl.sce2tm_rank(adata, groupby="condition", sample_key="donor")

from cellsmith.model import SCE2TM
SCE2TM.setup_anndata(adata, layer="counts")                  # never register the condition as batch_key
model = SCE2TM(adata, n_topics=20)
model.train()
topics = model.select_topics("condition", "STIM", "CTRL", sample_key="donor")
answer = model.perturb_topics(indices=controls, topics=topics, op="swap_to_group")
answer.logfc                                                 # log2 fold changes
"""

GLOSSARY = (
    (
        "Topic",
        "A programme of genes that rise and fall together. Every cell is a mixture of all topics, in shares that sum "
        "to 1.",
    ),
    ("Loading", "How much of a gene belongs to a topic, compared with all other topics."),
    ("Control, stimulated", "Blood cells left alone, or six hours with interferon beta."),
    ("Held-out cells", "Cells that were put aside before the model was trained, and are only used to check it."),
    ("Change (log2)", "1 is twice as much, 2 four times, -1 half as much."),
    ("Adjusted p-value (FDR)", "Of the findings below .05, about one in twenty is expected to be false."),
)


def selection_table(selected: pd.DataFrame, top: pd.DataFrame) -> Table:
    """List the topics that differ between the conditions.

    Parameters
    ----------
    selected
        From ``select_topics``.
    top
        Top genes, one column a topic.

    Returns
    -------
    One row a topic, the largest difference first.
    """
    rows = [
        [topic, f"{row.effect:+.2f}", f"{row.fdr:.0e}", ", ".join(top[topic].head(8).astype(str))]
        for topic, row in zip(selected.index, selected.itertuples(), strict=True)
    ]
    return Table(
        "Topics that differ between stimulated and control cells",
        ["topic", "difference", "adjusted p-value", "first genes"],
        rows,
        note="The difference is in standard deviations of that topic over all training cells; above 0, stimulated "
        "cells have more of it.",
    )


def set_table(found: Sequence[tuple[str, str, int, float]]) -> Table:
    """List the gene sets that topics are enriched in.

    Parameters
    ----------
    found
        Topic, set, number of shared genes, adjusted p-value.

    Returns
    -------
    One row a finding.
    """
    rows = [[topic, name, str(n), f"{p:.0e}"] for topic, name, n, p in found]
    return Table(
        "Gene sets that share more genes with a topic's first twenty than chance would give",
        ["topic", "gene set", "shared genes", "adjusted p-value"],
        rows,
        note=f"The sets are {cells.SOURCE}. Use the collections of your field for real work.",
    )


def score_table(scores: Mapping[str, Mapping[str, float]]) -> Table:
    """Put the scores of all ways side by side.

    Parameters
    ----------
    scores
        Way -> score -> number.

    Returns
    -------
    One row a score, one column a way.
    """
    rows: list[list[str | Cell]] = []
    for metric, (name, ideal) in SHOWN.items():
        rows.append([name, Cell(ideal, "quiet"), *(f"{numbers[metric]:.2f}" for numbers in scores.values())])
    return Table("How well is the answer of held-out cells predicted?", ["", "ideal", *scores], rows)


def summary_table(scores: Mapping[str, Mapping[str, float]]) -> Table:
    """Shorten the scores for the command line.

    Parameters
    ----------
    scores
        Way -> score -> number.

    Returns
    -------
    One row a score, one column a way.
    """
    rows = [[name, *(f"{numbers[metric]:.2f}" for numbers in scores.values())] for metric, (name, _) in SHOWN.items()]
    return Table("Interferon in cells that the model never saw", ["", *scores], rows)
