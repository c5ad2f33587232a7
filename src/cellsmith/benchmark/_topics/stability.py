"""Do other seeds find the same topics, and does the proposal for their number find the planted one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from anndata import AnnData
from scipy import sparse

from cellsmith._rng import Streams
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._topics.cases import FILES, read
from cellsmith.benchmark._topics.fits import Fits
from cellsmith.benchmark._topics.ours import DEFAULT, fit_model
from cellsmith.benchmark._topics.peers import LDA, NMF
from cellsmith.math.topics import agreement, matched_cosine

__all__ = ["CHOICE", "TASK", "number_of_topics", "planted_counts", "stability"]

TASK, CHOICE = "stability", "12 planted topics"
PLANTED, GENES_PER_TOPIC, SHARED_GENES, N_CELLS = 12, 25, 100, 1_000
GRID = (5, 8, 10, 12, 15, 20, 30)


def stability(
    seeds: Sequence[int], *, directory: Path, store: Store, fits: Fits, files: Iterable[str] = FILES, n_topics: int = 20
) -> None:
    """Record the mean agreement of matched topics over pairs of seeds.

    Parameters
    ----------
    seeds
        Seeds of the fits.
    directory, store, fits
        Data, where the rows go, fits.
    files
        Names of files.
    n_topics
        Number of topics.
    """
    for file in files:
        case = read(directory, file)
        for name in (DEFAULT, NMF, LDA):
            if len(seeds) < 2 or store.has(task=TASK, file=file, variant=name):
                continue
            found = [fits.get(case, name, n_topics=n_topics, seed=seed).loadings[""] for seed in seeds]
            pairs = [agreement(a.T, b.T).mean() for a, b in combinations(found, 2)]
            store.record(TASK, SimpleNamespace(file=file, seed=seeds[0]), name, {"cosine": float(np.mean(pairs))})


def planted_counts(seed: int, *, n_cells: int = N_CELLS, n_topics: int = PLANTED) -> tuple[AnnData, np.ndarray]:
    """Draw negative binomial counts of cells that mix topics with genes of their own.

    Parameters
    ----------
    seed
        Seed of the draw.
    n_cells, n_topics
        Numbers of cells and topics.

    Returns
    -------
    Counts (n, 25 K + 100), and the profiles of the topics (V, K), columns sum to one.
    """
    rng = Streams(seed).numpy("planted topics")
    n_genes = n_topics * GENES_PER_TOPIC + SHARED_GENES
    profile = np.full((n_genes, n_topics), 0.05) * rng.gamma(2.0, 0.5, (n_genes, 1))
    for k in range(n_topics):
        profile[k * GENES_PER_TOPIC : (k + 1) * GENES_PER_TOPIC, k] += rng.gamma(2.0, 0.5, GENES_PER_TOPIC)
    profile /= profile.sum(axis=0)
    theta = rng.dirichlet(np.full(n_topics, 0.15), n_cells)
    mean = rng.lognormal(np.log(2_000), 0.3, (n_cells, 1)) * (theta @ profile.T)
    counts = rng.poisson(mean * rng.gamma(4.0, 0.25, mean.shape))
    return AnnData(sparse.csr_matrix(counts, dtype=np.float32)), profile


def number_of_topics(seeds: Iterable[int], *, store: Store) -> None:
    """Let the door propose a number of topics where twelve were planted, and look for each of them.

    Parameters
    ----------
    seeds
        Seeds of the draw and of the models.
    store
        Where the rows go.
    """
    from cellsmith import tl

    for seed in seeds:
        if store.has(task=CHOICE, file="simulated", seed=seed):
            continue
        cells, profile = planted_counts(seed)
        tl.sce2tm_choose_n_topics(cells, n_topics=GRID, n_seeds=3, rng=seed)
        proposal = int(cells.uns["sce2tm_n_topics"]["proposal"])
        model = fit_model(cells, proposal, seed)
        # what the planted genes have in common with the topic that reads them
        own = profile - profile.mean(axis=1, keepdims=True)
        found = model.get_feature_by_topic(kind="lift").to_numpy()
        cosine = matched_cosine(np.clip(own, 0, None).T, np.clip(found - 1.0, 0, None).T)[2]
        values = {"proposal": float(proposal), "found": float((cosine >= 0.8).sum()), "cosine": float(cosine.mean())}
        store.record(CHOICE, SimpleNamespace(file="simulated", seed=seed), DEFAULT, values)
