"""The refit of the inverse dispersions on a trained decoder, by maximum likelihood and with a guard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from torch import Tensor

from cellsmith.data.splits import scipy_counts
from cellsmith.math import counts
from cellsmith.math.latent import draw_latent
from cellsmith.nn.autoencoder import ForeignAutoencoder

__all__ = ["TOLERATED_RISE", "Sample", "calibrate"]

# Cells that are read and decoded at a time.
BATCH = 1024

# A generator draws states like those of the training cells, around which the decoder fits more tightly than around
# unseen ones; the dispersion that goes with them is the training cells' own, and unseen cells are slightly less likely
# under it. A rise beyond this share of the negative log-likelihood is no longer that but a failed fit.
TOLERATED_RISE = 0.005


@dataclass(frozen=True)
class Sample:
    """Some cells of a reader, read in the same order every time.

    Parameters
    ----------
    reader
        Maps indices to a batch of tensors.
    indices
        Which cells.
    """

    reader: Any
    indices: np.ndarray

    def batches(self, rows: np.ndarray | None = None) -> Iterator[dict[str, Tensor]]:
        """Yield batches of all cells, or of some positions among them."""
        chosen = self.indices if rows is None else self.indices[rows]
        for start in range(0, len(chosen), BATCH):
            yield self.reader[chosen[start : start + BATCH]]


@torch.no_grad()
def calibrate(module: Any, *, fit: Sample, held_out: Sample, seed: int) -> dict[str, Any]:
    """Refit theta by maximum likelihood with the decoder frozen and one posterior draw a cell.

    Parameters
    ----------
    module
        In evaluation mode, with ``autoencoder``, ``posterior``, ``log_library``, ``decode`` and ``log_prob``; its
        dispersions are replaced when the held-out likelihood agrees.
    fit, held_out
        Cells to fit on and to judge by.
    seed
        Of the posterior draws, one a cell.

    Returns
    -------
    ``done``, ``accepted`` (the held-out likelihood fell by no more than :data:`TOLERATED_RISE`), negative
    log-likelihood a held-out cell ``nll_before`` and ``nll_after``, and the quartiles of theta; ``done=False`` with a
    reason where there is nothing to refit.
    """
    parameter, kind = _parameter(module)
    if parameter is None:
        return {"done": False, "reason": kind, "accepted": True}
    before = parameter.clone()
    judged, drawn = _Drawn(module, held_out, seed), _Drawn(module, fit, seed)
    nll_before = judged.negative_log_likelihood()
    pooled = np.asarray(counts.refit_dispersion(drawn.pairs, _theta(before, kind)))
    table = np.tile(pooled, (before.shape[0], 1))
    if kind != "gene":
        member = torch.cat([_group(batch, kind).cpu() for batch in fit.batches()]).numpy()
        for g in range(len(table)):
            rows = np.flatnonzero(member == g)
            if len(rows):
                own = counts.refit_dispersion(lambda rows=rows: drawn.pairs(rows), pooled)
                table[g] = counts.shrink_dispersion(own, pooled, n_group=len(rows))
    parameter.copy_(torch.from_numpy(np.log(table)).to(parameter).reshape(parameter.shape))
    nll_after = judged.negative_log_likelihood()
    accepted = bool(nll_after <= nll_before + TOLERATED_RISE * abs(nll_before))
    if not accepted:
        parameter.copy_(before)
        table = np.asarray(before.exp().cpu().double())
    quartiles = np.quantile(table, [0.25, 0.5, 0.75])
    return {
        "done": True,
        "accepted": accepted,
        "nll_before": nll_before,
        "nll_after": nll_after,
        "median_theta_before": float(before.exp().median()),
        "median_theta": float(quartiles[1]),
        "theta_quartiles": quartiles,
        "share_at_bound": float(np.mean((table <= 1.01e-2) | (table >= 0.99e4))),
    }


def _parameter(module: Any) -> tuple[Tensor | None, str]:
    """Return log theta as a view (groups, G) and what its groups are; None and the reason where there is none."""
    own = module.autoencoder
    if not isinstance(own, ForeignAutoencoder):
        return own.log_theta.data, own.dispersion
    if own.dispersion == "gene-cell":
        return None, "the dispersion of the source differs by cell"
    if own.source.gene_likelihood == "poisson":
        return None, "a Poisson likelihood has no dispersion"
    px_r = own.source.px_r.data
    return px_r.T if px_r.dim() == 2 else px_r[None], own.dispersion


def _theta(log_theta: Tensor, kind: str) -> np.ndarray:
    pooled = log_theta[0] if kind == "gene" else log_theta.mean(dim=0)
    return pooled.exp().cpu().double().numpy()


def _group(tensors: Mapping[str, Tensor], kind: str) -> Tensor:
    key = REGISTRY_KEYS.BATCH_KEY if kind == "gene-batch" else REGISTRY_KEYS.LABELS_KEY
    return tensors[key].reshape(-1)


class _Drawn:
    """Cells with one posterior draw each, made once; the decoder is then read at them as often as it takes."""

    def __init__(self, module: Any, sample: Sample, seed: int) -> None:
        self._module, self._sample = module, sample
        generator = torch.Generator(device=module.device).manual_seed(seed)
        z, library = [], []
        for batch in sample.batches():
            tensors = self._on_device(batch)
            mean, sd = module.posterior(tensors)
            z.append(draw_latent(mean, sd, generator=generator).cpu())
            library.append(module.log_library(tensors).exp().cpu())
        self._z, self._library = torch.cat(z), torch.cat(library)

    def _on_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.to(self._module.device) for k, v in batch.items()}

    def pairs(self, rows: np.ndarray | None = None) -> Iterator[tuple[sparse.csr_matrix, np.ndarray]]:
        """Yield counts and their means under the frozen decoder: of all cells, or of some positions among them."""
        module, start = self._module, 0
        rows = np.arange(len(self._z)) if rows is None else rows
        for batch in self._sample.batches(rows):
            here = torch.from_numpy(rows[start : start + BATCH])
            start += BATCH
            decoded = module.decode(self._z[here].to(module.device), self._on_device(batch))
            mean = decoded.mean(self._library[here].to(module.device))
            yield scipy_counts(batch[REGISTRY_KEYS.X_KEY]), mean.cpu().numpy()

    def negative_log_likelihood(self) -> float:
        """Return the mean of the cells, nats."""
        total, start = 0.0, 0
        for batch in self._sample.batches():
            z = self._z[start : start + BATCH].to(self._module.device)
            start += BATCH
            total -= float(self._module.log_prob(self._on_device(batch), z).sum())
        return total / len(self._z)
