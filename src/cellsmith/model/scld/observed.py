"""What a trained SCLD says of cells that were observed: their states, their posterior predictive, their density."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data._constants import ADATA_MINIFY_TYPE
from torch import Tensor

from cellsmith import _record
from cellsmith._errors import SetupError
from cellsmith._rng import Streams, isolated, resolve_seed
from cellsmith.data.splits import CellReader
from cellsmith.math import edm
from cellsmith.model._base import _drop_foreign_uuid
from cellsmith.model.scld import equations as eq
from cellsmith.model.scld import generation as gen
from cellsmith.model.scld.registration import check_object, lacks_counts, needs_plain_manager, plain_manager
from cellsmith.model.scld.request import Request

__all__ = ["ObservedMixin"]


class ObservedMixin:
    """Queries of :class:`cellsmith.model.SCLD` that read or score observed cells."""

    def _validate_anndata(self, adata: Any = None, copy_if_view: bool = True) -> Any:
        """Refuse cells that are no counts or have none, as set-up does: scvi-tools would only warn."""
        if adata is not None and adata is not self.adata:
            carrier = adata.mod[self._count_modality] if hasattr(adata, "mod") else adata
            check_object(carrier, self.registry["setup_args"].get("layer"), min_cells=1)
            self._register_plainly(adata)
        return super()._validate_anndata(adata, copy_if_view)

    def _register_plainly(self, adata: Any) -> None:
        """Register cells that have counts where the training cells have a posterior instead."""
        if not needs_plain_manager(self.adata_manager, adata):
            return
        known = type(self)._per_instance_manager_store.get(self.id, {}).get(adata.uns.get("_scvi_uuid"))
        if known is not None and known.adata is adata:
            return
        if known is not None:
            _record.forget_registration(adata)
        _drop_foreign_uuid(adata)
        self._check_genes(adata)
        self._register_manager_for_instance(plain_manager(self.adata_manager, adata))

    @property
    def minified_data_type(self) -> str | None:
        """What is left of the training cells, in the words of scvi-tools; None where they have their counts.

        By this name scvi-tools refuses its queries that need counts.
        """
        return ADATA_MINIFY_TYPE.LATENT_POSTERIOR if self._lacks_counts() else None

    def _lacks_counts(self) -> bool:
        return lacks_counts(self.adata, self.registry["setup_args"].get("layer"))

    def training_states(self) -> dict[str, Tensor]:
        """Return one posterior draw of every training cell.

        Returns
        -------
        ``w`` (n, d + 1) standardised states, ``codes`` (n, K) and ``continuous`` (n, C); cells of the test split, if
        there is one, are left out.

        Raises
        ------
        SetupError
            If the model was loaded without its AnnData.
        """
        if self.adata is None:
            raise SetupError(
                "This query reads the training cells, but the model has no AnnData. Load it with one: "
                "SCLD.load(path, adata=adata)."
            )
        table, _ = self._encode(self.adata)
        table = {k: v[~self._is_test(len(v))] for k, v in table.items()}
        z = table["mean"] + table["sd"] * torch.randn(
            table["mean"].shape, generator=Streams(self.seed_ or 0).torch("sample", -3)
        )
        module = self.module
        w = module.to_state(z.to(module.device), table["log_library"].to(module.device)).cpu()
        return {"w": w, "codes": table["codes"], "continuous": table["continuous"]}

    @torch.no_grad()
    def _encode(self, adata: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Return the table of :meth:`_encode_all` for the cells of an object."""
        adata = self._validate_anndata(adata)
        reader = CellReader(self.get_anndata_manager(adata, required=True))
        batches = (reader[np.arange(s, min(s + 1024, len(reader)))] for s in range(0, len(reader), 1024))
        with isolated(0):
            return self._encode_all(batches)

    @torch.no_grad()
    def encode_counts(self, x: Any, request: Request, codes: np.ndarray) -> np.ndarray:
        """Return posterior means (n, d) of counts that are not in an AnnData.

        Parameters
        ----------
        x
            Counts (n, G), CSR.
        request, codes
            Who these cells are.
        """
        module, out = self.module, []
        given = gen.decoder_covariates(module, codes, continuous=request.continuous, covariates=self.covariates)
        for start in range(0, x.shape[0], gen.CHUNK):
            rows = slice(start, start + gen.CHUNK)
            tensors = {k: v[rows].to(module.device) for k, v in given.items()}
            tensors[REGISTRY_KEYS.X_KEY] = torch.from_numpy(x[rows].toarray().astype(np.float32)).to(module.device)
            out.append(module.posterior(tensors)[0].cpu().numpy())
        return np.concatenate(out)

    @torch.no_grad()
    def posterior_predictive_sample(
        self,
        adata: AnnData | None = None,
        *,
        indices: Any = None,
        n_samples: int = 1,
        batch_size: int | None = None,
        decode: str = "nb",
        seed: Any = 0,
    ) -> Any:
        """Resample the counts of OBSERVED cells from their posterior; not a generator: it needs the cells themselves.

        Parameters
        ----------
        adata
            Cells; None is the training object.
        indices
            Which of them; None is all.
        n_samples
            Draws a cell.
        batch_size
            Ignored: cells are read 1,024 at a time.
        decode
            "nb" or "exact_total".
        seed
            Seed of the draw.

        Returns
        -------
        :class:`sparse.GCXS` (n, G) or (n, G, n_samples), as :class:`scvi.criticism.PosteriorPredictiveCheck` expects.
        """
        import sparse as pydata_sparse

        self._require_trained("posterior_predictive_sample")
        adata = self._validate_anndata(adata)
        reader = CellReader(self.get_anndata_manager(adata, required=True))
        order = np.arange(len(reader)) if indices is None else np.arange(len(reader))[indices]
        streams, module, samples = Streams(resolve_seed(seed)), self.module.eval(), []
        for k in range(n_samples):
            parts = []
            for i, start in enumerate(range(0, len(order), gen.CHUNK)):
                tensors = {n: v.to(module.device) for n, v in reader[order[start : start + gen.CHUNK]].items()}
                mean, sd = module.posterior(tensors)
                noise = torch.randn(mean.shape, generator=streams.torch("sample", k, i)).to(mean)
                given = {n: v for n, v in tensors.items() if n != REGISTRY_KEYS.X_KEY}
                child = Streams(streams.integer("sample", k, i, 1))
                z = mean + sd * noise
                library = module.log_library(tensors).exp()
                if module.autoencoder.gives_rates:
                    library = module.decode(z, given).total(library)
                totals = np.maximum(1, np.rint(library.cpu().numpy())).astype(np.int64)
                how = {"totals": totals, "output": "counts", "decode": decode, "streams": child}
                parts.append(gen.decode_counts(module, z, given, **how))
            samples.append(pydata_sparse.GCXS.from_scipy_sparse(sparse.vstack(parts, format="csr")))
        return samples[0] if n_samples == 1 else pydata_sparse.stack(samples, axis=-1)

    @torch.no_grad()
    def get_log_density(
        self, adata: AnnData | None = None, *, conditional: bool = False, counts: bool = False, n_steps: int = 50
    ) -> np.ndarray:
        """Log density of cells under the model; low means unlike the training cells (E22).

        Parameters
        ----------
        adata
            Cells; None is the training object.
        conditional
            Given the covariates of each cell, rather than over the whole population.
        counts
            Also ask whether the counts fit their state: log density of counts and log total, rather than of the
            state alone. It finds cells whose genes do not belong together also where the encoder maps them to
            states as common as any; it falls with the depth of a cell, so compare cells of similar totals.
        n_steps
            Noise levels of the probability-flow ODE.

        Returns
        -------
        (n,) nats: of the standardised state and log total, with ``counts`` of the counts and the log total.

        Raises
        ------
        SetupError
            With ``counts``, for cells whose counts are gone.
        """
        self._require_trained("get_log_density")
        module, adata = self.module, self.adata if adata is None else adata
        if counts and lacks_counts(adata, self.registry["setup_args"].get("layer")):
            raise SetupError(
                "The counts of these cells are gone: they are minified. Type counts=False, or hand over cells that "
                "have counts."
            )
        table, _ = self._encode(adata)
        w = module.to_state(table["mean"].to(module.device), table["log_library"].to(module.device))
        network = module.ema_denoiser
        if conditional:
            cond = module.embed(network, table["codes"].to(w.device), table["continuous"].to(w.device))
        else:
            cond = network.null(len(w))
        sigmas = edm.sigma_grid(n_steps, prior=module.prior, spacing="log").flip(0).to(w)

        def denoiser(y: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
            return edm.denoise(network, y, sigma, cond=cond, prediction=module.prediction, prior=module.prior)

        of_state = edm.log_density(denoiser, w, sigmas, cond=cond).cpu()
        if not counts:
            return of_state.numpy()
        likelihood = self._log_likelihood(adata, table["mean"])
        return eq.log_evidence(likelihood, of_state - module.log_volume(), table["sd"].double()).numpy()

    def _log_likelihood(self, adata: Any, z: Tensor) -> Tensor:
        """Return log p(x | z, l, s) (n,) of cells at latents z (n, d), nats."""
        module, parts = self.module, []
        reader = CellReader(self.get_anndata_manager(self._validate_anndata(adata), required=True))
        for start in range(0, len(reader), gen.CHUNK):
            rows = np.arange(start, min(start + gen.CHUNK, len(reader)))
            tensors = {k: v.to(module.device) for k, v in reader[rows].items()}
            parts.append(module.log_prob(tensors, z[rows].to(module.device)).cpu().double())
        return torch.cat(parts)
