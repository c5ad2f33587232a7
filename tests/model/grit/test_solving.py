"""The solve: certificates that hold, what never happens, anchors, cells without scores, protection."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from cellsmith._errors import ConvergenceError
from cellsmith.math import graph, solve
from cellsmith.model.grit import equations as eq
from cellsmith.model.grit.solving import Problem, _Certified, _corrected, label_codes, refine, refine_protected


def ring(n: int, *, reach: int = 8, seed: int = 0) -> sp.csr_matrix:
    """Cells on a circle, joined to their neighbours with random weights, in random order in memory."""
    rng = np.random.default_rng(seed)
    i = np.repeat(np.arange(n), reach)
    j = (i + np.tile(np.arange(1, reach + 1), n)) % n
    order = rng.permutation(n)
    return graph.symmetrize(sp.csr_matrix((rng.uniform(0.1, 1, i.size), (order[i], order[j])), shape=(n, n)))


def make(n: int = 300, c: int = 5, *, kind: str = "sym", lam: float = 5.0, dtype: str = "float32") -> Problem:
    rng = np.random.default_rng(n)
    p0 = rng.dirichlet(np.full(c, 0.3), n).astype(dtype)
    return Problem(ring(n), p0, np.ones(n), np.full(n, -1), kind, lam)


@pytest.mark.parametrize("kind", ["sym", "rw", "comb"])
@pytest.mark.parametrize("solver", ["cg", "chebyshev"])
@pytest.mark.parametrize("fidelity", ["uniform", "uneven", "holes"])
def test_iterations_reach_the_direct_solution(kind: str, solver: str, fidelity: str) -> None:
    problem = make(kind=kind, dtype="float64")
    w = {"uniform": np.ones(300), "uneven": np.linspace(0.2, 2, 300), "holes": np.ones(300)}[fidelity]
    if fidelity == "holes":
        w[::7] = 0
    problem = replace(problem, fidelity=w)
    exact = refine(problem, solver="lu").solution
    found = refine(problem, solver=solver, tol=1e-7)
    np.testing.assert_allclose(found.solution, exact, atol=1e-5)
    assert found.solver == ("cg" if fidelity == "holes" else solver)


@pytest.mark.parametrize("kind", ["sym", "rw", "comb"])
def test_bounds_and_certified_labels_hold(kind: str) -> None:
    """Stopped early on purpose: the bound covers the true error, and no certified label differs."""
    exact = refine(make(kind=kind, dtype="float64"), solver="lu")
    right = label_codes(exact.scores)
    for tol in (0.3, 0.05, 1e-3):
        rough = refine(make(kind=kind, dtype="float64"), solver="cg", tol=tol)
        error = np.abs(rough.solution - exact.solution).max(axis=0)
        assert (error <= rough.bound).all()
        assert (label_codes(rough.scores) == right)[rough.certified].all()
    assert rough.certified.all()
    assert exact.n_uncertified == 0


def test_open_labels_are_solved_more_accurately() -> None:
    rough = refine(make(3000), solver="cg", tol=0.02)
    assert rough.residual.min() < 0.02 * 0.2  # the tolerance was lowered for the classes that decide
    assert rough.n_uncertified < 30
    assert rough.iterations == len(rough.history)


def test_a_tie_is_never_certified() -> None:
    problem = replace(make(), p0=np.full((300, 5), 0.2))
    found = refine(problem, solver="cg")
    assert found.n_uncertified == 300


def test_a_large_graph_is_never_factorised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellsmith.math.solve.direct.splu", lambda *a, **k: pytest.fail("factorised 20,000 cells"))
    problem = make(20_000, 8)
    problem = replace(problem, order=solve.cuthill_mckee(problem.weights))
    tracemalloc.start()
    found = refine(problem)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.solver == "cg"
    assert found.residual.max() <= 1e-4
    assert peak < 12 * (problem.weights.data.nbytes * 3 + 20_000 * 8 * 8)


def test_order_in_memory_changes_nothing() -> None:
    problem = make()
    moved = replace(problem, order=solve.cuthill_mckee(problem.weights))
    here, there = (refine(p, solver="cg", tol=1e-6) for p in (problem, moved))
    np.testing.assert_allclose(here.solution, there.solution, atol=1e-5)
    np.testing.assert_array_equal(here.certified, there.certified)


def test_no_convergence_names_the_classes() -> None:
    with pytest.raises(ConvergenceError, match=r"residual above tol.*NK: .*max_iter"):
        refine(make(lam=1000.0), solver="cg", tol=1e-8, max_iter=2, names=("B", "NK", "T", "mono", "DC"))


@pytest.mark.parametrize("anchored", [True, False])
def test_the_graph_is_left_as_it_was(anchored: bool) -> None:
    problem = make()
    if anchored:
        problem.clamped[::10] = 1
    problem.fidelity[::9] = 0
    before = graph.fingerprint(problem.weights)
    refine(problem)
    refine(problem, solver="cg")
    assert graph.fingerprint(problem.weights) == before
    assert problem.weights.nnz == ring(300).nnz


def test_isolated_cells_keep_their_scores_and_components_do_not_mix() -> None:
    two = sp.block_diag([ring(40), ring(50, seed=1), sp.csr_matrix((3, 3))]).tocsr()
    p0 = np.random.default_rng(0).dirichlet(np.ones(3), 93)
    p0[:40] = [1, 0, 0]
    for kind in ("sym", "rw", "comb"):
        found = refine(Problem(two, p0, np.ones(93), np.full(93, -1), kind, 50.0))
        np.testing.assert_array_equal(found.solution[90:], p0[90:])
        assert not found.solution[:40, 1:].any()
        assert found.solution[40:90, 1].min() > 0
        assert found.system.isolated.sum() == 3


def test_cells_without_scores_are_filled_and_empty_components_stay_missing() -> None:
    two = sp.block_diag([ring(40), ring(50, seed=1)]).tocsr()
    p0 = np.random.default_rng(0).dirichlet(np.ones(3), 90)
    p0[3], p0[40:] = np.nan, np.nan
    w = np.where(np.isnan(p0).any(axis=1), 0.0, 1.0)
    for solver in ("lu", "cg"):
        found = refine(Problem(two, p0, w, np.full(90, -1), "comb", 5.0), solver=solver, tol=1e-8)
        assert np.isnan(found.solution[40:]).all()
        assert found.missing.sum() == 50
        degree = graph.degrees(two)
        neighbours = two[3] @ np.nan_to_num(found.solution) / degree[3]
        np.testing.assert_allclose(found.solution[3], neighbours.ravel(), atol=1e-5)
        assert np.isfinite(found.bound).all()


def test_lambda_zero_returns_the_scores_and_cannot_fill() -> None:
    problem = make(lam=0.0)
    problem.p0[4] = np.nan
    found = refine(replace(problem, fidelity=np.where(np.arange(300) == 4, 0.0, 1.0)))
    np.testing.assert_allclose(np.delete(found.solution, 4, 0), np.delete(problem.p0, 4, 0), atol=1e-7)
    assert np.isnan(found.solution[4]).all()


def test_clamped_cells_are_held_and_pull_their_neighbours() -> None:
    problem = make()
    free = refine(problem)
    problem.clamped[:60] = 2
    held = refine(problem)
    np.testing.assert_array_equal(held.solution[:60], np.tile(np.eye(5)[2], (60, 1)))
    assert held.solution[60:, 2].mean() > free.solution[60:, 2].mean() + 0.02
    by_cg = refine(problem, solver="cg", tol=1e-7)
    np.testing.assert_allclose(by_cg.solution, held.solution, atol=1e-5)
    assert (np.abs(by_cg.solution - held.solution).max(axis=0) <= by_cg.bound + 1e-7).all()


def test_empty_classes_leave_the_solve_and_return_as_zeros() -> None:
    problem = make(c=6)
    problem.p0[:, 4] = 1e-8
    found = refine(problem, solver="cg")
    assert list(found.active) == [True] * 4 + [False, True]
    assert not found.solution[:, 4].any()
    problem.clamped[0] = 4  # an anchor brings its class back
    assert refine(problem, solver="cg").active.all()


def test_half_prior_is_certified_too() -> None:
    exact = refine(replace(make(dtype="float64"), half_prior=True))
    rough = refine(replace(make(dtype="float64"), half_prior=True), solver="cg", tol=1e-3)
    assert (exact.factors != 1).all()
    assert (label_codes(exact.scores) == label_codes(rough.scores))[rough.certified].all()


@pytest.mark.parametrize("size", [1e-6, 1e-3, 0.05])
def test_bounds_with_factors_cover_the_exact_scores_and_the_exact_factors(size: float) -> None:
    """Eq. 13 in Eq. 12: the factors are made of the approximate solution, and are themselves in error."""
    rng = np.random.default_rng(0)
    tight = 0
    for _ in range(200):
        exact = rng.dirichlet(np.full(4, 0.2), 30) * np.array([1, 1, 0.1, 0])
        bound = size * rng.random(exact.shape) * np.array([1, 1, 1, 0])
        state = _Certified(np.maximum(exact + bound * rng.uniform(-1, 1, exact.shape), 0), *[None] * 5)  # type: ignore[arg-type]
        state.factors = eq.class_factors(state.x)
        low, high = eq.factor_range(state.x, bound)
        right = eq.class_factors(exact)
        assert (low <= right).all()
        assert (right <= high).all()
        p, slack = _corrected(state, bound, np.arange(30), (low, high))
        assert (np.abs(exact * right - p) <= slack * (1 + 1e-12)).all()
        tight += bool((np.abs(exact * right - p) > bound * state.factors).any())
    assert tight > 0  # bounds with the factors as they are would be wrong
    _, slack = _corrected(state, bound, np.arange(30), None)
    np.testing.assert_array_equal(slack, bound)


def test_no_certified_label_differs_under_the_half_prior() -> None:
    differs = 0
    for seed in range(20):
        problem = replace(make(200, dtype="float64"), half_prior=True)
        problem = replace(problem, p0=np.random.default_rng(seed).dirichlet(np.r_[np.full(4, 0.5), 0.05], 200))
        exact = label_codes(refine(problem).scores)
        for tol in (0.5, 0.1):
            rough = refine(problem, solver="cg", tol=tol)
            different = label_codes(rough.scores) != exact
            differs += different.sum()
            assert not different[rough.certified].any()
            assert rough.certified.any()
    assert differs > 0


def test_what_is_missing_is_solved_for_in_the_precision_of_the_iterations() -> None:
    """Two tenfolds below the tolerance that was asked for, from float32 iterations."""
    problem = make(4_000, c=8)
    found = refine(problem, solver="cg", tol=1e-4)
    exact = refine(replace(problem, p0=problem.p0.astype(np.float64)), solver="cg", tol=1e-10)
    assert found.residual.max() <= 1e-5
    assert np.abs(found.solution - exact.solution).max() <= found.bound.max()
    assert (label_codes(found.scores) == label_codes(exact.scores))[found.certified].all()


def test_protection_gives_a_class_its_cells_back() -> None:
    problem = make(lam=100.0)
    raw = label_codes(problem.p0)
    plain, same = refine_protected(problem, raw, protect=None)
    assert plain.rounds == 0
    assert same is problem
    guarded, stronger = refine_protected(problem, raw, protect=0.2)
    assert 1 <= guarded.rounds <= 3
    assert stronger.fidelity.max() == 4.0**guarded.rounds
    kept = [float((label_codes(r.scores) == raw).mean()) for r in (plain, guarded)]
    assert kept[1] > kept[0] + 0.1
