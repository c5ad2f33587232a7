"""Contrast of two sets of paired vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from cellsmith._errors import SetupError

__all__ = ["cross_correlation", "info_nce", "propagation_divergence"]

_VARIANCE_FLOOR = 1e-5  # a latent dimension that is constant over the batch has no correlation


def info_nce(a: Tensor, b: Tensor, *, temperature: float, keep: Tensor | None = None, within: bool = False) -> Tensor:
    """Return the symmetric InfoNCE loss of paired rows (van den Oord et al., 2018; scE2TM T18, scAGC S12).

    Rows are scaled to unit length, s(x, y) = x . y / temperature. Row i of one side should be told from the other rows
    by its partner, row i of the other side: -log exp s(a_i, b_i) / (exp s(a_i, b_i) + sum over negatives j != i), mean
    over the rows of both sides. Equal cosines everywhere give the log of the number of candidates: log n, or
    log(2 n - 1) with ``within``.

    Parameters
    ----------
    a, b
        ``(n, d)`` vectors of any scale, partners in the same row; for scE2TM's T18 the transposed topic proportions,
        (topics, cells). A row of zeros has cosine 0 with all.
    temperature
        Unit of the cosines; smaller: the hardest negatives count most.
    keep
        ``(n, n)`` boolean, entry (i, j): whether row j may be a negative of row i, on either side. The diagonal plays
        no role: the partner always counts. None: all may.
    within
        Whether the other rows of the same side are negatives too.

    Returns
    -------
    The loss in nats, a scalar >= 0.

    Raises
    ------
    SetupError
        If shapes do not fit, ``keep`` is not boolean, or the temperature is not above 0.
    """
    if a.ndim != 2 or a.shape != b.shape or 0 in a.shape:
        raise SetupError(f"Found shapes {tuple(a.shape)} and {tuple(b.shape)}, expected the same (n, d) for a and b.")
    if not temperature > 0:
        raise SetupError(f"Found temperature={temperature!r}, expected a number above 0.")
    n = len(a)
    own = torch.eye(n, dtype=torch.bool, device=a.device)
    barred = torch.zeros_like(own) if keep is None else _barred(keep, own)
    a, b = functional.normalize(a, dim=1), functional.normalize(b, dim=1)
    across = a @ b.T / temperature
    candidates = [
        [across.masked_fill(barred, -torch.inf)],
        [across.T.masked_fill(barred, -torch.inf)],
    ]
    if within:
        for side, vectors in zip(candidates, (a, b), strict=True):
            side.append((vectors @ vectors.T / temperature).masked_fill(barred | own, -torch.inf))
    found = [torch.logsumexp(torch.cat(side, dim=1), dim=1) for side in candidates]
    return (torch.cat(found) - across.diagonal().repeat(2)).mean()


def cross_correlation(a: Tensor, b: Tensor, *, keep: Tensor | None = None, center: bool = False) -> Tensor:
    """Ask paired rows to agree and all others not to be alike (Zbontar et al., 2021; scSiameseClu S16, S18).

    With R_ij the cosine of row i of a and row j of b, the loss is mean_i (R_ii - 1)^2 + sum over j != i of
    M_ij R_ij^2 / max(1, sum M). Rows are cells for the cell-level term. Given the transposed embeddings and
    ``center=True`` rows are latent dimensions and R their correlations over the cells.

    Parameters
    ----------
    a, b
        ``(n, d)`` vectors of any scale, partners in the same row.
    keep
        ``(n, n)`` boolean M, entry (i, j): whether rows i of a and j of b should be unlike. The diagonal plays no
        role. None: all should.
    center
        Subtract the mean of every row first; its variance is enlarged by 1e-5, so that a constant row has R = 0.

    Returns
    -------
    A scalar >= 0. It does not depend on the order of the rows.

    Raises
    ------
    SetupError
        If shapes do not fit or ``keep`` is not boolean.
    """
    if a.ndim != 2 or a.shape != b.shape or 0 in a.shape:
        raise SetupError(f"Found shapes {tuple(a.shape)} and {tuple(b.shape)}, expected the same (n, d) for a and b.")
    r = _unit_rows(a, center=center) @ _unit_rows(b, center=center).T
    own = torch.eye(len(a), dtype=torch.bool, device=a.device)
    counted = ~own if keep is None else ~_barred(keep, own) & ~own
    apart = torch.where(counted, r.square(), 0.0).sum() / counted.sum().clamp_min(1)
    return (r.diagonal() - 1).square().mean() + apart


def _unit_rows(x: Tensor, *, center: bool) -> Tensor:
    if center:
        x = x - x.mean(dim=1, keepdim=True)
        return x / (x.square().sum(dim=1, keepdim=True) + _VARIANCE_FLOOR * x.shape[1]).sqrt()
    return functional.normalize(x, dim=1)


def propagation_divergence(z: Tensor, propagated: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of softmax(z) and softmax(O z), mean over cells (scSiameseClu S20).

    With M = (P + P') / 2 it is (KL(P : M) + KL(P' : M)) / 2: both sides once.

    Parameters
    ----------
    z, propagated
        ``(n, d)`` embeddings before and after a step over the graph, read as logits.

    Returns
    -------
    A scalar in [0, log 2], nats; symmetric.
    """
    log_p, log_q = torch.log_softmax(z, dim=1), torch.log_softmax(propagated, dim=1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    both = [(log.exp() * (log - log_m)).sum(dim=1) for log in (log_p, log_q)]
    return 0.5 * (both[0] + both[1]).mean()


def _barred(keep: Tensor, own: Tensor) -> Tensor:
    """Return (n, n): which rows are no candidates for which; a row's partner always is one."""
    if keep.dtype != torch.bool or keep.shape != own.shape:
        raise SetupError(
            f"Found keep of shape {tuple(keep.shape)} and {keep.dtype}, expected boolean {tuple(own.shape)}."
        )
    return ~(keep | own)
