"""What a certificate promises, on systems that were stopped early on purpose."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import scipy.sparse as sp

from cellsmith._errors import ConvergenceError
from cellsmith.math import graph, solve
from cellsmith.math.solve import smoothing

N_SYSTEMS = 1_000


def draw(seed: int):
    """Random system of all kinds, and its right-hand side: also isolated cells, several components, anchors, NaN."""
    rng = np.random.default_rng(seed)
    n, c = int(rng.integers(4, 45)), int(rng.integers(2, 7))
    pairs = sp.random(n, n, density=min(1.0, rng.uniform(0.5, 6) / n), random_state=rng, data_rvs=rng.random)
    a = graph.symmetrize(pairs)
    kind = ("sym", "rw", "comb")[seed % 3]
    w = (None, rng.uniform(0.05, 3, n), np.where(rng.random(n) < 0.3, 0.0, rng.random(n) + 0.1))[seed // 3 % 3]
    clamped = rng.random(n) < 0.2 if seed // 9 % 2 else np.zeros(n, dtype=bool)
    p0 = rng.dirichlet(np.full(c, 0.5), n) if seed % 4 else rng.normal(size=(n, c))
    equations = solve.system(a, laplacian=kind, smoothness_weight=10 ** rng.uniform(-1, 2), fidelity=w, clamped=clamped)
    anchors = rng.integers(0, c, n) if clamped.any() else None
    return equations, equations.right_hand_side(p0, anchors=anchors), rng


@cache
def runs():
    """(error, bound, sharpened bound, certified, same label) of every system."""
    found = []
    for seed in range(N_SYSTEMS):
        equations, b, rng = draw(seed)
        exact = np.linalg.solve(equations.matrix.toarray(), b)
        tol = 10 ** rng.uniform(-6, -0.3)
        right = b.astype(np.float32) if seed % 5 == 0 else b
        if seed % 2 and equations.bounds[0] > 0:
            steps = int(rng.integers(1, 12))
            x = solve.chebyshev(
                equations.apply,
                right,
                bounds=equations.bounds,
                diag=equations.diag,
                tol=tol,
                steps=steps,
                strict=False,
            ).x
        else:
            x = solve.block_cg(
                equations.apply, right, diag=equations.diag, tol=tol, max_iter=int(rng.integers(1, 40)), strict=False
            ).x
        known = equations.known if equations.known is not None else solve.solved_supersolution(equations)
        bound = solve.error_bound(equations.apply, x, b, supersolution=known)
        sharp = solve.error_bound(equations.apply, x, b, supersolution=known, sweeps=2)
        certified = solve.certified_argmax(x, bound)
        finer = solve.certified_argmax(x, sharp)
        same = x.argmax(1) == exact.argmax(1)
        found.append((np.abs(x - exact), bound, sharp, certified, finer, same, equations.known is not None))
    return found


def test_the_bound_is_never_violated():
    for seed, (error, bound, sharp, *_) in enumerate(runs()):
        assert (error <= bound).all(), seed
        assert (error <= sharp).all(), seed
        assert (sharp <= bound * (1 + 1e-6)).all(), seed


def test_no_certified_label_ever_differs():
    certified = np.concatenate([r[3] for r in runs()])
    finer = np.concatenate([r[4] for r in runs()])
    same = np.concatenate([r[5] for r in runs()])
    assert same[certified].all()
    assert same[finer].all()
    assert finer[certified].all()
    # the test would be empty if all were right anyway, or if nothing were certified
    assert (~same).sum() >= 100
    assert certified.mean() >= 0.3
    assert finer.sum() > certified.sum()


def test_the_bound_is_sharp():
    """In the median of the systems, the bound of the median entry is at most 20 times its error."""

    def ratios(which):
        entries = [(r[which], r[0], r[0] > 1e-12) for r in runs()]
        return np.median([np.median(b[seen] / e[seen]) for b, e, seen in entries if seen.any()])

    assert ratios(1) <= 25
    assert ratios(2) <= 20


def test_both_kinds_of_supersolution_were_tried():
    known = np.array([r[6] for r in runs()])
    assert 200 <= known.sum() <= 800


def test_the_global_bound_for_unit_weights():
    """|e_c| <= |r_c|, because the smallest eigenvalue of I + lambda L is at least 1 (GRIT Eq. 10)."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        a = graph.symmetrize(sp.random(40, 40, density=0.1, random_state=rng, data_rvs=rng.random))
        equations = solve.system(a, laplacian=("sym", "comb")[seed % 2], smoothness_weight=5.0)
        b = equations.right_hand_side(rng.random((40, 3)))
        exact = np.linalg.solve(equations.matrix.toarray(), b)
        x = solve.block_cg(equations.apply, b, diag=equations.diag, tol=0.1, max_iter=4, strict=False).x
        residual = b - equations.matrix @ x
        assert (np.linalg.norm(x - exact, axis=0) <= np.linalg.norm(residual, axis=0) * (1 + 1e-12)).all()


