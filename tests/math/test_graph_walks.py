"""Walks over a cell graph and personalised PageRank."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from cellsmith._errors import SetupError
from cellsmith.math import graph


def random_graph(n: int, *, seed: int, density: float = 0.05) -> sp.csr_matrix:
    upper = sp.triu(sp.random(n, n, density=density, random_state=seed, format="csr"), k=1)
    return sp.csr_matrix(upper + upper.T)


def test_rows_of_the_walk_sum_to_one_also_for_isolated_cells() -> None:
    a = random_graph(60, seed=0).tolil()
    a[7, :] = 0
    a[:, 7] = 0
    walk = graph.random_walk(a.tocsr())
    np.testing.assert_allclose(walk.sum(axis=1), 1.0, atol=1e-12)
    assert walk[7, 7] == 1.0
    lazy = graph.lazy_walk(walk, teleport=0.5)
    np.testing.assert_allclose(lazy.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(lazy.toarray(), 0.5 * np.eye(60) + 0.5 * walk.toarray())


def test_symmetric_form_is_the_walk_scaled_by_roots_of_degrees() -> None:
    a = random_graph(40, seed=1)
    d = np.asarray(a.sum(axis=1)).ravel() + 1
    expected = np.sqrt(d)[:, None] * graph.random_walk(a).toarray() / np.sqrt(d)
    found = graph.symmetric_walk(a).toarray()
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(found, found.T, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("teleport", [0.1, 0.5])
def test_pushed_mass_stays_below_the_truth_by_no_more_than_the_bound(seed: int, teleport: float) -> None:
    looped = graph.self_loops(random_graph(80, seed=seed))
    d = np.asarray(looped.sum(axis=1)).ravel()
    truth = graph.ppr_dense(sp.diags(1 / d) @ looped, teleport=teleport)
    for tol in (1e-2, 1e-4):
        found = graph.ppr_push(looped, np.arange(80), teleport=teleport, tol=tol).toarray()
        gap = truth - found
        assert gap.min() >= -1e-12
        assert (gap <= tol * d + 1e-12).all()
    assert np.abs(truth.sum(axis=1) - 1).max() < 1e-9


def test_tight_tolerance_gives_the_dense_inverse() -> None:
    looped = graph.self_loops(random_graph(300, seed=5))
    d = np.asarray(looped.sum(axis=1)).ravel()
    truth = graph.ppr_dense(sp.diags(1 / d) @ looped, teleport=0.5)
    found = graph.ppr_rows(looped, teleport=0.5, k=300, tol=1e-10)
    np.testing.assert_allclose(found.operator.toarray(), truth, atol=1e-6)
    np.testing.assert_allclose(found.kept, 1.0, atol=1e-5)


def test_largest_entries_are_kept_with_the_cell_and_scaled() -> None:
    looped = graph.self_loops(random_graph(90, seed=2, density=0.2))
    full = graph.ppr_dense(sp.diags(1 / np.asarray(looped.sum(axis=1)).ravel()) @ looped, teleport=0.1)
    found = graph.ppr_rows(looped, teleport=0.1, k=5, tol=1e-8)
    rows = found.operator
    assert (np.diff(rows.indptr) <= 5).all()
    np.testing.assert_allclose(rows.sum(axis=1), 1.0, atol=1e-12)
    assert (rows.diagonal() > 0).all()
    assert (found.kept < 1).all()
    best = np.sort(full, axis=1)[:, ::-1][:, :5].sum(axis=1)
    np.testing.assert_allclose(found.kept, best, atol=1e-4)


def test_teleport_of_one_is_the_identity_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    looped = graph.self_loops(random_graph(30, seed=3))
    np.testing.assert_array_equal(graph.ppr_topk(looped, teleport=1.0, k=5, tol=1e-4).toarray(), np.eye(30))
    whole = graph.ppr_topk(looped, teleport=0.3, k=8, tol=1e-4)
    monkeypatch.setattr("cellsmith.math.graph.ppr._BLOCK", 7)
    assert abs(whole - graph.ppr_topk(looped, teleport=0.3, k=8, tol=1e-4)).max() < 1e-15


def test_edge_weights_matter() -> None:
    a = random_graph(30, seed=3)
    other = a.copy()
    other.data[:] = 1.0
    one, two = (graph.ppr_topk(graph.self_loops(x), teleport=0.5, k=8, tol=1e-5) for x in (a, other))
    assert abs(one - two).max() > 1e-3


def test_bad_operators_say_so() -> None:
    a = random_graph(20, seed=0)
    with pytest.raises(SetupError, match="teleport=0"):
        graph.ppr_topk(graph.self_loops(a), teleport=0, k=5, tol=1e-4)
    with pytest.raises(SetupError, match="expected at least 1"):
        graph.ppr_topk(graph.self_loops(a), teleport=0.5, k=0, tol=1e-4)
    with pytest.raises(SetupError, match="self_loops"):
        graph.ppr_topk(sp.csr_matrix((5, 5)), teleport=0.5, k=5, tol=1e-4)
    with pytest.raises(SetupError, match="negative"):
        graph.ppr_topk(-graph.self_loops(a), teleport=0.5, k=5, tol=1e-4)


@pytest.mark.parametrize("rate", [0.1, 0.34])
def test_exactly_a_share_of_each_cells_own_edges_is_dropped(rate: float) -> None:
    """F21: the released code left out the least similar of all cells, not of a cell's edges."""
    walk = graph.random_walk(random_graph(50, seed=4, density=0.3))
    before = walk.copy()
    score = np.random.default_rng(0).normal(size=walk.nnz)
    out = graph.drop_edges(walk, score, rate=rate, cells=np.arange(50))
    assert (walk != before).nnz == 0
    edges = np.diff(walk.indptr) - 1
    np.testing.assert_array_equal(np.diff(out.indptr), 1 + edges - np.ceil(rate * edges - 1e-9))
    np.testing.assert_allclose(out.sum(axis=1), 1.0, atol=1e-12)
    assert (out.diagonal() > 0).all()
    for i in range(50):
        old, new = (set(m.indices[m.indptr[i] : m.indptr[i + 1]]) - {i} for m in (walk, out))
        assert new <= old
        own = dict(zip(walk.indices[walk.indptr[i] :], score[walk.indptr[i] : walk.indptr[i + 1]], strict=False))
        gone = old - new
        if gone and new:
            assert max(own[j] for j in gone) <= min(own[j] for j in new)


