from __future__ import annotations

import numpy as np
import pytest

from cellsmith._errors import SetupError
from cellsmith.math import graph
from cellsmith.math.graph import agreement


def points(n: int, seed: int = 0, d: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def by_loops(table: np.ndarray, at_least: int) -> list[list[int]]:
    """The definition, one cell at a time."""
    rows = []
    for i, row in enumerate(table.tolist()):
        mutual = [j for j in row if i in table[j]]
        one_way = [j for j in row if j not in mutual]
        rows.append(mutual + one_way[: max(0, at_least - len(mutual))])
    return rows


def test_mutual_neighbors_by_hand():
    # on a line: 0, 1, 3, 7; two nearest of each
    table = graph.knn_table(np.array([[0.0], [1.0], [3.0], [7.0]]), 2, seed=0)[0]
    np.testing.assert_array_equal(table, [[1, 2], [0, 2], [1, 0], [2, 1]])
    kept, counts = graph.mutual_neighbors(table, at_least=0)
    np.testing.assert_array_equal(kept, [[1, 2], [0, 2], [1, 0], [-1, -1]])
    np.testing.assert_array_equal(counts, [2, 2, 2, 0])
    kept, counts = graph.mutual_neighbors(table, at_least=1)
    np.testing.assert_array_equal(kept[3], [2, -1])
    np.testing.assert_array_equal(counts, [2, 2, 2, 1])


@pytest.mark.parametrize("at_least", [0, 3, 8])
def test_mutual_neighbors_equal_the_loops(at_least, monkeypatch):
    table = graph.knn_table(points(83), 8, seed=0)[0]
    kept, counts = graph.mutual_neighbors(table, at_least=at_least)
    expected = by_loops(table, at_least)
    np.testing.assert_array_equal(counts, [len(row) for row in expected])
    assert [row[:c].tolist() for row, c in zip(kept, counts, strict=True)] == expected
    assert (kept[np.arange(8) >= counts[:, None]] == -1).all()
    monkeypatch.setattr(agreement, "_BLOCK", 700)  # ten cells a block, the last one short
    for whole, parts in zip((kept, counts), graph.mutual_neighbors(table, at_least=at_least), strict=True):
        np.testing.assert_array_equal(whole, parts)


def test_exact_duplicates_keep_their_neighbors():
    x = points(60)
    x[:20] = x[0]
    table = graph.knn_table(x, 15, seed=0)[0]
    kept, counts = graph.mutual_neighbors(table)
    assert counts.min() >= 3
    copies = kept[:20]
    assert (copies[copies >= 0] < 20).all()  # the nearest of a copy are the other copies, at distance 0
    assert (kept != np.arange(60)[:, None]).all()


def test_five_cells():
    table = graph.knn_table(points(5), 4, seed=0)[0]
    kept, counts = graph.mutual_neighbors(table)
    np.testing.assert_array_equal(kept, table)  # everybody is everybody's neighbour
    np.testing.assert_array_equal(counts, 4)
    kept, counts = graph.mutual_neighbors(graph.knn_table(points(5), 2, seed=0)[0])
    np.testing.assert_array_equal(counts, 2)  # fewer than at_least exist: all are kept


def test_explained_variance_by_hand():
    y = np.array([[0.0], [0.0], [4.0], [4.0]])
    assert graph.explained_variance(y, [[1], [0], [3], [2]]) == 1.0
    assert graph.explained_variance(y, [[2], [3], [0], [1]]) == pytest.approx(1 - 4 * 16 / 16)
    assert graph.explained_variance(y, [[1, 2], [0, 3], [3, 0], [2, 1]]) == pytest.approx(1 - 4 * 4 / 16)
    assert graph.explained_variance(np.ones((4, 2)), [[1], [0], [3], [2]]) == 0.0


def test_explained_variance_of_neighbors_that_say_nothing():
    y, x = points(2000, 0), points(2000, 1)
    found = graph.explained_variance(y, graph.knn_table(x, 15, seed=0)[0])
    assert found == pytest.approx(-1 / 15, abs=0.02)
    own = graph.explained_variance(y, graph.knn_table(y, 15, seed=0)[0])
    assert own > 0.8
    assert own == pytest.approx(graph.explained_variance(9 * y + 100, graph.knn_table(y, 15, seed=0)[0]))


def test_overlap_by_hand():
    a = np.array([[1, 2], [0, 2], [0, 1], [0, 1]])
    b = np.array([[2, 1], [2, 3], [3, 1], [2, 1]])
    assert graph.neighbor_overlap(a, b) == (2 + 1 + 1 + 1) / 8
    assert graph.neighbor_overlap(a, a) == 1.0
    assert graph.neighbor_overlap(a, b[:, :1]) == (1 + 1 + 0 + 0) / 4
    assert graph.neighbor_overlap(a, b) == graph.neighbor_overlap(b, a)


def test_overlap_of_unrelated_tables_is_chance():
    one, other = (graph.knn_table(points(1500, seed), 15, seed=0)[0] for seed in (0, 1))
    assert graph.neighbor_overlap(one, other) == pytest.approx(15 / 1499, rel=0.15)


def test_permuted_table_is_the_table_of_permuted_rows():
    x, order = points(70), np.random.default_rng(1).permutation(70)
    found = graph.permuted_table(graph.knn_table(x, 9, seed=0)[0], order)
    np.testing.assert_array_equal(found, graph.knn_table(x[order], 9, seed=0)[0])


def test_wrong_input_is_named():
    table = graph.knn_table(points(6), 2, seed=0)[0]
    with pytest.raises(SetupError, match="neighbor 2 of cell 2, expected other cells from 0 to 5"):
        graph.mutual_neighbors(np.where(np.arange(6)[:, None] == 2, 2, table))
    with pytest.raises(SetupError, match="neighbor 7 of cell 0"):
        graph.neighbor_overlap(table, table + 6)
    with pytest.raises(SetupError, match=r"shape \(6, 2\) and float64, expected integers"):
        graph.mutual_neighbors(table.astype(float))
    with pytest.raises(SetupError, match="at_least=-1"):
        graph.mutual_neighbors(table, at_least=-1)
    with pytest.raises(SetupError, match="expected 6 finite rows"):
        graph.explained_variance(np.full((6, 2), np.nan), table)
    with pytest.raises(SetupError, match="6 and 5 cells"):
        graph.neighbor_overlap(table, np.ones((5, 1), int) - np.eye(5, dtype=int)[:, 1:2])
    with pytest.raises(SetupError, match="permutation of 6 rows"):
        graph.permuted_table(table, [0, 1, 2, 3, 4, 4])
