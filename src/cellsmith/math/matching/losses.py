"""How alike two labelled sets teach a network: by the gradients they give it, by the features they show (eq. 15, 16).

Both losses are sums over classes; the synthetic side stays on the tape, also through second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cellsmith._errors import SetupError

__all__ = ["class_gradients", "distribution_matching", "gradient_distance", "gradient_matching"]

EPS = 1e-12


def gradient_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """One minus the cosine of the gradients of every output of every layer, added up (Zhao et al., 2021).

    Parameters
    ----------
    real, synthetic
        Gradients of the same parameters; weights are (out, in) matrices, and everything with fewer dimensions (biases,
        norms) is skipped.

    Returns
    -------
    Scalar, from 0 (same direction everywhere) to twice the number of outputs. An output without gradient on both sides
    adds nothing.
    """
    total = real[0].new_zeros(())
    for a, b in zip(real, synthetic, strict=True):
        if a.dim() < 2:
            continue
        squares = a.square().sum(dim=1) * b.square().sum(dim=1)
        cosine = (a * b).sum(dim=1) * torch.rsqrt(squares.clamp_min(EPS**2))
        silent = (a == 0).all(dim=1) & (b == 0).all(dim=1)
        total = total + torch.where(silent, torch.zeros_like(cosine), 1.0 - cosine).sum()
    return total


def class_gradients(
    network: Callable[[Tensor], Tensor], x: Tensor, label: int, *, parameters: Sequence[Tensor], on_tape: bool
) -> tuple[Tensor, ...]:
    """Gradient of the mean cross-entropy of cells of one class.

    Parameters
    ----------
    network
        ``network(x) -> logits`` (n, K).
    x
        Log view of the cells (n, G).
    label
        Their class.
    parameters
        What to differentiate by, leaves of ``network``.
    on_tape
        Keep the gradient differentiable by ``x``.

    Returns
    -------
    One tensor a parameter, of its shape.
    """
    target = torch.full((len(x),), label, dtype=torch.long, device=x.device)
    loss = functional.cross_entropy(network(x), target)
    gradients = torch.autograd.grad(loss, list(parameters), create_graph=on_tape)
    return gradients if on_tape else tuple(g.detach() for g in gradients)


def gradient_matching(
    network: Callable[[Tensor], Tensor],
    real: Sequence[Tensor],
    synthetic: Sequence[Tensor],
    *,
    parameters: Sequence[Tensor],
) -> Tensor:
    """L_GM, eq. (15): sum over classes of :func:`gradient_distance`.

    Parameters
    ----------
    network
        ``network(x) -> logits`` (n, K).
    real, synthetic
        One table (n_k, G) a class, in the order of the classes; a class may be empty on both sides.
    parameters
        Leaves of ``network``.

    Returns
    -------
    Scalar, differentiable by ``synthetic``.
    """
    _same_length(real, synthetic)
    parts = []
    for k, (b, s) in enumerate(zip(real, synthetic, strict=True)):
        if len(b) and len(s):
            given = class_gradients(network, b, k, parameters=parameters, on_tape=False)
            own = class_gradients(network, s, k, parameters=parameters, on_tape=True)
            parts.append(gradient_distance(given, own))
    return torch.stack(parts).sum()


def distribution_matching(
    real: Sequence[Tensor], synthetic: Sequence[Tensor], *, variance_weight: float = 0.1
) -> Tensor:
    """L_DM, eq. (16): squared distances of the class means of features, and of their variances.

    Matching means alone lets the profiles of a class collapse onto one point (nearest neighbours then fail); the second
    moment forbids it. It is skipped where a class has a single profile.

    Parameters
    ----------
    real, synthetic
        Features (n_k, h) of each class, in the order of the classes; a class may be empty on both sides.
    variance_weight
        Weight of the second moment.

    Returns
    -------
    Scalar.
    """
    _same_length(real, synthetic)
    parts = []
    for b, s in zip(real, synthetic, strict=True):
        if len(b) and len(s):
            parts.append((b.mean(dim=0) - s.mean(dim=0)).square().sum())
            if len(s) > 1 and variance_weight > 0:
                gap = b.var(dim=0, unbiased=False) - s.var(dim=0, unbiased=False)
                parts.append(variance_weight * gap.square().sum())
    return torch.stack(parts).sum()


def _same_length(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> None:
    if len(real) != len(synthetic):
        raise SetupError(f"Found {len(real)} real and {len(synthetic)} synthetic classes, expected the same number.")
