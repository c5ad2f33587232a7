"""A sparse graph that is drawn: logits of candidates, Gumbel top-k, union and normalisation, all with gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cellsmith._errors import SetupError

__all__ = [
    "edge_logits",
    "edge_normalise",
    "edge_union",
    "gumbel_noise",
    "gumbel_topk",
    "pair_degrees",
    "settled_in_degrees",
    "straight_through",
]

_SMALLEST_DEGREE = 1e-8
_UNIFORM = 1e-7  # distance that uniform draws keep from 0 and 1
_RATE = 0.1  # of the moving average of in-degrees


def edge_logits(
    z: Tensor,
    candidates: Tensor,
    others: Tensor | None = None,
    *,
    edge_temperature: float,
    hub_penalty: float,
    in_degrees: Tensor,
    k: int,
) -> Tensor:
    """Score candidate edges, l_ij = cos(z_i, z_j) / tau - lambda log((1 + D_j) / (1 + k)) (scAGC S3).

    Parameters
    ----------
    z
        ``(m, d)`` cells that choose, centred: from an uncentred cone of vectors all cosines would be alike.
    candidates
        ``(m, M)`` int, their candidates, rows of ``others``.
    others
        ``(n, d)`` centred cells that can be chosen; None: ``z`` itself.
    edge_temperature
        tau > 0.
    hub_penalty
        lambda >= 0, in logits.
    in_degrees
        ``(n,)`` D, how often each of the others is chosen; used without gradient.
    k
        Neighbours of a cell.

    Returns
    -------
    ``(m, M)`` logits, in nats.
    """
    ends, chosen = functional.normalize(z if others is None else others, dim=1), candidates.long()
    starts = ends if others is None else functional.normalize(z, dim=1)
    cosine = torch.einsum("nd,nmd->nm", starts, ends[chosen])
    crowd = torch.log((1.0 + in_degrees.detach()) / (1.0 + k))
    return cosine / edge_temperature - hub_penalty * crowd[chosen]


def gumbel_noise(shape: Sequence[int], *, generator: torch.Generator) -> Tensor:
    """Draw standard Gumbel noise, -log(-log U), with U kept 1e-7 away from 0 and 1.

    Parameters
    ----------
    shape
        Such as ``(n, M)``.
    generator
        Source of randomness; the noise lies on its device.

    Returns
    -------
    float32 of that shape.
    """
    u = torch.rand(tuple(shape), generator=generator, device=generator.device)
    return -torch.log(-torch.log(u.clamp(_UNIFORM, 1.0 - _UNIFORM)))


def gumbel_topk(
    logits: Tensor,
    k: int,
    *,
    noise_scale: float,
    relaxation_temperature: float,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose k candidates of every cell by perturbed logits (scAGC S4, S5; Kool et al., 2019).

    y = logits + noise_scale x Gumbel. The k largest are chosen; with scale 1 that is sampling without replacement from
    softmax(logits). The relaxation is min(1, k softmax(y / T)): T shapes the gradient and changes no choice.

    Parameters
    ----------
    logits
        ``(n, M)``.
    k
        From 1 to M.
    noise_scale
        >= 0; 0 draws nothing.
    relaxation_temperature
        T > 0.
    generator
        Source of the noise, where ``noise`` is not given.
    noise
        ``(n, M)`` standard Gumbel noise, drawn before, see :func:`gumbel_noise`.

    Returns
    -------
    ``(hard, relaxed)``, both ``(n, M)``: 0 or 1 without gradient, and [0, 1] with gradient.

    Raises
    ------
    SetupError
        If k or T is out of range, or there is no source of noise.
    """
    if not 1 <= k <= logits.shape[1]:
        raise SetupError(f"Found k={k}, expected 1 to {logits.shape[1]}, the number of candidates.")
    if not relaxation_temperature > 0:
        raise SetupError(f"Found relaxation_temperature={relaxation_temperature!r}, expected a number above 0.")
    y = logits
    if noise_scale > 0:
        if noise is None and generator is None:
            raise SetupError(f"Found noise_scale={noise_scale} but no source of noise; pass generator= or noise=.")
        drawn = noise if noise is not None or generator is None else gumbel_noise(logits.shape, generator=generator)
        y = logits + noise_scale * torch.as_tensor(drawn).to(logits)
    chosen = y.detach().topk(k, dim=1).indices
    hard = torch.zeros_like(y).scatter_(1, chosen, 1.0).detach()
    relaxed = (k * torch.softmax(y / relaxation_temperature, dim=1)).clamp(max=1.0)
    return hard, relaxed


