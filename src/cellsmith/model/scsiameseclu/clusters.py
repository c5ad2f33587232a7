"""How many clusters: where prototypes start, which are merged by marker genes, and which rare ones are kept."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from cellsmith.math import graph
from cellsmith.math.enrichment import merge_by_markers, pair_marker_counts

__all__ = ["MEDIAN_SHARE", "Pruned", "communities", "kmeans", "marker_threshold", "prune", "refined", "start_number"]

# Leiden communities -> prototypes at the start: too many, to be merged.
SURPLUS = 1.5
# m*, in units of the median number of genes that separate two starting clusters.
MEDIAN_SHARE = 0.3
# A cluster below this share of the cells, or this number of them, stays only with markers of its own.
RARE_SHARE, RARE_CELLS = 0.001, 5
# Added to the covariance of the mixture, in units of the mean variance within clusters.
FLOOR = 1e-4


class Pruned(NamedTuple):
    """What :func:`prune` decides for K clusters.

    Attributes
    ----------
    into
        (K,) cluster into which each goes: itself, the one it is merged with, or -1 where it is dropped.
    steps
        Sentences on what happened, one a change.
    """

    into: np.ndarray
    steps: list[str]


def kmeans(z: np.ndarray, k: int, *, seed: int, n_starts: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Return centres (k, d) and labels (n,) of z (n, d); k-means++, the best of so many starts."""
    from sklearn.cluster import KMeans

    found = KMeans(k, n_init=n_starts, random_state=seed).fit(z)
    return found.cluster_centers_.astype(np.float32), found.labels_.astype(np.int64)


def communities(z: np.ndarray, k: int, *, seed: int, n_neighbors: int = 14) -> tuple[np.ndarray, np.ndarray]:
    """Return means (k, d) and labels (n,) of exactly k Leiden communities on the neighbours of z (n, d)."""
    index, distance = graph.knn_table(z, min(n_neighbors, len(z) - 1), seed=seed)
    labels, _ = graph.leiden_exact(graph.fuzzy_union(index, distance), k, seed=seed)
    labels = np.unique(labels, return_inverse=True)[1].reshape(-1)
    means = np.stack([z[labels == c].mean(axis=0) for c in range(labels.max() + 1)])
    return means.astype(np.float32), labels.astype(np.int64)


