"""DP-DCAN: clustering cells under differential privacy (arXiv 2311.03410).

Of the publication the abstract and the public code (``LFD-byte/DP-DCAN``) were available, not the text with its
numbered equations; the numbers 4.1 to 4.14 are this package's own. What is published is 4.14; the rest is this
package's design, and ``DEVIATIONS`` says why.

Symbols: N units (cells or donors), G genes of a public panel, c (G,) counts of a cell and n their sum, x (G,) its
transform, V (G, r) private principal axes, l (r,) their eigenvalues, p = V^T x, z (d,) latent, m (K, d) centres, q (K,)
assignment, C clip norm, sigma noise multiplier. Every function here treats cells apart unless its name says published.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize, softplus

from cellsmith.math.assign import sharpen, student_t
from cellsmith.model.dpdcan.deviations import DEVIATIONS

__all__ = [
    "DEVIATIONS",
    "EQUATIONS",
    "cluster_divergence",
    "gene_intercept",
    "instance_similarity",
    "low_rank_rate",
    "mask_genes",
    "published_input",
    "published_similarity",
    "published_target",
    "repulsion",
    "transform",
    "zinb_loss",
]

# Counts per ten thousand, a constant and never a median of the data.
PER_CELL = 1e4
_TINY = 1e-8


def transform(counts: Tensor) -> Tensor:
    """4.6: x = y / ||y||, y = log1p(1e4 c / n); a cell without counts gives zeros.

    Parameters
    ----------
    counts
        (..., G).
    """
    total = counts.sum(dim=-1, keepdim=True)
    y = torch.log1p(PER_CELL * counts / total.clamp(min=1.0))
    return y / y.norm(dim=-1, keepdim=True).clamp(min=_TINY)


def mask_genes(x: Tensor, mask_rate: float, *, generator: torch.Generator | None = None) -> Tensor:
    """4.9: a view of cells whose entries are set to zero, each by itself.

    Parameters
    ----------
    x
        (..., G).
    mask_rate
        Probability of a zero.
    generator
        Draws the mask, on its own device, which may be the CPU beside cells on a GPU.
    """
    device = x.device if generator is None else generator.device
    keep = torch.rand(x.shape, generator=generator, device=device, dtype=x.dtype) >= mask_rate
    return x * keep.to(x.device)


def gene_intercept(total: Tensor, n_units: float) -> Tensor:
    """4.8: b = 2 log max(mean h, 1e-4 / sqrt(G)), (G,), from the released sum of h = sqrt(c / n), ||h|| = 1.

    Parameters
    ----------
    total
        (G,) noisy sum over the units.
    n_units
        N.
    """
    return 2 * torch.log((total / n_units).clamp(min=1e-4 / total.numel() ** 0.5))


def low_rank_rate(u: Tensor, axes: Tensor, *, intercept: Tensor, totals: Tensor) -> Tensor:
    """4.8: rate = n softmax(b + V u), (..., G), counts.

    Parameters
    ----------
    u
        (..., r) output of the decoder.
    axes
        V, (G, r).
    intercept
        b, (G,).
    totals
        n, (..., 1).
    """
    return totals * torch.softmax(intercept + u @ axes.mT, dim=-1)


def zinb_loss(counts: Tensor, mean: Tensor, *, theta: Tensor, logits: Tensor | None) -> Tensor:
    """4.9: negative log-likelihood of counts over G, (...,), nats a gene.

    The plain formula rather than :mod:`cellsmith.math.likelihood`, whose custom backward ``torch.func`` cannot map over
    units; a test holds the two together.

    Parameters
    ----------
    counts, mean
        (..., G).
    theta
        Inverse dispersion, broadcasting to them.
    logits
        Logit of the probability of an extra zero; None is a negative binomial.
    """
    log_total = torch.log(theta + mean + _TINY)
    zero = theta * (torch.log(theta + _TINY) - log_total)
    some = zero + counts * (torch.log(mean + _TINY) - log_total)
    some = some + torch.lgamma(counts + theta) - torch.lgamma(theta) - torch.lgamma(counts + 1)
    if logits is None:
        return -torch.where(counts > 0, some, zero).mean(dim=-1)
    both = softplus(-logits)
    at_zero = softplus(zero - logits) - both
    return -torch.where(counts > 0, some - logits - both, at_zero).mean(dim=-1)


def instance_similarity(first: Tensor, second: Tensor) -> Tensor:
    """4.9: cosine of two views of ONE cell along the latent axis, (..., d) -> (...,); no other cell takes part."""
    return cosine_similarity(first, second, dim=-1)


def cluster_divergence(z: Tensor, centers: Tensor, sizes: Tensor) -> Tensor:
    """4.10: KL(t || q), (...,), nats: q Student t to the centres, t proportional to q^2 / f, held fixed.

    Parameters
    ----------
    z
        (..., d).
    centers
        (K, d).
    sizes
        f, (K,): uniform, or noisy sizes that were paid for.
    """
    q = student_t(z.reshape(-1, z.shape[-1]), centers)
    target = sharpen(q.detach(), sizes=sizes)
    terms = target * (target.clamp(min=_TINY).log() - q.clamp(min=_TINY).log())
    return terms.sum(dim=-1).reshape(z.shape[:-1])


def repulsion(centers: Tensor) -> Tensor:
    """4.10: mean cosine of all pairs of centres (K, d) = squared norm of the mean unit centre, scalar, at least 0."""
    return normalize(centers, dim=-1).mean(dim=0).square().sum()


def published_input(counts: Tensor, *, totals_median: float | Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """4.14: z-scores of log1p(c s / n), (n, G), with the median total s and moments of ALL cells; not private.

    Parameters
    ----------
    counts
        (n, G).
    totals_median
        s, counts.
    mean, sd
        (G,) over all cells.
    """
    y = torch.log1p(counts / counts.sum(dim=-1, keepdim=True).clamp(min=1.0) * totals_median)
    return (y - mean) / sd


def published_similarity(first: Tensor, second: Tensor) -> Tensor:
    """4.14: cosine along the BATCH axis, (B, d) -> scalar: one cell moves the gradient of all others; not private."""
    return cosine_similarity(first, second, dim=0).mean()


def published_target(q: Tensor) -> Tensor:
    """4.14: t proportional to q^2 / (column sums over ALL cells), (n, K); not private."""
    return sharpen(q)


_MATH = "cellsmith.math.privacy"
EQUATIONS = {
    "4.1 private step": f"{_MATH}.gradients.add_noise",
    "4.2 Gaussian release": f"{_MATH}.gaussian.gaussian_delta",
    "4.3 sampled Gaussian, integer order": f"{_MATH}.accounting.integer_rdp",
    "4.4 conversion": f"{_MATH}.accounting.rdp_epsilon",
    "4.4 ledger": f"{_MATH}.ledger.Ledger",
    "4.5 calibration": f"{_MATH}.ledger.calibrate",
    "4.6 transform of a cell": transform,
    "4.7 second moment": f"{_MATH}.moments.noisy_second_moment",
    "4.7 eigenvalues without the noise's part": f"{_MATH}.moments.debias_values",
    "4.8 gene intercept": gene_intercept,
    "4.8 rate": low_rank_rate,
    "4.9 masked view": mask_genes,
    "4.9 likelihood": zinb_loss,
    "4.9 instance term": instance_similarity,
    "4.10 clustering term": cluster_divergence,
    "4.10 repulsion": repulsion,
    "4.11 private k-means": f"{_MATH}.kmeans.private_kmeans",
    "4.13 gradients of units": f"{_MATH}.gradients.clipped_gradient_sum",
    "4.14 published input": published_input,
    "4.14 published instance term": published_similarity,
    "4.14 published target": published_target,
}
