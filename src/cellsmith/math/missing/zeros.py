"""Which zeros of single-cell data inform, and which are missing values: the rules of Eq. 20, and how they are stored.

A rule gives every zero a weight between 0 (missing) and 1 (observed); whatever is not zero always has weight 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.optimize import minimize_scalar

from cellsmith._errors import SetupError
from cellsmith.math.missing.sources import Rows, chunk_bounds, dense

__all__ = [
    "consensus_zeros",
    "excess_zero_weights",
    "fit_michaelis_menten",
    "holds_counts",
    "michaelis_menten_weights",
    "sparser_pattern",
    "zero_moments",
]

_Floats = npt.NDArray[np.float64]
_CHUNK_BYTES = 4 * 2**20  # of what is looked at together: a pattern must not cost more than what it describes


def holds_counts(rows: Rows) -> bool:
    """Tell whether all values that are not NaN are integers >= 0, one of them above 1.

    Parameters
    ----------
    rows
        Reader of a matrix (n, D); reading stops at the first value that is none.
    """
    most = 0.0
    for start, stop in chunk_bounds(rows, memory=_CHUNK_BYTES):
        x = rows.read(start, stop)
        values = x.data if sp.issparse(x) else x.ravel()
        for first in range(0, values.size, 2**18):
            part = values[first : first + 2**18]
            part = part[~np.isnan(part)]
            if not ((part >= 0) & (part == np.floor(part))).all():
                return False
            most = max(most, float(part.max(initial=0.0)))
    return most > 1


def zero_moments(rows: Rows) -> tuple[_Floats, _Floats, _Floats]:
    """Return feature means (D,), zero shares (D,) and cell totals (n,) of a matrix (n, D) without NaN.

    Parameters
    ----------
    rows
        Reader of values >= 0, cells x features.

    Raises
    ------
    SetupError
        For NaN or a negative value, with its row and column.
    """
    n, d = rows.shape
    sums, filled, totals = np.zeros(d), np.zeros(d), np.zeros(n)
    for start, stop in chunk_bounds(rows, memory=_CHUNK_BYTES):
        x = rows.read(start, stop)
        values = x.data if sp.issparse(x) else x
        if not (values >= 0).all():
            i, g = (int(v[0]) for v in np.nonzero(~(dense(x) >= 0)))
            raise SetupError(
                f"The value of row {start + i}, column {g} is {dense(x)[i, g]}; zeros are judged by values >= 0. "
                "Name the layer that has them: layer=."
            )
        sums += np.asarray(x.sum(axis=0, dtype=np.float64)).ravel()
        totals[start:stop] = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
        filled += np.asarray((x != 0).sum(axis=0)).ravel()
    return sums / max(n, 1), 1.0 - filled / max(n, 1), totals


def consensus_zeros(
    rows: Rows, clusterings: npt.NDArray[np.int64], *, threshold: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Eq. 20, consensus: a zero is true where most clusterings say so.

    One clustering calls a zero true when at least ``threshold`` of the feature's values in the cell's cluster are
    zero. Shares are sums over clusters of the pattern of non-zeros; nothing densifies.

    Parameters
    ----------
    rows
        Reader of a matrix ``(n, D)``.
    clusterings
        ``(n, C)`` codes 0, 1, ... of C clusterings.
    threshold
        Share in (0, 1].

    Returns
    -------
    ``(n,)`` code of a cell's combination of clusters, and ``(T, D)`` booleans: whether a zero of that feature is true
    in that combination (a strict majority).
    """
    d = rows.shape[1]
    sizes = [int(column.max()) + 1 for column in clusterings.T]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    filled = np.zeros((offsets[-1], d), dtype=np.float32)
    for start, stop in chunk_bounds(rows, memory=_CHUNK_BYTES):
        x = rows.read(start, stop)
        some = sp.csr_matrix(x != 0, dtype=np.float32)
        members = (clusterings[start:stop] + offsets[:-1]).ravel()
        cells = np.repeat(np.arange(stop - start), clusterings.shape[1])
        ones = np.ones(len(members), dtype=np.float32)
        filled += (sp.csr_matrix((ones, (members, cells)), shape=(offsets[-1], stop - start)) @ some).toarray()
    members_of = np.concatenate([np.bincount(c, minlength=s) for c, s in zip(clusterings.T, sizes, strict=True)])
    # At most (1 - threshold) of the values are filled; the slack forgives the rounding of 1 - 0.9.
    true = filled <= ((1.0 - threshold) * members_of + 1e-6)[:, None]
    combinations, codes = np.unique(clusterings, axis=0, return_inverse=True)
    votes = np.zeros((len(combinations), d), dtype=np.uint8)
    for c in range(clusterings.shape[1]):
        votes += true[offsets[c] + combinations[:, c]]
    return codes.reshape(-1).astype(np.int64), votes > clusterings.shape[1] // 2


