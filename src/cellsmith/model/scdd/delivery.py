"""From profiles to the AnnData that is handed back: depth, integer counts, soft labels, provenance of the cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.spatial.distance import cdist

from cellsmith import _record
from cellsmith._errors import SetupError
from cellsmith._rng import Streams
from cellsmith.math import counts, matching
from cellsmith.model.scdd.profiles import Cells
from cellsmith.model.scdd.request import Plan

__all__ = ["Delivered", "assemble", "check_library", "draw_counts", "libraries", "new_object", "teacher"]

N_FOLDS = 5
TEACHER_STEPS = 200
N_NEAREST = 5


def check_library(library_size: Any, n_profiles: int) -> None:
    """Refuse depths that are not positive, or not one a profile.

    Raises
    ------
    SetupError
        With the first bad value.
    """
    if isinstance(library_size, str):
        return
    values = np.asarray(library_size, dtype=float)
    if values.shape not in ((), (n_profiles,)):
        raise SetupError(f"library_size has the shape {values.shape}; expected one number or {n_profiles} of them.")
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)).reshape(-1))
    if len(bad):
        raise SetupError(
            f"library_size of profile {bad[0]} is {values.reshape(-1)[bad[0]]}; expected a positive finite number."
        )


def libraries(plan: Plan, cells: Cells, *, groups: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the depth L of each profile (M,), counts.

    Parameters
    ----------
    plan
        ``library_size`` and ``max_library``.
    cells
        What was distilled.
    groups
        Profile of each cell (n,).
    labels
        Class of each profile (M,).
    """
    totals, wanted, n = counts.library_totals(cells.counts), plan.library_size, len(labels)
    if not isinstance(wanted, str):
        return np.broadcast_to(np.asarray(wanted, dtype=float), (n,)).copy()
    medians = np.array([np.median(totals[cells.labels == k]) for k in labels])
    if wanted == "median":
        return medians
    kept = groups >= 0
    sums = np.bincount(groups[kept], weights=totals[kept], minlength=n)
    # A profile that no cell is nearest to (random codes) stands for none; it gets the depth of one cell.
    sums = np.where(sums > 0, sums, medians)
    return sums if wanted == "sum" else np.minimum(sums, plan.max_library)


def draw_counts(
    rho: np.ndarray, library: np.ndarray, *, mode: str, theta: np.ndarray, generator: np.random.Generator
) -> sparse.csr_matrix:
    """Eq. (14): integer counts of profiles.

    Parameters
    ----------
    rho
        Shares (M, G), rows add up to the mass of the profile.
    library
        L (M,).
    mode
        "round" (largest remainder, no randomness), "multinomial" or "nb".
    theta
        Inverse dispersions (G,) or (M, G), for "nb".
    generator
        Source of randomness.

    Returns
    -------
    CSR int32 (M, G).
    """
    mass = rho.sum(axis=1)
    if mode == "nb":
        return counts.nb_counts(rho, theta, library * mass, generator=generator)
    if mode == "multinomial":
        totals = np.maximum(1, np.rint(library * mass)).astype(np.int64)
        x = np.asarray(generator.multinomial(totals, rho / mass[:, None]), dtype=np.int32)
    else:
        x = matching.round_profiles(rho * library[:, None])
    return sparse.csr_matrix(x)


def teacher(cells: Cells, *, n_classes: int, scale: float, streams: Streams) -> np.ndarray:
    """Return class probabilities of cells from a logistic regression on components that never saw the cell's label.

    Parameters
    ----------
    cells
        Cells (n).
    n_classes
        K.
    scale
        s of the log view.
    streams
        "split" draws the five folds, class by class.

    Returns
    -------
    (n, K), rows sum to 1.
    """
    from sklearn.linear_model import LogisticRegression

    points = matching.count_components(cells.counts, scale=scale, seed=streams.integer("init"))
    generator, fold = streams.numpy("split", 1), np.empty(len(points), dtype=np.int64)
    for k in range(n_classes):
        rows = np.flatnonzero(cells.labels == k)
        fold[generator.permutation(rows)] = np.arange(len(rows)) % N_FOLDS
    out = np.zeros((len(points), n_classes))
    for f in range(N_FOLDS):
        fit, rest = fold != f, fold == f
        if rest.any():
            known = np.unique(cells.labels[fit])
            if len(known) < 2:
                out[np.ix_(rest, known)] = 1.0
                continue
            reader = LogisticRegression(C=1.0, max_iter=TEACHER_STEPS).fit(points[fit], cells.labels[fit])
            out[np.ix_(rest, reader.classes_)] = reader.predict_proba(points[rest])
    return out


@dataclass(frozen=True)
class Delivered:
    """Finished profiles.

    Attributes
    ----------
    rho
        Shares (M, G), float64.
    library
        L (M,), counts.
    labels, batch
        Codes (M,).
    latent, code
        Where the code leads, and the code (M, d), the first in the units of the encoder.
    probabilities
        Soft labels (M, K).
    groups
        Profile of each distilled cell (n,).
    """

    rho: np.ndarray
    library: np.ndarray
    labels: np.ndarray
    batch: np.ndarray
    latent: np.ndarray
    code: np.ndarray
    probabilities: np.ndarray
    groups: np.ndarray


