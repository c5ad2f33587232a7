from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from cellsmith._errors import SetupError
from cellsmith.math.transport import sinkhorn, sinkhorn_partial

INF = float("inf")


def masses(*sizes: int, dtype=torch.float64) -> list[torch.Tensor]:
    return [torch.full((n,), 1 / n, dtype=dtype) for n in sizes]


def costs(n_row: int = 6, n_col: int = 11, *, scale: float = 2.0, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return (scale * torch.rand(n_row, n_col, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).to(
        dtype
    )


def by_the_book(cost, row, col, *, epsilon, n_sweeps, col_penalty=INF):
    """T12 and S23 as they are written, on the tape of autograd."""
    ratio = epsilon / col_penalty
    scaled, v = cost / epsilon, torch.zeros_like(col)
    u = row.log() - torch.logsumexp(v - scaled, dim=1)
    for _ in range(n_sweeps):
        v = (col.log() - torch.logsumexp(u[:, None] - scaled, dim=0)) / (1 + ratio)
        u = row.log() - torch.logsumexp(v - scaled, dim=1)
    return torch.exp(u[:, None] + v - scaled), u * epsilon, v * epsilon


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


# --- the answer ---


@pytest.mark.parametrize("scale", [1.0, 50.0])
@pytest.mark.parametrize("col_penalty", [INF, 0.4, 0.01])
def test_sweeps_are_those_of_the_log_domain(scale, col_penalty):
    cost, (row, col) = costs(scale=scale), masses(6, 11)
    for n_sweeps in (1, 2, 17):
        found = sinkhorn(
            cost, row, col, epsilon=0.05, col_penalty=col_penalty, tol=1e-300, max_sweeps=n_sweeps, gradient="unrolled"
        )
        plan, f, g = by_the_book(cost, row, col, epsilon=0.05, n_sweeps=n_sweeps, col_penalty=col_penalty)
        assert found.n_sweeps == n_sweeps
        torch.testing.assert_close(found.plan, plan, atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(found.row_potential, f, atol=1e-11, rtol=1e-11)
        torch.testing.assert_close(found.col_potential, g, atol=1e-11, rtol=1e-11)


def test_a_path_that_is_not_kept_leads_to_the_same_plan():
    cost, (row, col) = costs(scale=50.0), masses(6, 11)
    plans = [
        sinkhorn(cost, row, col, epsilon=0.05, max_sweeps=60, tol=1e-12, gradient=gradient)
        for gradient in ("envelope", "unrolled", "implicit")
    ]
    for other in plans[1:]:
        assert torch.equal(plans[0].plan, other.plan)
        assert plans[0].n_sweeps == other.n_sweeps


def test_two_by_two_by_hand():
    # P = [[p, 1/2 - p], [1/2 - p, p]] with (p / (1/2 - p))^2 = exp(2 / epsilon)
    found = sinkhorn(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), *masses(2, 2), epsilon=0.5)
    p = 0.5 / (1 + math.exp(-2.0))
    np.testing.assert_allclose(found.plan, [[p, 0.5 - p], [0.5 - p, p]], atol=1e-6)
    assert found.converged


def test_plan_is_that_of_the_potentials():
    for cost in (costs(), costs(scale=50.0)):
        found = sinkhorn(cost, *masses(6, 11), epsilon=0.05, tol=1e-9, max_sweeps=5000)
        torch.testing.assert_close(
            found.plan, torch.exp((found.row_potential[:, None] + found.col_potential - cost) / 0.05)
        )


@pytest.mark.parametrize("n_topics", [20, 100])
def test_marginals_of_topics_and_genes(n_topics):
    row, col = masses(n_topics, 500, dtype=torch.float32)
    for cost in (topic_costs(n_topics, 500), costs(n_topics, 500, scale=50.0, dtype=torch.float32)):
        found = sinkhorn(cost, row, col, epsilon=0.05, stop="marginal", tol=5e-3, max_sweeps=1000)
        assert found.converged
        assert (found.plan.sum(0) - col).abs().sum() <= 5e-3
        assert (found.plan.sum(1) - row).abs().sum() <= 1e-5


def test_stopping_tests_mean_what_they_say():
    cost, (row, col) = costs(), masses(6, 11)
    options = {"epsilon": 0.05, "max_sweeps": 500}
    for stop, tol in (("potential", 1e-3), ("marginal", 1e-3)):
        found = sinkhorn(cost, row, col, stop=stop, tol=tol, **options)
        (_, g), (before, g_before), (earlier, g_earlier) = (
            by_the_book(cost, row, col, epsilon=0.05, n_sweeps=found.n_sweeps - back)[::2] for back in (0, 1, 2)
        )
        if stop == "potential":
            assert (g - g_before).abs().max() < tol <= (g_before - g_earlier).abs().max()
        else:
            assert (before.sum(0) - col).abs().sum() < tol <= (earlier.sum(0) - col).abs().sum()


def test_a_warm_start_saves_sweeps():
    cost, (row, col) = topic_costs(20, 300), masses(20, 300, dtype=torch.float32)
    options = {"epsilon": 0.05, "stop": "marginal", "tol": 5e-3, "max_sweeps": 1000, "gradient": "implicit"}
    cold = sinkhorn(cost, row, col, **options)
    warm = sinkhorn(cost + 1e-3 * costs(20, 300, dtype=torch.float32), row, col, start=cold.col_potential, **options)
    assert warm.converged
    assert warm.n_sweeps <= cold.n_sweeps / 3


def test_what_does_not_converge_says_so():
    cost, (row, col) = costs(), masses(6, 11)
    found = sinkhorn(cost, row, col, epsilon=0.05, tol=1e-12, max_sweeps=3)
    assert (found.n_sweeps, found.converged) == (3, False)
    cost[2, 3] = math.nan
    found = sinkhorn(cost, row, col, epsilon=0.05, max_sweeps=1000)
    assert not found.converged
    assert found.n_sweeps <= 2
    assert found.plan.isnan().any()


# --- gradients ---


@pytest.mark.parametrize("scale", [1.0, 50.0])
@pytest.mark.parametrize("col_penalty", [INF, 0.4])
@pytest.mark.parametrize("n_sweeps", [1, 9, 60])
def test_unrolled_gradient_is_that_of_the_tape(scale, col_penalty, n_sweeps):
    row, col = masses(6, 11)
    weights = [costs(seed=1), costs(1, 6, seed=2)[0], costs(1, 11, seed=3)[0]]
    ours, tape = (costs(scale=scale).requires_grad_() for _ in range(2))
    found = sinkhorn(
        ours, row, col, epsilon=0.05, col_penalty=col_penalty, tol=1e-300, max_sweeps=n_sweeps, gradient="unrolled"
    )
    parts = (found.plan, found.row_potential, found.col_potential)
    sum((w * part).sum() for w, part in zip(weights, parts, strict=True)).backward()
    parts = by_the_book(tape, row, col, epsilon=0.05, n_sweeps=n_sweeps, col_penalty=col_penalty)
    sum((w * part).sum() for w, part in zip(weights, parts, strict=True)).backward()
    torch.testing.assert_close(ours.grad, tape.grad, atol=1e-10, rtol=1e-8)


def transport_loss(cost, gradient, *, epsilon=0.05, **options):
    row, col = masses(*cost.shape, dtype=cost.dtype)
    found = sinkhorn(cost, row, col, epsilon=epsilon, gradient=gradient, max_sweeps=20_000, **options)
    return (found.plan * cost).sum(), found


def gradient_of(cost, gradient, **options):
    cost = cost.clone().requires_grad_()
    transport_loss(cost, gradient, **options)[0].backward()
    return cost.grad


def test_implicit_gradient_where_the_plan_falls_apart():
    # two topics with genes of their own, and almost no mass between: the Schur complement is nearly singular
    cost = torch.tensor([[0.0, 0.1, 3.0, 3.1], [3.0, 3.2, 0.1, 0.0]], dtype=torch.float64)
    found = gradient_of(cost, "implicit", tol=1e-13)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, gradient_of(cost, "unrolled", tol=1e-13), atol=1e-6, rtol=0)


def test_implicit_and_unrolled_agree_at_the_tolerance_of_training():
    cost = topic_costs(20, 300)
    options = {"stop": "marginal", "tol": 5e-3}
    unrolled, implicit = (gradient_of(cost, gradient, **options) for gradient in ("unrolled", "implicit"))
    assert (unrolled - implicit).norm() < 0.1 * implicit.norm()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0, 1e3])
