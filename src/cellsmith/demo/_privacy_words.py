"""The words of the privacy section: what epsilon is, tables, limits, a glossary."""

from __future__ import annotations

import pandas as pd

from cellsmith.demo._report import Table

__all__ = ["CEILING", "CODE", "FLOOR", "GLOSSARY", "LIMITS", "OURS", "means", "summary_table", "verdict"]

OURS, CEILING, FLOOR = "dp_pca 16", "PCA 50, all genes", "random projection 32"

LIMITS = (
    "* **One cell is protected, not one person.** A donor with a thousand cells is hardly protected at all by "
    "these numbers. Protecting donors whole takes hundreds of donors.",
    "* **These cells were already public**, and the noise here comes from a seed, so that the page can be made "
    "again. That is a simulation. On real data the noise comes from the operating system and nobody knows it.",
    "* **The genes were drawn by name.** The 2,000 genes of this data set were chosen for what is known of "
    "blood, partly on these cells; a strictly public panel would come from elsewhere.",
    "* **The clusters themselves stay with the owner.** What may be handed on are the axes: with them anybody can "
    "embed cells of their own.",
)

GLOSSARY = (
    (
        "Epsilon",
        "How much one cell can change what is handed on. At 0 nothing; up to about 1 an attacker learns next to "
        "nothing; at 8 the promise is weak. It is a promise about the worst case, whatever the attacker knows.",
    ),
    ("Delta", "How often the promise may fail: here once in 100,000."),
    ("Private axes", "Directions in gene space computed from one sum over all cells, to which noise was added."),
    (
        "ARI",
        "Agreement of clusters with the types that the authors named: 1 is perfect, 0 is chance. Types are read for "
        "the score and for their number.",
    ),
)

CODE = """import cellsmith

cellsmith.tl.dp_pca(adata, epsilon=4.0, gene_panel=my_public_genes)   # private axes, in .varm
print(adata.uns["dp_pca"]["privacy"]["statement"])                    # what may be said about them

cellsmith.model.DPDCAN.setup_anndata(adata, gene_panel=my_public_genes)
model = cellsmith.model.DPDCAN(adata, n_clusters=8, target_epsilon=4.0)
model.train()
model.save("released")                                                # an encoder to hand on, without any cell"""


def means(table: pd.DataFrame) -> dict[tuple[str, float], float]:
    """Return the ARI by arm and epsilon, the mean over seeds."""
    rows = table[table["metric"] == "ari"]
    return rows.groupby(["arm", "epsilon"])["value"].mean().to_dict()


def summary_table(table: pd.DataFrame) -> Table:
    """Return ARI at every epsilon between the floor and the ceiling."""
    rows = [[_name(arm, epsilon), f"{value:.2f}"] for (arm, epsilon), value in sorted(means(table).items(), key=_order)]
    return Table(
        title="Privacy: agreement of clusters with the types (ARI)",
        columns=["what is handed on", "ARI"],
        rows=rows,
        note="Higher is better; the last row is what these cells give without any privacy.",
    )


def _name(arm: str, epsilon: float) -> str:
    named = {FLOOR: "random axes, which look at no cell", CEILING: "axes without privacy"}
    return named.get(arm, f"private axes, epsilon {epsilon:g}")


def _order(entry: tuple[tuple[str, float], float]) -> tuple[int, float]:
    (arm, epsilon), _ = entry
    return {FLOOR: 0, CEILING: 2}.get(arm, 1), epsilon


def verdict(table: pd.DataFrame) -> str:
    """Say which budgets beat looking at no cell at all."""
    get = means(table)
    floor = next(v for (arm, _), v in get.items() if arm == FLOOR)
    good = sorted(e for (arm, e), v in get.items() if arm == OURS and v > floor + 0.05)
    if not good:
        return "No budget here beat random axes by more than .05: with so few cells, privacy costs everything."
    return f"From epsilon {good[0]:g} on, private axes beat random ones by more than .05."
