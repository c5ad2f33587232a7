"""The public questions to DPDCAN: embeddings, clusters, centres, and cells that are made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse

from cellsmith import _record
from cellsmith._errors import NotTrainedError, PrivacyError, SetupError, nearest
from cellsmith._rng import Streams, resolve_seed
from cellsmith.data import panel as panels
from cellsmith.model.dpdcan.local import assign

__all__ = ["QueryMixin"]

ROWS = 2048


class QueryMixin:
    """Queries of :class:`cellsmith.model.DPDCAN`."""

    def _counts_of(self, adata: Any) -> sparse.csr_matrix:
        target = self._count_adata(adata)
        if target is None:
            raise SetupError("This model was loaded without cells. Hand some over: get_latent_representation(adata).")
        return panels.panel_counts(target, panels.check_private_counts(target, self._layer), self._panel)

    @torch.inference_mode()
    def _encode_counts(self, counts: sparse.csr_matrix) -> np.ndarray:
        """Return latents (n, d) float64 of panel counts (n, G)."""
        was_training = self.module.training
        self.module.eval()
        parts = []
        for start in range(0, counts.shape[0], ROWS):
            x = torch.from_numpy(counts[start : start + ROWS].toarray()).to(self.module.intercept.device)
            parts.append(self.module.encode(self.module.inputs(x)).cpu().double().numpy())
        self.module.train(was_training)
        return np.vstack(parts)

    def get_latent_representation(self, adata: Any = None, *, release: str = "local") -> np.ndarray:
        """Return the embedding of cells.

        Parameters
        ----------
        adata
            Cells with the genes of training; None is the training object.
        release
            "local": for the owner. An embedding of a training cell is computed from that cell, and no noise hides it;
            an embedding of a new cell costs the training cells nothing.

        Returns
        -------
        Array (n, n_latent), float32.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        PrivacyError
            If ``release`` asks for embeddings that may leave: there are none.
        """
        self._require_trained("get_latent_representation")
        if release != "local":
            raise PrivacyError(
                f"release={release!r}: embeddings of cells are private towards all but the cell itself, and are not "
                "released. Type release='local', or release the encoder with save()."
            )
        return self._encode_counts(self._counts_of(adata)).astype(np.float32)

    def _head(self) -> tuple[np.ndarray, float]:
        """Return centres and spread of the head in use."""
        if self._given["cluster_head"] == "dp":
            centers = self.module.centers.detach().cpu().double().numpy()
            # From the released centres alone: the spread of the cells would be a statistic that nobody paid for.
            apart = np.linalg.norm(centers[:, None] - centers, axis=2) + np.diag(np.full(len(centers), np.inf))
            return centers, max(1e-12, float(apart.min(axis=1).mean()) / 2)
        if self._local is None:
            raise NotTrainedError(
                "Clusters of this model were local, and were stripped when it was saved. Embed the cells and cluster "
                "them, save with include_local=True, or train with cluster_head='dp'."
            )
        return self._local.centers, self._local.spread

    def predict(self, adata: Any = None, *, soft: bool = False) -> pd.Series | pd.DataFrame:
        """Return clusters of cells, for the owner of the cells.

        Parameters
        ----------
        adata
            Cells; None is the training object.
        soft
            Return probabilities instead (Student t kernel around the centres).

        Returns
        -------
        Categorical Series (n,), or DataFrame (n, K); indexed by ``obs_names``.

        Raises
        ------
        NotTrainedError
            If the model is not trained, or its local head was stripped.
        """
        self._require_trained("predict")
        centers, spread = self._head()
        names = [str(k) for k in range(len(centers))]
        z = self._encode_counts(self._counts_of(adata))
        p = assign(z, centers, spread)
        index = self._count_adata(adata).obs_names
        if soft:
            return pd.DataFrame(p, index=index, columns=names)
        labels = p.argmax(axis=1)
        if adata is None and self._local is not None and self._given["cluster_head"] == "local":
            labels = self._local.labels  # Leiden clusters need not be nearest to their own mean
        return pd.Series(pd.Categorical.from_codes(labels, categories=names), index=index, name=self._method)

    def cluster_centers(self, release: str = "dp") -> np.ndarray:
        """Return the centres of the clusters in the latent space.

        Parameters
        ----------
        release
            "dp": only centres that were paid for; "local": whatever there is, for the owner.

        Returns
        -------
        Array (K, n_latent).

        Raises
        ------
        PrivacyError
            If centres that may leave are asked for and none were bought.
        NotTrainedError
            If the model is not trained, or its local head was stripped.
        """
        self._require_trained("cluster_centers")
        if release == "dp" and self._given["cluster_head"] != "dp":
            raise PrivacyError(
                "The centres are local. Train with cluster_head='dp' to buy some, or type release='local'."
            )
        return self._head()[0].astype(np.float32)

    def generate(
        self,
        n_cells: int,
        *,
        condition: Mapping[str, Any] | None = None,
        conditions: Sequence[Mapping[str, Any]] | None = None,
        library_size: float | None = None,
        release: str = "dp",
        batch_size: int | None = None,
        seed: Any = 0,
    ) -> ad.AnnData:
        """Make up cells from the released density of latents and the decoder.

        Parameters
        ----------
        n_cells
            How many.
        condition
            Registered batch, by the name of its column: ``{"batch": "a"}``.
        conditions
            Several, in equal numbers.
        library_size
            Total counts of every cell; None is 10,000. Totals of the private cells are never used.
        release
            "dp": refuse whatever was not paid for.
        batch_size
            Cells at a time.
        seed
            Of the drawing, which costs no privacy.

        Returns
        -------
        AnnData, cells x panel genes, integer counts, with the privacy block of this model.

        Raises
        ------
        PrivacyError
            If density or decoder were not paid for.
        NotTrainedError
            If the model is not trained.
        """
        self._require_trained("generate")
        if self._given["latent_density"] is None:
            raise PrivacyError("generate needs a density of the latents: train with latent_density='gaussian'.")
        if self._pca_only:
            raise PrivacyError("generate needs a decoder: with dp_pca_fraction=1.0 none is trained. Take 0.7.")
        if release != "dp":
            raise PrivacyError(f"release={release!r}; expected 'dp', the only way in which cells are made up here.")
        codes = self._batches_wanted(n_cells, condition, conditions)
        seed = resolve_seed(seed)
        generator = Streams(seed).torch("sample")
        total = 1e4 if library_size is None else float(library_size)
        step = n_cells if batch_size is None else int(batch_size)
        parts = [self._draw_cells(codes[s : s + step], total, generator) for s in range(0, n_cells, step)]
        out = ad.AnnData(sparse.vstack(parts, format="csr"), var=pd.DataFrame(index=self._panel.names.astype(str)))
        out.obs_names = [f"synthetic_{i}" for i in range(n_cells)]
        record = self._provenance(inputs={"library_size": total, "seed_of_cells": seed})
        if self.n_units_ is not None:
            record["n_obs"] = round(self.n_units_)
        block = {"privacy": self.privacy_report().block(), "provenance": record}
        result = _record.Result(method=self._method, obs={"is_synthetic": np.ones(n_cells, dtype=bool)}, uns=block)
        _record.write(out, self._method, result)
        return out

    def _batches_wanted(self, n_cells: int, condition: Any, conditions: Any) -> torch.Tensor:
        key = self.registry["setup_args"].get("batch_key") or "batch"
        names = list(self.registry["field_registries"]["batch"]["state_registry"]["categorical_mapping"])
        wanted = list(conditions) if conditions is not None else [condition or {}]
        codes = []
        for one in wanted:
            unknown = [k for k in one if k != key]
            if unknown:
                raise SetupError(f"condition names {unknown[0]!r}. {nearest(unknown[0], [key])}")
            value = one.get(key, names[0])
            if value not in names:
                raise SetupError(f"condition {key}={value!r}. {nearest(value, names)}")
            codes.append(names.index(value))
        return torch.as_tensor([codes[i % len(codes)] for i in range(n_cells)])

    @torch.inference_mode()
    def _draw_cells(self, codes: torch.Tensor, total: float, generator: torch.Generator) -> sparse.csr_matrix:
        density = self.module.density.cpu()
        noise = torch.randn(len(codes), density.shape[1], generator=generator)
        z = density[0] + noise @ density[1:]
        module = self.module.cpu()
        one_hot = torch.nn.functional.one_hot(codes, module.n_batch).float()
        rate, theta, logits = module.decode(z, torch.full((len(codes), 1), total), one_hot)
        # NB as a Poisson of a gamma; torch's own gamma takes no generator, so numpy draws from one of the same seed.
        numbers = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        shape = np.broadcast_to(theta.double().numpy(), rate.shape)
        counts = numbers.poisson(numbers.gamma(shape, rate.double().numpy() / shape))
        if logits is not None:
            extra = np.broadcast_to(torch.sigmoid(logits).double().numpy(), rate.shape)
            counts = np.where(numbers.random(rate.shape) < extra, 0, counts)
        return sparse.csr_matrix(counts.astype(np.int32))

    def _batch_codes(self, adata: Any) -> np.ndarray:
        """Return codes (n,) of the registered batch."""
        from scvi import REGISTRY_KEYS

        codes = self.adata_manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY)
        return np.asarray(codes).reshape(-1).astype(np.int64)
