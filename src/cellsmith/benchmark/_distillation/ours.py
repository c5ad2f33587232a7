"""scDD as it enters the benchmark: one training a cut, however many sets are distilled from it."""

from __future__ import annotations

from functools import partial
from typing import Any

import anndata as ad

__all__ = ["OURS", "our_methods"]

OURS: dict[str, dict[str, Any]] = {
    "scdd": {},
    "scdd_step_0": {"max_steps": 0},
    "scdd_codes_only": {"residual": False},
    "scdd_paper": {"variant": "paper"},
}
"""Method -> what it passes to ``SCDD.distill``; the second is the start of the first, before any optimisation."""


class OneFit:
    """SCDD, trained anew only where the training cells are others.

    Parameters
    ----------
    labels_key
        Column of ``.obs`` with the class.
    """

    def __init__(self, labels_key: str) -> None:
        self._labels_key = labels_key
        self._train: ad.AnnData | None = None
        self._model: Any = None

    def model(self, train: ad.AnnData, rng: int) -> Any:
        """Return the model of these training cells."""
        if self._train is not train:
            from cellsmith.model import SCDD

            own = train.copy()
            SCDD.setup_anndata(own, labels_key=self._labels_key)
            self._model = SCDD(own)
            self._model.train(seed=rng, enable_progress_bar=False)
            self._train = train
        return self._model


def distilled(train: ad.AnnData, n_per_class: int, rng: int, *, fit: OneFit, options: dict[str, Any]) -> ad.AnnData:
    """Train, or take the trained model, and distil."""
    return fit.model(train, rng).distill(n_per_class, seed=rng, **options)


def our_methods(labels_key: str) -> dict[str, Any]:
    """Return the variants of scDD by name; all share one training a cut."""
    fit = OneFit(labels_key)
    return {name: partial(distilled, fit=fit, options=options) for name, options in OURS.items()}
