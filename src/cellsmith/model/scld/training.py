"""What the stages of SCLD do besides stepping an optimiser: starts, caches, the refit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from torch import Tensor

from cellsmith._errors import DataWarning
from cellsmith._rng import Streams
from cellsmith.data.fields import REP_KEY
from cellsmith.data.splits import KeptCells, scipy_counts, validation_batches
from cellsmith.math import counts
from cellsmith.model._calibration import Sample, calibrate
from cellsmith.model.scld import equations as eq
from cellsmith.model.scld.module import log_totals
from cellsmith.nn.autoencoder import CountAutoencoder

__all__ = ["TrainingMixin"]

# Moments and the refit are averages over cells: more of them than this change nothing that matters.
MAX_MOMENT_CELLS = 20_000
MAX_REFIT_CELLS = 50_000
MINIFIED_REASON = "the cells of the source are minified, so that their counts are gone"


class TrainingMixin:
    """Methods that the stages of :class:`cellsmith.model.SCLD` name."""

    def _cells(self) -> Iterator[dict[str, Tensor]]:
        """Yield batches of all cells: of the training object in order, or one pass of the data module."""
        if self._datamodule is not None:
            yield from self._datamodule.train_dataloader()
        else:
            yield from Sample(self._reader, np.arange(len(self._reader))).batches()

    def _training_sample(self, limit: int, streams: Streams) -> Sample:
        """Return training cells, about ``limit`` of them at most, that can be read again and again."""
        if self._datamodule is not None:
            kept = KeptCells(self._datamodule.train_dataloader(), limit=limit)
            return Sample(kept, np.arange(len(kept)))
        cells = self._split[0]
        if len(cells) > limit:
            cells = np.sort(streams.numpy("refit").choice(cells, limit, replace=False))
        return Sample(self._reader, cells)

    def _refit_samples(self, streams: Streams) -> tuple[Sample, Sample]:
        """Return the cells to refit the dispersion on, and others to judge the refit by."""
        fit = self._training_sample(MAX_REFIT_CELLS, streams)
        if self._datamodule is None:
            return fit, Sample(self._reader, self._split[1]) if len(self._split[1]) else fit
        batches = validation_batches(self._datamodule)
        if batches is not None:
            kept = KeptCells(batches, limit=MAX_MOMENT_CELLS)
            if len(kept):
                return fit, Sample(kept, np.arange(len(kept)))
        # No cell was kept from the autoencoder; every tenth is at least kept from the refit.
        tenth = np.arange(len(fit.indices)) % 10 == 9
        if not tenth.any():
            return fit, fit
        return Sample(fit.reader, fit.indices[~tenth]), Sample(fit.reader, fit.indices[tenth])

    @torch.no_grad()
    def _start_autoencoder(self, streams: Streams) -> None:
        """E7, E2: start the dispersion at its moments and the decoder at the mean profile; scales of given inputs."""
        module, parts, factors, reps = self.module, [], [], []
        for tensors in self._training_sample(MAX_MOMENT_CELLS, streams).batches():
            parts.append(scipy_counts(tensors[REGISTRY_KEYS.X_KEY]))
            if REGISTRY_KEYS.SIZE_FACTOR_KEY in tensors:
                factors.append(tensors[REGISTRY_KEYS.SIZE_FACTOR_KEY].reshape(-1))
            if REP_KEY in tensors:
                reps.append(tensors[REP_KEY].float())
        x = sparse.vstack(parts, format="csr")
        totals = counts.library_totals(x)
        if factors:
            factor = torch.cat(factors).double().numpy()
            scale = np.median(totals) / np.median(factor)
            module.size_factor_scale.fill_(float(scale))
            totals = factor * scale
        encoder: CountAutoencoder = module.autoencoder
        if reps:
            centre, spread, _ = eq.latent_statistics(torch.cat(reps), torch.zeros(1, module.n_latent))
            encoder.rep_centre.copy_(centre)
            encoder.rep_scale.copy_(spread)
        if self.is_trained_ or (self.history_ and "autoencode/train_loss" in self.history_):
            return
        mean = torch.from_numpy(np.asarray(x.mean(axis=0)).ravel())
        encoder.decoder_head.init_bias(mean)
        theta = torch.from_numpy(np.asarray(counts.dispersion_moments(x, totals))).float()
        encoder.log_theta.copy_(theta.log().expand_as(encoder.log_theta))
        self.refit_["start_theta"] = theta.numpy()

    @torch.no_grad()
    def _cache_latents(self, streams: Streams) -> dict[str, Tensor]:
        """E9, E10: posterior of every cell, its covariates and log total; sets the scales of the diffusion."""
        table, log_total = self._encode_all(self._cells())
        module = self.module
        # Cells of a test split take part in nothing that generation reads.
        seen = {k: v[~self._is_test(len(v))] for k, v in table.items()}
        centre, scale, collapsed = eq.latent_statistics(seen["mean"], seen["sd"])
        module.latent_centre.copy_(centre)
        module.latent_scale.copy_(scale)
        if bool(collapsed.any()):
            self._note(
                f"{int(collapsed.sum())} of {module.n_latent} latent dimensions carry nothing (spread below 1e-3). "
                "Lower kl_weight or n_latent.",
                DataWarning,
            )
        for name, values in (("library", seen["log_library"][:, None]), ("continuous", seen["continuous"])):
            stats = [eq.moment_statistics(column) for column in values.T]
            for buffer, value in (("centre", [s[0] for s in stats]), ("scale", [s[1] for s in stats])):
                if value:
                    target = getattr(module, f"{name}_{buffer}")
                    target.copy_(torch.stack(value).reshape(target.shape))
        # Copies: a spawned process moves the tensors to shared memory and leaves their arrays dangling.
        self.training_rows_ = {
            "codes": seen["codes"].numpy().astype(np.int32),
            "continuous": seen["continuous"].numpy().copy(),
            "log_library": seen["log_library"].numpy().copy(),
            "log_total": log_total[~self._is_test(len(log_total))].numpy().copy(),
        }
        return table

    def _is_test(self, n: int) -> Tensor:
        """Mark the cells of the test split among the n cells of the training object."""
        mask = torch.zeros(n, dtype=torch.bool)
        if self.test_indices is not None and len(self.test_indices):
            mask[torch.as_tensor(self.test_indices)] = True
        return mask

    @torch.no_grad()
    def _encode_all(self, batches: Iterator[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the cached table (n rows) of batches of cells, and their log observed totals (n,)."""
        module, rows, totals = self.module.eval(), [], []
        for batch in batches:
            tensors = {k: v.to(module.device) for k, v in batch.items()}
            mean, sd = module.posterior(tensors)
            n = len(mean)
            continuous = tensors.get(REGISTRY_KEYS.CONT_COVS_KEY)
            rows.append(
                {
                    "mean": mean.cpu(),
                    "sd": sd.cpu(),
                    "log_library": module.log_depth(tensors).float().cpu(),
                    "codes": module.condition_codes(tensors).cpu(),
                    "continuous": torch.zeros(n, 0) if continuous is None else continuous.float().cpu(),
                }
            )
            totals.append(log_totals(batch))
        return {k: torch.cat([r[k] for r in rows]) for k in rows[0]}, torch.cat(totals)

    @torch.no_grad()
    def _calibrate(self, streams: Streams) -> None:
        """E8: refit the dispersion with the decoder frozen; kept unless held-out cells become clearly less likely."""
        if self._lacks_counts():
            self.refit_.update({"done": False, "accepted": True, "reason": MINIFIED_REASON})
            self._note(
                f"The dispersion was not refitted: {MINIFIED_REASON}. Single genes may look less real; load the source "
                "with its full AnnData to refit it: SCVI.load(path, adata=full).",
                DataWarning,
            )
            return
        fit, held_out = self._refit_samples(streams)
        self.module.eval()
        self.refit_.update(calibrate(self.module, fit=fit, held_out=held_out, seed=streams.integer("refit")))
        if not self.refit_["accepted"]:
            self._note(
                "The maximum-likelihood refit of the dispersion made held-out cells clearly less likely and was not "
                f"used (negative log-likelihood {self.refit_['nll_before']:.2f} -> {self.refit_['nll_after']:.2f}).",
                DataWarning,
            )
