"""The dense formula of the authors' public code, for parity only (variant ``rank1-legacy``)."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError
from cellsmith.math.gram.statistics import check_size

__all__ = ["dense_legacy"]

Array: TypeAlias = npt.NDArray[np.float64]


def dense_legacy(y: npt.ArrayLike, mask: npt.ArrayLike) -> Array:
    """Corrected Gram matrix with p_id = r_i c_d / c', all of it n x n.

    Written from the formulas of sections 4.1 to 4.3 and 4.7; nothing is shared with the implicit operator.

    Parameters
    ----------
    y
        (n, D) values; what the mask says is missing is not read.
    mask
        (n, D) zeros and ones.

    Returns
    -------
    (n, n) Gram matrix, per feature.

    Raises
    ------
    SizeError
        If n exceeds 5,000.
    SetupError
        If the shapes disagree, or a cell or feature was never observed.
    """
    m = np.asarray(mask, dtype=np.float64)
    values = np.asarray(y, dtype=np.float64)
    if values.shape != m.shape or m.ndim != 2:
        raise SetupError(f"Found values of shape {values.shape} and a mask of shape {m.shape}, expected the same.")
    check_size(m.shape[0])
    r, c = m.mean(axis=1), m.mean(axis=0)
    if not (r.all() and c.all()):
        raise SetupError("A cell or a feature has no observed entry, which the legacy formula divides by. Remove it.")
    x = np.where(m > 0, values, 0.0)
    z = m * (x - (m * x).sum(axis=0) / m.sum(axis=0))
    product = np.outer(r, c)
    p = product / max(m.mean(), product.max())
    overlap = p @ p.T
    np.fill_diagonal(overlap, p.sum(axis=1))
    return np.asarray(z @ z.T / overlap)
