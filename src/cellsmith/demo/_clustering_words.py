"""The words of the clustering section: ways, tables, limits, a glossary."""

from __future__ import annotations

import pandas as pd

from cellsmith.demo._report import Cell, Table

__all__ = [
    "CODE",
    "GLOSSARY",
    "LIMITS",
    "SCANPY",
    "TRAINED",
    "UNTRAINED",
    "WAYS",
    "score_table",
    "summary_table",
]

SCANPY, UNTRAINED, TRAINED = "Leiden on PCA", "SCAGC, nothing trained", "SCAGC, trained for a moment"
COLUMNS = {"clusters": "clusters", "ari": "adjusted Rand", "nmi": "mutual information", "f1": "F1 of the types"}

WAYS = (
    (SCANPY, "What most people would do: logarithms, 50 components, 15 neighbours, resolution 1."),
    (
        UNTRAINED,
        "Components that weigh rare genes fairly (Pearson residuals), links with a penalty on hubs, then clusters are "
        "merged until marker genes tell all of them apart. It takes seconds.",
    ),
    (
        TRAINED,
        "The same, with positions that a network learns from the counts; the links are formed from them. A sixth of "
        "the usual training, so that this page is done soon.",
    ),
)

LIMITS = (
    "One data set and one seed: differences of two or three hundredths are within what another seed would change.",
    "**Training gains less than a hundredth over six data sets, and takes twenty times as long.** Begin without; the "
    "user guide has the numbers.",
    "Merging asks for marker genes in both directions. A type that is marked only by what it lacks is merged away, and "
    "so is one that counts are too shallow to tell.",
    "The names are those of the authors, who also clustered. They are no truth.",
)

CODE = """import cellsmith, scanpy as sc

cellsmith.tl.scagc(adata, layer="counts", train_kwargs={"max_epochs": 0})   # nothing trained
cellsmith.tl.scagc(adata, layer="counts", key_added="trained")              # a minute or more
sc.tl.umap(adata, neighbors_key="scagc")
cellsmith.pl.merge_path(adata)
cellsmith.tl.merge_clusters(adata, "leiden", layer="counts")                # the same rule for any clusters
"""

GLOSSARY = (
    ("Cluster", "A group of cells that are linked among themselves more than to others."),
    ("Hub", "A cell that very many cells have as their neighbour. Hubs glue groups together."),
    ("Marker gene", "Here: a gene that is at least twice as high in one cluster as in another, beyond chance."),
    ("Adjusted Rand, mutual information", "Agreement of two groupings: 1 for the same, about 0 for none."),
    ("F1 of the types", "How well the best cluster of each type covers it, every type counting the same."),
)


def score_table(scores: pd.DataFrame) -> Table:
    """Put the three ways side by side.

    Parameters
    ----------
    scores
        One row a way; ``clusters``, ``ari``, ``nmi``, ``f1``.
    """
    rows: list[list[str | Cell]] = [
        [str(name), str(int(row["clusters"])), *(f"{row[column]:.3f}" for column in ("ari", "nmi", "f1"))]
        for name, row in scores.iterrows()
    ]
    note = (
        "Compared with the authors' names, which no way has seen. All three measures count: merging raises the first "
    )
    return Table("Agreement with the authors' names", ["way", *COLUMNS.values()], rows, note=note + "alone.")


def summary_table(scores: pd.DataFrame) -> Table:
    """Return the same for the command line."""
    table = score_table(scores)
    return Table("Clustering: agreement with the authors' names", table.columns, table.rows)
