"""The easy and the coherent task, on scanpy's bundled blood cells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from cellsmith._rng import Streams
from cellsmith.benchmark._annotation.cases import Case, Cells

__all__ = ["FILE", "SEEDS", "Blood", "WeakClassifier", "blood", "coherent_case", "easy_case", "weak_classifier"]

FILE = "pbmc68k_reduced"
SEEDS = tuple(range(20))
TRAIN_CELLS, TRAIN_GENES, INVERSE_PENALTY = 3, 60, 0.5
SIGNAL, PUSH, PUSHED_SHARE = 1.5, 3.0, 0.4
PUSHED_CLASS, PUSHED_TO = 9, 3  # dendritic cells, regulatory T cells


@dataclass(frozen=True, eq=False)
class Blood:
    """The bundled cells: scaled expression (n, G), classes, codes (n,), cells with their graphs."""

    expression: np.ndarray
    classes: tuple[str, ...]
    codes: np.ndarray
    cells: Cells


@cache
def blood() -> Blood:
    """Return the cells of ``scanpy.datasets.pbmc68k_reduced()``: 700, of 10 types; 50 components as they come."""
    import scanpy as sc

    adata = sc.datasets.pbmc68k_reduced()
    labels = adata.obs["bulk_labels"].astype(str).to_numpy()
    classes, codes = np.unique(labels, return_inverse=True)
    cells = Cells(np.asarray(adata.obsm["X_pca"], dtype=np.float64))
    return Blood(np.asarray(adata.X, dtype=np.float64), tuple(map(str, classes)), codes, cells)


@dataclass(frozen=True, eq=False)
class WeakClassifier:
    """What a classifier of few cells and genes says: probabilities and decision values (n, C), training mask (n,)."""

    probabilities: np.ndarray
    decisions: np.ndarray
    trained_on: np.ndarray
    genes: np.ndarray


def weak_classifier(data: Blood, seed: int, *, without: int | None = None, half: int | None = None) -> WeakClassifier:
    """Train a logistic regression (C = 0.5) on 3 cells a type and 60 random genes.

    Parameters
    ----------
    data
        The cells.
    seed
        Seed of cells and genes.
    without
        Class that is left out of the training.
    half
        0 or 1 takes one half of those genes, for two independent views of one cell.
    """
    from sklearn.linear_model import LogisticRegression

    rng = Streams(seed).numpy("easy task")
    genes = rng.choice(data.expression.shape[1], TRAIN_GENES, replace=False)
    chosen = [rng.choice(np.flatnonzero(data.codes == c), TRAIN_CELLS, replace=False) for c in range(len(data.classes))]
    if half is not None:
        genes = genes[half::2]
    rows = np.concatenate([cells for c, cells in enumerate(chosen) if c != without])
    model = LogisticRegression(C=INVERSE_PENALTY, max_iter=5000)
    model.fit(data.expression[rows][:, genes], data.codes[rows])
    used = np.zeros(len(data.codes), dtype=bool)
    used[np.concatenate(chosen)] = True
    x = data.expression[:, genes]
    return WeakClassifier(model.predict_proba(x), model.decision_function(x), used, genes)


def easy_case(seed: int) -> Case:
    """Return the easy task: a weak classifier, scored on the cells that it was not trained on."""
    data = blood()
    weak = weak_classifier(data, seed)
    return Case("easy", FILE, seed, data.cells, weak.probabilities, data.classes, data.codes, ~weak.trained_on)


def coherent_case(seed: int) -> Case:
    """Return the coherent task: 40 % of the dendritic cells, all on one side, are pushed towards another type."""
    data = blood()
    n, n_classes = len(data.codes), len(data.classes)
    logits = Streams(seed).numpy("coherent task").standard_normal((n, n_classes))
    logits[np.arange(n), data.codes] += SIGNAL
    dendritic = np.flatnonzero(data.codes == PUSHED_CLASS)
    order = dendritic[np.argsort(data.cells.rep[dendritic, 0], kind="stable")]
    logits[order[: round(PUSHED_SHARE * len(order))], PUSHED_TO] += PUSH
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    everyone = np.ones(n, dtype=bool)
    return Case(
        "coherent", FILE, seed, data.cells, p / p.sum(axis=1, keepdims=True), data.classes, data.codes, everyone
    )
