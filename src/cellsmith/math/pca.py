"""Principal components of sparse expression, with the axes kept so that new cells can be placed among old ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, svds

from cellsmith._errors import SetupError

__all__ = ["PrincipalAxes", "principal_axes"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PrincipalAxes:
    """Where cells lie along the directions of largest variance.

    Attributes
    ----------
    mean
        ``(G,)`` mean of the cells that the axes were found on.
    axes
        ``(G, d)`` orthonormal columns, by falling variance; the entry of largest size in each is positive.
    """

    mean: Floats
    axes: Floats

    def project(self, x: Any) -> Floats:
        """Return the scores ``(m, d)`` of cells ``(m, G)``, dense or sparse, in the units of x."""
        return np.asarray(x @ self.axes) - self.mean @ self.axes


def principal_axes(x: Any, n_components: int) -> PrincipalAxes:
    """Find the leading principal axes of centred, unscaled x; the matrix is never made dense (scSiameseClu S1).

    Parameters
    ----------
    x
        ``(n, G)`` finite numbers, dense or scipy sparse.
    n_components
        d wanted; at most ``min(n, G) - 1`` are found.

    Returns
    -------
    The axes. ARPACK starts from a fixed vector, so that equal input gives equal output.

    Raises
    ------
    SetupError
        If there are fewer than two rows or columns, or a value is not finite.
    """
    matrix = sp.csr_matrix(x, dtype=np.float64) if sp.issparse(x) else np.asarray(x, dtype=np.float64)
    n, n_columns = matrix.shape
    if min(n, n_columns) < 2 or not np.isfinite(matrix.sum()):
        raise SetupError(f"Found a matrix of {n} x {n_columns}, expected finite numbers, at least 2 x 2.")
    mean = np.asarray(matrix.mean(axis=0)).ravel()
    centred = LinearOperator(
        (n, n_columns),
        dtype=np.float64,
        matvec=lambda v: matrix @ v.ravel() - mean @ v.ravel(),
        rmatvec=lambda u: matrix.T @ u.ravel() - mean * u.sum(),
    )
    d = min(n_components, n - 1, n_columns - 1)
    start = np.random.default_rng(0).standard_normal(min(n, n_columns))
    _, size, right = svds(centred, k=d, v0=start)
    axes = right[np.argsort(-size, kind="stable")].T
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    return PrincipalAxes(mean, np.ascontiguousarray(axes * np.where(largest < 0, -1.0, 1.0)))
