"""Every two-sample score against a second, slower implementation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from cellsmith.metrics import _two_sample as two_sample


@pytest.fixture(scope="module")
def clouds() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    return generator.normal(size=(60, 4)), 0.8 * generator.normal(size=(50, 4)) + 0.3


def others(points: np.ndarray) -> np.ndarray:
    """Indices of all other points, nearest first."""
    distance = cdist(points, points)
    np.fill_diagonal(distance, -1.0)
    return np.argsort(distance, axis=1, kind="stable")[:, 1:]


def test_mmd_is_the_unbiased_estimate(clouds):
    x, y = clouds
    pooled = cdist(np.vstack(clouds), np.vstack(clouds), "sqeuclidean")
    median = np.median(pooled[np.triu_indices(len(pooled), 1)])
    total = 0.0
    for scale in (0.25, 0.5, 1, 2, 4):

        def kernel(a, b, width=scale * median):
            return np.exp(-((a - b) ** 2).sum() / width)

        xx = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
        yy = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
        total += xx + yy - 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert two_sample.mmd(x, y) == pytest.approx(total / 5, abs=1e-12)


def test_mmd_of_one_distribution_has_mean_zero():
    generator = np.random.default_rng(0)
    draws = [two_sample.mmd(generator.normal(size=(60, 3)), generator.normal(size=(60, 3))) for _ in range(40)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / np.sqrt(len(draws))
    assert min(draws) < 0 < max(draws)
    assert two_sample.mmd(np.ones((30, 2)), np.ones((30, 2))) == 0.0


def test_wasserstein_is_exact(clouds):
    x, y = clouds[0][:50], clouds[1]
    cost = cdist(x, y, "sqeuclidean")
    exact = np.sqrt(cost[linear_sum_assignment(cost)].mean())
    assert two_sample.wasserstein(x, y) == pytest.approx(exact, rel=1e-9)
    assert two_sample.wasserstein(x, x + 2.0) == pytest.approx(4.0)  # a shift by 2 in each of 4 dimensions
    assert two_sample.wasserstein(clouds[0], clouds[1]) == pytest.approx(two_sample.wasserstein(*clouds[::-1]))


def test_ilisi_is_the_scaled_inverse_simpson_index(clouds):
    pooled, side = np.vstack(clouds), np.r_[np.zeros(60), np.ones(50)]
    share = side[others(pooled)[:, :20]].mean(axis=1)
    expected = np.median([1 / (p**2 + (1 - p) ** 2) for p in share]) - 1
    assert two_sample.ilisi(*clouds, n_neighbors=20) == pytest.approx(expected)
    assert two_sample.ilisi(clouds[0], clouds[0] + 100.0) == 0.0


def test_one_nn_counts_neighbours_of_the_own_side(clouds):
    pooled, side = np.vstack(clouds), np.r_[np.zeros(60), np.ones(50)]
    assert two_sample.one_nn(*clouds) == pytest.approx((side[others(pooled)[:, 0]] == side).mean())
    assert two_sample.one_nn(clouds[0], clouds[0] + 100.0) == 1.0


def test_precision_recall_coverage_by_hand(clouds):
    x, y = clouds
    radius_x = np.sort(cdist(x, x), axis=1)[:, 5]
    radius_y = np.sort(cdist(y, y), axis=1)[:, 5]
    between = cdist(x, y)
    expected = (
        np.mean([(between[:, j] <= radius_x).any() for j in range(50)]),
        np.mean([(between[i] <= radius_y).any() for i in range(60)]),
        np.mean([(between[i] <= radius_x[i]).any() for i in range(60)]),
    )
    assert two_sample.precision_recall_coverage(x, y) == pytest.approx(expected)


def test_collapse_keeps_precision_and_loses_recall_and_coverage():
    generator = np.random.default_rng(1)
    real = generator.normal(size=(200, 3))
    collapsed = 0.05 * generator.normal(size=(200, 3))
    precision, recall, coverage = two_sample.precision_recall_coverage(real, collapsed)
    assert precision > 0.95
    assert recall < 0.05
    assert coverage < 0.5


def test_forest_is_scored_on_unseen_cells():
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=(150, 5)), generator.normal(size=(150, 5))
    # Scored on its own training cells a forest would reach 1 here.
    assert 0.35 < two_sample.forest_auc(x, y, seed=0) < 0.65
    assert two_sample.forest_auc(x, y + 4.0, seed=0) > 0.99
    assert two_sample.forest_auc(x, y, seed=1) == two_sample.forest_auc(x, y, seed=1)