@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_values_and_gradients_stay_finite(scale, gradient):
    cost = costs(8, 40, scale=scale, dtype=torch.float32).requires_grad_()
    row, col = masses(8, 40, dtype=torch.float32)
    found = sinkhorn(cost, row, col, epsilon=0.05, stop="marginal", tol=5e-3, max_sweeps=300, gradient=gradient)
    (found.plan * cost).sum().backward()
    assert torch.isfinite(found.plan).all()
    assert torch.isfinite(cost.grad).all()


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_a_cost_with_nan_gives_a_gradient_of_nan(gradient):
    cost = costs(dtype=torch.float32)
    cost[2, 3] = math.nan
    found = gradient_of(cost, gradient)
    assert found.isnan().any()


def test_nothing_flows_where_nothing_should():
    cost = costs().requires_grad_()
    found = sinkhorn(cost, *masses(6, 11), epsilon=0.05)
    assert not found.plan.requires_grad
    assert not sinkhorn_partial(cost, *masses(6, 11), mass=0.5, epsilon=0.05).plan.requires_grad


def test_gradients_by_hand_are_faster_than_the_tape():
    cost, (row, col) = topic_costs(20, 1000), masses(20, 1000, dtype=torch.float32)
    n_sweeps = sinkhorn(cost, row, col, epsilon=0.05, stop="marginal", tol=5e-3, max_sweeps=1000).n_sweeps
    options = {"epsilon": 0.05, "tol": 1e-30, "max_sweeps": n_sweeps}

    def seconds(plan_of) -> float:
        best = INF
        for _ in range(3):
            leaf = cost.clone().requires_grad_()
            start = time.process_time()
            (plan_of(leaf) * leaf).sum().backward()
            best = min(best, time.process_time() - start)
        return best

    tape = seconds(lambda c: by_the_book(c, row, col, epsilon=0.05, n_sweeps=n_sweeps)[0])
    for gradient in ("unrolled", "implicit"):
        assert seconds(lambda c, g=gradient: sinkhorn(c, row, col, gradient=g, **options).plan) < 0.5 * tape


