"""Gaussian posteriors of latents: a draw, the distance from the prior, and the scale of all cells together."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["COLLAPSED_SD", "draw_latent", "gaussian_kl", "latent_statistics"]

# A latent dimension with a smaller standard deviation carries nothing; dividing by it would blow noise up.
COLLAPSED_SD = 1e-3


def draw_latent(mean: Tensor, sd: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Return one draw z ~ N(mean, diag sd^2), (n, d), of means and standard deviations (n, d)."""
    noise = torch.empty_like(mean).normal_(generator=generator)
    return torch.addcmul(mean, sd, noise)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp log_variance) || N(0, I)) of every cell, (n,), nats; (n, d) in."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=-1)


def latent_statistics(mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre and scale of the aggregate posterior.

    Parameters
    ----------
    mean, sd
        Posterior means and standard deviations of all cells (n, d).

    Returns
    -------
    Centre (d,), scale (d,) with scale^2 = Var_i mean + mean_i sd^2, and a boolean (d,) that marks collapsed dimensions
    (scale below 1e-3), whose scale is set to 1.
    """
    scale = (mean.var(dim=0, unbiased=False) + sd.square().mean(dim=0)).sqrt()
    collapsed = scale < COLLAPSED_SD
    return mean.mean(dim=0), torch.where(collapsed, torch.ones_like(scale), scale), collapsed
