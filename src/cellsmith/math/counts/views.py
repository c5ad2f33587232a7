"""Counts as another run of the same experiment might have shown them: thinned, noisy, with genes missed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellsmith._errors import SetupError
from cellsmith.math.counts.thinning import binomial_thin

__all__ = ["log_normalized", "perturbed_view"]

_PER_CELL = 1e4


def log_normalized(x: Any, totals: npt.ArrayLike) -> sp.csr_matrix:
    """Return log1p(1e4 X / s), float32 CSR, dimensionless.

    Parameters
    ----------
    x
        ``(n, G)`` counts, scipy sparse; not changed.
    totals
        ``(n,)`` library sizes s in counts; a cell with 0 has no count and stays empty.
    """
    out = sp.csr_matrix(x, dtype=np.float32, copy=True)
    size = np.asarray(totals, dtype=np.float64).ravel()
    scale = (_PER_CELL / np.where(size > 0, size, 1.0)).astype(np.float32)
    out.data = np.log1p(out.data * np.repeat(scale, np.diff(out.indptr)))
    return out


def perturbed_view(
    x: Any,
    rest: npt.ArrayLike,
    *,
    thinning_fraction: float,
    noise_scale: float,
    mask_rate: float,
    generator: np.random.Generator,
) -> sp.csr_matrix:
    """Draw one view of cells (scSiameseClu S10).

    Every molecule is kept with probability ``thinning_fraction``; the result is log-normalised by its own totals,
    each value is multiplied by a draw from Normal(1, noise_scale), and each gene of each cell is missed (set to 0)
    with probability ``mask_rate``. A fraction of 1 and rates of 0 leave log1p(1e4 X / s) as it is.

    Parameters
    ----------
    x
        ``(n, G)`` counts of the modelled genes, scipy sparse; not changed.
    rest
        ``(n,)`` counts of all other genes, which are thinned as well and count in the totals.
    thinning_fraction
        In (0, 1].
    noise_scale
        Standard deviation of the factor, >= 0.
    mask_rate
        In [0, 1).
    generator
        Source of randomness.

    Returns
    -------
    ``(n, G)`` float32 CSR.

    Raises
    ------
    SetupError
        If a number is out of range.
    """
    if not (0 < thinning_fraction <= 1 and noise_scale >= 0 and 0 <= mask_rate < 1):
        raise SetupError(
            f"Found thinning_fraction={thinning_fraction!r}, noise_scale={noise_scale!r}, mask_rate={mask_rate!r}; "
            "expected a fraction in (0, 1], a scale >= 0 and a rate in [0, 1)."
        )
    counts, other = sp.csr_matrix(x), np.asarray(rest, dtype=np.float64).ravel()
    if thinning_fraction < 1:
        counts = binomial_thin(counts, thinning_fraction, generator=generator)
        other = generator.binomial(other.astype(np.int64), thinning_fraction).astype(np.float64)
    out = log_normalized(counts, np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel() + other)
    if noise_scale > 0:
        out.data *= 1 + noise_scale * generator.standard_normal(out.nnz, dtype=np.float32)
    if mask_rate > 0:
        out.data *= generator.random(out.nnz, dtype=np.float32) >= mask_rate
        out.eliminate_zeros()
    return out
