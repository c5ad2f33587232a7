"""What a column gets: values with missing entries; and what only the scoring may read: the complete values, labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cellsmith._compat import kept_threads
from cellsmith.benchmark._files import load
from cellsmith.benchmark._missingness import peers
from cellsmith.benchmark._missingness.mechanisms import Mechanism, apply_mask, depth_of

__all__ = ["Case", "Complete", "masked", "prepare", "read"]

MAX_GENES, MIN_CELLS = 2_000, 10


@dataclass(eq=False)
class Complete:
    """Complete data of one file.

    Parameters
    ----------
    file
        Name in the tables.
    values
        Values (n, D) without a missing entry, log-normalised where they come from counts.
    depth
        Standardised log total of each cell, (n,).
    labels
        Type of each cell, (n,), None where there are none; a cell without one is not scored by them.
    axes
        True space where it is known, (n, k); None takes the principal components of `values`.
    """

    file: str
    values: npt.NDArray[Any]
    depth: npt.NDArray[np.float64]
    labels: npt.NDArray[Any] | None = None
    axes: npt.NDArray[np.float64] | None = None
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    def scores(self, k: int) -> npt.NDArray[np.float64]:
        """Return the scores of the k first principal components, (n, k)."""
        most = max([k, *(key[1] for key in self._kept if key[0] == "scores")])
        if ("scores", most) not in self._kept:
            self._kept["scores", most] = peers.pca(np.asarray(self.values, dtype=np.float64), most)
        return np.asarray(self._kept["scores", most][:, :k])

    def truth(self, k: int) -> npt.NDArray[np.float64]:
        """Return columns that span the true space, (n, k)."""
        return self.scores(k) if self.axes is None else self.axes[:, :k]

    def neighbors(self, k: int, n_neighbors: int) -> npt.NDArray[np.int32]:
        """Return the other cells nearest to each cell in the complete space, (n, n_neighbors)."""
        from cellsmith.benchmark._missingness.scoring import nearest_cells

        key = ("neighbors", k, n_neighbors)
        if key not in self._kept:
            self._kept[key] = nearest_cells(self.scores(k), n_neighbors)
        return np.asarray(self._kept[key])


@dataclass(frozen=True, eq=False)
class Case:
    """One run: a mask on complete data.

    Parameters
    ----------
    task, seed
        Names in the tables; the number of components is appended to the task.
    complete
        What was masked; a column may not read it, the control excepted.
    values
        Values (n, D) with NaN where nothing was observed.
    probability
        True probabilities (n, D) where they are known.
    """

    task: str
    seed: int
    complete: Complete
    values: npt.NDArray[Any]
    probability: npt.NDArray[np.float64] | None = None

    @property
    def file(self) -> str:
        """Name in the tables."""
        return self.complete.file


def masked(complete: Complete, name: str, mechanism: Mechanism, *, seed: int, task: str) -> Case:
    """Take entries away.

    Parameters
    ----------
    complete
        The data.
    name, mechanism
        The mechanism; its name selects the random stream, so that mechanisms do not share their draws.
    seed
        Seed of the mask.
    task
        Name in the tables.
    """
    from cellsmith._rng import Streams

    rng = Streams(seed).numpy(f"mask, {name}")
    observed = np.asarray(mechanism(complete.values, complete.depth, rng), dtype=bool)
    return Case(task, seed, complete, apply_mask(complete.values, observed))


def prepare(adata: Any, *, file: str, labels_key: str | None = "cell_type") -> Complete:
    """Log-normalise counts: total 1e4, log1p, genes in at least 10 cells, of more than 2,000 the most variable.

    Parameters
    ----------
    adata
        Counts (n, G); cells without a count are left out.
    file
        Name in the tables.
    labels_key
        Column of ``.obs`` with the types.
    """
    import anndata as ad
    import scanpy as sc
    from scipy import sparse

    counts = sparse.csr_matrix(adata.X, dtype=np.float32)
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    cells = totals > 0
    genes = np.asarray((counts > 0).sum(axis=0)).ravel() >= MIN_CELLS
    new = ad.AnnData(counts[cells][:, genes])
    sc.pp.normalize_total(new, target_sum=1e4)
    sc.pp.log1p(new)
    if new.n_vars > MAX_GENES:
        with kept_threads():
            sc.pp.highly_variable_genes(new, n_top_genes=MAX_GENES)
        new = new[:, new.var["highly_variable"].to_numpy()]
    labels = None if labels_key is None else adata.obs[labels_key].to_numpy(dtype=object)[cells]
    return Complete(file, new.X.toarray(), depth_of(totals[cells]), labels)


def read(directory: Path, file: str) -> Complete:
    """Read one file of the benchmark data directory and log-normalise it."""
    return prepare(load(directory, file), file=file)
