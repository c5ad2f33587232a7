from __future__ import annotations

import gc
import time

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from cellsmith._errors import ConvergenceError, SetupError
from cellsmith.math import graph, solve
from cellsmith.math.solve import direct

KINDS = ("sym", "rw", "comb")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def cells(n: int = 200, seed: int = 0, k: int = 10) -> sp.csr_matrix:
    return graph.fuzzy_union(*graph.knn_table(rng(seed).normal(size=(n, 3)), k, seed=0))


def scores(n: int = 200, c: int = 5, seed: int = 1) -> np.ndarray:
    return rng(seed).dirichlet(np.full(c, 0.5), n)


def dense_answer(equations: solve.System, b: np.ndarray) -> np.ndarray:
    return np.linalg.solve(equations.matrix.toarray(), b)


# --- the system ---


@pytest.mark.parametrize("kind", KINDS)
def test_system_is_the_objective(kind):
    a, w, weight = cells(), rng(2).random(200) + 0.1, 3.0
    equations = solve.system(a, laplacian=kind, smoothness_weight=weight, fidelity=w)
    d = a.toarray().astype(float).sum(1)
    own = w * d if kind == "rw" else w
    lap = graph.laplacian(a, "sym" if kind == "sym" else "comb").toarray()
    np.testing.assert_allclose(equations.matrix.toarray(), np.diag(own) + weight * lap, atol=1e-12)
    np.testing.assert_allclose(equations.diag, equations.matrix.diagonal())
    p0 = scores()
    np.testing.assert_allclose(equations.right_hand_side(p0), own[:, None] * p0)
    # the answer is where the gradient of the objective vanishes, and any step away raises it
    p = dense_answer(equations, equations.right_hand_side(p0))

    def objective(q):
        return np.trace((q - p0).T @ (own[:, None] * (q - p0))) + weight * np.trace(q.T @ lap @ q)

    for seed in range(5):
        assert objective(p + 0.01 * rng(seed).normal(size=p.shape)) > objective(p)


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_without_computing_eigenvalues(kind):
    for seed, w in ((0, None), (1, rng(1).random(80) + 0.1)):
        clamped = rng(seed).random(80) < 0.2
        equations = solve.system(
            cells(80, seed), laplacian=kind, smoothness_weight=4.0, fidelity=w, clamped=clamped if seed else None
        )
        root = 1 / np.sqrt(equations.diag)
        values = np.linalg.eigvalsh(root[:, None] * equations.matrix.toarray() * root)
        low, high = equations.bounds
        assert low - 1e-12 <= values.min()
        assert values.max() <= high + 1e-12
        assert equations.condition == pytest.approx(high / low)
    assert solve.system(cells(), laplacian="sym", smoothness_weight=4.0).condition == pytest.approx(9.0)
    assert solve.system(cells(), laplacian="rw", smoothness_weight=4.0).condition == pytest.approx(9.0)


