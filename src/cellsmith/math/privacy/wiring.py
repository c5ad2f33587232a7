"""Does the loss keep units apart? Coupling, sensitivity and interference, measured without noise and without luck.

coupling: how far the gradient of one unit moves when another unit of its batch is replaced. sensitivity: how far the
clipped sum moves when one unit is added, removed or replaced. interference: one unit is changed in the first batch
only; the noised parameters are given to both runs alike, as they are to anybody who sees them; then no later clipped
sum may differ. All in units of C.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cellsmith.math.privacy.gradients import LossFn, Params, clip_factors

__all__ = ["Wiring", "unit_gradients", "wiring"]

TOLERANCE = 1e-5
# Gradients of one batch in other company differ by rounding, relative to their norm.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Wiring:
    """What was measured, in units of the clip norm C.

    Parameters
    ----------
    coupling
        Largest change of a unit's gradient when another unit is replaced; must be 0 up to rounding.
    add_remove
        Largest change of the clipped sum when a unit is removed; must be at most 1.
    replace_one
        The same when it is replaced; must be at most 2.
    interference
        Largest change of a clipped sum of later batches that do not hold the unit; must be 0. Up to 1e-5 passes: a
        product of large matrices may be rounded differently where it lies elsewhere in memory.
    n_replacements
        Units that were tried.
    """

    coupling: float
    add_remove: float
    replace_one: float
    interference: float
    n_replacements: int

    @property
    def passed(self) -> bool:
        """Whether the accounting of private gradients applies."""
        return (
            self.coupling <= ROUNDING
            and self.add_remove <= 1 + TOLERANCE
            and self.replace_one <= 2 + 2 * TOLERANCE
            and self.interference <= TOLERANCE
        )

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED: an epsilon computed for this loss would be void"
        return (
            f"Wiring {verdict}. In units of the clip norm: coupling {self.coupling:.2g} (0), add/remove "
            f"{self.add_remove:.4g} (at most 1), replace-one {self.replace_one:.4g} (at most 2), interference "
            f"{self.interference:.2g} (0); {self.n_replacements} units tried."
        )


def unit_gradients(loss_fn: LossFn, params: Params, batch: Params) -> Tensor:
    """Gradients (B, P) of the losses (B,) of a whole batch, one backward a unit: sees coupling, unlike vmap.

    Parameters
    ----------
    loss_fn
        Losses of the units, (B,).
    params
        Name -> tensor; P coordinates together.
    batch
        Name -> tensor (B, ...).
    """
    leaves = {k: p.detach().clone().requires_grad_() for k, p in params.items()}
    n = len(next(iter(batch.values())))
    flat = sum(p.numel() for p in params.values())
    if n == 0:
        return torch.zeros(0, flat)
    losses = loss_fn(leaves, batch)
    rows = []
    for loss in losses:
        grads = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
        parts = [
            torch.zeros(p.numel(), dtype=p.dtype) if g is None else g.flatten()
            for g, p in zip(grads, leaves.values(), strict=True)
        ]
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def _clipped_sum(gradients: Tensor, clip_norm: float) -> Tensor:
    norms = gradients.norm(dim=1)
    rows = torch.where(torch.isfinite(norms)[:, None], gradients, torch.zeros_like(gradients))
    return clip_factors(norms, clip_norm) @ rows


def _without(batch: Params, unit: int) -> dict[str, Tensor]:
    return {k: torch.cat([v[:unit], v[unit + 1 :]]) for k, v in batch.items()}


def _with(batch: Params, unit: int, other: Params) -> dict[str, Tensor]:
    out = {k: v.clone() for k, v in batch.items()}
    for k, v in other.items():
        out[k][unit] = v
    return out


def wiring(
    loss_fn: LossFn,
    params: Params,
    batch: Params,
    *,
    clip_norm: float,
    replacements: Sequence[Params],
    trained: Params | None = None,
    n_steps: int = 20,
    learning_rate: float = 0.1,
    generator: np.random.Generator,
) -> Wiring:
    """Measure how far one unit reaches.

    Parameters
    ----------
    loss_fn
        Losses of the units of a batch, (B,); given ``params`` and ``trained`` in one mapping.
    params
        Name -> tensor, the noised coordinates.
    batch
        Name -> tensor (B, ...).
    clip_norm
        C.
    replacements
        Units (name -> tensor without the unit dimension) that take the place of others; finite, since in a batch that
        is differentiated as a whole NaN reaches every unit (training drops such units one by one).
    trained
        Name -> tensor of parameters that are trained without noise; sound modes have none.
    n_steps
        Batches of the interference test.
    learning_rate
        Of the un-noised parameters in it.
    generator
        Picks units and batches.

    Returns
    -------
    The figures, in C.
    """
    own = dict(trained or {})
    n, loss = len(next(iter(batch.values()))), _joined(loss_fn, own)
    base = unit_gradients(loss, params, batch)
    total, scale = _clipped_sum(base, clip_norm), base.norm(dim=1).clamp(min=1e-12)
    coupling = add_remove = replace_one = 0.0
    for other in replacements:
        unit = int(generator.integers(n))
        moved = unit_gradients(loss, params, _with(batch, unit, other))
        rest = [i for i in range(n) if i != unit]
        change = ((moved - base)[rest].norm(dim=1) / scale[rest]).max()
        coupling = max(coupling, float(torch.nan_to_num(change, nan=torch.inf)))
        fewer = _clipped_sum(unit_gradients(loss, params, _without(batch, unit)), clip_norm)
        there = _clipped_sum(moved, clip_norm)
        add_remove = max(add_remove, float((there - fewer).norm()) / clip_norm)
        replace_one = max(replace_one, float((there - total).norm()) / clip_norm)
    interference = _interference(
        loss_fn,
        params,
        batch,
        changed=_with(batch, 0, replacements[0]),
        trained=own,
        clip_norm=clip_norm,
        n_steps=n_steps,
        learning_rate=learning_rate,
        generator=generator,
    )
    return Wiring(coupling, add_remove, replace_one, interference, len(replacements))


def _interference(
    loss_fn: LossFn,
    params: Params,
    batch: Params,
    *,
    changed: Params,
    trained: Mapping[str, Tensor],
    clip_norm: float,
    n_steps: int,
    learning_rate: float,
    generator: np.random.Generator,
) -> float:
    """Return the largest difference of later clipped sums, in C, noised parameters being the same in both runs."""
    n = len(next(iter(batch.values())))
    shown = {k: p.detach().clone() for k, p in params.items()}
    hidden = [{k: p.detach().clone() for k, p in trained.items()} for _ in range(2)]
    worst = 0.0
    for step in range(n_steps):
        rows = torch.from_numpy(np.sort(generator.choice(np.arange(1, n), size=max(1, (n - 1) // 2), replace=False)))
        later = {k: v[rows] for k, v in batch.items()}
        batches = (batch, changed) if step == 0 else (later, later)
        sums = []
        for state, one in zip(hidden, batches, strict=True):
            gradients = unit_gradients(_joined(loss_fn, state), shown, one)
            sums.append(_clipped_sum(gradients, clip_norm))
            _move_hidden(loss_fn, shown, state, one, learning_rate)
        if step > 0:
            worst = max(worst, float((sums[0] - sums[1]).norm()) / clip_norm)
        flat, start = sums[0], 0
        for k, p in shown.items():
            part = flat[start : start + p.numel()].view_as(p)
            noise = torch.as_tensor(generator.standard_normal(tuple(p.shape)), dtype=p.dtype)
            shown[k] = p - learning_rate / n * (part + clip_norm * noise)
            start += p.numel()
    return worst


def _joined(loss_fn: LossFn, state: Params) -> LossFn:
    """Return the loss as a function of the noised parameters alone, the others being as they stand."""

    def loss(p: Params, b: Params) -> Tensor:
        return loss_fn({**state, **p}, b)

    return loss


def _move_hidden(loss_fn: LossFn, shown: Params, state: dict[str, Tensor], batch: Params, rate: float) -> None:
    """Take the step that training takes with parameters that get no noise: the plain mean gradient."""
    if not state:
        return
    leaves = {k: p.requires_grad_() for k, p in state.items()}
    loss = torch.nan_to_num(loss_fn({**shown, **leaves}, batch)).mean()
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    for (k, p), g in zip(list(leaves.items()), grads, strict=True):
        state[k] = p.detach() if g is None else (p - rate * torch.nan_to_num(g)).detach()
