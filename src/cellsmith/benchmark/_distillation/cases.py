"""The data sets of the protocol, and how one is cut into training and test cells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cellsmith._errors import SetupError, nearest
from cellsmith.benchmark._distillation.recipe import log_view
from cellsmith.benchmark._files import MAX_GENES, load, variable_genes
from cellsmith.data.checks import check_counts, check_covariates
from cellsmith.math.matching import log_normalize, principal_components, target_sum

__all__ = ["EMBEDDED", "FILES", "REP", "Cut", "Reading", "cut", "labelled_counts", "parted", "read"]

EMBEDDED = "pbmc68k_reduced"
FILES = (EMBEDDED, "pbmc4k_10x", "pbmc_facs", "kang_ifnb")
REP = "X_pca"
"""Where the training cells carry 50 principal components of their own, for every method alike."""


def read(file: str, directory: Path) -> ad.AnnData:
    """Return a data set of the protocol with ``.obs["cell_type"]``."""
    if file == EMBEDDED:
        from cellsmith.datasets import pbmc68k_counts

        return pbmc68k_counts()
    return load(directory, file)


def labelled_counts(adata: ad.AnnData, labels_key: str, *, layer: str | None, batch_key: str | None) -> ad.AnnData:
    """Return the labelled cells with counts in ``.X``, CSR float32, and the named columns alone.

    Raises
    ------
    SetupError
        If a column is missing, there are fewer than two classes or a class has one cell, or these are no counts.
    """
    if labels_key not in adata.obs:
        raise SetupError(f"labels_key={labels_key!r} is not a column of .obs. {nearest(labels_key, adata.obs.columns)}")
    check_covariates(adata.obs, categorical={"batch_key": batch_key})
    kept = adata[adata.obs[labels_key].notna().to_numpy()]
    check_counts(kept, layer, min_cells=4)
    names = [labels_key, *([batch_key] if batch_key else [])]
    obs = pd.DataFrame({n: kept.obs[n].astype(str).astype("category") for n in names}, index=kept.obs_names)
    sizes = obs[labels_key].value_counts()
    if len(sizes) < 2 or sizes.iloc[-1] < 2:
        raise SetupError(
            f".obs[{labels_key!r}] has {len(sizes)} classes, the smallest ({sizes.index[-1]!r}) with {sizes.iloc[-1]} "
            "cells; expected two classes or more with two cells or more each, one to learn and one to test."
        )
    x = kept.X if layer is None else kept.layers[layer]
    return ad.AnnData(sparse.csr_matrix(x, dtype=np.float32), obs=obs, var=kept.var[[]].copy())


@dataclass(frozen=True, eq=False)
class Reading:
    """How the rows of one cut are read: target sum and genes, from the training cells alone.

    Parameters
    ----------
    train, test
        Cells with counts in ``.X`` or `layer`.
    labels_key, layer
        Column of ``.obs`` with the class; layer with the counts.
    """

    train: ad.AnnData
    test: ad.AnnData
    labels_key: str
    layer: str | None = None

    @cached_property
    def classes(self) -> pd.Index:
        """Classes of the training cells, sorted, (K,)."""
        return pd.Index(sorted(self.train.obs[self.labels_key].dropna().astype(str).unique()))

    @cached_property
    def genes(self) -> np.ndarray:
        """Columns that classifiers read: all, or the 2,000 most variable of the training cells."""
        if self.train.n_vars <= MAX_GENES:
            return np.arange(self.train.n_vars)
        x = self.train.X if self.layer is None else self.train.layers[self.layer]
        return variable_genes(sparse.csr_matrix(x), MAX_GENES)

    def view(self, rows: ad.AnnData) -> np.ndarray:
        """Return the logarithms of rows, (m, G)."""
        return log_view(rows, layer=self.layer, scale=target_sum(self.train.n_vars), genes=self.genes)

    def codes(self, rows: ad.AnnData) -> np.ndarray:
        """Return the class of rows, (m,); -1 for a label that no training cell has."""
        return self.classes.get_indexer(rows.obs[self.labels_key].astype(str))

    @cached_property
    def train_view(self) -> np.ndarray:
        """Logarithms of the training cells, (n, G)."""
        return self.view(self.train)

    @cached_property
    def test_view(self) -> np.ndarray:
        """Logarithms of the test cells, (n, G)."""
        return self.view(self.test)


@dataclass(frozen=True, eq=False)
class Cut:
    """One data set, cut by one seed."""

    file: str
    split: int
    reading: Reading


def cut(
    adata: ad.AnnData, labels_key: str, *, file: str, split: int, test_size: float = 0.3, max_train: int | None = None
) -> Cut:
    """Cut labelled cells in two, every class alike; genes and components come from the training cells.

    Parameters
    ----------
    adata
        What :func:`labelled_counts` returned.
    labels_key
        Column with the class.
    file, split
        Name in the tables; seed of the cut.
    test_size
        Share of the cells that are tested on.
    max_train
        Most training cells, drawn class by class; None: all.

    Returns
    -------
    The cut. Where there are more than 2,000 genes, both parts keep the 2,000 with the largest variance of Pearson
    residuals among the training cells, so that every method sees the same.
    """
    from sklearn.model_selection import StratifiedShuffleSplit

    labels = adata.obs[labels_key].astype(str).to_numpy()
    splitter = StratifiedShuffleSplit(1, test_size=test_size, random_state=split)
    train, test = next(splitter.split(np.zeros(len(labels)), labels))
    if max_train is not None and len(train) > max_train:
        fewer = StratifiedShuffleSplit(1, train_size=max_train, random_state=split)
        train = train[next(fewer.split(np.zeros(len(train)), labels[train]))[0]]
    return parted(adata, labels_key, train=train, test=test, file=file, split=split)


def parted(adata: ad.AnnData, labels_key: str, *, train: np.ndarray, test: np.ndarray, file: str, split: int) -> Cut:
    """Return the cut with these training and test cells.

    Parameters
    ----------
    adata
        What :func:`labelled_counts` returned.
    labels_key
        Column with the class.
    train, test
        Positions of the cells.
    file, split
        Name in the tables; seed of the components.
    """
    genes = np.arange(adata.n_vars)
    if adata.n_vars > MAX_GENES:
        genes = variable_genes(adata.X[train], MAX_GENES)
    parts = []
    for rows in (train, test):
        part = adata[rows][:, genes].copy()
        parts.append(part[np.asarray(part.X.sum(axis=1)).ravel() > 0].copy())
    phi = log_normalize(parts[0].X, scale=target_sum(len(genes)))
    parts[0].obsm[REP] = principal_components(phi, seed=split)
    return Cut(file, split, Reading(*parts, labels_key=labels_key))
