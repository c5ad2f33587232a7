"""Noise levels, training times, and the random parts of a training batch (E12, E14, E16)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from cellsmith._errors import SetupError
from cellsmith.math.edm._types import Prior, checked

__all__ = [
    "NOISE_CHUNK",
    "TIME_RANGE",
    "chunked_noise",
    "drop_conditions",
    "ema_decay",
    "sigma_grid",
    "sigma_of_time",
    "signal_noise",
    "stratified_times",
]

TIME_RANGE = (0.001, 0.999)
NOISE_CHUNK = 1024


def signal_noise(t: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise of the cosine schedule: w_t = a w + s e.

    Parameters
    ----------
    t
        Times in [0, 1], any shape.

    Returns
    -------
    ``(a, s)`` with a^2 + s^2 = 1, of the shape and type of ``t``.
    """
    # float64 inside: near t = 1 the angle is close to pi/2, where a float32 cosine keeps only four digits
    angle = (t.double() + 0.008) / 1.008 * (math.pi / 2)
    return angle.cos().to(t.dtype), angle.sin().to(t.dtype)


def sigma_of_time(t: Tensor, *, prior: Prior = "diffusion") -> Tensor:
    """Noise level of a time.

    Parameters
    ----------
    t
        Times in (0, 1), any shape.
    prior
        ``"diffusion"``: s/a of :func:`signal_noise`; ``"flow"``: (1 - t)/t.

    Returns
    -------
    sigma, of the shape and type of ``t``.
    """
    checked("prior", prior, valid=("diffusion", "flow"))
    exact = t.double()
    sigma = (1.0 - exact) / exact if prior == "flow" else ((exact + 0.008) / 1.008 * (math.pi / 2)).tan()
    return sigma.to(t.dtype)


def sigma_grid(
    n_steps: int, *, prior: Prior = "diffusion", start: float | None = None, spacing: Literal["time", "log"] = "time"
) -> Tensor:
    """Falling noise levels at which a sampler evaluates the denoiser.

    Parameters
    ----------
    n_steps
        Number of levels, at least 1: a sampler with one evaluation a step makes exactly this many evaluations.
    prior
        Which schedule.
    start
        Noisiest time, in (0.001, 0.999]; for ``"flow"`` it is 1 - t, so that larger is noisier in both. None: 0.999.
    spacing
        ``"time"``: uniform in t, for sampling; ``"log"``: uniform in ln sigma, for :func:`log_density`.

    Returns
    -------
    sigma (n_steps,), float64, strictly falling, ending at the cleanest level.
    """
    low, high = TIME_RANGE
    high = high if start is None else float(start)
    checked("spacing", spacing, valid=("time", "log"))
    if n_steps < 1:
        raise SetupError(f"n_steps={n_steps}: a sampler needs at least 1 step. Pass n_steps=20.")
    if not low < high <= TIME_RANGE[1]:
        raise SetupError(f"start={high} is outside ({low}, {TIME_RANGE[1]}]. Pass for example start=0.5.")
    times = torch.linspace(high, low, n_steps, dtype=torch.float64)
    sigmas = sigma_of_time(1.0 - times if prior == "flow" else times, prior=prior)
    if spacing == "log" and n_steps > 1:
        first, last = math.log(float(sigmas[0])), math.log(float(sigmas[-1]))
        return torch.linspace(first, last, n_steps, dtype=torch.float64).exp()
    return sigmas


def stratified_times(n: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Training times that cover [0.001, 0.999] evenly: (i + U)/n, one U for the batch, in random order (E14).

    Parameters
    ----------
    n
        Batch size.
    generator
        Source of U and of the order.

    Returns
    -------
    t (n,), float32.
    """
    device = None if generator is None else generator.device
    offset = torch.rand((), generator=generator, device=device)
    order = torch.randperm(n, generator=generator, device=device)
    return TIME_RANGE[0] + (TIME_RANGE[1] - TIME_RANGE[0]) * (order + offset) / n


def chunked_noise(n: int, n_columns: int, *, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw standard normal noise whose rows do not depend on the batch they are computed in.

    Parameters
    ----------
    n, n_columns
        Shape of the answer.
    generators
        One for every 1,024 consecutive rows, so ceil(n / 1024) of them.

    Returns
    -------
    Noise (n, n_columns), float32, on the generators' device.
    """
    n_chunks = -(-n // NOISE_CHUNK)
    if len(generators) != n_chunks:
        raise SetupError(f"{len(generators)} generators for {n} rows: expected {n_chunks}, one per {NOISE_CHUNK} rows.")
    rows = [min(NOISE_CHUNK, n - i * NOISE_CHUNK) for i in range(n_chunks)]
    parts = [torch.randn(r, n_columns, generator=g, device=g.device) for r, g in zip(rows, generators, strict=True)]
    return torch.cat(parts) if parts else torch.empty(0, n_columns)


def drop_conditions(
    n: int, n_covariates: int, *, probability: float = 0.1, generator: torch.Generator | None = None
) -> Tensor:
    """Which covariates each cell of a batch hides from the network (E16).

    With ``probability`` all are hidden; else, when there are at least two, with ``probability`` all but one chosen
    uniformly; else each alone with ``probability``. Every row is drawn by itself.

    Parameters
    ----------
    n, n_covariates
        Shape of the answer.
    probability
        In [0, 1].
    generator
        Source of the draws.

    Returns
    -------
    Boolean (n, n_covariates), True = hidden.
    """
    device = None if generator is None else generator.device
    draws = torch.rand(n, n_covariates + 3, generator=generator, device=device)
    dropped = draws[:, 3:] < probability
    if n_covariates >= 2:
        kept = (draws[:, 1] * n_covariates).long().clamp_(max=n_covariates - 1)
        only_one = torch.arange(n_covariates, device=device) != kept[:, None]
        dropped = torch.where(draws[:, 2:3] < probability, only_one, dropped)
    return dropped | (draws[:, :1] < probability)


def ema_decay(step: int, *, target: float = 0.999) -> float:
    """Decay of the averaged weights after ``step`` updates: min(target, (1 + step)/(10 + step))."""
    return min(target, (1.0 + step) / (10.0 + step))
