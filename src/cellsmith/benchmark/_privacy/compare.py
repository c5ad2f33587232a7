"""Scores of arms on cases, as rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cellsmith import metrics
from cellsmith.benchmark._privacy.arms import ARMS, FREE, clusters, embed
from cellsmith.benchmark._privacy.cases import LABELS, Case
from cellsmith.math.assign import hungarian

__all__ = ["COLUMNS", "RECALL", "known", "privacy", "rare_recalls", "run_arm"]

COLUMNS = ("case", "seed", "arm", "epsilon", "metric", "value")
RECALL = "recall of "
"""Start of the name of a rare type's recall."""
RARE_SHARE, RARE_CELLS = 0.03, 10


def run_arm(case: Case, arm: str, epsilon: float) -> list[dict[str, Any]]:
    """Embed, cluster and score; the labels are read here and nowhere before.

    Parameters
    ----------
    case
        Cells.
    arm
        Key of ``ARMS``.
    epsilon
        Budget; infinite for arms on which it has no influence.

    Returns
    -------
    Rows of the table.
    """
    start = time.process_time()
    made = embed(arm, case, epsilon)
    seconds = time.process_time() - start
    truth, rows = case.cells.obs[LABELS].to_numpy(), []
    for own, z in made.items():
        found = z if z.ndim == 1 else clusters(z, case.n_clusters, seed=case.seed)
        recalls = rare_recalls(truth, found)
        scores = {
            "ari": metrics.ari(truth, found),
            "nmi": metrics.nmi(truth, found),
            "macro_f1": metrics.macro_f1(truth, found),
            "rare_f1": metrics.rare_f1(truth, found),
            "rare_recall": float(np.mean(list(recalls.values()))) if recalls else float("nan"),
            **{f"{RECALL}{name}": recall for name, recall in recalls.items()},
            "seconds": seconds,
        }
        head = {"case": case.name, "seed": case.seed, "arm": own, "epsilon": epsilon}
        rows += [{**head, "metric": m, "value": v} for m, v in scores.items()]
    return rows


def rare_recalls(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Return the recall of every rare type, clusters named as in :func:`cellsmith.metrics.macro_f1`.

    Parameters
    ----------
    truth, found
        (n,) types and clusters.

    Returns
    -------
    Type -> recall in [0, 1], for types below 3 % of the cells that have at least 10.
    """
    table = pd.crosstab(truth, found)
    cells, sizes = table.to_numpy(), table.to_numpy().sum(axis=1)
    rows, columns = hungarian(cells)
    recall = np.zeros(len(table))
    recall[rows] = cells[rows, columns] / sizes[rows]
    rare = (sizes < RARE_SHARE * sizes.sum()) & (sizes >= RARE_CELLS)
    return {str(name): float(value) for name, value in zip(table.index[rare], recall[rare], strict=True)}


def privacy(
    adata: Any,
    *,
    labels_key: str,
    epsilons: Sequence[float] = (1.0, 4.0, 8.0),
    arms: Sequence[str] = ("dp_pca 16", "dp_pca 32", "random projection 32", "PCA 50, all genes"),
    gene_panel: Any = "all",
    seeds: Sequence[int] = (0,),
) -> pd.DataFrame:
    """Compare private embeddings on labelled cells that may be shown: a simulation, to plan a budget on other data.

    Parameters
    ----------
    adata
        Raw counts in ``.X``.
    labels_key
        Column of ``.obs`` with types; it scores, and gives their number to every arm.
    epsilons
        Budgets.
    arms
        Which methods.
    gene_panel
        As in :func:`cellsmith.tl.dp_pca`.
    seeds
        Of the noise.

    Returns
    -------
    Tidy table: case, seed, arm, epsilon, metric (ari, nmi, macro_f1, rare_f1, rare_recall, seconds, and the recall of
    every type below 3 %), value.

    Examples
    --------
    >>> import cellsmith
    >>> table = cellsmith.benchmark.privacy(cellsmith.datasets.kang_pbmc(), labels_key="cell_type")  # doctest: +SKIP
    """
    import anndata as ad

    rows = []
    for seed in seeds:
        cells = ad.AnnData(adata.X.copy(), obs=pd.DataFrame(index=adata.obs_names), var=adata.var[[]].copy())
        cells.obs[LABELS] = adata.obs[labels_key].astype(str).astype("category").to_numpy()
        one = Case("given", int(seed), cells, gene_panel)
        for arm in arms:
            for epsilon in (np.inf,) if arm in FREE else epsilons:
                rows += run_arm(one, arm, float(epsilon))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def known(arms: Sequence[str]) -> list[str]:
    """Return arms that exist, in the order of the table."""
    return [arm for arm in ARMS if arm in arms]
