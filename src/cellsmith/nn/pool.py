"""The pool of small classifiers that judge how well two labelled sets teach (SCDD, eq. 18)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["KINDS", "PoolNetwork"]

KINDS = ("linear", "mlp", "mlp_norm", "cosine")
COSINE_SCALE = 10.0


class PoolNetwork(nn.Module):
    """One classifier of the pool, with weights from a generator.

    "linear": a linear layer; "mlp": one hidden layer of 128; "mlp_norm": two of 256 with LayerNorm; "cosine": cosines
    with one direction a class, times 10. Never one architecture alone: profiles then serve no other.

    Parameters
    ----------
    n_input, n_classes
        Genes and classes.
    kind
        One of :data:`KINDS`.
    generator
        Source of the weights.
    """

    def __init__(self, n_input: int, n_classes: int, *, kind: str, generator: torch.Generator) -> None:
        super().__init__()
        self.kind = kind
        widths = {"linear": [], "mlp": [128], "mlp_norm": [256, 256], "cosine": []}[kind]
        sizes = [n_input, *widths]
        self.hidden = nn.ModuleList(_linear(a, b, generator) for a, b in pairwise(sizes))
        self.head = _linear(sizes[-1], n_classes, generator, bias=kind != "cosine")

    @property
    def weights(self) -> list[Tensor]:
        """Matrices (out, in) of all layers, the first first: what gradients are compared on."""
        return [layer.get_parameter("weight") for layer in (*self.hidden, self.head)]

    def features(self, x: Tensor) -> Tensor:
        """Return what the last layer reads, (n, width); of a classifier without hidden layer, its logits."""
        if not self.hidden:
            return self(x)
        return self._trunk(x)

    def _trunk(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = layer(x)
            if self.kind == "mlp_norm":
                x = functional.layer_norm(x, x.shape[-1:])
            # Smooth, because the profiles are moved by derivatives of gradients.
            x = functional.silu(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, n_classes) of log views (n, n_input)."""
        h = self._trunk(x)
        if self.kind == "cosine":
            return COSINE_SCALE * functional.linear(_unit(h), _unit(self.head.weight))
        return self.head(h)


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(dim=1, keepdim=True) + 1e-12)


def _linear(n_in: int, n_out: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, bias=bias, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.normal_(0.0, 1.0 / math.sqrt(n_in), generator=generator)
        if bias:
            layer.bias.zero_()
    return layer
