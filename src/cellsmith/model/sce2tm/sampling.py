"""Counts drawn from a trained scE2TM: new cells, and observed cells once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from cellsmith import _record
from cellsmith._errors import SetupError, nearest
from cellsmith._rng import Streams, resolve_seed
from cellsmith.model.sce2tm import equations as eq
from cellsmith.model.sce2tm.coding import positions

__all__ = ["SamplingMixin"]

# Random numbers are drawn for this many cells at a time, whatever batch the decoder sees.
CHUNK = 1024


class SamplingMixin:
    """Queries of :class:`cellsmith.model.SCE2TM` that draw counts."""

    def generate(
        self,
        n_cells: int | None = None,
        *,
        condition: Mapping[str, Any] | None = None,
        conditions: pd.DataFrame | None = None,
        topics: str | Sequence[str] | None = None,
        library_size: float | None = None,
        batch_size: int | None = None,
        seed: Any = 0,
    ) -> AnnData:
        """Draw new cells from the posteriors of training cells (T22).

        A training cell is drawn, then its topic scores from its posterior, then counts of that expression. For
        synthesis with a learned prior see :class:`cellsmith.model.SCLD`.

        Parameters
        ----------
        n_cells
            How many; None: as many as there are registered cells, or rows of ``conditions``.
        condition
            Registered column (batch, covariates) -> value that the drawn training cells have.
        conditions
            Table of such values, one row a new cell; instead of ``condition``.
        topics
            Only from training cells whose largest topic is one of these.
        library_size
            Total count of every new cell; None: that of the training cell, over the modelled genes.
        batch_size
            Cells a forward pass when the training cells are encoded.
        seed
            Seed of the draw.

        Returns
        -------
        AnnData of counts (n_cells, V modelled genes) with the registered columns, ``.obs["is_synthetic"]``,
        ``.obsm["X_sce2tm"]`` and ``.uns["sce2tm"]``.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If the model has no training object, a column, value or topic is not known, or no training cell fits.
        """
        self._require_trained("generate")
        if self.adata is None:
            raise SetupError(
                "generate reads the training cells. Load the model with them: SCE2TM.load(path, adata=...)."
            )
        streams = Streams(resolve_seed(seed))
        mu, theta = self._encode(batch_size=batch_size)
        allowed = np.ones(len(mu), dtype=bool)
        if topics is not None:
            topics = [topics] if isinstance(topics, str) else topics
            allowed &= np.isin(theta.argmax(axis=1), [self._topic_number(name) for name in topics])
        picked = self._pick(n_cells, condition, conditions, allowed=allowed, generator=streams.numpy("sample", 0))
        x, drawn = self._draw_counts(None, picked, library_size=library_size, streams=streams)
        obs = pd.DataFrame(
            {name: column.to_numpy()[picked] for name, column in self._registered_columns().items()},
            index=[f"sce2tm_{i}" for i in range(len(picked))],
        )
        adata = AnnData(X=x, obs=obs, var=self._modelled_var())
        result = _record.Result(
            method="sce2tm",
            obs={"is_synthetic": np.ones(len(picked), dtype=bool)},
            obsm={"X_{k}": drawn},
            uns={
                "params": {"condition": dict(condition or {}), "topics": list(topics or []), "seed": streams.seed},
                "classes": np.array(self._topic_names(), dtype=object),
                "provenance": self._provenance(inputs=self.registry.get("setup_args", {})),
            },
        )
        _record.write(adata, "sce2tm", result)
        return adata

    def _topic_number(self, name: str) -> int:
        names = self._topic_names()
        if name not in names:
            raise SetupError(f"topics names {name!r}. {nearest(name, names)}")
        return names.index(name)

    def _registered_columns(self) -> dict[str, pd.Series]:
        """Return the registered columns of the training object."""
        setup = self.registry["setup_args"]
        found = {}
        for argument in ("batch_key", "categorical_covariate_keys"):
            given = setup.get(argument)
            place = (setup.get("modalities") or {}).get(argument)
            carrier = self.adata.mod[place] if place is not None else self.adata
            found |= {name: carrier.obs[name] for name in ([given] if isinstance(given, str) else given or ())}
        return found

    def _modelled_var(self) -> pd.DataFrame:
        carrier = self.adata.mod[self._count_modality] if hasattr(self.adata, "mod") else self.adata
        return carrier.var.iloc[self.gene_index_].copy()

    def _pick(
        self,
        n_cells: int | None,
        condition: Mapping[str, Any] | None,
        conditions: pd.DataFrame | None,
        *,
        allowed: np.ndarray,
        generator: np.random.Generator,
    ) -> np.ndarray:
        """Draw training cells with replacement, one for each new cell."""
        if conditions is not None:
            if condition is not None or (n_cells is not None and n_cells != len(conditions)):
                raise SetupError("conditions gives one row a cell; leave out condition= and n_cells=.")
            picked = np.empty(len(conditions), dtype=np.int64)
            rows = pd.MultiIndex.from_frame(conditions)
            for values in rows.unique():
                place = np.flatnonzero(rows == values)
                fits = allowed & self._fits(dict(zip(conditions.columns, values, strict=True)))
                picked[place] = _draw(fits, len(place), generator)
            return picked
        n = len(allowed) if n_cells is None else int(n_cells)
        if n < 1:
            raise SetupError(f"n_cells={n_cells!r}; expected at least 1.")
        return _draw(allowed & self._fits(condition or {}), n, generator)

    def _fits(self, condition: Mapping[str, Any]) -> np.ndarray:
        """Return which training cells have the values of a condition (n,)."""
        columns, fits = self._registered_columns(), np.full(self.adata.n_obs, True)
        for name, value in condition.items():
            if name not in columns:
                raise SetupError(f"condition names {name!r}, which is no registered column. {nearest(name, columns)}")
            own = (columns[name] == value).to_numpy()
            if not own.any():
                raise SetupError(f"No training cell has {name} == {value!r}. {nearest(value, columns[name].unique())}")
            fits &= own
        return fits

    @torch.no_grad()
    def _draw_counts(
        self, adata: Any, rows: np.ndarray, *, library_size: float | None, streams: Streams
    ) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Draw z, then counts, for cells of an object; returns counts (n, V) and theta (n, K)."""
        codes, parts, shares, start = self._batch_codes(adata)[rows], [], [], 0
        for number, (x, tensors) in enumerate(self._inputs(adata, rows, CHUNK)):
            mean, log_variance = (t.cpu() for t in self.module.eval().encoder(x))
            z = eq.draw_topics(mean, log_variance, generator=streams.torch("sample", 1, number))
            theta, own = eq.proportions(z.double()).float().numpy(), codes[start : start + len(z)]
            expected = self._express(theta, batch_codes=own, mass=x.sum(dim=1).cpu().numpy(), library_size=1.0)
            totals = self.module.counts(tensors)[0].sum(dim=1).cpu().numpy()
            totals = totals if library_size is None else np.full(len(z), library_size)
            parts.append(self._counts_of(expected, np.rint(totals), streams.numpy("sample", 2, number)))
            shares.append(theta)
            start += len(z)
        return sparse.vstack(parts, format="csr"), np.concatenate(shares)

    def _counts_of(self, shares: np.ndarray, totals: np.ndarray, generator: np.random.Generator) -> sparse.csr_matrix:
        """Draw counts (n, V) of given expected totals: multinomial, or negative binomial where the model is."""
        p = shares.astype(np.float64)
        # A cell of a share that underflowed everywhere has no law; it stays empty.
        sums = p.sum(axis=1, keepdims=True)
        p = np.divide(p, sums, out=np.full_like(p, 1.0 / p.shape[1]), where=sums > 0)
        if self.module.gene_likelihood == "nb":
            inverse = self.module.log_theta.detach().exp().double().cpu().numpy()
            mean = p * totals[:, None]
            drawn = generator.poisson(generator.gamma(inverse, mean / inverse))
        else:
            drawn = generator.multinomial(totals.astype(np.int64), p)
        return sparse.csr_matrix(drawn.astype(np.float32))

    def posterior_predictive_sample(
        self,
        adata: Any = None,
        *,
        indices: Any = None,
        n_samples: int = 1,
        batch_size: int | None = None,
        seed: Any = 0,
    ) -> Any:
        """Draw the counts of observed cells once more from their own posterior.

        Parameters
        ----------
        adata
            Cells; None is the training object.
        indices
            Positions of the cells; None is all.
        n_samples
            Draws a cell.
        batch_size
            Cells are drawn 1,024 at a time whatever is given, so that the answer does not depend on it.
        seed
            Seed of the draw.

        Returns
        -------
        :class:`sparse.GCXS` (n, G) or (n, G, n_samples) over all registered genes, as
        :class:`scvi.criticism.PosteriorPredictiveCheck` expects; genes that are not modelled are 0.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            If the cells cannot be used.
        """
        import sparse as pydata_sparse

        self._require_trained("posterior_predictive_sample")
        streams, samples = Streams(resolve_seed(seed)), []
        n = (self.adata if adata is None else adata).n_obs
        order = positions(indices, n)
        n_genes = len(self._training_genes())
        for k in range(n_samples):
            child = Streams(streams.integer("sample", k))
            drawn = self._draw_counts(adata, order, library_size=None, streams=child)[0].tocoo()
            wide = sparse.coo_matrix((drawn.data, (drawn.row, self.gene_index_[drawn.col])), (len(order), n_genes))
            samples.append(pydata_sparse.GCXS.from_scipy_sparse(wide.tocsr()))
        return samples[0] if n_samples == 1 else pydata_sparse.stack(samples, axis=-1)


def _draw(fits: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    cells = np.flatnonzero(fits)
    if not len(cells):
        raise SetupError("No training cell fits condition and topics together. Ask for fewer of them.")
    return cells[generator.integers(len(cells), size=n)]
