"""The words of the missingness section: scores in plain language, tables, limits, a glossary."""

from __future__ import annotations

from collections.abc import Mapping

from cellsmith.demo import _missingness_cells as cells
from cellsmith.demo._report import Cell, Table

__all__ = ["BARS", "CODE", "GLOSSARY", "LIMITS", "WAYS", "score_table", "summary_table"]

SHOWN: dict[str, tuple[str, str]] = {
    "sin_theta": ("Distance to the space of the complete data", "0"),
    "recall": ("Share of each cell's 15 nearest cells that are found again", "1"),
    "ari": ("Clusters agree with the authors' types", "1"),
    "follows": ("First axis follows how much was observed", "0"),
}
"""Score -> its name in plain words, and its ideal."""

BARS = {
    "sin_theta": "distance to the complete space\n(short is good)",
    "recall": "nearest cells found again\n(long is good)",
    "ari": "clusters agree with types\n(long is good)",
}

WAYS = (
    (
        "Zeros filled in",
        "Every missing entry becomes 0, then PCA. This is what happens when nobody thinks about it.",
    ),
    (
        "Means filled in",
        "Every missing entry becomes the mean of its gene, then PCA. Simple, and often good enough.",
    ),
    (
        "Pairwise complete",
        "Two cells are compared by the genes that both have, and each pair is divided by how many those are. Accurate, "
        "but it needs a table of all cells by all cells, which stops at some thousand cells.",
    ),
    (
        "BC-PCA",
        "As pairwise complete, but divided by how many shared genes are **expected**, from one number a cell and one "
        "number a gene. No such table is needed, so it works for very many cells, and new cells can be placed.",
    ),
    (
        "BC-PCA, refined",
        'The same with `refine="prime"`: the found space predicts what is missing, is found again with it, and so on. '
        "Slower; kept only where it predicts observed entries that were put aside better than before.",
    ),
)

LIMITS = (
    "One data set, one way of deleting, one seed. Differences of a few hundredths between rows are within what another "
    "seed would change. In particular, **BC-PCA and pairwise complete are a tie**; the merits of "
    "BC-PCA are that it needs no table of cells by cells, places new cells, and takes masks that say how sure they "
    "are.",
    "The scores disagree: filling in means often lies nearer to the complete space and yet finds the types less well. "
    "That is why several are shown.",
    "Entries were deleted at random, whatever their value. Where values are missing **because** they are small, as in "
    "proteomics near the limit of detection, no way shown here repairs the damage; the package warns when it looks "
    "like that.",
    "**The zeros of counts of molecules are no missing entries.** Here zeros stayed zeros, and other entries were "
    "deleted. Most zeros of such counts are true: calling all of them missing throws information away, and there is "
    "no claim that BC-PCA improves ordinary counts of molecules.",
)

CODE = """import cellsmith, scanpy as sc

cellsmith.tl.bcpca(adata, mask="nan")                     # NaN marks what is missing; .X is not changed
cellsmith.pp.bc_neighbors(adata)
sc.tl.umap(adata, neighbors_key="bc_neighbors")
sc.tl.leiden(adata, neighbors_key="bc_neighbors")

cellsmith.pl.bcpca_baselines(adata, color="cell_type")    # means filled in and pairwise complete beside it
print(cellsmith.metrics.missingness_report(adata, mask="nan", key="bcpca"))
"""

GLOSSARY = (
    ("Entry", "One gene in one cell. It was observed, also where its value is zero, or it is missing."),
    (
        "PCA, axis, space",
        "Principal component analysis turns a thousand genes into a few axes along which cells differ most. The axes "
        "together span a space; two analyses agree when they find the same space.",
    ),
    (
        "Complete data",
        "The same cells before anything was deleted: the best that can be reached, and here the truth.",
    ),
    (
        "Distance between spaces (sin-theta)",
        "0 where two spaces are the same, 1 where they share no direction.",
    ),
    (
        "Nearest cells found again",
        "Of the 15 cells that lie nearest in the complete data, the share that lies nearest with the deleted data too.",
    ),
    (
        "Clusters agree with types (ARI)",
        "K-means makes as many clusters as there are types; 1 means the same groups, 0 as by chance.",
    ),
    ("Correlation", "0: one number says nothing about the other; 1: sorted by one, the other is sorted too."),
)


def score_table(scores: Mapping[str, Mapping[str, float]], chance: Mapping[str, float]) -> Table:
    """Put the scores of all ways side by side.

    Parameters
    ----------
    scores
        Way -> score -> number.
    chance
        Score -> what a random embedding reaches.

    Returns
    -------
    One row a score, one column a way, the complete data first.
    """
    rows: list[list[str | Cell]] = []
    for metric, (name, ideal) in SHOWN.items():
        row: list[str | Cell] = [name, Cell(ideal, "quiet")]
        row.append(Cell(f"{chance[metric]:.2f}" if metric in chance else "", "quiet"))
        for way, numbers in scores.items():
            row.append(Cell(f"{numbers[metric]:.3f}", "quiet" if way == cells.COMPLETE else ""))
        rows.append(row)
    return Table(
        "How much of the complete data is found again?",
        ["", "ideal", "by chance", *scores],
        rows,
        note="Complete data is the ceiling: it is compared with itself. Even there clusters do not equal types, "
        "because cells also differ by whether they met interferon.",
    )


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
    rows = [[name, *(f"{numbers[metric]:.3f}" for numbers in scores.values())] for metric, (name, _) in SHOWN.items()]
    return Table("Blood cells with most entries deleted, unevenly", ["", *scores], rows)
