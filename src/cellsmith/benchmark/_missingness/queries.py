"""Cells that come later: placed by the fit of the others, against a fit of all."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd

from cellsmith._errors import CellsmithWarning
from cellsmith._rng import Streams
from cellsmith.benchmark._missingness import mechanisms as masks
from cellsmith.benchmark._missingness.cases import masked, read
from cellsmith.benchmark._store import Store

__all__ = ["FILE", "TASK", "identity_gap", "neighbor_types", "queries"]

logger = logging.getLogger("cellsmith")

TASK, FILE = "20 % later", "pbmc4k_10x"
SHARE, N_LATENT, N_NEIGHBORS = 0.2, 20, 15
TOLERANCE = 1e-7


def neighbor_types(
    later: npt.NDArray[np.float64], first: npt.NDArray[np.float64], types: npt.NDArray[np.object_]
) -> npt.NDArray[np.object_]:
    """Return the most frequent type among the 15 nearest first cells of each later cell; the nearest decides a tie.

    Parameters
    ----------
    later, first
        Embeddings (m, k) and (n, k).
    types
        Types of the first cells, (n,).
    """
    from cellsmith.math.graph import cross_knn

    indices = cross_knn(later, first, N_NEIGHBORS, exact_below=1_000_000, seed=0)[0]
    return np.array([pd.Series(types[row]).value_counts(sort=True).index[0] for row in indices], dtype=object)


def identity_gap(
    fitted: npt.NDArray[np.float64], placed: npt.NDArray[np.float64], eigenvalues: npt.NDArray[np.float64]
) -> float:
    """Return how far training cells that pass through the query miss their rows, but for the self term.

    Fitted minus placed coordinates have to be delta_i x_ij / theta_j with one number delta_i a cell (Eq. 15). It is
    solved for, and what it leaves is divided by the largest coordinate.

    Parameters
    ----------
    fitted, placed
        Coordinates (n, k).
    eigenvalues
        theta, (k,), per feature.
    """
    direction = fitted / eigenvalues
    delta = ((fitted - placed) * direction).sum(axis=1) / np.maximum((direction**2).sum(axis=1), 1e-300)
    return float(np.abs(fitted - placed - delta[:, None] * direction).max() / np.abs(fitted).max())


def queries(seeds: Iterable[int], *, directory: Path, store: Store) -> None:
    """Hold out a fifth of the cells under the logistic mask; run what is not in the table yet.

    Parameters
    ----------
    seeds
        Seeds of mask and cut.
    directory
        The benchmark data directory.
    store
        Where the rows go.
    """
    from cellsmith.model import BCPCA

    complete = read(directory, FILE)
    types = np.asarray(complete.labels)
    for seed in seeds:
        if store.has(task=TASK, file=FILE, seed=seed):
            continue
        case = masked(complete, "logistic", masks.MECHANISMS["logistic"], seed=seed, task=TASK)
        order = Streams(seed).numpy("split").permutation(len(types))
        cut = round(SHARE * len(types))
        later, first = np.sort(order[:cut]), np.sort(order[cut:])
        every = ad.AnnData(case.values)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CellsmithWarning)
            joint = _fit(BCPCA, every, seed).get_latent_representation()
            part = every[first].copy()
            model = _fit(BCPCA, part, seed)
            fitted = np.asarray(model.get_latent_representation(), dtype=np.float64)
            placed, again = (model.get_latent_representation(x) for x in (every[later].copy(), every[first].copy()))
        own = types[later]
        values = {
            "agreement_joint": float((neighbor_types(joint[later], joint[first], types[first]) == own).mean()),
            "agreement_later": float((neighbor_types(placed, fitted, types[first]) == own).mean()),
            "placed": float(np.isfinite(placed).all(axis=1).mean()),
            "identity": identity_gap(fitted, np.asarray(again, dtype=np.float64), _eigenvalues(model)),
        }
        store.record(TASK, SimpleNamespace(file=FILE, seed=seed), "BC logistic", values)


def _fit(model_class: Any, cells: ad.AnnData, seed: int) -> Any:
    model_class.setup_anndata(cells, mask="nan")
    # the identity holds for eigenvectors, and so as well as they are found
    model = model_class(cells, n_latent=N_LATENT, compare=False, tol=TOLERANCE, dtype="float64")
    model.train(max_iter=300, seed=seed)
    return model


def _eigenvalues(model: Any) -> npt.NDArray[np.float64]:
    block = model.results().uns
    return np.asarray(block["eigenvalues"], dtype=np.float64)[:N_LATENT]
