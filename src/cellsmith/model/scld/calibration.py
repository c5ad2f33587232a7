"""E8 on a trained decoder: the closed-form refit of the inverse dispersions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from torch import Tensor

from cellsmith.math import counts
from cellsmith.model.scld.autoencoder import ForeignAutoencoder
from cellsmith.model.scld.equations import draw_latent
from cellsmith.model.scld.module import SCLDModule, dense_counts

__all__ = ["TOLERATED_RISE", "calibrate"]

# A generator draws states like those of the training cells, around which the decoder fits more tightly than around
# unseen ones; the dispersion that goes with them is the training cells' own, and unseen cells are slightly less likely
# under it. A rise beyond this share of the negative log-likelihood is no longer that but a failed fit.
TOLERATED_RISE = 0.005

Cells = Callable[[np.ndarray | None], Iterator[dict[str, Tensor]]]


def calibrate(
    module: SCLDModule, cells: Cells, *, fit: np.ndarray | None, held_out: np.ndarray | None, seed: int
) -> dict[str, Any]:
    """Refit theta by maximum likelihood with the decoder frozen and one posterior draw a cell.

    Parameters
    ----------
    module
        In evaluation mode; its dispersions are replaced when the held-out likelihood agrees.
    cells
        Maps cell indices to batches.
    fit, held_out
        Indices of the cells to fit on and to judge by.
    seed
        Of the posterior draws; every pass sees the same ones.

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
    nll_before = _negative_log_likelihood(module, cells, held_out, seed)
    groups = [None] if kind == "gene" else list(range(before.shape[0]))
    pooled = counts.refit_dispersion(
        lambda: _batches(module, cells, fit, group=None, kind=kind, seed=seed), _theta(before, kind)
    )
    table = np.tile(np.asarray(pooled), (before.shape[0], 1)) if kind != "gene" else np.asarray(pooled)[None]
    if groups != [None]:
        sizes = _group_sizes(module, cells, fit, kind, len(groups))
        for g in groups:
            if sizes[g]:
                own = counts.refit_dispersion(
                    lambda g=g: _batches(module, cells, fit, group=g, kind=kind, seed=seed), np.asarray(pooled)
                )
                table[g] = counts.shrink_dispersion(own, np.asarray(pooled), n_group=int(sizes[g]))
    parameter.copy_(torch.from_numpy(np.log(table)).to(parameter).reshape(parameter.shape))
    nll_after = _negative_log_likelihood(module, cells, held_out, seed)
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


def _parameter(module: SCLDModule) -> tuple[Tensor | None, str]:
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


def _group_sizes(module: SCLDModule, cells: Cells, fit: np.ndarray | None, kind: str, n_groups: int) -> np.ndarray:
    codes = torch.cat([_group(t, kind) for t in cells(fit)]).cpu().numpy()
    return np.bincount(codes[codes < n_groups], minlength=n_groups)


def _batches(
    module: SCLDModule, cells: Cells, fit: np.ndarray | None, *, group: int | None, kind: str, seed: int
) -> Iterator[tuple[sparse.csr_matrix, np.ndarray]]:
    """Yield counts and their means under the frozen decoder, one pass."""
    generator = torch.Generator(device=module.device).manual_seed(seed)
    for batch in cells(fit):
        tensors = {k: v.to(module.device) for k, v in batch.items()}
        mean, sd = module.posterior(tensors)
        decoded = module.decode(draw_latent(mean, sd, generator=generator), tensors)
        m = decoded.mean(module.log_library(tensors).exp()).cpu().numpy()
        x = sparse.csr_matrix(dense_counts(batch).numpy())
        if group is not None:
            keep = (_group(batch, kind) == group).cpu().numpy()
            x, m = x[keep], m[keep]
        if x.shape[0]:
            yield x, m


def _negative_log_likelihood(module: SCLDModule, cells: Cells, held_out: np.ndarray | None, seed: int) -> float:
    generator = torch.Generator(device=module.device).manual_seed(seed)
    total, n = 0.0, 0
    for batch in cells(held_out):
        tensors = {k: v.to(module.device) for k, v in batch.items()}
        mean, sd = module.posterior(tensors)
        total -= float(module.log_prob(tensors, draw_latent(mean, sd, generator=generator)).sum())
        n += len(mean)
    return total / n
