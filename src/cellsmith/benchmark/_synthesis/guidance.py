"""What guidance does: before the denoiser (weights), after it (four kinds), and without any (rare types)."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from scipy import sparse

from cellsmith.benchmark._files import Split
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._synthesis.fits import Fits
from cellsmith.benchmark._synthesis.scoring import N_COMPONENTS, Judge
from cellsmith.metrics._cells import Space, log_normalise
from cellsmith.metrics._labels import classifier

__all__ = ["post_guidance", "pre_guidance", "rare_types"]

SHOWN = ("w2", "rf_auc_pca", "precision", "recall", "coverage", "label_fidelity", "lfc_slope")
WEIGHTS = (0.0, 1.0, 1.5, 2.0, 3.0)
KINDS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "none": (None, {}),
    "density_ratio": ("density_ratio", {}),
    "density_ratio (gradient)": ("density_ratio", {"gradient": True}),
    "classifier": ("classifier", {}),
    "cycle": ("cycle", {}),
    "reject": ("reject", {}),
}
HOLISTIC = 4
"""Holistic cells for every test cell: shares of rare types need many."""


def _generate(model: Any, n: int | None, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(n, **options)


def pre_guidance(part: Split, fits: Fits, store: Store) -> None:
    """Score cells at several guidance weights; all from one model and one seed.

    Parameters
    ----------
    part, fits, store
        Cut, models, results.
    """
    judge, model = Judge(part, metrics=SHOWN), fits.get("scld_guided")
    for weight in WEIGHTS:
        cells = _generate(model, part.test.n_obs, guidance=weight, seed=part.seed)
        store.record("pre_guidance", part, f"w = {weight:g}", {k: v for k, (v, _) in judge.score(cells).items()})


def post_guidance(part: Split, fits: Fits, store: Store) -> None:
    """Score every kind of post-guidance beside none; all from one model and one seed.

    Parameters
    ----------
    part, fits, store
        Cut, models, results.
    """
    judge, model = Judge(part, metrics=SHOWN), fits.get("scld_guided")
    for name, (kind, options) in KINDS.items():
        cells = _generate(model, part.test.n_obs, post_guidance=kind, post_guidance_kwargs=options, seed=part.seed)
        store.record("post_guidance", part, name, {k: v for k, (v, _) in judge.score(cells).items()})


def rare_types(part: Split, fits: Fits, store: Store) -> None:
    """Compare the share of each type among holistic cells with that among real ones, by one classifier.

    Parameters
    ----------
    part, fits, store
        Cut, models, results. Metrics: ``share_ratio_low`` and ``share_ratio_high`` over the types with at least 1 %
        of the training cells, for holistic and for spare cells.
    """
    log = log_normalise(sparse.csr_matrix(part.train.X))
    space = Space.fit(log, N_COMPONENTS, part.seed)
    labels = part.train.obs[part.labels_key].astype(str).to_numpy(dtype=object)
    teacher = classifier(space.pca.transform(log), labels)
    names, sizes = np.unique(labels.astype(str), return_counts=True)
    names = names[sizes >= 0.01 * len(labels)]

    def shares(adata: Any) -> np.ndarray:
        found = np.asarray(teacher.predict(space.pca.transform(log_normalise(sparse.csr_matrix(adata.X))))).astype(str)
        return np.array([(found == name).mean() for name in names])

    real = shares(part.test)
    n = HOLISTIC * part.test.n_obs
    sides = {
        "SCLD": _generate(fits.get("scld"), n, condition={}, seed=part.seed),
        "real spare cells": part.spare,
    }
    for side, cells in sides.items():
        ratio = shares(cells) / np.maximum(real, 1e-9)
        values = {"share_ratio_low": float(ratio.min()), "share_ratio_high": float(ratio.max())}
        store.record("rare_types", part, side, values)
