"""scSiameseClu: two augmented views, a cell graph and optimal transport (arXiv 2505.12626; IJCAI 2025).

The text gives the modules and their purpose; the equations of ``variant="paper"`` follow the public repository (commit
59ea9ee, no licence), re-implemented, nothing copied. The numbers S1 to S26 are this package's own; ``DEVIATIONS`` lists
what differs and why.

Symbols: n cells, p modelled genes, K clusters, d latent dimensions, b cells of a batch, N = b + queue; X (n, p) counts,
s (n,) totals over all genes; x (n, p) log1p(1e4 X / s); H, Z (n, d) embeddings; A (n, n) weights of the cell graph,
T = D^-1 (A + I), L = a I + (1 - a) T and Pi = a (I - (1 - a) T)^-1 with teleport a, O either of them; Q (n, K) soft
assignments, P (N, K) transport plan, C (K, d) prototypes. Losses are means over cells, likelihoods in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cellsmith.math import assign, counts, graph, pca, transport
from cellsmith.math.contrast import cross_correlation, propagation_divergence
from cellsmith.math.likelihood import nb_log_prob_softmax, zinb_log_prob
from cellsmith.model.scsiameseclu.deviations import DEVIATIONS

__all__ = [
    "DEVIATIONS",
    "EQUATIONS",
    "Targets",
    "balance_at",
    "cell_term",
    "cluster_term",
    "fuse",
    "latent_term",
    "log_assignment",
    "move_proportions",
    "pairs_apart",
    "reconstruction",
    "swapped_loss",
    "total_loss",
    "transport_targets",
]

# S17: two cells of the same code with at least this confidence are no longer pushed apart.
SURE = 0.9
# S19: fewer clusters have no correlation worth the name.
MIN_CLUSTERS = 4
# S22, "learned": weight of the past in the running proportions.
MEMORY = 0.99
# S22, "partial": share of the cells that is transported, from the start of the stage to its end.
PARTIAL = (0.5, 1.0)


def fuse(z_gene: Tensor, z_graph: Tensor, gate: Tensor) -> Tensor:
    """S13: Z = w Z_G + (1 - w) Z_C, for embeddings (n, d) and a gate w (n, 1) in [0, 1] of each cell."""
    return gate * z_gene + (1 - gate) * z_graph


def reconstruction(
    x: Tensor, logits: Tensor, theta: Tensor, *, library: Tensor, dropout_logits: Tensor | None = None
) -> Tensor:
    """S15: minus the log-likelihood of raw counts, mean over cells and genes, nats an entry.

    Parameters
    ----------
    x
        Counts (n, p), dense or CSR.
    logits
        (n, p); their softmax times the library is the mean.
    theta
        Inverse dispersion (p,).
    library
        (n,) expected total over the modelled genes, counts.
    dropout_logits
        (n, p) of an extra zero: the ZINB.
    """
    if dropout_logits is None:
        found = nb_log_prob_softmax(x, logits, theta, library=library)
    else:
        found = zinb_log_prob(x, library[:, None] * logits.softmax(dim=1), theta, dropout_logits=dropout_logits)
    return -found.mean() / logits.shape[1]


def pairs_apart(near: Tensor, codes: Tensor | None = None, confidence: Tensor | None = None) -> Tensor:
    """S17: which pairs of cells (b, b) should be unlike: not neighbours, nor surely of one cluster.

    Parameters
    ----------
    near
        (b, b) boolean: either is among the propagation neighbours of the other.
    codes, confidence
        (b,) clusters, -1 for none, and their probability; None before there are clusters.
    """
    if codes is None or confidence is None:
        return ~near
    sure = (confidence >= SURE) & (codes >= 0)
    same = (codes[:, None] == codes) & sure[:, None] & sure
    return ~(near | same)


def cell_term(a: Tensor, b: Tensor, *, keep: Tensor | None) -> Tensor:
    """S16: both views (b, d) of a cell agree, those of cells that ``keep`` (b, b) marks are not alike."""
    return cross_correlation(a, b, keep=keep)


def latent_term(a: Tensor, b: Tensor) -> Tensor:
    """S18: each latent dimension of one view (b, d) agrees with itself in the other, and with no other."""
    return cross_correlation(a.T, b.T, center=True)


def cluster_term(a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """S19: S18 of the means of the clusters: no order of cells enters, and none of the cells is cut off.

    Parameters
    ----------
    a, b
        Views (b, d).
    q
        Soft assignments (b, K); fewer than 4 clusters give 0.
    """
    if q.shape[1] < MIN_CLUSTERS:
        return a.new_zeros(())
    share = (q / q.sum(dim=0).clamp_min(1e-8)).T
    return latent_term(share @ a, share @ b)


def log_assignment(z: Tensor, prototypes: Tensor) -> Tensor:
    """S21: log Q (n, K), Student t of one degree of freedom around prototypes (K, d)."""
    return assign.student_t(z, prototypes).clamp_min(1e-30).log()


def balance_at(fraction: float, start: float, end: float) -> float:
    """S22: rho after a fraction of the stage, log-spaced from ``start`` to ``end``, which it reaches at 3/4."""
    return start * (end / start) ** min(1.0, fraction / 0.75)


def move_proportions(proportions: Tensor, q: Tensor) -> Tensor:
    """S22, "learned": b <- 0.99 b + 0.01 mean of Q, at least 1 / (10 K) each; (K,)."""
    moved = torch.lerp(q.mean(dim=0), proportions, MEMORY).clamp_min(0.1 / len(proportions))
    return moved / moved.sum()


class Targets:
    """S22, S23: transport plans of one training run; potentials of a solve start the next, sweeps are counted.

    Parameters
    ----------
    kind
        ``proportions`` of the model: "relaxed", "learned" and "given" pay ``balance`` for other sizes, "uniform" and
        "init" allow none, "partial" leaves cells out.
    temperature
        epsilon, in nats.
    """

    def __init__(self, kind: str, temperature: float) -> None:
        self.kind, self.temperature = kind, temperature
        self.n_solves = self.n_sweeps = self.n_unconverged = 0
        self._start: dict[int, Tensor] = {}

    def forget(self) -> None:
        """Start from zero potentials again: the prototypes are others."""
        self._start = {}

    def solve(self, log_q: Tensor, proportions: Tensor, *, balance: float, mass: float = 1.0, view: int = 0) -> Tensor:
        """Return the plan P (N, K), total 1 (or ``mass``), without gradient.

        Parameters
        ----------
        log_q
            (N, K).
        proportions
            b (K,), sums to 1.
        balance
            rho, where sizes may differ.
        mass
            Share of the cells that is transported, with "partial".
        view
            Which of the two, for the start.
        """
        plan = transport_targets(
            log_q,
            proportions,
            kind=self.kind,
            temperature=self.temperature,
            balance=balance,
            mass=mass,
            start=self._start.get(view),
        )
        if self.kind != "partial":
            self._start[view] = plan.col_potential
        self.n_solves += 1
        self.n_sweeps += plan.n_sweeps
        self.n_unconverged += not plan.converged
        return plan.plan


def transport_targets(
    log_q: Tensor,
    proportions: Tensor,
    *,
    kind: str,
    temperature: float,
    balance: float,
    mass: float = 1.0,
    start: Tensor | None = None,
) -> transport.Plan:
    """S22: P = argmin <P, -log Q> - epsilon H(P) + rho KL(P^T 1 : b), rows sum to 1/N.

    Parameters
    ----------
    log_q
        (N, K).
    proportions
        b (K,), sums to 1.
    kind
        "relaxed", "learned", "given": as above; "uniform", "init": column sums are b; "partial": at most b, ``mass``.
    temperature
        epsilon; the published power lambda = 5 is 1 / epsilon.
    balance
        rho.
    mass
        Of "partial", in (0, 1].
    start
        (K,) potential to start from.
    """
    cost = -log_q.detach()
    row = torch.full_like(cost[:, 0], 1.0 / len(cost))
    if kind == "partial":
        return transport.sinkhorn_partial(
            cost, row, proportions, mass=min(mass, 1.0), epsilon=temperature, max_sweeps=200
        )
    penalty = math.inf if kind in ("uniform", "init") else balance
    return transport.sinkhorn(cost, row, proportions, epsilon=temperature, col_penalty=penalty, start=start)


def swapped_loss(plans: tuple[Tensor, Tensor], log_q: tuple[Tensor, Tensor]) -> Tensor:
    """S24: -1/2 mean over the batch of P^1 . log Q^2 + P^2 . log Q^1, rows of P scaled to 1; no gradient through P.

    Parameters
    ----------
    plans
        P of either view (b, K), the batch's rows; rows without mass (left out by "partial") have no target.
    log_q
        log Q of either view (b, K).
    """
    found = log_q[0].new_zeros(())
    for plan, other in zip(plans, log_q[::-1], strict=True):
        mass = plan.sum(dim=1, keepdim=True)
        target = torch.where(mass > 1e-12, plan / mass.clamp_min(1e-12), 0.0)
        found = found - 0.5 * (target * other).sum(dim=1).mean()
    return found


def total_loss(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """S25: the weighted sum of the named terms; a term without a weight counts once."""
    return torch.stack([value * weights.get(name, 1.0) for name, value in terms.items()]).sum()


EQUATIONS = {
    "S1": pca.principal_axes,
    "S2": graph.fuzzy_union,
    "S3": graph.random_walk,
    "S4": graph.ppr_dense,
    "S5": graph.ppr_push,
    "S6": graph.ppr_topk,
    "S7": graph.lazy_walk,
    "S8": graph.drop_edges,
    "S9": graph.place_beside,
    "S10": counts.perturbed_view,
    "S11": "cellsmith.model.scsiameseclu.module.SiameseModule.hidden",
    "S12": "cellsmith.model.scsiameseclu.module.SiameseModule.propagate",
    "S13": fuse,
    "S14": "cellsmith.model.scsiameseclu.module.SiameseModule.decode",
    "S15": reconstruction,
    "S16": cell_term,
    "S17": pairs_apart,
    "S18": latent_term,
    "S19": cluster_term,
    "S20": propagation_divergence,
    "S21": log_assignment,
    "S22": transport_targets,
    "S23": transport.sinkhorn,
    "S24": swapped_loss,
    "S25": total_loss,
    "S26": "cellsmith.model.scsiameseclu.report.sureness",
    "S26 soft clusters": "cellsmith.model.scsiameseclu.training.TrainingMixin._soft",
}
