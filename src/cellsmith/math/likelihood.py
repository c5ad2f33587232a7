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
_TABLE = 16  # counts up to here are looked up; the few above go through lgamma in float64


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
        # numpy finds nonzeros several times faster than torch, and integer division by G is dearer than np.repeat
        positive = x.numpy() != 0
        flat_np = np.flatnonzero(positive)
        row_np = np.repeat(np.arange(n), np.count_nonzero(positive, axis=1))
        flat, row = torch.from_numpy(flat_np), torch.from_numpy(row_np)
        column = torch.from_numpy(flat_np - row_np * n_genes)
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


def _full_precision(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)


def _widened(dense: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if dense.dtype == torch.float64 else torch.float32
    return dense.to(dtype), theta.to(dtype)


class _Terms(NamedTuple):
    """What the nonzero entries add: A(x, theta) and its derivative to theta.

    The derivative stays in float64: at small theta it cancels against the rest of the gradient.
    """

    value: Tensor
    slope: Tensor | None


def _count_terms(entries: CountEntries, theta: Tensor, *, slope: bool) -> _Terms:
    x = entries.value
    if theta.ndim == 2:
        return _special_terms(x, theta.reshape(-1).index_select(0, entries.flat), slope=slope)
    # A and its slope for every gene and every count up to _TABLE, one row a gene; 2,000 x 16 cells cost less than
    # lgamma and digamma at the nonzeros of 128 cells
    j = torch.arange(_TABLE, dtype=theta.dtype, device=theta.device)
    shifted = theta[:, None] + j
    start = (theta + _EPS)[:, None]
    listed = (x >= 1) & (x <= _TABLE) & (x == x.floor())
    place = torch.where(listed, x, torch.ones_like(x)).to(torch.int64).add_(entries.column * _TABLE).sub_(1)
    table = (shifted / (start * (j + 1))).log_().cumsum(1)
    value = table.view(-1).index_select(0, place)
    steep = None
    if slope:
        j, shifted, start = _wide(j), _wide(shifted), _wide(start)
        table = ((_EPS - j) / (shifted * start)).cumsum(1)
        steep = table.view(-1).index_select(0, place)
    rest = torch.nonzero(~listed).squeeze(1)
    if rest.numel():
        exact = _special_terms(x[rest], theta[entries.column[rest]], slope=slope)
        value[rest] = exact.value
        if steep is not None and exact.slope is not None:
            steep[rest] = exact.slope
    return _Terms(value, steep)


def _special_terms(x: Tensor, theta: Tensor, *, slope: bool) -> _Terms:
    dtype = theta.dtype
    x, theta = _wide(x), _wide(theta)
    start = theta + _EPS
    value = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1) - x * torch.log(start)
    steep = torch.digamma(x + theta) - torch.digamma(theta) - x / start if slope else None
    return _Terms(value.to(dtype), steep)


