"""Labels from scores: alignment, certainty of a row, agreement of partitions, soft assignment to centres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array

from cellsmith._errors import SetupError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "adjusted_rand",
    "entropy",
    "hungarian",
    "margin",
    "ordered_clusters",
    "row_divergence",
    "sharpen",
    "student_t",
]

_TINY = 1e-12

Floats = npt.NDArray[np.float64]


def hungarian(table: npt.ArrayLike) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Pair rows with columns one to one so that the sum of the paired entries is largest.

    Parameters
    ----------
    table
        ``(R, C)`` agreement, such as the contingency table of clusters and types, or cosines. Costs go in with a
        minus sign.

    Returns
    -------
    ``(rows, columns)``, each ``(min(R, C),)``, rows ascending; what has no partner is not listed.

    Raises
    ------
    SetupError
        If the table is not two-dimensional or holds NaN or infinity.
    """
    values = np.asarray(table, dtype=np.float64)
    if values.ndim != 2 or not np.all(np.isfinite(values)):
        what = (
            f"shape {values.shape}" if values.ndim != 2 else f"{int((~np.isfinite(values)).sum())} non-finite entries"
        )
        raise SetupError(f"Found a table with {what}, expected finite numbers of shape (rows, columns).")
    rows, columns = linear_sum_assignment(values, maximize=True)
    return rows, columns


def _rows(p: npt.ArrayLike) -> Floats:
    values = np.asarray(p, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] == 0:
        raise SetupError(f"Found probabilities of shape {values.shape}, expected (n, C) with at least one class.")
    return values


def entropy(p: npt.ArrayLike) -> Floats:
    """Return the entropy of every row, divided by that of the uniform distribution.

    Parameters
    ----------
    p
        ``(n, C)`` probabilities, rows sum to one.

    Returns
    -------
    ``(n,)`` from 0 (one class) to 1 (all classes alike); 0 for C = 1, NaN for a row with NaN.

    Raises
    ------
    SetupError
        If ``p`` is not two-dimensional or has no column.
    """
    values = _rows(p)
    if values.shape[1] == 1:
        return np.where(np.isnan(values[:, 0]), np.nan, 0.0)
    # where: 0 ln 0 = 0; entries that a solver left slightly below zero count as zero
    terms = values * np.log(np.where(values > 0, values, 1.0))
    out = -np.where(np.isnan(values), np.nan, terms).sum(axis=1) / np.log(values.shape[1])
    return np.asarray(np.clip(out, 0.0, 1.0))


def margin(p: npt.ArrayLike) -> Floats:
    """Return best minus second best of every row.

    Parameters
    ----------
    p
        ``(n, C)`` scores of any scale.

    Returns
    -------
    ``(n,)``, >= 0; for C = 1 the score itself (the absent rival counts as zero), NaN for a row with NaN.

    Raises
    ------
    SetupError
        If ``p`` is not two-dimensional or has no column.
    """
    values = _rows(p)
    if values.shape[1] == 1:
        return values[:, 0].copy()
    top = np.partition(values, -2, axis=1)
    out = top[:, -1] - top[:, -2]
    return np.asarray(np.where(np.isnan(values).any(axis=1), np.nan, out))


def adjusted_rand(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return the Rand index of two partitions, adjusted for chance (Hubert and Arabie, 1985).

    Parameters
    ----------
    a, b
        ``(n,)`` labels each, of any type that sorts; only which entries are equal matters.

    Returns
    -------
    1 for equal partitions, about 0 for unrelated ones, possibly negative.

    Raises
    ------
    SetupError
        If the lengths differ.
    """
    codes: list[Any] = [np.unique(np.asarray(labels).ravel(), return_inverse=True)[1] for labels in (a, b)]
    first, second = codes
    if first.size != second.size:
        raise SetupError(f"Found {first.size} and {second.size} labels, expected the same number.")
    table = coo_array((np.ones(first.size, dtype=np.int64), (first, second))).tocsr() if first.size else None
    if table is None:
        return 1.0
    # python integers: a product of two numbers of pairs passes 2**63 from about 50,000 cells on
    n = int(first.size)
    squares = int((table.data**2).sum())
    rows, columns = (int((np.asarray(table.sum(axis=k)).astype(np.int64) ** 2).sum()) for k in (1, 0))
    together = squares - n
    only_first, only_second = rows - squares, columns - squares
    apart = n * n - rows - columns + squares
    if only_first == 0 and only_second == 0:
        return 1.0
    above = 2 * (together * apart - only_first * only_second)
    below = (together + only_first) * (only_first + apart) + (together + only_second) * (only_second + apart)
    return above / below


def ordered_clusters(labels: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return clusters numbered by falling size, ties by their first cell: the same for any names of them.

    Parameters
    ----------
    labels
        ``(n,)`` names or numbers.

    Returns
    -------
    ``(n,)`` int64.
    """
    values = np.asarray(labels).reshape(-1)
    _, first, codes, sizes = np.unique(values, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(sizes.size, dtype=np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(sizes.size)
    return rank[codes.reshape(-1)]


def student_t(z: Tensor, centers: Tensor, *, dof: float = 1.0) -> Tensor:
    """Assign cells softly to centres by a Student t kernel (Xie et al., 2016, Eq. 1; scAGC S13).

    q_ic is proportional to (1 + |z_i - mu_c|^2 / dof)^-((dof + 1) / 2).

    Parameters
    ----------
    z
        ``(n, d)`` latent coordinates.
    centers
        ``(K, d)`` centres mu.
    dof
        Degrees of freedom > 0; 1 as published.

    Returns
    -------
    ``(n, K)`` probabilities, rows sum to 1.
    """
    square = (z[:, None, :] - centers[None, :, :]).square().sum(dim=2)
    return (-(dof + 1.0) / 2.0 * (square / dof).log1p()).softmax(dim=1)


def sharpen(q: Tensor, *, sizes: Tensor | None = None) -> Tensor:
    """Square probabilities, divided by the size of their cluster: the target of DEC (Xie et al., 2016, Eq. 3).

    p_ic is proportional to q_ic^2 / f_c.

    Parameters
    ----------
    q
        ``(n, K)`` probabilities, rows sum to 1.
    sizes
        ``(K,)`` sizes f > 0, on any scale; None: the column sums of ``q``. Mini-batches need those of all cells.

    Returns
    -------
    ``(n, K)``, rows sum to 1. Targets carry no gradient in DEC: detach them.
    """
    f = q.sum(dim=0) if sizes is None else sizes
    weight = q.square() / f.clamp(min=_TINY)
    return weight / weight.sum(dim=1, keepdim=True).clamp(min=_TINY)


def row_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence from p to q, sum_c p_ic log(p_ic / q_ic), mean over the cells.

    DEC minimises it with p the target and q the assignment; the other direction is ``row_divergence(q, p)``.

    Parameters
    ----------
    p, q
        ``(n, K)`` probabilities, rows sum to 1.

    Returns
    -------
    A scalar >= 0, in nats; probabilities count as at least 1e-12.
    """
    return (p * (p.clamp(min=_TINY).log() - q.clamp(min=_TINY).log())).sum(dim=1).mean()
