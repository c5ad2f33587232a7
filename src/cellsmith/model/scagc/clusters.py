"""How many clusters, and which: by evidence of markers, by stability, or as many as are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import sparse

from cellsmith._rng import Streams
from cellsmith.math import graph
from cellsmith.math.assign import ordered_clusters
from cellsmith.math.counts import binomial_thin
from cellsmith.math.enrichment import merge_by_markers

__all__ = ["ClusterChoice", "choose_clusters", "measure_stability", "perturb"]

# Where merging starts, and what is taken where no resolution is stable.
RESOLUTION = 0.5
RESOLUTIONS = np.geomspace(0.05, 2.0, 14)
N_GRAPHS, N_GRAPHS_LARGE, LARGE = 10, 5, 5_000
PERTURBATION, DROPPED = 0.3, 0.2


@dataclass(frozen=True)
class ClusterChoice:
    """What was chosen, and why.

    Parameters
    ----------
    labels
        (n,) clusters, 0 the largest; None where none were asked for.
    merges
        ``step, first, second, score, threshold, n_clusters``, one entry a merge.
    stability
        ``resolution, n_clusters, stability, plateau``, one entry a resolution.
    notes
        What the user should know.
    """

    labels: np.ndarray | None = None
    merges: Mapping[str, np.ndarray] = field(default_factory=dict)
    stability: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: Sequence[str] = ()


def choose_clusters(
    connectivities: sparse.csr_matrix,
    wanted: int | str | None,
    *,
    counts: Callable[[], sparse.csr_matrix],
    batches: np.ndarray | None,
    perturbed: Callable[[int], list[sparse.csr_matrix]],
    streams: Streams,
) -> ClusterChoice:
    """Cluster a graph.

    Parameters
    ----------
    connectivities
        (n, n) exported graph.
    wanted
        "auto" (marker evidence), "stability", a number, or None.
    counts
        Gives the counts (n, G).
    batches
        (n,) sample batch of every cell, within which markers are tested; None: one.
    perturbed
        Gives so many perturbed graphs.
    streams
        Root of the randomness.
    """
    seed = streams.integer("init", 2)
    if wanted is None:
        return ClusterChoice()
    if wanted == "stability":
        return _by_stability(connectivities, perturbed, seed=seed)
    start = graph.leiden(connectivities, resolution=RESOLUTION, seed=seed)
    if wanted == "auto":
        return _by_markers(start, counts(), batches, streams=streams)
    # Merging says which clusters belong together; a lower resolution merges the small ones, whatever they express.
    if start.max() + 1 >= int(wanted):
        return _by_markers(start, counts(), batches, streams=streams, n_clusters=int(wanted))
    labels, resolution = graph.leiden_exact(connectivities, int(wanted), seed=seed)
    notes = []
    if resolution is None:
        notes = [f"No resolution of Leiden gave {wanted} clusters; spectral clustering of the same graph did."]
    return ClusterChoice(ordered_clusters(labels), notes=notes)


def _by_markers(
    start: np.ndarray,
    counts: sparse.csr_matrix,
    batches: np.ndarray | None,
    *,
    streams: Streams,
    n_clusters: int | None = None,
) -> ClusterChoice:
    """Merge clusters; tested on half of the counts, so that less of the noise that clusters follow is there."""
    half = binomial_thin(counts, 0.5, generator=streams.numpy("augment"))
    labels, path = merge_by_markers(half, start, n_clusters=n_clusters, batches=batches)
    n = len(path.first)
    merges = {
        "step": np.arange(1, n + 1),
        "first": path.first.astype(np.int64),
        "second": path.second.astype(np.int64),
        "score": np.asarray(path.score, dtype=np.int64),
        "threshold": np.full(n, path.threshold),
        "n_clusters": np.asarray(path.n_clusters, dtype=np.int64),
    }
    notes = []
    if labels.max() == 0 and n_clusters is None:
        notes = [
            f"All cells form one cluster: no two groups have {path.threshold:g} marker genes in each direction. If you "
            "know better, type n_clusters=<number>."
        ]
    return ClusterChoice(labels, merges=merges, notes=notes)


def _by_stability(
    connectivities: sparse.csr_matrix, perturbed: Callable[[int], list[sparse.csr_matrix]], *, seed: int
) -> ClusterChoice:
    table = measure_stability(perturbed, connectivities.shape[0], seed=seed)
    found = graph.plateau(table["resolution"], table["n_clusters"], table["stability"])
    notes, resolution = [], RESOLUTION
    if found.best is None:
        notes = [f"No range of resolutions has a stable number of clusters; resolution {RESOLUTION} was taken."]
    else:
        resolution = float(table["resolution"][found.best])
    labels = ordered_clusters(graph.leiden(connectivities, resolution=resolution, seed=seed))
    return ClusterChoice(labels, stability=table, notes=notes)


def measure_stability(
    perturbed: Callable[[int], list[sparse.csr_matrix]], n_cells: int, *, seed: int
) -> dict[str, np.ndarray]:
    """Return ``resolution, n_clusters, stability, plateau`` of 14 resolutions, by runs on perturbed graphs."""
    graphs = perturbed(N_GRAPHS if n_cells <= LARGE else N_GRAPHS_LARGE)
    counts, stability = graph.leiden_stability(graphs, RESOLUTIONS, seed=seed % 2**31)
    ids = graph.plateau(RESOLUTIONS, counts, stability).ids
    return {"resolution": RESOLUTIONS.copy(), "n_clusters": counts, "stability": stability, "plateau": ids}


def perturb(logits: np.ndarray, candidates: np.ndarray, *, k: int, generator: np.random.Generator) -> Any:
    """Return a graph (n, n) with candidates drawn anew by noise of scale .3, and a fifth of its edges dropped.

    Parameters
    ----------
    logits, candidates
        (n, M) of the exported graph.
    k
        Neighbours that every cell chooses.
    generator
        Source of randomness.
    """
    noisy = logits + PERTURBATION * generator.gumbel(size=logits.shape)
    best = np.argsort(-noisy, axis=1, kind="stable")[:, :k]
    chosen = np.take_along_axis(logits, best, axis=1)
    weights = np.exp(chosen - chosen.max(axis=1, keepdims=True))
    weights = np.where(generator.random(weights.shape) < DROPPED, 0.0, np.maximum(weights, 1e-30))
    return graph.probabilistic_union(
        graph.table_matrix(np.take_along_axis(candidates, best, axis=1), weights, len(logits))
    )
