"""Does adding generated cells of a rare type help a classifier? Beside the usual remedies."""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
from scipy import sparse

from cellsmith.benchmark._files import Split
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._synthesis.fits import Fits
from cellsmith.benchmark._synthesis.peers import independent_nb
from cellsmith.benchmark._synthesis.scoring import N_COMPONENTS
from cellsmith.metrics._cells import Space, log_normalise
from cellsmith.metrics._labels import classifier, f1_per_label

__all__ = ["KEPT", "augmentation"]

KEPT = (10, 20, 50)
TARGET = 200
SMOTE_NEIGHBORS = 5


def _smote(x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return `n` points between a point and one of its 5 nearest neighbours."""
    from sklearn.neighbors import NearestNeighbors

    k = min(SMOTE_NEIGHBORS, len(x) - 1)
    near = NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x, return_distance=False)[:, 1:]
    start = rng.integers(len(x), size=n)
    end = near[start, rng.integers(k, size=n)]
    return x[start] + rng.random((n, 1)) * (x[end] - x[start])


def augmentation(part: Split, kept: int, store: Store, *, max_epochs: int | None = None) -> None:
    """Keep a few cells of the rarest type, raise it to 200 in several ways, classify real test cells.

    Parameters
    ----------
    part
        The cut.
    kept
        Cells of the rarest type that stay among the training cells.
    store
        Where the rows go: macro-F1 over all types, and F1 and recall of the rare type.
    max_epochs
        Cap on the epochs of every training.
    """
    key, rng = part.labels_key, np.random.default_rng(part.seed)
    labels = part.train.obs[key].astype(str).to_numpy()
    names, sizes = np.unique(labels, return_counts=True)
    rare = str(names[sizes.argmin()])
    few = rng.permutation(np.flatnonzero(labels == rare))[:kept]
    train = part.train[np.sort(np.r_[np.flatnonzero(labels != rare), few])].copy()
    log = log_normalise(sparse.csr_matrix(train.X))
    space = Space.fit(log, N_COMPONENTS, part.seed)
    x, own = space.pca.transform(log), train.obs[key].astype(str).to_numpy(dtype=object)
    rare_rows = np.flatnonzero(own == rare)
    n_new = TARGET - len(rare_rows)

    def place(adata: ad.AnnData) -> np.ndarray:
        return np.asarray(space.pca.transform(log_normalise(sparse.csr_matrix(adata.X))))

    def generated() -> np.ndarray:
        fits = Fits(train, labels_key=key, batch_key=part.batch_key, seed=part.seed, max_epochs=max_epochs)
        model: Any = fits.get("scld")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = model.augment(key=key, target={rare: TARGET}, max_ratio=TARGET / len(rare_rows), seed=part.seed)
        return place(out[out.obs["is_synthetic"].to_numpy()])

    ways = {
        "none": lambda: x[:0],
        "oversampling": lambda: x[rng.choice(rare_rows, n_new)],
        "SMOTE in components": lambda: _smote(x[rare_rows], n_new, rng),
        "independent NB": lambda: place(independent_nb(train[rare_rows].copy(), n_new, rng, keys=[key])),
        "SCLD": generated,
    }
    truth = part.test.obs[key].astype(str).to_numpy(dtype=object)
    test = place(part.test)
    for way, make in ways.items():
        more = make()
        teacher = classifier(np.r_[x, more], np.r_[own, np.full(len(more), rare, dtype=object)])
        found = np.asarray(teacher.predict(test)).astype(str)
        f1 = f1_per_label(truth, found)
        values = {
            "macro_f1": float(np.mean(list(f1.values()))),
            "rare_f1": f1[rare],
            "rare_recall": float((found[truth == rare] == rare).mean()),
        }
        store.record(f"augmentation ({kept} kept)", part, way, values)
