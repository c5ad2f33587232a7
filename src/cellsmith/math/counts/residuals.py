"""Analytic Pearson residuals of counts and their principal components, without a dense matrix of cells by genes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellsmith._errors import SetupError, SizeError

__all__ = ["pearson_components", "pearson_residuals"]

MAX_GENES = 8_000
"""Their covariance is formed, 512 MB at this number."""

_BLOCK = 1 << 23  # dense entries held together: 32 MiB
_Single = npt.NDArray[np.float32]


def pearson_residuals(
    x: Any, *, totals: npt.ArrayLike, shares: npt.ArrayLike, theta: float = 100.0, clip: float
) -> _Single:
    """Return analytic Pearson residuals, (x - mu) / sqrt(mu + mu^2 / theta) (Lause, Berens and Kobak, 2021, Eq. 3).

    Parameters
    ----------
    x
        ``(m, G)`` counts of some cells, scipy sparse or array.
    totals
        ``(m,)`` counts of each cell over these genes.
    shares
        ``(G,)`` share of each gene in all counts; mu is their product with the totals.
    theta
        Inverse dispersion of the negative binomial > 0.
    clip
        Residuals are cut to [-clip, clip].

    Returns
    -------
    ``(m, G)`` float32; 0 where mu is 0.
    """
    mu = np.outer(np.asarray(totals, dtype=np.float32), np.asarray(shares, dtype=np.float32))
    dense = x.toarray() if sp.issparse(x) else np.asarray(x)
    spread = np.sqrt(mu + mu * mu / np.float32(theta))
    found = np.divide(dense.astype(np.float32) - mu, spread, out=np.zeros_like(mu), where=spread > 0)
    return np.asarray(np.clip(found, -np.float32(clip), np.float32(clip)), dtype=np.float32)


def pearson_components(x: Any, n_components: int = 20, *, theta: float = 100.0, clip: float | None = None) -> _Single:
    """Return the leading principal components of the Pearson residuals.

    The covariance of the genes is added up over blocks of cells, and the residuals are formed anew for the scores: no
    more than a block is ever dense. They keep rare types that log-normalised counts lose.

    Parameters
    ----------
    x
        ``(n, G)`` counts, scipy sparse or array, of chosen genes (at most 8,000).
    n_components
        d, lowered to the number of cells or genes where they are fewer.
    theta
        Inverse dispersion > 0.
    clip
        Largest absolute residual; None: sqrt(n).

    Returns
    -------
    ``(n, d)`` float32, centred, by falling variance; of each component the loading of largest absolute value is > 0.

    Raises
    ------
    SizeError
        For more genes: choose the most variable ones first.
    SetupError
        If theta or clip is not above 0, or there is no count.
    """
    n, n_genes = (int(size) for size in x.shape)
    if n_genes > MAX_GENES:
        raise SizeError(
            f"Found {n_genes} genes, whose covariance takes {8 * n_genes**2 / 1e9:.1f} GB; expected at most "
            f"{MAX_GENES}. Choose the most variable genes first, for example by sc.pp.highly_variable_genes."
        )
    if not theta > 0 or not (clip is None or clip > 0):
        raise SetupError(f"Found theta={theta!r} and clip={clip!r}, expected numbers above 0.")
    counts = sp.csr_matrix(x)
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).reshape(-1)
    if totals.sum() <= 0:
        raise SetupError(f"Found no count in {n} cells x {n_genes} genes, expected some.")
    shares = np.asarray(counts.sum(axis=0), dtype=np.float64).reshape(-1) / totals.sum()
    limit = float(np.sqrt(n)) if clip is None else clip
    step = max(1, _BLOCK // max(1, n_genes))

    def block(start: int) -> _Single:
        rows = slice(start, start + step)
        return pearson_residuals(counts[rows], totals=totals[rows], shares=shares, theta=theta, clip=limit)

    gram, total = np.zeros((n_genes, n_genes)), np.zeros(n_genes)
    for start in range(0, n, step):
        r = block(start)
        gram += r.T @ r
        total += r.sum(axis=0, dtype=np.float64)
    mean = total / n
    loadings = _leading(gram - n * np.outer(mean, mean), min(n_components, n, n_genes))
    scores = [(block(start) - mean.astype(np.float32)) @ loadings for start in range(0, n, step)]
    return np.concatenate(scores)


def _leading(covariance: npt.NDArray[np.float64], d: int) -> _Single:
    from scipy.linalg import eigh

    size = len(covariance)
    vectors = eigh(covariance, subset_by_index=[size - d, size - 1])[1][:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    return np.asarray(vectors * np.sign(vectors[largest, np.arange(d)]), dtype=np.float32)
