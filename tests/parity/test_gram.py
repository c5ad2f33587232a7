"""Implicit operator against the dense formula of the public code, written separately."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from cellsmith._errors import SetupError, SizeError
from cellsmith.math import gram


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def implicit(y: np.ndarray, m: np.ndarray, *, sparse: bool = False) -> np.ndarray:
    block = gram.observed_block(sp.csr_matrix(y), sp.csr_matrix(m)) if sparse else gram.dense_block(y, m)
    blocks = gram.row_blocks(block)
    stats = gram.observed_stats(blocks)
    p = gram.fit_rank1(stats, legacy=True)
    factors = gram.overlap_factors(p, generator=rng())
    assert factors.rank == 1
    assert factors.error == 0
    z = gram.centred_blocks(blocks, stats.means, dtype=np.float64)
    operator = gram.gram_operator(z, factors, p.row_sums)
    return np.concatenate([rows for _, rows in gram.gram_blocks(operator)])


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    r = rng(seed)
    n, d = int(r.integers(5, 60)), int(r.integers(5, 80))
    m = r.random((n, d)) < np.outer(r.uniform(0.1, 1, n), r.uniform(0.1, 1, d))
    m[np.arange(n), r.integers(0, d, n)] = True
    m[r.integers(0, n, d), np.arange(d)] = True
    return r.normal(r.normal(), r.uniform(0.1, 10), (n, d)), m.astype(float)


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_two_hundred_random_arrays():
    inflated = 0
    for seed in range(200):
        y, m = random_case(seed)
        assert largest_difference(implicit(y, m, sparse=bool(seed % 2)), gram.dense_legacy(y, m)) <= 1e-12
        inflated += (np.outer(m.mean(1), m.mean(0)) > m.mean()).any()
    assert inflated > 20  # both cases of c' were met


def test_a_larger_array():
    r = rng(1)
    m = (r.random((400, 600)) < np.outer(r.uniform(0.2, 1, 400), r.uniform(0.2, 1, 600))).astype(float)
    m[0], m[:, 0] = 1, 1
    y = r.normal(size=(400, 600))
    assert largest_difference(implicit(y, m), gram.dense_legacy(y, m)) <= 1e-13


def test_a_fixed_array_by_hand():
    """Two cells, two features, three entries; c' = .75 = c."""
    y, m = np.array([[1.0, 5.0], [3.0, np.nan]]), np.array([[1.0, 1.0], [1.0, 0.0]])
    # mu = (2, 5), Z = ((-1, 0), (1, 0)), r = (1, .5), c = (1, .5); the largest product r c is 1 > .75
    p = np.array([[1, 0.5], [0.5, 0.25]])
    expected = np.array([[1 / 1.5, -1 / (p[0] @ p[1])], [-1 / (p[0] @ p[1]), 1 / 0.75]])
    np.testing.assert_allclose(gram.dense_legacy(y, m), expected, rtol=1e-14)
    np.testing.assert_allclose(implicit(y, m), expected, rtol=1e-14)


def test_complete_data_give_the_gram_per_feature():
    y = rng(2).normal(size=(12, 7))
    z = y - y.mean(0)
    np.testing.assert_allclose(gram.dense_legacy(y, np.ones((12, 7))), z @ z.T / 7)


def test_refusals():
    with pytest.raises(SizeError, match="5001 cells"):
        gram.dense_legacy(np.ones((5001, 1)), np.ones((5001, 1)))
    with pytest.raises(SetupError, match="no observed entry"):
        gram.dense_legacy(np.ones((2, 2)), np.array([[1, 0], [1, 0]]))
    with pytest.raises(SetupError, match="expected the same"):
        gram.dense_legacy(np.ones((2, 2)), np.ones((2, 3)))
