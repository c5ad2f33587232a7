"""What is compared: private embeddings, the ceiling without privacy, and floors that look at no cell."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from cellsmith.benchmark._privacy.cases import Case
from cellsmith.data.panel import panel_counts, panel_of
from cellsmith.math.privacy import transform_counts

__all__ = ["ARMS", "FREE", "clusters", "embed"]

N_STARTS = 20
WHOLE_STEPS = 100
# For arms on which it has no influence.
ANY_BUDGET = 8.0


def _panel_input(case: Case) -> np.ndarray:
    panel = panel_of(case.cells.var, case.panel)
    return transform_counts(panel_counts(case.cells, case.cells.X, panel))


def _dp_pca(n_components: int) -> Callable[[Case, float], np.ndarray]:
    def run(case: Case, epsilon: float) -> np.ndarray:
        from cellsmith.tl import dp_pca

        out = dp_pca(
            case.cells,
            epsilon=epsilon,
            n_components=n_components,
            gene_panel=case.panel,
            rng=case.seed,
            unsafe_reproducible=True,
            copy=True,
        )
        return out.obsm["X_dp_pca"]

    return run


def _model(**given: Any) -> Callable[[Case, float], np.ndarray]:
    def run(case: Case, epsilon: float) -> np.ndarray:
        from cellsmith.model import DPDCAN

        cells = case.cells.copy()
        DPDCAN.setup_anndata(cells, gene_panel=case.panel)
        budget = epsilon if np.isfinite(epsilon) else ANY_BUDGET
        model = DPDCAN(cells, n_clusters=case.n_clusters, target_epsilon=budget, unsafe_reproducible=True, **given)
        model.train(seed=case.seed, accelerator="cpu", enable_progress_bar=False)
        return model.get_latent_representation()

    return run


def _pca(case: Case, epsilon: float) -> np.ndarray:
    import scanpy as sc

    cells = case.cells.copy()
    sc.pp.normalize_total(cells)
    sc.pp.log1p(cells)
    sc.pp.pca(cells, n_comps=50, random_state=case.seed)
    return cells.obsm["X_pca"]


def _projection(case: Case, epsilon: float) -> np.ndarray:
    x = _panel_input(case)
    return x @ np.random.default_rng(case.seed).standard_normal((x.shape[1], 32))


ARMS: dict[str, Callable[[Case, float], np.ndarray]] = {
    "dp_pca 16": _dp_pca(16),
    "dp_pca 32": _dp_pca(32),
    "DPDCAN 0.7": _model(dp_pca_fraction=0.7),
    "DPDCAN whole": _model(mode="whole", n_latent=16, n_steps=WHOLE_STEPS, learning_rate=2e-3),
    "DPDCAN frozen": _model(
        mode="frozen_decoder", dp_pca_fraction=0.7, n_latent=16, n_steps=WHOLE_STEPS, learning_rate=2e-3
    ),
    "published, no guarantee": _model(mode="reference"),
    "random projection 32": _projection,
    "untrained encoder": _model(mode="whole", n_latent=16, n_steps=1, learning_rate=1e-12),
    "DPDCAN none": _model(mode="none"),
    "PCA 50, all genes": _pca,
}
"""Name -> embedding (n, d) of a case at an epsilon."""
FREE = ("random projection 32", "untrained encoder", "DPDCAN none", "PCA 50, all genes")
"""Arms on which epsilon has no influence."""


def embed(arm: str, case: Case, epsilon: float) -> np.ndarray:
    """Return the embedding of an arm; its warnings are known.

    Parameters
    ----------
    arm
        Key of ``ARMS``.
    case
        Cells.
    epsilon
        Budget; nominal for the published scheme.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ARMS[arm](case, epsilon)


def clusters(z: np.ndarray, n_clusters: int, *, seed: int) -> np.ndarray:
    """Return k-means clusters (n,) of an embedding (n, d), the same for every arm."""
    from sklearn.cluster import KMeans

    return KMeans(n_clusters, n_init=N_STARTS, random_state=seed).fit_predict(z)
