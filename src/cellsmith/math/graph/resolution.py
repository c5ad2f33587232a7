"""How many communities: an exact number, and resolutions at which the partition is stable."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellsmith._errors import SetupError
from cellsmith.math.assign import adjusted_rand
from cellsmith.math.graph.communities import leiden
from cellsmith.math.graph.structure import laplacian

__all__ = ["Plateau", "leiden_exact", "leiden_stability", "plateau", "spectral_clusters"]

STABLE = 0.85
"""Mean agreement between runs from which on a partition counts as stable."""
_SLACK = 0.05  # below the best, where nothing is stable
_LOWEST, _HIGHEST = 1e-3, 50.0

_Integers = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]


class Plateau(NamedTuple):
    """Answer of :func:`plateau`.

    Attributes
    ----------
    best
        Position of the chosen resolution, or None where there is no plateau.
    ids
        ``(R,)`` plateau of every resolution, 0 for the best one; -1 for none.
    scores
        Score of each plateau, the best first.
    """

    best: int | None
    ids: _Integers
    scores: tuple[float, ...]


def leiden_exact(graph: Any, n_clusters: int, *, seed: int, max_steps: int = 25) -> tuple[_Integers, float | None]:
    """Find exactly so many communities: bisection of the resolution, else spectral clustering of the same graph.

    Parameters
    ----------
    graph
        ``(n, n)`` scipy sparse, symmetric weights >= 0.
    n_clusters
        From 1 to n.
    seed
        Seed of Leiden and of k-means.
    max_steps
        Bisections, on a logarithmic scale from 1e-3 to 50.

    Returns
    -------
    ``(labels, resolution)``: ``(n,)`` from 0, and the resolution that gave them, None where spectral clustering did.

    Raises
    ------
    SetupError
        If the number is out of range.
    """
    n = graph.shape[0]
    if not 1 <= n_clusters <= n:
        raise SetupError(f"Found n_clusters={n_clusters}, expected 1 to {n}, the number of cells.")
    if n_clusters == 1:
        return np.zeros(n, dtype=np.int64), None
    low, high = np.log(_LOWEST), np.log(_HIGHEST)
    middle = 0.0  # the first guess is a resolution of 1
    for _ in range(max_steps):
        labels = leiden(graph, resolution=float(np.exp(middle)), seed=seed)
        found = int(labels.max()) + 1
        if found == n_clusters:
            return labels, float(np.exp(middle))
        low, high = (middle, high) if found < n_clusters else (low, middle)
        middle = (low + high) / 2
    return spectral_clusters(graph, n_clusters, seed=seed), None


def spectral_clusters(graph: Any, n_clusters: int, *, seed: int) -> _Integers:
    """Cluster the cells by k-means on the smallest eigenvectors of the normalised Laplacian (Ng et al., 2001).

    Parameters
    ----------
    graph
        ``(n, n)`` scipy sparse, symmetric weights >= 0.
    n_clusters
        From 2 to n - 1.
    seed
        Seed of the eigenvalue search and of k-means (10 starts).

    Returns
    -------
    ``(n,)`` clusters from 0.
    """
    from sklearn.cluster import KMeans

    n = graph.shape[0]
    operator = sp.csr_matrix(2.0 * sp.identity(n) - laplacian(graph))  # its largest are the smallest of the Laplacian
    if n_clusters >= n - 1 or n <= 50:
        vectors = np.linalg.eigh(operator.toarray())[1][:, -n_clusters:]
    else:
        start = np.random.default_rng(seed).standard_normal(n)
        vectors = sp.linalg.eigsh(operator, k=n_clusters, which="LA", v0=start, tol=1e-4)[1]
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    found = KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(unit)
    return np.asarray(found, dtype=np.int64)


def leiden_stability(graphs: Sequence[Any], resolutions: npt.ArrayLike, *, seed: int) -> tuple[_Integers, _Floats]:
    """Measure how well the communities of perturbed graphs agree, at every resolution.

    Parameters
    ----------
    graphs
        Two or more graphs ``(n, n)`` of the same cells, perturbed independently.
    resolutions
        ``(R,)`` > 0.
    seed
        Graph number r is clustered with the seed ``seed + r``.

    Returns
    -------
    ``(n_clusters, stability)``, both ``(R,)``: the median number of communities, rounded, and the mean adjusted Rand
    index of all pairs of runs.

    Raises
    ------
    SetupError
        For fewer than two graphs.
    """
    if len(graphs) < 2:
        raise SetupError(f"Found {len(graphs)} graphs, expected two or more perturbed ones to compare.")
    counts, agreement = [], []
    for resolution in np.atleast_1d(np.asarray(resolutions, dtype=np.float64)):
        runs = [leiden(g, resolution=float(resolution), seed=seed + r) for r, g in enumerate(graphs)]
        counts.append(round(float(np.median([run.max() + 1 for run in runs]))))
        agreement.append(float(np.mean([adjusted_rand(a, b) for a, b in combinations(runs, 2)])))
    return np.array(counts, dtype=np.int64), np.array(agreement)


def plateau(resolutions: npt.ArrayLike, n_clusters: npt.ArrayLike, stability: npt.ArrayLike) -> Plateau:
    """Find the widest stretch of resolutions over which a stable partition keeps its number of communities.

    A plateau is a maximal run of at least two neighbouring resolutions whose numbers of communities differ by at most 1
    and are 2 or more, all with a stability of .85 or more (where no resolution reaches that: within .05 of the best).
    Its score is its width, on a logarithmic scale, times its mean stability; ties go to more communities.

    Parameters
    ----------
    resolutions
        ``(R,)`` > 0, ascending.
    n_clusters
        ``(R,)`` numbers of communities.
    stability
        ``(R,)`` agreement between runs, at most 1.

    Returns
    -------
    The most stable resolution of the best plateau, and all plateaus.

    Raises
    ------
    SetupError
        If the three differ in length or the resolutions do not ascend.
    """
    r, counts, agreement = (np.asarray(v, dtype=np.float64) for v in (resolutions, n_clusters, stability))
    if not r.shape == counts.shape == agreement.shape or r.ndim != 1 or np.any(r <= 0) or np.any(np.diff(r) <= 0):
        raise SetupError(
            f"Found {r.size} resolutions, {counts.size} numbers and {agreement.size} stabilities; expected the same "
            "number of each, for ascending resolutions above 0."
        )
    split = counts >= 2  # one community is always stable
    line = STABLE if np.any(split & (agreement >= STABLE)) else agreement[split].max(initial=-np.inf) - _SLACK
    fit = split & (agreement >= line)
    runs = _maximal_runs(fit, counts)
    ranked = sorted(runs, key=lambda ab: (-_score(r, agreement, ab), -np.median(counts[ab[0] : ab[1] + 1]), ab[0]))
    ids = np.full(r.size, -1, dtype=np.int64)
    for number, (first, last) in reversed(list(enumerate(ranked))):
        ids[first : last + 1] = number
    best = None
    if ranked:
        first, last = ranked[0]
        best = first + int(np.argmax(agreement[first : last + 1]))
    return Plateau(best, ids, tuple(_score(r, agreement, run) for run in ranked))


def _maximal_runs(fit: npt.NDArray[np.bool_], counts: _Floats) -> list[tuple[int, int]]:
    """Return (first, last) of the runs of two or more that no longer run contains."""
    found: list[tuple[int, int]] = []
    for first in range(len(fit)):
        last = first - 1
        while last + 1 < len(fit) and fit[last + 1] and np.ptp(counts[first : last + 2]) <= 1:
            last += 1
        if last > first and not (found and last <= found[-1][1]):
            found.append((first, last))
    return found


def _score(r: _Floats, agreement: _Floats, run: tuple[int, int]) -> float:
    first, last = run
    return float(np.log(r[last] / r[first]) * agreement[first : last + 1].mean())
