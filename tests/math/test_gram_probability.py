"""Models of the mask and the factors of the inverse overlap."""

from __future__ import annotations

import numpy as np
import pytest

from cellsmith._errors import ConvergenceError, SetupError
from cellsmith.math import gram


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def mask_of(p: np.ndarray, seed: int = 5) -> np.ndarray:
    m = rng(seed).random(p.shape) < p
    m[np.arange(m.shape[0]), np.arange(m.shape[0]) % m.shape[1]] = True
    m[np.arange(m.shape[1]) % m.shape[0], np.arange(m.shape[1])] = True
    return m


def stats_of(m: np.ndarray) -> gram.Stats:
    return gram.observed_stats(gram.row_blocks(gram.dense_block(np.ones(m.shape), m)))


def logistic_mask(n: int = 150, d: int = 200, seed: int = 1) -> np.ndarray:
    r = rng(seed)
    return mask_of(sigmoid(r.normal(0, 1, n)[:, None] + r.normal(-0.5, 1.2, d)))


def whole(probability: gram.Probability) -> np.ndarray:
    return probability.block(np.arange(probability.n_cells))


class TestLogistic:
    def test_margins_are_met(self):
        m = logistic_mask()
        fitted = gram.fit_logistic(m.sum(1), m.sum(0))
        p = whole(fitted)
        np.testing.assert_allclose(p.sum(1), m.sum(1), atol=200e-6)
        np.testing.assert_allclose(p.sum(0), m.sum(0), atol=150e-6)
        assert fitted.margin_error <= 200e-6
        assert len(fitted.history) < 100
        assert fitted.history[0] > 100 * fitted.history[-1]
        assert abs(fitted.features.mean()) < 1e-10

    def test_parameters_are_recovered(self):
        r = rng(2)
        a, b = r.normal(0, 1, 2000), r.normal(-0.5, 1.2, 1500)
        m = r.random((2000, 1500)) < sigmoid(a[:, None] + b)
        fitted = gram.fit_logistic(m.sum(1), m.sum(0))
        assert np.corrcoef(fitted.scalars, a)[0, 1] > 0.99
        assert np.corrcoef(fitted.features, b)[0, 1] > 0.99

    def test_complete_mask_is_exactly_one(self):
        fitted = gram.fit_logistic(np.full(7, 5.0), np.full(5, 7.0))
        np.testing.assert_array_equal(whole(fitted), 1.0)
        np.testing.assert_array_equal(fitted.row_sums, 5.0)

    def test_a_feature_that_every_cell_observed(self):
        m = logistic_mask()
        m[:, 3] = True
        p = whole(gram.fit_logistic(m.sum(1), m.sum(0)))
        np.testing.assert_array_equal(p[:, 3], 1.0)
        np.testing.assert_allclose(p.sum(1), m.sum(1), atol=200e-6)

    def test_a_cell_that_observed_everything_stays_finite(self):
        m = logistic_mask()
        m[4] = True
        fitted = gram.fit_logistic(m.sum(1), m.sum(0))
        assert fitted.scalars[4] == 8.0
        assert np.isfinite(whole(fitted)).all()

    def test_soft_counts_all_distinct(self):
        r = rng(3)
        counts = r.uniform(20, 180, 6000)
        columns = np.full(200, counts.sum() / 200)
        fitted = gram.fit_logistic(counts, columns)
        assert np.unique(fitted.scalars).size > 5000
        np.testing.assert_allclose(fitted.row_sums, counts, atol=1e-3)

    def test_new_cells_get_what_training_cells_of_that_count_have(self):
        m = logistic_mask()
        fitted = gram.fit_logistic(m.sum(1), m.sum(0))
        again = fitted.new_cells(m.sum(1).astype(float))
        np.testing.assert_allclose(again.scalars, fitted.scalars, atol=1e-4)

    def test_floor(self):
        model = gram.ScalarProbability("logistic", np.array([-8.0]), np.array([-8.0, 8.0]))
        np.testing.assert_allclose(whole(model), [[1e-3, 0.5]])

    def test_empty_rows_are_refused(self):
        with pytest.raises(SetupError, match=r"1 cells have no observed entry \(first: number 2\).*select_blocks"):
            gram.fit_logistic(np.array([1.0, 2, 0]), np.array([1.0, 2]))
        with pytest.raises(SetupError, match="1 features have no observed entry"):
            gram.fit_logistic(np.array([1.0, 2]), np.array([3.0, 0]))


