"""Last layers: from a hidden vector to the parameters of a distribution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LOG_VARIANCE_RANGE", "GaussianHead", "RateHead"]

LOG_VARIANCE_RANGE = (-8.0, 4.0)


class GaussianHead(nn.Module):
    """Mean and log variance of a diagonal Gaussian, in one matrix product.

    Parameters
    ----------
    n_in
        Width of the hidden vector.
    n_latent
        Dimensions of the Gaussian.
    """

    def __init__(self, n_in: int, n_latent: int) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.linear = nn.Linear(n_in, 2 * n_latent)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (n, n_latent) and log variance (n, n_latent), clamped to [-8, 4], of hidden vectors (n, n_in)."""
        mu, log_variance = self.linear(h).split(self.n_latent, dim=1)
        return mu, log_variance.clamp(*LOG_VARIANCE_RANGE)


class RateHead(nn.Module):
    """Linear last layer of a count decoder: logits whose softmax is each gene's share of the cell's counts.

    Parameters
    ----------
    n_in
        Width of the hidden vector.
    n_genes
        Number of genes.
    zero_inflated
        Also return the logits of a structural zero, for the ZINB.
    """

    def __init__(self, n_in: int, n_genes: int, *, zero_inflated: bool = False) -> None:
        super().__init__()
        self.logits = nn.Linear(n_in, n_genes)
        self.dropout_logits = nn.Linear(n_in, n_genes) if zero_inflated else None

    @torch.no_grad()
    def init_bias(self, mean_counts: Tensor) -> None:
        """Start at the mean profile: bias = log(mean + 1e-4).

        Parameters
        ----------
        mean_counts
            Mean counts of each gene (n_genes,).
        """
        self.logits.bias.copy_((torch.as_tensor(mean_counts).double() + 1e-4).log())

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (n, n_genes), and the dropout logits (n, n_genes) or None, of hidden vectors (n, n_in)."""
        return self.logits(h), None if self.dropout_logits is None else self.dropout_logits(h)

    def rate(self, h: Tensor) -> Tensor:
        """Shares (n, n_genes), rows summing to 1, of hidden vectors (n, n_in)."""
        return self.logits(h).softmax(dim=1)
