"""Release of a second moment, and what its noise does to eigenvalues (doi 10.1145/2591796.2591883).

M = sum_i x_i x_i^T with ||x_i|| <= 1 has Frobenius sensitivity 1. Its half-vector (diagonal, sqrt(2) times the upper
triangle) has the same norm, so noise N(0, s^2) goes on the half-vector: entries off the diagonal have sd s / sqrt(2),
which costs a factor sqrt(2) less than symmetric noise of sd s would.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cellsmith._errors import SizeError
from cellsmith.math.privacy.units import unit_rows

__all__ = [
    "debias_values",
    "noise_edge",
    "noisy_second_moment",
    "noisy_sum",
    "principal_axes",
    "split_centered",
    "symmetric_noise",
]

Floats = npt.NDArray[np.float64]
MAX_GENES = 5_000
# A gene that this share of the cells have is faster as a dense column.
DENSE_SHARE = 0.2
# From so many rows on, and for so small a part of the axes, a Lanczos iteration is faster than a whole solution.
LANCZOS_ROWS, LANCZOS_SHARE, LANCZOS_TOLERANCE = 500, 0.05, 1e-8
# Share of the squared norm that the constant column takes where the mean is released along with the moment.
CENTER_SHARE = 0.1


def symmetric_noise(n: int, sd: float, generator: np.random.Generator) -> Floats:
    """Return symmetric noise (n, n): sd on the diagonal, sd / sqrt(2) off it.

    Parameters
    ----------
    n
        Number of rows.
    sd
        Standard deviation on the half-vector.
    generator
        Secret in private use.
    """
    noise = np.triu(generator.standard_normal((n, n)), 1)
    noise *= sd / np.sqrt(2)
    noise += noise.T
    noise[np.diag_indices(n)] = generator.standard_normal(n) * sd
    return np.asarray(noise)


def noisy_second_moment(blocks: Iterable[Any], n_columns: int, *, sd: float, generator: np.random.Generator) -> Floats:
    """Return sum_i x_i x_i^T + noise.

    Parameters
    ----------
    blocks
        Arrays or sparse matrices (n_b, G), read once; rows are cut to norm 1, rows that are not finite count as zeros.
    n_columns
        G.
    sd
        Standard deviation s of the noise on the half-vector; the sensitivity is 1, so that mu = 1 / s.
    generator
        Secret in private use.

    Returns
    -------
    (G, G) float64, symmetric.

    Raises
    ------
    SizeError
        If G is above 5,000.
    """
    if n_columns > MAX_GENES:
        raise SizeError(
            f"The second moment of {n_columns:,} genes takes {n_columns**2 * 8 / 2**30:.1f} GiB, and its noise would "
            f"drown it; at most {MAX_GENES:,} are allowed. Name a panel: gene_panel=1000."
        )
    moment = np.zeros((n_columns, n_columns))
    for block in blocks:
        _add_products(moment, unit_rows(block))
    moment += symmetric_noise(n_columns, sd, generator)
    return moment


def _add_products(moment: Floats, rows: Any) -> None:
    """Add rows^T rows; of sparse rows, genes that many cells have by dense products, and the others by sparse ones."""
    if not sparse.issparse(rows):
        moment += rows.T @ rows
        return
    often = np.bincount(rows.indices, minlength=rows.shape[1]) > DENSE_SHARE * rows.shape[0]
    kept = ~often[rows.indices]
    ends = np.concatenate([[0], np.cumsum(kept)])[rows.indptr]
    thin = sparse.csr_matrix((rows.data[kept], rows.indices[kept], ends), shape=rows.shape)
    moment += (thin.T @ thin).toarray()
    cross = rows.T @ rows[:, often].toarray()
    moment[:, often] += cross
    cross[often] = 0.0
    moment[often] += cross.T


def noisy_sum(blocks: Iterable[npt.ArrayLike], n_columns: int, *, sd: float, generator: np.random.Generator) -> Floats:
    """Return sum_i h_i + N(0, sd^2), (G,), of rows cut to norm 1: sensitivity 1.

    Parameters
    ----------
    blocks, n_columns, sd, generator
        As in :func:`noisy_second_moment`.
    """
    total = np.zeros(n_columns)
    for block in blocks:
        total += unit_rows(block).sum(axis=0)
    return total + generator.standard_normal(n_columns) * sd


def noise_edge(n_columns: int, sd: float) -> float:
    """Largest eigenvalue that noise alone has, about: sqrt(2 G) s."""
    return float(np.sqrt(2 * n_columns) * sd)


def debias_values(values: npt.ArrayLike, n_columns: int, sd: float) -> Floats:
    """Solve l + s^2 G / (2 l) = l_hat for eigenvalues above the noise edge; others are returned as they are.

    Parameters
    ----------
    values
        (r,) eigenvalues of the noisy moment.
    n_columns
        G.
    sd
        s of the half-vector.

    Returns
    -------
    (r,).
    """
    found = np.asarray(values, dtype=np.float64)
    edge = noise_edge(n_columns, sd)
    root = np.sqrt(np.maximum(found**2 - edge**2, 0.0))
    return np.where(found > edge, (found + root) / 2, found)


def principal_axes(moment: Floats, n_components: int) -> tuple[Floats, Floats]:
    """Return the leading eigenpairs of a symmetric matrix.

    Parameters
    ----------
    moment
        (G, G).
    n_components
        r, at most G.

    Returns
    -------
    Eigenvalues (r,), descending, and axes (G, r) of unit length, each with the sign that makes its sum positive.
    """
    n = len(moment)
    few = n >= LANCZOS_ROWS and n_components <= LANCZOS_SHARE * n
    found = _lanczos(moment, n_components) if few else None
    values, axes = _whole(moment, n_components) if found is None else found
    values, axes = values[::-1], axes[:, ::-1]
    return values.copy(), axes * np.where(axes.sum(axis=0) < 0, -1.0, 1.0)


def _whole(moment: Floats, n_components: int) -> tuple[Floats, Floats]:
    """Leading eigenpairs in ascending order, from a reduction of the whole matrix."""
    from scipy.linalg import eigh

    n = len(moment)
    values, axes = eigh(moment, subset_by_index=(n - n_components, n - 1))
    return values, axes


def _lanczos(moment: Floats, n_components: int) -> tuple[Floats, Floats] | None:
    """Leading eigenpairs in ascending order by ARPACK from a fixed start; None where it does not converge."""
    from scipy.linalg.blas import dsymv
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    n = len(moment)
    matrix = moment.T  # the same, in the order of columns that BLAS reads without a copy
    operator = LinearOperator((n, n), matvec=lambda v: dsymv(1.0, matrix, v), dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(n)
    size = min(n, 4 * n_components)
    try:
        values, axes = eigsh(operator, k=n_components, which="LA", v0=start, ncv=size, tol=LANCZOS_TOLERANCE)
    except ArpackNoConvergence:
        return None
    order = np.argsort(values)
    return values[order], axes[:, order]


def split_centered(moment: Floats) -> tuple[float, Floats, Floats]:
    """Take apart the moment of rows [sqrt(1 - w) x, sqrt(w)], w = 0.1.

    Parameters
    ----------
    moment
        (G + 1, G + 1), noisy.

    Returns
    -------
    Number of rows, their mean (G,), and the centred second moment (G, G).
    """
    w = CENTER_SHARE
    n = max(1.0, float(moment[-1, -1]) / w)
    mean = moment[:-1, -1] / (np.sqrt(w * (1 - w)) * n)
    return n, mean, moment[:-1, :-1] / (1 - w) - n * np.outer(mean, mean)
