"""Counts of the blood cells that scanpy carries."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cellsmith._errors import SetupError

__all__ = ["pbmc68k_counts", "whole_counts"]

MAX_DEVIATION = 0.11
N_REFINEMENTS = 3


def whole_counts(values: np.ndarray) -> np.ndarray:
    """Recover the counts of cells that were scaled, each by its own factor.

    The smallest value of a cell is taken for one count; the factor is then the least-squares one of the whole cell,
    because stored values have few digits.

    Parameters
    ----------
    values
        Counts of each cell times a factor of that cell, (n, G), not logarithmic; every cell has a value.

    Returns
    -------
    Whole counts, (n, G).

    Raises
    ------
    SetupError
        If a value lies further than 0.11 from a whole number of counts.
    """
    values = np.asarray(values, dtype=np.float64)
    unit = np.where(values > 0, values, np.inf).min(axis=1, keepdims=True)
    counts = np.round(values / unit)
    for _ in range(N_REFINEMENTS):
        unit = (values * counts).sum(axis=1, keepdims=True) / (counts**2).sum(axis=1, keepdims=True)
        counts = np.round(values / unit)
    deviation = np.abs(values / unit - counts)
    if deviation.max() > MAX_DEVIATION:
        cell = int(deviation.max(axis=1).argmax())
        msg = f"Cell {cell} has a value {deviation.max():.2f} away from a whole number of counts; expected at most "
        raise SetupError(f"{msg}{MAX_DEVIATION}: these are not scaled counts of one factor a cell.")
    return np.asarray(counts)


def pbmc68k_counts() -> ad.AnnData:
    """Return counts of 700 blood cells of ten sorted types, those of ``scanpy.datasets.pbmc68k_reduced``.

    scanpy carries the logarithm of scaled counts (no download); the scale of each cell is undone and the result rounded
    to the whole counts that it came from.

    Returns
    -------
    ``.X`` raw counts, CSR float32, shape ``(700, 765)``; ``.obs["cell_type"]`` ten types (8 to 240 cells), categorical;
    ``.uns["source"]`` where they come from. A new object at every call.

    Examples
    --------
    >>> import cellsmith
    >>> cellsmith.datasets.pbmc68k_counts().shape
    (700, 765)
    """
    import scanpy as sc

    reduced = sc.datasets.pbmc68k_reduced()
    raw = reduced.raw.to_adata()
    counts = whole_counts(np.expm1(raw.X.toarray().astype(np.float64)))
    obs = pd.DataFrame({"cell_type": pd.Categorical(reduced.obs["bulk_labels"].astype(str))}, index=reduced.obs_names)
    adata = ad.AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs, var=pd.DataFrame(index=raw.var_names))
    adata.uns["source"] = {
        "study": "Zheng et al. 2017, 68,000 peripheral blood mononuclear cells of a healthy donor",
        "carrier": "scanpy.datasets.pbmc68k_reduced, counts recovered from its log-normalised values",
    }
    return adata
