"""Entropic transport against Python Optimal Transport and the published kernel form."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from cellsmith.math.transport import sinkhorn, sinkhorn_partial

ot = pytest.importorskip("ot")

INF = float("inf")


def problem(n_row: int, n_col: int, *, scale: float = 2.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    row, col = (rng.uniform(0.5, 1.5, n) for n in (n_row, n_col))
    return scale * rng.random((n_row, n_col)), row / row.sum(), col / col.sum()


def tensors(*arrays, dtype=torch.float64):
    return [torch.as_tensor(a, dtype=dtype) for a in arrays]


def test_balanced_equals_pot():
    cost, row, col = problem(8, 30)
    expected = ot.sinkhorn(row, col, cost, 0.05, numItermax=20_000, stopThr=1e-13)
    found = sinkhorn(*tensors(cost, row, col), epsilon=0.05, tol=1e-12, max_sweeps=20_000)
    np.testing.assert_allclose(found.plan, expected, atol=1e-8)
    single = sinkhorn(
        *tensors(cost, row, col, dtype=torch.float32), epsilon=0.05, stop="marginal", tol=5e-3, max_sweeps=1000
    )
    np.testing.assert_allclose(single.plan, expected, atol=1e-3)
    assert float((single.plan * torch.as_tensor(cost)).sum()) == pytest.approx((expected * cost).sum(), abs=1e-3)


@pytest.mark.parametrize("col_penalty", [0.05, 1.0])
def test_relaxed_columns_equal_pot(col_penalty):
    cost, row, col = problem(30, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = ot.unbalanced.sinkhorn_unbalanced(
            row, col, cost, 0.2, (INF, col_penalty), reg_type="entropy", numItermax=20_000, stopThr=1e-14
        )
    options = {"epsilon": 0.2, "col_penalty": col_penalty, "tol": 1e-13, "max_sweeps": 20_000}
    np.testing.assert_allclose(sinkhorn(*tensors(cost, row, col), **options).plan, expected, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize(("mass", "all_of_col"), [(0.3, False), (0.8, False), (0.5, True)])
def test_partial_equals_pot(scale, mass, all_of_col):
    cost, row, col = problem(30, 5, scale=scale)
    col = col * mass if all_of_col else col
    expected = ot.partial.entropic_partial_wasserstein(
        row, col, cost, 0.2, m=mass * (1 - 1e-12), numItermax=3000, stopThr=1e-14, method="sinkhorn_log"
    )
    found = sinkhorn_partial(*tensors(cost, row, col), mass=mass, epsilon=0.2, tol=1e-12, max_sweeps=3000)
    assert found.converged
    np.testing.assert_allclose(found.plan, expected, atol=1e-6)


@pytest.mark.parametrize("col_penalty", [INF, 0.5])
def test_pot_by_name(col_penalty):
    cost, row, col = tensors(*problem(20, 6))
    options = {"epsilon": 0.2, "col_penalty": col_penalty, "tol": 1e-9, "max_sweeps": 2000}
    ours, theirs = (sinkhorn(cost, row, col, solver=solver, **options) for solver in ("log", "pot"))
    assert theirs.converged
    assert theirs.n_sweeps <= 3  # POT had done the work
    torch.testing.assert_close(theirs.plan, ours.plan, atol=1e-8, rtol=0)
    weights = torch.rand(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grads = []
    for solver in ("log", "pot"):
        leaf = cost.clone().requires_grad_()
        (sinkhorn(leaf, row, col, solver=solver, gradient="implicit", **options).plan * weights).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, atol=1e-7, rtol=0)


def test_loss_equals_the_published_kernel_form():
    """scE2TM's published solver: scalings of exp(-20 D), tested against 5e-3 every 50 sweeps."""
    generator = torch.Generator().manual_seed(0)
    topics, genes = (torch.nn.functional.normalize(torch.randn(n, 200, generator=generator), dim=1) for n in (100, 500))
    cost = torch.cdist(topics, genes).square()
    row, col = torch.full((100,), 0.01), torch.full((500,), 1 / 500)
    kernel, u = torch.exp(-20 * cost), torch.full((100,), 0.01)
    for _ in range(151):
        v = col / (kernel.T @ u + 1e-16)
        u = row / (kernel @ v + 1e-16)
    published = float((u[:, None] * kernel * v * cost).sum())
    found = sinkhorn(cost, row, col, epsilon=0.05, stop="marginal", tol=5e-3, max_sweeps=1000)
    assert found.n_sweeps <= 20
    assert float((found.plan * cost).sum()) == pytest.approx(published, abs=2e-3)
