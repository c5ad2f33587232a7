"""Negative binomial log-likelihood of cells, for a given mean and for a softmax decoder (E3, E4)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from cellsmith._errors import SetupError
from cellsmith.math.likelihood._terms import (
    EPS,
    at_counts,
    checked,
    full_precision,
    log1p_and_share,
    minus_over_genes,
    overwrite,
    pull_theta,
    widened,
)
from cellsmith.math.likelihood.entries import CountEntries

__all__ = ["nb_log_prob", "nb_log_prob_softmax"]


def nb_log_prob(x: Tensor | CountEntries, mean: Tensor, inverse_dispersion: Tensor) -> Tensor:
    """Log-likelihood of each cell under a negative binomial (E3, gradient E4).

    Parameters
    ----------
    x
        ``(n, G)`` counts: dense, ``torch.sparse_csr``, or :class:`CountEntries`.
    mean
        ``(n, G)`` mean in counts, >= 0.
    inverse_dispersion
        theta > 0, ``(G,)`` or ``(n, G)``; variance = mean + mean^2 / theta.

    Returns
    -------
    ``(n,)`` nats, summed over genes. float32 (float64 if ``mean`` is), also under autocast.

    Raises
    ------
    SetupError
        If the shapes disagree.
    """
    entries = checked(x, mean, inverse_dispersion)
    with full_precision(mean):
        mean, theta = widened(mean, inverse_dispersion)
        return cast(Tensor, _NB.apply(entries, mean, theta, torch.is_grad_enabled()))


def nb_log_prob_softmax(
    x: Tensor | CountEntries, logits: Tensor, inverse_dispersion: Tensor, *, library: Tensor
) -> Tensor:
    """Log-likelihood of each cell when the mean is ``library * softmax(logits)``: the training path.

    Equal to ``nb_log_prob(x, library * softmax(logits), inverse_dispersion)``, with the gradient taken through the
    softmax in closed form: h - rho * sum(h) with h = m d/dm, hence fewer passes over dense arrays.

    Parameters
    ----------
    x
        ``(n, G)`` counts: dense, ``torch.sparse_csr``, or :class:`CountEntries`.
    logits
        ``(n, G)`` output of the decoder before the softmax.
    inverse_dispersion
        theta > 0, ``(G,)`` or ``(n, G)``.
    library
        ``(n,)`` or ``(n, 1)`` total counts of each cell (not their log), > 0.

    Returns
    -------
    ``(n,)`` nats, summed over genes. float32 (float64 if ``logits`` is), also under autocast.

    Raises
    ------
    SetupError
        If the shapes disagree.
    """
    entries = checked(x, logits, inverse_dispersion)
    if library.numel() != entries.shape[0]:
        raise SetupError(
            f"Found a library of shape {tuple(library.shape)}, expected one total for each of {entries.shape[0]} cells."
        )
    with full_precision(logits):
        logits, theta = widened(logits, inverse_dispersion)
        total = library.reshape(-1).to(logits.dtype)
        return cast(Tensor, _SoftmaxNB.apply(entries, logits, theta, total, torch.is_grad_enabled()))


class _NB(Function):
    @staticmethod
    def forward(ctx: Any, entries: CountEntries, mean: Tensor, theta: Tensor, differentiate: bool) -> Tensor:
        entries = entries._replace(value=entries.value.to(mean.dtype))
        start = theta + EPS
        log1p, share = log1p_and_share(mean / start)
        at = at_counts(entries, mean, theta, slope=differentiate)
        value = minus_over_genes(log1p, theta).scatter_add_(0, entries.row, at.value)
        if differentiate:
            d_theta = overwrite(torch.sub(share, log1p, out=log1p), entries, cast(Tensor, at.d_theta))
            # -theta / (theta + m + eps) at the zeros
            d_mean = overwrite(share.sub_(1).mul_(theta / start), entries, at.d_mean)
            ctx.save_for_backward(theta, d_mean, d_theta)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        theta, d_mean, d_theta = ctx.saved_tensors
        with full_precision(grad):
            to_mean = d_mean * grad[:, None] if ctx.needs_input_grad[1] else None
            to_theta = pull_theta(grad, d_theta, theta) if ctx.needs_input_grad[2] else None
        return None, to_mean, to_theta, None


class _SoftmaxNB(Function):
    @staticmethod
    def forward(
        ctx: Any, entries: CountEntries, logits: Tensor, theta: Tensor, total: Tensor, differentiate: bool
    ) -> Tensor:
        entries = entries._replace(value=entries.value.to(logits.dtype))
        start = theta + EPS
        mean = torch.softmax(logits, dim=1).mul_(total[:, None])
        log1p, share = log1p_and_share(mean / start)
        at = at_counts(entries, mean, theta, slope=differentiate)
        value = minus_over_genes(log1p, theta).scatter_add_(0, entries.row, at.value)
        if differentiate:
            d_theta = overwrite(torch.sub(share, log1p, out=log1p), entries, cast(Tensor, at.d_theta))
            # h = m d/dm; the softmax then takes h - rho sum(h), rho = mean / total
            d_logits = overwrite(share.mul_(-theta), entries, at.d_mean * at.mean)
            pulled = d_logits.sum(1) / total
            ctx.save_for_backward(theta, d_logits.sub_(mean.mul_(pulled[:, None])), pulled, d_theta)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        theta, d_logits, pulled, d_theta = ctx.saved_tensors
        with full_precision(grad):
            to_logits = d_logits * grad[:, None] if ctx.needs_input_grad[1] else None
            to_theta = pull_theta(grad, d_theta, theta) if ctx.needs_input_grad[2] else None
            to_total = grad * pulled if ctx.needs_input_grad[3] else None
        return None, to_logits, to_theta, to_total, None
