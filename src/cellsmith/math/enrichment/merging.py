"""Are two clusters two? Genes that separate every pair, and clusters merged until enough genes separate all of them.

All tests come from the sums of x and x^2 over the cells of a cluster (and batch), which one pass over the counts gives
and which simply add up where clusters merge. The clusters saw the same counts, so the p-values rank pairs; they are no
inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.special import stdtr

from cellsmith._errors import SetupError
from cellsmith.math.assign import ordered_clusters
from cellsmith.math.counts.views import log_normalized

__all__ = ["MergePath", "merge_by_markers", "pair_marker_counts"]

FALSE_DISCOVERIES = 0.05
FOLD = 1.0  # least |log2 ratio| of the pooled rates
RATE_FLOOR = 1e-5  # added to both rates
SMALLEST = 3  # cells that a variance needs
_HOPELESS = 1.9  # |t| whose p-value exceeds .05 with any degrees of freedom, so that no test with less is called

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class MergePath(NamedTuple):
    """How :func:`merge_by_markers` went, one entry a merge.

    Attributes
    ----------
    first, second
        ``(S,)`` int64, the two clusters that merged, each named by the largest starting cluster in it (starting
        clusters are numbered by falling size); the second disappears.
    score
        ``(S,)`` int64, genes that separated them, in the direction with fewer.
    n_clusters
        ``(S,)`` int64, clusters left.
    threshold
        Score that all pairs had to reach, m*; NaN where a number of clusters was asked for.
    """

    first: Integers
    second: Integers
    score: Integers
    n_clusters: Integers
    threshold: float


def pair_marker_counts(counts: Any, groups: npt.ArrayLike, *, batches: npt.ArrayLike | None = None) -> Integers:
    """Count the genes that are higher in one group than in another, for every pair and direction.

    A gene counts if Welch's t of log1p(1e4 x / total) is significant at a false discovery rate of 5 % over the genes
    that either group has, and the pooled rates (+ 1e-5) differ at least twofold. With batches both are means over the
    batches in which each group has three cells, weighted by n_a n_b / (n_a + n_b); two groups that share none are
    compared as they are.

    Parameters
    ----------
    counts
        ``(n, G)`` counts, scipy sparse or array.
    groups
        ``(n,)`` group of every cell, codes from 0 to K - 1.
    batches
        ``(n,)`` batch of every cell, or None.

    Returns
    -------
    ``(K, K)`` int64; entry (a, b): genes higher in a than in b. 0 where a group has fewer than 3 cells.

    Raises
    ------
    SetupError
        If there is not one code from 0 for each cell.
    """
    sums = _sums(counts, _codes(groups, counts.shape[0]), batches)
    table = np.zeros((sums.n_groups, sums.n_groups), dtype=np.int64)
    for a, b in combinations(range(sums.n_groups), 2):
        table[a, b], table[b, a] = sums.separating(a, b)
    return table


def merge_by_markers(
    counts: Any,
    groups: npt.ArrayLike,
    *,
    min_markers: float = 5,
    median_share: float = 0.15,
    n_clusters: int | None = None,
    batches: npt.ArrayLike | None = None,
) -> tuple[Integers, MergePath]:
    """Merge clusters, the least separated pair first, until enough genes separate every pair (scAGC, "auto").

    The score of a pair is the smaller of its two entries of :func:`pair_marker_counts`: each of two types has genes of
    its own. All pairs must reach m* = max(min_markers, median_share x median score of the starting pairs): a fixed
    number would split deep data too finely and empty shallow ones.

    Parameters
    ----------
    counts
        ``(n, G)`` counts, scipy sparse or array; thinned ones, where the same counts made the clusters.
    groups
        ``(n,)`` clusters, of any names; the result does not depend on them.
    min_markers
        Least number of genes, >= 0.
    median_share
        Share of the median score of the starting pairs, >= 0.
    n_clusters
        Merge until so many are left instead, whatever their scores; the threshold then plays no role.
    batches
        ``(n,)`` batch of every cell: tests then run within batches. Or None.

    Returns
    -------
    ``(groups, path)``: ``(n,)`` int64 from 0 by falling size, and the merges. One cluster is a legal answer.

    Raises
    ------
    SetupError
        If there is not one cluster for each cell, a threshold is negative, or there are fewer than ``n_clusters``.
    """
    if not (min_markers >= 0 and median_share >= 0):
        raise SetupError(f"Found min_markers={min_markers} and median_share={median_share}, expected numbers >= 0.")
    start = ordered_clusters(groups)
    sums = _sums(counts, _codes(start, counts.shape[0]), batches)
    n_start = sums.n_groups
    if n_clusters is not None and not 1 <= n_clusters <= n_start:
        raise SetupError(f"Found n_clusters={n_clusters}, expected 1 to {n_start}: merging cannot add clusters.")
    score = np.full((n_start, n_start), np.inf)  # upper triangle; inf: no pair, or no longer one
    for a, b in combinations(range(n_start), 2):
        score[a, b] = min(sums.separating(a, b))
    pairs = score[np.isfinite(score)]
    threshold = max(float(min_markers), median_share * float(np.median(pairs))) if pairs.size else float(min_markers)
    name = np.arange(n_start)
    steps: list[tuple[int, int, int, int]] = []
    while np.isfinite(score).any():
        if len(np.unique(name)) <= n_clusters if n_clusters is not None else score.min() >= threshold:
            break
        a, b = (int(i) for i in np.unravel_index(np.argmin(score), score.shape))
        name[name == b] = a
        steps.append((a, b, int(score[a, b]), len(np.unique(name))))
        sums.merge(a, b)
        score[b], score[:, b] = np.inf, np.inf
        for other in np.setdiff1d(name, a):
            low, high = min(a, other), max(a, other)
            score[low, high] = min(sums.separating(low, high))
    first, second, scores, left = np.array(steps, dtype=np.int64).reshape(-1, 4).T
    threshold = threshold if n_clusters is None else float("nan")
    return ordered_clusters(name[start]), MergePath(first, second, scores, left, threshold)


@dataclass
class _Sums:
    """Sums over the cells of each group and batch, from which any pair is tested.

    ``cells`` (K, B) numbers of cells; ``counts`` (K, B, G) counts; ``total`` (K, B, G) sums of y = log1p(1e4 x / s);
    ``square`` (K, B, G) sums of y^2.
    """

    cells: Floats
    counts: Floats
    total: Floats
    square: Floats

    @property
    def n_groups(self) -> int:
        return len(self.cells)

    def merge(self, a: int, b: int) -> None:
        for table in (self.cells, self.counts, self.total, self.square):
            table[a] += table[b]

    def separating(self, a: int, b: int) -> tuple[int, int]:
        """Return how many genes are higher in a than in b, and in b than in a."""
        sides = [(t[a], t[b]) for t in (self.cells, self.counts, self.total, self.square)]
        shared = np.all(np.minimum(*sides[0])[..., None] >= SMALLEST, axis=-1)
        if not shared.any():  # no batch holds both: compare them as they are
            sides = [(x.sum(axis=0, keepdims=True), y.sum(axis=0, keepdims=True)) for x, y in sides]
            shared = np.minimum(*sides[0]) >= SMALLEST
            if not shared.any():
                return 0, 0
        (n_a, n_b), (x_a, x_b), (y_a, y_b), (q_a, q_b) = [(x[shared], y[shared]) for x, y in sides]
        known = (x_a.sum(axis=0) + x_b.sum(axis=0)) > 0
        weight = n_a * n_b / (n_a + n_b)
        weight /= weight.sum()
        rate_a, rate_b = (weight @ (x / np.maximum(x.sum(axis=1, keepdims=True), 1)) for x in (x_a, x_b))
        ratio = np.log2((rate_a + RATE_FLOOR) / (rate_b + RATE_FLOOR))
        difference = weight @ (y_a / n_a[:, None] - y_b / n_b[:, None])
        parts = [
            weight[:, None] ** 2 * np.maximum(q / n[:, None] - (y / n[:, None]) ** 2, 0) / (n[:, None] - 1)
            for n, y, q in ((n_a, y_a, q_a), (n_b, y_b, q_b))
        ]
        variance = parts[0].sum(axis=0) + parts[1].sum(axis=0)
        freedom = variance**2 / np.maximum(
            (parts[0] ** 2 / (n_a[:, None] - 1)).sum(axis=0) + (parts[1] ** 2 / (n_b[:, None] - 1)).sum(axis=0), 1e-300
        )
        t = difference / np.sqrt(np.maximum(variance, 1e-300))
        called = _called(t, freedom, known & (variance > 0)) & (np.abs(ratio) > FOLD)
        return int((called & (ratio > 0) & (t > 0)).sum()), int((called & (ratio < 0) & (t < 0)).sum())


def _called(t: Floats, freedom: Floats, tested: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Call tests at the false discovery rate (Benjamini and Hochberg); only those with a chance get a p-value."""
    called = np.zeros(t.size, dtype=bool)
    hopeful = np.flatnonzero(tested & (np.abs(t) > _HOPELESS))
    p = 2 * stdtr(freedom[hopeful], -np.abs(t[hopeful]))
    order = np.argsort(p, kind="stable")
    below = np.flatnonzero(p[order] <= FALSE_DISCOVERIES * np.arange(1, p.size + 1) / max(1, int(tested.sum())))
    if below.size:
        called[hopeful[order[: below[-1] + 1]]] = True
    return called


