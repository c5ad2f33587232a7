"""How far apart two subspaces are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.linalg as sl

from cellsmith._errors import SetupError

__all__ = ["orthonormal", "sin_theta"]


def sin_theta(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Root mean square of the sines of the principal angles, sqrt((k - |Q^T V|_F^2) / k).

    Parameters
    ----------
    x, y
        (n, k) each; only the spaces that the columns span count, not their scale or order.

    Returns
    -------
    0 for equal spaces, 1 for orthogonal ones.

    Raises
    ------
    SetupError
        If the shapes disagree, a value is not finite, or the columns are linearly dependent.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 2 or a.shape != b.shape:
        raise SetupError(f"Found arrays of shape {a.shape} and {b.shape}, expected the same (cells, components) twice.")
    q, v = _basis(a), _basis(b)
    # the part of V outside Q, rather than k - |Q^T V|^2, which cannot resolve small angles
    return float(min(1.0, np.linalg.norm(v - q @ (q.T @ v)) / np.sqrt(a.shape[1])))


def orthonormal(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Orthonormal columns that span those of ``x``, (D, k)."""
    return np.linalg.qr(x)[0]


def _basis(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        raise SetupError(f"Row {row} is not finite, expected numbers. Leave out the cells without observed entries.")
    scale = np.linalg.norm(x, axis=0)
    if not scale.all():
        raise SetupError(f"Column {int(np.argmin(scale))} is zero, expected linearly independent columns.")
    q, r, _ = sl.qr(x / scale, mode="economic", pivoting=True)
    if abs(r[-1, -1]) < 1e-10:
        raise SetupError(f"The {x.shape[1]} columns are linearly dependent, expected a basis. Pass fewer components.")
    return np.asarray(q)
