"""Operator, eigenpairs, coordinates, distances, rank rules."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from cellsmith._errors import ConvergenceError, SetupError, SizeError
from cellsmith.math import gram


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Fit:
    """A small data set with all that is fitted to it; ``form`` and ``step`` say how it is read."""

    def __init__(self, n=140, d=90, *, form="dense", step=None, dtype=np.float64, legacy=False, seed=0, soft=False):
        r = rng(seed)
        self.y = 3 + r.normal(size=(n, 3)) * [2, 1.5, 1] @ r.normal(size=(3, d)) + r.normal(size=(n, d))
        p = 1 / (1 + np.exp(-r.normal(0, 1, n)[:, None] - r.normal(0, 1.2, d)))
        self.m = (r.random((n, d)) < p).astype(float)
        self.m[np.arange(n), np.arange(n) % d] = 1
        self.m[np.arange(d) % n, np.arange(d)] = 1
        if soft:
            self.m *= np.where(r.random((n, d)) < 0.3, 0.5, 1.0)
        if form == "dense":
            block = gram.dense_block(self.y, self.m)
        elif form == "observed":
            block = gram.observed_block(sp.csr_matrix(self.y), sp.csr_matrix(self.m))
        else:
            block = gram.missing_block(sp.csr_matrix(self.y), sp.csr_matrix(1 - self.m))
        self.blocks = gram.row_blocks(block, step)
        self.stats = gram.observed_stats(self.blocks)
        self.z = gram.centred_blocks(self.blocks, self.stats.means, dtype=dtype)
        counts = self.stats.row_counts, self.stats.col_counts
        self.p = gram.fit_rank1(self.stats, legacy=True) if legacy else gram.fit_logistic(*counts)
        self.factors = gram.overlap_factors(self.p, generator=rng(1))
        self.operator = gram.gram_operator(self.z, self.factors, self.p.row_sums)

    def dense(self):
        z = self.m * (self.y - self.stats.means)
        p = self.p.block(np.arange(self.p.n_cells))
        n = p @ p.T
        out = z @ z.T / n
        np.fill_diagonal(out, (self.m * (self.y - self.stats.means) ** 2).sum(1) / p.sum(1))
        return out

    def eigen(self, k=3, **how):
        return gram.top_eigenpairs(self.operator, k, generator=rng(2), **how)

    def how(self):
        return {"col_rates": self.stats.col_rates, "self_overlap": self.p.self_overlap}


def rows_of(operator, chunk=33):
    return np.concatenate([rows for _, rows in gram.gram_blocks(operator, chunk)])


class TestOperator:
    @pytest.mark.parametrize("form", ["dense", "observed", "missing"])
    @pytest.mark.parametrize("soft", [False, True])
    def test_it_is_the_corrected_gram(self, form, soft):
        fit = Fit(form=form, soft=soft)
        np.testing.assert_allclose(rows_of(fit.operator), fit.dense(), atol=2e-4 * np.abs(fit.dense()).max())
        np.testing.assert_allclose(fit.operator.diagonal, np.diag(fit.dense()), rtol=1e-5)
        assert fit.operator.trace == pytest.approx(np.trace(fit.dense()), rel=1e-5)

    def test_dense_operator_is_exact(self):
        fit = Fit()
        dense = gram.dense_operator(fit.z, fit.p)
        np.testing.assert_allclose(dense.dense, fit.dense(), atol=1e-12)
        np.testing.assert_allclose(rows_of(dense), fit.dense(), atol=1e-12)
        v = rng(3).normal(size=(140, 2))
        np.testing.assert_allclose(dense.apply(v), fit.dense() @ v)

    def test_mean_and_pairwise(self):
        fit = Fit(step=50)
        z = fit.m * (fit.y - fit.stats.means)
        np.testing.assert_allclose(rows_of(gram.mean_operator(fit.z)), z @ z.T / 90, atol=1e-12)
        pairwise = gram.pairwise_operator(fit.z, gram.shared_counts(fit.blocks, fit.stats))
        np.testing.assert_allclose(pairwise.dense, z @ z.T / np.maximum(fit.m @ fit.m.T, 1), atol=1e-12)

    @pytest.mark.parametrize("form", ["dense", "observed", "missing"])
    @pytest.mark.parametrize("step", [1, 13])
    def test_streamed_equals_in_memory(self, form, step):
        whole, parts = Fit(form=form, dtype=np.float32), Fit(form=form, step=step, dtype=np.float32)
        np.testing.assert_allclose(parts.stats.means, whole.stats.means, rtol=1e-12)
        v = rng(3).normal(size=(140, 4)).astype(np.float32)
        a, b = whole.operator.apply(v), parts.operator.apply(v)
        np.testing.assert_allclose(b, a, atol=1e-5 * np.abs(a).max())
        x = [gram.embedding(f.eigen(tol=1e-6), 90) for f in (whole, parts)]
        np.testing.assert_allclose(np.abs(x[1]), np.abs(x[0]), atol=1e-5 * np.abs(x[0]).max())

    def test_factors_of_other_cells_are_refused(self):
        fit = Fit()
        with pytest.raises(SetupError, match="factors of 3 cells, expected 140"):
            gram.gram_operator(fit.z, gram.mean_factors(3, 90), None)

    def test_dense_above_the_limit_is_refused(self):
        n = gram.MAX_DENSE + 1
        z = gram.centred_blocks(gram.row_blocks(gram.dense_block(np.ones((n, 2)))), np.zeros(2))
        with pytest.raises(SizeError, match=r"5001 x 5001 cells would take 0\.2 GB.*prob='logistic'"):
            gram.dense_operator(z, gram.custom_probability(np.ones((n, 2))))
        with pytest.raises(SizeError, match="at most 5000 cells"):
            gram.pairwise_operator(z, np.empty((n, 0)))


class TestKrylov:
    @pytest.fixture(scope="class")
    def indefinite(self):
        r = rng(4)
        q = np.linalg.qr(r.normal(size=(400, 400)))[0]
        values = np.concatenate([[10, 9, 8, 7.9], np.linspace(1, 0, 196), np.linspace(0, -30, 200)])
        return (q * values) @ q.T, q, values

    def test_largest_algebraic_not_largest_absolute(self, indefinite):
        a, q, values = indefinite
        found = gram.block_krylov(lambda v: a @ v, 400, 4, start=rng(5).normal(size=(400, 10)), tol=1e-8)
        np.testing.assert_allclose(found.values, values[:4], rtol=1e-10)
        assert gram.sin_theta(found.vectors, q[:, :4]) < 1e-6
        np.testing.assert_allclose(found.images, a @ found.vectors, atol=1e-8)
        true = np.linalg.norm(a @ found.vectors - found.vectors * found.values, axis=0)
        np.testing.assert_allclose(found.residuals, true, atol=1e-9)
        assert true.max() <= 1e-8 * 10
        np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(4), atol=1e-10)

    def test_restarts_leave_the_recurrence_intact(self, indefinite):
        a, _, values = indefinite
        found = gram.block_krylov(lambda v: a @ v, 400, 4, start=rng(5).normal(size=(400, 50)), tol=1e-10)
        assert len(found.history) > 4  # four blocks fill the basis
        np.testing.assert_allclose(found.values, values[:4], rtol=1e-12)
        np.testing.assert_allclose(found.images, a @ found.vectors, atol=1e-8)

    def test_a_block_of_low_rank(self):
        v = rng(6).normal(size=(300, 3))
        a = v @ v.T
        found = gram.block_krylov(lambda x: a @ x, 300, 3, start=rng(5).normal(size=(300, 8)), tol=1e-8)
        np.testing.assert_allclose(found.values, np.linalg.eigvalsh(a)[::-1][:3], rtol=1e-9)

    def test_as_many_pairs_as_rows(self):
        a = np.diag(np.arange(12.0))
        found = gram.block_krylov(lambda x: a @ x, 12, 12, start=rng(5).normal(size=(12, 12)), tol=1e-8)
        np.testing.assert_allclose(found.values, np.arange(12.0)[::-1], atol=1e-9)

    def test_exact_and_iterated_agree(self):
        fit = Fit()
        exact, iterated = fit.eigen(), fit.eigen(exact_below=0, tol=1e-9)
        np.testing.assert_allclose(iterated.values, exact.values, rtol=1e-9)
        assert gram.sin_theta(iterated.vectors, exact.vectors) < 1e-6
        assert exact.spectrum.size == 140
        assert exact.spectrum[-1] < 0  # the corrected Gram is indefinite
        assert iterated.spectrum is None

    def test_the_start_of_a_warm_iteration_helps(self):
        fit = Fit(n=300)
        cold = fit.eigen(exact_below=0, tol=1e-6, oversample=0)
        warm = fit.eigen(exact_below=0, tol=1e-6, oversample=0, start=cold.vectors)
        assert len(warm.history) < len(cold.history)

    def test_same_generator_same_bits(self):
        fit = Fit(dtype=np.float32)
        np.testing.assert_array_equal(fit.eigen(exact_below=0).vectors, fit.eigen(exact_below=0).vectors)

    def test_steps_are_reported_and_failure_states_the_residuals(self):
        fit, seen = Fit(), []
        with pytest.raises(ConvergenceError, match=r"max_iter=2 steps: residuals .*e-.*Raise max_iter or tol, or ask"):
            fit.eigen(exact_below=0, tol=1e-14, max_iter=2, step=seen.append)
        assert len(seen) == 2

    def test_bad_numbers_of_pairs(self):
        fit = Fit()
        with pytest.raises(SetupError, match="n_latent=141, expected 1 to 140"):
            fit.eigen(141)
        with pytest.raises(SetupError, match="start block of shape"):
            gram.block_krylov(lambda v: v, 10, 3, start=np.ones((10, 2)))

    def test_mass_estimated_and_exact(self):
        fit = Fit(n=300, d=200)
        exact = gram.spectrum_mass(fit.operator, fit.eigen(5), generator=rng(7))
        rough = gram.spectrum_mass(fit.operator, fit.eigen(5, exact_below=0, tol=1e-5), generator=rng(7))
        values = np.linalg.eigvalsh(fit.dense())
        assert exact.exact
        assert not rough.exact
        assert exact.ratio == pytest.approx(-values[values < 0].sum() / values[values > 0].sum(), rel=1e-3)
        assert rough.ratio == pytest.approx(exact.ratio, rel=0.1)
        assert rough.positive - rough.negative == pytest.approx(fit.operator.trace)

    def test_frobenius_norm(self):
        fit = Fit(n=300)
        found = gram.frobenius_norm(fit.operator, generator=rng(8), n_probes=200)
        assert found == pytest.approx(np.linalg.norm(fit.dense()), rel=0.15)
        dense = gram.dense_operator(fit.z, fit.p)
        assert gram.frobenius_norm(dense, generator=rng(8)) == pytest.approx(np.linalg.norm(fit.dense()))


class TestCoordinates:
    def test_a_training_cell_differs_from_its_row_by_the_self_term(self):
        """Eq. 15, and whatever the tolerance of the eigensolver."""
        for tol in (1e-2, 1e-8):
            fit = Fit(step=40)
            eigen = fit.eigen(exact_below=0, tol=tol)
            b = gram.projections(fit.operator, eigen.vectors)
            weights = fit.factors.extend(fit.p)
            placed = gram.nystrom(fit.z, weights, projections=b, s=fit.factors.s, values=eigen.values)
            x = gram.embedding(eigen, 90)
            self_term = np.sqrt(90) * fit.operator.delta[:, None] * eigen.vectors / np.sqrt(eigen.values)
            np.testing.assert_allclose(placed + self_term, x, atol=1e-9 * np.abs(x).max(), rtol=1e-7)
            assert np.abs(placed - x).max() > 1e-3 * np.abs(x).max()

    def test_new_cells_land_beside_training_cells_of_the_same_kind(self):
        fit = Fit(n=400, d=300)
        old, new = slice(0, 300), slice(300, 400)
        blocks = gram.row_blocks(gram.dense_block(fit.y[old], fit.m[old]))
        stats = gram.observed_stats(blocks)
        p = gram.fit_logistic(stats.row_counts, stats.col_counts)
        factors = gram.overlap_factors(p, generator=rng())
        operator = gram.gram_operator(gram.centred_blocks(blocks, stats.means), factors, p.row_sums)
        eigen = gram.top_eigenpairs(operator, 3, generator=rng())
        fresh = gram.row_blocks(gram.dense_block(fit.y[new], fit.m[new]), 30)
        counts = gram.observed_stats(fresh).row_counts
        placed = gram.nystrom(
            gram.centred_blocks(fresh, stats.means),
            factors.extend(p.new_cells(counts)),
            projections=gram.projections(operator, eigen.vectors),
            s=factors.s,
            values=eigen.values,
        )
        joint = gram.embedding(fit.eigen(), 300)[new]
        assert gram.sin_theta(placed, joint) < 0.2

    def test_pca_of_a_complete_mask(self):
        r = rng(1)
        y = r.normal(size=(120, 4)) @ r.normal(size=(4, 70)) * 2 + r.normal(size=(120, 70))
        blocks = gram.row_blocks(gram.dense_block(y))
        stats = gram.observed_stats(blocks)
        for p in (gram.fit_logistic(stats.row_counts, stats.col_counts), gram.fit_rank1(stats)):
            factors = gram.overlap_factors(p, generator=rng())
            operator = gram.gram_operator(
                gram.centred_blocks(blocks, stats.means, dtype=np.float64), factors, p.row_sums
            )
            eigen = gram.top_eigenpairs(operator, 4, generator=rng())
            axes = gram.loadings(operator, eigen, col_rates=stats.col_rates, self_overlap=p.self_overlap)
            eigen, axes = gram.orient(eigen, axes)
            u, s, vt = np.linalg.svd(y - y.mean(0), full_matrices=False)
            signs = np.sign(vt[np.arange(4), np.argmax(np.abs(vt[:4]), axis=1)])
            np.testing.assert_allclose(gram.embedding(eigen, 70), (u * s)[:, :4] * signs, atol=1e-9)
            np.testing.assert_allclose(axes, vt[:4].T * signs, atol=1e-10)
            np.testing.assert_allclose(axes.T @ axes, np.eye(4), atol=1e-10)

    def test_orientation(self):
        fit = Fit()
        eigen = fit.eigen()
        axes = gram.loadings(fit.operator, eigen, **fit.how())
        turned, right = gram.orient(eigen, axes)
        assert (right[np.argmax(np.abs(right), axis=0), np.arange(3)] > 0).all()
        again, _ = gram.orient(turned, right)
        np.testing.assert_array_equal(again.vectors, turned.vectors)
        np.testing.assert_allclose(gram.embedding(turned, 90) @ right.T, gram.embedding(eigen, 90) @ axes.T)

    def test_negative_eigenvalues_never_count(self):
        fit = Fit()
        eigen = fit.eigen(140)
        good = int((eigen.values > 0).sum())
        with pytest.raises(SetupError, match=f"{good} positive eigenvalues; n_latent must be <= {good}"):
            gram.embedding(eigen, 90)
        assert np.isfinite(gram.embedding(eigen.first(good), 90)).all()

    def test_dense_operators_place_no_new_cells(self):
        fit = Fit()
        with pytest.raises(SetupError, match="no factors"):
            gram.projections(gram.dense_operator(fit.z, fit.p), fit.eigen().vectors)


class TestDistances:
    @pytest.mark.parametrize("form", ["dense", "observed", "missing"])
    @pytest.mark.parametrize("step", [None, 37])
    def test_of_pairs(self, form, step):
        fit = Fit(form=form, step=step)
        g = fit.dense()
        pairs = rng(1).integers(0, 140, (200, 2))
        found, floored = gram.corrected_distances(fit.operator, pairs)
        i, j = pairs.T
        expected = np.where(i == j, 0, g[i, i] + g[j, j] - 2 * g[i, j])
        np.testing.assert_allclose(found, np.maximum(expected, 0), atol=1e-3 * np.abs(g).max())
        assert floored == pytest.approx((expected < 0).mean(), abs=0.02)
        np.testing.assert_allclose(gram.corrected_products(fit.operator, pairs), g[i, j], atol=1e-3 * np.abs(g).max())

    def test_of_a_dense_operator(self):
        fit = Fit()
        pairs = np.array([[0, 1], [5, 5]])
        found, _ = gram.corrected_distances(gram.dense_operator(fit.z, fit.p), pairs)
        g = fit.dense()
        np.testing.assert_allclose(found, [max(0, g[0, 0] + g[1, 1] - 2 * g[0, 1]), 0.0])

    def test_bad_pairs(self):
        fit = Fit()
        with pytest.raises(SetupError, match=r"shape \(2,\), expected \(pairs, 2\)"):
            gram.corrected_distances(fit.operator, [0, 1])
        with pytest.raises(SetupError, match="expected 0 to 139"):
            gram.corrected_distances(fit.operator, [[0, 140]])
        assert gram.corrected_distances(fit.operator, np.zeros((0, 2)))[1] == 0


class TestRankRules:
    def test_every_rule_over_random_spectra(self):
        for seed in range(200):
            values = np.sort(rng(seed).normal(0.5, 1, 25))[::-1]
            good = int((values > 0).sum())
            null = np.abs(rng(seed).normal(size=(10, 25)))
            for rule in gram.RULES:
                if rule == "cng" and good < 6:
                    continue
                kept = gram.choose_rank(values, rule, null=null)
                assert 1 <= kept <= good

    def test_a_clear_step(self):
        values = np.array([20, 19, 18, 17, 2, 1.9, 1.8, 1.7, 1.6, -3])
        assert gram.choose_rank(values, "gap") == 4
        null = np.full((10, 10), 5.0)
        assert gram.choose_rank(values, "parallel", null=null) == 4

    def test_cng_by_the_textbook(self):
        values = np.array([5.0, 3.0, 1.0, 0.9, 0.8, 0.7, 0.6])
        slopes = [np.polyfit(range(3), values[i : i + 3], 1)[0] for i in range(5)]
        best = int(np.argmax([slopes[i + 3] - slopes[i] for i in range(2)])) + 1
        assert gram.choose_rank(values, "cng") == best + 2

    def test_proportion_counts_the_positive_part_only(self):
        values = np.array([90.0, 6.0, 3.0, 1.0, -500.0])
        assert gram.choose_rank(values, "proportion") == 2
        assert gram.choose_rank(values, "proportion", total=1000.0) == 4

    def test_refusals(self):
        with pytest.raises(SetupError, match="Did you mean 'cng'"):
            gram.choose_rank([1.0], "cgn")
        with pytest.raises(SetupError, match=r"5 non-negative eigenvalues.*at least 6"):
            gram.choose_rank([5.0, 4, 3, 2, 1, -1], "cng")
        with pytest.raises(SetupError, match="No eigenvalue is positive"):
            gram.choose_rank([-1.0], "gap")
        with pytest.raises(SetupError, match="shuffled data"):
            gram.choose_rank([1.0], "parallel")


class TestSinTheta:
    def test_known_angles(self):
        x = np.eye(6)[:, :2]
        assert gram.sin_theta(x, x @ [[2.0, 1], [0, 3]]) < 1e-12
        assert gram.sin_theta(x, np.eye(6)[:, 2:4]) == pytest.approx(1)
        y = np.array([[np.cos(0.3), 0], [0, 1], [np.sin(0.3), 0], [0, 0], [0, 0], [0, 0]])
        assert gram.sin_theta(x, y) == pytest.approx(np.sin(0.3) / np.sqrt(2))
        tiny = np.array([[1.0, 0], [0, 1], [1e-9, 0], [0, 0], [0, 0], [0, 0]])
        assert gram.sin_theta(x, tiny) == pytest.approx(1e-9 / np.sqrt(2), rel=1e-4)

    def test_refusals(self):
        with pytest.raises(SetupError, match="the same"):
            gram.sin_theta(np.ones((3, 1)), np.ones((3, 2)))
        with pytest.raises(SetupError, match="Row 1 is not finite"):
            gram.sin_theta([[1.0], [np.nan]], [[1.0], [2.0]])
        with pytest.raises(SetupError, match="linearly dependent"):
            gram.sin_theta(np.ones((4, 2)), np.eye(4)[:, :2])
        with pytest.raises(SetupError, match="Column 0 is zero"):
            gram.sin_theta(np.zeros((4, 1)), np.ones((4, 1)))


class TestDiagnostics:
    def test_heterogeneity_is_seen_and_homogeneity_is_not(self):
        r = rng(0)
        even = r.random((300, 200)) < 0.4
        uneven = r.random((300, 200)) < 1 / (1 + np.exp(-r.normal(0, 1, 300)[:, None] - r.normal(0, 1.0, 200)))
        found = []
        for m in (even, uneven):
            y = r.normal(size=(300, 200))
            stats = gram.observed_stats(gram.row_blocks(gram.dense_block(y, m)))
            found.append(gram.diagnose(stats, gram.fit_logistic(stats.row_counts, stats.col_counts)))
        assert abs(found[0].row_z) < 4
        assert abs(found[0].col_z) < 4
        assert found[1].row_z > 50
        assert found[1].col_z > 50
        assert found[0].model_share < 0.02
        assert found[1].model_share > found[1].row_share + 0.5 * found[1].col_share
        assert found[1].overlap_quantiles == tuple(sorted(found[1].overlap_quantiles))
        assert len(found[1].overlap_quantiles) == len(gram.QUANTILES)
        assert found[1].as_dict()["observed_rate"] == pytest.approx(uneven.mean())

    def test_values_that_decide_whether_they_are_seen(self):
        r = rng(0)
        y = r.normal(size=(200, 150)) + r.normal(0, 1, 150)
        m = r.random((200, 150)) < 1 / (1 + np.exp(-y))
        stats = gram.observed_stats(gram.row_blocks(gram.dense_block(y, m)))
        found = gram.diagnose(stats, gram.fit_logistic(stats.row_counts, stats.col_counts), min_overlap=1e3)
        assert found.rate_mean_correlation > 0.9
        assert found.below_min == 200


def test_many_cells_stay_implicit():
    """20,000 cells: an n x n array would take 3.2 GB, the input takes 5 MB."""
    import tracemalloc

    r = rng(0)
    u, v = r.normal(size=(20_000, 2)) * [2, 1.5], r.normal(size=(200, 2))
    rows, features = np.nonzero(r.random((20_000, 200)) < r.uniform(0.05, 0.25, (20_000, 1)))
    values = 1 + np.einsum("ek,ek->e", u[rows], v[features]) + r.normal(size=rows.size)
    x = sp.csr_matrix((values.astype(np.float32), (rows, features)), shape=(20_000, 200))
    del rows, features, values
    tracemalloc.start()
    blocks = gram.row_blocks(gram.observed_block(x))
    stats = gram.observed_stats(blocks)
    blocks = gram.select_blocks(blocks, cells=stats.live_cells)
    stats = gram.observed_stats(blocks)
    p = gram.fit_logistic(stats.row_counts, stats.col_counts)
    z = gram.centred_blocks(blocks, stats.means, keep=True)
    operator = gram.gram_operator(z, gram.overlap_factors(p, generator=rng(1)), p.row_sums)
    eigen = gram.top_eigenpairs(operator, 2, generator=rng(2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert gram.sin_theta(eigen.vectors, u[x.getnnz(1) > 0]) < 0.45
    assert peak < 150e6
