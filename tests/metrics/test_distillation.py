"""Scores of distilled sets against brute force, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist, pdist
from scipy.stats import mannwhitneyu

import cellsmith as cs
from cellsmith._errors import SetupError
from cellsmith.metrics import distillation


@pytest.fixture
def clouds() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 20)
    x = rng.normal(size=(60, 4)) + 3.0 * np.repeat(np.eye(3, 4), 20, axis=0)
    rows = np.array([0, 5, 20, 27, 40])
    return x, x[rows] + 0.3 * rng.normal(size=(5, 4)), labels, labels[rows]


def test_coverage_counts_neighbourhoods_that_hold_a_row(clouds) -> None:
    x, y, *_ = clouds
    for k in (1, 5):
        held = 0
        for i in range(len(x)):
            others = np.sort(np.delete(np.linalg.norm(x - x[i], axis=1), i))
            held += np.linalg.norm(y - x[i], axis=1).min() <= others[k - 1]
        assert cs.metrics.coverage(x, y, n_neighbors=k) == pytest.approx(held / len(x))
    assert cs.metrics.coverage(x, x) == 1.0
    assert cs.metrics.coverage(x, x[:1] + 1e3) == 0.0


def test_hausdorff_is_the_farthest_cell_and_its_quantiles(clouds) -> None:
    x, y, *_ = clouds
    gaps = cdist(x, y).min(axis=1)
    assert cs.metrics.hausdorff(x, y) == pytest.approx(gaps.max())
    assert cs.metrics.hausdorff(x, y, quantile=0.9) == pytest.approx(np.quantile(gaps, 0.9))
    assert cs.metrics.hausdorff(x, x) == pytest.approx(0.0, abs=1e-6)


def test_diversity_is_a_ratio_of_squared_distances(clouds) -> None:
    x, y, labels, own = clouds
    ratios = [
        (pdist(y[own == name]) ** 2).mean() / (pdist(x[labels == name]) ** 2).mean()
        for name in ("a", "b")  # "c" has one row
    ]
    assert cs.metrics.diversity(x, y, labels=labels, distilled_labels=own) == pytest.approx(np.mean(ratios))
    assert cs.metrics.diversity(x, x, labels=labels, distilled_labels=labels) == pytest.approx(1.0)
    collapsed = np.repeat(x[:1], 3, axis=0)
    assert cs.metrics.diversity(x, collapsed, labels=labels, distilled_labels=["a"] * 3) == 0.0
    assert np.isnan(cs.metrics.diversity(x, x[:1], labels=labels, distilled_labels=["a"]))


def test_gene_moments_are_correlations_over_genes() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.poisson(1.5, size=(40, 12)).astype(float), rng.poisson(2.0, size=(9, 12)).astype(float)
    found = cs.metrics.gene_moments(sparse.csr_matrix(x), y)
    expected = {
        "mean": np.corrcoef(x.mean(0), y.mean(0))[0, 1],
        "variance": np.corrcoef(x.var(0), y.var(0))[0, 1],
        "zero_fraction": np.corrcoef((x == 0).mean(0), (y == 0).mean(0))[0, 1],
    }
    assert found == pytest.approx(expected)
    assert np.isnan(cs.metrics.gene_moments(x, np.ones((3, 12)))["mean"])


def test_markers_are_those_of_scipy() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat(["a", "b"], 15)
    x = rng.normal(size=(30, 20))
    x[:15, :6] += 2.0
    y, own = x[[0, 1, 2, 3, 15, 16, 17, 18]] + 0.8 * rng.normal(size=(8, 20)), np.repeat(["a", "b"], 4)

    def top(table, mask):
        p = [mannwhitneyu(table[mask, g], table[~mask, g]).pvalue for g in range(20)]
        gap = table[mask].mean(0) - table[~mask].mean(0)
        order = sorted((g for g in range(20) if gap[g] > 0), key=lambda g: (p[g], -gap[g]))
        return set(order[:5])

    overlaps = []
    for name in ("a", "b"):
        a, b = top(x, labels == name), top(y, own == name)
        overlaps.append(len(a & b) / len(a | b))
    found = cs.metrics.marker_overlap(x, sparse.csr_matrix(y), labels=labels, distilled_labels=own, n_top=5)
    assert found == pytest.approx(np.mean(overlaps))
    assert cs.metrics.marker_overlap(x, x, labels=labels, distilled_labels=labels) == 1.0


def test_a_copied_cell_has_ratio_zero(clouds) -> None:
    x, y, *_ = clouds
    ratio = cs.metrics.neighbour_distance_ratio(x, np.vstack([x[:1], y]))
    gaps = np.sort(cdist(y, x), axis=1)
    np.testing.assert_allclose(ratio[1:], gaps[:, 0] / gaps[:, 1])
    assert ratio[0] == 0.0


def test_the_membership_attack_sees_copies(clouds) -> None:
    x, *_ = clouds
    assert distillation.membership_auc(x[:30], x[30:], x[:30]) > 0.95
    assert distillation.membership_auc is cs.metrics.membership_auc


def test_what_does_not_fit_is_named(clouds) -> None:
    x, y, labels, own = clouds
    with pytest.raises(SetupError, match="expected rows on both sides"):
        cs.metrics.hausdorff(x, y[:, :2])
    with pytest.raises(SetupError, match="quantile=0"):
        cs.metrics.hausdorff(x, y, quantile=0)
    with pytest.raises(SetupError, match="more than n_neighbors=5"):
        cs.metrics.coverage(x[:5], y)
    with pytest.raises(SetupError, match="one a row"):
        cs.metrics.diversity(x, y, labels=labels[:3], distilled_labels=own)
    with pytest.raises(SetupError, match="at least two on both sides"):
        cs.metrics.marker_overlap(x, y, labels=labels, distilled_labels=["a"] * 5)
    with pytest.raises(SetupError, match="same genes"):
        cs.metrics.gene_moments(x, y[:, :2])
    with pytest.raises(SetupError, match="at least two"):
        cs.metrics.neighbour_distance_ratio(x[:1], y)
