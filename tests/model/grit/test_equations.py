"""The equations of GRIT: identities, limits, invariances."""

from __future__ import annotations

import igraph
import numpy as np
import pytest
import scipy.sparse as sp

from cellsmith.math import graph
from cellsmith.model.grit import equations as eq
from cellsmith.model.grit.solving import Problem, label_codes, refine

KINDS = ("sym", "rw", "comb")


def random_graph(n: int = 40, *, seed: int = 0, density: float = 0.15) -> sp.csr_matrix:
    return graph.symmetrize(sp.random(n, n, density, random_state=np.random.default_rng(seed), format="csr"))


def problem(weights: sp.csr_matrix, p0: np.ndarray, *, lam: float = 5.0, kind: str = "sym", **more: object) -> Problem:
    n = len(p0)
    options = {"fidelity": np.ones(n), "clamped": np.full(n, -1), **more}
    return Problem(weights, p0, laplacian=kind, smoothness_weight=lam, **options)


def scores(n: int = 40, c: int = 3, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(c), n)


def test_first_deviation_states_what_is_ours() -> None:
    first = eq.DEVIATIONS[0]
    assert "not fixed" in first.published
    assert "no number of the paper is claimed" in first.change


@pytest.mark.parametrize("kind", KINDS)
def test_solution_minimises_the_objective(kind: str) -> None:
    a, p0 = random_graph(), scores()
    d = graph.degrees(a)
    laplacian = graph.laplacian(a, "sym" if kind == "sym" else "comb")
    w = np.where(d > 0, d, 1.0) if kind == "rw" else np.ones(40)
    best = refine(problem(a, p0, kind=kind)).solution
    value = eq.objective(best, p0, fidelity=w, laplacian=laplacian, smoothness_weight=5.0)
    rng = np.random.default_rng(1)
    for _ in range(20):
        other = best + 1e-3 * rng.normal(size=best.shape)
        assert eq.objective(other, p0, fidelity=w, laplacian=laplacian, smoothness_weight=5.0) > value


@pytest.mark.parametrize("kind", KINDS)
def test_limits(kind: str) -> None:
    a, p0 = random_graph(density=0.3), scores()
    assert graph.n_components(a) == 1
    np.testing.assert_allclose(refine(problem(a, p0, lam=0.0, kind=kind)).solution, p0, atol=1e-12)
    far, d = refine(problem(a, p0, lam=1e8, kind=kind)).solution, graph.degrees(a)
    v = np.sqrt(d) if kind == "sym" else np.ones(40)
    w = d if kind == "rw" else np.ones(40)
    mean = (w * v) @ p0 / (w * v * v).sum()
    np.testing.assert_allclose(far, v[:, None] * mean, atol=1e-6)


@pytest.mark.parametrize("kind", ["comb", "rw"])
def test_rows_stay_on_the_simplex(kind: str) -> None:
    found = refine(problem(random_graph(), scores(), kind=kind)).solution
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-10)
    assert found.min() >= -1e-12


def test_a_constant_column_is_a_fixed_point() -> None:
    p0 = np.column_stack([np.full(40, 0.3), scores(c=2)[:, 0]])
    for kind in ("comb", "rw"):
        np.testing.assert_allclose(refine(problem(random_graph(), p0, kind=kind)).solution[:, 0], 0.3, atol=1e-12)


def test_sym_is_the_smoothing_step_of_correct_and_smooth() -> None:
    a, p0 = random_graph(density=0.3), scores()
    alpha, root = 5 / 6, 1 / np.sqrt(graph.degrees(a))
    s = root[:, None] * a.toarray() * root
    expected = (1 - alpha) * np.linalg.solve(np.eye(40) - alpha * s, p0)
    np.testing.assert_allclose(refine(problem(a, p0)).solution, expected, atol=1e-8)


@pytest.mark.parametrize("kind", ["sym", "rw"])
def test_a_scaled_graph_changes_nothing_for_sym_and_rw(kind: str) -> None:
    a, p0 = random_graph(), scores()
    once, scaled = (refine(problem(g, p0, kind=kind)).solution for g in (a, 7.5 * a))
    np.testing.assert_allclose(once, scaled, atol=1e-10)
    comb = [refine(problem(g, p0, kind="comb")).solution for g in (a, 7.5 * a)]
    assert np.abs(comb[0] - comb[1]).max() > 1e-3


def test_order_of_cells_and_classes_does_not_matter() -> None:
    a, p0, rng = random_graph(), scores(), np.random.default_rng(2)
    rows, columns = rng.permutation(40), rng.permutation(3)
    moved = refine(problem(a[rows][:, rows].tocsr(), p0[rows][:, columns])).solution
    np.testing.assert_allclose(moved, refine(problem(a, p0)).solution[rows][:, columns], atol=1e-6)


