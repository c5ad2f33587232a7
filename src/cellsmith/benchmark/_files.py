"""The benchmark data: where it lies, how it is cut, which genes are used."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

from cellsmith._errors import SetupError

__all__ = ["FILES", "Split", "data_directory", "load", "split"]

logger = logging.getLogger("cellsmith")

MAX_GENES = 2000
VARIABLE = "CELLSMITH_DATA"
BESIDE = Path("..") / "shared" / "data"

FILES: dict[str, str | None] = {
    "pbmc4k_10x": None,
    "young_kidney": None,
    "kang_ifnb": "condition",
    "sc_mixology_5cl": None,
    "pbmc_facs": None,
}
"""File (without its ending) -> column of ``.obs`` with the batch or condition, None where there is none."""


@dataclass(frozen=True)
class Split:
    """One file, cut by one seed.

    Parameters
    ----------
    file
        Name of the file.
    seed
        Seed of the cut and of everything that follows.
    train, test, spare
        Cells for training, for scoring, and for the real-against-real control; counts, CSR.
    labels_key, batch_key
        Columns of ``.obs``.
    """

    file: str
    seed: int
    train: ad.AnnData
    test: ad.AnnData
    spare: ad.AnnData
    labels_key: str
    batch_key: str | None

    @property
    def keys(self) -> list[str]:
        """Columns that a generator has to fill."""
        return [k for k in (self.labels_key, self.batch_key) if k is not None]


def data_directory(given: str | Path | None = None) -> Path:
    """Return the benchmark data directory.

    Parameters
    ----------
    given
        What the user typed; None: the environment variable ``CELLSMITH_DATA``, then ``../shared/data``.

    Raises
    ------
    SetupError
        If there is no such directory.
    """
    named = given or os.environ.get(VARIABLE)
    path = Path(named) if named else BESIDE
    if not path.is_dir():
        where = f"The directory {str(path)!r} does not exist." if named else "Where is the benchmark data directory?"
        msg = f"{where} Type `--data <directory with {next(iter(FILES))}.h5ad ...>` or set {VARIABLE}."
        raise SetupError(msg)
    return path


def load(directory: Path, file: str) -> ad.AnnData:
    """Read one file of the benchmark data directory.

    Parameters
    ----------
    directory
        From :func:`data_directory`.
    file
        Name without ``.h5ad``.

    Raises
    ------
    SetupError
        If the directory has no such file.
    """
    path = directory / f"{file}.h5ad"
    if not path.is_file():
        have = ", ".join(sorted(p.stem for p in directory.glob("*.h5ad"))) or "none"
        msg = f"The benchmark data directory has no {path.name}; it has: {have}."
        raise SetupError(msg)
    return ad.read_h5ad(path)


def _sizes(n: int) -> tuple[int, int]:
    """Return the numbers of training and test cells: 2,000 and 1,000, in small files a half and a quarter."""
    return (2000, 1000) if n >= 4000 else (n // 2, n // 4)


def variable_genes(counts: Any, n: int) -> np.ndarray:
    """Return the columns of the `n` largest variances of clipped Pearson residuals, in their old order.

    Parameters
    ----------
    counts
        Counts of the training cells, CSR of shape (m, G). No label is read.
    n
        Number of genes.
    """
    total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    share = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel() / total.sum()
    m, variance = counts.shape[0], np.zeros(counts.shape[1])
    for start in range(0, counts.shape[1], 2000):
        columns = slice(start, start + 2000)
        mean = total[:, None] * share[None, columns]
        spread = np.sqrt(mean + mean**2 / 100)
        block = counts[:, columns].toarray()
        residual = np.divide(block - mean, spread, out=np.zeros_like(mean), where=spread > 0)
        variance[columns] = np.clip(residual, -np.sqrt(m), np.sqrt(m)).var(axis=0)
    return np.sort(np.argsort(-variance, kind="stable")[:n])


def split(
    adata: ad.AnnData,
    *,
    file: str,
    seed: int,
    labels_key: str = "cell_type",
    batch_key: str | None = None,
    n_train: int | None = None,
) -> Split:
    """Cut cells into training, test and spare ones; genes are chosen on the training cells.

    Parameters
    ----------
    adata
        Counts of shape (n, G).
    file
        Name in the tables.
    seed
        Seed of the permutation.
    labels_key, batch_key
        Columns of ``.obs``; cells without a label are left out.
    n_train
        Number of training cells; None: 2,000 of a file with at least 4,000 cells, else half.

    Returns
    -------
    The cut; files with more than 2,000 genes keep the 2,000 with the largest variance of Pearson residuals.
    """
    from scipy import sparse

    adata = adata[adata.obs[labels_key].notna().to_numpy()]
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    most, n_test = _sizes(adata.n_obs)
    most = most if n_train is None else n_train
    pieces = np.split(order, [most, most + n_test])
    obs = adata.obs[[k for k in (labels_key, batch_key) if k is not None]].astype(str).astype("category")
    x = sparse.csr_matrix(adata.X, dtype=np.float32)
    genes = np.arange(adata.n_vars)
    if adata.n_vars > MAX_GENES:
        genes = variable_genes(x[pieces[0]], MAX_GENES)
    parts = []
    for rows in pieces:
        counts = x[rows][:, genes]
        seen = np.asarray(counts.sum(axis=1)).ravel() > 0
        part = ad.AnnData(counts[seen], obs=obs.iloc[rows[seen]].copy(), var=adata.var[[]].iloc[genes].copy())
        for key in part.obs:
            part.obs[key] = part.obs[key].cat.remove_unused_categories()
        parts.append(part)
    return Split(file, seed, *parts, labels_key=labels_key, batch_key=batch_key)
