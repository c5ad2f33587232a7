"""Conditions that a type was never seen in: generated with additive guidance, and translated from the other one."""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
from scipy import sparse

from cellsmith.benchmark._files import Split
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._synthesis.fits import Fits
from cellsmith.benchmark._synthesis.scoring import N_COMPONENTS
from cellsmith.metrics._cells import Space, log_normalise
from cellsmith.metrics._two_sample import wasserstein

__all__ = ["frequent_types", "held_out_condition", "whole"]

N_RESPONSE = 100
MIN_CELLS = 100


def _log(adata: ad.AnnData) -> sparse.csr_matrix:
    return log_normalise(sparse.csr_matrix(adata.X))


def whole(part: Split) -> ad.AnnData:
    """Put training, test and spare cells together again: what is held out here is a condition of a type."""
    return ad.concat([part.train, part.test, part.spare])


def frequent_types(adata: ad.AnnData, *, labels_key: str, batch_key: str, condition: str) -> list[str]:
    """Return the types with at least 100 cells in a condition and 20 in the rest, most frequent first.

    Parameters
    ----------
    adata
        Cells.
    labels_key, batch_key
        Columns of ``.obs``.
    condition
        Category of `batch_key` that is to be held out.
    """
    inside = (adata.obs[batch_key] == condition).to_numpy()
    many = adata.obs[labels_key][inside].value_counts()
    rest = adata.obs[labels_key][~inside].value_counts()
    return [str(t) for t, n in many.items() if n >= MIN_CELLS and rest.get(t, 0) >= 20]


def held_out_condition(
    part: Split, kind: str, *, source: str, target: str, store: Store, max_epochs: int | None = None
) -> None:
    """Train without one type's cells in the target condition; generate them, and translate its other cells.

    Parameters
    ----------
    part
        A cut whose training and test cells are all used: training, test and spare cells are put together again.
    kind
        The type.
    source, target
        Conditions; the type's cells in `target` are held out.
    store
        Where the rows go: ``w2`` to the held-out cells (30 components of the training cells), ``shift_r`` the
        correlation of the mean shift over the 100 genes with the strongest real response, ``identity_r`` the
        correlation of latents before and after a translation into the cells' own condition.
    max_epochs
        Cap on the epochs of every training.
    """
    key, batch = part.labels_key, str(part.batch_key)
    cells = whole(part)
    of_kind, condition = (cells.obs[key] == kind).to_numpy(), cells.obs[batch].astype(str).to_numpy()
    hidden = of_kind & (condition == target)
    train, real = cells[~hidden].copy(), cells[hidden].copy()
    log = _log(train)
    space = Space.fit(log, N_COMPONENTS, part.seed)
    fits = Fits(train, labels_key=key, batch_key=batch, seed=part.seed, max_epochs=max_epochs)
    model: Any = fits.get("scld")
    n, place = real.n_obs, space.pca.transform(_log(real))
    wanted = {
        "additive": {key: kind, batch: target},
        "type only": {key: kind},
        "condition only": {batch: target},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, condition_of in wanted.items():
            made = model.generate(n, condition=condition_of, min_cells=1, seed=part.seed)
            values = {"w2": wasserstein(place, space.pca.transform(_log(made)))}
            store.record(f"unseen combination ({kind})", part, name, values)
        before = train[((train.obs[key] == kind) & (train.obs[batch] == source)).to_numpy()].copy()
        moved = model.translate(before, {batch: target}, seed=part.seed)
        same = model.translate(before, {batch: source}, seed=part.seed)
        latent = model.get_latent_representation(before)
    start = np.asarray(_log(before).mean(axis=0)).ravel()
    response = np.asarray(_log(real).mean(axis=0)).ravel() - start
    shift = np.asarray(_log(moved).mean(axis=0)).ravel() - start
    strong = np.argsort(-np.abs(response), kind="stable")[:N_RESPONSE]
    flat = [np.asarray(z).ravel() for z in (latent, same.obsm["X_scld"])]
    values = {
        "shift_r": float(np.corrcoef(response[strong], shift[strong])[0, 1]),
        "identity_r": float(np.corrcoef(*flat)[0, 1]),
    }
    store.record(f"translate ({kind})", part, f"{source} to {target}", values)
