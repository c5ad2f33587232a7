"""Contrast of two sets of paired vectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cellsmith._errors import SetupError

__all__ = ["info_nce"]


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


def _barred(keep: Tensor, own: Tensor) -> Tensor:
    """Return (n, n): which rows are no candidates for which; a row's partner always is one."""
    if keep.dtype != torch.bool or keep.shape != own.shape:
        raise SetupError(
            f"Found keep of shape {tuple(keep.shape)} and {keep.dtype}, expected boolean {tuple(own.shape)}."
        )
    return ~(keep | own)
