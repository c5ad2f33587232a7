"""The peers: short dense forms of what else can be done with missing entries, written from their definitions.

Every function takes values (n, D) with NaN where nothing was observed and returns scores (n, k), the left singular
vectors (or eigenvectors) times their scale. Nothing of ``math/gram`` is used, so that an error there cannot hide here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["hetero", "mean_impute", "pairwise_complete", "pca", "prime_like", "soft_impute", "weighting", "zero_fill"]

Array = npt.NDArray[np.float64]

PRIME_ROUNDS = 15
MAX_ROUNDS = 100
TOLERANCE = 1e-4  # relative change of the fit at which soft_impute stops
PENALTIES = (0.4, 0.25, 0.15, 0.1, 0.06, 0.03, 0.0)  # of soft_impute, as shares of the largest singular value
HELD_OUT = 0.05


def _top(x: Array, k: int) -> tuple[Array, Array, Array]:
    """Return the k largest singular triplets of x (n, D): U, s descending, V."""
    from scipy.linalg import svd
    from scipy.sparse.linalg import svds

    if min(x.shape) <= 200 or k >= min(x.shape) - 1:
        u, s, vt = svd(x, full_matrices=False)
        return u[:, :k], s[:k], vt[:k].T
    u, s, vt = svds(x, k=k, v0=np.full(min(x.shape), 1.0))
    order = np.argsort(-s)
    return u[:, order], s[order], vt[order].T


def _residuals(x: Array) -> tuple[Array, Array]:
    """Return the observed values minus their feature's mean, zero where missing, and the mask as numbers, (n, D)."""
    observed = np.isfinite(x)
    counts = np.maximum(observed.sum(axis=0), 1)
    mean = np.where(observed, x, 0.0).sum(axis=0) / counts
    return np.where(observed, x - mean, 0.0), observed.astype(x.dtype)


def pca(x: Array, k: int) -> Array:
    """Return the scores of the k first principal components of complete data."""
    u, s, _ = _top(x - x.mean(axis=0), k)
    return np.asarray(u * s)


def zero_fill(x: Array, k: int) -> Array:
    """Put 0 where nothing was observed, centre the columns, take principal components."""
    return pca(np.nan_to_num(x), k)


def mean_impute(x: Array, k: int) -> Array:
    """Put the feature's observed mean where nothing was observed, take principal components."""
    u, s, _ = _top(_residuals(x)[0], k)
    return np.asarray(u * s)


def pairwise_complete(x: Array, k: int) -> Array:
    """Divide each inner product by the number of features that both cells have; eigenvectors of the (n, n) matrix."""
    z, observed = _residuals(x)
    return _scores(z @ z.T / np.maximum(observed @ observed.T, 1.0), k, x.shape[1])


def weighting(x: Array, k: int, probability: Array) -> Array:
    """Weight every entry by the inverse of its probability, each diagonal entry once: unbiased, and very noisy."""
    z = _residuals(x)[0] / probability
    gram = z @ z.T
    np.fill_diagonal(gram, (z**2 * probability).sum(axis=1))
    return _scores(gram / x.shape[1], k, x.shape[1])


def hetero(x: Array, k: int, rounds: int = 50) -> Array:
    """Replace the diagonal of the mean-imputed inner products by that of their rank-k part, again and again."""
    z = _residuals(x)[0]
    gram = z @ z.T / x.shape[1]
    np.fill_diagonal(gram, 0.0)
    for _ in range(rounds):
        values, vectors = _largest(gram, k)
        np.fill_diagonal(gram, (vectors**2) @ values)
    return _scores(gram, k, x.shape[1])


def _scores(gram: Array, k: int, n_features: int) -> Array:
    """Return eigenvectors of the largest eigenvalues times sqrt(D theta); an axis without variance is zero."""
    values, vectors = _largest(gram, k)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0) * n_features))


def _largest(matrix: Array, k: int) -> tuple[Array, Array]:
    """Return the k algebraically largest eigenvalues and their vectors, descending."""
    from scipy.linalg import eigh
    from scipy.sparse.linalg import eigsh

    n = len(matrix)
    if n <= 200 or k >= n - 1:
        values, vectors = eigh(matrix, subset_by_index=(n - k, n - 1))
    else:
        values, vectors = eigsh(matrix, k=k, which="LA", v0=np.full(n, 1.0, dtype=matrix.dtype))
    order = np.argsort(-values)
    return values[order], vectors[:, order]


