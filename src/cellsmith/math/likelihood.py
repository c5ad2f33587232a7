"""Negative binomial log-likelihoods that pay for lgamma only where a count is.

The values and gradients equal those of ``scvi.distributions``; the cost does not. Single-cell counts are mostly zeros, and
at a zero the negative binomial is one logarithm. Everything else (lgamma, digamma, log of the mean) is evaluated at the
nonzero entries only, and gradients are closed forms, not a graph of elementary operations.

Notation: n cells, G genes, x (n, G) counts, m (n, G) means in counts, theta > 0 inverse dispersion, eps = 1e-8,
r = m / (theta + eps). With them, and in nats::

    log NB(x; m, theta) = -theta log1p(r) + 1{x > 0} { x [log(m + eps) - log1p(r)] + A(x, theta) }
    A(x, theta) = lgamma(x + theta) - lgamma(theta) - lgamma(x + 1) - x log(theta + eps)

For integer x, A is the sum over j < x of log[(theta + j) / ((j + 1)(theta + eps))]. Written like this nothing large is
subtracted from anything large when theta grows, which is where float32 differences of lgamma lose their digits.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from cellsmith._errors import SetupError

__all__ = ["CountEntries", "count_entries", "nb_log_prob", "nb_log_prob_softmax", "zinb_log_prob"]

_EPS = 1e-8  # the constant of scvi.distributions
_TABLE = 12  # counts up to here are looked up; the few above go through lgamma in float64


class CountEntries(NamedTuple):
    """The nonzero counts of a batch, indexed once so that several terms can use them.

    Attributes
    ----------
    shape
        ``(n, G)``.
    row, column
        ``(nnz,)`` int64, cell and gene of each entry, in row-major order.
    flat
        ``(nnz,)`` int64, position of each entry in the flattened ``(n, G)`` array.
    value
        ``(nnz,)`` float, the counts.
    """

    shape: tuple[int, int]
    row: Tensor
    column: Tensor
    flat: Tensor
    value: Tensor


def count_entries(x: Tensor | CountEntries) -> CountEntries:
    """Find the nonzero counts of a batch.

    Parameters
    ----------
    x
        ``(n, G)`` counts, a dense tensor or a ``torch.sparse_csr`` tensor. Entries that were already found are returned.

    Returns
    -------
    The entries, on the device of ``x``.

    Raises
    ------
    SetupError
        If ``x`` has not two dimensions.
    """
    if isinstance(x, CountEntries):
        return x
    if x.ndim != 2:
        raise SetupError(f"Found counts of shape {tuple(x.shape)}, expected (cells, genes). Pass x[None] for one cell.")
    n, n_genes = int(x.shape[0]), int(x.shape[1])
    if x.layout == torch.sparse_csr:
        value = x.values()
        column = x.col_indices().to(torch.int64)
        row = torch.repeat_interleave(x.crow_indices().to(torch.int64).diff(), output_size=value.numel())
        return CountEntries((n, n_genes), row, column, row * n_genes + column, value)
    x = x.detach().contiguous()
    if x.device.type == "cpu":
        # numpy finds nonzeros several times faster than torch, and rows by bisection are cheaper than by division
        flat_np = np.flatnonzero(x.numpy() != 0)
        ends = np.searchsorted(flat_np, np.arange(n + 1) * n_genes)
        flat, row = torch.from_numpy(flat_np), torch.from_numpy(np.repeat(np.arange(n), np.diff(ends)))
        column = flat - row * n_genes
    else:
        row, column = torch.nonzero(x, as_tuple=True)
        flat = row * n_genes + column
    return CountEntries((n, n_genes), row, column, flat, x.view(-1).index_select(0, flat))


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
    entries = _checked(x, mean, inverse_dispersion)
    with _full_precision(mean):
        mean, theta = _widened(mean, inverse_dispersion)
        return cast(Tensor, _NB.apply(entries, mean, theta, torch.is_grad_enabled()))  # type: ignore[no-untyped-call]


def nb_log_prob_softmax(
    x: Tensor | CountEntries, logits: Tensor, inverse_dispersion: Tensor, *, library: Tensor
) -> Tensor:
    """Log-likelihood of each cell when the mean is ``library * softmax(logits)``: the training path.

    Equal to ``nb_log_prob(x, library * softmax(logits), inverse_dispersion)``, with the gradient taken through the softmax
    in closed form: h - rho * sum(h) with h = m d/dm, hence fewer passes over dense arrays.

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
    entries = _checked(x, logits, inverse_dispersion)
    if library.numel() != entries.shape[0]:
        raise SetupError(
            f"Found a library of shape {tuple(library.shape)}, expected one total for each of {entries.shape[0]} cells."
        )
    with _full_precision(logits):
        logits, theta = _widened(logits, inverse_dispersion)
        total = library.reshape(-1).to(logits.dtype)
        return cast(Tensor, _SoftmaxNB.apply(entries, logits, theta, total, torch.is_grad_enabled()))  # type: ignore[no-untyped-call]


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
    entries = _checked(x, mean, inverse_dispersion)
    if tuple(dropout_logits.shape) != entries.shape:
        raise SetupError(f"Found dropout_logits of shape {tuple(dropout_logits.shape)}, expected {entries.shape}.")
    with _full_precision(mean):
        mean, theta = _widened(mean, inverse_dispersion)
        logits = dropout_logits.to(mean.dtype)
        return cast(Tensor, _ZINB.apply(entries, mean, theta, logits, torch.is_grad_enabled()))  # type: ignore[no-untyped-call]


