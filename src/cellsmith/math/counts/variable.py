"""Which genes vary most, by the rule of Seurat, from moments alone."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np
import pandas as pd
from scipy import sparse

__all__ = ["GeneMoments", "choose_genes"]

N_BINS = 20
# What the moments are taken of: counts a cell, scaled to this total.
SCALE = 1e4


class GeneMoments:
    """Sums over cells that the choice of genes needs, added up batch by batch.

    Parameters
    ----------
    n_genes
        Registered genes.
    """

    def __init__(self, n_genes: int) -> None:
        self.n_cells = 0
        self.total = np.zeros(n_genes)
        self.square = np.zeros(n_genes)

    def add(self, counts: sparse.csr_matrix) -> None:
        """Add cells; each is scaled to a total of 10,000 first.

        Parameters
        ----------
        counts
            (n, n_genes).
        """
        totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
        scaled = sparse.csr_matrix(sparse.diags(SCALE / np.maximum(totals, 1e-300)) @ counts.astype(np.float64))
        self.n_cells += counts.shape[0]
        self.total += np.asarray(scaled.sum(axis=0)).ravel()
        self.square += np.asarray(scaled.multiply(scaled).sum(axis=0)).ravel()

    @classmethod
    def of(cls, batches: Iterable[sparse.csr_matrix]) -> GeneMoments:
        """Return the moments of all cells of some batches.

        Parameters
        ----------
        batches
            Counts (n, n_genes) each, at least one.
        """
        rest = iter(batches)
        first = next(rest)
        moments = cls(first.shape[1])
        for counts in chain([first], rest):
            moments.add(counts)
        return moments

    def mean_and_variance(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and the unbiased variance of every gene (n_genes,)."""
        mean = self.total / self.n_cells
        variance = (self.square - self.n_cells * mean**2) / max(1, self.n_cells - 1)
        return mean, np.maximum(variance, 0.0)


def choose_genes(moments: GeneMoments, n_top: int) -> np.ndarray:
    """Return the positions (at most n_top, ascending) of the most variable genes.

    Variance over mean, logarithms, standardised within 20 bins of the mean: the rule of Seurat, as
    ``scanpy.pp.highly_variable_genes(flavor="seurat")`` on log-normalised data (Satija et al., 2015). Genes without a
    single count are never chosen.

    Parameters
    ----------
    moments
        Of the training cells.
    n_top
        How many genes to choose; all that have a count where there are no more.
    """
    mean, variance = moments.mean_and_variance()
    seen = np.flatnonzero(mean > 0)
    if len(seen) <= n_top:
        return seen
    with np.errstate(divide="ignore", invalid="ignore"):
        dispersion = np.log(variance / mean)
    frame = pd.DataFrame({"mean": np.log1p(mean), "dispersion": np.where(np.isfinite(dispersion), dispersion, np.nan)})
    bins = frame.groupby(pd.cut(frame["mean"], bins=N_BINS), observed=True)["dispersion"]
    centre, spread = bins.transform("mean"), bins.transform("std")
    # The spread of a bin with one gene is unknown: such a gene counts as one standard deviation above its bin.
    alone = spread.isna()
    spread, centre = spread.where(~alone, centre), centre.where(~alone, 0.0)
    score = ((frame["dispersion"] - centre) / spread).to_numpy()
    score = np.where(np.isfinite(score) & (mean > 0), score, -np.inf)
    best = np.argsort(-score, kind="stable")[:n_top]
    return np.sort(best)