def straight_through(hard: Tensor, relaxed: Tensor) -> Tensor:
    """Return the value of ``hard`` with the gradient of ``relaxed``, both (n, M) (scAGC S5; Bengio et al., 2013)."""
    return (hard - relaxed).detach() + relaxed


def edge_union(w: Tensor, pairs: Sequence[Any]) -> Tensor:
    """Join both directions of every pair, a_ij = w_ij + w_ji - w_ij w_ji (scAGC S6).

    Parameters
    ----------
    w
        ``(n, M)`` weights of candidates, in [0, 1].
    pairs
        ``(row, col, slot, reverse_slot)``, each ``(E,)``, as of :func:`pair_list`.

    Returns
    -------
    ``(E,)`` weights in [0, 1]; on weights 0 and 1 the plain union.
    """
    row, col, slot, reverse_slot = (torch.as_tensor(part, device=w.device) for part in pairs)
    there = w[row, slot]
    back = torch.where(reverse_slot >= 0, w[col, reverse_slot.clamp(min=0)], torch.zeros((), dtype=w.dtype))
    return there + back - there * back


def pair_degrees(a: Tensor, pairs: Sequence[Any], *, n_cells: int) -> Tensor:
    """Sum the weights at every cell, D_i = sum_j a_ij.

    Parameters
    ----------
    a
        ``(E,)`` weights of undirected pairs.
    pairs
        As in :func:`edge_union`; only the first two are read.
    n_cells
        n.

    Returns
    -------
    ``(n,)``, with gradient.
    """
    ends = torch.cat([torch.as_tensor(pairs[0], device=a.device), torch.as_tensor(pairs[1], device=a.device)])
    return torch.zeros(n_cells, dtype=a.dtype, device=a.device).index_add(0, ends, torch.cat([a, a]))


def edge_normalise(a: Tensor, pairs: Sequence[Any], *, n_cells: int, degrees: Tensor | None = None) -> Tensor:
    """Divide every edge by the root of both degrees, a_ij / sqrt(D_i D_j) (scAGC S7).

    Parameters
    ----------
    a
        ``(E,)`` weights of undirected pairs.
    pairs
        As in :func:`edge_union`; only the first two are read.
    n_cells
        n.
    degrees
        ``(n,)`` degrees, where some were stored before; None: those of ``a``, with gradient.

    Returns
    -------
    ``(E,)``; degrees count as at least 1e-8.
    """
    row, col = (torch.as_tensor(part, device=a.device) for part in pairs[:2])
    d = pair_degrees(a, pairs, n_cells=n_cells) if degrees is None else degrees
    root = d.clamp(min=_SMALLEST_DEGREE).rsqrt()
    return a * root[row] * root[col]


def settled_in_degrees(
    z: Tensor, candidates: Tensor, *, k: int, edge_temperature: float, hub_penalty: float, n_steps: int = 50
) -> Tensor:
    """Let the in-degrees of fixed coordinates settle: the moving average that training would reach without noise.

    Parameters
    ----------
    z
        ``(n, d)`` centred coordinates.
    candidates
        ``(n, M)`` candidates.
    k, edge_temperature, hub_penalty
        As in :func:`edge_logits`.
    n_steps
        Steps of the moving average (rate 0.1), which starts at k everywhere.

    Returns
    -------
    ``(n,)`` in-degrees, as :func:`edge_logits` reads them.
    """
    average = torch.full((len(z),), float(k), dtype=z.dtype)
    cosines = edge_logits(z, candidates, edge_temperature=edge_temperature, hub_penalty=0.0, in_degrees=average, k=k)
    names = candidates.long()
    for _ in range(n_steps if hub_penalty > 0 else 0):
        crowd = hub_penalty * torch.log((1.0 + average) / (1.0 + k))
        chosen = torch.gather(names, 1, (cosines - crowd[names]).topk(k, dim=1).indices)
        counted = torch.bincount(chosen.reshape(-1), minlength=len(z)).to(average)
        average = (1 - _RATE) * average + _RATE * counted
    return average
