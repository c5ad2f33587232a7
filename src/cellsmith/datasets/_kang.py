"""The real data set inside the package: blood cells with and without interferon."""

from __future__ import annotations

from importlib.resources import as_file, files

import anndata as ad
import numpy as np
from scipy import sparse

__all__ = ["kang_pbmc"]


def kang_pbmc() -> ad.AnnData:
    """Blood cells of lupus patients, resting (CTRL) or six hours after interferon beta (STIM).

    A real experiment that is small enough to travel with the package: no download. 2,800 cells of Kang et al. 2018
    (GSE96583) with 2,000 genes, among them the interferon response and the usual markers of blood cells. The matrix
    comes from the MIT-licensed repository ``chthub/rDeepmaps``; how the genes were chosen, without a look at the
    labels, is written in ``cellsmith/datasets/make_kang_pbmc.py``.

    Returns
    -------
    ``.X`` raw counts, CSR float32, shape ``(2800, 2000)``, every cell with at least 400 counts;
    ``.obs["cell_type"]`` 13 types (8 to 912 cells), ``.obs["condition"]`` CTRL (1,310) or STIM (1,490), both
    categorical; ``.var["interferon_response"]`` bool, genes that type I interferon is known to raise;
    ``.uns["source"]`` study, accession, carrier and licence. A new object at every call.

    Examples
    --------
    >>> import cellsmith
    >>> cellsmith.datasets.kang_pbmc().shape
    (2800, 2000)
    """
    with as_file(files("cellsmith.datasets") / "kang_pbmc.h5ad") as path:
        adata = ad.read_h5ad(path)
    # Stored as uint16 to stay small; float32 is what scvi-tools and scanpy expect, and exact up to 16,777,216.
    adata.X = sparse.csr_matrix(adata.X, dtype=np.float32)
    return adata
