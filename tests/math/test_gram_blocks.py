"""Stores of an incomplete matrix: one data set in every form gives the same numbers, and nothing becomes dense."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from cellsmith._errors import SetupError, SizeError
from cellsmith.math import gram

FORMS = ("dense", "observed", "missing")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def data(n: int = 60, d: int = 40, rate: float = 0.6, soft: bool = False) -> tuple[np.ndarray, np.ndarray]:
    r = rng(1)
    y = r.normal(1.0, 2.0, (n, d)) * (r.random((n, d)) < 0.7)  # zeros that were observed, too
    m = (r.random((n, d)) < rate).astype(float)
    if soft:
        m *= np.where(r.random((n, d)) < 0.5, 1.0, 0.25)
    m[:, 0] = 1
    return y, m


def block_of(form: str, y: np.ndarray, m: np.ndarray) -> gram.Block:
    if form == "dense":
        return gram.dense_block(y, m)
    if form == "observed":
        return gram.observed_block(sp.csr_matrix(y), sp.csr_matrix(m))
    return gram.missing_block(sp.csr_matrix(y), sp.csr_matrix(1.0 - m))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("form", FORMS)
class TestForms:
    def test_margins_and_means(self, form, soft):
        y, m = data(soft=soft)
        stats = gram.observed_stats(gram.row_blocks(block_of(form, y, m), 7))
        np.testing.assert_allclose(stats.row_counts, m.sum(1), rtol=1e-6)
        np.testing.assert_allclose(stats.col_counts, m.sum(0), rtol=1e-6)
        np.testing.assert_allclose(stats.means, (m * y).sum(0) / m.sum(0), rtol=1e-6, atol=1e-12)
        assert stats.observed_rate == pytest.approx(m.mean(), rel=1e-6)

    @pytest.mark.parametrize("step", [1, 7, None])
    def test_products(self, form, soft, step):
        y, m = data(soft=soft)
        mu = (m * y).sum(0) / m.sum(0)
        z, b, c = m * (y - mu), rng(2).normal(size=(40, 3)), rng(3).normal(size=(60, 3))
        blocks = gram.centred_blocks(gram.row_blocks(block_of(form, y, m), step), mu, dtype=np.float64)
        parts = [p for _, p in blocks()]
        starts = [s for s, _ in blocks()]
        np.testing.assert_allclose(np.concatenate([p.dot(b) for p in parts]), z @ b, atol=1e-6)
        total = sum(p.tdot(c[s : s + p.shape[0]]) for s, p in zip(starts, parts, strict=True))
        np.testing.assert_allclose(total, z.T @ c, atol=1e-5)
        np.testing.assert_allclose(np.concatenate([p.toarray() for p in parts]), z, atol=1e-6)
        np.testing.assert_allclose(np.concatenate([p.norms for p in parts]), (z**2).sum(1), rtol=1e-5)
        once = (m * (y - mu) ** 2).sum(1)
        np.testing.assert_allclose(np.concatenate([p.squares for p in parts]), once, rtol=1e-5)
        np.testing.assert_allclose(np.concatenate([p.row_weights() for p in parts]), m.sum(1), rtol=1e-6)

    def test_filling_is_exact_and_implicit(self, form, soft):
        y, m = data(soft=soft)
        mu = (m * y).sum(0) / m.sum(0)
        basis, scores = np.linalg.qr(rng(4).normal(size=(40, 2)))[0], rng(5).normal(size=(60, 2))
        z = block_of(form, y, m).centred(mu, dtype=np.float64)
        expected = m * (y - mu) + (1 - m) * (scores @ basis.T)
        filled = z.filled(scores, basis)
        np.testing.assert_allclose(filled.dot(np.eye(40)), expected, atol=1e-6)
        np.testing.assert_allclose(filled.dot(basis), expected @ basis, atol=1e-5)
        np.testing.assert_allclose(filled.tdot(scores), expected.T @ scores, atol=1e-5)
        grams = np.einsum("id,dk,dl->ikl", m, basis, basis)
        np.testing.assert_allclose(z.observed_grams(basis, 0, 60), grams, atol=1e-6)

    def test_taking_cells_and_features(self, form, soft):
        y, m = data(soft=soft)
        cells, features = rng(6).random(60) < 0.5, rng(7).random(40) < 0.7
        blocks = gram.select_blocks(gram.row_blocks(block_of(form, y, m), 9), cells=cells, features=features)
        stats = gram.observed_stats(blocks)
        part = m[cells][:, features]
        np.testing.assert_allclose(stats.row_counts, part.sum(1), rtol=1e-6)
        np.testing.assert_allclose(stats.col_counts, part.sum(0), rtol=1e-6)
        starts = [start for start, _ in blocks()]
        assert starts[0] == 0
        assert starts == sorted(set(starts))

    def test_entries_removed_become_missing(self, form, soft):
        y, m = data(soft=soft)
        where = np.argwhere(m > 0)[::5]
        block = block_of(form, y, m).without(where[:, 0], where[:, 1])
        left = m.copy()
        left[where[:, 0], where[:, 1]] = 0
        np.testing.assert_allclose(block.row_counts(), left.sum(1), rtol=1e-6)
        np.testing.assert_allclose(block.col_sums(), (left * y).sum(0), atol=1e-5)

    def test_entries_are_listed(self, form, soft):
        y, m = data(soft=soft)
        rows, features, values, weights = block_of(form, y, m).entries(10, 30)
        again, mask = np.zeros((60, 40)), np.zeros((60, 40))
        again[rows, features], mask[rows, features] = values, weights
        np.testing.assert_allclose(mask[10:30], m[10:30], atol=1e-6)
        np.testing.assert_allclose(again[10:30], (y * (m > 0))[10:30], atol=1e-6)
        assert not mask[:10].any()
        assert not mask[30:].any()

    def test_shuffling_stays_inside_the_mask(self, form, soft):
        y, m = data(soft=soft)
        block = block_of(form, y, m)
        shuffled = next(iter(gram.permute_within_mask(gram.row_blocks(block), generator=rng(8))()))[1]
        np.testing.assert_allclose(shuffled.row_counts(), m.sum(1), rtol=1e-6)
        rows, features, values, weights = shuffled.entries(0, 60)
        again, mask = np.full((60, 40), np.nan), np.zeros((60, 40))
        again[rows, features], mask[rows, features] = values, weights
        np.testing.assert_allclose(mask, m, atol=1e-6)
        for d in range(40):
            seen = m[:, d] > 0
            np.testing.assert_allclose(np.sort(again[seen, d]), np.sort(y[seen, d]), atol=1e-6)
        assert np.nanmax(np.abs(again - y)) > 1


def test_values_at_missing_entries_are_never_read():
    y, m = data()
    spoiled = np.where(m > 0, y, 1e9)
    for form in FORMS:
        a, b = block_of(form, y, m), block_of(form, spoiled, m)
        np.testing.assert_array_equal(a.col_sums(), b.col_sums())
        mu = a.col_sums() / a.col_counts()
        np.testing.assert_array_equal(a.centred(mu).toarray(), b.centred(mu).toarray())


def test_nan_is_missing_in_arrays_and_in_csr():
    y, m = data()
    y[m == 0] = np.nan
    stored = sp.csr_matrix(y)
    for block in (gram.dense_block(y), gram.missing_block(stored)):
        np.testing.assert_array_equal(block.row_counts(), m.sum(1))
        assert np.isfinite(block.centred(np.zeros(40)).toarray()).all()


def test_explicit_zeros_are_observed_where_the_mask_says_so():
    x = sp.csr_matrix((np.array([1.0, 0.0, 2.0]), ([0, 0, 1], [0, 1, 2])), shape=(2, 3))
    mask = sp.csr_matrix((np.array([1, 1, 1], dtype=np.uint8), ([0, 0, 1], [0, 1, 2])), shape=(2, 3))
    np.testing.assert_array_equal(gram.observed_block(x, mask).row_counts(), [2, 1])
    np.testing.assert_array_equal(gram.observed_block(x).row_counts(), [1, 1])  # without a mask, zeros are missing
    np.testing.assert_array_equal(gram.missing_block(x).row_counts(), [3, 3])


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.float64, np.float32, bool])
def test_types_of_values(kind):
    y, m = data()
    y = np.abs(y).astype(kind)
    mu = np.ones(40)
    expected = m * (y.astype(float) - mu)
    for form in FORMS:
        np.testing.assert_allclose(block_of(form, y, m).centred(mu).toarray(), expected, atol=1e-5)


def test_unsorted_and_duplicate_entries_and_long_indices():
    x = sp.csr_matrix((np.array([1.0, 2.0, 4.0]), np.array([2, 0, 2]), np.array([0, 3])), shape=(1, 3))
    x.indices, x.indptr = x.indices.astype(np.int64), x.indptr.astype(np.int64)
    block = gram.observed_block(x, sp.csr_matrix(np.ones((1, 3))))
    np.testing.assert_array_equal(block.centred(np.zeros(3)).toarray(), [[2, 0, 5]])
    np.testing.assert_array_equal(x.data, [1, 2, 4])  # the input is left as it was


def test_nothing_sparse_becomes_dense():
    """A matrix whose dense form would take 400 GB."""
    n, d = 100_000, 500_000
    r = rng()
    x = sp.csr_matrix((r.random(2000), (r.integers(0, n, 2000), r.integers(0, d, 2000))), shape=(n, d))
    block = gram.observed_block(x)
    z = block.centred(np.zeros(d))
    assert z.dot(np.ones((d, 1))).shape == (n, 1)
    assert z.tdot(np.ones((n, 1))).shape == (d, 1)
    few = gram.missing_block(x, x != 0).centred(r.random(d))
    assert few.dot(np.ones((d, 1))).shape == (n, 1)


def test_kept_blocks_are_formed_once():
    y, m = data()
    calls = []

    def blocks():
        calls.append(1)
        yield 0, gram.dense_block(y, m)

    kept = gram.centred_blocks(blocks, np.zeros(40), keep=True)
    fresh = [p.toarray() for _, p in kept()]
    np.testing.assert_array_equal([p.toarray() for _, p in kept()], fresh)
    assert len(calls) == 1


def test_an_interrupted_pass_keeps_nothing_by_half():
    y, m = data()
    kept = gram.centred_blocks(gram.row_blocks(gram.dense_block(y, m), 20), np.zeros(40), keep=True)
    next(iter(kept()))
    assert sum(p.shape[0] for _, p in kept()) == 60
    assert sum(p.shape[0] for _, p in kept()) == 60


class TestGroups:
    def test_two_groups_without_a_shared_feature(self):
        m = np.zeros((6, 8))
        m[:4, :5] = 1
        m[4:, 5:] = 1
        blocks = gram.row_blocks(gram.dense_block(np.ones((6, 8)), m), 2)
        np.testing.assert_array_equal(gram.cell_groups(blocks, gram.observed_stats(blocks)), [0, 0, 0, 0, 1, 1])

    def test_a_chain_is_one_group(self):
        m = np.eye(30) + np.eye(30, k=1)
        for form in FORMS:
            blocks = gram.row_blocks(block_of(form, np.ones((30, 30)), m), 4)
            assert not gram.cell_groups(blocks, gram.observed_stats(blocks)).any()

    def test_a_cell_without_data_is_in_no_group(self):
        m = np.ones((4, 5))
        m[2] = 0
        blocks = gram.row_blocks(gram.dense_block(np.ones((4, 5)), m))
        np.testing.assert_array_equal(gram.cell_groups(blocks, gram.observed_stats(blocks)), [0, 0, -1, 0])

    def test_shared_counts(self):
        y, m = data()
        for form in FORMS:
            blocks = gram.row_blocks(block_of(form, y, m), 11)
            np.testing.assert_allclose(gram.shared_counts(blocks, gram.observed_stats(blocks)), m @ m.T)


class TestRefusals:
    def test_a_mask_of_another_shape(self):
        with pytest.raises(SetupError, match=r"mask of shape \(3, 4\), expected \(3, 5\)"):
            gram.dense_block(np.ones((3, 5)), np.ones((3, 4)))
        with pytest.raises(SetupError, match=r"mask of shape"):
            gram.observed_block(sp.csr_matrix((3, 5)), sp.csr_matrix((2, 5)))

    @pytest.mark.parametrize("value", [-0.5, 1.5, np.nan])
    def test_a_mask_outside_its_range(self, value):
        m = np.ones((3, 5))
        m[1, 2] = value
        with pytest.raises(SetupError, match=r"expected 1 \(observed\), 0 \(missing\) or a fraction"):
            gram.dense_block(np.ones((3, 5)), m)
        with pytest.raises(SetupError, match="fraction between"):
            gram.missing_block(sp.csr_matrix((3, 5)), sp.csr_matrix(m))

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("value", [np.inf, np.nan])
    def test_an_observed_entry_that_is_not_finite(self, form, value):
        y, m = data()
        y[13, 7], m[13, 7] = value, 1
        blocks = gram.row_blocks(block_of(form, y, m), 10)
        with pytest.raises(SetupError, match=r"cell 13 and feature 7 is (inf|nan).*Mark it as missing"):
            gram.observed_stats(blocks)

    @pytest.mark.parametrize("form", FORMS)
    def test_a_missing_entry_may_be_anything(self, form):
        y, m = data()
        y[13, 7], m[13, 7] = np.nan, 0
        assert np.isfinite(gram.observed_stats(gram.row_blocks(block_of(form, y, m))).means).all()

    def test_pairwise_counts_of_many_cells(self):
        blocks = gram.row_blocks(gram.observed_block(sp.csr_matrix(np.ones((6000, 2)))))
        with pytest.raises(SizeError, match=r"6000 cells would take 0\.3 GB.*prob='logistic'"):
            gram.shared_counts(blocks, gram.observed_stats(blocks))

    def test_no_rows(self):
        with pytest.raises(SetupError, match="no cells"):
            gram.observed_stats(lambda: iter(()))
