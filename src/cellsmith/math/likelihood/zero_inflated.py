"""Zero-inflated negative binomial log-likelihood of cells (E5)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from cellsmith._errors import SetupError
from cellsmith.math.likelihood._terms import (
    EPS,
    at_counts,
    checked,
    full_precision,
    log1p_and_share,
    overwrite,
    pull_theta,
    widened,
)
from cellsmith.math.likelihood.entries import CountEntries

__all__ = ["zinb_log_prob"]


def zinb_log_prob(
    x: Tensor | CountEntries, mean: Tensor, inverse_dispersion: Tensor, *, dropout_logits: Tensor
) -> Tensor:
    """Log-likelihood of each cell under a zero-inflated negative binomial (E5).

    Parameters
    ----------
    x
        ``(n, G)`` counts: dense, ``torch.sparse_csr``, or :class:`CountEntries`.
    mean
        ``(n, G)`` mean of the negative binomial in counts, >= 0.
    inverse_dispersion
        theta > 0, ``(G,)`` or ``(n, G)``.
    dropout_logits
        ``(n, G)`` logit of the probability of an extra zero.

    Returns
    -------
    ``(n,)`` nats, summed over genes. float32 (float64 if ``mean`` is), also under autocast.

    Raises
    ------
    SetupError
        If the shapes disagree.
    """
    entries = checked(x, mean, inverse_dispersion)
    if tuple(dropout_logits.shape) != entries.shape:
        raise SetupError(f"Found dropout_logits of shape {tuple(dropout_logits.shape)}, expected {entries.shape}.")
    with full_precision(mean):
        mean, theta = widened(mean, inverse_dispersion)
        logits = dropout_logits.to(mean.dtype).contiguous()
        return cast(Tensor, _ZINB.apply(entries, mean, theta, logits, torch.is_grad_enabled()))


class _ZINB(Function):
    @staticmethod
    def forward(
        ctx: Any, entries: CountEntries, mean: Tensor, theta: Tensor, logits: Tensor, differentiate: bool
    ) -> Tensor:
        entries = entries._replace(value=entries.value.to(mean.dtype))
        start = theta + EPS
        log1p, share = log1p_and_share(mean / start)
        at = at_counts(entries, mean, theta, slope=differentiate)
        # log odds of a zero of the negative binomial against an extra zero
        odds = (log1p * theta).add_(logits).neg_()
        value = (softplus(odds) - softplus(-logits)).sum(1)
        value.scatter_add_(0, entries.row, at.value - softplus(-odds.view(-1).index_select(0, entries.flat)))
        if differentiate:
            # the share of the gradient that reaches the negative binomial: all of it where a count was seen
            weight = odds.sigmoid_()
            d_theta = torch.sub(share, log1p, out=log1p).mul_(weight)
            d_mean = share.sub_(1).mul_(theta / start).mul_(weight)
            d_logits = torch.sigmoid(-logits).sub_(overwrite(weight, entries, 1.0))
            overwrite(d_theta, entries, cast(Tensor, at.d_theta))
            ctx.save_for_backward(theta, overwrite(d_mean, entries, at.d_mean), d_theta, d_logits)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        theta, d_mean, d_theta, d_logits = ctx.saved_tensors
        with full_precision(grad):
            to_mean = d_mean * grad[:, None] if ctx.needs_input_grad[1] else None
            to_theta = pull_theta(grad, d_theta, theta) if ctx.needs_input_grad[2] else None
            to_logits = d_logits * grad[:, None] if ctx.needs_input_grad[3] else None
        return None, to_mean, to_theta, to_logits, None
