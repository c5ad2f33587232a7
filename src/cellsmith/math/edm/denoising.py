"""From a network to a denoiser, and the loss that trains it (E13, E14)."""

from __future__ import annotations

import torch
from torch import Tensor

from cellsmith.math.edm._types import Network, Prediction, Prior, checked, column

__all__ = ["denoise", "denoising_loss", "precondition"]


def precondition(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Coefficients of D = c_skip y + c_out F(c_in y; c_noise) at sigma_data = 1 (E13).

    Parameters
    ----------
    sigma
        Noise levels, any shape, positive.

    Returns
    -------
    ``(c_skip, c_out, c_in, c_noise)``, each of the shape of ``sigma``; c_noise = ln(sigma)/4.
    """
    c_in = torch.rsqrt(1.0 + sigma * sigma)
    return c_in * c_in, sigma * c_in, c_in, sigma.log() / 4.0


def denoise(
    network: Network,
    y: Tensor,
    sigma: Tensor | float,
    *,
    cond: Tensor | None = None,
    prediction: Prediction = "v",
    prior: Prior = "diffusion",
) -> Tensor:
    """Denoised estimate D of the clean vectors (E13, E14).

    Parameters
    ----------
    network
        ``network(z, c_noise, cond) -> F``.
    y
        Noisy vectors (n, d), y = w + sigma e.
    sigma
        Noise level, one number or (n,).
    cond
        Condition embedding (n, h) handed to the network as it is, or None.
    prediction
        What F stands for. ``"v"``: s w - a e for ``"diffusion"`` (the preconditioned form), w - e for ``"flow"``;
        ``"epsilon"``: e; ``"x0"``: w. Errors of an ``"epsilon"`` network reach D multiplied by sigma (up to 642).
    prior
        ``"diffusion"`` feeds the network a w + s e, ``"flow"`` t w + (1 - t) e.

    Returns
    -------
    D (n, d), in units of w.

    Raises
    ------
    SetupError
        For an unknown ``prediction`` or ``prior``.
    """
    checked("prediction", prediction, valid=("v", "epsilon", "x0"))
    checked("prior", prior, valid=("diffusion", "flow"))
    level = column(sigma, y)
    c_noise = level[:, 0].log() / 4.0
    scale = torch.rsqrt(1.0 + level * level) if prior == "diffusion" else 1.0 / (1.0 + level)
    z = scale * y
    output = network(z, c_noise, cond)
    if prediction == "x0":
        return output
    if prediction == "epsilon":
        # y/sigma and F are both of order one and nearly equal at high noise, so their difference is exact in float32
        return level * (y / level - output)
    # level * scale is s for "diffusion" and 1 - t for "flow"; c_skip y is written a (a y), which stays of order one
    return (scale * z if prior == "diffusion" else z) + level * scale * output


def denoising_loss(
    network: Network,
    w: Tensor,
    sigma: Tensor,
    *,
    noise: Tensor,
    cond: Tensor | None = None,
    prediction: Prediction = "v",
    prior: Prior = "diffusion",
) -> Tensor:
    """Squared error of the network's own target, unit weight (E14).

    Parameters
    ----------
    network
        ``network(z, c_noise, cond) -> F``.
    w
        Clean vectors (n, d).
    sigma
        Noise levels (n,), from :func:`sigma_of_time` of :func:`stratified_times`.
    noise
        Standard normal (n, d).
    cond, prediction, prior
        As in :func:`denoise`.

    Returns
    -------
    Sum over the d dimensions of (F - target)^2, (n,).
    """
    checked("prediction", prediction, valid=("v", "epsilon", "x0"))
    checked("prior", prior, valid=("diffusion", "flow"))
    level = column(sigma, w)
    a = torch.rsqrt(1.0 + level * level) if prior == "diffusion" else 1.0 / (1.0 + level)
    s = level * a
    output = network(a * w + s * noise, level[:, 0].log() / 4.0, cond)
    if prediction == "epsilon":
        target = noise
    elif prediction == "x0":
        target = w
    else:
        target = s * w - a * noise if prior == "diffusion" else w - noise
    return (output - target).square().sum(dim=1)
