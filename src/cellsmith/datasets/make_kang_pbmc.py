"""How the embedded data set was made; a record for developers, not needed to use the package.

The source is an ``.h5ad`` of the 2,800 cells (13,488 genes, raw counts, ``obs["cell_type"]`` and
``obs["condition"]``) that the MIT-licensed repository ``chthub/rDeepmaps`` carries. Run from the root of this
repository::

    PYTHONPATH=src python -m cellsmith.datasets.make_kang_pbmc kang_ifnb.h5ad

Every cell is kept. Genes are chosen WITHOUT reading a label, so that clustering or annotation on this set is not
helped by the choice: the genes of the two literature lists below come first, then the genes whose Pearson residuals
vary most (analytic residuals of a negative binomial null model, inverse dispersion 100, clipped at the square root
of the number of cells), until 2,000 are reached. Ties are broken by the order of the source, so a second run writes
the same matrix.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

__all__ = ["INTERFERON_RESPONSE", "PBMC_MARKERS", "build", "main", "residual_variance"]


def _names(*lines: str) -> tuple[str, ...]:
    return tuple(" ".join(lines).split())


INTERFERON_RESPONSE = _names(
    "ISG15 ISG20 IFI6 IFI16 IFI27 IFI30 IFI35 IFI44 IFI44L IFIT1 IFIT2 IFIT3 IFIT5 IFITM1 IFITM2 IFITM3 IFIH1 MX1",
    "MX2 OAS1 OAS2 OAS3 OASL CXCL9 CXCL10 CXCL11 CCL2 CCL7 CCL8 RSAD2 STAT1 STAT2 IRF1 IRF7 IRF8 IRF9 EPSTI1",
    "HERC5 HERC6 XAF1 DDX58 DDX60 DDX60L SAMD9 SAMD9L PARP9 PARP14 PLSCR1 BST2 LY6E TNFSF10 TNFSF13B GBP1 GBP2",
    "GBP4 GBP5 TRIM22 USP18 CMPK2 EIF2AK2 LAMP3 LGALS3BP NT5C3A PML PSMB8 PSMB9 SP100 SP110 TAP1 TYMP UBE2L6 WARS",
    "APOBEC3A IL1RN IDO1",
)
"""Genes that type I interferon is known to raise; names that the source lacks are skipped."""

PBMC_MARKERS = _names(
    "CD3D CD3E CD3G CD2 CD4 CD8A CD8B IL7R CCR7 SELL LTB S100A4 CREM CD69 CD27 FOXP3 IL2RA NKG7 GNLY GZMA GZMB",
    "GZMH GZMK PRF1 KLRB1 KLRD1 KLRC1 FGFBP2 NCAM1 CCL4 CCL5 CST7 MS4A1 CD79A CD79B CD19 BANK1 TCL1A MIR155HG",
    "NME1 CD14 LYZ S100A8 S100A9 S100A12 VCAN FCN1 FCGR3A MS4A7 VMO1 CDKN1C LST1 AIF1 FCER1A CST3 CLEC10A CD1C",
    "CLEC9A HLA-DRA HLA-DQA1 HLA-DPB1 HLA-DRB1 CD74 IL3RA TSPAN13 IGJ LILRA4 CLEC4C PPBP PF4 GNG11 TUBB1 SDPR",
    "ITGA2B HBB HBA1 HBA2 ALAS2",
)
"""The usual markers of blood cell types; names that the source lacks are skipped."""

N_GENES = 2000
SOURCE = {
    "study": "Kang et al. 2018, Multiplexed droplet single-cell RNA-sequencing using natural genetic variation",
    "experiment": "human PBMC of lupus patients, 6 h with (STIM) or without (CTRL) interferon beta, 10x 3' v1",
    "accession": "GSE96583",
    "carrier": "github.com/chthub/rDeepmaps",
    "carrier_path": "data/ifnb_2800.rda",
    "licence": "MIT (carrier)",
    "labels": "cell types of the Seurat 'ifnb' annotation",
    "genes": "literature lists of interferon-response and blood markers, then label-free Pearson residual variance",
}


def residual_variance(x: sparse.csr_matrix, *, inverse_dispersion: float = 100.0, chunk: int = 512) -> np.ndarray:
    """Variance of the Pearson residuals of each gene under a null model without any structure but depth.

    Parameters
    ----------
    x
        Counts, shape ``(cells, genes)``.
    inverse_dispersion
        Of the negative binomial null model.
    chunk
        Genes that are made dense at a time.

    Returns
    -------
    Variance of each gene, shape ``(genes,)``, no unit; about 1 for a gene that carries no structure.
    """
    columns = sparse.csc_matrix(x, dtype=np.float64)
    depth = np.asarray(columns.sum(axis=1)).ravel()
    share = np.asarray(columns.sum(axis=0)).ravel() / depth.sum()
    limit = np.sqrt(columns.shape[0])
    out = np.empty(columns.shape[1])
    for start in range(0, columns.shape[1], chunk):
        part = slice(start, min(start + chunk, columns.shape[1]))
        mean = np.outer(depth, share[part]) + 1e-12
        residual = (columns[:, part].toarray() - mean) / np.sqrt(mean + mean**2 / inverse_dispersion)
        out[part] = residual.clip(-limit, limit).var(axis=0)
    return out


def build(source: str | Path) -> ad.AnnData:
    """Cut the source down to the genes that are shipped.

    Parameters
    ----------
    source
        Path of the ``.h5ad`` with all genes.

    Returns
    -------
    All cells and 2,000 genes in the order of the source; ``.X`` CSR of uint16 counts, ``.obs["cell_type"]`` and
    ``.obs["condition"]``, ``.var["interferon_response"]``, ``.uns["source"]``.

    Raises
    ------
    ValueError
        If a count is no integer below 65,536, or a cell is left without counts.
    """
    full = ad.read_h5ad(source)
    x = sparse.csr_matrix(full.X)
    listed = full.var_names.isin([*INTERFERON_RESPONSE, *PBMC_MARKERS])
    order = np.lexsort((np.arange(full.n_vars), -residual_variance(x), ~listed))
    genes = np.sort(order[:N_GENES])
    counts = sparse.csr_matrix(x[:, genes])
    counts.sort_indices()
    if counts.data.min() < 0 or counts.data.max() > np.iinfo(np.uint16).max or np.any(counts.data % 1):
        raise ValueError("Found counts that are no integers from 0 to 65,535; expected the raw counts of the source.")
    totals = np.asarray(counts.sum(axis=1)).ravel()
    if totals.min() <= 0:
        raise ValueError(f"Found {int((totals <= 0).sum())} cells without counts; choose more genes.")
    obs = full.obs[["cell_type", "condition"]].astype("category")
    var = pd.DataFrame(index=full.var_names[genes])
    var["interferon_response"] = var.index.isin(INTERFERON_RESPONSE)
    return ad.AnnData(counts.astype(np.uint16), obs=obs, var=var, uns={"source": SOURCE})


def main(argv: list[str] | None = None) -> int:
    """Write ``kang_pbmc.h5ad`` beside this file and report its size; returns the exit status."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("source", help="the .h5ad with all 13,488 genes")
    parser.add_argument("--out", default=str(Path(__file__).with_name("kang_pbmc.h5ad")))
    arguments = parser.parse_args(argv)
    adata = build(arguments.source)
    adata.write_h5ad(arguments.out, compression="gzip", compression_opts=9)
    size = Path(arguments.out).stat().st_size
    sys.stdout.write(f"{adata.n_obs} x {adata.n_vars}, {adata.X.nnz} non-zeros, {size / 1e6:.2f} MB: {arguments.out}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
