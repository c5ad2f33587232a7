"""The cells of the topics section: topics of one part of the cells, and what they predict in the other part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import spearmanr

from cellsmith._rng import Streams
from cellsmith.demo._synthesis_cells import interferon_cells

if TYPE_CHECKING:
    from cellsmith.model import SCE2TM
    from cellsmith.model.sce2tm.editing import Perturbation

__all__ = ["GENE_SETS", "OTHERS", "SHIFT", "SOURCE", "SWITCHED", "Task", "enriched", "make_task", "predict", "score"]

SWITCHED, SHIFT, OTHERS = "selected topics switched", "mean shift of all cells", "all other topics switched"
CONDITION, STIMULATED, CONTROL = "condition", "STIM", "CTRL"
TRAIN_SHARE, MIN_EFFECT = 0.7, 0.5

SOURCE = "textbook genes, listed by hand for this demo: what type I interferon raises, and usual markers of blood cells"
GENE_SETS: dict[str, tuple[str, ...]] = {
    name: tuple(genes.split())
    for name, genes in {
        "interferon response": "ISG15 ISG20 IFI6 IFIT1 IFIT2 IFIT3 IFITM1 IFITM3 MX1 MX2 OAS1 OAS2 OAS3 OASL CXCL10 "
        "CXCL11 RSAD2 STAT1 IRF7 LY6E HERC5 XAF1 TNFSF10 APOBEC3A IFI44L EPSTI1 USP18 SAMD9L",
        "T cells": "CD3D CD3E CD3G CD2 IL7R CCR7 SELL LTB CD69 CD27 CREM",
        "cytotoxic cells": "NKG7 GNLY GZMA GZMB GZMH PRF1 KLRD1 CST7 CCL5 CD8A",
        "B cells": "MS4A1 CD79A CD79B BANK1 TCL1A CD74 HLA-DRA HLA-DQA1",
        "monocytes": "CD14 LYZ S100A8 S100A9 S100A12 VCAN FCN1 FTL CCL2 TYROBP",
        "CD16 monocytes": "FCGR3A MS4A7 VMO1 CDKN1C LST1 AIF1",
        "platelets": "PPBP PF4 GNG11 TUBB1 SDPR ITGA2B",
    }.items()
}
"""Name -> genes; `SOURCE` says where they come from."""

Array = npt.NDArray[np.float64]


@dataclass
class Task:
    """Cells with and without interferon, cut in two, and topics of the first part.

    Parameters
    ----------
    train, test
        Raw counts, CSR; ``.obs["cell_type"]`` and ``.obs["condition"]``. ``train`` holds the results of the fit.
    model
        Trained on ``train``.
    selected
        Topics that differ between the conditions, found in ``train`` alone.
    types
        Types with enough test cells in both conditions; the others are not scored.
    """

    train: ad.AnnData
    test: ad.AnnData
    model: SCE2TM
    selected: pd.DataFrame
    types: list[str]

    def rows(self, cell_type: str, condition: str) -> npt.NDArray[np.intp]:
        """Return the test cells of a type in a condition."""
        obs = self.test.obs
        return np.flatnonzero(((obs["cell_type"] == cell_type) & (obs[CONDITION] == condition)).to_numpy())


def make_task(seed: int, *, quick: bool, show_progress: bool = False) -> Task:
    """Deal the cells of every type and condition into 70 % training and 30 % test cells, and find topics.

    Parameters
    ----------
    seed
        Integer.
    quick
        True: about 900 cells, 400 genes, ten topics and a short training.
    show_progress
        Draw the bars of the training.

    Returns
    -------
    The task, with a trained model. No label of a type is read by it.
    """
    from cellsmith.model import SCE2TM

    whole, _ = interferon_cells(seed, quick=quick)
    rng, train = Streams(seed).numpy("split"), np.zeros(whole.n_obs, dtype=bool)
    for rows in whole.obs.groupby(["cell_type", CONDITION], observed=True).indices.values():
        train[rng.permutation(rows)[: round(TRAIN_SHARE * len(rows))]] = True
    fitted, test = whole[train].copy(), whole[~train].copy()
    SCE2TM.setup_anndata(fitted)
    model = SCE2TM(fitted, n_topics=10 if quick else 20)
    lengths = {"topics": 40} if quick else None
    model.train(max_epochs=lengths, seed=seed, accelerator="cpu", enable_progress_bar=show_progress)
    model.write(fitted)
    # Half a standard deviation: at the default of 0.1 nearly all topics of so strong a response differ, and none would
    # be left to compare with.
    selected = model.select_topics(CONDITION, STIMULATED, CONTROL, min_effect=MIN_EFFECT)
    table = pd.crosstab(test.obs["cell_type"], test.obs[CONDITION])
    least = 5 if quick else 20
    types = [str(name) for name in table.index[(table >= least).all(axis=1)]]
    return Task(fitted, test, model, selected, types)


def enriched(task: Task) -> list[tuple[str, str, int, float]]:
    """Look for the listed gene sets in the topics.

    Parameters
    ----------
    task
        The topics.

    Returns
    -------
    Topic, set, number of shared genes, adjusted p-value; only what passes .05, best first.
    """
    from cellsmith import tl

    tl.sce2tm_enrich(task.train, gene_sets=GENE_SETS, n_genes=20)
    table = pd.DataFrame(task.train.uns["sce2tm_enrich"]["table"])
    table = table[table["fdr"] < 0.05].sort_values("fdr", kind="stable")
    return [
        (str(t), str(s), int(n), float(p))
        for t, s, n, p in zip(table["topic"], table["term"], table["overlap"], table["fdr"], strict=True)
    ]


def on_scale(counts: Any) -> Array:
    """Return counts (n, G) at 10,000 a cell, dense."""
    x = np.asarray(counts.todense(), dtype=np.float64)
    return x * (1e4 / np.maximum(x.sum(axis=1, keepdims=True), 1.0))


def fold_change(after: Array, before: Array) -> Array:
    """Return log2(1 + mean after) - log2(1 + mean before), (G,)."""
    return np.log2(1.0 + after.mean(axis=0)) - np.log2(1.0 + before.mean(axis=0))


def switch(task: Task, cell_type: str, topics: Any, **options: Any) -> Perturbation:
    """Give the held-out controls of a type the topics of stimulated cells."""
    rows = task.rows(cell_type, CONTROL)
    return task.model.perturb_topics(task.test, indices=rows, topics=topics, op="swap_to_group", **options)


def predict(task: Task) -> tuple[dict[str, Array], dict[str, dict[str, Array]]]:
    """Return what interferon does to each type, and what each way predicts.

    Parameters
    ----------
    task
        Topics and test cells.

    Returns
    -------
    Type -> observed fold changes of the modelled genes (G,); way -> type -> predictions (G,).
    """
    genes = switch(task, task.types[0], task.selected).logfc.columns
    test, train = task.test[:, genes], task.train[:, genes]
    truth = {
        name: fold_change(*(on_scale(test.X[task.rows(name, c)]) for c in (STIMULATED, CONTROL))) for name in task.types
    }
    masks = {c: (task.train.obs[CONDITION] == c).to_numpy() for c in (STIMULATED, CONTROL)}
    shift = fold_change(*(on_scale(train.X[masks[c]]) for c in (STIMULATED, CONTROL)))
    others = [t for t in task.train.uns["sce2tm"]["classes"] if t not in task.selected.index]
    sides = {"source": masks[CONTROL], "target": masks[STIMULATED]}
    ways: dict[str, dict[str, Array]] = {SWITCHED: {}, SHIFT: {}, OTHERS: {}}
    for name in task.types:
        ways[SWITCHED][name] = _values(switch(task, name, task.selected))
        ways[SHIFT][name] = shift
        # where every topic was selected, nothing is left to switch
        left = switch(task, name, others, **sides) if others else None
        ways[OTHERS][name] = np.zeros_like(shift) if left is None else _values(left)
    return truth, ways


def _values(answer: Perturbation) -> Array:
    return np.asarray(answer.logfc, dtype=np.float64)[0]


def score(truth: Mapping[str, Array], ways: Mapping[str, Mapping[str, Array]]) -> dict[str, dict[str, float]]:
    """Hold the predictions against what was observed.

    Parameters
    ----------
    truth, ways
        From :func:`predict`.

    Returns
    -------
    Way -> ``correlation`` (Spearman over all genes, median over the types), ``top20`` (of the 20 genes most raised,
    how many are right), ``size`` (slope through the origin of predicted on observed; 1 is right).
    """

    def each(name: str, x: Array) -> tuple[float, float, float]:
        t = truth[name]
        common = len(np.intersect1d(np.argsort(-x)[:20], np.argsort(-t)[:20]))
        return float(np.nan_to_num(spearmanr(x, t).statistic)), float(common), float(x @ t / (t @ t))

    out = {}
    for way, found in ways.items():
        middle = np.median([each(name, x) for name, x in found.items()], axis=0)
        out[way] = dict(zip(("correlation", "top20", "size"), map(float, middle), strict=True))
    return out