@pytest.mark.parametrize("kind", KINDS)
def test_isolated_cells_keep_their_scores(kind):
    a = cells().tolil()
    a[[3, 50], :] = 0
    a[:, [3, 50]] = 0
    a[3, 3] = 4.0  # a loop makes no neighbour
    w = rng().random(200) + 0.5
    equations = solve.system(a.tocsr(), laplacian=kind, smoothness_weight=9.0, fidelity=w)
    p0 = scores()
    found = solve.solve(equations, equations.right_hand_side(p0), solver="cg", tol=1e-10)
    assert equations.isolated.sum() >= 2
    np.testing.assert_allclose(found.x[[3, 50]], p0[[3, 50]], atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_clamped_cells_solve_the_free_block(kind):
    a, clamped = cells(), rng(3).random(200) < 0.15
    classes = rng(4).integers(0, 5, 200)
    equations = solve.system(a, laplacian=kind, smoothness_weight=2.0, clamped=clamped)
    p0 = scores()
    b = equations.right_hand_side(p0, anchors=classes)
    found = solve.solve(equations, b, tol=1e-12)
    full = solve.system(a, laplacian=kind, smoothness_weight=2.0).matrix.toarray()
    own = a.toarray().astype(float).sum(1) if kind == "rw" else np.ones(200)
    y, free = np.eye(5)[classes[clamped]], ~clamped
    right = own[free, None] * p0[free] - full[np.ix_(free, clamped)] @ y
    np.testing.assert_allclose(found.x[free], np.linalg.solve(full[np.ix_(free, free)], right), atol=1e-10)
    np.testing.assert_array_equal(found.x[clamped], y)
    soft = np.full((200, 5), np.nan)
    soft[clamped] = y
    np.testing.assert_array_equal(equations.right_hand_side(p0, anchors=soft), b)


def test_cells_without_scores_are_filled_and_lone_components_stay_open():
    a = sp.block_diag([cells(60), cells(30, 1), cells(20, 2), sp.csr_matrix((1, 1))]).tocsr()
    p0, w = scores(111), np.ones(111)
    w[:5] = 0
    p0[:5] = np.nan
    w[60:111] = 0
    p0[60:111] = np.nan
    clamped = np.zeros(111, dtype=bool)
    clamped[95] = True  # reaches the third block, not the second
    equations = solve.system(a, smoothness_weight=5.0, fidelity=w, clamped=clamped)
    assert equations.condition == np.inf
    np.testing.assert_array_equal(np.flatnonzero(equations.undetermined), [*range(60, 90), 110])
    b = equations.right_hand_side(p0, anchors=np.full(111, 2))
    found = equations.restore(solve.solve(equations, b, solver="cg", tol=1e-8).x)
    assert np.isnan(found[[*range(60, 90), 110]]).all()
    rest = found[[*range(60), *range(90, 110)]]
    assert np.isfinite(rest).all()
    assert (found[:5].sum(1) > 0.1).all()
    third = np.r_[90:95, 96:110]
    assert (found[third].argmax(1) == 2).all()
    with pytest.raises(SetupError, match="weight of zero"):
        solve.solve(equations, b, solver="chebyshev")
    nothing = solve.system(a, smoothness_weight=0.0, fidelity=w, clamped=clamped)
    np.testing.assert_array_equal(nothing.undetermined, (w == 0) & ~clamped)


def test_order_changes_nothing_but_the_order():
    a, p0, w = cells(), scores(), rng(5).random(200) + 0.1
    clamped = rng(6).random(200) < 0.1
    anchors = rng(7).integers(0, 5, 200)
    plain = solve.system(a, smoothness_weight=5.0, fidelity=w, clamped=clamped)
    moved = solve.system(a, smoothness_weight=5.0, fidelity=w, clamped=clamped, order=solve.cuthill_mckee(a))
    one, two = (s.restore(solve.solve(s, s.right_hand_side(p0, anchors=anchors), tol=1e-12).x) for s in (plain, moved))
    np.testing.assert_allclose(one, two, atol=1e-11)
    rows = np.arange(200)
    np.testing.assert_array_equal(moved.restore(moved.take(rows)), rows)

    def bandwidth(m):
        return np.abs(m.tocoo().row - m.tocoo().col).max()

    assert bandwidth(moved.matrix) < bandwidth(plain.matrix)
    np.testing.assert_allclose(
        solve.permute(a, moved.order).toarray(), a.toarray()[np.ix_(moved.order, moved.order)], rtol=0
    )


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ({"laplacian": "norm"}, "laplacian='norm'"),
        ({"smoothness_weight": -1.0}, "smoothness_weight=-1.0"),
        ({"smoothness_weight": np.nan}, "smoothness_weight=nan"),
        ({"fidelity": np.ones(3)}, r"fidelity of shape \(3,\)"),
        ({"fidelity": np.r_[-1.0, np.ones(199)]}, "with 1 entries"),
        ({"clamped": np.arange(200)}, "booleans"),
        ({"order": np.zeros(200, dtype=int)}, "permutation"),
    ],
)
def test_wrong_systems_are_refused(extra, text):
    with pytest.raises(SetupError, match=text):
        solve.system(cells(), **{"smoothness_weight": 1.0, **extra})


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_of_the_caller_stays_as_it_was(kind):
    a = cells().tolil()
    a[3, 3], a[5, 5] = 2.0, 1.0
    a = a.tocsr()
    a.data[7] = a.data[8] = 0
    a = graph.symmetrize(a) + sp.diags(np.r_[1.0, np.zeros(199)], format="csr", dtype=np.float32)
    for part in (a.data, a.indices, a.indptr):
        part.setflags(write=False)
    clamped, w = np.arange(200) < 20, np.r_[np.zeros(30), np.ones(170)]
    for weight in (0.0, 5.0):
        for order in (None, solve.cuthill_mckee(a)):
            equations = solve.system(
                a, laplacian=kind, smoothness_weight=weight, fidelity=w, clamped=clamped, order=order
            )
            b = equations.right_hand_side(scores(), anchors=np.zeros(200, dtype=int))
            solve.solve(equations, b, solver="cg")
    p = scores()
    solve.extend(a, p, degree=graph.degrees(a), laplacian=kind, smoothness_weight=1.0)
    graph.laplacian(a, kind)
    graph.symmetrize(a)
    graph.fingerprint(a)
    graph.connect_components(a, rng().normal(size=(200, 2)))
    graph.probabilistic_union(a)
    graph.leiden(a, resolution=1.0, seed=0)
    assert graph.check_graph(a, 200) is None


