"""Parts that the negative binomial likelihoods share: the terms at the nonzeros and the dense logarithm."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cellsmith._errors import SetupError
from cellsmith.math.likelihood.entries import CountEntries, count_entries, places

__all__ = [
    "EPS",
    "at_counts",
    "checked",
    "full_precision",
    "log1p_and_share",
    "minus_over_genes",
    "overwrite",
    "pull_theta",
    "widened",
]

EPS = 1e-8  # the constant of scvi.distributions
_TABLE = 12  # counts up to here are looked up; the few above go through lgamma in float64


def checked(x: Tensor | CountEntries, dense: Tensor, theta: Tensor) -> CountEntries:
    """Entries of x (n, G), once dense is known to be (n, G) and theta (G,) or (n, G)."""
    entries = count_entries(x)
    if tuple(dense.shape) != entries.shape:
        raise SetupError(f"Found a mean (or logits) of shape {tuple(dense.shape)} for counts of {entries.shape}.")
    if tuple(theta.shape) not in ((entries.shape[1],), entries.shape):
        raise SetupError(
            f"Found inverse_dispersion of shape {tuple(theta.shape)}, "
            f"expected ({entries.shape[1]},) or {entries.shape}."
        )
    return entries


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Context without autocast; entering torch.autocast costs as much as a dense pass, hence only where it is on."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def widened(dense: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Both contiguous and in float32, or in float64 if the dense one is."""
    dtype = torch.float64 if dense.dtype == torch.float64 else torch.float32
    return dense.to(dtype).contiguous(), theta.to(dtype).contiguous()


class AtCounts(NamedTuple):
    """Terms at the nonzeros, each (nnz,): value without the dense part; derivatives to m and theta with it."""

    value: Tensor
    mean: Tensor
    d_mean: Tensor
    d_theta: Tensor | None


def at_counts(entries: CountEntries, mean: Tensor, theta: Tensor, *, slope: bool) -> AtCounts:
    """Evaluate the braces of the package formula; mean is dense (n, G), ``slope`` asks for the derivative to theta."""
    x, start = entries.value, theta + EPS
    m, t = mean.reshape(-1).index_select(0, entries.flat), _at(start, entries)
    shifted = m + EPS
    d_mean = (x / shifted).sub_((x + t).div_(m + t))
    if theta.ndim == 2:
        value, d_theta = _special(x, m, _at(theta, entries), slope=slope)
        return AtCounts(value, m, d_mean, d_theta)
    # A and its slope for every gene and every count up to _TABLE: for 2,000 genes this costs less than lgamma and
    # digamma at the nonzeros of 128 cells
    listed = x.to(torch.int64).clamp_(1, _TABLE)
    rest = places(x != listed)
    place = listed.add_(entries.column, alpha=_TABLE).sub_(1)
    j = torch.arange(_TABLE, dtype=theta.dtype, device=theta.device)
    raised, start = theta[:, None] + j, start[:, None]
    ratio = m / t
    log1p = torch.log1p(ratio)
    table = (raised / start).div_(j + 1).log_().cumsum(1)
    value = shifted.log_().sub_(log1p).mul_(x).add_(table.view(-1).index_select(0, place))
    d_theta = None
    if slope:
        table = (start - raised).div_(raised.mul_(start)).cumsum(1)
        d_theta = (x / t).add_(1).mul_(ratio.div_(ratio + 1)).sub_(log1p).add_(table.view(-1).index_select(0, place))
    if rest.numel():
        exact = _special(x[rest], m[rest], theta[entries.column[rest]], slope=slope)
        value[rest] = exact[0]
        if d_theta is not None and exact[1] is not None:
            d_theta[rest] = exact[1]
    return AtCounts(value, m, d_mean, d_theta)


def _special(x: Tensor, mean: Tensor, theta: Tensor, *, slope: bool) -> tuple[Tensor, Tensor | None]:
    """Value and derivative to theta by lgamma and digamma, all (nnz,).

    In float64 (float32 on the one device that has none), since at large theta the terms all but cancel.
    """
    dtype = theta.dtype
    if theta.device.type != "mps":
        x, mean, theta = x.double(), mean.double(), theta.double()
    start = theta + EPS
    log1p = torch.log1p(mean / start)
    value = x * (torch.log(mean + EPS) - torch.log(start) - log1p)
    value += torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    if not slope:
        return value.to(dtype), None
    d_theta = torch.digamma(x + theta) - torch.digamma(theta) + (mean - x) / (mean + start) - log1p
    return value.to(dtype), d_theta.to(dtype)


def _at(theta: Tensor, entries: CountEntries) -> Tensor:
    """Theta at the nonzeros, (nnz,)."""
    if theta.ndim == 1:
        return theta.index_select(0, entries.column)
    return theta.reshape(-1).index_select(0, entries.flat)


def log1p_and_share(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """log1p(r) and r / (1 + r), dense; the latter overwrites ``ratio``."""
    log1p = torch.log1p(ratio)
    return log1p, ratio.div_(ratio + 1)


def minus_over_genes(log1p: Tensor, theta: Tensor) -> Tensor:
    """-sum_g theta_g log1p(r_ig), (n,)."""
    return (log1p @ theta if theta.ndim == 1 else (log1p * theta).sum(1)).neg_()


def overwrite(dense: Tensor, entries: CountEntries, value: Tensor | float) -> Tensor:
    """Write ``value`` at the counts of a dense (n, G) array."""
    if isinstance(value, float):
        dense.view(-1).index_fill_(0, entries.flat, value)
    else:
        dense.view(-1).index_copy_(0, entries.flat, value)
    return dense


def pull_theta(grad: Tensor, d_theta: Tensor, theta: Tensor) -> Tensor:
    """Gradient to theta in its own shape: summed over cells if that is (G,)."""
    return grad @ d_theta if theta.ndim == 1 else d_theta * grad[:, None]
