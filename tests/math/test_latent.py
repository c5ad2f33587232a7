"""Gaussian posteriors of latents, against torch's distributions and plain moments."""

from __future__ import annotations

import torch

from cellsmith.math.latent import draw_latent, gaussian_kl, latent_statistics


def test_kl_is_that_of_torch() -> None:
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    normal = torch.distributions.Normal
    p, q = normal(mean, (0.5 * log_variance).exp()), normal(torch.zeros(3), torch.ones(3))
    torch.testing.assert_close(gaussian_kl(mean, log_variance), torch.distributions.kl_divergence(p, q).sum(dim=1))


def test_draw_has_its_mean_and_repeats_with_its_generator() -> None:
    mean, sd = torch.full((20_000, 2), 3.0), torch.tensor([1e-9, 2.0]).expand(20_000, 2)
    z = draw_latent(mean, sd, generator=torch.Generator().manual_seed(0))
    assert torch.equal(z, draw_latent(mean, sd, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(z.mean(dim=0), torch.tensor([3.0, 3.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(z.std(dim=0), torch.tensor([0.0, 2.0]), atol=0.05, rtol=0)


def test_statistics_add_the_spread_of_means_and_that_around_them() -> None:
    mean, sd = torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    centre, scale, collapsed = latent_statistics(mean, sd)
    torch.testing.assert_close(centre, torch.tensor([2.0, 5.0]))
    torch.testing.assert_close(scale, torch.tensor([5.0**0.5, 1.0]))
    assert collapsed.tolist() == [False, True]
