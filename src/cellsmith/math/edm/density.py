"""Log density of a vector under the diffusion, by its probability-flow ODE (E22)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cellsmith._errors import SetupError

__all__ = ["log_density"]

EXACT_TRACE_BELOW = 64


def log_density(
    denoiser: Callable[..., Tensor],
    w: Tensor,
    sigmas: Tensor,
    *,
    cond: Tensor | None = None,
    chunk_size: int = 256,
    n_probes: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Log density of clean vectors, by Heun steps in ln sigma (E22).

    Solved in x = y / sqrt(1 + sigma^2), where a unit Gaussian stands still: every term that grows with sigma_max is
    integrated in closed form, and what is left for the solver is log N(x_max; 0, I) - d/2 ln(1 + sigma_min^2)
    + integral of [d/(1 + sigma^2) - tr dD/dy] d ln sigma.

    Parameters
    ----------
    denoiser
        ``denoiser(y, sigma) -> D``, or ``denoiser(y, sigma, cond) -> D`` when ``cond`` is given. It must be
        differentiable in ``y`` and treat rows independently.
    w
        Clean vectors (n, d), taken as lying at ``sigmas[0]``.
    sigmas
        Rising noise levels (n_steps,); ``sigma_grid(50, spacing="log").flip(0)`` is a good choice.
    cond
        Rows (n, h) that are handed to the denoiser together with their chunk of ``w``.
    chunk_size
        Rows that are solved at a time; memory grows with chunk_size x d x the network's width.
    n_probes
        Random directions of the trace estimate; used only for d > 64, where the exact trace of d products is left.
    generator
        Source of the probes, drawn once and fixed along the path. None: a generator with seed 0.

    Returns
    -------
    Log density (n,), nats, float64.

    Raises
    ------
    SetupError
        When ``sigmas`` does not rise.
    """
    if len(sigmas) < 2 or not bool((sigmas[1:] > sigmas[:-1]).all()):
        raise SetupError("sigmas must hold at least 2 rising levels. Pass sigma_grid(50, spacing='log').flip(0).")
    n, d = w.shape
    if d <= EXACT_TRACE_BELOW:
        directions = torch.eye(d, dtype=w.dtype, device=w.device)[:, None].expand(d, n, d)
    else:
        source = torch.Generator().manual_seed(0) if generator is None else generator
        signs = torch.randint(0, 2, (n, n_probes, d), generator=source, device=source.device) * 2 - 1
        directions = signs.transpose(0, 1).to(w) / math.sqrt(n_probes)
    answer = torch.empty(n, dtype=torch.float64, device=w.device)
    with torch.inference_mode(False), torch.no_grad():
        for begin in range(0, n, chunk_size):
            rows = slice(begin, begin + chunk_size)
            chunk = denoiser if cond is None else partial(_with_cond, denoiser, cond[rows])
            answer[rows] = _solve(chunk, w[rows], sigmas, directions[:, rows])
    return answer


def _with_cond(denoiser: Callable[..., Tensor], cond: Tensor, y: Tensor, sigma: Tensor) -> Tensor:
    return denoiser(y, sigma, cond)


def _solve(denoiser: Callable[[Tensor, Tensor], Tensor], w: Tensor, sigmas: Tensor, directions: Tensor) -> Tensor:
    """Log density (n,) of one chunk; ``directions`` (m, n, d) are those of the trace."""
    d = w.shape[1]
    levels = sigmas.to(dtype=torch.float64, device=w.device)
    steps = levels.log().diff()
    scales = (1.0 + levels.square()).rsqrt().to(w.dtype)
    spread = scales.double().square() * d
    sigmas = levels.to(w.dtype)
    x = w * scales[0]
    estimate, trace = _denoised_and_trace(denoiser, x / scales[0], sigmas[0], directions)
    total = -0.5 * d * torch.log1p(levels[0].square()).expand(len(w))
    for i, step in enumerate(steps.tolist()):
        slope = scales[i] ** 2 * x - scales[i] * estimate
        ahead = x + step * slope
        estimate_ahead = denoiser(ahead / scales[i + 1], sigmas[i + 1])
        slope_ahead = scales[i + 1] ** 2 * ahead - scales[i + 1] * estimate_ahead
        x = x + 0.5 * step * (slope + slope_ahead)
        estimate, trace_ahead = _denoised_and_trace(denoiser, x / scales[i + 1], sigmas[i + 1], directions)
        total = total + 0.5 * step * (spread[i] - trace + spread[i + 1] - trace_ahead)
        trace = trace_ahead
    return total - 0.5 * (x.double().square().sum(dim=1) + d * math.log(2.0 * math.pi))


def _denoised_and_trace(
    denoiser: Callable[[Tensor, Tensor], Tensor], y: Tensor, sigma: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor]:
    """D (n, d) and sum_m u_m^T (dD/dy) u_m (n,): the trace for unit vectors u_m, Hutchinson's estimate for signs."""
    # vector-Jacobian products: one forward pass serves all directions, and they cost half of forward-mode ones on CPU
    with torch.enable_grad():
        point = y.detach().requires_grad_()
        estimate = denoiser(point, sigma)
        (products,) = torch.autograd.grad(estimate, point, directions, is_grads_batched=True)
    return estimate.detach(), (products * directions).sum(dim=2).double().sum(dim=0)
