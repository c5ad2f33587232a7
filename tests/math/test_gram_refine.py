"""Held-out entries, regression on observed features, and the two refinements."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from cellsmith._errors import SetupError
from cellsmith.math import gram


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Case:
    """Low-rank data under a logistic mask, and the corrected fit of them."""

    def __init__(self, *, form="dense", step=None, noise=1.0, n=200, d=150, seed=0):
        r = rng(seed)
        self.u = r.normal(size=(n, 2)) * [2, 1.5]
        self.y = 1 + self.u @ r.normal(size=(2, d)) + noise * r.normal(size=(n, d))
        self.m = r.random((n, d)) < 1 / (1 + np.exp(-r.normal(-0.5, 1, n)[:, None] - r.normal(0, 1, d)))
        self.m[np.arange(n), np.arange(n) % d] = True
        self.m[np.arange(d) % n, np.arange(d)] = True
        if form == "dense":
            block = gram.dense_block(self.y, self.m)
        elif form == "observed":
            block = gram.observed_block(sp.csr_matrix(self.y), sp.csr_matrix(self.m))
        else:
            block = gram.missing_block(sp.csr_matrix(self.y), sp.csr_matrix(~self.m))
        self.blocks = gram.row_blocks(block, step)
        self.stats = gram.observed_stats(self.blocks)
        self.means = self.stats.means
        self.z = gram.centred_blocks(self.blocks, self.means, dtype=np.float64)
        self.p = gram.fit_logistic(self.stats.row_counts, self.stats.col_counts)
        factors = gram.overlap_factors(self.p, generator=rng(1))
        self.operator = gram.gram_operator(self.z, factors, self.p.row_sums)
        self.eigen = gram.top_eigenpairs(self.operator, 2, generator=rng(2))
        self.how = {"col_rates": self.stats.col_rates, "self_overlap": self.p.self_overlap}
        self.loadings = gram.loadings(self.operator, self.eigen, **self.how)

    def truth(self):
        return self.u - self.u.mean(0)

    def fit(self):
        return gram.thinned_fit(self.operator, self.eigen, generator=rng(3), **self.how)


def held_mask(held: gram.HeldOut, shape: tuple[int, int]) -> np.ndarray:
    out = np.zeros(shape, dtype=bool)
    for start, rows, features, _ in held.entries():
        out[start + rows, features] = True
    return out


class TestHeldOut:
    @pytest.mark.parametrize("form", ["dense", "observed", "missing"])
    def test_the_same_entries_however_they_are_read(self, form):
        chosen = [
            held_mask(gram.hold_out(Case(form=form, step=step).blocks, seed=11), (200, 150)) for step in (None, 33)
        ]
        np.testing.assert_array_equal(chosen[0], chosen[1])
        np.testing.assert_array_equal(chosen[0], held_mask(gram.hold_out(Case().blocks, seed=11), (200, 150)))

    def test_a_share_of_the_observed_ones(self):
        case = Case()
        held = gram.hold_out(case.blocks, seed=11)
        gone = held_mask(held, (200, 150))
        assert not gone[~case.m].any()
        assert gone.sum() / case.m.sum() == pytest.approx(0.05, abs=0.005)
        assert np.abs(np.corrcoef(gone[case.m].astype(float), np.argwhere(case.m)[:, 0])[0, 1]) < 0.03
        left = gram.observed_stats(held.blocks)
        np.testing.assert_array_equal(left.row_counts, (case.m & ~gone).sum(1))
        other = held_mask(gram.hold_out(case.blocks, seed=12), (200, 150))
        assert (gone & other).sum() < 0.2 * gone.sum()
        values = np.concatenate([v for *_, v in held.entries()])
        np.testing.assert_allclose(values, case.y[gone])

    def test_bad_share(self):
        with pytest.raises(SetupError, match="between 0 and 1"):
            gram.hold_out(Case().blocks, share=0, seed=1)

    def test_errors_against_a_loop(self):
        case = Case(step=64)
        held = gram.hold_out(case.blocks, seed=11)
        gone = held_mask(held, (200, 150))
        rest = gram.centred_blocks(held.blocks, case.means, dtype=np.float64)
        basis = np.linalg.qr(case.loadings)[0]
        squares = []
        for i in range(200):
            seen = case.m[i] & ~gone[i]
            if not gone[i].any():
                continue
            c = np.linalg.lstsq(basis[seen], (case.y[i] - case.means)[seen], rcond=None)[0]
            squares.extend((case.y[i] - case.means - basis @ c)[gone[i]] ** 2)
        found = gram.prediction_error(held, gram.regress(rest, basis)[0], basis, means=case.means)
        assert found == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-3)  # a ridge helps cells with hardly any entry

    def test_better_loadings_predict_better(self):
        case = Case()
        held = gram.hold_out(case.blocks, seed=11)
        rest = gram.centred_blocks(held.blocks, case.means)
        error = []
        for axes in (case.loadings, rng().normal(size=(150, 2))):
            basis = np.linalg.qr(axes)[0]
            error.append(gram.prediction_error(held, gram.regress(rest, basis)[0], basis, means=case.means))
        assert error[0] < 0.6 * error[1]


class TestRegression:
    @pytest.mark.parametrize("form", ["dense", "observed", "missing"])
    def test_least_squares_on_what_was_observed(self, form):
        case = Case(form=form, step=90)
        basis = np.linalg.qr(case.loadings)[0]
        scores, accepted = gram.regress(case.z, basis)
        for i in np.flatnonzero(accepted)[:20]:
            seen = case.m[i]
            expected = np.linalg.lstsq(basis[seen], (case.y[i] - case.means)[seen], rcond=None)[0]
            np.testing.assert_allclose(scores[i], expected, atol=1e-7)

    def test_the_row_filter(self):
        """Cells take part only where the smallest singular value reaches sqrt(observed share) / 10."""
        case = Case()
        basis = np.linalg.qr(case.loadings)[0]
        _, accepted = gram.regress(case.z, basis)
        smallest = np.array([np.linalg.svd(basis[m], compute_uv=False)[-1] if m.sum() > 1 else 0.0 for m in case.m])
        np.testing.assert_array_equal(accepted, smallest >= np.sqrt(case.m.mean(1)) / 10)
        lone = gram.dense_block(np.ones((1, 150)), np.eye(150)[:1])
        scores, accepted = gram.regress(gram.centred_blocks(gram.row_blocks(lone), case.means), basis)
        assert not accepted[0]
        assert np.isfinite(scores).all()

    def test_a_prior_shrinks(self):
        case = Case()
        basis = np.linalg.qr(case.loadings)[0]
        free, tied = gram.regress(case.z, basis)[0], gram.regress(case.z, basis, np.eye(2))[0]
        assert np.linalg.norm(tied) < np.linalg.norm(free)
        z, m = case.m * (case.y - case.means), case.m
        i = 17
        expected = np.linalg.solve(basis[m[i]].T @ basis[m[i]] + np.eye(2), basis.T @ z[i])
        np.testing.assert_allclose(tied[i], expected)


class TestPrime:
    def test_it_finds_the_space_when_there_is_no_noise(self):
        case = Case(noise=0.0)
        # means over observed entries are off where they depend on the cells: that much error stays
        refined = gram.prime(case.blocks, case.y.mean(0), case.loadings, seed=1, fit=case.fit(), dtype=np.float64)
        assert gram.sin_theta(refined.scores, case.truth()) < 1e-3
        assert refined.improved

    def test_it_improves_and_says_so(self):
        case = Case(noise=2.0, n=300, d=300)
        refined = gram.prime(case.blocks, case.means, case.loadings, seed=1, fit=case.fit(), dtype=np.float64)
        assert refined.improved
        assert refined.heldout_after < refined.heldout_before
        before = gram.sin_theta(case.eigen.vectors, case.truth())
        assert gram.sin_theta(refined.scores, case.truth()) < before - 0.02
        np.testing.assert_allclose(refined.loadings.T @ refined.loadings, np.eye(2), atol=1e-10)
        again, _ = gram.regress(case.z, refined.loadings, refined.prior)
        np.testing.assert_allclose(again, refined.scores, atol=1e-8)
        assert (np.diff(refined.values) <= 0).all()

    def test_the_guard_refuses_what_does_not_help(self):
        """Pure noise has nothing to find, and a start that has seen the held-out entries is hard to beat."""
        case = Case()
        r = rng(9)
        y = r.normal(size=(200, 150))
        blocks = gram.row_blocks(gram.dense_block(y, case.m))
        means = gram.observed_stats(blocks).means
        z = gram.centred_blocks(blocks, means)
        start = gram.top_eigenpairs(gram.mean_operator(z), 2, generator=rng(2))
        axes = gram.loadings(gram.mean_operator(z), start)
        assert not gram.prime(blocks, means, axes, seed=1, max_rounds=20).improved

    @pytest.mark.parametrize("form", ["observed", "missing"])
    def test_sparse_forms_agree_with_the_dense_one(self, form):
        case = Case()
        limits = {"seed": 1, "dtype": np.float64, "max_rounds": 4}
        expected = gram.prime(case.blocks, case.means, case.loadings, **limits)
        sparse = Case(form=form, step=64)
        found = gram.prime(sparse.blocks, case.means, case.loadings, keep=True, **limits)
        assert gram.sin_theta(found.loadings, expected.loadings) < 1e-8
        assert found.heldout_before == pytest.approx(expected.heldout_before)
        assert found.heldout_after == pytest.approx(expected.heldout_after)

    def test_a_step_at_the_fixed_point_stays_there(self):
        case = Case(noise=0.0)
        z = gram.centred_blocks(case.blocks, np.ones(150), dtype=np.float64)
        truth = np.linalg.svd(case.y - 1, full_matrices=False)[2][:2].T
        at = gram.Projection(truth, np.eye(2) * 100, 1e-12)
        after, values = gram.prime_step(z, at)
        assert gram.sin_theta(after.basis, truth) < 1e-6
        used = gram.regress(z, truth)[1]
        np.testing.assert_allclose(values, np.linalg.svd((case.y - 1)[used], compute_uv=False)[:2] ** 2, rtol=1e-6)

    def test_rounds_are_reported(self):
        case, seen = Case(), []
        refined = gram.prime(case.blocks, case.means, case.loadings, seed=1, max_rounds=3, step=seen.append)
        assert tuple(seen) == refined.history


class TestHetero:
    def test_the_diagonal_becomes_that_of_its_own_low_rank_part(self):
        case = Case()
        operator, eigen = gram.hetero(case.operator, case.eigen, generator=rng(1))
        low = (eigen.vectors**2) @ eigen.values
        np.testing.assert_allclose(operator.diagonal, low, rtol=1e-2)
        off = np.concatenate([rows for _, rows in gram.gram_blocks(operator)])
        before = np.concatenate([rows for _, rows in gram.gram_blocks(case.operator)])
        np.testing.assert_allclose(off[~np.eye(200, dtype=bool)], before[~np.eye(200, dtype=bool)], atol=1e-10)

    def test_dense_and_implicit_agree(self):
        case = Case()
        dense = gram.dense_operator(case.z, case.p)
        pairs = gram.top_eigenpairs(dense, 2, generator=rng())
        a = gram.hetero(dense, pairs, generator=rng(1))[1]
        b = gram.hetero(case.operator, case.eigen, generator=rng(1))[1]
        np.testing.assert_allclose(a.values, b.values, rtol=1e-3)
        assert not np.shares_memory(a.vectors, pairs.vectors)
        np.testing.assert_array_equal(dense.dense, gram.dense_operator(case.z, case.p).dense)


def test_thinned_operator_estimates_the_same_gram():
    case = Case(n=200, d=400, noise=0.5)
    whole = np.concatenate([rows for _, rows in gram.gram_blocks(case.operator)])
    off = ~np.eye(200, dtype=bool)
    for operator in (case.operator, gram.dense_operator(case.z, case.p)):
        slopes, diagonals = [], []
        for seed in range(6):
            held = gram.hold_out(case.blocks, share=0.3, seed=seed)
            rest = gram.centred_blocks(held.blocks, case.means, dtype=np.float64)
            thin = gram.thinned_operator(operator, rest, 0.3)
            found = np.concatenate([rows for _, rows in gram.gram_blocks(thin)])
            slopes.append(np.sum((found * whole)[off]) / np.sum((whole * whole)[off]))
            diagonals.append(np.diag(found).mean() / np.diag(whole).mean())
        assert np.mean(slopes) == pytest.approx(1.0, abs=0.03)
        assert np.mean(diagonals) == pytest.approx(1.0, abs=0.01)