@pytest.mark.parametrize("kind", ["sym", "rw", "comb"])
def test_known_supersolutions_are_what_the_laplacian_gives(kind):
    rng = np.random.default_rng(0)
    a = graph.symmetrize(sp.random(50, 50, density=0.15, random_state=rng, data_rvs=rng.random)).tolil()
    a[7, :] = a[:, 7] = 0
    a, w = a.tocsr(), rng.random(50) + 0.1
    equations = solve.system(a, laplacian=kind, smoothness_weight=8.0, fidelity=w)
    d = a.toarray().sum(1)
    linked = d > 0
    v = np.sqrt(d) if kind == "sym" else np.ones(50)
    g = {"comb": w, "rw": w * d, "sym": w * np.sqrt(d)}[kind]
    np.testing.assert_allclose(equations.known.v[linked], v[linked])
    np.testing.assert_allclose(equations.known.g[linked], g[linked])
    measured = equations.matrix @ equations.known.v
    assert (measured >= equations.known.g).all()
    np.testing.assert_allclose(measured, equations.known.g, rtol=1e-9)


def test_sym_is_sharper_than_the_global_factor():
    """v = sqrt(d) weighs each cell; the factor sqrt(d_max / d_min) would be paid by all."""
    rng = np.random.default_rng(1)
    hubs = sp.random(200, 200, density=0.02, random_state=rng, data_rvs=lambda k: rng.random(k) ** 4 + 1e-3)
    a = graph.symmetrize(hubs + sp.eye(200, k=1) * 0.01)
    equations = solve.system(a, smoothness_weight=5.0)
    b = equations.right_hand_side(rng.dirichlet(np.ones(4), 200))
    x = solve.block_cg(equations.apply, b, diag=equations.diag, tol=1e-3, max_iter=50).x
    bound = solve.error_bound(equations.apply, x, b, supersolution=equations.known)
    d = equations.degree
    plain = np.sqrt(d.max() / d.min()) * np.abs(b - equations.matrix @ x).max(axis=0)
    assert np.median(bound / plain) < 1
    assert (bound <= plain * (1 + 1e-9)).all()


def test_exact_cells_leave_the_maximum():
    """A wrong value in an isolated cell says nothing about the others."""
    rng = np.random.default_rng(2)
    a = graph.symmetrize(sp.random(30, 30, density=0.3, random_state=rng, data_rvs=rng.random)).tolil()
    a[4, :] = a[:, 4] = 0
    equations = solve.system(a.tocsr(), smoothness_weight=5.0)
    b = equations.right_hand_side(rng.random((30, 2)))
    x = np.linalg.solve(equations.matrix.toarray(), b)
    x[4] += 0.5
    bound = solve.error_bound(equations.apply, x, b, supersolution=equations.known)
    np.testing.assert_allclose(bound[4], 0.5, rtol=1e-9)
    assert np.delete(bound, 4, axis=0).max() < 1e-12


def test_zero_weights_have_no_known_bound_but_a_solved_one():
    rng = np.random.default_rng(3)
    a = graph.symmetrize(sp.random(60, 60, density=0.2, random_state=rng, data_rvs=rng.random))
    equations = solve.system(a, smoothness_weight=5.0, fidelity=np.where(np.arange(60) < 30, 0.0, 1.0))
    assert equations.known is None
    solved = solve.solved_supersolution(equations)
    assert (solved.g <= equations.matrix @ solved.v).all()
    assert solved.g.min() > 0.5


def test_a_component_on_a_vanishing_weight_is_no_silent_bound(monkeypatch):
    monkeypatch.setattr(smoothing, "_MOST_STEPS", 500)
    chain = sp.diags([np.ones(399)], [1], shape=(400, 400))
    a = sp.csr_matrix(chain + chain.T)
    w = np.zeros(400)
    w[0] = 1e-18
    equations = solve.system(a, laplacian="comb", smoothness_weight=1e6, fidelity=w)
    with pytest.raises(ConvergenceError):
        solve.solved_supersolution(equations)
