"""The words of the section on clusters that know how sure they are: tables, limits, a glossary."""

from __future__ import annotations

from collections.abc import Mapping

from cellsmith.demo._report import Cell, Table

__all__ = ["CODE", "GLOSSARY", "LIMITS", "OURS", "PCA", "band_table", "score_table"]

OURS, PCA = "ScSiameseClu", "PCA and Leiden"

LIMITS = (
    "One data set, one seed. Which of two clusterings agrees better with the authors' names changes from set to set, "
    "and PCA with Leiden takes seconds; the benchmark of this package has the numbers of six sets.",
    "**Confidence is about clusters, not about names.** It says how much of a cell's neighbourhood is in its "
    "cluster. Where a cluster holds two types, its cells can be sure and wrong.",
    "Resting and stimulated cells are in one experiment here, and clusters were told to look past the difference. With "
    "a treatment that changes cells more, they would not.",
)

CODE = """import cellsmith

cellsmith.tl.scsiameseclu(adata, layer="counts", batch_key="batch")       # n_clusters="auto"
cellsmith.tl.scsiameseclu_markers(adata)
cellsmith.pl.scsiameseclu_clusters(adata)

cellsmith.model.ScSiameseClu.setup_anndata(adata, layer="counts")
model = cellsmith.model.ScSiameseClu(adata)
model.train()
model.predict(new_cells)                                                  # no training, cell by cell
"""

GLOSSARY = (
    (
        "View",
        "A copy of a cell as another run of the experiment might have shown it: some molecules fewer, some noise.",
    ),
    ("Prototype", "The middle of a cluster in the embedding."),
    (
        "Confidence",
        "How likely a short walk from a cell to its neighbours, and theirs, ends in its own cluster.",
    ),
    ("Agreement (ARI)", "1: clusters and names cut the cells alike; 0: no better than chance."),
    ("New cells", "Cells that took no part in training; each is placed beside the trained ones by itself."),
)


def score_table(scores: Mapping[str, Mapping[str, float]]) -> Table:
    """Put both ways side by side.

    Parameters
    ----------
    scores
        Way -> number of clusters, agreement with the names, agreement with the condition.
    """
    rows = [
        [way, f"{s['clusters']:.0f}", f"{s['ari']:.2f}", f"{s['nmi']:.2f}", f"{s['batch']:.2f}"]
        for way, s in scores.items()
    ]
    return Table(
        "Clusters of blood cells, against the names that the authors gave them",
        ["", "clusters", "ARI", "NMI", "NMI with the treatment"],
        rows,
        note="ARI and NMI: higher is better. NMI with the treatment: lower is better, clusters should be types.",
    )


def band_table(bands: Mapping[str, Mapping[str, float]]) -> Table:
    """Show how often new cells of each confidence are named rightly.

    Parameters
    ----------
    bands
        Band -> number of cells, mean confidence, share named rightly.
    """
    rows: list[list[str | Cell]] = [
        [name, f"{b['cells']:.0f}", f"{b['confidence']:.2f}", f"{b['right']:.2f}"] for name, b in bands.items()
    ]
    return Table(
        "New cells by confidence",
        ["", "cells", "mean confidence", "named rightly"],
        rows,
        note="Named rightly: the new cell has the commonest name of the training cells in its cluster.",
    )
