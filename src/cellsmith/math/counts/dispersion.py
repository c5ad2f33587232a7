"""Inverse dispersion of the negative binomial: moments (E7), maximum likelihood (E8), shrinkage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from scipy.special import digamma, polygamma

from cellsmith._errors import SetupError

__all__ = ["dispersion_moments", "refit_dispersion", "shrink_dispersion"]

_CAP = 64  # counts up to here enter a histogram; the rest is kept as (gene, count) pairs
_BOUNDS = (1e-2, 1e4)
_MAX_STEPS = 30
_TOLERANCE = 1e-6  # of log theta
_Floats = npt.NDArray[np.float64]


def dispersion_moments(x: Any, library: npt.ArrayLike) -> _Floats:
    """Estimate the inverse dispersion of each gene by moments, pooled over cells (E7).

    theta_g = sum_i mbar^2 / max(sum_i [(x - mbar)^2 - mbar], tiny), clipped to [0.05, 100], with mbar_ig = l_i p_g and
    p_g the pooled share of the gene. No label is used.

    Parameters
    ----------
    x
        ``(n, G)`` counts, scipy sparse or numpy array; never densified.
    library
        ``(n,)`` total counts of each cell.

    Returns
    -------
    ``(G,)`` float64.

    Raises
    ------
    SetupError
        If there is not one total for each cell, or they sum to zero.
    """
    totals = np.asarray(library, dtype=np.float64).reshape(-1)
    if totals.size != x.shape[0] or totals.sum() <= 0:
        raise SetupError(
            f"Found {totals.size} library sizes (sum {totals.sum():g}) for {x.shape[0]} cells, "
            "expected a positive one for each."
        )
    counts: Any = x.tocsr().astype(np.float64) if sp.issparse(x) else np.asarray(x, dtype=np.float64)
    first = np.asarray(counts.sum(axis=0)).reshape(-1)
    square = np.asarray((counts.multiply(counts) if sp.issparse(counts) else counts * counts).sum(axis=0)).reshape(-1)
    cross = np.asarray(counts.T @ totals).reshape(-1)
    p = first / totals.sum()
    expected = p**2 * (totals**2).sum()
    excess = square - 2 * p * cross + expected - p * totals.sum()
    return np.asarray(np.clip(expected / np.maximum(excess, 1e-12), 0.05, 100.0))


def shrink_dispersion(theta_group: npt.ArrayLike, theta_gene: npt.ArrayLike, n_group: npt.ArrayLike) -> _Floats:
    """Pull a group's inverse dispersion towards the gene's, on the log scale, with weight n / (n + 50) for the group.

    Parameters
    ----------
    theta_group
        ``(S, G)`` or ``(G,)`` fitted in each group (batch, label).
    theta_gene
        ``(G,)`` fitted in all cells.
    n_group
        ``(S,)`` number of cells of each group, or one number.

    Returns
    -------
    float64 of the shape of ``theta_group``.
    """
    group = np.asarray(theta_group, dtype=np.float64)
    n = np.asarray(n_group, dtype=np.float64)
    weight = (n / (n + 50.0))[..., None] if n.ndim else n / (n + 50.0)
    return np.asarray(
        np.exp(weight * np.log(group) + (1.0 - weight) * np.log(np.asarray(theta_gene, dtype=np.float64)))
    )


def refit_dispersion(batches: Callable[[], Iterable[tuple[Any, Any]]], theta: npt.ArrayLike) -> _Floats:
    """Maximise the negative binomial likelihood over theta with the means held fixed (E8).

    Newton steps on log theta, inside a bracket of the score's sign that bisection keeps valid; at most 30, each one
    pass over ``batches``. theta stays within [1e-2, 1e4]. Genes without a single count keep their start.

    Parameters
    ----------
    batches
        Called once a step; returns an iterator over the same ``(x, mean)`` pairs each time: x ``(b, G)`` counts
        (scipy sparse or numpy array), mean ``(b, G)`` in counts, >= 0.
    theta
        ``(G,)`` start.

    Returns
    -------
    ``(G,)`` float64. At a bound the score still points outwards.

    Raises
    ------
    SetupError
        If a start is not positive, or shapes disagree.
    """
    start = np.asarray(theta, dtype=np.float64).reshape(-1)
    if not np.all((start > 0) & np.isfinite(start)):
        raise SetupError(f"Found theta between {start.min()} and {start.max()}, expected finite numbers > 0.")
    search = _Search.begin(np.log(start))
    histogram = _Histogram(start.size)
    active = np.arange(start.size)
    for step in range(_MAX_STEPS):
        here = np.exp(search.phi[active])
        score, curvature = _streamed(batches(), here, active, histogram if step == 0 else None)
        if step == 0:
            histogram.close()
            keep = histogram.seen
            active, here, score, curvature = active[keep], here[keep], score[keep], curvature[keep]
        at_counts = histogram.terms(active, here)
        slope = here * (score + at_counts[0])
        bend = slope + here**2 * (curvature + at_counts[1])
        active = active[search.step(active, slope, bend) > _TOLERANCE]
        if active.size == 0:
            break
    return np.where(histogram.seen, np.exp(search.phi), start)


@dataclass
class _Search:
    """Newton on phi = log theta within a bracket of the score's sign.

    The bracket starts a hair outside the bounds, which marks a bound that was not visited yet.
    """

    phi: _Floats
    low: _Floats
    high: _Floats

    @classmethod
    def begin(cls, phi: _Floats) -> _Search:
        lowest, highest = np.log(_BOUNDS)
        return cls(np.clip(phi, lowest, highest), np.full(phi.size, lowest - 1e-9), np.full(phi.size, highest + 1e-9))

    def step(self, genes: npt.NDArray[np.intp], slope: _Floats, bend: _Floats) -> _Floats:
        """Move these genes, given the derivatives at phi; returns how far each went."""
        phi, rising = self.phi[genes], slope > 0
        self.low[genes] = low = np.where(rising, phi, self.low[genes])
        self.high[genes] = high = np.where(rising, self.high[genes], phi)
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = phi - slope / bend
        # where the likelihood is not concave, go far towards the rising side; 3 is a factor of 20 in theta
        safe = (bend < 0) & np.isfinite(newton)
        moved = np.where(safe, np.clip(newton, phi - 3.0, phi + 3.0), phi + np.where(rising, 3.0, -3.0))
        edge = np.where(rising, high, low)
        lowest, highest = np.log(_BOUNDS)
        unvisited = (edge < lowest) | (edge > highest)
        outside = (moved <= low) | (moved >= high)
        moved = np.where(outside, np.where(unvisited, edge, 0.5 * (low + high)), moved)
        moved = np.where(slope == 0, phi, np.clip(moved, lowest, highest))
        self.phi[genes] = moved
        return np.asarray(np.abs(moved - phi))


class _Histogram:
    """How many cells of each gene hold more than k counts: all that the digamma part of the score needs of the data."""

    def __init__(self, n_genes: int) -> None:
        self._table = np.zeros((_CAP, n_genes), dtype=np.int64)  # [v - 1, g]: cells of gene g with count v, capped
        self._tail = np.zeros((0, 2), dtype=np.int64)  # (gene, count) of the counts above the cap
        self._copies = np.zeros(0, dtype=np.int64)  # how often each of them occurs

    def add(self, gene: npt.NDArray[Any], value: npt.NDArray[Any]) -> None:
        count = np.rint(value).astype(np.int64)
        n_genes = self._table.shape[1]
        place = (np.minimum(count, _CAP) - 1) * n_genes + gene
        self._table += np.bincount(place, minlength=self._table.size).reshape(self._table.shape)
        above = count > _CAP
        pairs = np.concatenate([self._tail, np.stack([gene[above], count[above]], axis=1)])
        copies = np.concatenate([self._copies, np.ones(int(above.sum()), dtype=np.int64)])
        self._tail, inverse = np.unique(pairs, axis=0, return_inverse=True)
        self._copies = np.bincount(inverse.reshape(-1), weights=copies, minlength=self._tail.shape[0]).astype(np.int64)

    def close(self) -> None:
        """Turn frequencies into exceedances, N(x > k) in row k, and drop the empty rows."""
        used = int(np.max(np.flatnonzero(self._table.any(axis=1)), initial=-1)) + 1
        self._table = np.cumsum(self._table[:used][::-1], axis=0)[::-1]

    @property
    def seen(self) -> npt.NDArray[np.bool_]:
        """Genes with at least one count."""
        return np.asarray(
            self._table[0] > 0 if self._table.shape[0] else np.zeros(self._table.shape[1], dtype=np.bool_)
        )

    def terms(self, genes: npt.NDArray[np.intp], theta: _Floats) -> tuple[_Floats, _Floats]:
        """Sum over cells of digamma(x + theta) - digamma(theta), and its derivative to theta, for these genes."""
        more = self._table[:, genes]
        inverse = 1.0 / (theta + np.arange(self._table.shape[0])[:, None])
        first, second = (more * inverse).sum(axis=0), -(more * inverse**2).sum(axis=0)
        where = np.full(self._table.shape[1], -1)
        where[genes] = np.arange(genes.size)
        place = where[self._tail[:, 0]]
        kept = place >= 0
        place, count, copies = place[kept], self._tail[kept, 1], self._copies[kept]
        here = theta[place]
        np.add.at(first, place, copies * (digamma(count + here) - digamma(_CAP + here)))
        np.add.at(second, place, copies * (polygamma(1, count + here) - polygamma(1, _CAP + here)))
        return first, second


def _streamed(
    pairs: Iterable[tuple[Any, Any]], theta: _Floats, genes: npt.NDArray[np.intp], histogram: _Histogram | None
) -> tuple[_Floats, _Floats]:
    """Sum over cells of -log1p(m / theta) + (m - x) / (theta + m), and its derivative to theta, for these genes."""
    score, curvature = np.zeros(genes.size), np.zeros(genes.size)
    for x, mean in pairs:
        means = np.asarray(mean)
        if means.shape != x.shape:
            raise SetupError(f"Found a mean of shape {means.shape} for counts of shape {x.shape}, expected the same.")
        counts = sp.csr_matrix(x)
        where = np.full(means.shape[1], -1)
        where[genes] = np.arange(genes.size)
        place = where[counts.indices]
        row = np.repeat(np.arange(means.shape[0]), np.diff(counts.indptr))
        if histogram is not None:
            live = counts.data > 0
            histogram.add(counts.indices[live].astype(np.int64), counts.data[live])
        kept = place >= 0
        m = np.asarray(means if genes.size == means.shape[1] else means[:, genes], dtype=np.float64)
        weight = 1.0 / (theta + m)
        share = m * weight
        score += share.sum(axis=0) - _log1p_sum(m / theta)
        curvature += share.sum(axis=0) / theta - np.einsum("ij,ij->j", share, weight)
        at = weight[row[kept], place[kept]]
        x_weight = counts.data[kept] * at
        score -= np.bincount(place[kept], weights=x_weight, minlength=genes.size)
        curvature += np.bincount(place[kept], weights=x_weight * at, minlength=genes.size)
    return score, curvature


def _log1p_sum(ratio: _Floats) -> _Floats:
    # torch's log1p is vectorised, numpy's is not
    return np.asarray(torch.log1p(torch.from_numpy(ratio)).sum(dim=0).numpy())