def assemble(
    model: Any, made: Delivered, *, cells: Cells, plan: Plan, key: str, block: Mapping[str, Any], streams: Streams
) -> AnnData:
    """Return the distilled AnnData.

    Parameters
    ----------
    model
        The trained model.
    made
        Finished profiles.
    cells
        What was distilled.
    plan
        How.
    key
        Name of the outputs.
    block
        Entries of ``.uns[key]``.
    streams
        "sample" draws counts.
    """
    n = len(made.labels)
    theta = model.module.autoencoder.log_theta[0].detach().exp().cpu().double().numpy() if model.owns_decoder else None
    if plan.count_mode == "nb" and theta is None:
        raise SetupError("count_mode='nb' needs the dispersions of SCDD's own decoder. Type count_mode='multinomial'.")
    x = draw_counts(made.rho, made.library, mode=plan.count_mode, theta=theta, generator=streams.numpy("sample"))
    n_source = np.bincount(made.groups[made.groups >= 0], minlength=n)
    sizes = np.bincount(cells.labels, minlength=len(model.classes))
    per_class = np.bincount(made.labels, minlength=len(model.classes))
    out = new_object(model, x, labels=made.labels, batch=made.batch if plan.within_batch else None, prefix=key)
    # n_k / c_k; where profiles stand for one batch each, what their cells are of the class would differ by batch.
    weight = sizes[made.labels] / per_class[made.labels]
    nearest = _nearest_cells(model, made, cells)
    assignment = np.full(model.n_registered, -1, dtype=np.int32)
    assignment[cells.positions] = made.groups
    result = _record.Result(
        method="scdd",
        obs={
            "{k}_weight": weight,
            "{k}_n_source_cells": n_source.astype(np.int64),
            "{k}_library": made.library,
            "{k}_confidence": made.probabilities[np.arange(n), made.labels],
            "is_synthetic": np.ones(n, dtype=bool),
        },
        obsm={"X_{k}": made.latent, "{k}_code": made.code, "{k}_proba": made.probabilities},
        layers={
            "{k}_expected": (made.rho * made.library[:, None]).astype(np.float32),
            "{k}_log": np.log1p(model.module.scale * made.rho).astype(np.float32),
        },
        uns={
            **block,
            "classes": np.asarray(model.classes, dtype=str),
            "class_counts": {
                "class": np.asarray(model.classes, dtype=str),
                "source": sizes,
                "distilled": per_class,
            },
            "source_index": cells.positions[nearest].astype(np.int64),
            "assignment": assignment,
            "source_obs_names_sha256": model.source_hash(),
        },
    )
    _record.write(out, key, result)
    return out


def _nearest_cells(model: Any, made: Delivered, cells: Cells) -> np.ndarray:
    """Return, for each profile, the rows of the 5 nearest cells of its class in latent space, nearest first."""
    centre, scale = model.module.latent_centre.cpu().numpy(), model.module.latent_scale.cpu().numpy()
    standard = (made.latent - centre) / scale
    out = np.zeros((len(made.labels), N_NEAREST), dtype=np.int64)
    for j, k in enumerate(made.labels):
        rows = np.flatnonzero(cells.labels == k)
        order = np.argsort(cdist(standard[j : j + 1], cells.mean[rows])[0], kind="stable")[:N_NEAREST]
        # A class of fewer cells repeats its last one.
        out[j] = rows[np.pad(order, (0, N_NEAREST - len(order)), mode="edge")]
    return out


def new_object(
    model: Any, x: sparse.csr_matrix, *, labels: np.ndarray, batch: np.ndarray | None, prefix: str
) -> AnnData:
    """Return an AnnData of counts with the genes, labels and batches of training, and their colours.

    Parameters
    ----------
    model
        The trained model.
    x
        Counts (M, G).
    labels, batch
        Codes (M,); no batch column for None.
    prefix
        Of the names.
    """
    setup, source = model.registry["setup_args"], model.count_object()
    obs = {setup["labels_key"]: pd.Categorical.from_codes(labels, categories=model.classes)}
    if batch is not None and setup["batch_key"] is not None:
        obs[setup["batch_key"]] = pd.Categorical.from_codes(batch, categories=model.batches)
    names = pd.Index([f"{prefix}_{i}" for i in range(len(labels))])
    var = pd.DataFrame(index=pd.Index(model._training_genes().astype(str))) if source is None else source.var.copy()
    adata = AnnData(X=x, obs=pd.DataFrame(obs, index=names), var=var)
    if setup["layer"] is not None:
        adata.layers[setup["layer"]] = x.copy()
    for column in obs:
        colours = None if source is None else source.uns.get(f"{column}_colors")
        if colours is not None:
            adata.uns[f"{column}_colors"] = np.array(colours)
    return adata
