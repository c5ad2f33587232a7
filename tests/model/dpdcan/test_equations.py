"""The equations of DP-DCAN against plain loops and the shared likelihood."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from cellsmith.math import privacy
from cellsmith.math.likelihood import nb_log_prob, zinb_log_prob
from cellsmith.model.dpdcan import equations as eq


@pytest.fixture
def counts(numbers: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(numbers.poisson(2.0, (7, 30)).astype(np.float64))


def test_transform_is_that_of_the_release(counts: torch.Tensor) -> None:
    counts[2] = 0
    np.testing.assert_allclose(eq.transform(counts).numpy(), privacy.transform_counts(counts.numpy()), atol=1e-12)


@pytest.mark.parametrize("zero_inflated", [True, False])
def test_likelihood_equals_the_shared_one(counts: torch.Tensor, *, zero_inflated: bool) -> None:
    mean, theta = counts * 0.7 + 0.3, torch.linspace(0.5, 4, 30, dtype=torch.float64)
    logits = torch.linspace(-3, 2, 30, dtype=torch.float64).expand(7, 30)
    found = eq.zinb_loss(counts, mean, theta=theta, logits=logits if zero_inflated else None)
    oracle = (
        zinb_log_prob(counts, mean, theta, dropout_logits=logits) if zero_inflated else nb_log_prob(counts, mean, theta)
    )
    np.testing.assert_allclose(found.numpy() * 30, -oracle.numpy(), rtol=1e-5)


def test_rates_add_up_to_the_total(numbers: np.random.Generator) -> None:
    u, axes = torch.randn(5, 3), torch.randn(20, 3)
    totals = torch.arange(1.0, 6.0)[:, None]
    rate = eq.low_rank_rate(u, axes, intercept=torch.zeros(20), totals=totals)
    torch.testing.assert_close(rate.sum(dim=1, keepdim=True), totals)


def test_intercept_gives_back_the_mean_profile(counts: torch.Tensor) -> None:
    h = (counts / counts.sum(dim=1, keepdim=True)).sqrt()
    b = eq.gene_intercept(h.sum(dim=0), 7)
    np.testing.assert_allclose((b / 2).exp().numpy(), h.mean(dim=0).clamp(min=1e-4 / 30**0.5).numpy())


def test_repulsion_is_the_mean_cosine_of_all_pairs() -> None:
    centers = torch.randn(5, 3, dtype=torch.float64)
    loop = np.mean([[float(cosine_similarity(a, b, dim=0)) for a in centers] for b in centers])
    assert float(eq.repulsion(centers)) == pytest.approx(loop)


def test_clustering_term_is_a_divergence_of_each_cell_by_itself() -> None:
    z, centers, sizes = torch.randn(6, 3), torch.randn(4, 3), torch.tensor([1.0, 2.0, 3.0, 4.0])
    together = eq.cluster_divergence(z, centers, sizes)
    alone = torch.stack([eq.cluster_divergence(one, centers, sizes) for one in z])
    torch.testing.assert_close(together, alone)
    assert (together >= -1e-6).all()


def test_masks_drop_the_stated_share() -> None:
    x = torch.ones(200, 500)
    view = eq.mask_genes(x, 0.2, generator=torch.Generator().manual_seed(0))
    assert float((view == 0).float().mean()) == pytest.approx(0.2, abs=0.01)


def test_the_published_input_depends_on_all_cells(counts: torch.Tensor) -> None:
    y = torch.log1p(counts / counts.sum(dim=1, keepdim=True) * 50.0)
    found = eq.published_input(counts, totals_median=50.0, mean=y.mean(dim=0), sd=y.std(dim=0))
    np.testing.assert_allclose(found.mean(dim=0).numpy(), 0, atol=1e-9)
    np.testing.assert_allclose(found.std(dim=0).numpy(), 1, rtol=1e-9)
