"""New counts from a trained scSiameseClu: cells of a cluster, and observed cells once more."""

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
from cellsmith.data.checks import counts_carrier
from cellsmith.math.counts import nb_counts
from cellsmith.model.scsiameseclu.training import BLOCK

__all__ = ["SamplingMixin"]


class SamplingMixin:
    """Queries of :class:`cellsmith.model.ScSiameseClu` that draw counts."""

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
        """Draw new cells: an embedding from the shrunken Gaussian of a cluster, then counts.

        For synthesis in earnest see :class:`cellsmith.model.SCLD`, which learns the distribution of the embedding.

        Parameters
        ----------
        n_cells
            How many; None: as many as in training, or rows of ``conditions``.
        condition
            ``{"cluster": "3"}``, and ``{batch_key: batch}`` where one is registered. What is left open is as in
            training.
        conditions
            The same as a table, one row a cell.
        library_size
            Expected total over the modelled genes; None: that of training cells.
        batch_size
            Without effect: cells are drawn 1,024 at a time.
        seed
            Seed of the draw.

        Returns
        -------
        AnnData of counts (n_cells, p modelled genes), with ``.obs["is_synthetic"]``, the cluster, the batch and the
        embedding.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            For an unknown column, cluster or batch, or a number below 1.
        """
        self._require_trained("generate")
        streams = Streams(resolve_seed(seed))
        cluster, batch, rows = self._requested(n_cells, condition, conditions, streams)
        share = float(self.module.modelled_share)
        library = self.library_[rows] * share if library_size is None else np.full(len(rows), float(library_size))
        noise = streams.numpy("sample", 1).standard_normal((len(rows), self.module.n_latent))
        root = self.gaussians_["root"][cluster]
        z = (self.gaussians_["mean"][cluster] + np.einsum("nij,nj->ni", root, noise)).astype(np.float32)
        x = self._drawn(z, batch, library, streams)
        names, setup = self._class_names(), self.registry["setup_args"]
        obs = pd.DataFrame(index=[f"{self._method}_{i}" for i in range(len(rows))])
        if setup.get("batch_key") is not None:
            obs[setup["batch_key"]] = pd.Categorical.from_codes(batch, categories=self._batch_names())
        out = AnnData(X=x, obs=obs, var=self._modelled_var())
        result = _record.Result(
            method=self._method,
            obs={"is_synthetic": np.ones(len(rows), bool), "{k}": pd.Categorical.from_codes(cluster, categories=names)},
            obsm={"X_{k}": z},
            uns={
                "params": {"condition": dict(condition or {}), "seed": streams.seed},
                "classes": np.array(names, dtype=object),
                "library_size": library,
                "provenance": self._provenance(inputs=setup),
            },
        )
        _record.write(out, self._method, result)
        return out

    def _modelled_var(self) -> pd.DataFrame:
        genes = self._training_genes()[self.gene_index_]
        if self.adata is None:
            return pd.DataFrame(index=genes)
        return counts_carrier(self.adata, self._setup("modalities")).var.loc[genes].copy()

    def _requested(
        self,
        n_cells: int | None,
        condition: Mapping[str, Any] | None,
        conditions: pd.DataFrame | None,
        streams: Streams,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return cluster, batch and a training cell for every new one; what is left open is as in that cell."""
        if conditions is not None and (condition is not None or n_cells not in (None, len(conditions))):
            raise SetupError("conditions gives one row a cell; leave out condition= and n_cells=.")
        n = len(conditions) if conditions is not None else len(self.codes_) if n_cells is None else int(n_cells)
        if n < 1:
            raise SetupError(f"n_cells={n_cells!r}; expected at least 1.")
        given = {k: [v] * n for k, v in (condition or {}).items()}
        table = pd.DataFrame(given) if conditions is None else conditions
        batch_key = self._setup("batch_key")
        valid = {"cluster": self._class_names()} | ({batch_key: self._batch_names()} if batch_key else {})
        wanted = {}
        for name in table:
            if name not in valid:
                raise SetupError(f"condition names {name!r}, which is not registered. {nearest(name, valid)}")
            wanted[name] = pd.Index(valid[name]).get_indexer(table[name])
            if (wanted[name] < 0).any():
                value = table[name].iloc[int(np.argmax(wanted[name] < 0))]
                raise SetupError(f"{name}={value!r}. {nearest(value, valid[name])}")
        rows, generator = np.empty(n, dtype=np.int64), streams.numpy("sample", 0)
        cluster = wanted.get("cluster", np.full(n, -1))
        for c in np.unique(cluster):
            pool = np.arange(len(self.codes_)) if c < 0 else np.flatnonzero(self.codes_ == c)
            place = np.flatnonzero(cluster == c)
            rows[place] = pool[generator.integers(len(pool), size=len(place))]
        batch = wanted.get(batch_key, self.batches_[rows]) if batch_key else np.zeros(n, dtype=np.int64)
        return self.codes_[rows].astype(np.int64), np.asarray(batch, dtype=np.int64), rows

    @torch.no_grad()
    def _drawn(self, z: np.ndarray, batch: np.ndarray, library: np.ndarray, streams: Streams) -> sparse.csr_matrix:
        """Draw counts (n, p) of embeddings; random numbers belong to blocks of 1,024 cells."""
        module, parts = self.module.eval(), []
        for number, start in enumerate(range(0, len(z), BLOCK)):
            part = slice(start, start + BLOCK)
            codes = torch.from_numpy(np.minimum(batch[part], module.n_batch_columns)).to(module.device)
            found = module.decode(torch.from_numpy(z[part]).to(module.device), codes)
            logits = found.dropout_logits
            drawn = nb_counts(
                found.rho.double().cpu().numpy(),
                found.theta.double().cpu().numpy(),
                library[part],
                dropout_logits=None if logits is None else logits.double().cpu().numpy(),
                generator=streams.numpy("sample", 2, number),
            )
            parts.append(drawn.astype(np.float32))
        return sparse.vstack(parts, format="csr")

    def posterior_predictive_sample(
        self,
        adata: Any = None,
        *,
        indices: Any = None,
        n_samples: int = 1,
        batch_size: int | None = None,
        seed: Any = 0,
    ) -> Any:
        """Draw the counts of observed cells once more, from what the decoder says of their embedding.

        Parameters
        ----------
        adata
            Cells; None is the training object.
        indices
            Which of them; None is all.
        n_samples
            Draws a cell.
        batch_size
            Without effect: cells are drawn 1,024 at a time.
        seed
            Seed of the draw.

        Returns
        -------
        :class:`sparse.GCXS` (n, G) or (n, G, n_samples) over all registered genes; genes that are not modelled are 0.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        """
        import sparse as pydata_sparse

        self._require_trained("posterior_predictive_sample")
        streams, placed = Streams(resolve_seed(seed)), self._placed(adata)
        rows = np.arange(len(placed.names)) if indices is None else np.arange(len(placed.names))[indices]
        library = placed.cells.library.numpy()[rows] * float(self.module.modelled_share)
        samples, n_genes = [], len(self._training_genes())
        for k in range(n_samples):
            child = Streams(streams.integer("sample", k))
            drawn = self._drawn(placed.swept.fused[rows], placed.cells.codes[rows], library, child).tocoo()
            wide = sparse.coo_matrix((drawn.data, (drawn.row, self.gene_index_[drawn.col])), (len(rows), n_genes))
            samples.append(pydata_sparse.GCXS.from_scipy_sparse(wide.tocsr()))
        return samples[0] if n_samples == 1 else pydata_sparse.stack(samples, axis=-1)