def refined(z: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means (k, d) and labels (n,) of a Gaussian mixture of z (n, d) that starts at clusters (n,).

    All components share one covariance: distances count in units of the spread within clusters, which is wide along
    some axes of an embedding and narrow along others. The graph of neighbours, in which communities are found, does not
    know that.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    codes = np.unique(labels, return_inverse=True)[1].reshape(-1)
    points, k = z.astype(np.float64), int(codes.max()) + 1
    means = np.stack([points[codes == c].mean(axis=0) for c in range(k)])
    within = points - means[codes]
    floor = FLOOR * max(float(within.var(axis=0).mean()), 1e-12)
    covariance = within.T @ within / len(points) + floor * np.eye(points.shape[1])
    found = GaussianMixture(
        k,
        covariance_type="tied",
        weights_init=np.bincount(codes) / len(codes),
        means_init=means,
        precisions_init=np.linalg.inv(covariance),
        reg_covar=floor,
        init_params="random_from_data",
        random_state=0,  # nothing is drawn that matters: the three starts above are all there is
    )
    with warnings.catch_warnings():
        # Labels that still move after 100 rounds are as good a start: the transport goes on from them.
        warnings.simplefilter("ignore", category=ConvergenceWarning)
        labels = found.fit(points).predict(points)
    return found.means_.astype(np.float32), labels.astype(np.int64)


def start_number(z: np.ndarray, n_neighbors: int, *, seed: int) -> int:
    """Return K0: half as many again as there are Leiden communities on the neighbours of z (n, d)."""
    index, distance = graph.knn_table(z, min(n_neighbors, len(z) - 1), seed=seed)
    communities = graph.leiden(graph.fuzzy_union(index, distance), resolution=1.0, seed=seed)
    return max(2, int(np.ceil(SURPLUS * len(np.unique(communities)))))


def marker_threshold(counts: sp.csr_matrix, codes: np.ndarray, *, min_markers: int, batches: Any) -> float:
    """Return m*: the larger of ``min_markers`` and .3 x the median over all pairs of genes that separate two clusters.

    Parameters
    ----------
    counts
        (n, p), those that took no part in the codes.
    codes
        (n,) clusters.
    min_markers
        Least threshold, genes.
    batches
        (n,) or None.
    """
    table = pair_marker_counts(counts, np.unique(codes, return_inverse=True)[1], batches=batches)
    pairs = np.minimum(table, table.T)[np.triu_indices(len(table), k=1)]
    return max(float(min_markers), MEDIAN_SHARE * float(np.median(pairs))) if pairs.size else float(min_markers)


def prune(
    counts: sp.csr_matrix,
    codes: np.ndarray,
    prototypes: np.ndarray,
    *,
    threshold: float,
    min_markers: int,
    batches: Any = None,
    guard: bool = True,
    merge: bool = True,
    n_left: int | None = None,
    nearest: bool = True,
) -> Pruned:
    """Drop clusters that are too small and have no markers, merge those that too few genes separate.

    Parameters
    ----------
    counts
        (n, p), those that took no part in the codes.
    codes
        (n,) clusters, 0 to K - 1; not all need have cells.
    prototypes
        (K, d).
    threshold
        m* genes that must separate two clusters, each way.
    min_markers
        Genes that a rare cluster needs against the rest and against its nearest neighbour.
    batches
        (n,): tests then run within batches. Or None.
    guard, merge
        Whether rare clusters may be saved by markers; whether clusters are merged.
    n_left
        Merge until so many are left, whatever separates them; only clusters without a cell are dropped. None: by the
        threshold.
    nearest
        Merge only clusters that are each other's nearest, not whichever two the fewest genes separate. Few cells make
        few genes significant: two small clusters may have nothing that separates them however far apart they are.
    """
    k, into, steps = len(prototypes), np.arange(len(prototypes)), []
    sizes = np.bincount(codes, minlength=k)
    bound = max(RARE_CELLS, RARE_SHARE * len(codes)) if n_left is None else 1
    for c in np.argsort(sizes, kind="stable"):
        if sizes[c] >= bound or (into >= 0).sum() <= 1:
            break
        found = _own_markers(counts, codes, prototypes, int(c), alive=into >= 0, batches=batches) if guard else 0
        if found < min_markers:
            into[c] = -1
            steps.append(f"dropped a cluster of {sizes[c]} cells with {found} markers")
        else:
            steps.append(f"kept a cluster of {sizes[c]} cells with {found} markers")
    kept = into[codes] >= 0
    if not merge or not kept.any():
        return Pruned(into, steps)
    if nearest:
        return _merge_nearest(
            counts, codes, prototypes, Pruned(into, steps), threshold=threshold, batches=batches, n_left=n_left
        )
    merged, path = merge_by_markers(
        counts[np.flatnonzero(kept)],
        codes[kept],
        min_markers=threshold,
        median_share=0.0,
        n_clusters=None if n_left is None else min(n_left, len(np.unique(codes[kept]))),
        batches=None if batches is None else batches[kept],
    )
    for group in np.unique(merged):
        members = np.unique(codes[kept][merged == group])
        into[members] = members[sizes[members].argmax()]
    steps += [f"merged two clusters that {int(score)} genes separate" for score in path.score]
    return Pruned(into, steps)


def _merge_nearest(
    counts: sp.csr_matrix,
    codes: np.ndarray,
    prototypes: np.ndarray,
    found: Pruned,
    *,
    threshold: float,
    batches: Any,
    n_left: int | None,
) -> Pruned:
    """Merge, one pair after the other, the mutually nearest clusters that the fewest genes separate."""
    groups = np.where(found.into[codes] >= 0, codes, -1)
    sizes = np.bincount(codes, minlength=len(prototypes)).astype(np.float64)
    centres, into, steps = prototypes.astype(np.float64), found.into.copy(), list(found.steps)
    known: dict[tuple[int, int], int] = {}
    while True:
        alive = np.flatnonzero(into == np.arange(len(into)))
        if len(alive) <= (n_left or 1):
            break
        gaps = np.linalg.norm(centres[alive][:, None] - centres[alive], axis=2)
        np.fill_diagonal(gaps, np.inf)
        partner = gaps.argmin(axis=1)
        pairs = [(int(alive[i]), int(alive[j])) for i, j in enumerate(partner) if partner[j] == i and i < j]
        for a, b in pairs:
            if (a, b) not in known:
                known[a, b] = _separating(counts, groups, a, b, batches=batches)
        a, b = min(pairs, key=lambda pair: known[pair])
        if n_left is None and known[a, b] >= threshold:
            break
        steps.append(f"merged two clusters that {known[a, b]} genes separate")
        large, small = (a, b) if sizes[a] >= sizes[b] else (b, a)
        share = sizes[[large, small]] / max(sizes[large] + sizes[small], 1.0)
        centres[large] = share @ centres[[large, small]]
        sizes[large] += sizes[small]
        groups[groups == small], into[into == small] = large, large
        known = {pair: score for pair, score in known.items() if large not in pair and small not in pair}
    return Pruned(into, steps)


def _separating(counts: sp.csr_matrix, groups: np.ndarray, a: int, b: int, *, batches: Any) -> int:
    """Return how many genes separate two clusters, in the direction with fewer."""
    rows = np.flatnonzero((groups == a) | (groups == b))
    if len(np.unique(groups[rows])) < 2:
        return 0
    own = None if batches is None else batches[rows]
    table = pair_marker_counts(counts[rows], (groups[rows] == b).astype(np.int64), batches=own)
    return int(min(table[0, 1], table[1, 0]))


def _own_markers(
    counts: sp.csr_matrix, codes: np.ndarray, prototypes: np.ndarray, c: int, *, alive: np.ndarray, batches: Any
) -> int:
    """Return how many genes are higher in a cluster than in the rest and than in its nearest cluster, the fewer."""
    own = codes == c
    others = np.flatnonzero(alive & (np.arange(len(prototypes)) != c) & np.isin(np.arange(len(prototypes)), codes))
    if not own.any() or not len(others):
        return 0
    nearest = others[np.linalg.norm(prototypes[others] - prototypes[c], axis=1).argmin()]
    found = []
    for rest in (~own, codes == nearest):
        rows = np.flatnonzero(own | rest)
        table = pair_marker_counts(
            counts[rows], own[rows].astype(np.int64), batches=None if batches is None else batches[rows]
        )
        found.append(int(table[1, 0]))
    return min(found)
