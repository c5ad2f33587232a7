"""Hungarian alignment, entropy and margin of rows, agreement of partitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cellsmith._errors import SetupError
from cellsmith.math.assign import adjusted_rand, entropy, hungarian, margin


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3)])
def test_hungarian_equals_trying_all_pairings(shape):
    table = np.random.default_rng(0).normal(size=shape)
    rows, columns = hungarian(table)
    wide = table if shape[0] <= shape[1] else table.T
    best = max(
        sum(wide[i, j] for i, j in enumerate(pick)) for pick in itertools.permutations(range(max(shape)), min(shape))
    )
    assert table[rows, columns].sum() == pytest.approx(best)
    assert len(set(rows)) == len(set(columns)) == min(shape)
    assert (np.diff(rows) > 0).all()


@pytest.mark.parametrize(
    ("table", "message"), [([1.0, 2.0], r"shape \(2,\)"), ([[1.0, np.nan]], "1 non-finite entries")]
)
def test_hungarian_refuses_what_is_no_table(table, message):
    with pytest.raises(SetupError, match=message):
        hungarian(table)


def test_entropy_runs_from_zero_to_one():
    p = [[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0], [np.nan, 0.5, 0.5]]
    np.testing.assert_allclose(entropy(p), [0.0, 1.0, np.log(2) / np.log(3), np.nan], atol=1e-15)


def test_one_class_is_certain():
    assert entropy([[1.0], [0.4]]).tolist() == [0.0, 0.0]
    assert margin([[1.0], [0.4]]).tolist() == [1.0, 0.4]


def test_margin_is_best_minus_second():
    np.testing.assert_allclose(margin([[0.2, 0.7, 0.1], [0.5, 0.5, 0.0], [np.nan, 0.5, 0.5]]), [0.5, 0.0, np.nan])


def test_rows_need_a_class():
    for function in (entropy, margin):
        with pytest.raises(SetupError, match=r"shape \(3, 0\)"):
            function(np.empty((3, 0)))


def test_adjusted_rand_ignores_names_and_counts_only_what_is_shared():
    a = np.array(["x", "x", "y", "y", "z"])
    assert adjusted_rand(a, [2, 2, 0, 0, 1]) == 1.0
    assert adjusted_rand(a, [0, 0, 0, 0, 0]) == 0.0
    assert adjusted_rand([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(-0.5)
    assert adjusted_rand([], []) == 1.0
    with pytest.raises(SetupError, match="5 and 4 labels"):
        adjusted_rand(a, [0, 0, 1, 1])
