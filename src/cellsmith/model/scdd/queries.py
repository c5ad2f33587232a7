"""What a trained SCDD answers beside distilling: latents, samples, decoded latents, the response of its generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from torch import Tensor

from cellsmith import _record
from cellsmith._errors import SetupError, nearest
from cellsmith._rng import Streams, resolve_seed
from cellsmith.data.splits import CellReader
from cellsmith.math import counts, edm
from cellsmith.model.scdd import equations as eq
from cellsmith.model.scdd.delivery import check_library, new_object

__all__ = ["QueryMixin"]

# Cells of a class at which the response of the generator is measured.
RESPONSE_CELLS = 16


class QueryMixin:
    """Queries of :class:`cellsmith.model.SCDD`."""

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        *,
        indices: Any = None,
        give_mean: bool = True,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Return the posterior means of cells, in the units of the encoder.

        Parameters
        ----------
        adata
            Cells; None is the training object.
        indices
            Which of them; None is all.
        give_mean
            The mean; False gives one draw.
        batch_size
            Without effect: a cell's latent does not depend on its batch.

        Returns
        -------
        Array (n, n_latent), float32.
        """
        self._require_trained("get_latent_representation")
        adata = self._validate_anndata(adata)
        reader = CellReader(self.get_anndata_manager(adata, required=True))
        rows = np.arange(len(reader)) if indices is None else np.asarray(indices)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        mean, sd = self._encode(reader, rows)
        if give_mean:
            return mean.numpy()
        return eq.draw_latent(mean, sd, generator=Streams(self.seed_ or 0).torch("sample", -1)).numpy()

    @torch.no_grad()
    def generate(
        self,
        n_cells: int | None = None,
        *,
        condition: Mapping[str, Any] | None = None,
        conditions: pd.DataFrame | None = None,
        n_steps: int = 20,
        sampler: str = "dpmpp_2m",
        guidance: float = 1.0,
        library_size: Any = "median",
        batch_size: int = 4096,
        seed: Any = 0,
    ) -> AnnData:
        """Draw cells from the conditional diffusion; samples, not optimised profiles.

        Parameters
        ----------
        n_cells
            How many; None is the number of training cells. Alone: classes as in training.
        condition
            ``{labels_key: class}``, and ``{batch_key: batch}`` where one is registered.
        conditions
            The same as a table, one row a cell.
        n_steps
            Noise levels.
        sampler
            "dpmpp_2m", "ddim", "heun" or "ancestral".
        guidance
            Weight of the class: 1 plain, 0 none.
        library_size
            Totals: "median" of the class, a number, or one a cell; counts.
        batch_size
            Cells that the network sees at a time.
        seed
            Seed of the draw.

        Returns
        -------
        AnnData: ``.X`` CSR int32, labels, ``.obs["is_synthetic"]``, ``.obs["scdd_library"]``, ``.obsm["X_scdd"]``.

        Raises
        ------
        NotTrainedError
            Before :meth:`train`.
        SetupError
            For an unknown class, column or sampler, or totals that are not positive.
        """
        self._require_trained("generate")
        seed = resolve_seed(seed)
        streams = Streams(seed)
        self.to_device("cpu")
        if sampler not in edm.SAMPLERS:
            raise SetupError(f"sampler={sampler!r}. {nearest(sampler, edm.SAMPLERS)}")
        labels, batch = self._requested(n_cells, condition, conditions, streams)
        totals = self._totals_of(library_size, labels)
        levels, latents, parts = eq.sampling_levels(n_steps), [], []
        # Random numbers belong to chunks of 1,024 cells, whatever batch the network sees.
        step = max(edm.NOISE_CHUNK, batch_size // edm.NOISE_CHUNK * edm.NOISE_CHUNK)
        for start in range(0, len(labels), step):
            rows = slice(start, start + step)
            y = torch.from_numpy(labels[rows]).long()
            chunks = range(start // edm.NOISE_CHUNK, start // edm.NOISE_CHUNK + -(-len(y) // edm.NOISE_CHUNK))
            noise = edm.chunked_noise(
                len(y), self.module.n_latent, generators=[streams.torch("sample", c) for c in chunks]
            )
            fresh = [streams.torch("sample", c, 1) for c in chunks]
            denoiser = self.module.denoiser_of(y, guidance=guidance)
            w = edm.SAMPLERS[sampler](denoiser, float(levels[0]) * noise, levels, generator=fresh)
            z = self.module.restore(w)
            decoded = self.module.decode(z, self.module.covariates_of(torch.from_numpy(batch[rows]).long()))
            rho, theta = decoded.rho.double().numpy(), decoded.theta.double().numpy()
            logits = None if decoded.dropout_logits is None else decoded.dropout_logits.double().numpy()
            generator = streams.numpy("sample", start // edm.NOISE_CHUNK, 2)
            parts.append(counts.exact_total(rho, theta, totals[rows], dropout_logits=logits, generator=generator))
            latents.append(z.numpy())
        return self._sampled(parts, latents, labels=labels, batch=batch, totals=totals, seed=seed, guidance=guidance)

    def _sampled(
        self,
        parts: Sequence[Any],
        latents: Sequence[np.ndarray],
        *,
        labels: np.ndarray,
        batch: np.ndarray,
        totals: np.ndarray,
        seed: int,
        guidance: float,
    ) -> AnnData:
        from scipy import sparse

        out = new_object(self, sparse.vstack(parts, format="csr"), labels=labels, batch=batch, prefix=self._method)
        result = _record.Result(
            method="scdd",
            obs={"is_synthetic": np.ones(len(labels), dtype=bool), "{k}_library": np.maximum(1, np.rint(totals))},
            obsm={"X_{k}": np.concatenate(latents)},
            uns=self._block(params={"seed": seed, "guidance": float(guidance)}),
        )
        _record.write(out, self._method, result)
        return out

    def _requested(
        self,
        n_cells: int | None,
        condition: Mapping[str, Any] | None,
        conditions: pd.DataFrame | None,
        streams: Streams,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes of class and batch (n,) that a request asks for; what it leaves open is as in training."""
        setup = self.registry["setup_args"]
        names = {setup["labels_key"]: list(self.classes)}
        if setup["batch_key"] is not None:
            names[setup["batch_key"]] = list(self.batches)
        if condition is not None and conditions is not None:
            raise SetupError("Found condition and conditions; expected one of them: each says who is to be generated.")
        given = dict(condition or {}) if conditions is None else {c: conditions[c].tolist() for c in conditions}
        for name in given:
            if name not in names:
                raise SetupError(f"condition names {name!r}, which is not registered. {nearest(name, names)}")
        n = len(self.training_codes_) if n_cells is None else int(n_cells)
        if conditions is not None:
            n = len(conditions)
        # Rows of training cells lend what was not asked for, so that class and batch stay paired.
        rows = streams.numpy("sample", -2).integers(len(self.training_codes_), size=n)
        codes = self.training_codes_[rows].copy()
        for j, (name, valid) in enumerate(names.items()):
            if name in given:
                values = np.broadcast_to(np.asarray(given[name], dtype=object), (n,))
                unknown = [v for v in values if v not in valid]
                if unknown:
                    raise SetupError(f"{name}={unknown[0]!r}. {nearest(unknown[0], valid)}")
                codes[:, j] = [valid.index(v) for v in values]
        return codes[:, 0].astype(np.int64), codes[:, 1].astype(np.int64)

    def _totals_of(self, library_size: Any, labels: np.ndarray) -> np.ndarray:
        if isinstance(library_size, str):
            if library_size != "median":
                raise SetupError(f"library_size={library_size!r}; expected 'median', a number, or one a cell.")
            return self.median_library_[labels]
        check_library(library_size, len(labels))
        return np.broadcast_to(np.asarray(library_size, dtype=float), labels.shape)

    @torch.no_grad()
    def decode(self, z: Any, *, batch: Any = None, library_size: Any = None) -> np.ndarray:
        """Decode latents in the units of :meth:`get_latent_representation`.

        Parameters
        ----------
        z
            Latents (n, n_latent).
        batch
            Category of the batch, one or (n,); None is the first.
        library_size
            Totals, one or (n,), counts; None gives shares.

        Returns
        -------
        Shares, or expected counts (n, G), float32.

        Raises
        ------
        SetupError
            For latents of another width, an unknown batch, or totals that are not positive.
        """
        self._require_trained("decode")
        self.to_device("cpu")
        latents = torch.as_tensor(np.asarray(z, dtype=np.float32))
        if latents.dim() != 2 or latents.shape[1] != self.module.n_latent:
            raise SetupError(f"z has the shape {tuple(latents.shape)}; expected (n, {self.module.n_latent}).")
        valid = list(self.batches)
        values = np.broadcast_to(np.asarray(valid[0] if batch is None else batch, dtype=object), (len(latents),))
        unknown = [v for v in values if v not in valid]
        if unknown:
            raise SetupError(f"batch={unknown[0]!r}. {nearest(unknown[0], valid)}")
        codes = torch.tensor([valid.index(v) for v in values], dtype=torch.long)
        shares = self.module.decode(latents, self.module.covariates_of(codes)).rho.numpy()
        if library_size is None:
            return shares
        check_library(library_size, len(latents))
        return (shares * np.broadcast_to(np.asarray(library_size, dtype=float), (len(latents),))[:, None]).astype(
            np.float32
        )

    def get_generator_response(self, sigma_star: float = 1.0) -> dict[str, Any]:
        """Measure how much the profiles of a class differ when their codes do, eq. (10).

        Parameters
        ----------
        sigma_star
            Noise level of the single step.

        Returns
        -------
        ``sigma_star``; and one number a class: ``jacobian``, mean Frobenius norm of dD/dz over root dimension (the
        identity is 1), and ``spread``, root mean variance of the outputs within the class. NaN for absent classes.

        Raises
        ------
        NotTrainedError
            Before :meth:`train`.
        """
        self._require_trained("get_generator_response")
        return self._measure_response(CellReader(self.adata_manager), sigma_star=float(sigma_star))

    def _measure_response(self, reader: CellReader, *, sigma_star: float) -> dict[str, Any]:
        module, streams = self.module.eval(), Streams(self.seed_ or 0)
        labels = self._label_codes()
        jacobian, spread = np.full(len(self.classes), np.nan), np.full(len(self.classes), np.nan)
        for k in range(len(self.classes)):
            rows = np.flatnonzero(labels == k)
            if not len(rows):
                continue
            rows = np.sort(streams.numpy("noise", -1, k).permutation(rows)[:RESPONSE_CELLS])
            mean = module.standardise(self._encode(reader, rows)[0].to(module.device)).cpu()
            noise = torch.randn(mean.shape, generator=streams.torch("noise", -1, k))
            z = (mean + sigma_star * noise).to(module.device).requires_grad_(True)
            out = module.generate_step(
                z, torch.full((len(rows),), k, device=module.device), sigma_star=sigma_star, guidance=1.0
            )
            jacobian[k] = float(_jacobian_norm(out, z).mean()) / np.sqrt(module.n_latent)
            if len(rows) > 1:
                spread[k] = float(out.detach().var(dim=0).mean().sqrt())
        return {
            "sigma_star": sigma_star,
            "class": np.asarray(self.classes, str),
            "jacobian": jacobian,
            "spread": spread,
        }

    def _label_codes(self) -> np.ndarray:
        return np.asarray(self.adata_manager.get_from_registry(REGISTRY_KEYS.LABELS_KEY)).reshape(-1).astype(np.int64)


def _jacobian_norm(out: Tensor, z: Tensor) -> Tensor:
    """Return the Frobenius norm (n,) of the Jacobian of each row; rows do not depend on each other."""
    squares = torch.zeros(len(z), device=z.device)
    for j in range(out.shape[1]):
        (row,) = torch.autograd.grad(out[:, j].sum(), z, retain_graph=True)
        squares += row.square().sum(dim=1)
    return squares.sqrt()
