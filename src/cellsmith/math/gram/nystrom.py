"""From eigenpairs to coordinates of cells, new cells and features (Eq. 13, 15, 16)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError
from cellsmith.math.gram.blocks import CentredBlocks
from cellsmith.math.gram.krylov import Eigen, top_eigenpairs
from cellsmith.math.gram.operator import Operator, thinned_operator, weighted_tdot

__all__ = ["embedding", "loadings", "nystrom", "orient", "projections", "thinned_fit"]

Array: TypeAlias = npt.NDArray[np.float64]


def embedding(eigen: Eigen, n_features: int) -> Array:
    """Coordinates sqrt(D) G V Theta^-1/2, which equal V diag(sqrt(D theta)) where the pairs converged (Eq. 13).

    The images G V rather than V: the identity of Eq. 15 then holds whatever the tolerance of the eigensolver.

    Parameters
    ----------
    eigen
        Pairs of positive eigenvalue.
    n_features
        D.

    Returns
    -------
    (n, k) scores; those of PCA for a complete mask.

    Raises
    ------
    SetupError
        If an eigenvalue is not positive; the message states how many are.
    """
    return np.asarray(eigen.images.astype(np.float64) * _scale(eigen.values, n_features))


def projections(operator: Operator, vectors: npt.NDArray[Any]) -> Array:
    """B_q = Z^T diag(u_q) V of every factor, (R, D, k): all that new cells need of the training data (Eq. 15).

    Parameters
    ----------
    operator
        Implicit Gram operator.
    vectors
        V, (n, k).

    Raises
    ------
    SetupError
        If the operator is dense, so that it has no factors.
    """
    if operator.factors is None:
        raise SetupError("A dense Gram matrix has no factors, so that new cells cannot be placed. Use gram_operator.")
    return _projected(operator.blocks, operator.factors.u, vectors)


def nystrom(
    blocks: CentredBlocks,
    weights: npt.NDArray[Any],
    *,
    projections: npt.NDArray[Any],
    s: npt.NDArray[Any],
    values: npt.NDArray[Any],
) -> Array:
    """Place new cells: x = sqrt(D) Theta^-1/2 sum_q s_q u_q(new) B_q^T z_new (Eq. 15).

    Parameters
    ----------
    blocks
        Z of the new cells, centred by the means of the fit.
    weights
        u of the new cells, (m, R), from :meth:`Factors.extend`.
    projections
        B, (R, D, k).
    s
        (R,).
    values
        theta, (k,), positive.

    Returns
    -------
    (m, k) coordinates. A training cell lands at its fitted row less sqrt(D) diag(delta) V Theta^-1/2.
    """
    rank, n_features, k = projections.shape
    scale = _scale(values, n_features)
    flat = projections.transpose(1, 0, 2).reshape(n_features, rank * k)
    u = np.asarray(weights, dtype=np.float64) * s
    parts = [np.zeros((0, k))]
    for start, z in blocks():
        rows = z.dot(flat).reshape(z.shape[0], rank, k)
        parts.append(np.einsum("iqk,iq->ik", rows, u[start : start + z.shape[0]]) * scale)
    return np.concatenate(parts)


def loadings(
    operator: Operator,
    eigen: Eigen,
    *,
    col_rates: npt.NDArray[Any] | None = None,
    self_overlap: npt.NDArray[Any] | None = None,
) -> Array:
    """Return loadings l_d = (c / c_d) sum_i N_ii^-1/2 z_id v_i / sqrt(theta) (Eq. 16).

    Parameters
    ----------
    operator
        The Gram operator.
    eigen
        Its pairs, positive eigenvalues.
    col_rates
        Observed share c_d of each feature, (D,); None for a complete mask (and for mean imputation).
    self_overlap
        N_ii = sum_d p_id^2, (n,); None for D.

    Returns
    -------
    (D, k); orthonormal for a complete mask.
    """
    weight = np.full(operator.n, operator.n_features**-0.5) if self_overlap is None else self_overlap**-0.5
    found = _projected(operator.blocks, weight[:, None], eigen.vectors)[0] / np.sqrt(_positive(eigen.values))
    return found if col_rates is None else np.asarray(found * (np.mean(col_rates) / col_rates)[:, None])


def thinned_fit(
    operator: Operator,
    eigen: Eigen,
    *,
    share: float = 0.05,
    col_rates: npt.NDArray[Any] | None = None,
    self_overlap: npt.NDArray[Any] | None = None,
    tol: float = 1e-3,
    max_iter: int = 50,
    generator: np.random.Generator,
) -> Callable[[CentredBlocks], tuple[Array, Array]]:
    """Return the fit of the same method to the data without held-out entries, so that these can judge it.

    Parameters
    ----------
    operator, eigen
        Operator of all entries and its pairs, from which the iteration starts.
    share
        Share of the observed entries that is held out.
    col_rates, self_overlap
        See :func:`loadings`.
    tol, max_iter, generator
        See :func:`~cellsmith.math.gram.top_eigenpairs`.

    Returns
    -------
    A function that maps Z without the held-out entries to scores (n, k) and loadings (D, k).
    """

    def fit(blocks: CentredBlocks) -> tuple[Array, Array]:
        thin = thinned_operator(operator, blocks, share)
        found = top_eigenpairs(
            thin, eigen.values.size, tol=tol, max_iter=max_iter, generator=generator, start=eigen.vectors
        )
        found = found.first(max(1, int(np.sum(found.values > 0))))
        axes = loadings(thin, found, col_rates=col_rates, self_overlap=self_overlap)
        return embedding(found, thin.n_features), axes

    return fit


def orient(eigen: Eigen, loadings: Array) -> tuple[Eigen, Array]:
    """Fix the sign of each axis so that its loading of largest absolute value is positive (Eq. 13).

    Parameters
    ----------
    eigen
        Pairs, vectors (n, k).
    loadings
        (D, k).

    Returns
    -------
    Both, with the columns turned.
    """
    largest = np.argmax(np.abs(loadings), axis=0)
    signs = np.where(loadings[largest, np.arange(loadings.shape[1])] < 0, -1.0, 1.0)
    kind = eigen.vectors.dtype.type
    flipped = replace(
        eigen, vectors=eigen.vectors * signs.astype(kind), images=eigen.images * signs.astype(eigen.images.dtype)
    )
    return flipped, loadings * signs


def _projected(blocks: CentredBlocks, weights: npt.NDArray[Any], vectors: npt.NDArray[Any]) -> Array:
    """Z^T diag(w_q) V for every column q of ``weights``, (R, D, k), in float64 across tiles."""
    flat = weighted_tdot(blocks, weights, vectors)
    return flat.reshape(-1, weights.shape[1], vectors.shape[1]).transpose(1, 0, 2)


def _scale(values: npt.NDArray[Any], n_features: int) -> Array:
    return np.asarray(np.sqrt(n_features / _positive(values)))


def _positive(values: npt.NDArray[Any]) -> Array:
    good = int(np.sum(values > 0))
    if good < values.size:
        raise SetupError(f"{good} positive eigenvalues; n_latent must be <= {good}.")
    return np.asarray(values, dtype=np.float64)