class TestRankOne:
    def test_clipped_entries_and_no_others(self):
        m = logistic_mask()
        stats = stats_of(m)
        raw = np.outer(stats.row_rates, stats.col_rates) / stats.observed_rate
        assert raw.max() > 1
        np.testing.assert_allclose(whole(gram.fit_rank1(stats)), np.clip(raw, 1e-3, 1.0), rtol=1e-12)

    def test_legacy_inflates_all(self):
        stats = stats_of(logistic_mask())
        raw = np.outer(stats.row_rates, stats.col_rates)
        np.testing.assert_allclose(whole(gram.fit_rank1(stats, legacy=True)), raw / raw.max(), rtol=1e-12)

    def test_where_nothing_exceeds_one_both_agree(self):
        stats = stats_of(mask_of(np.outer(rng(1).uniform(0.4, 0.6, 80), rng(2).uniform(0.4, 0.6, 90))))
        assert isinstance(gram.fit_rank1(stats), gram.Rank1Probability)
        np.testing.assert_allclose(whole(gram.fit_rank1(stats)), whole(gram.fit_rank1(stats, legacy=True)), rtol=1e-12)

    def test_an_empty_feature_is_refused(self):
        stats = gram.Stats(np.array([1.0, 1.0]), np.array([2.0, 0.0]), np.zeros(2))
        with pytest.raises(SetupError, match="features have no observed entry"):
            gram.fit_rank1(stats, legacy=True)


class TestGrouped:
    def test_shrunk_rates(self):
        m = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=float)
        blocks = gram.row_blocks(gram.dense_block(np.ones((3, 3)), m), 2)
        table = gram.fit_grouped(blocks, [0, 0, 1]).table
        np.testing.assert_allclose(table, [[2.5 / 3, 1.5 / 3, 0.5 / 3], [0.25, 0.25, 0.75]])

    def test_wrong_number_of_groups(self):
        blocks = gram.row_blocks(gram.dense_block(np.ones((3, 3)), np.ones((3, 3))))
        with pytest.raises(SetupError, match="expected one for each cell"):
            gram.fit_grouped(blocks, [0, 1])

    def test_factors_are_exact(self):
        r = rng(1)
        model = gram.GroupedProbability(r.integers(0, 5, 60), r.uniform(0.05, 0.9, (5, 30)))
        factors = gram.overlap_factors(model, generator=rng())
        p = whole(model)
        np.testing.assert_allclose((factors.u * factors.s) @ factors.u.T, 1 / (p @ p.T), rtol=1e-10)


