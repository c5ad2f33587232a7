"""Binomial thinning of counts, and integers that share a total."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellsmith._errors import SetupError

__all__ = ["binomial_split", "binomial_thin", "largest_remainder"]


def binomial_thin(x: Any, fraction: float | npt.ArrayLike, *, generator: np.random.Generator) -> Any:
    """Keep every counted molecule with probability ``fraction``, independently.

    Thinned counts have the law of a shallower experiment: a Poisson of mean m becomes a Poisson of mean fraction x m.

    Parameters
    ----------
    x
        ``(n, G)`` counts, numpy array or scipy sparse.
    fraction
        In [0, 1]; one number, or ``(n,)`` with one for each cell.
    generator
        Source of randomness.

    Returns
    -------
    The same kind (CSR if sparse), shape and dtype as ``x``; ``x`` is not changed.

    Raises
    ------
    SetupError
        If a fraction lies outside [0, 1] or there is not one for each cell.
    """
    share = np.asarray(fraction, dtype=np.float64)
    if not np.all((share >= 0) & (share <= 1)):
        raise SetupError(f"Found fraction {fraction!r}, expected numbers between 0 and 1.")
    if share.ndim > 1 or (share.ndim == 1 and share.size != x.shape[0]):
        raise SetupError(
            f"Found fraction of shape {share.shape}, expected one number or one for each of {x.shape[0]} cells."
        )
    if not sp.issparse(x):
        dense = np.asarray(x)
        each = share[:, None] if share.ndim else share
        return generator.binomial(dense.astype(np.int64), each).astype(dense.dtype)
    out = x.tocsr(copy=True)
    each = np.repeat(share, np.diff(out.indptr)) if share.ndim else share
    out.data = generator.binomial(out.data.astype(np.int64), each).astype(out.dtype)
    out.eliminate_zeros()
    return out


def binomial_split(x: Any, *, generator: np.random.Generator) -> tuple[Any, Any]:
    """Split counts into two halves that sum to them, molecule by molecule with a fair coin.

    Parameters
    ----------
    x
        ``(n, G)`` counts, numpy array or scipy sparse.
    generator
        Source of randomness.

    Returns
    -------
    ``(a, b)`` with a + b = x, of the kind (CSR if sparse) and dtype of ``x``.
    """
    first = binomial_thin(x, 0.5, generator=generator)
    second = (x.tocsr() if sp.issparse(x) else np.asarray(x)) - first
    if sp.issparse(second):
        second.eliminate_zeros()
    return first, second


def largest_remainder(expected: npt.ArrayLike, total: int) -> npt.NDArray[np.int64]:
    """Round shares to integers with an exact sum.

    Parameters
    ----------
    expected
        ``(K,)`` non-negative shares on any scale.
    total
        What the integers sum to, >= 0.

    Returns
    -------
    ``(K,)`` int64: the floors, plus one for the largest remainders (ties: the first). A share of zero gets zero.

    Raises
    ------
    SetupError
        If a share is negative or not finite, or all are zero while ``total`` is not.
    """
    shares = np.asarray(expected, dtype=np.float64).reshape(-1)
    if total < 0 or not np.all(np.isfinite(shares)) or np.any(shares < 0):
        raise SetupError(f"Found shares {shares} and total {total}, expected finite numbers >= 0.")
    if total == 0:
        return np.zeros(shares.size, dtype=np.int64)
    if shares.sum() <= 0:
        raise SetupError(f"Found no positive share among {shares.size} to spread a total of {total} over.")
    exact = shares * (total / shares.sum())
    out = np.floor(exact).astype(np.int64)
    # 1e-9: shares that are integers up to rounding must not lose a unit to a neighbour
    remainder = np.where(shares > 0, exact - out, -1.0)
    missing = int(total - out.sum())
    order = np.argsort(-np.round(remainder, 9), kind="stable")
    out[order[:missing]] += 1
    return np.asarray(out)