def test_wrong_graphs_are_refused():
    directed = sp.random(50, 50, density=0.1, random_state=0, format="csr")
    with pytest.raises(SetupError, match=r"Pass symmetrize\(graph\)"):
        solve.system(directed, smoothness_weight=1.0)
    with pytest.raises(SetupError, match="negative"):
        solve.system(-cells(), smoothness_weight=1.0)
    with pytest.raises(SetupError, match="scipy sparse"):
        solve.system(cells().toarray(), smoothness_weight=1.0)


def test_wrong_scores_are_refused():
    equations = solve.system(cells(), smoothness_weight=1.0, order=solve.cuthill_mckee(cells()))
    bad = scores()
    bad[17, 3] = np.inf
    with pytest.raises(SetupError, match="score inf of cell 17 for class 3"):
        equations.right_hand_side(bad)
    with pytest.raises(SetupError, match=r"expected \(200, classes\)"):
        equations.right_hand_side(scores(100))
    held = solve.system(cells(), smoothness_weight=1.0, clamped=np.arange(200) < 3)
    with pytest.raises(SetupError, match="3 clamped cells but no anchors"):
        held.right_hand_side(scores())
    with pytest.raises(SetupError, match="class 5 for the clamped cell 0"):
        held.right_hand_side(scores(), anchors=np.full(200, 5))


# --- the solvers ---


def test_steps_of_the_spec():
    assert [solve.a_priori_steps(1 + 2 * weight, 1e-4) for weight in (1, 5, 10)] == [8, 16, 23]
    assert solve.a_priori_steps(1.0, 1e-4) == 1
    with pytest.raises(SetupError, match="kappa"):
        solve.a_priori_steps(np.inf, 1e-4)