class TestCovariates:
    def test_without_covariates_it_is_the_logistic_model(self):
        m = logistic_mask()
        blocks = gram.row_blocks(gram.dense_block(np.ones(m.shape), m), 64)
        p = whole(gram.fit_covariates(blocks, gram.observed_stats(blocks)))
        np.testing.assert_allclose(p, whole(gram.fit_logistic(m.sum(1), m.sum(0))), atol=2e-3)

    def test_a_batch_that_loses_its_own_features(self):
        r = rng(4)
        n, d = 300, 200
        x = np.where(np.arange(n) < 150, -1.0, 1.0)
        slope = r.normal(0, 1.5, d)
        truth = sigmoid(r.normal(0, 0.7, n)[:, None] + r.normal(0, 0.7, d) + np.outer(x, slope))
        m = mask_of(truth)
        blocks = gram.row_blocks(gram.dense_block(np.ones(m.shape), m), 64)
        stats = gram.observed_stats(blocks)
        with_batch = gram.fit_covariates(blocks, stats, cell_design=x)
        error = np.abs(whole(with_batch) - truth).mean()
        assert error < 0.5 * np.abs(whole(gram.fit_logistic(m.sum(1), m.sum(0))) - truth).mean()
        products = gram.mask_products(blocks, with_batch.cell_design, with_batch.feature_design)[0]
        again = with_batch.new_cells(products, with_batch.cell_design)
        np.testing.assert_allclose(whole(again), whole(with_batch), atol=1e-3)

    def test_a_covariate_of_features(self):
        r = rng(5)
        n, d = 200, 300
        w = r.normal(size=d)
        truth = sigmoid(r.normal(0, 1, n)[:, None] * w - 0.3)
        m = mask_of(truth)
        blocks = gram.row_blocks(gram.dense_block(np.ones(m.shape), m))
        stats = gram.observed_stats(blocks)
        fitted = gram.fit_covariates(blocks, stats, feature_design=w[:, None])
        np.testing.assert_allclose(whole(fitted).sum(1), m.sum(1), atol=d * 1e-4)
        assert (
            np.abs(whole(fitted) - truth).mean()
            < 0.5 * np.abs(whole(gram.fit_logistic(m.sum(1), m.sum(0))) - truth).mean()
        )

    def test_landmarks_factor_it(self):
        r = rng(6)
        x = r.normal(size=(700, 1))
        m = mask_of(sigmoid(r.normal(0, 0.7, 700)[:, None] + r.normal(0, 0.7, 250) + x * r.normal(0, 0.3, 250)))
        blocks = gram.row_blocks(gram.dense_block(np.ones(m.shape), m))
        fitted = gram.fit_covariates(blocks, gram.observed_stats(blocks), cell_design=x)
        factors = gram.overlap_factors(fitted, tol=1e-2, generator=rng())
        exact = 1 / (whole(fitted) @ whole(fitted).T)
        off = ~np.eye(700, dtype=bool)
        relative = np.abs((factors.u * factors.s) @ factors.u.T / exact - 1)[off]
        assert factors.error <= 1e-2
        assert relative.max() < 3e-2  # the check is on random pairs, not on all
        np.testing.assert_allclose(factors.extend(fitted), factors.u, rtol=1e-8)

    def test_bad_designs(self):
        blocks = gram.row_blocks(gram.dense_block(np.ones((3, 3)), np.ones((3, 3))))
        stats = gram.observed_stats(blocks)
        with pytest.raises(SetupError, match="covariates of 2 cells, expected 3"):
            gram.fit_covariates(blocks, stats, cell_design=np.ones(2))
        with pytest.raises(SetupError, match="number 1"):
            gram.fit_covariates(blocks, stats, feature_design=np.array([1.0, np.nan, 0]))


class TestCustom:
    def test_three_ways_to_say_the_same(self):
        u, v = rng(1).uniform(0.1, 0.9, (20, 1)), rng(2).uniform(0.1, 0.9, (15, 1))
        p = u @ v.T
        for values in (p, (u, v), lambda cells: p[cells]):
            np.testing.assert_allclose(whole(gram.custom_probability(values, shape=(20, 15))), p)

    def test_refusals(self):
        with pytest.raises(SetupError, match="needs shape"):
            gram.custom_probability(lambda cells: cells)
        with pytest.raises(SetupError, match=r"shape \(2, 3\), expected \(3, 2\)"):
            gram.custom_probability(np.ones((2, 3)), shape=(3, 2))
        with pytest.raises(SetupError, match=r"expected probabilities in \[0, 1\]"):
            whole(gram.custom_probability(np.full((2, 3), 1.5)))
        with pytest.raises(SetupError, match="returned shape"):
            whole(gram.custom_probability(lambda cells: np.ones((1, 3)), shape=(2, 3)))
        with pytest.raises(SetupError, match=r"expected \(cells, q\)"):
            gram.custom_probability((np.ones((2, 3)), np.ones((2, 2))))


MODELS = {
    "logistic": lambda m: gram.fit_logistic(m.sum(1), m.sum(0)),
    "rank1": lambda m: gram.fit_rank1(stats_of(m)),
    "product": lambda m: gram.fit_rank1(stats_of(m), legacy=True),
    "grouped": lambda m: gram.fit_grouped(
        gram.row_blocks(gram.dense_block(np.ones(m.shape), m)), np.arange(m.shape[0]) % 3
    ),
    "covariates": lambda m: gram.fit_covariates(
        gram.row_blocks(gram.dense_block(np.ones(m.shape), m)), stats_of(m), cell_design=np.arange(m.shape[0]) % 3 - 1.0
    ),
}