def test_no_edge_is_dropped_at_rate_zero_and_bad_rates_are_refused() -> None:
    walk = graph.random_walk(random_graph(20, seed=4))
    score = np.zeros(walk.nnz)
    assert (graph.drop_edges(walk, score, rate=0, cells=np.arange(20)) != walk).nnz == 0
    with pytest.raises(SetupError, match="expected a rate in"):
        graph.drop_edges(walk, score, rate=1.0, cells=np.arange(20))


def test_new_cell_beside_the_graph_is_exact() -> None:
    """S9: against the operators of the graph to which a cell with outgoing edges alone was added."""
    generator = np.random.default_rng(1)
    n, a = 40, 0.5
    walk = graph.random_walk(random_graph(n, seed=6)).toarray()
    w = generator.random(n) * (generator.random(n) < 0.2)
    w /= w.sum()
    h = generator.normal(size=(n + 1, 3))
    larger = np.zeros((n + 1, n + 1))
    larger[:n, :n], larger[n, :n] = walk, w
    pi = a * np.linalg.inv(np.eye(n + 1) - (1 - a) * larger)
    lazy = a * np.eye(n + 1) + (1 - a) * larger
    weights = sp.csr_matrix(w[None])
    reference = graph.ppr_dense(walk, teleport=a) @ h[:n]
    np.testing.assert_allclose(graph.place_beside(h[n:], weights, reference, teleport=a)[0], (pi @ h)[n], atol=1e-12)
    np.testing.assert_allclose(graph.place_beside(h[n:], weights, h[:n], teleport=a)[0], (lazy @ h)[n], atol=1e-12)
