"""The peer that no training is needed for: principal components smoothed over the cell graph, then k-means."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from cellsmith.benchmark._clustering.cases import Case, read
from cellsmith.benchmark._clustering.methods import pca
from cellsmith.benchmark._clustering.scoring import neighbor_graph, scores
from cellsmith.benchmark._scsiameseclu.ablation import MAX_CELLS
from cellsmith.benchmark._store import Store
from cellsmith.math import graph

__all__ = ["SMOOTHED", "TASK", "smoothed"]

TASK, SMOOTHED = "no training", "PPR of PCA 50, k-means, K"
TELEPORT, N_KEPT, TOLERANCE = 0.5, 32, 1e-4


def smoothed(files: Iterable[str], seeds: Iterable[int], *, directory: Path, store: Store) -> None:
    """Cluster smoothed principal components, told the number of types.

    Parameters
    ----------
    files, seeds
        Names of files; seeds of neighbours and k-means.
    directory
        The benchmark data directory.
    store
        Where the rows go.
    """
    wanted = list(seeds)
    for file in files:
        missing = [s for s in wanted if not store.has(task=TASK, file=file, seed=s)]
        case = read(directory, file, max_cells=MAX_CELLS) if missing else None
        for seed in missing:
            found = {k: v for k, v in scores(case, _clusters(case, seed)).items() if np.isfinite(v)}
            store.record(TASK, SimpleNamespace(file=file, seed=seed), SMOOTHED, found)


def _clusters(case: Case, seed: int) -> npt.NDArray[Any]:
    from sklearn.cluster import KMeans

    points = pca(case.counts, None, seed, None).latent
    looped = graph.self_loops(neighbor_graph(points, seed))
    walk = graph.ppr_rows(looped, teleport=TELEPORT, k=N_KEPT, tol=TOLERANCE).operator
    return np.asarray(KMeans(case.n_types, n_init=10, random_state=seed).fit_predict(walk @ points))