@pytest.mark.parametrize("kind", MODELS)
class TestEveryModel:
    def test_sums_and_overlaps(self, kind):
        model = MODELS[kind](logistic_mask(70, 50))
        p = whole(model)
        n = p @ p.T
        np.testing.assert_allclose(model.row_sums, p.sum(1), rtol=1e-10)
        np.testing.assert_allclose(model.col_sums, p.sum(0), rtol=1e-10)
        np.testing.assert_allclose(model.self_overlap, np.diag(n), rtol=1e-10)
        np.testing.assert_allclose(model.mean_overlap, (n.sum(1) - np.diag(n)) / 69, rtol=1e-10)
        pairs = rng(1).integers(0, 70, (40, 2))
        np.testing.assert_allclose(model.overlap(pairs), n[pairs[:, 0], pairs[:, 1]], rtol=1e-10)
        np.testing.assert_allclose(model.cross_overlap(model), n, rtol=1e-10)

    def test_stored_and_restored(self, kind):
        model = MODELS[kind](logistic_mask(70, 50))
        assert model.kind == kind
        again = gram.probability_from_state(model.kind, model.state())
        np.testing.assert_array_equal(whole(again), whole(model))

    def test_factors_hold_for_all_pairs_and_continue_to_cells(self, kind):
        model = MODELS[kind](logistic_mask(70, 50))
        factors = gram.overlap_factors(model, tol=1e-2, generator=rng())
        exact = whole(model) @ whole(model).T
        pairs = np.stack(np.triu_indices(70, 1), axis=1)
        inverse = factors.inverse_overlap(pairs)
        np.testing.assert_allclose(inverse * exact[pairs[:, 0], pairs[:, 1]], 1.0, atol=1.1e-2)
        np.testing.assert_allclose(factors.extend(model), factors.u, rtol=1e-6, atol=1e-12)


class TestFactors:
    """Acceptance: 1 / N to 1e-4, through grid and interpolation."""

    @pytest.mark.parametrize("seed", [0, 1])
    def test_logistic_reaches_its_rank(self, seed):
        r = rng(seed)
        model = gram.ScalarProbability("logistic", r.normal(0, 1, 1500), r.normal(-0.5, 1.2, 1000))
        factors = gram.overlap_factors(model, tol=1e-4, generator=rng())
        assert factors.nodes["at"].size <= 201  # a grid, not the cells
        assert factors.rank <= 4
        assert factors.error <= 1e-4
        exact = whole(model) @ whole(model).T
        relative = np.abs((factors.u * factors.s) @ factors.u.T * exact - 1)
        assert relative[~np.eye(1500, dtype=bool)].max() <= 3e-4

    def test_rank_one_missing_reaches_its_rank(self):
        class Missing(gram.ScalarProbability):
            def curve(self, t):
                return 1 - t[:, None] * self.features

        r = rng(1)
        model = Missing("logistic", r.uniform(0.4, 0.9, 1500), r.uniform(0.5, 0.9, 1000))
        factors = gram.overlap_factors(model, tol=1e-4, generator=rng())
        assert factors.rank <= 2

    def test_as_few_terms_as_the_tolerance_allows(self):
        r = rng(0)
        model = gram.ScalarProbability("logistic", r.normal(0, 1, 600), r.normal(-0.5, 1.2, 500))
        ranks = [gram.overlap_factors(model, tol=tol, generator=rng()).rank for tol in (0.3, 1e-2, 1e-4, 1e-6)]
        assert ranks == sorted(ranks)
        assert ranks[0] < ranks[-1] <= 12

    def test_a_table_without_structure_is_refused(self):
        model = gram.custom_probability(rng().uniform(0.05, 0.95, (400, 60)))
        with pytest.raises(ConvergenceError, match=r"relative error \d.*overlap_tol=1e-04"):
            gram.overlap_factors(model, generator=rng())

    def test_cells_beyond_the_grid_take_its_end(self):
        r = rng(0)
        model = gram.ScalarProbability("logistic", r.normal(0, 1, 600), r.normal(-0.5, 1.2, 500))
        factors = gram.overlap_factors(model, generator=rng())
        assert np.isfinite(factors.extend(model.at(np.array([-8.0, 8.0])))).all()

    def test_all_cells_alike(self):
        model = gram.ScalarProbability("logistic", np.zeros(5), np.linspace(-1, 1, 9))
        factors = gram.overlap_factors(model, generator=rng())
        assert factors.rank == 1
        np.testing.assert_allclose(factors.inverse_overlap([[0, 1]]) * model.overlap([[0, 1]]), 1.0)

    def test_another_kind_is_refused(self):
        r = rng(0)
        model = gram.ScalarProbability("logistic", r.normal(0, 1, 60), r.normal(0, 1, 50))
        factors = gram.overlap_factors(model, generator=rng())
        with pytest.raises(SetupError, match="expected the same kind"):
            factors.extend(gram.GroupedProbability(np.zeros(3, dtype=int), np.ones((1, 50))))
