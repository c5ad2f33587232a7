"""Laws of entropic transport: masses, order, units, limits of the column penalty, and which gradient is of what."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellsmith.math.transport import sinkhorn, sinkhorn_partial

INF = float("inf")


def masses(*sizes: int, dtype=torch.float64) -> list[torch.Tensor]:
    return [torch.full((n,), 1 / n, dtype=dtype) for n in sizes]


def costs(n_row: int = 6, n_col: int = 11, *, scale: float = 2.0, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return (scale * torch.rand(n_row, n_col, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).to(
        dtype
    )


def topic_costs(n_topics: int, n_genes: int, *, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    """Squared distances as after training: every gene near one of the topics, of uneven sizes."""
    generator = torch.Generator().manual_seed(seed)
    topics, genes = (
        torch.nn.functional.normalize(torch.randn(n, 40, dtype=torch.float64, generator=generator), dim=1)
        for n in (n_topics, n_genes)
    )
    own = torch.randint(n_topics, (n_genes,), generator=generator)
    genes = 0.8 * genes + (0.3 + 0.7 * torch.rand(n_genes, 1, dtype=torch.float64, generator=generator)) * topics[own]
    return torch.cdist(topics, genes).square().to(dtype)


def transport_loss(cost, gradient, *, epsilon=0.05, **options):
    row, col = masses(*cost.shape, dtype=cost.dtype)
    found = sinkhorn(cost, row, col, epsilon=epsilon, gradient=gradient, max_sweeps=20_000, **options)
    return (found.plan * cost).sum(), found


def gradient_of(cost, gradient, **options):
    cost = cost.clone().requires_grad_()
    transport_loss(cost, gradient, **options)[0].backward()
    return cost.grad


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.floats(0.05, 5.0), st.floats(0.01, 30.0), st.integers(0, 10_000))
def test_any_problem_gives_its_masses(n_row, n_col, epsilon, scale, seed):
    rng = np.random.default_rng(seed)
    row, col = (torch.as_tensor(rng.dirichlet(np.ones(n)) + 0.01) for n in (n_row, n_col))
    row, col = row / row.sum(), col / col.sum()
    cost = costs(n_row, n_col, scale=scale, seed=seed)
    found = sinkhorn(cost, row, col, epsilon=epsilon, stop="marginal", tol=1e-6, max_sweeps=3000)
    torch.testing.assert_close(found.plan.sum(1), row, atol=1e-10, rtol=0)
    assert (found.plan >= 0).all()
    if found.converged:
        assert (found.plan.sum(0) - col).abs().sum() < 1e-6
    mass = 0.5 * float(rng.random()) + 0.1
    part = sinkhorn_partial(cost, row, col, mass=mass, epsilon=epsilon, max_sweeps=3000)
    assert float(part.plan.sum()) == pytest.approx(mass, rel=1e-9)
    if part.converged:
        assert (part.plan.sum(0) <= col + 0.01 * mass).all()
        assert (part.plan.sum(1) <= row + 0.01 * mass).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(2, 6), st.floats(0.2, 3.0), st.integers(0, 10_000))
def test_order_of_rows_and_columns_does_not_matter(n_row, n_col, epsilon, seed):
    cost, (row, col) = costs(n_row, n_col, seed=seed), masses(n_row, n_col)
    generator = torch.Generator().manual_seed(seed)
    rows, cols = (torch.randperm(n, generator=generator) for n in (n_row, n_col))
    options = {"epsilon": epsilon, "tol": 1e-11, "max_sweeps": 5000}
    plain, mixed = sinkhorn(cost, row, col, **options), sinkhorn(cost[rows][:, cols], row, col, **options)
    torch.testing.assert_close(mixed.plan, plain.plan[rows][:, cols], atol=1e-9, rtol=0)
    turned = sinkhorn(cost.T, col, row, **options)
    torch.testing.assert_close(turned.plan.T, plain.plan, atol=1e-9, rtol=0)


def test_shift_and_unit_of_the_cost():
    cost, (row, col) = costs(), masses(6, 11)
    plain = sinkhorn(cost, row, col, epsilon=0.1, tol=1e-12, max_sweeps=5000)
    moved = sinkhorn(
        3 * (cost + torch.arange(6.0)[:, None] - torch.arange(11.0)), row, col, epsilon=0.3, tol=1e-12, max_sweeps=5000
    )
    torch.testing.assert_close(moved.plan, plain.plan, atol=1e-10, rtol=0)


def test_limits_of_the_column_penalty():
    cost, (row, col) = costs(), masses(6, 11)
    fixed, firm, free = (
        sinkhorn(cost, row, col, epsilon=0.1, col_penalty=p, tol=1e-12, max_sweeps=20_000).plan
        for p in (INF, 1e7, 1e-9)
    )
    torch.testing.assert_close(firm, fixed, atol=1e-6, rtol=0)
    torch.testing.assert_close(free, row[:, None] * torch.softmax(-cost / 0.1, dim=1), atol=1e-6, rtol=0)


def test_partial_of_everything_is_the_whole():
    for scale in (2.0, 50.0):
        cost, (row, col) = costs(scale=scale), masses(6, 11)
        whole = sinkhorn(cost, row, col, epsilon=0.2, tol=1e-12, max_sweeps=5000)
        part = sinkhorn_partial(cost, row, col, mass=1.0, epsilon=0.2, tol=1e-12, max_sweeps=5000)
        assert part.converged
        torch.testing.assert_close(part.plan, whole.plan, atol=1e-9, rtol=0)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
@pytest.mark.parametrize("col_penalty", [INF, 0.3])
def test_gradients_of_the_loss_are_central_differences(shape, col_penalty):
    cost, options = costs(*shape), {"tol": 1e-13, "col_penalty": col_penalty}
    step = 1e-5
    expected = torch.zeros_like(cost)
    for i, j in np.ndindex(*shape):
        change = torch.zeros_like(cost)
        change[i, j] = step
        up, down = (transport_loss(cost + sign * change, "envelope", **options)[0] for sign in (1, -1))
        expected[i, j] = (up - down) / (2 * step)
    for gradient in ("unrolled", "implicit"):
        torch.testing.assert_close(gradient_of(cost, gradient, **options), expected, atol=1e-5, rtol=1e-5)


def test_envelope_gradient_is_of_another_objective():
    cost = topic_costs(20, 300, dtype=torch.float64)
    plan = transport_loss(cost, "envelope", tol=1e-12)[1].plan
    torch.testing.assert_close(gradient_of(cost, "envelope", tol=1e-12), plan)

    def entropic(c):  # <P, D> - epsilon H(P) at its optimum, by duality: f . row + g . col - epsilon * mass
        found = transport_loss(c, "envelope", tol=1e-13)[1]
        return float(found.row_potential.mean() + found.col_potential.mean())

    for i, j in ((0, 3), (19, 299)):
        change = torch.zeros_like(cost)
        change[i, j] = 1e-5
        assert (entropic(cost + change) - entropic(cost - change)) / 2e-5 == pytest.approx(float(plan[i, j]), abs=1e-7)
    through = gradient_of(cost, "implicit", tol=1e-12)
    assert (through - plan).norm() > 0.1 * plan.norm()
