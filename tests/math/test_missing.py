"""Reading matrices and masks by rows, storing patterns and probabilities, judging embeddings."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from cellsmith._errors import SetupError
from cellsmith.math import gram, missing


@pytest.fixture
def x() -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.normal(size=(23, 9)).astype(np.float32) * (generator.random((23, 9)) < 0.6)


def test_rows_of_every_kind(x: np.ndarray) -> None:
    for held in (x, np.asfortranarray(x), x.astype(np.float64), sp.csr_matrix(x), sp.csc_matrix(x), sp.coo_matrix(x)):
        rows = missing.rows_of(held)
        assert rows.shape == (23, 9)
        np.testing.assert_allclose(missing.dense(rows.read(4, 11)), x[4:11], rtol=1e-6)
        np.testing.assert_allclose(missing.dense(missing.whole(rows)), x, rtol=1e-6)
    twice = sp.csr_matrix((np.ones(2, np.float32), np.array([1, 1]), np.array([0, 2])), shape=(1, 3))
    assert missing.dense(missing.rows_of(twice).read(0, 1)).tolist() == [[0, 2, 0]]
    assert twice.nnz == 2, "the caller's matrix is left alone"


def test_integers_beyond_float32_keep_their_digits() -> None:
    big = np.array([[2**24 + 1, 3]], dtype=np.int64)
    assert missing.rows_of(big).read(0, 1)[0, 0] == 2**24 + 1
    assert missing.rows_of(big[:, 1:]).read(0, 1).dtype == np.float32


@pytest.mark.parametrize(
    ("held", "text"),
    [
        (None, "X is empty"),
        (np.ones(3), "two dimensions"),
        (np.array([["a"]]), "real numbers"),
        (np.ones((2, 2)) * 1j, "real numbers"),
        ("abc", "is a str"),
    ],
)
def test_what_is_no_matrix(held: Any, text: str) -> None:
    with pytest.raises(SetupError, match=text):
        missing.rows_of(held)


def test_chunks_cover_everything(x: np.ndarray) -> None:
    rows = missing.rows_of(x)
    for size in (1, 5, 23, 100, None):
        bounds = list(missing.chunk_bounds(rows, size))
        assert bounds[0][0] == 0
        assert bounds[-1][1] == 23
        assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
    assert len(list(missing.chunk_bounds(rows, memory=8 * 9 * 5))) == 5


def test_aligned_rows(x: np.ndarray) -> None:
    columns = np.array([3, -1, 0, 8])
    expected = np.column_stack([x[:, 3], np.full(23, np.nan), x[:, 0], x[:, 8]])
    dense = missing.aligned_rows(missing.rows_of(x), columns, absent=np.nan)
    np.testing.assert_array_equal(dense.read(2, 9), expected[2:9])
    sparse = missing.aligned_rows(missing.rows_of(sp.csr_matrix(x)), columns, absent=np.nan).read(2, 9)
    np.testing.assert_array_equal(sparse.toarray(), np.nan_to_num(expected[2:9]))
    assert sparse.has_sorted_indices


def weights_of(blocks: gram.Blocks, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Weights and weighted values of blocks, dense."""
    m, y = np.zeros(shape), np.zeros(shape)
    for start, block in blocks():
        rows, features, values, weight = block.entries(0, block.shape[0])
        m[start + rows, features], y[start + rows, features] = weight, values * weight
    return m, y


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("columns", [None, np.array([4, -1, 1, 7])])
@pytest.mark.parametrize("form", ["nan", "zero", "none", "observed", "missing", "soft", "dense soft"])
def test_blocks_hold_what_the_mask_says(form: str, columns: Any, sparse: bool, x: np.ndarray) -> None:
    generator = np.random.default_rng(1)
    m = (generator.random(x.shape) < 0.7).astype(float)
    held: Any = x.copy()
    if form == "nan":
        held = np.where(m > 0, np.where(x == 0, 5.0, x), np.nan).astype(np.float32)
    elif form == "zero":
        m = (x != 0).astype(float)
    elif form == "none":
        m = np.ones(x.shape)
    elif "soft" in form:
        m = np.where(m > 0, generator.choice([0.25, 1.0], x.shape), 0.0)
    expected = np.nan_to_num(held) * m
    layers = {
        "observed": sp.csr_matrix(m),
        "missing": sp.csr_matrix(1 - m),
        "soft": sp.csr_matrix(m.astype(np.float32)),
        "dense soft": m,
    }
    marks = {"missing": {"marks": "missing"}}
    word = {"nan": "nan", "zero": "zero", "none": None}.get(form, form)
    mask = missing.find_mask(word, layers=layers, uns=marks, shape=x.shape)
    blocks = missing.read_blocks(
        missing.rows_of(sp.csr_matrix(held) if sparse else held), mask, chunk_size=7, columns=columns
    )
    if columns is not None:
        m, expected = (np.where(columns >= 0, v[:, columns], 0.0) for v in (m, expected))
    found, values = weights_of(blocks, m.shape)
    np.testing.assert_allclose(found, m, atol=1e-6)
    np.testing.assert_allclose(values, expected, atol=1e-5)
    assert [start for start, _ in blocks()] == [0, 7, 14, 21]


