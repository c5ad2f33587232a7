"""The equations of scSiameseClu as functions of arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr

from cellsmith.model.scsiameseclu import equations as eq


def rows(n: int, k: int, *, seed: int = 0) -> torch.Tensor:
    return torch.softmax(torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def test_gate_mixes_both_branches() -> None:
    a, b = torch.ones(3, 2), torch.zeros(3, 2)
    gate = torch.tensor([[0.0], [0.25], [1.0]])
    assert torch.equal(eq.fuse(a, b, gate), gate.expand(3, 2))


def test_neighbours_and_sure_cells_of_one_code_are_not_pushed_apart() -> None:
    near = torch.eye(4, dtype=torch.bool)
    near[0, 1] = near[1, 0] = True
    assert torch.equal(eq.pairs_apart(near), ~near)
    codes, confidence = torch.tensor([0, 0, 0, 1]), torch.tensor([0.95, 0.5, 0.95, 0.95])
    keep = eq.pairs_apart(near, codes, confidence)
    assert not keep[0, 2]
    assert keep[1, 2]
    assert keep[0, 3]
    assert not keep[0, 1]


def test_assignment_is_a_student_t_of_euclidean_distances() -> None:
    z, c = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    c = c[:2]
    square = ((z[:, None] - c) ** 2).sum(-1)
    expected = (1 + square) ** -1.0
    expected = expected / expected.sum(1, keepdim=True)
    torch.testing.assert_close(eq.log_assignment(z, c).exp(), expected)


def test_balance_runs_from_start_to_end_and_stays() -> None:
    assert eq.balance_at(0.0, 1.0, 0.1) == 1.0
    assert eq.balance_at(0.375, 1.0, 0.1) == pytest.approx(math.sqrt(0.1))
    assert eq.balance_at(0.75, 1.0, 0.1) == pytest.approx(0.1) == pytest.approx(eq.balance_at(1.0, 1.0, 0.1))


def test_columns_are_free_without_a_price_and_fixed_with_an_infinite_one() -> None:
    """rho -> inf gives the balanced plan, rho -> 0 the row-wise softmax of log Q / epsilon."""
    log_q = rows(50, 4).log()
    sizes = torch.full((4,), 0.25, dtype=torch.float64)
    options = {"temperature": 0.2, "mass": 1.0}
    hard = eq.transport_targets(log_q, sizes, kind="uniform", balance=1.0, **options).plan
    nearly = eq.transport_targets(log_q, sizes, kind="relaxed", balance=1e6, **options).plan
    free = eq.transport_targets(log_q, sizes, kind="relaxed", balance=1e-6, **options).plan
    torch.testing.assert_close(hard.sum(0), sizes, atol=1e-4, rtol=0)
    torch.testing.assert_close(hard, nearly, atol=1e-4, rtol=0)
    torch.testing.assert_close(free * 50, torch.softmax(log_q / 0.2, dim=1), atol=1e-4, rtol=0)
    torch.testing.assert_close(free.sum(1), torch.full((50,), 0.02, dtype=torch.float64), atol=1e-9, rtol=0)


def test_partial_transport_leaves_cells_out() -> None:
    log_q = rows(50, 4).log()
    sizes = torch.full((4,), 0.25, dtype=torch.float64)
    plan = eq.transport_targets(log_q, sizes, kind="partial", temperature=0.2, balance=1.0, mass=0.5).plan
    assert float(plan.sum()) == pytest.approx(0.5, abs=1e-3)
    assert (plan.sum(1) <= 0.02 + 1e-6).all()


def test_swapped_loss_is_a_cross_entropy_and_never_negative() -> None:
    """F9: the public code took the divergence of probabilities where it needed their logarithms."""
    p, q = rows(20, 3), rows(20, 3, seed=1)
    loss = eq.swapped_loss((p / 20, p / 20), (q.log(), q.log()))
    entropy = -(p * p.log()).sum(1).mean()
    divergence = rel_entr(p.numpy(), q.numpy()).sum(1).mean()
    assert float(loss - entropy) == pytest.approx(divergence, abs=1e-12)
    assert float(eq.swapped_loss((p / 20, p / 20), (p.log(), p.log())) - entropy) == pytest.approx(0, abs=1e-12)


def test_each_view_learns_from_the_plan_of_the_other_and_rows_without_mass_from_none() -> None:
    p = torch.zeros(2, 2, dtype=torch.float64)
    p[0, 0] = 0.5
    first, second = rows(2, 2).log().requires_grad_(), rows(2, 2, seed=3).log().requires_grad_()
    eq.swapped_loss((p, torch.zeros_like(p)), (first, second)).backward()
    assert first.grad.abs().sum() == 0
    assert second.grad[0, 0] == -0.25
    assert second.grad[1].abs().sum() == 0


def test_reconstruction_is_the_likelihood_of_scvi_a_gene() -> None:
    from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial

    generator = torch.Generator().manual_seed(0)
    x = torch.poisson(torch.full((6, 5), 2.0), generator=generator)
    logits, zero = torch.randn(2, 6, 5, generator=generator)
    theta, library = torch.rand(5, generator=generator) + 0.5, torch.full((6,), 40.0)
    mu = library[:, None] * logits.softmax(1)
    nb = -NegativeBinomial(mu=mu, theta=theta).log_prob(x).mean()
    zinb = -ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=zero).log_prob(x).mean()
    torch.testing.assert_close(eq.reconstruction(x, logits, theta, library=library), nb, atol=1e-5, rtol=1e-5)
    found = eq.reconstruction(x, logits, theta, library=library, dropout_logits=zero)
    torch.testing.assert_close(found, zinb, atol=1e-5, rtol=1e-5)


def test_cluster_term_needs_four_clusters_and_has_no_order() -> None:
    """F15."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 30, 6, generator=generator)
    assert float(eq.cluster_term(a, b, rows(30, 3).float())) == 0
    q = rows(30, 5).float()
    order = torch.randperm(30, generator=generator)
    torch.testing.assert_close(eq.cluster_term(a, b, q), eq.cluster_term(a[order], b[order], q[order]))
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(eq.cluster_term(a, b, q), a)
    assert float(gradient.norm()) > 1e-3


def test_learned_proportions_follow_the_cells_and_never_vanish() -> None:
    q = torch.zeros(10, 4)
    q[:, 0] = 1.0
    moved = eq.move_proportions(torch.full((4,), 0.25), q)
    assert float(moved.sum()) == pytest.approx(1.0)
    assert moved[0] > 0.25
    for _ in range(2000):
        moved = eq.move_proportions(moved, q)
    assert float(moved.min()) > 0.02
    assert np.isclose(float(moved.sum()), 1.0)
