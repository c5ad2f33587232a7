"""Toy cells cut into training, test, control and fresh ones, and two generators that must fail."""

from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from cellsmith.datasets import toy_counts
from cellsmith.metrics._cells import Space, read_cells


@dataclass(frozen=True)
class Toy:
    train: ad.AnnData
    test: ad.AnnData
    control: ad.AnnData
    fresh: ad.AnnData

    def copies(self, n: int = 300) -> ad.AnnData:
        """Training cells, resampled."""
        pick = np.random.default_rng(1).choice(self.train.n_obs, n)
        obs = self.train.obs.iloc[pick].set_index(np.array([f"copy_{i}" for i in range(n)]))
        return ad.AnnData(self.train.X[pick], obs=obs, var=self.train.var[[]])

    def averages(self, n: int = 300) -> ad.AnnData:
        """Normalised expression averaged over 20 neighbouring training cells."""
        cells = read_cells(self.train, name="train", genes=np.asarray(self.train.var_names, dtype=str))
        place = Space.fit(cells.log, 30, 0).project(cells)
        near = np.argsort(((place[:, None] - place[None]) ** 2).sum(axis=2), axis=1)[:, :20]
        pick = np.random.default_rng(1).choice(cells.n, n, replace=False)
        weights = sparse.csr_matrix((np.full(20 * n, 0.05), near[pick].ravel(), np.arange(0, 20 * n + 1, 20)))
        weights.resize(n, cells.n)
        out = self.train[pick].copy()
        out.X = weights @ cells.log
        out.layers["counts"] = sparse.csr_matrix(np.round((weights @ cells.counts).toarray()))
        return out


@pytest.fixture(scope="session")
def toy() -> Toy:
    adata = toy_counts(1400, 150, n_types=3, n_batches=2, rng=0)
    del adata.layers["mean"]
    cuts = [adata[a:b].copy() for a, b in ((0, 500), (500, 800), (800, 1100), (1100, 1400))]
    return Toy(*cuts)
