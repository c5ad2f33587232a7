"""What scE2TM is compared with, each with the input that it was made for."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cellsmith._rng import isolated
from cellsmith.benchmark._topics.cases import Case

__all__ = ["LDA", "LIFT", "LINEAR", "NMF", "PCA", "PEERS", "Fit", "fold"]

NMF, LDA, LIFT, LINEAR, PCA = "NMF", "AmortizedLDA", "AmortizedLDA, lift", "LinearSCVI", "PCA 50"
EPOCHS = 100
NMF_ITERATIONS = 400
N_SAMPLES = 200  # draws behind the means of AmortizedLDA's posteriors
N_COMPONENTS = 50
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Fit:
    """What a method found.

    Parameters
    ----------
    spaces
        ``"theta"`` (n, K), rows sum to one where the method has proportions, and ``"mu"`` (n, d), what it computes
        before it makes proportions.
    loadings
        Reading -> genes by topics (V, K), larger is more typical; empty where the method has no topics.
    seconds
        CPU seconds of training and query.
    """

    spaces: Mapping[str, Floats]
    loadings: Mapping[str, Floats] = field(default_factory=dict)
    seconds: float = float("nan")


def _shares(x: npt.NDArray[Any]) -> Floats:
    total = x.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(x, total, out=np.full_like(x, 1.0 / x.shape[1]), where=total > 0), dtype=np.float32)


def nmf(case: Case, n_topics: int, seed: int) -> Fit:
    """Factorise log1p values with the Kullback-Leibler loss; topics are scaled to sum to one over genes."""
    from sklearn.decomposition import NMF as Factorisation

    model = Factorisation(
        n_topics,
        init="nndsvda",
        solver="mu",
        beta_loss="kullback-leibler",
        max_iter=NMF_ITERATIONS,
        random_state=seed,
    )
    weights = model.fit_transform(case.log)
    size = model.components_.sum(axis=1)
    return Fit({"theta": _shares(weights * size), "mu": weights.astype(np.float32)}, {"": fold(model.components_.T)})


def fold(values: npt.NDArray[Any]) -> Floats:
    """Return loadings (V, K) as float32, negative ones as 0."""
    return np.clip(np.asarray(values, dtype=np.float32), 0.0, None)


def amortized_lda(case: Case, n_topics: int, seed: int) -> Fit:
    """Train scvi-tools' LDA on raw counts; topics by probability, and by lift over the mean profile."""
    from scvi.model import AmortizedLDA

    cells = case.cells.copy()
    with isolated(seed):
        AmortizedLDA.setup_anndata(cells)
        model = AmortizedLDA(cells, n_topics=n_topics)
        model.train(max_epochs=EPOCHS, accelerator="cpu", enable_progress_bar=False, logger=False)
        theta = model.get_latent_representation(n_samples=N_SAMPLES).to_numpy()
        probability = model.get_feature_by_topic(n_samples=N_SAMPLES).to_numpy()
    usual = np.asarray(case.cells.X.sum(axis=0)).ravel() / case.cells.X.sum()
    lift = np.divide(probability, usual[:, None], out=np.zeros_like(probability), where=usual[:, None] > 0)
    mu = np.log(np.clip(theta, 1e-8, None))
    return Fit({"theta": _shares(theta), "mu": mu.astype(np.float32)}, {"": fold(probability), "lift": fold(lift)})


def linear_scvi(case: Case, n_topics: int, seed: int) -> Fit:
    """Train scvi-tools' linear decoder on raw counts; its positive loadings are the topics."""
    from scvi.model import LinearSCVI

    cells = case.cells.copy()
    with isolated(seed):
        LinearSCVI.setup_anndata(cells)
        model = LinearSCVI(cells, n_latent=n_topics)
        model.train(max_epochs=EPOCHS, accelerator="cpu", enable_progress_bar=False, logger=False)
        latent = model.get_latent_representation()
        loadings = model.get_loadings().to_numpy()
    return Fit({"theta": latent, "mu": latent}, {"": fold(loadings)})


def pca(case: Case, n_topics: int, seed: int) -> Fit:
    """Return 50 principal components of log1p values; no topics, and `n_topics` plays no part."""
    from sklearn.decomposition import PCA as Components

    n = min(N_COMPONENTS, *(s - 1 for s in case.log.shape))
    x = Components(n, random_state=seed).fit_transform(case.log.toarray()).astype(np.float32)
    return Fit({"theta": x, "mu": x})


Method = Callable[[Case, int, int], Fit]

PEERS: dict[str, Method] = {NMF: nmf, LDA: amortized_lda, LINEAR: linear_scvi, PCA: pca}


def timed(method: Method, case: Case, n_topics: int, seed: int) -> Fit:
    """Run a method and note its CPU seconds."""
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = method(case, n_topics, seed)
    return Fit(found.spaces, found.loadings, time.process_time() - started)
