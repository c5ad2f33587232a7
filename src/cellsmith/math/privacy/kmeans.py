"""k-means under differential privacy: scored starts, then noisy Lloyd steps, in a ball that is known beforehand."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError
from cellsmith.math.privacy.ledger import Event
from cellsmith.math.privacy.units import unit_rows

__all__ = ["Frame", "KMeansRelease", "frame_of_axes", "kmeans_events", "private_kmeans"]

Floats = npt.NDArray[np.float64]
# Share of mu^2 that choosing the start may take.
START_SHARE = 0.2


class KMeansRelease(NamedTuple):
    """What leaves :func:`private_kmeans`; all of it is private.

    Attributes
    ----------
    centers
        (K, d), within the ball.
    counts
        (K,) noisy sizes of the clusters, units.
    """

    centers: Floats
    counts: Floats


class Frame(NamedTuple):
    """Where private k-means looks for clusters.

    Attributes
    ----------
    offset
        (d,) centre of the ball; d is the number of leading axes that are used.
    spread
        (d,) standard deviation of the starts around it; None draws them from the whole ball.
    radius
        Of the ball.
    """

    offset: Floats
    spread: Floats | None
    radius: float


def frame_of_axes(eigenvalues: npt.ArrayLike, n_above: int, *, n_units: float, centered: bool = False) -> Frame:
    """Choose a ball from a released moment alone, which costs nothing further.

    Axes that noise alone would reach are left out: noise for every centre, and nothing that tells cells apart.

    Parameters
    ----------
    eigenvalues
        (r,) of the released moment, descending.
    n_above
        How many of them lie above the edge of the noise; at least two axes are used.
    n_units
        N.
    centered
        Whether the moment is one around the mean. Else the first axis holds the mean of the rows, which are counts.
    """
    values = np.asarray(eigenvalues, dtype=np.float64)[: max(2, n_above)]
    spread = np.sqrt(np.maximum(values, 0.0) / n_units)
    offset = np.zeros(len(spread))
    if not centered:
        offset[0], spread[0] = min(1.0, spread[0]), 0.0
    return Frame(offset, spread, float(np.clip(2 * np.linalg.norm(spread), 1e-3, 1.0)))


def kmeans_noise(mu: float, n_iterations: int) -> tuple[float, float]:
    """Split mu over the releases of a k-means.

    Parameters
    ----------
    mu
        Of all of them together.
    n_iterations
        Lloyd steps.

    Returns
    -------
    Noise multiplier of the scored starts, and of each Lloyd step.
    """
    return 1 / np.sqrt(START_SHARE * mu**2), 1 / np.sqrt((1 - START_SHARE) * mu**2 / n_iterations)


def kmeans_events(mu: float, *, n_iterations: int, n_starts: int, stage: str = "kmeans") -> list[Event]:
    """Return the releases of one private k-means, for the ledger.

    Parameters
    ----------
    mu, n_iterations, n_starts
        As in :func:`private_kmeans`.
    stage
        Name in the ledger.
    """
    sigma_start, sigma_step = kmeans_noise(mu, n_iterations)
    starts = Event(
        stage=stage, kind="gaussian", sensitivity=float(np.sqrt(n_starts)), noise_multiplier=float(sigma_start)
    )
    lloyd = Event(
        stage=stage,
        kind="gaussian",
        sensitivity=float(np.sqrt(2)),
        noise_multiplier=float(sigma_step),
        steps=n_iterations,
    )
    return [starts, lloyd]


def in_ball(z: npt.ArrayLike, radius: float) -> Floats:
    """Cut rows (n, d) to norm ``radius``; a row that is not finite becomes zeros."""
    return np.asarray(unit_rows(np.asarray(z, dtype=np.float64) / radius) * radius)


def random_starts(n_starts: int, n_clusters: int, n_columns: int, generator: np.random.Generator) -> Floats:
    """Draw starts (S, K, d) in the unit ball that look at no data: far apart within each start.

    Parameters
    ----------
    n_starts
        S.
    n_clusters
        K.
    n_columns
        d.
    generator
        Any; the starts are public.
    """
    starts = np.empty((n_starts, n_clusters, n_columns))
    for s in range(n_starts):
        pool = generator.standard_normal((50 * n_clusters, n_columns))
        pool /= np.linalg.norm(pool, axis=1, keepdims=True)
        pool *= generator.random((len(pool), 1)) ** (1 / n_columns)
        chosen = [0]
        distance = np.full(len(pool), np.inf)
        for _ in range(n_clusters - 1):
            distance = np.minimum(distance, ((pool - pool[chosen[-1]]) ** 2).sum(axis=1))
            chosen.append(int(distance.argmax()))
        starts[s] = pool[chosen]
    return starts


def _squared(z: Floats, centers: Floats) -> Floats:
    """Squared distances (n, K)."""
    cross = (z**2).sum(axis=1)[:, None] - 2 * z @ centers.T + (centers**2).sum(axis=1)
    return np.asarray(np.maximum(cross, 0.0))


def score_starts(z: Floats, starts: Floats) -> Floats:
    """Objectives (n, S) of every cell under every start, each in [0, 1]: squared distance over that of the diameter.

    Parameters
    ----------
    z
        (n, d) in the unit ball.
    starts
        (S, K, d).
    """
    return np.stack([np.clip(_squared(z, c).min(axis=1) / 4, 0.0, 1.0) for c in starts], axis=1)


def lloyd_contributions(z: Floats, centers: Floats) -> Floats:
    """Contribution (n, K (d + 1)) of every cell: its place and a one in the columns of its cluster; norm <= sqrt(2).

    Parameters
    ----------
    z
        (n, d) in the unit ball.
    centers
        (K, d).
    """
    k, d = centers.shape
    own = _squared(z, centers).argmin(axis=1)
    out = np.zeros((len(z), k, d + 1))
    out[np.arange(len(z)), own, :d] = z
    out[np.arange(len(z)), own, d] = 1.0
    return out.reshape(len(z), -1)


def private_kmeans(
    z: npt.ArrayLike,
    n_clusters: int,
    *,
    mu: float,
    radius: float = 1.0,
    offset: Floats | None = None,
    spread: Floats | None = None,
    n_iterations: int = 5,
    n_starts: int = 10,
    units: npt.NDArray[np.intp] | None = None,
    generator: np.random.Generator,
) -> KMeansRelease:
    """Cluster rows; only noisy numbers leave.

    Parameters
    ----------
    z
        (n, d); rows are cut to the ball.
    n_clusters
        K.
    mu
        Of all releases together: sqrt(sum of (sensitivity / sd)^2).
    radius
        Of the ball, chosen without looking at the data.
    offset
        (d,) centre of the ball, public or private; None is 0.
    spread
        (d,) standard deviation of the starts around it, public or private; None draws them from the whole ball, which
        in many dimensions puts all cells nearest to one start.
    n_iterations
        Lloyd steps; each releases sums and counts, joint sensitivity sqrt(2).
    n_starts
        Starts that are drawn without data; one release of their objectives (sensitivity sqrt(n_starts)) picks one.
    units
        (n,) code of the unit of every cell; a unit contributes the mean of its cells. None: every cell is a unit.
    generator
        Secret in private use.

    Returns
    -------
    Centres and noisy sizes.

    Raises
    ------
    SetupError
        If K, the numbers of steps or starts, or the radius is not positive.
    """
    if min(n_clusters, n_iterations, n_starts) < 1 or not radius > 0:
        raise SetupError(
            f"Found n_clusters={n_clusters}, n_iterations={n_iterations}, n_starts={n_starts}, radius={radius}; "
            "expected positive numbers."
        )
    middle = 0.0 if offset is None else np.asarray(offset, dtype=np.float64)
    points = in_ball(np.asarray(z, dtype=np.float64) - middle, radius) / radius
    if spread is None:
        starts = random_starts(n_starts, n_clusters, points.shape[1], generator)
    else:
        drawn = generator.standard_normal((n_starts * n_clusters, points.shape[1])) * (spread / radius)
        starts = in_ball(drawn, 1.0).reshape(n_starts, n_clusters, -1)
    sigma_start, sigma_step = kmeans_noise(mu, n_iterations)
    scores = _unit_sum(score_starts(points, starts), units)
    scores = scores + generator.standard_normal(n_starts) * sigma_start * np.sqrt(n_starts)
    centers = starts[int(scores.argmin())]
    counts = np.zeros(n_clusters)
    for _ in range(n_iterations):
        total = _unit_sum(lloyd_contributions(points, centers), units)
        total = total + generator.standard_normal(total.shape) * sigma_step * np.sqrt(2)
        table = total.reshape(n_clusters, -1)
        counts = table[:, -1]
        moved = table[:, :-1] / np.maximum(counts, 1.0)[:, None]
        centers = in_ball(np.where(counts[:, None] < 1, centers, moved), 1.0)
    return KMeansRelease(centers * radius + middle, counts)


def _unit_sum(rows: Floats, units: npt.NDArray[np.intp] | None) -> Floats:
    """Sum of what units contribute: their cells' mean."""
    if units is None:
        return np.asarray(rows.sum(axis=0))
    weights = 1.0 / np.maximum(np.bincount(units), 1)[units]
    return weights @ rows
