"""scDD as it enters the benchmark: one training a cut, however many sets are distilled from it."""

from __future__ import annotations

from functools import partial
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from cellsmith.math.matching import target_sum

__all__ = ["ABLATION", "COUNTS", "MATCHING", "OURS", "OneFit", "distilled", "our_methods"]

READERS: dict[str, Any] = {"objective": "readers"}
# A hundred steps on small batches: the most that the processors allowed.
MATCHING: dict[str, Any] = {"objective": ("gradient", "distribution"), "max_steps": 100, "batch_size": 64}

OURS: dict[str, dict[str, Any]] = {
    "scdd": {},
    "scdd_readers": READERS,
    "scdd_codes_only": {**READERS, "residual": False},
    "scdd_paper": {**MATCHING, "variant": "paper"},
}
"""Method -> what it passes to ``SCDD.distill``; the first is the default, which returns step 0."""

COUNTS: dict[str, dict[str, Any]] = {"scdd_counts": {}, "scdd_thin": {"library_size": "median"}}
"""The default, read by its integer counts; at the depth of its groups, and at that of one cell."""

ABLATION: dict[str, dict[str, Any]] = {
    "readers, last of 50 steps": {**READERS, "max_steps": 50, "selection": "last"},
    "readers, from real cells": {**READERS, "init": "real"},
    "readers, from random codes": {**READERS, "init": "random"},
    "codes only, not optimised": {"residual": False},
    "codes only, 2 generator steps": {**READERS, "residual": False, "n_generator_steps": 2},
    "codes only, 10 generator steps": {**READERS, "residual": False, "n_generator_steps": 10},
    "codes only, noise level 0.3": {**READERS, "residual": False, "sigma_star": 0.3},
    "codes only, noise level 5": {**READERS, "residual": False, "sigma_star": 5.0},
    "codes only, noise level 20": {**READERS, "residual": False, "sigma_star": 20.0},
    "scdd, matching": MATCHING,
    "scdd, gradient matching": {**MATCHING, "objective": "gradient"},
    "scdd, distribution matching": {**MATCHING, "objective": "distribution"},
}
"""One part of the method changed at a time; run on the data set that settings were tried on."""


class OneFit:
    """SCDD, trained anew only where the training cells are others.

    Parameters
    ----------
    labels_key
        Column of ``.obs`` with the class.
    batch_key
        Column of ``.obs`` that encoder and decoder read, too.
    pool_kinds
        Kinds of networks that matching compares sets on; None: all.
    """

    def __init__(
        self, labels_key: str, *, batch_key: str | None = None, pool_kinds: tuple[str, ...] | None = None
    ) -> None:
        self.labels_key, self.batch_key, self.pool_kinds = labels_key, batch_key, pool_kinds
        self._train: ad.AnnData | None = None
        self._model: Any = None

    def model(self, train: ad.AnnData, rng: int) -> Any:
        """Return the model of these training cells."""
        if self._train is not train:
            from cellsmith.model import SCDD

            own = train.copy()
            SCDD.setup_anndata(own, labels_key=self.labels_key, batch_key=self.batch_key)
            self._model = SCDD(own)
            if self.pool_kinds is not None:
                self._model.pool_kinds = self.pool_kinds
            self._model.train(seed=rng, enable_progress_bar=False)
            self._train = train
        return self._model


def distilled(train: ad.AnnData, n_per_class: int, rng: int, *, fit: OneFit, options: dict[str, Any]) -> ad.AnnData:
    """Train, or take the trained model, and distil."""
    return fit.model(train, rng).distill(n_per_class, seed=rng, **options)


def read_by_counts(
    train: ad.AnnData, n_per_class: int, rng: int, *, fit: OneFit, options: dict[str, Any]
) -> ad.AnnData:
    """Distil, and let classifiers read the integer counts in place of what stood before rounding."""
    made = fit.model(train, rng).distill(n_per_class, seed=rng, **options)
    shares = made.X.toarray() / made.obs["scdd_library"].to_numpy()[:, None]
    made.layers["scdd_log"] = np.log1p(target_sum(train.n_vars) * shares).astype(np.float32)
    return made


def generator_samples(train: ad.AnnData, n_per_class: int, rng: int, *, fit: OneFit) -> ad.AnnData:
    """Draw cells of every class from the generator, at the depth of cells, and optimise nothing."""
    sizes = train.obs[fit.labels_key].value_counts(sort=False)
    names = np.repeat(sizes.index.to_numpy(dtype=object), np.minimum(n_per_class, sizes))
    return fit.model(train, rng).generate(conditions=pd.DataFrame({fit.labels_key: names}), seed=rng)


def our_methods(labels_key: str) -> dict[str, Any]:
    """Return the variants of scDD by name; all share one training a cut."""
    fit = OneFit(labels_key)
    made = {name: partial(distilled, fit=fit, options=options) for name, options in (OURS | ABLATION).items()}
    made |= {name: partial(read_by_counts, fit=fit, options=options) for name, options in COUNTS.items()}
    return {**made, "generator_samples": partial(generator_samples, fit=fit)}
