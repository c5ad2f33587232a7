"""S1 to S13 on small examples, and what the deviations claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import sparse
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial

from cellsmith.math import assign
from cellsmith.math.graph import candidate_table, edge_logits, gumbel_topk
from cellsmith.metrics.clustering import homophily
from cellsmith.model.scagc import equations as eq


def test_input_does_not_change_when_counts_and_size_factor_double() -> None:
    x = torch.tensor([[1.0, 4.0, 0.0]])
    torch.testing.assert_close(eq.log_input(2 * x, torch.tensor([[2.0]])), torch.log1p(x))


def test_relative_error_is_one_for_zero_and_zero_for_the_target() -> None:
    target = torch.randn(5, 3)
    assert float(eq.relative_error(torch.zeros(5, 3), target)) == pytest.approx(1.0)
    assert float(eq.relative_error(target, target)) == 0.0
    far = torch.tensor([[100.0, 0.5]])
    assert float(eq.relative_error(far - 1.0, far)) < 0.02  # one far cell does not count for 10,000


def test_noise_falls_by_a_cosine_to_a_tenth_and_is_constant_where_it_starts_below() -> None:
    assert eq.noise_at(0.0, 1.0) == 1.0
    assert eq.noise_at(0.5, 1.0) == pytest.approx(0.55)
    assert eq.noise_at(1.0, 1.0) == pytest.approx(0.1)
    assert eq.noise_at(0.5, 0.05) == 0.05
    assert eq.noise_at(0.3, 0.0) == 0.0


def test_running_in_degree_moves_by_a_tenth() -> None:
    moved = eq.move_in_degree(torch.tensor([15.0, 15.0]), torch.tensor([25.0, 5.0]))
    torch.testing.assert_close(moved, torch.tensor([16.0, 14.0]))


@pytest.mark.parametrize("zero_inflated", [False, True])
def test_reconstruction_is_scvis_likelihood_a_gene(zero_inflated: bool) -> None:
    torch.manual_seed(0)
    counts = torch.poisson(torch.full((6, 5), 2.0))
    logits, theta, library = torch.randn(6, 5), torch.rand(5) + 0.5, counts.sum(1) + 1
    gate = torch.randn(6, 5) if zero_inflated else None
    mean = library[:, None] * logits.softmax(1)
    law = (
        ZeroInflatedNegativeBinomial(mu=mean, theta=theta, zi_logits=gate)
        if gate is not None
        else NegativeBinomial(mu=mean, theta=theta)
    )
    found = eq.reconstruction(counts, logits, theta, library=library, dropout_logits=gate)
    torch.testing.assert_close(found, -law.log_prob(counts).sum(1).mean() / 5, atol=1e-5, rtol=1e-5)


def test_edge_cross_entropy_leaves_out_candidates_and_averages_apart() -> None:
    positive, negative = torch.zeros(4), torch.tensor([[0.0, 50.0]])
    kept = torch.tensor([[True, False]])
    found = eq.edge_cross_entropy(positive, negative, is_negative=kept)
    assert float(found) == pytest.approx(2 * math.log(2))
    assert float(eq.edge_cross_entropy(positive, negative, is_negative=~kept)) > 40


def test_contrast_is_the_log_of_the_batch_where_all_are_alike_and_partners_add_to_it() -> None:
    z = torch.ones(8, 3)
    keep = torch.ones(8, 8, dtype=torch.bool)
    plain = eq.contrast(z, z, temperature=0.5, keep=keep)
    assert float(plain) == pytest.approx(math.log(8), abs=1e-5)
    partner = torch.tensor([1, 0, -1, -1, -1, -1, -1, -1])
    more = eq.contrast(z, z, temperature=0.5, keep=keep, partner=partner)
    assert float(more) == pytest.approx(math.log(8) + math.log(2) * 2 / 8, abs=1e-5)


def test_divergence_and_its_gradient_in_both_directions_by_hand() -> None:
    """DEC minimises KL(p to q); the released code has the arguments the other way round."""
    p = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    q = torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.4, 0.6]], requires_grad=True)
    forward, reverse = assign.row_divergence(p, q), assign.row_divergence(q, p)
    by_hand = [0.9 * math.log(1.5) + 0.1 * math.log(0.25), 0.0, 0.2 * math.log(0.5) + 0.8 * math.log(4 / 3)]
    assert float(forward.detach()) == pytest.approx(sum(by_hand) / 3, abs=1e-6)
    assert float(reverse.detach()) != pytest.approx(float(forward.detach()), abs=1e-3)
    (gradient,) = torch.autograd.grad(forward, q)
    torch.testing.assert_close(gradient, -(p / q.detach()) / 3)
    (gradient,) = torch.autograd.grad(reverse, q)
    torch.testing.assert_close(gradient, ((q.detach() / p).log() + 1) / 3)


def test_vote_counts_the_own_cluster_as_the_strongest_neighbour_does() -> None:
    weights = sparse.csr_matrix(np.array([[0, 1.0, 0.5], [1.0, 0, 0], [0.5, 0, 0]]))
    found = eq.vote(weights, np.array([0, 1, 1]), n_clusters=2, own=True)
    np.testing.assert_allclose(found, [[0.4, 0.6], [0.5, 0.5], [0.5, 0.5]])
    new = eq.vote(sparse.csr_matrix([[0.25, 0.0, 0.75]]), np.array([0, 1, 1]), n_clusters=2, own=False)
    np.testing.assert_allclose(new, [[0.25, 0.75]])


def test_oracle_embedding_gives_pure_edges_and_temperature_moves_no_edge() -> None:
    """E8. Unscaled cosines against global candidates, as released, reach .35 on such an embedding."""
    types = np.repeat(np.arange(4), 40)
    z = np.eye(4)[types] + 0.01 * np.random.default_rng(0).standard_normal((160, 4))
    points = torch.from_numpy(z - z.mean(0)).float()
    table = candidate_table(z, 50, seed=0)
    rule = {"hub_penalty": 0.5, "in_degrees": torch.full((160,), 15.0), "k": 15}
    scaled = edge_logits(points, torch.from_numpy(table), edge_temperature=0.05, **rule)
    hard = [
        gumbel_topk(scaled, 15, noise_scale=1.0, relaxation_temperature=t, generator=torch.Generator().manual_seed(0))
        for t in (0.1, 0.5, 2.0)
    ]
    assert all(torch.equal(hard[0][0], other[0]) for other in hard[1:])
    assert not torch.allclose(hard[0][1], hard[2][1])

    def pure(choice: torch.Tensor) -> float:
        rows, slots = np.nonzero(choice.numpy())
        chosen = sparse.csr_matrix((np.ones(len(rows)), (rows, table[rows, slots])), shape=(160, 160))
        return float(homophily(chosen, types))

    assert pure(hard[0][0]) >= 0.98
    blunt = edge_logits(points, torch.from_numpy(table), edge_temperature=20.0, **rule)
    drawn = gumbel_topk(
        blunt, 15, noise_scale=1.0, relaxation_temperature=0.5, generator=torch.Generator().manual_seed(0)
    )[0]
    assert pure(drawn) < 0.9  # the check can fail