def _checked(x: Tensor | CountEntries, dense: Tensor, theta: Tensor) -> CountEntries:
    entries = count_entries(x)
    if tuple(dense.shape) != entries.shape:
        raise SetupError(f"Found a mean (or logits) of shape {tuple(dense.shape)} for counts of {entries.shape}.")
    if tuple(theta.shape) not in ((entries.shape[1],), entries.shape):
        raise SetupError(
            f"Found inverse_dispersion of shape {tuple(theta.shape)}, expected ({entries.shape[1]},) or {entries.shape}."
        )
    return entries


def _full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _widened(dense: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if dense.dtype == torch.float64 else torch.float32
    return dense.to(dtype), theta.to(dtype)


class _Terms(NamedTuple):
    """What the nonzero entries add: A(x, theta) and its derivative to theta, the latter in float64."""

    value: Tensor
    slope: Tensor | None


def _count_terms(entries: CountEntries, theta: Tensor, start: Tensor, *, slope: bool) -> _Terms:
    x = entries.value
    if theta.ndim == 2:
        at = (_at(theta, entries), _at(start, entries))
        return _special_terms(x, *at, slope=slope)
    # A and its slope for every gene and every count up to _TABLE: for 2,000 genes this costs less than lgamma and digamma
    # at the nonzeros of 128 cells
    listed = x.to(torch.int64).clamp_(1, _TABLE)
    rest = _where(x != listed)
    place = listed.add_(entries.column, alpha=_TABLE).sub_(1)
    j = torch.arange(_TABLE, dtype=theta.dtype, device=theta.device)
    table = (theta[:, None] + j).div_(start[:, None]).div_(j + 1).log_().cumsum(1)
    value, steep = table.view(-1).index_select(0, place), None
    if slope:
        wide, wide_start, j = _wide(theta)[:, None], _wide(start)[:, None], _wide(j)
        table = (wide_start - wide - j).div_((wide + j).mul_(wide_start)).cumsum(1)
        steep = table.view(-1).index_select(0, place)
    if rest.numel():
        gene = entries.column[rest]
        exact = _special_terms(x[rest], theta[gene], start[gene], slope=slope)
        value[rest] = exact.value
        if steep is not None and exact.slope is not None:
            steep[rest] = exact.slope
    return _Terms(value, steep)


def _special_terms(x: Tensor, theta: Tensor, start: Tensor, *, slope: bool) -> _Terms:
    dtype = theta.dtype
    x, theta, start = _wide(x), _wide(theta), _wide(start)
    value = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1) - x * torch.log(start)
    steep = torch.digamma(x + theta) - torch.digamma(theta) - x / start if slope else None
    return _Terms(value.to(dtype), steep)


