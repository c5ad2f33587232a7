"""What is compared: private embeddings, the ceiling without privacy, and floors that look at no cell."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from cellsmith import metrics
from cellsmith.benchmark._privacy.cases import LABELS, Case
from cellsmith.data.panel import panel_counts, panel_of
from cellsmith.math.privacy import transform_counts

__all__ = ["ARMS", "FREE", "ORDER", "PICKED", "clusters", "embed"]

N_STARTS = 20
PUBLISHED, PICKED = "published, no guarantee", "published, labels pick the epoch"
# 200 steps in place of 842: less noise for the same nominal epsilon.
SHORT = {"pretrain": 13, "cluster": 7}
# Found on the tuning files at epsilon 8: steps, learning rate, clip norm and scales of the whole network under noise.
WHOLE: dict[str, Any] = {
    "n_latent": 16,
    "n_steps": 100,
    "learning_rate": 2e-3,
    "clip_norm": 0.02,
    "moments": "dp",
}
FROZEN: dict[str, Any] = {"n_latent": 16, "n_steps": 100, "learning_rate": 2e-3}
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


def _trained(case: Case, epsilon: float, cls: Any = None, *, max_epochs: Any = None, **given: Any) -> Any:
    from cellsmith.model import DPDCAN

    cls, cells = cls or DPDCAN, case.cells.copy()
    cls.setup_anndata(cells, gene_panel=case.panel)
    budget = epsilon if np.isfinite(epsilon) else ANY_BUDGET
    model = cls(cells, n_clusters=case.n_clusters, target_epsilon=budget, unsafe_reproducible=True, **given)
    model.train(max_epochs=max_epochs, seed=case.seed, accelerator="cpu", enable_progress_bar=False)
    return model


def _model(**given: Any) -> Callable[[Case, float], np.ndarray]:
    return lambda case, epsilon: _trained(case, epsilon, **given).get_latent_representation()


def _centers(case: Case, epsilon: float) -> np.ndarray:
    """Clusters by centres that were bought, not by k-means."""
    return _trained(case, epsilon, cluster_head="dp").predict().cat.codes.to_numpy()


def _published(case: Case, epsilon: float) -> dict[str, np.ndarray]:
    """Return the last step of the published scheme, and the epoch that its authors would show: labels pick it."""
    from cellsmith.model import DPDCAN

    seen: list[np.ndarray] = []

    class Watched(DPDCAN):
        def _refresh_published(self, cells: Any, epoch: int, *, seed: int) -> None:
            super()._refresh_published(cells, epoch, seed=seed)
            seen.append(cells.target.argmax(dim=1).numpy())

    z = _trained(case, epsilon, Watched, mode="reference").get_latent_representation()
    truth = case.cells.obs[LABELS].to_numpy()
    return {PUBLISHED: z, PICKED: max(seen, key=lambda found: metrics.ari(truth, found))}


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


ARMS: dict[str, Callable[[Case, float], Any]] = {
    "dp_pca 16": _dp_pca(16),
    "dp_pca 32": _dp_pca(32),
    "DPDCAN 0.7": _model(dp_pca_fraction=0.7),
    "DPDCAN centres": _centers,
    "DPDCAN whole": _model(mode="whole", **WHOLE),
    "DPDCAN frozen": _model(mode="frozen_decoder", dp_pca_fraction=0.7, **FROZEN),
    PUBLISHED: _published,
    "published, 200 steps": _model(mode="reference", max_epochs=SHORT),
    "random projection 32": _projection,
    "untrained encoder": _model(mode="whole", n_latent=16, n_steps=1, learning_rate=1e-12),
    "DPDCAN none": _model(mode="none"),
    "PCA 50, all genes": _pca,
}
"""Name -> what is made of a case at an epsilon: an embedding (n, d), clusters (n,), or several of them by name."""
ORDER = tuple(name for arm in ARMS for name in ((arm, PICKED) if arm == PUBLISHED else (arm,)))
"""All names in the table."""
FREE = ("random projection 32", "untrained encoder", "DPDCAN none", "PCA 50, all genes")
"""Arms on which epsilon has no influence."""


def embed(arm: str, case: Case, epsilon: float) -> dict[str, np.ndarray]:
    """Return what an arm makes of a case; its warnings are known.

    Parameters
    ----------
    arm
        Key of ``ARMS``.
    case
        Cells.
    epsilon
        Budget; nominal for the published scheme.

    Returns
    -------
    Name -> embedding (n, d), or clusters (n,) of an arm that has some of its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ARMS[arm](case, epsilon)
    return found if isinstance(found, dict) else {arm: found}


def clusters(z: np.ndarray, n_clusters: int, *, seed: int) -> np.ndarray:
    """Return k-means clusters (n,) of an embedding (n, d), the same for every arm."""
    from sklearn.cluster import KMeans

    return KMeans(n_clusters, n_init=N_STARTS, random_state=seed).fit_predict(z)