def _wide(tensor: Tensor) -> Tensor:
    """Float64 copy, never an alias (callers write into it); float32 on the one device that has no float64."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64, copy=True)


def _log1p_and_share(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """log1p(r) and r / (1 + r), dense.

    ``torch.log1p`` costs four times ``torch.log``, so the digits that 1 + r rounds away are put back by hand.
    """
    base = ratio + 1
    share = base.reciprocal()
    lost = base - 1
    torch.sub(ratio, lost, out=lost).mul_(share)
    return base.log_().add_(lost), share.mul_(ratio)


def _zeros_only(share: Tensor, log1p: Tensor, entries: CountEntries) -> Tensor:
    """d/dtheta at the zeros, 0 at the counts; overwrites ``log1p``."""
    torch.sub(share, log1p, out=log1p).view(-1).index_fill_(0, entries.flat, 0.0)
    return log1p


def _over_genes(dense: Tensor, theta: Tensor) -> Tensor:
    return dense @ theta if theta.ndim == 1 else (dense * theta).sum(1)


def _add_rows(total: Tensor, entries: CountEntries, value: Tensor) -> Tensor:
    return total.scatter_add_(0, entries.row, value)


def _theta_gradient(entries: CountEntries, grad: Tensor, dense: Tensor, at_counts: Tensor, *, per_gene: bool) -> Tensor:
    """Gradient to theta: (G,) summed over cells, or (n, G)."""
    weighted = grad.index_select(0, entries.row) * at_counts
    if per_gene:
        return (grad @ dense).scatter_add_(0, entries.column, weighted)
    out = dense * grad[:, None]
    out.view(-1).scatter_add_(0, entries.flat, weighted)
    return out


class _AtCounts(NamedTuple):
    """Likelihood terms at the nonzeros, with their derivatives to log m (eps included) and theta.

    ``d_theta`` is the whole derivative at a count, the dense part included.
    """

    value: Tensor
    d_log_mean: Tensor
    d_theta: Tensor | None


def _at_counts(entries: CountEntries, mean: Tensor, ratio: Tensor, theta: Tensor, *, slope: bool) -> _AtCounts:
    """Evaluate the braces of the module's formula; mean and ratio are (nnz,).

    In float64, because terms of opposite sign meet here and the nonzeros are few.
    """
    dtype, x = mean.dtype, entries.value
    mean, ratio = _wide(mean), _wide(ratio)
    terms = _count_terms(entries, theta, slope=slope)
    share = ratio / (ratio + 1)
    log1p = torch.log(ratio + 1)
    value = (torch.log(mean + _EPS) - log1p).mul_(x).add_(terms.value).to(dtype)
    d_log_mean = (mean / (mean + _EPS)).sub_(share).mul_(x).to(dtype)
    if terms.slope is None:
        return _AtCounts(value, d_log_mean, None)
    d_theta = terms.slope.add_(share * (x / _wide(_at(theta, entries)).add_(_EPS) + 1)).sub_(log1p)
    return _AtCounts(value, d_log_mean, d_theta.to(dtype))


def _at(theta: Tensor, entries: CountEntries) -> Tensor:
    if theta.ndim == 1:
        return theta.index_select(0, entries.column)
    return theta.reshape(-1).index_select(0, entries.flat)


class _NB(Function):
    @staticmethod
    def forward(ctx: Any, entries: CountEntries, mean: Tensor, theta: Tensor, differentiate: bool) -> Tensor:
        entries = entries._replace(value=entries.value.to(mean.dtype))
        start = theta + _EPS
        ratio = mean / start
        log1p, share = _log1p_and_share(ratio)
        m = mean.reshape(-1).index_select(0, entries.flat)
        at = _at_counts(entries, m, m / _at(start, entries), theta, slope=differentiate)
        value = _add_rows(_over_genes(log1p, theta).neg_(), entries, at.value)
        if differentiate:
            ctx.entries = entries
            # d/dm = x / (m + eps) - (x + theta) / (theta + m + eps); written with the mean divided out it stays finite at 0
            d_mean = entries.value * (1 / (m + _EPS) - 1 / (m + _at(start, entries)))
            ctx.save_for_backward(theta, share, _zeros_only(share, log1p, entries), d_mean, at.d_theta)
        return value

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        theta, share, d_theta, d_mean, d_theta_counts = ctx.saved_tensors
        entries: CountEntries = ctx.entries
        to_mean = to_theta = None
        with _full_precision(grad):
            if ctx.needs_input_grad[1]:
                to_mean = (1 - share).mul_(theta / -(theta + _EPS))
                to_mean.view(-1).scatter_add_(0, entries.flat, d_mean)
                to_mean.mul_(grad[:, None])
            if ctx.needs_input_grad[2]:
                to_theta = _theta_gradient(entries, grad, d_theta, d_theta_counts, per_gene=theta.ndim == 1)
        return None, to_mean, to_theta, None


class _SoftmaxNB(Function):
    @staticmethod
    def forward(
        ctx: Any, entries: CountEntries, logits: Tensor, theta: Tensor, total: Tensor, differentiate: bool
    ) -> Tensor:
        entries = entries._replace(value=entries.value.to(logits.dtype))
        start = theta + _EPS
        ratio = torch.softmax(logits, dim=1).mul_(total[:, None]).div_(start)
        log1p, share = _log1p_and_share(ratio)
        r = ratio.view(-1).index_select(0, entries.flat)
        at = _at_counts(entries, r * _at(start, entries), r, theta, slope=differentiate)
        value = _add_rows(_over_genes(log1p, theta).neg_(), entries, at.value)
        if differentiate:
            ctx.entries = entries
            pull = _add_rows(_over_genes(share, theta).neg_(), entries, at.d_log_mean)
            ctx.save_for_backward(
                theta, total, ratio, _zeros_only(share, log1p, entries), at.d_log_mean, at.d_theta, pull
            )
        return value

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        theta, total, ratio, d_theta, d_log_mean, d_theta_counts, pull = ctx.saved_tensors
        entries: CountEntries = ctx.entries
        to_logits = to_theta = to_total = None
        with _full_precision(grad):
            if ctx.needs_input_grad[1]:
                # h - rho sum(h) with h = -theta r / (1 + r) at zeros and rho = r (theta + eps) / total
                to_logits = torch.div(theta, ratio + 1)
                to_logits.addcmul_((pull / total)[:, None], (theta + _EPS).expand_as(ratio)).mul_(ratio)
                to_logits.view(-1).scatter_add_(0, entries.flat, d_log_mean.neg())
                to_logits.mul_(grad.neg()[:, None])
            if ctx.needs_input_grad[2]:
                to_theta = _theta_gradient(entries, grad, d_theta, d_theta_counts, per_gene=theta.ndim == 1)
            if ctx.needs_input_grad[3]:
                to_total = grad * pull / total
        return None, to_logits, to_theta, to_total, None


class _ZINB(Function):
    @staticmethod
    def forward(
        ctx: Any, entries: CountEntries, mean: Tensor, theta: Tensor, logits: Tensor, differentiate: bool
    ) -> Tensor:
        entries = entries._replace(value=entries.value.to(mean.dtype))
        start = theta + _EPS
        log1p, share = _log1p_and_share(mean / start)
        m = mean.reshape(-1).index_select(0, entries.flat)
        at = _at_counts(entries, m, m / _at(start, entries), theta, slope=differentiate)
        # odds of a zero of the negative binomial against an extra zero, on the log scale
        odds = (log1p * theta).add_(logits).neg_()
        value = (softplus(odds) - softplus(-logits)).sum(1)
        _add_rows(value, entries, at.value - softplus(-odds.view(-1).index_select(0, entries.flat)))
        if differentiate:
            ctx.entries = entries
            # share of the gradient that reaches the negative binomial: all of it where a count was seen
            weight = odds.sigmoid_()
            weight.view(-1).index_fill_(0, entries.flat, 1.0)
            d_mean = entries.value * (1 / (m + _EPS) - 1 / (m + _at(start, entries)))
            d_theta = _zeros_only(share, log1p, entries).mul_(weight)
            ctx.save_for_backward(theta, logits, weight, share, d_theta, d_mean, at.d_theta)
        return value

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        theta, logits, weight, share, d_theta, d_mean, d_theta_counts = ctx.saved_tensors
        entries: CountEntries = ctx.entries
        to_mean = to_theta = to_logits = None
        with _full_precision(grad):
            if ctx.needs_input_grad[1]:
                to_mean = (1 - share).mul_(theta / -(theta + _EPS)).mul_(weight)
                to_mean.view(-1).scatter_add_(0, entries.flat, d_mean)
                to_mean.mul_(grad[:, None])
            if ctx.needs_input_grad[2]:
                to_theta = _theta_gradient(entries, grad, d_theta, d_theta_counts, per_gene=theta.ndim == 1)
            if ctx.needs_input_grad[3]:
                to_logits = torch.sigmoid(-logits).sub_(weight).mul_(grad[:, None])
        return None, to_mean, to_theta, to_logits, None