# --- part of the mass ---


def test_partial_by_hand():
    # two cells, one cluster, half of the mass: the cheaper cell first, as far as its mass goes
    cost = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    row, col = masses(2, 1)
    ratio = math.exp(-1 / 0.5)
    found = sinkhorn_partial(cost, row, col, mass=0.5, epsilon=0.5, tol=1e-12)
    np.testing.assert_allclose(found.plan[:, 0], [0.5 / (1 + ratio), 0.5 * ratio / (1 + ratio)], atol=1e-10)
    found = sinkhorn_partial(cost, row, col, mass=0.8, epsilon=0.5, tol=1e-12)
    np.testing.assert_allclose(found.plan[:, 0], [0.5, 0.3], atol=1e-10)


def test_partial_meets_sizes_that_add_up_to_the_mass():
    cost, (row, col) = costs(30, 4, dtype=torch.float32), masses(30, 4, dtype=torch.float32)
    found = sinkhorn_partial(cost, row, 0.6 * col, mass=0.6, epsilon=0.2)
    assert found.converged
    np.testing.assert_allclose(found.plan.sum(0), 0.6 * col, rtol=1e-4)
    assert (found.plan.sum(1) <= row * (1 + 1e-3)).all()


# --- float32 ---


@pytest.mark.parametrize("scale", [2.0, 50.0])
def test_single_precision_is_enough_at_the_published_temperature(scale):
    wide = costs(20, 200, scale=scale)
    plans = []
    for dtype in (torch.float32, torch.float64):
        row, col = masses(20, 200, dtype=dtype)
        plans.append(sinkhorn(wide.float().to(dtype), row, col, epsilon=0.05, tol=1e-5, max_sweeps=2000).plan)
    assert (plans[0] - plans[1]).abs().sum() < 1e-3


# --- wrong input ---


def test_wrong_input_is_named():
    cost, (row, col) = costs(), masses(6, 11)
    cases = [
        ((cost[0], row, col), {}, r"cost of shape \(11,\)"),
        ((cost, col, col), {}, r"row of shape \(11,\), expected \(6,\)"),
        ((cost, row, col.index_fill(0, torch.tensor([4]), 0.0)), {}, r"col\[4\] = 0, expected masses above 0"),
        ((cost, row, 2 * col), {}, r"totals 1 \(row\) and 2 \(col\)"),
        ((cost, row, col), {"epsilon": 0.0}, "epsilon=0.0"),
        ((cost, row, col), {"col_penalty": -1.0}, "col_penalty=-1.0"),
        ((cost, row, col), {"tol": math.nan}, "tol=nan"),
        ((cost, row, col), {"gradient": "unroled"}, "Did you mean 'unrolled'"),
        ((cost, row, col), {"stop": "margin"}, "Did you mean 'marginal'"),
        ((cost, row, col), {"solver": "kernel"}, "solver='kernel' is not known"),
        ((cost, row, col), {"gradient": "unrolled", "start": col}, "with start, expected sweeps from zero"),
        ((cost, row, col), {"gradient": "unrolled", "solver": "pot"}, "with solver=pot"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(SetupError, match=message):
            sinkhorn(*arguments, **{"epsilon": 0.05, **options})
    assert sinkhorn(cost, row, 2 * col, epsilon=0.5, col_penalty=1.0).converged  # relaxed: totals may differ
    for mass in (0.0, 1.1, math.nan):
        with pytest.raises(SetupError, match=r"expected above 0 and at most 1, the smaller total"):
            sinkhorn_partial(cost, row, col, mass=mass, epsilon=0.05)
