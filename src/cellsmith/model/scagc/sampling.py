"""Counts drawn from the decoder of a trained SCAGC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from cellsmith import _record
from cellsmith._errors import SetupError, nearest
from cellsmith._rng import Streams, resolve_seed
from cellsmith.data.checks import counts_carrier, place_of
from cellsmith.math.counts import nb_counts

__all__ = ["SamplingMixin"]

# Random numbers are drawn for this many cells at a time, whatever batch the decoder sees.
CHUNK = 1024
CLUSTER = "cluster"


class SamplingMixin:
    """Queries of :class:`cellsmith.model.SCAGC` that draw counts."""

    def generate(
        self,
        n_cells: int | None = None,
        *,
        condition: Mapping[str, Any] | None = None,
        conditions: pd.DataFrame | None = None,
        library_size: float | None = None,
        batch_size: int | None = None,
        seed: Any = 0,
    ) -> AnnData:
        """Draw new cells: a training cell is drawn, and counts at its latent.

        That is a posterior predictive and no prior: nothing between the training cells is ever drawn. For synthesis
        with a learned prior see :class:`cellsmith.model.SCLD`.

        Parameters
        ----------
        n_cells
            How many; None: as many as there are training cells, or rows of ``conditions``.
        condition
            "cluster" or a registered column -> value that the drawn training cells have.
        conditions
            Table of such values, one row a new cell; instead of ``condition``.
        library_size
            Expected total of every new cell, counts; None: that of the drawn cell.
        batch_size
            Cells are drawn 1,024 at a time whatever is given, so that the answer does not depend on it.
        seed
            Seed of the draw.

        Returns
        -------
        AnnData of counts (n_cells, G) with the registered columns, ``.obs["scagc"]`` (where there are clusters),
        ``.obs["is_synthetic"]``, ``.obsm["X_scagc"]`` and ``.uns["scagc"]``.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If nothing was trained, the training object is gone, or a column or value is not known.
        """
        self._require_trained("generate")
        self._require_decoder("generate")
        if self.adata is None or not self._is_reference(None):
            raise SetupError(
                "generate reads the training cells. Load the model with them: SCAGC.load(path, adata=...)."
            )
        streams = Streams(resolve_seed(seed))
        picked = self._pick(n_cells, condition, conditions, generator=streams.numpy("sample", 0))
        z = self.module.fitted.z.cpu().numpy()[picked]
        library = self._libraries_of(None, picked) if library_size is None else np.full(len(picked), library_size)
        x = self._counts_at(z, self._levels_of(None, picked), library, streams=streams)
        columns = {name: values.to_numpy()[picked] for name, values in self._columns_of_training().items()}
        carrier = counts_carrier(self.adata, self.registry["setup_args"].get("modalities"))
        adata = AnnData(
            X=x,
            obs=pd.DataFrame(columns, index=[f"scagc_{i}" for i in range(len(picked))]),
            var=carrier.var.copy(),
        )
        obs: dict[str, Any] = {"is_synthetic": np.ones(len(picked), dtype=bool)}
        if self.n_clusters_ is not None:
            obs["{k}"] = self.predict().iloc[picked].to_numpy()
        result = _record.Result(
            method="scagc",
            obs=obs,
            obsm={"X_{k}": z},
            uns={
                "params": {"condition": dict(condition or {}), "seed": streams.seed},
                "classes": self.classes,
                "provenance": self._provenance(inputs=self.registry.get("setup_args", {})),
            },
        )
        _record.write(adata, "scagc", result)
        return adata

    def _counts_at(
        self, z: np.ndarray, levels: np.ndarray, library: np.ndarray, *, streams: Streams
    ) -> sparse.csr_matrix:
        """Draw counts (n, G) at latents (n, d)."""
        parts = []
        for number, start in enumerate(range(0, len(z), CHUNK)):
            rows = slice(start, start + CHUNK)
            decoded = self._decode(z[rows], levels[rows])
            dropout = decoded.dropout_logits
            parts.append(
                nb_counts(
                    decoded.rho.numpy(),
                    decoded.theta.numpy(),
                    decoded.total(torch.from_numpy(library[rows])).numpy(),
                    dropout_logits=None if dropout is None else dropout.numpy(),
                    generator=streams.numpy("sample", 1, number),
                )
            )
        return sparse.vstack(parts, format="csr").astype(np.float32)

    def _columns_of_training(self) -> dict[str, pd.Series]:
        """Return the registered columns of the training object, without the clusters."""
        setup, found = self.registry["setup_args"], {}
        for argument in ("batch_key", "categorical_covariate_keys"):
            given = setup.get(argument)
            obs = place_of(self.adata, setup.get("modalities"), argument).obs
            found |= {name: obs[name] for name in ([given] if isinstance(given, str) else given or ())}
        return found

    def _pick(
        self,
        n_cells: int | None,
        condition: Mapping[str, Any] | None,
        conditions: pd.DataFrame | None,
        *,
        generator: np.random.Generator,
    ) -> np.ndarray:
        """Draw training cells with replacement, one for each new cell."""
        if conditions is not None:
            if condition is not None or n_cells not in (None, len(conditions)):
                raise SetupError("conditions gives one row a cell; leave out condition= and n_cells=.")
            rows = conditions.to_dict(orient="records")
            return np.array([generator.choice(self._cells_with(row)) for row in rows], dtype=np.int64)
        n = len(self.module.fitted.z) if n_cells is None else int(n_cells)
        if n < 1:
            raise SetupError(f"n_cells={n_cells!r}; expected at least 1. Type n_cells=100.")
        return generator.choice(self._cells_with(condition or {}), size=n)

    def _cells_with(self, condition: Mapping[str, Any]) -> np.ndarray:
        """Return the positions of the training cells that a condition allows."""
        columns = self._columns_of_training()
        if self.n_clusters_ is not None:
            columns[CLUSTER] = self.predict()
        fits = np.ones(len(self.module.fitted.z), dtype=np.bool_)
        for name, value in condition.items():
            if name not in columns:
                raise SetupError(f"condition names {name!r}, which is no registered column. {nearest(name, columns)}")
            own = np.asarray(columns[name].astype(object) == value)
            if not own.any():
                raise SetupError(f"No training cell has {name}={value!r}. {nearest(value, columns[name].unique())}")
            fits &= own
        if not fits.any():
            raise SetupError(f"No training cell has all of {dict(condition)}. Ask for fewer of them.")
        return np.flatnonzero(fits)

    def posterior_predictive_sample(
        self,
        adata: Any = None,
        *,
        indices: Any = None,
        n_samples: int = 1,
        batch_size: int | None = None,
        seed: Any = 0,
    ) -> Any:
        """Draw the counts of observed cells once more.

        Parameters
        ----------
        adata
            Cells; None is the training object.
        indices
            Positions of the cells; None is all.
        n_samples
            Draws a cell.
        batch_size
            Cells a forward pass when new cells are placed.
        seed
            Seed of the draw.

        Returns
        -------
        :class:`sparse.GCXS` (n, G) or (n, G, n_samples), as :class:`scvi.criticism.PosteriorPredictiveCheck` expects.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If nothing was trained, or the cells cannot be used.
        """
        import sparse as pydata_sparse

        self._require_trained("posterior_predictive_sample")
        self._require_decoder("posterior_predictive_sample")
        streams = Streams(resolve_seed(seed))
        n = (self.adata if adata is None else adata).n_obs
        rows = np.arange(n) if indices is None else np.arange(n)[indices]
        z, levels = self._latents(adata, rows, batch_size), self._levels_of(adata, rows)
        library, drawn = self._libraries_of(adata, rows), []
        for number in range(n_samples):
            child = Streams(streams.integer("sample", number))
            counts = self._counts_at(z, levels, library, streams=child)
            drawn.append(pydata_sparse.GCXS.from_scipy_sparse(counts))
        return drawn[0] if n_samples == 1 else pydata_sparse.stack(drawn, axis=-1)
