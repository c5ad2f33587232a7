"""scAGC: clustering on a cell graph that is learned (arXiv 2508.09180; BIBM 2025).

Only the abstract and a public implementation without a licence were available; nothing of it is copied. The abstract
claims edges drawn by a Gumbel softmax, a relief of hubs, a graph network, a ZINB of counts and a contrast between
states of the graph. The numbers S1 to S13 are this package's own; ``DEVIATIONS`` lists what differs and why.

Symbols: n cells, G genes, b cells of a batch, M candidates a cell, k neighbours a cell, K hops, C clusters, d latent
dimensions; x (n, G) counts, s (n,) size factors with median 1; h hidden rows of the encoder; e (n, d) what cells are
alone, z (n, d) latents, smoothed over the graph; c(i) the candidates of cell i; l (n, M) logits of the edges, w (n, M)
which of them are selected, a the weights of undirected edges, D degrees. Losses are means, in nats.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss

from cellsmith.math import assign, graph
from cellsmith.math.contrast import info_nce
from cellsmith.math.likelihood import nb_log_prob_softmax, zinb_log_prob
from cellsmith.model.scagc.deviations import DEVIATIONS

__all__ = [
    "DEVIATIONS",
    "EQUATIONS",
    "contrast",
    "cosine_gap",
    "edge_cross_entropy",
    "inverse_dispersion",
    "log_input",
    "move_in_degree",
    "noise_at",
    "reconstruction",
    "relative_error",
    "scaled_temperature",
    "total_loss",
    "vote",
]

# S3: cells that the gap of cosines is measured on.
SAMPLED_CELLS = 2_000
# S4: where the noise of training ends, and how fast the running in-degree of S3 moves.
FINAL_NOISE = 0.1
DEGREE_RATE = 0.1
# S10: bounds of the inverse dispersion.
THETA_RANGE = (1e-4, 1e4)


def log_input(counts: Tensor, size_factor: Tensor) -> Tensor:
    """S1: v = log1p(x / s), for counts (n, G) or (nnz,) and size factors (median 1) that broadcast to them."""
    return torch.log1p(counts / size_factor)


def cosine_gap(z: Tensor, candidates: Tensor) -> float:
    """Return the mean of 1 - cos between a cell and its candidates, over at most 2,000 evenly spaced cells.

    Parameters
    ----------
    z
        (n, d) centred coordinates.
    candidates
        (n, M).
    """
    rows = torch.arange(0, len(z), max(1, len(z) // SAMPLED_CELLS), device=z.device)
    unit = torch.nn.functional.normalize(z, dim=1)
    cosine = torch.einsum("nd,nmd->nm", unit[rows], unit[candidates[rows].long()])
    return max(float(1.0 - cosine.mean()), 1e-6)


def scaled_temperature(edge_temperature: float, gap: float, first_gap: float) -> float:
    """S3: tau of the latents, edge_temperature x gap / gap of the first coordinates.

    Latents that are smoothed over a graph contract: all candidates of a cell then have cosines near 1. A temperature
    that stays as it was would draw among them at random, so it is kept in units of the gaps that there are.
    """
    return edge_temperature * gap / first_gap


def move_in_degree(in_degree: Tensor, found: Tensor) -> Tensor:
    """S3: D <- 0.9 D + 0.1 (in-degree of the last selection), (n,)."""
    return torch.lerp(in_degree, found, DEGREE_RATE)


def noise_at(fraction: float, start: float) -> float:
    """S4: scale of the Gumbel noise after a fraction of the noisy epochs, by cosine from ``start`` to 0.1.

    Parameters
    ----------
    fraction
        In [0, 1].
    start
        ``noise_scale``; below 0.1 the scale stays as it is.
    """
    end = min(start, FINAL_NOISE)
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * min(1.0, max(0.0, fraction))))


def inverse_dispersion(raw: Tensor) -> Tensor:
    """S10: theta = softplus(raw), within [1e-4, 1e4]."""
    return torch.nn.functional.softplus(raw).clamp(*THETA_RANGE)


def reconstruction(
    counts: Tensor, logits: Tensor, theta: Tensor, *, library: Tensor, dropout_logits: Tensor | None = None
) -> Tensor:
    """S10: minus the log-likelihood of the counts, a mean over cells and genes, nats an entry.

    Parameters
    ----------
    counts
        (n, G), dense or CSR.
    logits
        (n, G) of the decoder; their softmax times the library is the mean.
    theta
        Inverse dispersion (G,) or (n, G).
    library
        (n,) size factor x median total, counts.
    dropout_logits
        (n, G) of an extra zero: the ZINB.
    """
    if dropout_logits is None:
        found = nb_log_prob_softmax(counts, logits, theta, library=library)
    else:
        mean = library[:, None] * logits.softmax(dim=-1)
        found = zinb_log_prob(counts, mean, theta, dropout_logits=dropout_logits)
    return -found.mean() / logits.shape[1]


def relative_error(z: Tensor, target: Tensor) -> Tensor:
    """S10b: Huber loss (quadratic up to 1) over that of a prediction of 0, for (n, d') in units of the spread.

    A few cells lie far out in components that they alone make; squares would let them steer every step.
    """
    return smooth_l1_loss(z, target) / smooth_l1_loss(torch.zeros_like(target), target).clamp_min(1e-12)


def edge_cross_entropy(positive: Tensor, negative: Tensor, *, is_negative: Tensor) -> Tensor:
    """S11: cross-entropy of scores of selected edges (target 1) and of drawn pairs (target 0), averaged apart.

    Parameters
    ----------
    positive
        Scores of the selected edges, any shape.
    negative
        Scores of the drawn pairs, any shape.
    is_negative
        Boolean, the shape of ``negative``: false where the drawn cell is a candidate, which then does not count.
    """
    held = is_negative.to(negative.dtype)
    apart = binary_cross_entropy_with_logits(negative, torch.zeros_like(negative), weight=held, reduction="sum")
    together = binary_cross_entropy_with_logits(positive, torch.ones_like(positive))
    return together + apart / held.sum().clamp_min(1.0)


def contrast(z_a: Tensor, z_b: Tensor, *, temperature: float, keep: Tensor, partner: Tensor | None = None) -> Tensor:
    """S12: symmetric InfoNCE of the same cells on two draws of the graph.

    Parameters
    ----------
    z_a, z_b
        (b, d) latents on either graph.
    temperature
        Of the cosines.
    keep
        (b, b) boolean: which cells may be negatives of which; candidates of one another may not.
    partner
        (b,) position in the batch of a cell's mutual neighbour in another sample batch, -1 for none: a further
        positive, weighed by the share of cells that have one.
    """
    loss = info_nce(z_a, z_b, temperature=temperature, keep=keep)
    if partner is None:
        return loss
    rows = torch.nonzero(partner >= 0).reshape(-1)
    if len(rows) < 2:
        return loss
    others = partner[rows]
    further = info_nce(z_a[rows], z_b[others], temperature=temperature, keep=keep[rows][:, others])
    return loss + further * (len(rows) / len(partner))


def total_loss(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """L = S10 + graph_weight S11 + contrast_weight S12 + cluster_weight S13; a term without a weight counts once."""
    return torch.stack([value * weights.get(name, 1.0) for name, value in terms.items()]).sum()


def vote(weights: sparse.csr_matrix, clusters: np.ndarray, *, n_clusters: int, own: bool) -> np.ndarray:
    """Return soft clusters by a vote of the neighbours, (m, C), rows sum to 1.

    p_ic = (sum_j a_ij 1[y_j = c] + max_j a_ij 1[y_i = c]) / (sum_j a_ij + max_j a_ij).

    Parameters
    ----------
    weights
        (m, n) edge weights a; no row is empty.
    clusters
        (n,) clusters y, from 0.
    n_clusters
        C.
    own
        Whether the m cells are the n cells and vote themselves, as their strongest neighbour does; a new cell has no
        cluster to vote for.
    """
    n = len(clusters)
    indicator = sparse.csr_matrix((np.ones(n), (np.arange(n), clusters)), (n, n_clusters))
    counted = (weights @ indicator).toarray()
    if own:
        counted[np.arange(n), clusters] += weights.max(axis=1).toarray().ravel()
    return counted / counted.sum(axis=1, keepdims=True)


EQUATIONS = {
    "S1": log_input,
    "S2": graph.candidate_table,
    "S3": graph.edge_logits,
    "S4": graph.gumbel_topk,
    "S5": graph.straight_through,
    "S6": graph.edge_union,
    "S7": graph.edge_normalise,
    "S8": "cellsmith.nn.propagation.hop_filter",
    "S9": "cellsmith.model.scagc.tables.GraphTables",
    "S10": reconstruction,
    "S10b": relative_error,
    "S11": edge_cross_entropy,
    "S12": contrast,
    "S13": assign.row_divergence,
    "S13 assignment": assign.student_t,
    "S13 target": assign.sharpen,
}
