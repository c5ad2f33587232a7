"""Diffusion on a table of standardised vectors: noise, denoiser, guidance, samplers, density.

Notation of every file here (equation numbers are those of the SCLD user guide):

* ``w`` (n, d): clean vectors, each dimension of about unit variance (sigma_data = 1); ``e`` (n, d): standard normal.
* ``sigma``: noise level relative to the signal, dimensionless; ``y = w + sigma e`` (n, d): the noisy vectors.
* ``t``: time in [0.001, 0.999]. ``prior="diffusion"``: sigma = tan(pi/2 (t + .008)/1.008), rising in t.
  ``prior="flow"``: the straight line t w + (1 - t) e, hence sigma = (1 - t)/t, falling in t.
* ``D`` (n, d): the denoised estimate of ``w``; a *denoiser* is any callable ``denoiser(y, sigma) -> D``.
* a *network* is any callable ``network(z, c_noise, cond) -> F`` (n, d); ``c_noise`` = ln(sigma)/4 is (n,), or (1,)
  when the whole batch shares its sigma.
"""

from __future__ import annotations

from cellsmith.math.edm.denoising import denoise, denoising_loss, precondition
from cellsmith.math.edm.density import log_density
from cellsmith.math.edm.guidance import GuidedDenoiser, guide, guide_additive, guided_denoiser
from cellsmith.math.edm.samplers import (
    SAMPLERS,
    Sampler,
    invert_ddim,
    sample_ancestral,
    sample_ddim,
    sample_dpmpp_2m,
    sample_heun,
    spherical_line,
)
from cellsmith.math.edm.schedule import (
    NOISE_CHUNK,
    TIME_RANGE,
    chunked_noise,
    drop_conditions,
    ema_decay,
    sigma_grid,
    sigma_of_time,
    signal_noise,
    stratified_times,
)

__all__ = [
    "NOISE_CHUNK",
    "SAMPLERS",
    "TIME_RANGE",
    "GuidedDenoiser",
    "Sampler",
    "chunked_noise",
    "denoise",
    "denoising_loss",
    "drop_conditions",
    "ema_decay",
    "guide",
    "guide_additive",
    "guided_denoiser",
    "invert_ddim",
    "log_density",
    "precondition",
    "sample_ancestral",
    "sample_ddim",
    "sample_dpmpp_2m",
    "sample_heun",
    "sigma_grid",
    "sigma_of_time",
    "signal_noise",
    "spherical_line",
    "stratified_times",
]
