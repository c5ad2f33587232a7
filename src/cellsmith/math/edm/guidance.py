"""How conditional and unconditional estimates are combined (E17)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cellsmith.math.edm._types import Network, Prediction, Prior, column
from cellsmith.math.edm.denoising import denoise

__all__ = ["GuidedDenoiser", "guide", "guide_additive", "guided_denoiser"]


def guide(d_null: Tensor, d_cond: Tensor, weight: Tensor | float) -> Tensor:
    """Joint guidance D_0 + weight (D_c - D_0), for denoised estimates or velocities alike (E17).

    Parameters
    ----------
    d_null, d_cond
        Estimates without and with the condition, (n, d).
    weight
        One number or (n,). 0 and 1 give back ``d_null`` and ``d_cond`` bit for bit.

    Returns
    -------
    (n, d).
    """
    return guide_additive(d_null, [d_cond], [weight])


def guide_additive(d_null: Tensor, d_conds: Sequence[Tensor], weights: Sequence[Tensor | float]) -> Tensor:
    """Additive guidance D_0 + sum_k weight_k (D_k - D_0) (E17).

    Parameters
    ----------
    d_null
        Estimate without conditions (n, d).
    d_conds
        Estimates under one condition each, (n, d).
    weights
        One number or (n,) for each of ``d_conds``.

    Returns
    -------
    (n, d).
    """
    # written as a weighted sum, not as a difference, so that weights of 0 and 1 reproduce their estimate exactly
    factors = [column(weight, d_null) for weight in weights]
    total = (1.0 - sum(factors, start=torch.zeros_like(d_null[:, :1]))) * d_null
    for factor, d_cond in zip(factors, d_conds, strict=True):
        total = total + factor * d_cond
    return total


@dataclass(frozen=True)
class GuidedDenoiser:
    """Weighted sum of network passes, called as ``denoiser(y, sigma) -> D``; built by :func:`guided_denoiser`.

    Attributes
    ----------
    network, prediction, prior
        As in :func:`~cellsmith.math.edm.denoise`.
    rows
        Row of ``y`` that each stacked pass belongs to (m,); None: one pass a row, in order.
    cond
        Embedding of each stacked pass (m, h).
    share
        Coefficient of each stacked pass (m, 1).
    n_passes
        m / n: network rows per row of ``y``.
    """

    network: Network
    rows: Tensor | None
    cond: Tensor
    share: Tensor
    n_passes: float
    prediction: Prediction = "v"
    prior: Prior = "diffusion"

    def __call__(self, y: Tensor, sigma: Tensor | float) -> Tensor:
        """Denoised estimate (n, d) of the noisy vectors ``y`` (n, d) at noise level ``sigma``, one number or (n,)."""
        level = column(sigma, y)
        inputs = y
        if self.rows is not None:
            level = level[self.rows] if len(level) > 1 else level
            inputs = y[self.rows]
        estimates = denoise(self.network, inputs, level, cond=self.cond, prediction=self.prediction, prior=self.prior)
        if self.rows is None:
            return estimates
        return torch.zeros_like(y).index_add(0, self.rows, self.share.to(y.dtype) * estimates)


def guided_denoiser(
    network: Network,
    null: Tensor,
    conds: Sequence[Tensor],
    *,
    weights: Sequence[Tensor | float],
    prediction: Prediction = "v",
    prior: Prior = "diffusion",
) -> GuidedDenoiser:
    """Denoiser under guidance that makes only the passes it needs, stacked in one batch (E17).

    Parameters
    ----------
    network
        ``network(z, c_noise, cond) -> F``; a method ``network.fixed(cond) -> network`` is used where there is one.
    null
        Embedding of "no condition" (n, h).
    conds
        Embeddings (n, h): one, of all conditions together (joint), or one a condition (additive).
    weights
        One number or (n,) for each of ``conds``. A pass whose coefficient is 0 in a row is skipped in that row:
        weight 1 (joint) needs no null pass, weight 0 no conditional one.
    prediction, prior
        As in :func:`denoise`.

    Returns
    -------
    ``denoiser(y, sigma) -> D`` for y (n, d), with the attribute ``n_passes``, network rows per row of y.
    """
    n = null.shape[0]
    factors = [column(weight, null).expand(n, 1) for weight in weights]
    shares = [1.0 - sum(factors, start=torch.zeros_like(null[:, :1])), *factors]
    embeddings = [null, *conds]
    needed = [share[:, 0].ne(0.0).nonzero()[:, 0] for share in shares]
    for embedding, share, rows in zip(embeddings, shares, needed, strict=True):
        if sum(map(len, needed)) == len(rows) == n and bool(share.eq(1.0).all()):
            # one pass of weight 1 everywhere: no stacking, so weights 0 and 1 are bit-equal to that pass alone
            cond = embedding.expand(n, -1)
            return GuidedDenoiser(_fixed(network, cond), None, cond, share, 1.0, prediction, prior)
    cond = torch.cat([embedding.expand(n, -1)[rows] for embedding, rows in zip(embeddings, needed, strict=True)])
    share = torch.cat([share[rows] for share, rows in zip(shares, needed, strict=True)])
    rows = torch.cat(needed)
    return GuidedDenoiser(_fixed(network, cond), rows, cond, share, len(rows) / max(n, 1), prediction, prior)


def _fixed(network: Network, cond: Tensor) -> Network:
    """Let a network that can (``network.fixed``) work out once what it owes to conditions that stay the same."""
    prepare: Callable[[Tensor], Network] | None = getattr(network, "fixed", None)
    return network if prepare is None else prepare(cond)