@pytest.mark.parametrize("name", ["lu", "cg", "chebyshev"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_solver_reaches_its_tolerance(name, dtype):
    equations = solve.system(cells(), smoothness_weight=5.0)
    b = equations.right_hand_side(scores().astype(dtype))
    found = solve.solve(equations, b, solver=name, tol=1e-4)
    assert found.x.dtype == dtype
    assert found.converged.all()
    relative = np.linalg.norm(b - equations.matrix @ found.x.astype(float), axis=0) / np.linalg.norm(b, axis=0)
    np.testing.assert_allclose(found.residual, relative, rtol=1e-4, atol=1e-7)
    assert relative.max() <= 1e-4


def test_float32_goes_on_from_the_true_residual():
    equations = solve.system(cells(400), smoothness_weight=10.0)
    b = equations.right_hand_side(scores(400).astype(np.float32))
    found = solve.solve(equations, b, solver="cg", tol=5e-7)
    assert found.x.dtype == np.float32
    assert found.residual.max() <= 5e-7
    np.testing.assert_allclose(found.x, dense_answer(equations, b.astype(float)), atol=1e-6)


@pytest.mark.parametrize("name", ["cg", "chebyshev"])
def test_what_float32_cannot_resolve_goes_on_in_float64(name):
    equations = solve.system(cells(400), laplacian="comb", smoothness_weight=300.0)
    b = equations.right_hand_side(scores(400).astype(np.float32))
    found = solve.solve(equations, b, solver=name, tol=1e-6)
    assert found.x.dtype == np.float64
    assert found.residual.max() <= 1e-6
    np.testing.assert_allclose(found.x, dense_answer(equations, b.astype(float)), atol=1e-5)


def test_columns_leave_when_they_have_converged():
    equations = solve.system(cells(), smoothness_weight=20.0)
    eigen = np.sqrt(equations.degree)[:, None]
    b = np.hstack([eigen, 2 * eigen, np.zeros((200, 1)), equations.right_hand_side(scores(c=2))])
    widths = []

    def apply(x):
        widths.append(x.shape[1])
        return equations.matrix @ x

    found = solve.block_cg(apply, b, diag=equations.diag, tol=1e-8, max_iter=200)
    assert widths[0] == 4  # the column of zeros never enters
    assert widths[2] == 2  # an eigenvector takes one step
    np.testing.assert_allclose(found.x, dense_answer(equations, b), atol=1e-6)
    assert (found.x[:, 2] == 0).all()
    assert found.residual[2] == 0


def test_a_column_does_not_depend_on_its_company():
    equations = solve.system(cells(), smoothness_weight=5.0)
    b = equations.right_hand_side(scores())
    together = solve.block_cg(equations.apply, b, diag=equations.diag, tol=1e-10, max_iter=100).x
    alone = [
        solve.block_cg(equations.apply, b[:, [c]], diag=equations.diag, tol=1e-10, max_iter=100).x for c in range(5)
    ]
    np.testing.assert_allclose(together, np.hstack(alone), atol=1e-9)


def test_a_good_start_saves_iterations():
    equations = solve.system(cells(), smoothness_weight=5.0)
    b = equations.right_hand_side(scores())
    answer = dense_answer(equations, b)
    for name in ("cg", "chebyshev"):
        cold = solve.solve(equations, b, solver=name, tol=1e-6)
        warm = solve.solve(equations, b, solver=name, tol=1e-6, x0=answer * (1 + 1e-4))
        assert warm.iterations < cold.iterations
        assert warm.residual.max() <= 1e-6
    done = solve.solve(equations, b, solver="cg", tol=1e-6, x0=answer)
    assert done.iterations == 0
    assert solve.solve(equations, b, solver="chebyshev", tol=1e-6, x0=answer).iterations == 0


def test_history_falls_and_ends_below_the_tolerance():
    equations = solve.system(cells(), smoothness_weight=10.0)
    found = solve.solve(equations, equations.right_hand_side(scores()), solver="cg", tol=1e-6)
    assert len(found.history) == found.iterations
    assert found.history[-1] <= 1e-6 < found.history[-2]


def test_not_converging_is_an_error_with_the_residuals():
    equations = solve.system(cells(), smoothness_weight=50.0)
    b = equations.right_hand_side(scores())
    with pytest.raises(ConvergenceError, match=r"in 5 of 5 columns after 3 iterations .* 0: \d\.\de[+-]\d\d"):
        solve.block_cg(equations.apply, b, diag=equations.diag, tol=1e-8, max_iter=3)
    early = solve.block_cg(equations.apply, b, diag=equations.diag, tol=1e-8, max_iter=3, strict=False)
    assert early.iterations == 3
    assert not early.converged.any()
    single = b.astype(np.float32)
    with pytest.raises(ConvergenceError, match="float64"):
        solve.block_cg(equations.apply, single, diag=equations.diag, tol=1e-12, max_iter=1000)
    with pytest.raises(ConvergenceError, match="after 2 iterations"):
        solve.chebyshev(equations.apply, b, bounds=equations.bounds, diag=equations.diag, tol=1e-8, steps=2)


def test_an_indefinite_matrix_is_noticed():
    matrix = sp.diags([1.0, -1.0, 2.0]).tocsr()
    with pytest.raises(ConvergenceError, match="not positive definite"):
        solve.block_cg(solve.CsrApply(matrix), np.ones((3, 2)), diag=np.ones(3), tol=1e-8, max_iter=10)


def test_wrong_right_hand_sides_are_refused():
    equations = solve.system(cells(), smoothness_weight=5.0)
    b = equations.right_hand_side(scores())
    b[4, 2] = np.nan
    with pytest.raises(SetupError, match="not finite in column 2"):
        solve.solve(equations, b, solver="cg")
    with pytest.raises(SetupError, match="start of shape"):
        solve.solve(equations, b[:, :2], solver="cg", x0=b)
    with pytest.raises(SetupError, match="Did you mean 'chebyshev'"):
        solve.solve(equations, b[:, :2], solver="chebychev")


def test_choice_of_the_solver():
    assert solve.choose_solver(3_000) == "lu"
    assert solve.choose_solver(3_001) == "cg"
    assert solve.choose_solver(10**6, solver="lu") == "lu"


def chain(n: int, k: int = 6) -> sp.csr_matrix:
    """Band graph of k neighbours to each side, quick to make at any n."""
    weights = [np.full(n - j, 1.0 / j, dtype=np.float32) for j in range(1, k + 1)]
    upper = sp.diags(weights, list(range(1, k + 1)), shape=(n, n), format="csr")
    return sp.csr_matrix(upper + upper.T)


def test_twenty_thousand_cells_never_meet_a_factorisation(monkeypatch):
    calls = []
    monkeypatch.setattr(direct, "splu", lambda *args, **kwargs: calls.append(1))
    equations = solve.system(chain(20_000), smoothness_weight=5.0)
    b = equations.right_hand_side(scores(20_000, 4).astype(np.float32))
    assert solve.solve(equations, b).converged.all()
    assert calls == []


@pytest.mark.parametrize("name", ["cg", "chebyshev"])
def test_four_arrays_besides_the_right_hand_side(name):
    equations = solve.system(chain(20_000), smoothness_weight=5.0)
    b = torch.from_numpy(equations.right_hand_side(scores(20_000, 6).astype(np.float32)))
    gc.collect()
    # held, so that no address of theirs is given out again
    alive = [t for t in gc.get_objects() if isinstance(t, torch.Tensor)]
    before = {t.untyped_storage().data_ptr() for t in alive if t.layout == torch.strided}
    operator = solve.TorchApply(equations.matrix)
    most = calls = 0

    def apply(x):
        nonlocal most, calls
        calls += 1
        if calls in (2, 5):
            stores = {
                t.untyped_storage().data_ptr()
                for t in gc.get_objects()
                if isinstance(t, torch.Tensor) and t.layout == torch.strided and t.ndim == 2 and t.numel() >= b.numel()
            }
            most = max(most, len(stores - before))
        return operator(x)

    if name == "cg":
        solve.block_cg(apply, b, diag=equations.diag, tol=1e-5, max_iter=100)
    else:
        solve.chebyshev(apply, b, bounds=equations.bounds, diag=equations.diag, tol=1e-5)
    assert 2 <= most <= 3  # x, r and the direction; the product is the fourth


def test_cg_is_bit_equal_on_any_number_of_threads():
    equations = solve.system(chain(6_000), smoothness_weight=5.0)
    b = equations.right_hand_side(scores(6_000, 12).astype(np.float32))
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            found.append(solve.solve(equations, b).x)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[1], found[2])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["cg", "chebyshev"])
def test_tensors_give_what_arrays_give(device, name):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    equations = solve.system(cells(), smoothness_weight=5.0)
    b = equations.right_hand_side(scores())
    operator = solve.TorchApply(equations.matrix, device=device)
    tensor = torch.from_numpy(b).to(device)
    extra = {"max_iter": 100} if name == "cg" else {"bounds": equations.bounds}
    method = solve.block_cg if name == "cg" else solve.chebyshev
    found = method(operator, tensor, diag=equations.diag, tol=1e-9, **extra)
    assert found.x.device.type == device
    np.testing.assert_allclose(found.x.cpu().numpy(), dense_answer(equations, b), atol=1e-8)
    again = solve.solve(equations, b, solver=name, tol=1e-9, device=device)
    np.testing.assert_allclose(again.x, dense_answer(equations, b), atol=1e-8)


