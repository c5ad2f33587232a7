"""The wiring test of the module as it will be trained, on synthetic cells, before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellsmith._errors import PrivacyError
from cellsmith._rng import isolated
from cellsmith.math import privacy
from cellsmith.model.dpdcan.module import refuse_batch_norm

__all__ = ["check_wiring", "synthetic_cells", "wire"]

N_CELLS, N_REPLACED, N_STEPS = 6, 5, 5


def synthetic_cells(n_cells: int, n_genes: int, n_batch: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Return Poisson counts with one empty and one very deep cell: (n, G) and codes of batches (n,)."""
    g = np.random.default_rng(seed)
    rate = g.gamma(0.3, 2.0, n_genes) * g.lognormal(0.0, 0.5, (n_cells, 1))
    counts = g.poisson(rate).astype(np.float32)
    counts[1] = 0
    counts[-1] *= 100
    return {"x": torch.from_numpy(counts), "batch": torch.from_numpy(g.integers(0, n_batch, n_cells))}


def wire(module: Any, batch: Mapping[str, Tensor], others: Any, **options: Any) -> privacy.Wiring:
    """Measure the wiring of a module's loss.

    Parameters
    ----------
    module
        With ``prepare``, ``unit_losses`` and parameters.
    batch, others
        Cells, and cells that take their places.
    **options
        ``clip_norm``, ``weights``, ``noised`` (names; None: all parameters), ``n_steps``, ``generator``.
    """
    prepared = module.prepare(batch, torch.Generator().manual_seed(0))
    replaced = [
        {k: v[0] for k, v in module.prepare({k: v[None] for k, v in one.items()}, None).items()} for one in others
    ]
    weights, noised = options.pop("weights"), options.pop("noised", None)
    parameters = {k: p.detach() for k, p in module.named_parameters()}
    names = list(parameters) if noised is None else list(noised)
    return privacy.wiring(
        lambda p, b: module.unit_losses(p, b, weights),
        {k: parameters[k] for k in names},
        prepared,
        replacements=replaced,
        trained={k: v for k, v in parameters.items() if k not in names},
        **options,
    )


def check_wiring(
    module: Any, *, clip_norm: float, weights: Mapping[str, float], cells: int = N_CELLS
) -> privacy.Wiring:
    """Return what the wiring test measures on a module with invented axes, or refuse.

    Parameters
    ----------
    module
        Fresh; it is not the one that will be trained, but made alike.
    clip_norm
        C.
    weights
        Of the loss.
    cells
        Size of the synthetic batch.

    Raises
    ------
    PrivacyError
        If the loss does not keep units apart.
    """
    refuse_batch_norm(module)
    n_genes, generator = len(module.intercept), np.random.default_rng(0)
    with torch.no_grad(), isolated(0):
        if module.axes.numel():
            axes = torch.linalg.qr(torch.randn(module.axes.shape))[0]
            module.axes[:, : axes.shape[1]] = axes
        for parameter in module.parameters():
            # Layers that start at zero would hide a coupling behind them.
            parameter.add_(0.05 * torch.randn_like(parameter))
    module.eval()
    batch = synthetic_cells(cells, n_genes, module.n_batch)
    pool = synthetic_cells(N_REPLACED, n_genes, module.n_batch, seed=1)
    others = [{k: v[i] for k, v in pool.items()} for i in range(N_REPLACED)]
    found = wire(module, batch, others, clip_norm=clip_norm, weights=weights, n_steps=N_STEPS, generator=generator)
    if not found.passed:
        raise PrivacyError(f"{found} Nothing was spent.")
    return found
