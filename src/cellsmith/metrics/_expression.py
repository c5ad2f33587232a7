"""Whether single genes behave: correlations, fold changes, zeros, depth, mean and variance."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from cellsmith.metrics._cells import moments

__all__ = [
    "count_curves",
    "fold_changes",
    "gene_gene",
    "ks_distance",
    "mean_variance_error",
    "overlap_of_top",
    "slope_through_zero",
    "type_means",
]

PSEUDO = 1e-9


def gene_gene(real: np.ndarray, synthetic: np.ndarray) -> tuple[float, float]:
    """Compare the correlations between genes.

    Parameters
    ----------
    real, synthetic
        Normalised expression, shapes (n, g) and (m, g).

    Returns
    -------
    Pearson r and mean absolute difference of the g (g - 1) / 2 correlations;
    a gene without variance correlates 0 with all.
    """

    def upper(x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=0)
        norm = np.linalg.norm(centred, axis=0)
        unit = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)
        return (unit.T @ unit)[np.triu_indices(x.shape[1], 1)]

    a, b = upper(real), upper(synthetic)
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return float("nan"), float(np.abs(a - b).mean()) if len(a) else float("nan")
    return float(np.corrcoef(a, b)[0, 1]), float(np.abs(a - b).mean())


def type_means(log: sparse.csr_matrix, labels: np.ndarray, types: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean expression in each type and in all other labelled cells, each of shape (T, G)."""
    member = np.array([labels == t for t in types], dtype=np.float64).reshape(len(types), len(labels))
    labelled = np.array([v is not None for v in labels], dtype=np.float64)
    sums = (sparse.csr_matrix(member) @ log).toarray()
    total = np.asarray(log.T @ labelled).ravel()
    size = member.sum(axis=1, keepdims=True)
    return sums / np.maximum(size, 1), (total - sums) / np.maximum(labelled.sum() - size, 1)


def fold_changes(log: sparse.csr_matrix, labels: np.ndarray, types: list[str]) -> np.ndarray:
    """Return fold changes of each type against the rest.

    Parameters
    ----------
    log
        log1p of normalised expression, CSR (n, G).
    labels
        Label or None of each cell, shape (n,).
    types
        The T types.

    Returns
    -------
    Difference of mean log1p expression, natural logarithm, shape (T, G).
    """
    inside, outside = type_means(log, labels, types)
    return inside - outside


def slope_through_zero(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Return the least-squares slope through 0 of `synthetic` on `real`, 1 = kept and below 1 = attenuated."""
    denominator = float((real * real).sum())
    return float((real * synthetic).sum() / denominator) if denominator > 0 else float("nan")


def overlap_of_top(real: np.ndarray, synthetic: np.ndarray, n: int) -> float:
    """Return the share of the `n` largest entries of `real` (G,) that are among those of `synthetic` (G,)."""
    top = np.argsort(-real, kind="stable")[:n]
    return float(np.isin(top, np.argsort(-synthetic, kind="stable")[:n]).mean())


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Kolmogorov-Smirnov distance, the largest gap between two empirical distribution functions."""
    grid = np.concatenate([a, b])
    below_a = np.searchsorted(np.sort(a), grid, side="right") / len(a)
    below_b = np.searchsorted(np.sort(b), grid, side="right") / len(b)
    return float(np.abs(below_a - below_b).max())


def count_curves(counts: sparse.csr_matrix) -> dict[str, np.ndarray]:
    """Summarise counts.

    Parameters
    ----------
    counts
        CSR of shape (n, G).

    Returns
    -------
    ``library`` and ``genes_detected`` of shape (n,), sorted; ``zero_fraction``,
    ``mean`` and ``variance`` (of counts) of shape (G,).
    """
    mean, variance = moments(counts)
    detected = sparse.csr_matrix(counts > 0)
    return {
        "library": np.sort(np.asarray(counts.sum(axis=1)).ravel()),
        "genes_detected": np.sort(np.asarray(detected.sum(axis=1)).ravel().astype(np.float64)),
        "zero_fraction": 1.0 - np.asarray(detected.mean(axis=0)).ravel(),
        "mean": mean,
        "variance": variance,
    }


def mean_variance_error(real: dict[str, np.ndarray], synthetic: dict[str, np.ndarray]) -> float:
    """Compare the index of dispersion of the genes.

    Parameters
    ----------
    real, synthetic
        Answers of :func:`count_curves`.

    Returns
    -------
    Mean of abs(log10(variance / mean) - the same of the other) over genes whose mean is at least 0.05 counts in
    `real` (a rarer gene has no variance to speak of) and which `synthetic` expresses.
    """
    use = (real["mean"] >= 0.05) & (synthetic["mean"] > 0)
    if not use.any():
        return float("nan")
    index = [np.log10((side["variance"][use] + PSEUDO) / side["mean"][use]) for side in (real, synthetic)]
    return float(np.abs(index[0] - index[1]).mean())