def _sums(counts: Any, groups: Integers, batches: npt.ArrayLike | None) -> _Sums:
    matrix = sp.csr_matrix(counts)
    n, n_genes = matrix.shape
    strata = np.zeros(n, dtype=np.int64)
    if batches is not None:
        strata = np.unique(np.asarray(batches).astype(str), return_inverse=True)[1].reshape(-1)
        if strata.shape != (n,):
            raise SetupError(f"Found {strata.size} batches, expected one for each of {n} cells.")
    k, b = int(groups.max()) + 1, int(strata.max()) + 1
    logged = log_normalized(matrix, np.maximum(np.asarray(matrix.sum(axis=1)).reshape(-1), 1.0)).astype(np.float64)
    place = groups * b + strata
    members = sp.csr_matrix((np.ones(n), (place, np.arange(n))), shape=(k * b, n))
    squared = logged.copy()
    squared.data **= 2
    counted, total, square = (
        np.asarray((members @ m).todense()).reshape(k, b, n_genes) for m in (matrix.astype(np.float64), logged, squared)
    )
    return _Sums(np.bincount(place, minlength=k * b).astype(np.float64).reshape(k, b), counted, total, square)


def _codes(groups: npt.ArrayLike, n: int) -> Integers:
    codes = np.asarray(groups)
    if codes.shape != (n,) or n == 0 or codes.dtype.kind not in "iu" or codes.min() < 0:
        raise SetupError(f"Found groups of shape {codes.shape} and {codes.dtype}, expected {n} codes from 0.")
    return codes.astype(np.int64)