def fit_michaelis_menten(means: _Floats, zero_share: _Floats) -> float:
    """Eq. 20, Michaelis-Menten: the constant K that fits zero shares (D,) by K / (K + mean) in least squares.

    Parameters
    ----------
    means
        Means (D,) of the features.
    zero_share
        Shares (D,) of zeros.

    Raises
    ------
    SetupError
        If no feature has a mean above 0.
    """
    some = means > 0
    if not some.any():
        raise SetupError("All values are zero; expected some that are not. Name the layer with the data: layer=.")
    m, share = means[some], zero_share[some]
    low, high = np.log(m.min()) - 10.0, np.log(m.max()) + 10.0
    loss = lambda log_k: float(((share - 1.0 / (1.0 + m * np.exp(-log_k))) ** 2).sum())
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


def michaelis_menten_weights(means: _Floats, depth: _Floats, *, constant: float) -> _Floats:
    """Eq. 20, Michaelis-Menten: weight m / (K + m) of a zero, with m the feature's mean times the cell's depth.

    Parameters
    ----------
    means
        Means (D,) of the features.
    depth
        Depth factors (b,) of the cells, mean 1.
    constant
        K, in the unit of the means.

    Returns
    -------
    ``(b, D)``, in [0, 1].
    """
    m = np.outer(depth, means)
    return m / (constant + m)


def excess_zero_weights(zero_probability: _Floats, dropout: _Floats) -> _Floats:
    """Eq. 20, NB and ZINB: probability that a zero is a count of zero and not a dropout.

    Parameters
    ----------
    zero_probability
        ``(b, D)`` probability of a zero under the negative binomial, (theta / (theta + mu))^theta.
    dropout
        Probability of a dropout, ``(D,)`` or ``(b, D)``: the mixture weight of zeros in excess.

    Returns
    -------
    ``(b, D)``: (1 - pi) f0 / (pi + (1 - pi) f0).
    """
    counted = (1.0 - dropout) * zero_probability
    return counted / np.maximum(dropout + counted, np.finfo(float).tiny)


def sparser_pattern(
    rows: Rows, weights: Callable[[int, int, Any], npt.NDArray[Any]]
) -> tuple[sp.csr_matrix, str, float]:
    """Store the weights of all entries by whichever pattern is sparser, observed or missing.

    Parameters
    ----------
    rows
        Reader of a matrix ``(n, D)``.
    weights
        ``weights(start, stop, chunk)`` returns the weights of a run of rows, dense ``(stop - start, D)``, boolean or
        in [0, 1]. It is called twice for each run, so that nothing needs to be kept.

    Returns
    -------
    A CSR matrix ``(n, D)``; ``"observed"`` when it holds the weights, ``"missing"`` when it holds one minus them
    (uint8 where all are 0 or 1, else float32); and the observed share of all entries.
    """
    n, d = rows.shape
    step = max(1, _CHUNK_BYTES // max(8 * d, 1))
    stored, total, soft = {"observed": np.zeros(n, np.int64), "missing": np.zeros(n, np.int64)}, 0.0, False
    for start, stop in chunk_bounds(rows, step):
        m = weights(start, stop, rows.read(start, stop))
        stored["observed"][start:stop] = (m > 0).sum(axis=1)
        stored["missing"][start:stop] = (m < 1).sum(axis=1)
        total += float(m.sum(dtype=np.float64))
        soft = soft or (m.dtype != bool and bool(((m > 0) & (m < 1)).any()))
    marks = min(stored, key=lambda name: int(stored[name].sum()))
    indptr = np.concatenate([[0], np.cumsum(stored[marks])])
    kind = np.int32 if max(indptr[-1], d) < 2**31 else np.int64
    indices, data = np.empty(indptr[-1], kind), np.ones(indptr[-1], np.float32 if soft else np.uint8)
    for start, stop in chunk_bounds(rows, step):
        m = weights(start, stop, rows.read(start, stop))
        here = (m > 0) if marks == "observed" else (m < 1)
        span = slice(indptr[start], indptr[stop])
        indices[span] = np.nonzero(here)[1]
        if soft:
            data[span] = m[here] if marks == "observed" else 1.0 - m[here]
    return sp.csr_matrix((data, indices, indptr.astype(kind)), shape=(n, d)), marks, total / max(n * d, 1)
