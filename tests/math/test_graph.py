from __future__ import annotations

import random
import sys
import types

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.spatial.distance import cdist

from cellsmith._errors import SetupError
from cellsmith.math import graph
from cellsmith.math.graph import neighbors


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def brute(x: np.ndarray, k: int) -> np.ndarray:
    """k other cells by (distance, index), from exactly computed differences."""
    square = ((x[:, None] - x[None]) ** 2).sum(2)
    np.fill_diagonal(square, np.inf)
    return np.lexsort((np.broadcast_to(np.arange(len(x)), square.shape), square), axis=1)[:, :k]


def random_graph(n: int = 60, seed: int = 0) -> sp.csr_matrix:
    directed = sp.random(n, n, density=0.1, random_state=seed, format="csr", dtype=np.float32)
    return graph.symmetrize(directed)


@pytest.mark.parametrize("k", [1, 7, 59])
def test_table_is_exact_sorted_and_without_self(k):
    x = rng().normal(size=(60, 4))
    indices, distances = graph.knn_table(x, k, seed=0)
    assert indices.dtype == np.int32
    assert distances.dtype == np.float32
    np.testing.assert_array_equal(indices, brute(x, k))
    assert (np.diff(distances, axis=1) >= 0).all()
    assert (indices != np.arange(60)[:, None]).all()
    np.testing.assert_allclose(distances, np.take_along_axis(cdist(x, x), indices, axis=1), rtol=1e-6)


def test_ties_go_by_index_and_duplicates_are_neighbours():
    x = rng(1).integers(0, 3, size=(300, 2)).astype(float)  # 9 places: hundreds of exact ties a row
    indices, distances = graph.knn_table(x, 12, seed=0)
    np.testing.assert_array_equal(indices, brute(x, 12))
    assert (distances == 0).all()


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("outlier", [1.0, 1e6])
def test_table_stays_exact_where_float32_alone_would_fail(offset, outlier):
    x = rng(2).normal(size=(400, 5)) * 1e-3 + offset
    x[7] += outlier
    indices, _ = graph.knn_table(x, 6, seed=0)
    assert (indices == brute(x, 6)).all()


def test_blocks_do_not_change_the_table(monkeypatch):
    x = np.round(rng(3).normal(size=(200, 3)), 1)
    whole = graph.knn_table(x, 9, seed=0)
    monkeypatch.setattr(neighbors, "_BLOCK", 200 * 7)
    blocked = graph.knn_table(x, 9, seed=0)
    np.testing.assert_array_equal(whole[0], blocked[0])
    np.testing.assert_array_equal(whole[1], blocked[1])


def test_never_a_square_array(monkeypatch):
    monkeypatch.setattr(neighbors, "_BLOCK", 1 << 14)
    rows = []
    inner = neighbors.rank_rows
    monkeypatch.setattr(
        neighbors, "rank_rows", lambda q, p, c, **kw: rows.append(len(q) * c.shape[1]) or inner(q, p, c, **kw)
    )
    graph.knn_table(rng().normal(size=(1500, 3)), 5, seed=0)
    assert len(rows) >= 100
    assert max(rows) <= 1 << 14


def test_five_cells_and_twenty_duplicates():
    indices, _ = graph.knn_table(np.ones((5, 2)), 4, seed=0)
    assert [sorted(row) for row in indices.tolist()] == [[j for j in range(5) if j != i] for i in range(5)]
    x = rng().normal(size=(50, 3))
    x[:20] = x[0]
    indices, distances = graph.knn_table(x, 15, seed=0)
    assert (distances[:20] == 0).all()
    assert (indices[:20] < 20).all()


@pytest.mark.parametrize("sizes", [(40, 40), (60, 15, 5), (70, 2, 8), (1, 79)])
@pytest.mark.parametrize("k", [6, 7, 16])
def test_groups_split_the_places(sizes, k):
    labels = rng(4).permutation(np.repeat([f"b{g}" for g in range(len(sizes))], sizes))
    x = rng(5).normal(size=(80, 3)) + (labels == "b0")[:, None] * 5.0
    indices, distances = graph.knn_table(x, k, groups=labels, seed=0)
    square = cdist(x, x, "sqeuclidean")
    for i in range(80):
        quota, chosen = k // len(sizes), []
        for name in np.unique(labels):
            members = np.flatnonzero((labels == name) & (np.arange(80) != i))
            chosen += members[np.argsort(square[i, members], kind="stable")][:quota].tolist()
        left = np.setdiff1d(np.arange(80), [*chosen, i])
        chosen += left[np.argsort(square[i, left], kind="stable")][: k - len(chosen)].tolist()
        assert sorted(indices[i].tolist()) == sorted(chosen)
    assert (np.diff(distances, axis=1) >= 0).all()


