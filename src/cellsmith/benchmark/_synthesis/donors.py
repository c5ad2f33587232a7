"""Does the generator give donors away? Half of the donors train it, the other half are the hold-out."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np

from cellsmith.benchmark._store import Store
from cellsmith.benchmark._synthesis.fits import Fits
from cellsmith.benchmark._synthesis.peers import memoriser
from cellsmith.metrics import privacy_report

__all__ = ["CONTROL", "donor_privacy"]

CONTROL = "unseen real cells of the training donors"


class _Cut:
    def __init__(self, file: str, seed: int) -> None:
        self.file, self.seed = file, seed


def donor_privacy(
    adata: ad.AnnData,
    *,
    file: str,
    seed: int,
    store: Store,
    donor_key: str = "batch",
    labels_key: str = "cell_type",
    n_cells: int = 2000,
    max_epochs: int | None = None,
) -> None:
    """Attack donors of the training cells.

    Parameters
    ----------
    adata
        Counts of several donors.
    file, seed, store
        Name, seed and results.
    donor_key, labels_key
        Columns of ``.obs``.
    n_cells
        Cells a side.
    max_epochs
        Cap on the epochs of every training.
    """
    rng = np.random.default_rng(seed)
    donors = rng.permutation(np.unique(adata.obs[donor_key].astype(str)))
    halves = [np.flatnonzero(adata.obs[donor_key].astype(str).isin(d)) for d in np.array_split(donors, 2)]
    drawn = [np.sort(rng.choice(rows, min(n_cells, len(rows)), replace=False)) for rows in halves]
    # Cells of the training donors that no model saw: the donors differ, so their share is not a half either.
    unseen = np.setdiff1d(halves[0], drawn[0])
    own = np.random.default_rng([seed, 1])
    drawn.append(np.sort(own.choice(unseen, min(n_cells, len(unseen)), replace=False)))

    def counts_of(rows: np.ndarray) -> ad.AnnData:
        side = ad.AnnData(adata.X[rows], obs=adata.obs[[labels_key, donor_key]].iloc[rows], var=adata.var[[]])
        return side[np.asarray(side.X.sum(axis=1)).ravel() > 0].copy()

    train, holdout, spare = map(counts_of, drawn)
    # The donor is no condition: a user who shares such cells would not give it to the generator.
    fits = Fits(train, labels_key=labels_key, seed=seed, max_epochs=max_epochs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = {
            CONTROL: spare,
            "SCLD": fits.get("scld").generate(train.n_obs, seed=seed),
            "memoriser": memoriser(train, train.n_obs, rng, keys=[labels_key]),
        }
    for name, cells in made.items():
        report = privacy_report(train, holdout, cells, donor_key=donor_key, rng=seed)
        values = {str(m): float(v) for m, v in zip(report.table["metric"], report.table["value"], strict=True)}
        for metric, (low, high) in report.intervals.items():
            values |= {f"{metric}_low": low, f"{metric}_high": high}
        store.record("donor privacy", _Cut(file, seed), name, values)