@pytest.mark.parametrize(
    ("values", "space"),
    [
        ([[0.2, 0.8], [0.5, 0.5005]], "prob"),
        ([[1, 0], [0, 1]], "prob"),
        ([[0.2, 0.1], [0.9, 0.8]], "ovr"),
        ([[-0.2, 0.1], [0.9, 0.8]], "similarity"),
        ([[-3.0, 0.1], [0.9, 0.8]], "logit"),
        ([[5.0, 0.1], [0.9, 0.8]], "logit"),
        ([[np.nan, np.nan], [0.2, 0.8]], "prob"),
    ],
)
def test_space_rule(values: list[list[float]], space: str) -> None:
    assert eq.infer_space(np.array(values, dtype=float)) == space


def test_logits_and_similarities_go_through_a_softmax() -> None:
    x = np.array([[1.0, 2.0], [0.0, 0.0]])
    expected = 1 / (1 + np.exp(2.0))
    assert eq.to_scores(x, "logit", temperature=0.5)[0, 0] == pytest.approx(expected)
    np.testing.assert_array_equal(eq.to_scores(x, "raw"), x)
    np.testing.assert_allclose(eq.to_scores(1000 * x, "similarity"), [[0, 1], [0.5, 0.5]], atol=1e-12)


def test_confidence_fidelity() -> None:
    p0 = np.array([[1.0, 0, 0], [1 / 3, 1 / 3, 1 / 3], [np.nan] * 3, [0.6, 0.4, 0]])
    w, scale = eq.confidence_fidelity(p0)
    assert w[2] == 0
    assert w[[0, 1, 3]].mean() == pytest.approx(1)
    assert w[1] == pytest.approx(0.01 / scale)
    np.testing.assert_allclose(eq.confidence_fidelity(p0[:1], mean=scale)[0], w[0])


def test_half_prior_evens_masses_out() -> None:
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    g = eq.class_factors(p)
    np.testing.assert_allclose(g, np.array([0.8, 0.2]) ** -0.5)
    before, after = p.sum(axis=0), (p * g).sum(axis=0)
    assert after[0] / after[1] == pytest.approx(np.sqrt(before[0] / before[1]))
    assert eq.class_factors(np.array([[1.0, 0.0]]))[1] == 1


def test_effective_classes() -> None:
    assert eq.effective_classes(np.array([0, 1, 2, 3])) == pytest.approx(4)
    assert eq.effective_classes(np.array([1, 1, -1])) == pytest.approx(1)
    assert eq.effective_classes(np.array([-1])) == 0


def test_smoothing_conserves_the_mean_score() -> None:
    """Why the guard counts labels: no weight, however large, moves the mean score of a class."""
    p0 = scores()
    smooth = refine(problem(random_graph(), p0, kind="comb", lam=1000.0)).solution
    np.testing.assert_allclose(smooth.mean(axis=0), p0.mean(axis=0), atol=1e-12)


def test_oversmoothed_classes() -> None:
    raw = np.array([0] * 10 + [1] * 10 + [2] * 4 + [-1])
    refined = np.array([0] * 10 + [1] * 4 + [0] * 6 + [0] * 4 + [0])
    assert list(eq.oversmoothed(raw, refined, most=0.5)) == [1]  # class 2 has fewer than 5 cells
    assert not eq.oversmoothed(raw, refined, most=0.6).size


def test_modularity_equals_igraph() -> None:
    a, labels = random_graph(), np.random.default_rng(0).integers(0, 3, 40)
    upper = sp.triu(a).tocoo()
    reference = igraph.Graph(40, list(zip(upper.row, upper.col, strict=True)))
    expected = reference.modularity(labels.tolist(), weights=upper.data.tolist())
    assert eq.modularity(a, labels) == pytest.approx(expected, abs=1e-10)
    lone = labels.copy()
    lone[:5] = -1
    alone = np.where(lone < 0, 3 + np.arange(40), lone)
    assert eq.modularity(a, lone) == pytest.approx(eq.modularity(a, alone), abs=1e-10)


def test_norm_bound_holds() -> None:
    a, p0 = random_graph(), scores()
    exact = refine(problem(a, p0)).solution
    rough = refine(problem(a, p0), solver="cg", tol=0.05)
    error = np.linalg.norm(rough.solution - exact, axis=0)
    assert (error <= rough.error_norm + 1e-12).all()


def test_labels_of_rows() -> None:
    assert list(label_codes(np.array([[0.1, 0.9], [np.nan, np.nan], [0.5, 0.5]]))) == [1, -1, 0]
