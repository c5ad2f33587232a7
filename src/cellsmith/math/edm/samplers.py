"""Samplers: from noise to cells, each one short function named after its algorithm (E18, E19).

``y`` (n, d) starts as sigma_max times standard normal noise; ``sigmas`` (n_steps,) falls; the answer is the denoised
estimate D (n, d) at the last level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from cellsmith.math.edm._types import DenoiserFn, Randomness
from cellsmith.math.edm.schedule import chunked_noise

__all__ = [
    "SAMPLERS",
    "Sampler",
    "invert_ddim",
    "sample_ancestral",
    "sample_ddim",
    "sample_dpmpp_2m",
    "sample_heun",
    "spherical_line",
]


def _noise_like(y: Tensor, generator: Randomness) -> Tensor:
    if generator is None or isinstance(generator, torch.Generator):
        device = y.device if generator is None else generator.device
        noise = torch.randn(y.shape, generator=generator, device=device, dtype=y.dtype)
    else:
        noise = chunked_noise(y.shape[0], y.shape[1], generators=generator)
    return noise.to(y)


def sample_ddim(denoiser: DenoiserFn, y: Tensor, sigmas: Tensor, *, generator: Randomness = None) -> Tensor:
    """Euler steps of the probability-flow ODE: order 1, one evaluation a step.

    Parameters
    ----------
    denoiser
        ``denoiser(y, sigma) -> D``.
    y
        Noisy vectors (n, d) at ``sigmas[0]``.
    sigmas
        Falling noise levels (n_steps,).
    generator
        Not used: the sampler is deterministic.

    Returns
    -------
    D (n, d) at the last level.
    """
    sigmas = sigmas.to(y)
    for sigma, following in pairwise(sigmas):
        y = y + (following - sigma) / sigma * (y - denoiser(y, sigma))
    return denoiser(y, sigmas[-1])


def sample_heun(denoiser: DenoiserFn, y: Tensor, sigmas: Tensor, *, generator: Randomness = None) -> Tensor:
    """Trapezoid steps of the probability-flow ODE: order 2, two evaluations a step except the last.

    The ODE is d(y/sigma)/d(1/sigma) = D, so the trapezoid averages the estimates at both ends of the step. The same
    rule on dy/dsigma = (y - D)/sigma has the same order, but over the few long steps of a time grid it inflates the
    noise: 10 steps of it give 4 times the variance.

    Parameters and answer as in :func:`sample_ddim`.
    """
    sigmas = sigmas.to(y)
    for sigma, following in pairwise(sigmas):
        estimate = denoiser(y, sigma)
        ahead = y + (following - sigma) / sigma * (y - estimate)
        estimate_ahead = denoiser(ahead, following)
        y = y + (following - sigma) / sigma * (y - 0.5 * (estimate + estimate_ahead))
    return denoiser(y, sigmas[-1])


def sample_dpmpp_2m(denoiser: DenoiserFn, y: Tensor, sigmas: Tensor, *, generator: Randomness = None) -> Tensor:
    """DPM-Solver++ (2M), a two-step exponential integrator in -ln sigma: order 2, one evaluation a step.

    Parameters and answer as in :func:`sample_ddim`.
    """
    sigmas = sigmas.to(y)
    previous, h_previous = None, None
    for sigma, following in pairwise(sigmas):
        estimate = denoiser(y, sigma)
        h = (sigma / following).log()
        if previous is None or h_previous is None:
            extrapolated = estimate
        else:
            half_inverse = h / (2.0 * h_previous)
            extrapolated = (1.0 + half_inverse) * estimate - half_inverse * previous
        ratio = following / sigma
        y = ratio * y + (1.0 - ratio) * extrapolated
        previous, h_previous = estimate, h
    return denoiser(y, sigmas[-1])


def sample_ancestral(denoiser: DenoiserFn, y: Tensor, sigmas: Tensor, *, generator: Randomness = None) -> Tensor:
    """Reverse-time stochastic sampler: a ddim step to sigma_down, then fresh noise of sigma_up; one evaluation a step.

    Parameters and answer as in :func:`sample_ddim`.

    generator
        Source of the fresh noise: one generator, or one for every 1,024 rows, so that rows do not depend on their
        batch (see :func:`~cellsmith.math.edm.chunked_noise`).
    """
    sigmas = sigmas.to(y)
    for sigma, following in pairwise(sigmas):
        # sigma_down = sqrt(sigma'^2 - sigma_up^2) = sigma'^2/sigma, written without the cancelling difference
        down = following * (following / sigma)
        up = following * (1.0 - (following / sigma).square()).clamp(min=0.0).sqrt()
        y = y + (down - sigma) / sigma * (y - denoiser(y, sigma))
        y = y + up * _noise_like(y, generator)
    return denoiser(y, sigmas[-1])


def invert_ddim(denoiser: DenoiserFn, w: Tensor, sigmas: Tensor) -> Tensor:
    """Noise that :func:`sample_ddim` turns into ``w``: the ddim step with rising noise level (E19).

    Parameters
    ----------
    denoiser
        ``denoiser(y, sigma) -> D`` under the condition that ``w`` was observed in, guidance 1.
    w
        Clean vectors (n, d), taken as lying at ``sigmas[0]``.
    sigmas
        Rising noise levels (n_steps,).

    Returns
    -------
    y (n, d) at the last, noisiest level.
    """
    y, sigmas = w, sigmas.to(w)
    for sigma, following in pairwise(sigmas):
        y = y + (following - sigma) / sigma * (y - denoiser(y, sigma))
    return y


def spherical_line(start: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    """Point on the great circle between two noises, so that mixtures keep the length of noise (E23).

    Parameters
    ----------
    start, end
        Noises (n, d).
    weight
        0 gives ``start``, 1 gives ``end``; one number or (n,).

    Returns
    -------
    (n, d); rows that are parallel fall back to the straight line.
    """
    k = torch.as_tensor(weight, dtype=start.dtype, device=start.device).reshape(-1, 1)
    cosine = torch.nn.functional.cosine_similarity(start, end, dim=1)[:, None].clamp(-1.0, 1.0)
    angle = cosine.acos()
    sine = angle.sin()
    flat = sine < 1e-4
    safe = torch.where(flat, torch.ones_like(sine), sine)
    from_start = torch.where(flat, 1.0 - k, ((1.0 - k) * angle).sin() / safe)
    from_end = torch.where(flat, k, (k * angle).sin() / safe)
    return from_start * start + from_end * end


@dataclass(frozen=True)
class Sampler:
    """A sampler with its default length; called like its function.

    Attributes
    ----------
    function
        ``sample_<name>(denoiser, y, sigmas, *, generator)``.
    default_steps
        Number of noise levels when the user names none.
    evaluations_per_step
        Denoiser evaluations of every step but the last, which takes one.
    """

    function: Callable[..., Tensor]
    default_steps: int
    evaluations_per_step: int = 1

    def __call__(self, denoiser: DenoiserFn, y: Tensor, sigmas: Tensor, *, generator: Randomness = None) -> Tensor:
        """Run the sampler; see :func:`sample_ddim`."""
        return self.function(denoiser, y, sigmas, generator=generator)

    def n_evaluations(self, n_steps: int | None = None) -> int:
        """Denoiser evaluations of a run of ``n_steps`` levels (None: the default)."""
        steps = self.default_steps if n_steps is None else n_steps
        return self.evaluations_per_step * (steps - 1) + 1


SAMPLERS: dict[str, Sampler] = {
    "dpmpp_2m": Sampler(sample_dpmpp_2m, 20),
    "ddim": Sampler(sample_ddim, 50),
    "heun": Sampler(sample_heun, 10, 2),
    "ancestral": Sampler(sample_ancestral, 200),
}