def test_active_columns():
    p = np.array([[0.0, 1e-7, 0.2, np.nan], [0.0, 0.0, 0.0, 0.5]])
    np.testing.assert_array_equal(solve.active_columns(p), [False, False, True, True])


def test_one_class():
    equations = solve.system(cells(), laplacian="rw", smoothness_weight=5.0)
    found = solve.solve(equations, equations.right_hand_side(np.ones((200, 1))), solver="cg")
    np.testing.assert_allclose(found.x, 1.0, atol=1e-3)
    bound = solve.error_bound(
        equations.apply, found.x, equations.right_hand_side(np.ones((200, 1))), supersolution=equations.known
    )
    assert solve.certified_argmax(found.x, bound).all()


# --- certificates and new cells, by hand ---


def test_every_rival_counts():
    scores_ = np.array([[0.5, 0.4, 0.3], [0.5, 0.4, 0.3], [0.5, 0.5, 0.1], [np.nan, 0.1, 0.2]])
    bound = np.array([[0.01, 0.01, 0.05], [0.01, 0.01, 0.2], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    # the second cell's runner-up is far, its third class is not
    np.testing.assert_array_equal(solve.certified_argmax(scores_, bound), [True, False, False, False])
    with pytest.raises(SetupError, match="one"):
        solve.certified_argmax(scores_, bound[:2])


def test_bound_needs_a_supersolution():
    equations = solve.system(cells(), smoothness_weight=5.0)
    b = equations.right_hand_side(scores())
    broken = solve.Supersolution(v=np.ones(200), g=np.r_[0.0, np.ones(199)])
    with pytest.raises(SetupError, match="both > 0"):
        solve.error_bound(equations.apply, b, b, supersolution=broken)
    with pytest.raises(SetupError, match="expected"):
        solve.error_bound(equations.apply, b[:3], b, supersolution=equations.known)
    plain = solve.Supersolution(v=equations.known.v, g=equations.known.g)
    assert solve.error_bound(equations.apply, b, b, supersolution=plain).shape == b.shape
    with pytest.raises(SetupError, match="sweeps=0"):
        solve.error_bound(equations.apply, b, b, supersolution=plain, sweeps=1)


@pytest.mark.parametrize("kind", KINDS)
def test_new_cells_reproduce_the_old_ones(kind):
    a, p0, w = cells(), scores(), rng(8).random(200) + 0.2
    w[:4] = 0
    p0[:4] = np.nan
    equations = solve.system(a, laplacian=kind, smoothness_weight=5.0, fidelity=w)
    p = solve.solve(equations, equations.right_hand_side(p0), tol=1e-12).x
    again = solve.extend(a, p, degree=equations.degree, scores=p0, laplacian=kind, smoothness_weight=5.0, fidelity=w)
    scored = slice(4, None) if kind == "sym" else slice(None)  # sym: without scores it is the plain neighbour mean
    np.testing.assert_allclose(again[scored], p[scored], atol=1e-6)


def test_new_cells_without_scores_or_neighbours():
    p = scores(6, 3)
    p[5] = np.nan
    links = sp.csr_matrix(np.array([[1.0, 3.0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 2.0, 0, 0, 7.0]]))
    degree = np.ones(6)
    mean = solve.extend(links, p, degree=degree, smoothness_weight=5.0)
    np.testing.assert_allclose(mean[0], 0.25 * p[0] + 0.75 * p[1])
    assert np.isnan(mean[1]).all()
    np.testing.assert_allclose(mean[2], p[2])  # a neighbour without scores is none
    own = scores(3, 3, seed=5)
    own[0] = np.nan
    mixed = solve.extend(links, p, degree=degree, scores=own, laplacian="rw", smoothness_weight=5.0)
    np.testing.assert_allclose(mixed[0], mean[0])
    np.testing.assert_allclose(mixed[1], own[1])
    np.testing.assert_allclose(mixed[2], (own[2] + 5 * p[2]) / 6)
    with pytest.raises(SetupError, match="one column and one degree"):
        solve.extend(links, p[:5], degree=degree, smoothness_weight=1.0)


@pytest.mark.slow
def test_a_hundred_thousand_cells_in_seconds():
    from scipy.spatial import cKDTree

    x = rng().random((100_000, 2))
    distances, indices = cKDTree(x).query(x, k=23)
    a = graph.fuzzy_union(indices[:, 1:].astype(np.int32), distances[:, 1:])
    p0 = scores(100_000, 30).astype(np.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start = time.perf_counter()
        equations = solve.system(a, smoothness_weight=5.0, order=solve.cuthill_mckee(a))
        found = solve.solve(equations, equations.right_hand_side(p0))
        seconds = time.perf_counter() - start
    finally:
        torch.set_num_threads(threads)
    assert found.residual.max() <= 1e-4
    assert seconds < 10
