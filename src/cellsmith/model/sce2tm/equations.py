"""scE2TM: topics of gene expression, guided by an external embedding (arXiv 2507.08355; bioRxiv 2025.11.27.691023).

What was available of the publication are the abstracts and the public code (``nbnbhwyy/scE2TM``, MIT); the equations
are re-implemented from it, no code is copied. The numbers T1 to T34 are this package's own; ``DEVIATIONS`` lists what
differs from the public code and why.

Symbols: n cells, V modelled genes, K topics, L embedding width, E columns of the external view, B cells of a batch;
X (n, V) counts, s (n,) totals over ALL genes, x (n, V) log-normalised; mu, log_variance (n, K) posterior of the topic
scores z; theta (n, K) proportions, rows sum to 1; beta (K, V) topic-gene loadings, COLUMNS sum to 1; rho (n, V) shares
of genes, rows sum to 1. Losses are means over cells, in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cellsmith.math import enrichment, graph, topics, transport
from cellsmith.math.contrast import info_nce
from cellsmith.model.sce2tm.deviations import DEVIATIONS

__all__ = [
    "DEVIATIONS",
    "EQUATIONS",
    "balance",
    "choose_n_topics_by_size",
    "consistency",
    "cross_view",
    "distil",
    "draw_topics",
    "log_normalize",
    "mass_factor",
    "neg_log_multinomial",
    "normalized_expression",
    "prior_kl",
    "prior_variance",
    "proportions",
    "start_table",
    "total_loss",
]

# Counts per ten thousand: the scale of the input and of fold changes.
PER_CELL = 1e4
# Mean mass (sum of the weights of T8 over genes) at which the default weights of the other terms were measured.
REFERENCE_MASS = 800.0
# Largest exponent of T22: thousands of genes there still have a sum in float32.
MAX_EXPONENT = 60.0
# Penalty on the squared batch offsets.
OFFSET_PENALTY = 1e-4


def choose_n_topics_by_size(n_cells: int) -> int:
    """Return a number of topics by the number of cells alone: round(2 (n^0.2 - 1) / 0.2), within 10 and 50."""
    return int(min(50, max(10, round(2 * (n_cells**0.2 - 1) / 0.2))))


def log_normalize(counts: Tensor, totals: Tensor) -> Tensor:
    """T1: x = log1p(1e4 X / s), for counts (n, V) or (nnz,) and totals over all genes that broadcast to them."""
    return torch.log1p(counts * (PER_CELL / totals))


def draw_topics(mean: Tensor, log_variance: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """T3: z = mu + sigma eps, (n, K); the posterior of the topic scores is N(mu, diag sigma^2)."""
    noise = torch.empty_like(mean).normal_(generator=generator)
    return torch.addcmul(mean, (0.5 * log_variance).exp(), noise)


def proportions(z: Tensor) -> Tensor:
    """T4: theta = softmax(z), (n, K), rows sum to 1."""
    return z.softmax(dim=-1)


def start_table(n_rows: int, width: int) -> Tensor:
    """T5: a table (n_rows, width) of embeddings at the start: truncated normal, sd .02, rows of unit norm.

    Parameters
    ----------
    n_rows
        Topics or genes.
    width
        L.

    Returns
    -------
    Drawn from the global torch generator, as all weights are; the rows are free to grow afterwards.
    """
    return normalize(torch.nn.init.trunc_normal_(torch.empty(n_rows, width), std=0.02), dim=1)


def neg_log_multinomial(weights: Tensor, logits: Tensor) -> Tensor:
    """T8: -sum_j w_ij log rho_ij, (n,), for weights (n, V) and rho = softmax(logits); counts or log-normalised counts.

    Parameters
    ----------
    weights
        x of T1 ("log-multinomial") or counts X ("multinomial"), (n, V).
    logits
        a of T7, (n, V). Their log-softmax is taken, never the logarithm of a softmax, so that no share underflows.
    """
    return -(weights * torch.log_softmax(logits, dim=-1)).sum(dim=-1)


def mass_factor(mean_mass: float) -> float:
    """T9: c = m_ref / m, the one factor that brings the reconstruction to the mass at which weights were measured.

    Parameters
    ----------
    mean_mass
        m, mean over the training cells of the sum of the weights of T8 (for "nb": of the counts).
    """
    return REFERENCE_MASS / mean_mass


def prior_variance(n_topics: int, concentration: float) -> float:
    """T10: variance (1 - 1/K) / a of the Laplace approximation of a symmetric Dirichlet(a) over K topics; mean 0."""
    return (1.0 - 1.0 / n_topics) / concentration


def prior_kl(mean: Tensor, log_variance: Tensor, prior: Tensor) -> Tensor:
    """T10: KL(N(mu, sigma^2) || N(0, v0)) of every cell, (n,).

    Parameters
    ----------
    mean, log_variance
        (n, K).
    prior
        v0, a scalar.
    """
    ratio = (log_variance.exp() + mean.square()) / prior
    return 0.5 * (ratio + prior.log() - log_variance - 1.0).sum(dim=-1)


def consistency(p: Tensor, r: Tensor) -> Tensor:
    """T17: mean_i -log(p_i . r_i), for the proportions p of cells and r of their external view, (n, K) each."""
    return -(p * r).sum(dim=-1).log().mean()


def balance(p: Tensor, r: Tensor) -> Tensor:
    """T17: H(mean_i p_i) + H(mean_i r_i): large where no topic swallows all cells; p and r are (n, K)."""
    means = torch.stack([p.mean(dim=0), r.mean(dim=0)])
    return -torch.xlogy(means, means).sum()


def distil(a: Tensor, b: Tensor, *, temperature: float) -> Tensor:
    """T18: InfoNCE of the K columns of a (n, K) with those of b: topic k of the one belongs to topic k of the other.

    All 2K columns are normalised; the other 2 (K - 1) are negatives.

    Parameters
    ----------
    a, b
        Proportions of the same cells, (n, K).
    temperature
        Of the cosines.
    """
    return info_nce(a.T, b.T, temperature=temperature, within=True)


def cross_view(
    p: Tensor, r: Tensor, *, p_neighbor: Tensor, r_neighbor: Tensor, temperature: float, balance_weight: float
) -> Tensor:
    """T19: L_x = distil(r, p') + distil(p, r') + consistency(p, r) - balance_weight balance(p, r).

    Parameters
    ----------
    p, r
        T16: topics of the cells from expression and from the external view, (n, K).
    p_neighbor, r_neighbor
        p', r': the same of one neighbour of each cell, drawn among its expression and its external neighbours.
    temperature
        Of T18.
    balance_weight
        Of the entropies of the mean proportions.
    """
    across = distil(r, p_neighbor, temperature=temperature) + distil(p, r_neighbor, temperature=temperature)
    return across + consistency(p, r) - balance_weight * balance(p, r)


def total_loss(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """T20: the weighted sum of the named terms; a term without a weight counts once."""
    return torch.stack([value * weights.get(name, 1.0) for name, value in terms.items()]).sum()


def normalized_expression(log_rho: Tensor, mass: Tensor | None, *, library_size: float = PER_CELL) -> Tensor:
    """T22: expression c (n, V), rows sum to ``library_size``.

    Parameters
    ----------
    log_rho
        (n, V), log shares.
    mass
        S (n,), sum over genes of x, for the likelihood "log-multinomial": y = S rho lives on the log1p scale, and
        c is proportional to expm1(y). None: c = library_size rho.
    library_size
        Counts a cell.
    """
    if mass is None:
        return library_size * log_rho.exp()
    # A cell without counts has no mass; c then takes its limit, the shares themselves.
    y = mass.clamp_min(1e-6)[:, None] * log_rho.exp()
    # expm1 overflows float32 at 88, which the leading gene of a single topic can reach; c does not depend on the scale.
    c = torch.expm1(y - (y.amax(dim=-1, keepdim=True) - MAX_EXPONENT).clamp_min(0.0)).clamp_min(0.0)
    return c * (library_size / c.sum(dim=-1, keepdim=True))


EQUATIONS = {
    "T1": log_normalize,
    "T2": "cellsmith.model.sce2tm.module.Encoder",
    "T3": draw_topics,
    "T4": proportions,
    "T5": topics.topic_gene,
    "T6": "cellsmith.model.sce2tm.queries.QueryMixin.get_feature_by_topic",
    "T7": "cellsmith.model.sce2tm.module.SCE2TMModule.logits",
    "T8": neg_log_multinomial,
    "T9": mass_factor,
    "T10": prior_kl,
    "T11": transport.sinkhorn,
    "T12": transport.sinkhorn,
    "T13": topics.ecr,
    "T14": topics.ecr,
    "T15": graph.mutual_neighbors,
    "T16": "cellsmith.model.sce2tm.module.SCE2TMModule.cross_term",
    "T17": consistency,
    "T18": distil,
    "T19": cross_view,
    "T20": total_loss,
    "T21": "cellsmith.model.sce2tm.views.measure_gate",
    "T22": normalized_expression,
    "T23": "cellsmith.model.sce2tm.perturb.compare_topics",
    "T24": "cellsmith.model.sce2tm.perturb.edit_topics",
    "T25": "cellsmith.model.sce2tm.editing.PerturbationMixin.perturb_topics",
    "T26": "cellsmith.model.sce2tm.perturb.log_fold_change",
    "T27": topics.perplexity,
    "T28": "cellsmith.model.sce2tm.query.QueryMappingMixin.map_query",
    "T29": topics.diversity,
    "T30": topics.data_npmi,
    "T31": topics.set_npmi,
    "T32": topics.topic_quality,
    "T33": "cellsmith.metrics.topics.topic_report",
    "T34": enrichment.over_representation,
}
