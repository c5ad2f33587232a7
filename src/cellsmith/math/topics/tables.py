"""The tables that topics are made of: who is near whom, whose gene it is, and the pull that keeps topics apart."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cellsmith._errors import SetupError
from cellsmith.math.transport import Plan, sinkhorn

__all__ = ["ecr", "squared_distances", "topic_gene"]


def squared_distances(topic_table: Tensor, gene_table: Tensor) -> Tensor:
    """Return D_kj = ||T_k - G_j||^2, squared (T5).

    Parameters
    ----------
    topic_table
        ``(K, L)`` T.
    gene_table
        ``(V, L)`` G.

    Returns
    -------
    ``(K, V)``, >= 0.

    Raises
    ------
    SetupError
        If the tables have no common L.
    """
    if topic_table.ndim != 2 or gene_table.ndim != 2 or topic_table.shape[1] != gene_table.shape[1]:
        raise SetupError(
            f"Found tables of shape {tuple(topic_table.shape)} and {tuple(gene_table.shape)}, expected (K, L) and "
            "(V, L)."
        )
    squares = topic_table.square().sum(dim=1)[:, None] + gene_table.square().sum(dim=1)
    # rounding may leave a distance of nearly equal rows slightly below zero
    return torch.clamp_min(squares - 2 * topic_table @ gene_table.T, 0.0)


def topic_gene(distances: Tensor, *, temperature: float) -> Tensor:
    """Return beta_kj = exp(-D_kj / tau) / sum_k' exp(-D_k'j / tau) (T5).

    The softmax runs over **topics**: every gene is shared out among them, and a topic is no distribution over genes.

    Parameters
    ----------
    distances
        ``(K, V)`` D of :func:`squared_distances`.
    temperature
        tau, in units of D; small values give each gene to its nearest topic.

    Returns
    -------
    ``(K, V)``, columns sum to 1.

    Raises
    ------
    SetupError
        If the temperature is not above 0.
    """
    if not temperature > 0:
        raise SetupError(f"Found temperature={temperature!r}, expected a number above 0. Type temperature=0.2.")
    return torch.softmax(-distances / temperature, dim=0)


def ecr(
    distances: Tensor,
    *,
    epsilon: float = 0.05,
    gradient: Literal["envelope", "unrolled", "implicit"] = "unrolled",
    tol: float = 5e-3,
    max_sweeps: int = 1000,
    start: Tensor | None = None,
) -> tuple[Tensor, Plan]:
    """Return the embedding clustering regularisation <P(D), D> (T11-T13).

    P carries genes, all of weight 1/V, to topics, all of weight 1/K, at the least cost but for its entropy. The loss is
    small when every topic lies in a cluster of genes of its own. It is **not** the optimum of the transport problem:
    its gradient also runs through P, and with P held fixed ("envelope") topics become alike.

    Parameters
    ----------
    distances
        ``(K, V)`` D of :func:`squared_distances`.
    epsilon
        Weight of the entropy, in units of D.
    gradient
        ``"unrolled"`` through the sweeps, ``"implicit"`` that of the exact plan, ``"envelope"`` P held fixed.
    tol
        Summed absolute difference at which the gene weights count as met.
    max_sweeps
        Sweeps at most; whether the tolerance was met is in the plan.
    start
        ``(V,)`` column potential of the step before; not with ``"unrolled"``.

    Returns
    -------
    The loss, a scalar in units of D, and the plan with its sweeps.
    """
    n_topics, n_genes = distances.shape
    plan = sinkhorn(
        distances,
        distances.new_full((n_topics,), 1 / n_topics),
        distances.new_full((n_genes,), 1 / n_genes),
        epsilon=epsilon,
        tol=tol,
        stop="marginal",
        max_sweeps=max_sweeps,
        gradient=gradient,
        start=start,
    )
    return (plan.plan * distances).sum(), plan
