"""The wiring test of the module as it will be trained, on synthetic cells, before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from cellsmith._errors import PrivacyError
from cellsmith._rng import isolated
from cellsmith.math import privacy
from cellsmith.model.dpdcan.module import refuse_batch_norm

__all__ = ["check_wiring"]

N_CELLS, N_REPLACED, N_STEPS = 6, 5, 5


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
    generator = np.random.default_rng(0)
    with torch.no_grad(), isolated(0):
        if module.axes.numel():
            axes = torch.linalg.qr(torch.randn(module.axes.shape))[0]
            module.axes[:, : axes.shape[1]] = axes
        for parameter in module.parameters():
            # Layers that start at zero would hide a coupling behind them.
            parameter.add_(0.05 * torch.randn_like(parameter))
    # In double precision: the norm of a million rounded coordinates would be off by more than the tolerance.
    module.eval().double()
    batch = module.synthetic_cells(cells)
    pool = module.prepare(module.synthetic_cells(N_REPLACED, seed=1), torch.Generator().manual_seed(1))
    found = privacy.wiring(
        lambda p, b: module.unit_losses(p, b, weights),
        {k: p.detach() for k, p in module.named_parameters()},
        module.prepare(batch, torch.Generator().manual_seed(0)),
        clip_norm=clip_norm,
        replacements=[{k: v[i] for k, v in pool.items()} for i in range(N_REPLACED)],
        n_steps=N_STEPS,
        generator=generator,
    )
    if not found.passed:
        raise PrivacyError(f"{found} Nothing was spent.")
    return found