def _wide(tensor: Tensor) -> Tensor:
    """Float64 (float32 on the one device that has no float64)."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def _where(mask: Tensor) -> Tensor:
    if mask.device.type == "cpu":  # several times faster than torch.nonzero
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return torch.nonzero(mask).squeeze(1)


class _AtCounts(NamedTuple):
    """Terms at the nonzeros: value without the dense part; derivatives to m and theta with it."""

    value: Tensor
    mean: Tensor
    d_mean: Tensor
    d_theta: Tensor | None


def _at_counts(entries: CountEntries, mean: Tensor, theta: Tensor, start: Tensor, *, slope: bool) -> _AtCounts:
    """Evaluate the braces of the module's formula; mean is dense (n, G).

    The derivative to theta is summed in float64: its terms are of opposite sign, up to 1 / theta^2 times their sum.
    """
    x, dtype = entries.value, mean.dtype
    terms = _count_terms(entries, theta, start, slope=slope)
    m, t = mean.reshape(-1).index_select(0, entries.flat), _at(start, entries)
    shifted = m + _EPS
    value = torch.log(shifted).sub_(torch.log1p(m / t)).mul_(x).add_(terms.value)
    d_mean = (x / shifted).sub_((x + t).div_(m + t))
    if terms.slope is None:
        return _AtCounts(value, m, d_mean, None)
    t = _wide(t)
    ratio = _wide(m).div_(t)
    base = ratio + 1
    # r / (1 + r) (x / t + 1) - log1p(r)
    d_theta = (x / t).add_(1).mul_(ratio.div_(base)).sub_(base.log_()).add_(terms.slope)
    return _AtCounts(value, m, d_mean, d_theta.to(dtype))


def _at(theta: Tensor, entries: CountEntries) -> Tensor:
    """Theta at the nonzeros, (nnz,)."""
    if theta.ndim == 1:
        return theta.index_select(0, entries.column)
    return theta.reshape(-1).index_select(0, entries.flat)


def _log1p_and_share(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """log1p(r) and r / (1 + r), dense; the latter overwrites ``ratio``."""
    log1p = torch.log1p(ratio)
    return log1p, ratio.div_(ratio + 1)


def _minus_over_genes(log1p: Tensor, theta: Tensor) -> Tensor:
    return (log1p @ theta if theta.ndim == 1 else (log1p * theta).sum(1)).neg_()


def _overwrite(dense: Tensor, entries: CountEntries, value: Tensor | float) -> Tensor:
    """Write ``value`` at the counts of a dense (n, G) array."""
    if isinstance(value, float):
        dense.view(-1).index_fill_(0, entries.flat, value)
    else:
        dense.view(-1).index_copy_(0, entries.flat, value)
    return dense


def _pull_theta(grad: Tensor, d_theta: Tensor, theta: Tensor) -> Tensor:
    return grad @ d_theta if theta.ndim == 1 else d_theta * grad[:, None]


class _NB(Function):
    @staticmethod
    def forward(ctx: Any, entries: CountEntries, mean: Tensor, theta: Tensor, differentiate: bool) -> Tensor:
        entries = entries._replace(value=entries.value.to(mean.dtype))
        start = theta + _EPS
        log1p, share = _log1p_and_share(mean / start)
        at = _at_counts(entries, mean, theta, start, slope=differentiate)
        value = _minus_over_genes(log1p, theta).scatter_add_(0, entries.row, at.value)
        if differentiate:
            d_theta = _overwrite(torch.sub(share, log1p, out=log1p), entries, cast(Tensor, at.d_theta))
            # -theta / (theta + m + eps) at the zeros
            d_mean = _overwrite(share.sub_(1).mul_(theta / start), entries, at.d_mean)
            ctx.save_for_backward(theta, d_mean, d_theta)
        return value

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        theta, d_mean, d_theta = ctx.saved_tensors
        with _full_precision(grad):
            to_mean = d_mean * grad[:, None] if ctx.needs_input_grad[1] else None
            to_theta = _pull_theta(grad, d_theta, theta) if ctx.needs_input_grad[2] else None
        return None, to_mean, to_theta, None


class _SoftmaxNB(Function):
    @staticmethod
    def forward(
        ctx: Any, entries: CountEntries, logits: Tensor, theta: Tensor, total: Tensor, differentiate: bool
    ) -> Tensor:
        entries = entries._replace(value=entries.value.to(logits.dtype))
        start = theta + _EPS
        mean = torch.softmax(logits, dim=1).mul_(total[:, None])
        log1p, share = _log1p_and_share(mean / start)
        at = _at_counts(entries, mean, theta, start, slope=differentiate)
        value = _minus_over_genes(log1p, theta).scatter_add_(0, entries.row, at.value)
        if differentiate:
            d_theta = _overwrite(torch.sub(share, log1p, out=log1p), entries, cast(Tensor, at.d_theta))
            # h = m d/dm; the softmax then takes h - rho sum(h), rho = mean / total
            pull = _overwrite(share.mul_(-theta), entries, at.d_mean * at.mean)
            ctx.save_for_backward(theta, mean, pull, pull.sum(1) / total, d_theta)
        return value

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        theta, mean, pull, pulled, d_theta = ctx.saved_tensors
        to_logits = None
        with _full_precision(grad):
            if ctx.needs_input_grad[1]:
                to_logits = (mean * (-grad * pulled)[:, None]).addcmul_(pull, grad[:, None])
            to_theta = _pull_theta(grad, d_theta, theta) if ctx.needs_input_grad[2] else None
            to_total = grad * pulled if ctx.needs_input_grad[3] else None
        return None, to_logits, to_theta, to_total, None


class _ZINB(Function):
    @staticmethod
    def forward(
        ctx: Any, entries: CountEntries, mean: Tensor, theta: Tensor, logits: Tensor, differentiate: bool
    ) -> Tensor:
        entries = entries._replace(value=entries.value.to(mean.dtype))
        start = theta + _EPS
        log1p, share = _log1p_and_share(mean / start)
        at = _at_counts(entries, mean, theta, start, slope=differentiate)
        # log odds of a zero of the negative binomial against an extra zero
        odds = (log1p * theta).add_(logits).neg_()
        value = (softplus(odds) - softplus(-logits)).sum(1)
        value.scatter_add_(0, entries.row, at.value - softplus(-odds.view(-1).index_select(0, entries.flat)))
        if differentiate:
            # the share of the gradient that reaches the negative binomial: all of it where a count was seen
            weight = odds.sigmoid_()
            d_theta = torch.sub(share, log1p, out=log1p).mul_(weight)
            d_mean = share.sub_(1).mul_(theta / start).mul_(weight)
            d_logits = torch.sigmoid(-logits).sub_(_overwrite(weight, entries, 1.0))
            _overwrite(d_theta, entries, cast(Tensor, at.d_theta))
            ctx.save_for_backward(theta, _overwrite(d_mean, entries, at.d_mean), d_theta, d_logits)
        return value

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        theta, d_mean, d_theta, d_logits = ctx.saved_tensors
        with _full_precision(grad):
            to_mean = d_mean * grad[:, None] if ctx.needs_input_grad[1] else None
            to_theta = _pull_theta(grad, d_theta, theta) if ctx.needs_input_grad[2] else None
            to_logits = d_logits * grad[:, None] if ctx.needs_input_grad[3] else None
        return None, to_mean, to_theta, to_logits, None
