"""Models of one training set, trained once and shared by the generators that need them."""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

import anndata as ad

from cellsmith._rng import isolated

__all__ = ["Fits"]

logger = logging.getLogger("cellsmith")

SCVI_EPOCHS = 150
SCVI_LATENT = 10
BATCH = 128


class Fits:
    """Train on demand, remember the model and what its training cost.

    Parameters
    ----------
    train
        Training cells, counts of shape (n, G); copied before a model registers them.
    labels_key, batch_key
        Columns of ``.obs``.
    seed
        Seed of every training.
    max_epochs
        Cap on the epochs of every stage, for trials; None: the full length.

    Attributes
    ----------
    seconds
        Name of a model -> CPU seconds of its training.
    """

    def __init__(
        self,
        train: ad.AnnData,
        *,
        labels_key: str,
        batch_key: str | None = None,
        seed: int = 0,
        max_epochs: int | None = None,
    ) -> None:
        self.train, self.labels_key, self.batch_key = train, labels_key, batch_key
        self.seed, self.max_epochs = seed, max_epochs
        self.seconds: dict[str, float] = {}
        self._models: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """Return a trained model.

        Parameters
        ----------
        name
            ``"scvi"``, ``"scld"``, ``"scld_guided"`` (with the classifier of post-guidance) or ``"scld_on_scvi"``.
        """
        if name not in self._models:
            source = self.get("scvi") if name == "scld_on_scvi" else None
            # The first import of these takes seconds that are no part of a training.
            from scvi.model import SCVI  # noqa: F401

            from cellsmith.model import SCLD  # noqa: F401

            started = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._models[name] = self._scvi() if name == "scvi" else self._scld(name, source)
            self.seconds[name] = time.process_time() - started
            logger.info("trained %s in %.0f CPU seconds", name, self.seconds[name])
        return self._models[name]

    def _scvi(self) -> Any:
        from scvi.model import SCVI

        data = self.train.copy()
        SCVI.setup_anndata(data, batch_key=self.batch_key, labels_key=self.labels_key)
        with isolated(self.seed):
            model = SCVI(data, n_latent=SCVI_LATENT, gene_likelihood="nb")
            epochs = min(SCVI_EPOCHS, self.max_epochs or SCVI_EPOCHS)
            model.train(epochs, accelerator="cpu", batch_size=BATCH, enable_progress_bar=False)
        return model

    def _scld(self, name: str, source: Any) -> Any:
        from cellsmith.model import SCLD

        if source is not None:
            model = SCLD.from_scvi_model(source)
        else:
            data = self.train.copy()
            SCLD.setup_anndata(data, batch_key=self.batch_key, labels_key=self.labels_key)
            model = SCLD(data, guidance_classifier=name == "scld_guided")
        model.train(self.max_epochs, accelerator="cpu", seed=self.seed, enable_progress_bar=False)
        return model
