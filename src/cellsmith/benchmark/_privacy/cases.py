"""The files of the privacy benchmark: which cells, which genes, and where the genes come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from scipy import sparse

from cellsmith.benchmark._files import load, variable_genes

__all__ = ["CASES", "Case", "case"]

LABELS = "cell_type"
MOST_CELLS = 2_100
KANG_GENES = 1_000
CASES: dict[str, tuple[str, Any]] = {
    "pbmc4k_10x/2000": ("pbmc4k_10x", "all"),
    "young_kidney/2000": ("young_kidney", "all"),
    "worm_neuron/2000": ("worm_neuron", 2000),
    "kang_ifnb/1000": ("kang_ifnb", "pbmc_facs"),
    "pbmc4k_10x/500": ("pbmc4k_10x", 500),
    "young_kidney/500": ("young_kidney", 500),
    "worm_neuron/500": ("worm_neuron", 500),
}
"""Name -> file and panel: all of its genes, so many by name alone, or the most variable ones of another study."""


@dataclass(frozen=True)
class Case:
    """Cells of one seed, with a panel.

    Parameters
    ----------
    name
        Key of ``CASES``.
    seed
        Of the choice of cells and of the noise.
    cells
        Counts; labels in ``.obs["cell_type"]``, read by the scores alone.
    panel
        Of the private methods.
    """

    name: str
    seed: int
    cells: ad.AnnData
    panel: Any

    @property
    def n_clusters(self) -> int:
        """Number of types; given to every arm alike."""
        return int(self.cells.obs[LABELS].nunique())


def case(name: str, directory: Path, *, seed: int, most_cells: int = MOST_CELLS) -> Case:
    """Read a file and draw cells.

    Parameters
    ----------
    name
        Key of ``CASES``.
    directory
        Of the benchmark data.
    seed
        Of the draw.
    most_cells
        Cells that are kept.
    """
    file, panel = CASES[name]
    whole = load(directory, file)
    whole = whole[whole.obs[LABELS].notna().to_numpy()]
    generator = np.random.default_rng(seed)
    rows = np.sort(generator.permutation(whole.n_obs)[:most_cells])
    cells = ad.AnnData(
        sparse.csr_matrix(whole.X[rows], dtype=np.float32), obs=whole.obs[[LABELS]].iloc[rows].copy(), var=whole.var[[]]
    )
    cells.obs[LABELS] = cells.obs[LABELS].astype(str).astype("category")
    if panel == "pbmc_facs":
        other = load(directory, panel)
        shared = other[:, other.var_names.isin(cells.var_names)]
        chosen = variable_genes(sparse.csr_matrix(shared.X, dtype=np.float32), KANG_GENES)
        panel = list(shared.var_names[chosen])
    return Case(name, seed, cells, panel)
