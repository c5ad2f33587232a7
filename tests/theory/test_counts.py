"""Laws of the count models: recovery of the dispersion (E8), exact-total decoding (E21), thinning, rounding."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import gammaln

from cellsmith.math.counts import (
    binomial_split,
    binomial_thin,
    exact_total,
    largest_remainder,
    library_totals,
    nb_counts,
    refit_dispersion,
)

COUNTS = hnp.arrays(np.int64, st.tuples(st.integers(1, 12), st.integers(1, 9)), elements=st.integers(0, 50))


def nb_sample(theta, n_cells: int, seed: int):
    """Means between about 2 and 40 counts, and counts around them."""
    rng = np.random.default_rng(seed)
    mean = rng.lognormal(0, 0.4, (n_cells, 1)) * np.exp(rng.uniform(np.log(2), np.log(40), np.size(theta)))
    return rng.poisson(rng.gamma(theta, 1.0, mean.shape) * mean / theta), mean


@pytest.fixture(scope="module")
def recovered():
    theta = np.repeat([0.1, 1.0, 10.0, 100.0], 15)
    x, mean = nb_sample(theta, 5_000, 0)
    x = sp.csr_matrix(x)
    passes = []

    def batches():
        passes.append(1)
        return ((x[i : i + 1_000], mean[i : i + 1_000]) for i in range(0, 5_000, 1_000))

    return theta, x.toarray(), mean, refit_dispersion(batches, np.full(60, 1.0)), len(passes)


@pytest.mark.parametrize(("truth", "limit"), [(0.1, 0.10), (1.0, 0.10), (10.0, 0.10), (100.0, 0.25)])
def test_dispersion_is_recovered(recovered, truth, limit):
    theta, _, _, fitted, _ = recovered
    assert np.median(np.abs(fitted[theta == truth] / truth - 1)) <= limit


def log_likelihood(x, mean, theta):
    return np.sum(
        gammaln(x + theta)
        - gammaln(theta)
        - gammaln(x + 1)
        - theta * np.log1p(mean / theta)
        + x * (np.log(mean) - np.log(theta + mean)),
        axis=0,
    )


def test_score_is_zero_at_the_fit_and_a_grid_agrees(recovered):
    _, x, mean, fitted, passes = recovered
    assert passes <= 30
    best = log_likelihood(x, mean, fitted)
    width = 1e-3
    up, down = (log_likelihood(x, mean, fitted * np.exp(s * width)) for s in (1, -1))
    bend = (up + down - 2 * best) / width**2
    inside = (fitted > 0.011) & (fitted < 9_900)
    # distance of the zero of the score, in log theta
    assert np.abs((up - down) / (2 * width) / bend)[inside].max() < 1e-4
    for shift in np.linspace(-2, 2, 21):
        assert (log_likelihood(x, mean, np.clip(fitted * np.exp(shift), 1e-2, 1e4)) <= best + 1e-6).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.02, 500))
def test_refit_stays_in_bounds_and_forgets_its_start(seed, start):
    x, mean = nb_sample(np.array([0.3, 3.0]), 80, seed)
    fitted = refit_dispersion(lambda: [(x, mean)], np.full(2, start))
    assert ((fitted >= 0.99e-2) & (fitted <= 1.01e4)).all()
    again = refit_dispersion(lambda: [(x, mean)], np.full(2, 1.0))
    np.testing.assert_allclose(log_likelihood(x, mean, fitted), log_likelihood(x, mean, again), atol=1e-5)


def test_exact_total_has_the_asked_mean():
    rng = np.random.default_rng(2)
    rho = rng.dirichlet(np.full(150, 3.0))
    theta = rng.uniform(1.0, 5.0, 150)
    n, total = 40_000, 500
    x = exact_total(np.tile(rho, (n, 1)), theta, total, generator=np.random.default_rng(0))
    assert (library_totals(x) == total).all()
    mean = np.asarray(x.mean(axis=0)).ravel() / total
    dense = x.toarray() / total
    standard_error = dense.std(axis=0) / np.sqrt(n)
    asked = (rho < 0.02) & (rho > 1e-4)
    assert (np.abs(mean - rho)[asked] <= 0.01 * rho[asked] + 4 * standard_error[asked]).all()
    # without the correction the strong genes of low theta would be off by their factor; the factor's formula is checked
    factor = 1 - rho / theta + (rho**2 / theta).sum()
    lam = rng.gamma(theta, 1, (n, 150)) * rho / theta
    plain = (lam / lam.sum(1, keepdims=True)).mean(0)
    strong = np.argsort(-rho)[:20]
    np.testing.assert_allclose(plain[strong] / rho[strong], factor[strong], atol=6e-3)


def test_exact_total_is_overdispersed_as_asked():
    n, n_genes, total = 20_000, 400, 2_000
    theta = np.repeat([0.5, 2.0, 20.0, 1e4], 100)
    x = exact_total(np.full((n, n_genes), 1 / n_genes), theta, total, generator=np.random.default_rng(1)).toarray()
    mean, variance = x.mean(0), x.var(0)
    expected = mean + mean**2 / theta
    # sharing a fixed total changes variances by about 1 / G and by the spread of the sum
    assert np.abs(np.median((variance / expected).reshape(4, 100), axis=1) - 1).max() < 0.03


@pytest.mark.parametrize("total", [5, 40])
def test_both_ways_to_draw_a_multinomial_have_its_law(total):
    # 10 genes: a total of 5 uses sorted uniforms, one of 40 conditional binomials
    p = np.arange(1, 11) / 55
    x = exact_total(np.tile(p, (30_000, 1)), np.full(10, 1e9), total, generator=np.random.default_rng(3)).toarray()
    np.testing.assert_allclose(x.mean(0), total * p, atol=4 * np.sqrt(total * p / 30_000).max())
    covariance = total * (np.diag(p) - np.outer(p, p))
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.03 * covariance.max())


def test_nb_counts_have_mean_and_variance():
    rho = np.array([0.1, 0.2, 0.7])
    theta = np.array([0.5, 5.0, 50.0])
    logits = np.tile(np.log(0.25 / 0.75), (60_000, 3))
    x = nb_counts(np.tile(rho, (60_000, 1)), theta, 200.0, generator=np.random.default_rng(4)).toarray()
    mean = 200 * rho
    np.testing.assert_allclose(x.mean(0), mean, rtol=0.02)
    np.testing.assert_allclose(x.var(0), mean + mean**2 / theta, rtol=0.05)
    zi = nb_counts(np.tile(rho, (60_000, 1)), theta, 200.0, dropout_logits=logits, generator=np.random.default_rng(5))
    # an all-zero cell is redrawn, hence the conditional mean
    np.testing.assert_allclose(np.asarray(zi.mean(0)).ravel(), 0.75 * mean / (1 - 0.25**3), rtol=0.03)


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(0, 2**31))
def test_split_is_a_partition(x, seed):
    for form in (x, sp.csr_matrix(x)):
        a, b = binomial_split(form, generator=np.random.default_rng(seed))
        assert (np.asarray((a + b - form).sum(axis=None)) == 0).all()
        assert a.min() >= 0
        assert b.min() >= 0


def test_thinned_poisson_is_poisson():
    x = np.random.default_rng(0).poisson(8.0, (400, 100))
    out = binomial_thin(x, 0.25, generator=np.random.default_rng(1))
    assert out.mean() == pytest.approx(2.0, rel=0.02)
    assert out.var() == pytest.approx(2.0, rel=0.03)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30).filter(lambda s: sum(s) > 1e-3), st.integers(0, 10_000))
def test_largest_remainder_is_exact_and_near(shares, total):
    out = largest_remainder(shares, total)
    exact = np.asarray(shares) * total / np.sum(shares)
    assert out.sum() == total
    assert (np.abs(out - exact) < 1 + 1e-6).all()
    assert (out[np.asarray(shares) == 0] == 0).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 40),
    st.integers(0, 2**31),
    st.floats(0.01, 1e4),
    st.floats(0.01, 500),
    st.booleans(),
)
def test_totals_are_exact_whatever_the_parameters(n, n_genes, seed, theta, library, inflated):
    rng = np.random.default_rng(seed)
    rho = rng.dirichlet(np.full(n_genes, 0.2), n) + 1e-30
    logits = rng.normal(0, 20, (n, n_genes)) if inflated else None
    x = exact_total(rho, np.full(n_genes, theta), library, dropout_logits=logits, generator=rng)
    np.testing.assert_array_equal(library_totals(x), max(1, round(library)))
    assert x.nnz == 0 or x.data.min() > 0
