"""Gradients of every unit, cut to norm C and added up; and the noise on the sum.

``loss_fn(params, batch)`` gives the loss of every unit, (B,), for tensors of the batch with a leading unit dimension,
and a scalar for one unit without it; it must treat units apart (``wiring`` tests that it does).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cellsmith._errors import PrivacyError

__all__ = ["ClippedSum", "LossFn", "add_noise", "clip_factors", "clipped_gradient_sum"]

Params = Mapping[str, Tensor]
LossFn = Callable[[Params, Params], Tensor]

CHUNK_BYTES = 256 * 2**20
# From so many parameters on, gradients of single units are not written out ("ghost").
MANY = 100_000
# Rounding units by which a ghost norm is enlarged.
ROUNDING = 8.0
METHODS = ("auto", "vmap", "ghost")
# Keeps the division defined; it can only make the clipped gradient shorter.
_TINY = 1e-6


class ClippedSum(NamedTuple):
    """Sum of clipped gradients.

    Attributes
    ----------
    gradients
        Name -> tensor of the parameter's shape.
    norms
        (B,) norms before clipping; not finite where a gradient was not. Private: never shown.
    """

    gradients: dict[str, Tensor]
    norms: Tensor


def clip_factors(norms: Tensor, clip_norm: float) -> Tensor:
    """min(1, C / (norm + 1e-6)), (B,); 0 where a norm is not finite, so that such a unit contributes nothing."""
    factors = (clip_norm / (norms + _TINY)).clamp(max=1.0)
    return torch.where(torch.isfinite(norms), factors, torch.zeros_like(factors))


def clipped_gradient_sum(
    loss_fn: LossFn,
    params: Params,
    batch: Params,
    *,
    clip_norm: float,
    method: str = "auto",
    chunk_size: int | None = None,
    shared: Params | None = None,
) -> ClippedSum:
    """Return sum_i g_i min(1, C / ||g_i||) over the units of a batch; the norm runs over all of ``params``.

    Parameters
    ----------
    loss_fn
        Losses of the units, (B,).
    params
        Name -> tensor, the noised coordinates and no others.
    batch
        Name -> tensor (B, ...); B may be 0.
    clip_norm
        C.
    method
        "vmap" (any loss), "ghost" (gradients of single units are never written out where parameters enter through
        linear layers), "auto": vmap below 100,000 coordinates.
    chunk_size
        Units at a time; None keeps gradients below 256 MB.
    shared
        Name -> a gradient that is added to that of every unit before clipping, as in the published coupled loss.

    Returns
    -------
    Sum and norms (B,).

    Raises
    ------
    PrivacyError
        For an unknown method, or "ghost" on 100,000 or more coordinates that do not enter through linear layers.
    """
    if method not in METHODS:
        raise PrivacyError(f"method={method!r}; expected one of {METHODS}.")
    n_units = len(next(iter(batch.values())))
    n_coordinates = sum(p.numel() for p in params.values())
    if n_units == 0:
        return ClippedSum({k: torch.zeros_like(p) for k, p in params.items()}, torch.zeros(0))
    if method == "ghost" or (method == "auto" and n_coordinates >= MANY):
        return _ghost(loss_fn, params, batch, clip_norm=clip_norm, shared=shared)
    size = chunk_size or max(1, CHUNK_BYTES // (4 * n_coordinates))
    one_unit = torch.func.vmap(torch.func.grad(lambda p, b: loss_fn(p, b)), in_dims=(None, 0))
    total = {k: torch.zeros_like(p) for k, p in params.items()}
    norms = []
    for start in range(0, n_units, size):
        rows = {k: v[start : start + size] for k, v in batch.items()}
        gradients = {k: g.reshape(len(g), -1) for k, g in one_unit(dict(params), rows).items()}
        if shared is not None:
            gradients = {k: g + shared[k].flatten() for k, g in gradients.items()}
        norm = torch.stack([g.square().sum(dim=1) for g in gradients.values()]).sum(dim=0).sqrt()
        factors = clip_factors(norm, clip_norm)
        finite = torch.isfinite(norm)
        for k, g in gradients.items():
            whole = g if bool(finite.all()) else torch.where(finite[:, None], g, torch.zeros_like(g))
            total[k] += (factors @ whole).view_as(total[k])
        norms.append(norm)
    return ClippedSum(total, torch.cat(norms))


class _Linears(TorchFunctionMode):
    """Notes input and output of every linear layer whose weight is one of ``params``."""

    def __init__(self, params: Params) -> None:
        super().__init__()
        self._names = {id(p): k for k, p in params.items()}
        self.calls: list[tuple[str, str | None, Tensor, Tensor]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function is torch.nn.functional.linear:
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
            name = self._names.get(id(given["weight"]))
            if name is not None:
                bias = given.get("bias")
                self.calls.append((name, None if bias is None else self._names.get(id(bias)), given["input"], out))
        return out


def _ghost(loss_fn: LossFn, params: Params, batch: Params, *, clip_norm: float, shared: Params | None) -> ClippedSum:
    """Norms from inputs a and output gradients b of linear layers, sum of (a a' + 1)(b b'); then one weighted backward.

    A layer that is called twice enters with both calls side by side, which counts their products as well.
    """
    leaves = {k: p.detach().requires_grad_() for k, p in params.items()}
    with torch.enable_grad():
        with _Linears(leaves) as linears:
            losses = loss_fn(leaves, batch)
        n = len(losses)
        outputs = [call[3] for call in linears.calls]
        grads = torch.autograd.grad(losses.sum(), outputs, retain_graph=True, allow_unused=True)
    squared = torch.zeros(n, dtype=losses.dtype, device=losses.device)
    seen: set[str] = set()
    sides: dict[tuple[str, str | None], list[tuple[Tensor, Tensor]]] = {}
    for (weight, bias, a, out), b in zip(linears.calls, grads, strict=True):
        b = torch.zeros_like(out) if b is None else b
        pair = (a.detach().reshape(n, -1, a.shape[-1]), b.reshape(n, -1, out.shape[-1]))
        sides.setdefault((weight, bias), []).append(pair)
    for (weight, bias), pairs in sides.items():
        if seen & {weight, bias}:
            raise PrivacyError(f"The parameter {weight!r} is shared between layers. Type method='vmap'.")
        seen |= {weight} | ({bias} if bias is not None else set())
        a, b = (torch.cat(list(side), dim=1) for side in zip(*pairs, strict=True))
        products = (a @ a.mT + (1.0 if bias is not None else 0.0)) * (b @ b.mT)
        # Products of views may cancel: what rounding could have taken away is added, so that no norm comes out short.
        squared += products.sum(dim=(1, 2)) + ROUNDING * torch.finfo(a.dtype).eps * products.abs().sum(dim=(1, 2))
        if shared is not None:
            squared += 2 * ((b @ shared[weight]) * a).sum(dim=(1, 2))
            if bias is not None:
                squared += 2 * (b @ shared[bias]).sum(dim=1)
    squared = squared + _outside_linears(loss_fn, leaves, batch, seen=seen, shared=shared)
    if shared is not None:
        squared += sum(s.square().sum() for s in shared.values())
    norms = squared.clamp(min=0.0).sqrt()
    norms = torch.where(
        torch.isfinite(squared) & torch.isfinite(losses.detach()), norms, torch.full_like(norms, torch.inf)
    )
    finite = torch.isfinite(norms)
    if not bool(finite.all()):
        # Zero times NaN is NaN: such units must not be in the backward pass at all.
        kept = {k: v[finite] for k, v in batch.items()}
        rest = clipped_gradient_sum(loss_fn, params, kept, clip_norm=clip_norm, method="ghost", shared=shared)
        return ClippedSum(rest.gradients, norms)
    factors = clip_factors(norms, clip_norm)
    with torch.enable_grad():
        total = torch.autograd.grad((losses * factors).sum(), list(leaves.values()), allow_unused=True)
    out = {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(params.items(), total, strict=True)}
    if shared is not None:
        out = {k: g + factors.sum() * shared[k] for k, g in out.items()}
    return ClippedSum(out, norms)


def _outside_linears(
    loss_fn: LossFn, leaves: Params, batch: Params, *, seen: set[str], shared: Params | None
) -> Tensor | float:
    """Return squared norms (B,) over parameters that enter in another way; there must be few of them."""
    outside = {k: p.detach() for k, p in leaves.items() if k not in seen}
    if not outside:
        return 0.0
    if sum(p.numel() for p in outside.values()) >= MANY:
        raise PrivacyError(
            f"Ghost norms see linear layers only, but the large parameters {sorted(outside)[:3]} enter the loss in "
            "another way (or not at all). Type method='vmap'."
        )
    inside = {k: p.detach() for k, p in leaves.items() if k in seen}
    one_unit = torch.func.vmap(torch.func.grad(lambda p, b: loss_fn({**inside, **p}, b)), in_dims=(None, 0))
    gradients = one_unit(outside, dict(batch))
    total: Tensor | float = 0.0
    for k, g in gradients.items():
        rows = g.reshape(len(g), -1)
        total = total + rows.square().sum(dim=1)
        if shared is not None:
            total = total + 2 * rows @ shared[k].flatten()
    return total


def add_noise(
    gradients: Params, *, noise_multiplier: float, clip_norm: float, generator: np.random.Generator
) -> dict[str, Tensor]:
    """Add N(0, (sigma C)^2) to every coordinate.

    Parameters
    ----------
    gradients
        Name -> tensor, clipped sum.
    noise_multiplier
        sigma.
    clip_norm
        C.
    generator
        Secret in private use. It draws on the CPU, in float64 for any device.

    Returns
    -------
    Name -> tensor of the same shape.
    """
    out = {}
    for name, g in gradients.items():
        noise = generator.standard_normal(tuple(g.shape)) * (noise_multiplier * clip_norm)
        out[name] = g + torch.as_tensor(np.asarray(noise), dtype=g.dtype, device=g.device)
    return out