def test_sparser_pattern_is_the_smaller_one(x: np.ndarray) -> None:
    rows = missing.rows_of(x)
    pattern, marks, rate = missing.sparser_pattern(rows, lambda start, stop, v: v != 0)
    assert marks == "missing"
    np.testing.assert_array_equal(pattern.toarray(), x == 0)
    assert rate == pytest.approx((x != 0).mean())
    soft = np.where(x != 0, 1.0, 0.3)
    pattern, marks, _ = missing.sparser_pattern(rows, lambda start, stop, v: soft[start:stop])
    assert (pattern.dtype, marks) == (np.float32, "missing")
    np.testing.assert_allclose(1 - pattern.toarray(), soft, rtol=1e-6)


def test_probabilities_survive_being_stored(x: np.ndarray) -> None:
    generator = np.random.default_rng(0)
    blocks = gram.row_blocks(gram.dense_block(np.where(generator.random((40, 30)) < 0.6, 1.0, np.nan)))
    stats = gram.observed_stats(blocks)
    fitted = {
        "logistic": gram.fit_logistic(stats.row_counts, stats.col_counts),
        "product": gram.fit_rank1(stats, legacy=True),
        "rank1": gram.ScalarProbability("rank1", stats.row_rates, 2 * stats.col_rates),
        "grouped": gram.fit_grouped(blocks, np.arange(40) % 3),
        "covariates": gram.fit_covariates(blocks, stats, cell_design=generator.normal(size=(40, 1))),
    }
    for name, model in fitted.items():
        assert model.kind == name
        sizes = {"cells": 40, "features": 30}
        assert all(len(v) == sizes[gram.STATE_AXES[a]] for a, v in model.state().items() if a in gram.STATE_AXES)
        back = gram.probability_from_state(name, model.state())
        np.testing.assert_array_equal(back.block(np.arange(40)), model.block(np.arange(40)))
    given = gram.custom_probability(np.ones((2, 2)))
    with pytest.raises(SetupError, match="cannot be restored"):
        gram.probability_from_state(given.kind, given.state())


def test_counts_are_recognised() -> None:
    counts = np.array([[0, 3], [1, 0]])
    for held in (counts, sp.csr_matrix(counts), np.array([[np.nan, 3.0], [1.0, 0.0]])):
        assert missing.holds_counts(missing.rows_of(held))
    for other in (counts * 0.5, counts - 1, counts > 0):
        assert not missing.holds_counts(missing.rows_of(other))


def test_excess_zeros_follow_from_bayes() -> None:
    """A zero is a count with probability (1 - pi) f0 / (pi + (1 - pi) f0)."""
    generator = np.random.default_rng(0)
    f0, dropout = 0.4, 0.3
    lost = generator.random(200_000) < dropout
    zero = lost | (generator.random(200_000) < f0)
    expected = 1 - lost[zero].mean()
    found = missing.excess_zero_weights(np.array([[f0]]), np.array([dropout]))[0, 0]
    assert found == pytest.approx(expected, abs=0.005)


def test_the_better_space_predicts_held_out_entries_better() -> None:
    generator = np.random.default_rng(0)
    u = generator.normal(size=(300, 2))
    x = u @ generator.normal(size=(2, 80)) + generator.normal(size=(300, 80))
    blocks = gram.row_blocks(gram.dense_block(np.where(generator.random(x.shape) < 0.6, x, np.nan)))
    held = gram.hold_out(blocks, seed=1)
    means = gram.observed_stats(blocks).means
    near, far, turned = (
        missing.embedding_error(held, scores, means=means)
        for scores in (u + 0.1 * generator.normal(size=u.shape), u + generator.normal(size=u.shape), 3 * u[:, ::-1])
    )
    assert near < far
    half = missing.embedding_error(held, u, means=means, most_features=40)
    assert half == pytest.approx(turned, rel=0.05)
    assert half != turned
    assert turned == pytest.approx(missing.embedding_error(held, u, means=means), rel=1e-6)
    assert 0.95 < turned < 1.1
