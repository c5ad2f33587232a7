"""Laws of smoothing over a graph: limits, conserved quantities, exactness, equivalences, invariances."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from cellsmith.math import graph, solve

KINDS = ("sym", "rw", "comb")
WEIGHTS = ("one", "uneven", "zeros")


def random_graph(n: int, seed: int, *, degree: float = 6.0) -> sp.csr_matrix:
    """Connected random graph: uneven weights on random pairs, and a ring."""
    rng = np.random.default_rng(seed)
    pairs = sp.random(n, n, density=min(1.0, degree / n), random_state=rng, format="csr", data_rvs=rng.random)
    ring = sp.csr_matrix((np.full(n, 0.3), (np.arange(n), (np.arange(n) + 1) % n)), shape=(n, n))
    return graph.symmetrize(pairs + ring)


def scores(n: int, c: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(c, 0.4), n)


def weights(name: str, n: int, seed: int) -> np.ndarray | None:
    rng = np.random.default_rng(seed)
    if name == "one":
        return None
    w = rng.uniform(0.05, 3.0, n)
    return w if name == "uneven" else np.where(rng.random(n) < 0.3, 0.0, w)


def refine(a, p0, *, solver="lu", tol=1e-10, max_iter=None, **kwargs):
    equations = solve.system(a, **kwargs)
    b = equations.right_hand_side(p0)
    return equations.restore(solve.solve(equations, b, solver=solver, tol=tol, max_iter=max_iter).x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["one", "uneven"])
def test_no_smoothing_returns_the_scores(kind, which):
    p0 = scores(60, 4, 0)
    for name in ("lu", "cg", "chebyshev"):
        p = refine(
            random_graph(60, 0), p0, solver=name, laplacian=kind, smoothness_weight=0.0, fidelity=weights(which, 60, 1)
        )
        np.testing.assert_allclose(p, p0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", WEIGHTS)
def test_infinite_smoothing_gives_component_means(kind, which):
    sizes = (40, 25, 15)
    a = sp.block_diag([random_graph(n, i) for i, n in enumerate(sizes)]).tocsr()
    n = sum(sizes)
    w, p0, d = weights(which, n, 2), scores(n, 4, 3), a.toarray().sum(1)
    own = np.ones(n) if w is None else w
    p = refine(a, p0, laplacian=kind, smoothness_weight=1e8, fidelity=w, tol=1e-6)
    block = np.repeat(np.arange(3), sizes)
    for i in range(3):
        cells = block == i
        flat = np.sqrt(d[cells]) if kind == "sym" else np.ones(cells.sum())  # what the Laplacian does not see
        mass = own[cells] * (d[cells] if kind == "rw" else 1.0)
        level = (flat * mass) @ p0[cells] / (mass @ flat**2)
        np.testing.assert_allclose(p[cells], flat[:, None] * level, atol=1e-6)


def test_rows_stay_on_the_simplex_in_500_random_systems():
    for seed in range(500):
        rng = np.random.default_rng(seed)
        n, kind = int(rng.integers(4, 30)), ("rw", "comb")[seed % 2]
        a = random_graph(n, seed, degree=rng.uniform(0.5, 8))
        p = refine(
            a,
            scores(n, int(rng.integers(2, 6)), seed),
            laplacian=kind,
            smoothness_weight=10 ** rng.uniform(-2, 3),
            fidelity=weights(WEIGHTS[seed % 3], n, seed),
        )
        p = p[np.isfinite(p).all(1)]
        np.testing.assert_allclose(p.sum(1), 1.0, atol=1e-6)
        assert p.min() >= -1e-9
        assert p.max() <= 1 + 1e-9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", WEIGHTS)
def test_what_the_laplacian_does_not_see_is_fixed(kind, which):
    a = random_graph(50, 5)
    flat = np.sqrt(a.toarray().sum(1)) if kind == "sym" else np.ones(50)
    p0 = flat[:, None] * np.array([0.2, 0.5, 0.3])
    for name in ("lu", "cg"):
        p = refine(
            a,
            p0,
            solver=name,
            laplacian=kind,
            smoothness_weight=20.0,
            fidelity=weights(which, 50, 6),
            tol=1e-9,
        )
        np.testing.assert_allclose(p, p0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_more_weight_is_smoother(kind):
    a, p0 = random_graph(80, 7), scores(80, 4, 8)
    lap = graph.laplacian(a, "sym" if kind == "sym" else "comb")
    rough = [
        np.trace(p.T @ (lap @ p))
        for p in (refine(a, p0, laplacian=kind, smoothness_weight=v) for v in (0.1, 1, 5, 20, 100))
    ]
    assert (np.diff(rough) < 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", WEIGHTS)
@pytest.mark.parametrize("name", ["cg", "chebyshev"])
def test_iterations_equal_the_dense_solution(kind, which, name):
    if name == "chebyshev" and which == "zeros":
        pytest.skip("no lower bound of the spectrum")
    for seed in range(3):
        a, p0 = random_graph(120, seed), scores(120, 6, seed)
        equations = solve.system(
            a, laplacian=kind, smoothness_weight=(1.0, 5.0, 10.0)[seed], fidelity=weights(which, 120, seed)
        )
        b = equations.right_hand_side(p0)
        exact = np.linalg.solve(equations.matrix.toarray(), b)
        found = solve.solve(equations, b, solver=name, tol=1e-7)
        np.testing.assert_allclose(found.x, exact, atol=1e-5)
        tight = solve.solve(equations, b, solver=name, tol=1e-12)
        np.testing.assert_allclose(tight.x, exact, atol=1e-8)


@pytest.mark.parametrize("weight", [1.0, 5.0, 10.0])
def test_sym_is_the_smoothing_step_of_correct_and_smooth(weight):
    """Huang et al., arXiv 2010.13993: Z <- (1 - a) Z0 + a S Z, run to its end."""
    a, p0 = random_graph(100, 9), scores(100, 5, 10)
    share = weight / (1 + weight)
    d = a.toarray().sum(1)
    s = a.toarray() / np.sqrt(np.outer(d, d))
    z = p0.copy()
    for _ in range(600):
        z = (1 - share) * p0 + share * s @ z
    closed = (1 - share) * np.linalg.solve(np.eye(100) - share * s, p0)
    for name in ("lu", "cg", "chebyshev"):
        p = refine(a, p0, solver=name, laplacian="sym", smoothness_weight=weight, tol=1e-11)
        np.testing.assert_allclose(p, closed, atol=1e-8)
        np.testing.assert_allclose(p, z, atol=1e-8)


@pytest.mark.parametrize("kind", ["sym", "rw"])
def test_the_scale_of_the_graph_plays_no_role(kind):
    a, p0, w = random_graph(100, 11), scores(100, 5, 12), weights("uneven", 100, 13)
    one = refine(a, p0, solver="cg", laplacian=kind, smoothness_weight=5.0, fidelity=w)
    for factor in (1e-4, 7.3, 1e5):
        p = refine(a * factor, p0, solver="cg", laplacian=kind, smoothness_weight=5.0, fidelity=w)
        np.testing.assert_allclose(p, one, atol=1e-8)
        np.testing.assert_array_equal(p.argmax(1), one.argmax(1))


@pytest.mark.parametrize("kind", KINDS)
def test_permuted_cells_and_classes_permute_the_answer(kind):
    rng = np.random.default_rng(14)
    a, p0, w = random_graph(100, 15), scores(100, 5, 16), weights("uneven", 100, 17)
    cells, classes = rng.permutation(100), rng.permutation(5)
    one = refine(a, p0, solver="cg", laplacian=kind, smoothness_weight=5.0, fidelity=w)
    two = refine(
        a[cells][:, cells],
        p0[cells][:, classes],
        solver="cg",
        laplacian=kind,
        smoothness_weight=5.0,
        fidelity=w[cells],
    )
    np.testing.assert_allclose(two, one[cells][:, classes], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_chebyshev_keeps_its_promise(kind):
    """After the a-priori number of steps the error is at most eps of the first, in the norm of the scaled system."""
    for seed in range(12):
        weight, eps = (0.3, 1.0, 5.0, 30.0)[seed % 4], (1e-1, 1e-3, 1e-6)[seed % 3]
        which = ("one", "uneven")[seed % 2]
        equations = solve.system(
            random_graph(60, seed), laplacian=kind, smoothness_weight=weight, fidelity=weights(which, 60, seed)
        )
        b = equations.right_hand_side(scores(60, 4, seed))
        exact = np.linalg.solve(equations.matrix.toarray(), b)
        steps = solve.a_priori_steps(equations.condition, eps)
        found = solve.chebyshev(
            equations.apply, b, bounds=equations.bounds, diag=equations.diag, tol=eps, steps=steps, strict=False
        )
        root = np.sqrt(equations.diag)[:, None]
        error, first = (np.linalg.norm(root * e, axis=0) for e in (found.x - exact, exact))
        assert (error <= eps * first).all()
        assert found.iterations == steps


def test_chebyshev_in_the_plain_norm_with_the_bounds_of_the_spec():
    for weight in (1.0, 5.0, 10.0):
        equations = solve.system(random_graph(90, 1), laplacian="sym", smoothness_weight=weight)
        b = equations.right_hand_side(scores(90, 4, 2))
        exact = np.linalg.solve(equations.matrix.toarray(), b)
        steps = solve.a_priori_steps(1 + 2 * weight, 1e-4)
        found = solve.chebyshev(equations.apply, b, bounds=(1.0, 1 + 2 * weight), tol=1e-4, steps=steps, strict=False)
        assert (np.linalg.norm(found.x - exact, axis=0) <= 1e-4 * np.linalg.norm(exact, axis=0)).all()


def test_cg_takes_no_more_steps_than_chebyshev():
    equations = solve.system(random_graph(500, 3), smoothness_weight=10.0)
    b = equations.right_hand_side(scores(500, 4, 4))
    cg, chebyshev = (solve.solve(equations, b, solver=name, tol=1e-4) for name in ("cg", "chebyshev"))
    assert cg.iterations <= chebyshev.iterations <= 23
