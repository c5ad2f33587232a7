"""The formula that the operator stands for, and what is published and what is ours."""

from __future__ import annotations

import numpy as np

from cellsmith.math import gram
from cellsmith.model.bcpca.equations import DEVIATIONS, EQUATIONS, corrected_gram, naive_gram


def test_first_deviation_states_what_is_ours() -> None:
    assert DEVIATIONS[0].subject == "the method as a whole"
    assert "no claim to reproduce" in DEVIATIONS[0].change
    assert list(EQUATIONS) == [f"E{i}" for i in range(1, 22)]


def test_corrected_gram_is_unbiased_for_exchangeable_features_and_the_naive_one_is_not() -> None:
    """E4: the mean over masks meets the kernel; E2 misses it by many standard errors."""
    generator = np.random.default_rng(0)
    n, d, repeats = 6, 40, 3000
    signs = generator.choice([-1.0, 1.0], d)
    y = generator.normal(size=(n, 1)) * signs  # y_id y_jd is the same for every d
    p = 1 / (1 + np.exp(-(generator.normal(size=(n, 1)) + generator.normal(size=d))))
    kernel = y @ y.T / d
    corrected, naive = np.zeros((repeats, n, n)), np.zeros((repeats, n, n))
    for r in range(repeats):
        z = np.where(generator.random((n, d)) < p, y, 0.0)
        corrected[r], naive[r] = corrected_gram(z, p), naive_gram(z) / d
    for estimate, most in ((corrected, 5.0), (naive, None)):
        z = (estimate.mean(axis=0) - kernel) / (estimate.std(axis=0) / np.sqrt(repeats))
        assert np.abs(z).max() < most if most else np.abs(z).max() > 50


def test_operator_is_the_formula() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(30, 50))
    x[generator.random(x.shape) < 0.4] = np.nan
    blocks = gram.row_blocks(gram.dense_block(x))
    stats = gram.observed_stats(blocks)
    p = gram.fit_logistic(stats.row_counts, stats.col_counts)
    factors = gram.overlap_factors(p, tol=1e-9, generator=generator)
    z = gram.centred_blocks(blocks, stats.means, dtype=np.float64)
    operator = gram.gram_operator(z, factors, p.row_sums)
    expected = corrected_gram(np.nan_to_num(x - stats.means), p.block(np.arange(30)))
    np.testing.assert_allclose(operator.apply(np.eye(30)), expected, atol=1e-8)