class _Filled:
    """Observed residuals minus the current fit, plus the fit: the matrix that softImpute takes singular values of."""

    def __init__(self, z: Array, observed: Array) -> None:
        self.z, self.observed = z, observed

    def top(self, us: Array, v: Array) -> tuple[Array, Array, Array]:
        """Return U, s, V of the filled matrix in as many dimensions as v has, by block iteration started at v."""
        residual = (self.z - us @ v.T) * self.observed
        right = v
        for _ in range(2):
            left = np.linalg.qr(residual @ right + us @ (v.T @ right))[0]
            right = np.linalg.qr(residual.T @ left + v @ (us.T @ left))[0]
        u, s, wt = np.linalg.svd(residual @ right + us @ (v.T @ right), full_matrices=False)
        return u, s, right @ wt.T


def _path(z: Array, observed: Array, k: int, *, penalties: Sequence[float]) -> Iterator[tuple[Array, Array, Array]]:
    """Yield U, s, V of the filled matrix at the fixed point of each penalty, each started at the one before."""
    filled = _Filled(z, observed)
    u, s, v = _top(z, k)
    largest = s[0]
    us = u * np.maximum(s - penalties[0] * largest, 0.0)
    for share in penalties:
        for _ in range(MAX_ROUNDS):
            u, s, new_v = filled.top(us, v)
            new = u * np.maximum(s - share * largest, 0.0)
            before, inner = float((us**2).sum()), float(((new.T @ us) * (new_v.T @ v)).sum())
            change = before + float((new**2).sum()) - 2.0 * inner
            us, v = new, new_v
            if abs(change) <= TOLERANCE * before:
                break
        yield u, s, v


def soft_impute(x: Array, k: int, *, rng: np.random.Generator) -> Array:
    """Fill in by soft-thresholded singular values of rank k (softImpute), the penalty chosen by held-out entries.

    Parameters
    ----------
    x
        Values with NaN, (n, D).
    k
        Rank.
    rng
        Holds out 5 % of the observed entries.

    Returns
    -------
    The first k left singular vectors times the singular values of the filled matrix, (n, k).
    """
    z, observed = _residuals(x)
    held = (rng.random(z.shape) < HELD_OUT) & (observed > 0)
    rows, columns = np.nonzero(held)
    kept = observed * ~held
    errors = []
    for u, s, v in _path(z * kept, kept, k, penalties=PENALTIES):
        fit = np.einsum("ik,ik->i", (u * s)[rows], v[columns])
        errors.append(float(((fit - z[held]) ** 2).mean()))
    best = int(np.argmin(errors))
    *_, (u, s, _) = _path(z, observed, k, penalties=PENALTIES[: best + 1])
    return np.asarray(u * s)


def prime_like(x: Array, k: int) -> Array:
    """Refine the pairwise-complete feature space by projection, as primePCA does (15 rounds, no cell left out).

    Each round regresses the observed values of every cell on the loadings of those features, fills in what is missing
    with the fit, and takes the k first right singular vectors of the filled matrix.

    Returns
    -------
    Scores of the last filled matrix, (n, k).
    """
    z, observed = _residuals(x)
    v = _largest(z.T @ z / np.maximum(observed.T @ observed, 1.0), k)[1]
    us = s = np.zeros(0)
    for _ in range(PRIME_ROUNDS):
        scores = _regressed(z, observed, v)
        u, s, v = _top(np.where(observed > 0, z, scores @ v.T), k)
        us = u * s
    return us


def _regressed(z: Array, observed: Array, v: Array) -> Array:
    """Return the least-squares scores of each cell on the loadings of its observed features, (n, k)."""
    k = v.shape[1]
    products = (v[:, :, None] * v[:, None, :]).reshape(len(v), k * k)
    systems = (observed @ products).reshape(len(z), k, k).astype(np.float64)
    # a cell with fewer observed features than components gets the shortest solution, in effect
    systems += 1e-8 * np.eye(k)
    return np.asarray(np.linalg.solve(systems, (z @ v)[..., None])[..., 0], dtype=z.dtype)
