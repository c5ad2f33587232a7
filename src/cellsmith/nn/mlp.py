"""Multi-layer perceptron that treats every cell by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["MLP", "Dropout"]


class _CheapDropout(torch.autograd.Function):
    """x * mask / keep, with the mask saved instead of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep_bits: int) -> Tensor:
        n_words = -(-x.numel() // 4)
        bits = torch.empty(n_words, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        factor = (bits[: x.numel()].view(x.shape) < keep_bits - 2**15).to(x.dtype).mul_(2**16 / keep_bits)
        ctx.save_for_backward(factor)
        return x * factor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.saved_tensors[0], None


class Dropout(nn.Module):
    """Dropout that draws 16 random bits an entry on CPU, about a third of the time of ``torch.nn.Dropout`` there.

    Parameters
    ----------
    rate
        Probability of dropping, in [0, 1); on CPU rounded to a multiple of 2^-16, with the scale of the rounded value.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = float(rate)
        if not 0.0 <= self.rate < 1.0:
            raise ValueError(f"dropout rate {rate} is outside [0, 1). Pass for example dropout_rate=0.1.")

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (any shape) with entries dropped and the rest scaled up; in eval mode ``x`` itself."""
        if not self.training or self.rate == 0.0:
            return x
        keep_bits = round((1.0 - self.rate) * 2**16)
        if x.device.type != "cpu" or keep_bits == 0 or keep_bits == 2**16:
            return nn.functional.dropout(x, self.rate)
        return _CheapDropout.apply(x, keep_bits)

    def extra_repr(self) -> str:
        """Rate, for ``repr``."""
        return f"rate={self.rate}"


class MLP(nn.Module):
    """Linear, LayerNorm, SiLU blocks, then a linear layer.

    LayerNorm and never BatchNorm: the answer for a cell must not depend on the cells it shares a batch with.

    Parameters
    ----------
    n_input
        Width of the input.
    n_output
        Width of the answer. None: no linear layer at the end, the answer is the last hidden block (n_hidden wide),
        to be followed by a head.
    n_hidden
        Width of the hidden blocks.
    n_layers
        Number of hidden blocks, at least 0; 0 is one linear layer.
    dropout_rate
        Dropout on the last hidden block, that is before the last layer.
    input_dropout
        Dropout on the input.

    Attributes
    ----------
    n_output
        Width of the answer.
    """

    def __init__(
        self,
        n_input: int,
        n_output: int | None,
        *,
        n_hidden: int = 128,
        n_layers: int = 1,
        dropout_rate: float = 0.0,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [Dropout(input_dropout)] if input_dropout > 0.0 else []
        width = n_input
        for _ in range(n_layers):
            layers += [nn.Linear(width, n_hidden), nn.LayerNorm(n_hidden), nn.SiLU()]
            width = n_hidden
        if dropout_rate > 0.0:
            layers.append(Dropout(dropout_rate))
        if n_output is not None:
            layers.append(nn.Linear(width, n_output))
            width = n_output
        self.n_output = width
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (n, n_input) to (n, n_output)."""
        return self.layers(x)