def test_one_group_is_no_group():
    x = rng().normal(size=(50, 3))
    plain, grouped = graph.knn_table(x, 5, seed=0), graph.knn_table(x, 5, groups=["a"] * 50, seed=0)
    np.testing.assert_array_equal(plain[0], grouped[0])


def test_cross_table():
    query, reference = rng(6).normal(size=(30, 4)), rng(7).normal(size=(100, 4))
    indices, distances = graph.cross_knn(query, reference, 8, seed=0)
    all_distances = cdist(query, reference)
    np.testing.assert_array_equal(indices, np.argsort(all_distances, axis=1)[:, :8])
    np.testing.assert_allclose(distances, np.sort(all_distances, axis=1)[:, :8], rtol=1e-6)
    own, zero = graph.cross_knn(reference, reference, 1, seed=0)
    np.testing.assert_array_equal(own[:, 0], np.arange(100))
    assert (zero == 0).all()


class Descent:
    """Stands in for PyNNDescent: right but unsorted candidates, with holes and without the cell itself."""

    calls: list[dict] = []

    def __init__(self, data, *, n_neighbors, metric, random_state):
        self.data = data
        Descent.calls.append({"n": len(data), "k": n_neighbors, "metric": metric, "seed": random_state})
        self.k = n_neighbors
        torch.set_num_threads(torch.get_num_threads() + 1)  # as numba does behind the back of torch

    @property
    def neighbor_graph(self):
        return self.query(self.data, k=self.k)

    def query(self, data, *, k, epsilon=0.1):
        order = np.argsort(cdist(data, self.data), axis=1)[:, :k][:, ::-1].astype(np.int32)
        order[3] = -1
        order[4, : k // 2] = -1
        return order, None


@pytest.fixture
def descent(monkeypatch):
    Descent.calls = []
    monkeypatch.setitem(sys.modules, "pynndescent", types.SimpleNamespace(NNDescent=Descent))
    return Descent


def test_above_the_size_the_search_is_approximate_seeded_and_filled(descent):
    x, threads = rng(8).normal(size=(120, 3)) + 100.0, torch.get_num_threads()
    indices, _ = graph.knn_table(x, 9, exact_below=119, seed=5)
    np.testing.assert_array_equal(indices, brute(x, 9))
    assert descent.calls == [{"n": 120, "k": 15, "metric": "euclidean", "seed": 5}]
    assert torch.get_num_threads() == threads
    graph.knn_table(x, 9, exact_below=120, seed=5)
    assert len(descent.calls) == 1
    crossed, _ = graph.cross_knn(x[:10], x, 4, exact_below=50, seed=5)
    np.testing.assert_array_equal(crossed, np.argsort(cdist(x[:10], x), axis=1)[:, :4])
    groups = np.arange(120) % 2
    grouped = [graph.knn_table(x, 9, groups=groups, exact_below=size, seed=5)[0] for size in (10, 500)]
    np.testing.assert_array_equal(*grouped)


@pytest.mark.slow
def test_pynndescent_itself():
    x = rng(9).normal(size=(2000, 6))
    found = [graph.knn_table(x, 10, exact_below=100, seed=1) for _ in range(2)]
    np.testing.assert_array_equal(found[0][0], found[1][0])
    exact = graph.knn_table(x, 10, seed=1)[0]
    assert np.mean([np.isin(a, b).mean() for a, b in zip(found[0][0], exact, strict=True)]) >= 0.95


@pytest.mark.parametrize(
    ("x", "k", "extra", "text"),
    [
        (np.zeros((5, 2)), 5, {}, "k=5, expected 1 to 4"),
        (np.zeros((5, 2)), 0, {}, "k=0"),
        (np.zeros(5), 1, {}, "shape"),
        (np.array([[0.0], [np.nan], [1.0]]), 1, {}, "first in row 1"),
        (np.zeros((5, 2)), 1, {"groups": [0, 1]}, "groups of shape"),
        (np.zeros((3, 2)), 1, {"groups": [0, 1, np.nan]}, "first cell 2"),
    ],
)
def test_wrong_tables_are_refused(x, k, extra, text):
    with pytest.raises(SetupError, match=text):
        graph.knn_table(x, k, seed=0, **extra)


def test_different_dimensions_are_refused():
    with pytest.raises(SetupError, match="2 columns in query, expected 3"):
        graph.cross_knn(np.zeros((4, 2)), np.zeros((4, 3)), 1, seed=0)


def test_kernel_sums_to_log2_and_gives_the_nearest_one():
    distances = np.sort(rng().random((200, 14)) + 0.1, axis=1)
    weights = graph.cross_weights(distances)
    np.testing.assert_allclose(weights.sum(1), np.log2(15), atol=1e-4)
    assert (weights[:, 0] == 1).all()
    assert (np.diff(weights, axis=1) <= 0).all()


def test_kernel_with_duplicates_and_missing_neighbours():
    distances = np.array([[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 2.0], [1.0, 2.0, 3.0, np.inf], [np.nan] * 4])
    weights = graph.cross_weights(distances)
    assert (weights[0] == 1).all()
    assert weights[1, 0] == weights[1, 1] == weights[1, 2] == 1
    assert 0 < weights[2, 1] < 1
    assert weights[2, 3] == 0
    assert (weights[3] == 0).all()


def test_fuzzy_union_is_symmetric_in_range_and_leaves_out_what_is_missing():
    indices, distances = graph.knn_table(rng().normal(size=(80, 3)), 6, seed=0)
    directed = graph.table_matrix(indices, np.ones_like(distances), 80).toarray() > 0
    one_way = directed & ~directed.T
    i = int(one_way.sum(1).argmax())
    gone = np.flatnonzero(one_way[i])
    indices[i][np.isin(indices[i], gone)] = -1
    indices[(i + 1) % 80, 0] = (i + 1) % 80  # itself
    union = graph.fuzzy_union(indices, distances)
    assert union.dtype == np.float32
    assert union.has_sorted_indices
    assert abs(union - union.T).max() == 0
    assert union.diagonal().max() == 0
    assert union.data.min() > 0
    assert union.data.max() <= 1
    assert gone.size > 0
    assert not np.isin(gone, union[i].indices).any()


@pytest.mark.parametrize(
    ("indices", "distances", "text"),
    [
        ([[1, 1], [0, 2], [0, 1]], np.ones((3, 2)), "neighbour 1 twice in row 0"),
        ([[1, 3], [0, 2], [0, 1]], np.ones((3, 2)), "from 0 to 3"),
        ([[1, 2], [0, 2], [0, 1]], np.ones((3, 1)), "expected one"),
        ([[1, 2], [0, 2], [0, 1]], -np.ones((3, 2)), ">= 0"),
    ],
)
def test_wrong_neighbours_are_refused(indices, distances, text):
    with pytest.raises(SetupError, match=text):
        graph.fuzzy_union(np.array(indices), distances)


def test_union_formula():
    w = sp.random(40, 40, density=0.2, random_state=0, format="csr")
    a = w.toarray()
    np.testing.assert_allclose(graph.probabilistic_union(w).toarray(), a + a.T - a * a.T, atol=1e-15)
    binary = (a > 0).astype(float)
    np.testing.assert_array_equal(
        graph.probabilistic_union(sp.csr_matrix(binary)).toarray(), np.minimum(binary + binary.T, 1)
    )


def test_check_names_the_fault():
    good = random_graph()
    assert graph.check_graph(good, 60) is None
    assert graph.check_graph(sp.csr_array(good), 60) is None
    assert "expected (61, 61)" in graph.check_graph(good, 61)
    assert "ndarray" in graph.check_graph(good.toarray(), 60)
    for value, word in ((-1.0, "negative"), (np.nan, "not finite"), (np.inf, "not finite")):
        bad = good.tolil()
        bad[3, 4] = value
        assert f"{word}, the first {value:g} between cells 3 and 4" in graph.check_graph(bad.tocsr(), 60)


def test_symmetrize_is_the_mean_without_loops():
    w = sp.random(30, 30, density=0.3, random_state=1, format="csr")
    a = (w.toarray() + w.toarray().T) / 2
    np.fill_diagonal(a, 0)
    np.testing.assert_allclose(graph.symmetrize(w).toarray(), a, atol=1e-15)
    symmetric = random_graph()
    assert abs(graph.symmetrize(symmetric) - symmetric).max() == 0
    assert graph.symmetrize(symmetric.astype(bool)).dtype == np.float32


def test_laplacians():
    a = random_graph().astype(float).tolil()
    a[7, :] = a[:, 7] = 0
    a[3, 3] = 5.0  # a loop does not count
    a = a.tocsr()
    dense = a.toarray()
    dense[3, 3] = 0
    d = dense.sum(1)
    linked = np.where(d > 0, 1.0, 0.0)
    safe = np.where(d > 0, d, 1)
    expected = {
        "comb": np.diag(d) - dense,
        "rw": np.diag(linked) - dense / safe[:, None],
        "sym": np.diag(linked) - dense / np.sqrt(np.outer(safe, safe)),
    }
    for kind, matrix in expected.items():
        np.testing.assert_allclose(graph.laplacian(a, kind).toarray(), matrix, atol=1e-14)
    assert a[3, 3] == 5.0
    with pytest.raises(SetupError, match="Did you mean 'sym'"):
        graph.laplacian(a, "symm")


def components_by_distance(x: np.ndarray, labels: np.ndarray) -> float:
    """Length of the minimum spanning tree of the components, by Kruskal on all pairs."""
    parent = labels.copy()
    total = 0.0
    pairs = cdist(x, x)
    for flat in np.argsort(pairs, axis=None, kind="stable"):
        i, j = divmod(int(flat), len(x))
        if parent[i] != parent[j]:
            parent[parent == parent[i]] = parent[j]
            total += pairs[i, j]
    return total


@pytest.mark.parametrize("n_islands", [2, 7, 40])
def test_bridges_are_the_minimum_spanning_tree(n_islands, monkeypatch):
    x = rng(n_islands).normal(size=(160, 2))
    islands = np.sort(rng(1).integers(0, n_islands, 160))
    island = sp.csr_matrix((islands[:, None] == islands[None]).astype(np.float32) * 0.5)
    island.setdiag(0)
    island.eliminate_zeros()
    before = graph.n_components(island)
    joined = graph.connect_components(island, x)
    assert graph.n_components(joined) == 1
    assert joined.dtype == np.float32
    assert abs(joined - joined.T).max() == 0
    bridges = sp.triu(joined - island).tocoo()
    assert bridges.nnz == before - 1
    np.testing.assert_allclose(bridges.data, 1e-3 * 0.5, rtol=1e-6)
    length = np.linalg.norm(x[bridges.row] - x[bridges.col], axis=1).sum()
    np.testing.assert_allclose(length, components_by_distance(x, graph.components(island)), rtol=1e-9)
    monkeypatch.setattr(graph.structure, "_SMALL", 1)  # every larger component by itself
    assert abs(graph.connect_components(island, x) - joined).max() == 0


def test_bridges_with_exact_ties_make_no_cycle():
    x = np.array([[float(i), float(j)] for i in range(6) for j in range(6)])
    joined = graph.connect_components(sp.csr_matrix((36, 36)), x)
    assert graph.n_components(joined) == 1
    assert joined.nnz == 2 * 35


def test_a_connected_graph_is_returned_as_it_was():
    ring = graph.symmetrize(sp.csr_matrix(np.roll(np.eye(20), 1, axis=1)))
    assert abs(graph.connect_components(ring, rng().normal(size=(20, 2))) - ring).max() == 0
    with pytest.raises(SetupError, match="each of 20 cells"):
        graph.connect_components(ring, np.zeros((19, 2)))


def test_fingerprint_follows_content_only():
    a = random_graph()
    name = graph.fingerprint(a)
    assert len(name) == 64
    shuffled = a.tocoo()
    order = rng().permutation(shuffled.nnz)
    again = sp.coo_matrix((shuffled.data[order], (shuffled.row[order], shuffled.col[order])), shape=a.shape)
    with_zero = a.tolil()
    for same in (again, sp.csr_array(a), a.astype(np.float64), with_zero.tocsr(), a * np.float32(1 + 1e-8)):
        assert graph.fingerprint(same) == name
    wide = a.copy()
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    assert graph.fingerprint(wide) == name
    changed = a.copy()
    changed.data[0] *= 1.001
    assert graph.fingerprint(changed) != name
    assert graph.fingerprint(a * np.float32(1e-9)) != graph.fingerprint(a * np.float32(2e-9))
    assert graph.fingerprint(sp.csr_matrix((5, 5))) != graph.fingerprint(sp.csr_matrix((6, 6)))


def test_leiden_finds_blocks_and_leaves_generators_alone():
    blocks = np.repeat(np.arange(4), 25)
    dense = (blocks[:, None] == blocks[None]) + 0.01
    np.fill_diagonal(dense, 0)
    random.seed(3)
    expected = random.random()
    random.seed(3)
    labels = graph.leiden(sp.csr_matrix(dense), resolution=1.0, seed=0)
    assert random.random() == expected
    assert labels.shape == (100,)
    assert len(set(zip(labels.tolist(), blocks.tolist(), strict=True))) == 4 == len(set(labels.tolist()))
    noisy = graph.fuzzy_union(*graph.knn_table(rng().normal(size=(300, 5)), 10, seed=0))
    runs = [graph.leiden(noisy, resolution=2.0, seed=seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()
