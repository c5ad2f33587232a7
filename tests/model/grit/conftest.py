"""Toy cells, and the two tasks on real cells, shared by all tests of GRIT."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData

from cellsmith.math import graph
from cellsmith.model import GRIT
from cellsmith.model.grit.equations import to_scores

TYPES = ["B", "NK", "T", "mono"]


def make_cells(n: int = 160, *, seed: int = 0, noise: float = 1.0) -> AnnData:
    """Cells of four types in an embedding, with noisy scores; ``.X`` is absent."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, n)
    centres = 6.0 * np.eye(4, 5)
    adata = AnnData(obsm={"X_pca": (centres[kind] + rng.normal(size=(n, 5))).astype(np.float32)})
    adata.obs_names = [f"cell{i}" for i in range(n)]
    adata.obs["truth"] = np.array(TYPES)[kind]
    adata.obs["batch"] = np.array(["a", "b"])[rng.integers(0, 2, n)]
    logits = 1.2 * np.eye(4)[kind] + noise * rng.normal(size=(n, 4))
    adata.obsm["scores"] = to_scores(logits, "logit")
    adata.uns["scores"] = {"classes": TYPES}
    return adata


@pytest.fixture
def cells() -> Callable[..., AnnData]:
    return make_cells


@pytest.fixture
def fit() -> Callable[..., GRIT]:
    """``fit(adata, setup={...}, **options)``: a trained model."""

    def fit_grit(
        adata: AnnData, *, setup: dict[str, Any] | None = None, train: dict[str, Any] | None = None, **options: Any
    ) -> GRIT:
        GRIT.setup_anndata(adata, **{"scores_key": "scores", **(setup or {})})
        model = GRIT(adata, **options)
        model.train(**{"enable_progress_bar": False, "accelerator": "cpu", **(train or {})})
        return model

    return fit_grit


@pytest.fixture(scope="session")
def pbmc() -> SimpleNamespace:
    """pbmc68k_reduced: 700 cells, 10 types of 8 to 240, graph k = 15 on 50 components."""
    adata = sc.datasets.pbmc68k_reduced()
    truth = adata.obs["bulk_labels"].cat.codes.to_numpy().astype(np.int64)
    pcs = adata.obsm["X_pca"].astype(np.float32)
    weights = graph.fuzzy_union(*graph.knn_table(pcs, 14, seed=0))
    names = [str(c) for c in adata.obs["bulk_labels"].cat.categories]
    return SimpleNamespace(x=np.asarray(adata.X), truth=truth, pcs=pcs, weights=weights, names=names)


@pytest.fixture(scope="session")
def easy(pbmc: SimpleNamespace) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Logistic regression on 3 cells a type and 60 random genes: probabilities of all cells, and the cells to score."""
    from sklearn.linear_model import LogisticRegression

    def task(seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        train = np.concatenate([rng.choice(np.flatnonzero(pbmc.truth == c), 3, replace=False) for c in range(10)])
        genes = rng.choice(pbmc.x.shape[1], 60, replace=False)
        found = LogisticRegression(C=0.5, max_iter=2000).fit(pbmc.x[train][:, genes], pbmc.truth[train])
        return found.predict_proba(pbmc.x[:, genes]), np.setdiff1d(np.arange(700), train)

    return task


@pytest.fixture(scope="session")
def coherent(pbmc: SimpleNamespace) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """N(0, 1) + 1.5 on the truth; the 40 % of class 9 lowest on the first component get +3 for class 3."""

    def task(seed: int) -> tuple[np.ndarray, np.ndarray]:
        logits = np.random.default_rng(seed).normal(size=(700, 10)) + 1.5 * np.eye(10)[pbmc.truth]
        nine = np.flatnonzero(pbmc.truth == 9)
        logits[nine[np.argsort(pbmc.pcs[nine, 0])[: round(0.4 * nine.size)]], 3] += 3
        return to_scores(logits, "logit"), np.arange(700)

    return task
