"""What every method gets: counts of the same cells and genes; and what only the scoring may read: the types."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from anndata import AnnData
from scipy import sparse

from cellsmith.benchmark._topics.cases import prepare, raw

__all__ = ["FILES", "Case", "case_of", "read"]

FILES: dict[str, str | None] = {
    "worm_neuron": None,
    "young_kidney": None,
    "pbmc4k_10x": None,
    "pbmc_facs": None,
    "sc_mixology_5cl": None,
    "kang_ifnb": "batch",
}
"""File -> the batch that methods are told; in kang_ifnb it is the condition."""


@dataclass(frozen=True, eq=False)
class Case:
    """Cells of one file.

    Parameters
    ----------
    file
        Name in the tables.
    counts
        Raw counts, CSR float32 (n, G); ``.obs`` holds the batch, if there is one, and never a type.
    log
        log1p of counts at 10,000 a cell over all genes, CSR (n, G).
    labels
        Type of each cell, (n,).
    batch_key
        Column of ``counts.obs``.
    """

    file: str
    counts: AnnData
    log: sparse.csr_matrix
    labels: npt.NDArray[Any]
    batch_key: str | None

    @property
    def n_types(self) -> int:
        """Number of types."""
        return len({str(v) for v in self.labels if v is not None and v == v})

    @property
    def batches(self) -> npt.NDArray[Any] | None:
        """Batch of each cell, or None."""
        return None if self.batch_key is None else self.counts.obs[self.batch_key].astype(str).to_numpy()


def case_of(
    adata: AnnData,
    *,
    file: str,
    labels_key: str = "cell_type",
    layer: str | None = None,
    batch_key: str | None = None,
    max_cells: int | None = None,
) -> Case:
    """Choose cells and genes without reading a label: 2,000 genes by scanpy's default rule (all where there are fewer).

    Parameters
    ----------
    adata
        Counts (n, G); cells without a count or a type are left out.
    file
        Name in the tables.
    labels_key, batch_key
        Columns of ``.obs``.
    layer
        Layer of the counts; None: ``.X``.
    max_cells
        Draw so many cells at random (always the same), where there are more; None: all.
    """
    adata = adata[adata.obs[labels_key].notna().to_numpy()]
    if max_cells is not None and adata.n_obs > max_cells:
        adata = adata[np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:max_cells])]
    found = prepare(adata, file=file, labels_key=labels_key, layer=layer)
    counts = found.cells.copy()
    seen = np.asarray(counts.X.sum(axis=1)).ravel() > 0
    if batch_key is not None:
        counts.obs[batch_key] = adata.obs.loc[counts.obs_names, batch_key].astype(str).astype("category")
    return Case(file, counts[seen].copy(), found.log[seen], np.asarray(found.labels)[seen], batch_key)


def read(directory: Path, file: str, *, max_cells: int | None = None) -> Case:
    """Return the cells of a file of the benchmark data directory."""
    return case_of(raw(directory, file), file=file, batch_key=FILES.get(file), max_cells=max_cells)
