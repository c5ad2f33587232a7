"""Whether the log density tells real cells from cells whose genes do not belong together."""

from __future__ import annotations

import warnings

import numpy as np
from scipy import sparse

from cellsmith.benchmark._files import Split
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._synthesis.fits import Fits

__all__ = ["log_density", "shuffle_genes"]

MAX_CELLS = 300
DENSITIES = {"state": False, "counts": True}
SHUFFLES = ("within cells", "among cells")


def shuffle_genes(x: sparse.csr_matrix, how: str, *, rng: np.random.Generator) -> sparse.csr_matrix:
    """Return cells whose genes do not belong together.

    Parameters
    ----------
    x
        Counts (n, G).
    how
        ``"within cells"``: every cell keeps its counts but gives them to other genes. ``"among cells"``: every gene
        keeps its counts but gives them to other cells.
    rng
        Source of randomness.
    """
    dense = x.toarray()
    mixed = rng.permuted(dense, axis=1 if how == "within cells" else 0)
    # The model refuses cells without any count.
    return sparse.csr_matrix(mixed[mixed.sum(axis=1) > 0])


def log_density(part: Split, fits: Fits, store: Store) -> None:
    """Rank real test cells and shuffled ones by both log densities of the model.

    Parameters
    ----------
    part, fits, store
        Cut, models, results. ``auc``: probability that a real cell lies above a shuffled one, by the log density of
        the state alone and by that of the counts.
    """
    from sklearn.metrics import roc_auc_score

    model, real = fits.get("scld"), part.test[:MAX_CELLS].copy()
    for how in SHUFFLES:
        x = shuffle_genes(sparse.csr_matrix(real.X), how, rng=np.random.default_rng(part.seed))
        broken = real[: x.shape[0]].copy()
        broken.X = x
        truth = np.repeat([1, 0], [real.n_obs, broken.n_obs])
        for name, counts in DENSITIES.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = [model.get_log_density(cells, counts=counts) for cells in (real, broken)]
            auc = float(roc_auc_score(truth, np.concatenate(found)))
            store.record("log_density", part, f"{name}, {how}", {"auc": auc})
