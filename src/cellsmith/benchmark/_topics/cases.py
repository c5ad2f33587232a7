"""What every method gets: counts of the same genes; and what only the scoring may read: the types."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from anndata import AnnData
from scipy import sparse

from cellsmith._compat import kept_threads
from cellsmith._errors import SetupError, nearest
from cellsmith._rng import Streams
from cellsmith.benchmark._files import load

__all__ = ["BUNDLED", "CUT", "FILES", "NAMED", "TUNING", "Case", "drawn", "prepare", "read"]

BUNDLED = "pbmc68k"
"""The 700 cells that scanpy carries."""
FILES = (BUNDLED, "pbmc4k_10x", "young_kidney", "kang_ifnb", "pbmc_facs")
TUNING = (BUNDLED, "pbmc4k_10x")
"""Defaults may be chosen on these; the others only report."""
NAMED = (BUNDLED, "kang_ifnb", "pbmc_facs")
"""Files whose genes carry symbols."""
CUT = ("young_kidney", "kang_ifnb", "pbmc_facs")
"""Files of which 1,500 cells are drawn, with a seed: time."""
MAX_GENES, MIN_CELLS, MAX_CELLS = 2_000, 10, 1_500
PLACES = ("cell_type", "condition", "batch")


@dataclass(frozen=True, eq=False)
class Case:
    """Cells of one file.

    Parameters
    ----------
    file
        Name in the tables.
    cells
        Raw counts, CSR float32 (n, V), of the genes that all methods share. No label is in ``.obs``.
    log
        log1p of counts at 10,000 a cell over all genes, CSR (n, V).
    labels
        Type of each cell, (n,), None where there are none; a cell without one is not scored by them.
    obs
        Condition and batch, where the file has them; read by the scoring and by what compares conditions.
    others
        log1p values of the genes that were not chosen, CSR (n, G - V); a second view of the same cells.
    """

    file: str
    cells: AnnData
    log: sparse.csr_matrix
    labels: npt.NDArray[Any] | None
    obs: Any
    others: sparse.csr_matrix

    @property
    def n_types(self) -> int:
        """Number of types; 0 where there are none."""
        return 0 if self.labels is None else len({str(v) for v in self.labels if v is not None and v == v})

    def of(self, rows: npt.NDArray[Any]) -> Case:
        """Return the case of some cells, with the genes of the whole."""
        labels = None if self.labels is None else self.labels[rows]
        return Case(
            self.file, self.cells[rows].copy(), self.log[rows], labels, self.obs.iloc[rows].copy(), self.others[rows]
        )


def log_expression(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return log1p of counts (n, G) at 10,000 a cell."""
    total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    scaled = sparse.diags(1e4 / total) @ counts.astype(np.float64)
    return sparse.csr_matrix(scaled.log1p())


def variable_genes(log: sparse.csr_matrix, n: int = MAX_GENES) -> npt.NDArray[np.intp]:
    """Return the columns of the `n` most variable genes (scanpy's `flavor="seurat"`) in their old order; no label.

    Genes in fewer than ten cells are left out first: no split of the cells then lacks a gene.
    """
    import scanpy as sc

    if log.shape[1] <= n:
        return np.arange(log.shape[1])
    seen = np.flatnonzero(np.asarray((log > 0).sum(axis=0)).ravel() >= MIN_CELLS)
    with kept_threads():
        found = sc.pp.highly_variable_genes(AnnData(log[:, seen]), n_top_genes=n, flavor="seurat", inplace=False)
    return seen[found["highly_variable"].to_numpy()]


def prepare(
    adata: AnnData,
    *,
    file: str,
    labels_key: str | None = "cell_type",
    layer: str | None = None,
    choose: npt.NDArray[Any] | None = None,
) -> Case:
    """Choose the genes that all methods share.

    Parameters
    ----------
    adata
        Counts (n, G); cells without a count are left out.
    file
        Name in the tables.
    labels_key
        Column of ``.obs`` with the types; None: no types.
    layer
        Layer of the counts; None: ``.X``.
    choose
        Cells that choose the genes, a mask over the cells; None takes all.

    Raises
    ------
    SetupError
        For a layer or column that does not exist.
    """
    if layer is not None and layer not in adata.layers:
        raise SetupError(f"`adata.layers` has no {layer!r}. {nearest(layer, adata.layers)}")
    if labels_key is not None and labels_key not in adata.obs:
        raise SetupError(f"`adata.obs` has no column {labels_key!r}. {nearest(labels_key, adata.obs.columns)}")
    counts = sparse.csr_matrix(adata.X if layer is None else adata.layers[layer], dtype=np.float32)
    kept = np.asarray(counts.sum(axis=1)).ravel() > 0
    counts, obs = counts[kept], adata.obs.loc[kept]
    log = log_expression(counts)
    genes = variable_genes(log if choose is None else log[choose[kept]])
    cells = AnnData(counts[:, genes], obs=obs[[]].copy(), var=adata.var[[]].iloc[genes].copy())
    labels = None if labels_key is None else obs[labels_key].to_numpy(dtype=object)
    rest = np.setdiff1d(np.arange(log.shape[1]), genes)
    shown = [c for c in PLACES if c in obs]
    return Case(file, cells, log[:, genes], labels, obs[shown].copy(), log[:, rest])


def read(directory: Path, file: str) -> Case:
    """Return a file of the benchmark data directory, or scanpy's bundled cells; of some files a draw of cells."""
    case = prepare(raw(directory, file), file=file)
    return drawn(case) if file in CUT else case


def drawn(case: Case, n: int = MAX_CELLS) -> Case:
    """Return at most `n` cells by a seeded draw, with the genes of the whole."""
    if case.cells.n_obs <= n:
        return case
    return case.of(np.sort(Streams(0).numpy("cut").permutation(case.cells.n_obs)[:n]))


def raw(directory: Path, file: str) -> AnnData:
    """Return counts of all genes of a file."""
    if file == BUNDLED:
        from cellsmith.datasets import pbmc68k_counts

        return pbmc68k_counts()
    return load(directory, file)
