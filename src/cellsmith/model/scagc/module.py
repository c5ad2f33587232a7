"""The torch module of SCAGC: encoder, hops, decoder of counts, scores of edges, and the losses of the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass, LossOutput
from torch import Tensor, nn

from cellsmith.math import assign
from cellsmith.model._fitted import FittedState
from cellsmith.model.scagc import equations as eq
from cellsmith.model.scagc.tables import BatchEdges, GraphTables
from cellsmith.nn.autoencoder import Decoded, dense, row_totals
from cellsmith.nn.heads import RateHead
from cellsmith.nn.mlp import MLP

__all__ = ["ROWS_KEY", "SEEN_KEY", "CountDecoder", "FittedTables", "GraphModule", "SCAGCModule"]

# Key under which a batch holds the positions of its cells among all.
ROWS_KEY = "rows"
# Key of the counts that the encoder sees in training, half of every cell's molecules.
SEEN_KEY = "seen"
# Key of libraries that are not the totals of a batch, but of a part of its counts.
LIBRARY_KEY = "library"
N_SCORE = 32
N_DECODER = (128, 256)


class FittedTables(FittedState):
    """What stays of the graph after training; left alone by a state that knows nothing of it, such as the best iterate.

    z and e (n, d), hops (K, n, d), degree and in_degree (n,), center (d,), candidates (n, M), the exported graph as
    indptr, indices, weights and distances, and cluster (n,), -1 where there are none.
    """

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        if any(name.startswith(prefix) for name in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *args)


class CountDecoder(nn.Module):
    """S10: from latents and covariates to the parameters of counts.

    Parameters
    ----------
    n_input
        G, genes.
    n_latent
        d.
    n_levels
        Categories of each registered column; empty where there is nothing to correct.
    gene_likelihood
        "nb" or "zinb".
    n_batch
        Rows of theta: 1, or the number of batches for the dispersion "gene-batch".
    """

    def __init__(
        self, n_input: int, *, n_latent: int, n_levels: Sequence[int], gene_likelihood: str, n_batch: int
    ) -> None:
        super().__init__()
        self.n_levels, first, second = tuple(n_levels), *N_DECODER
        self.layers = nn.Sequential(
            MLP(n_latent + sum(n_levels), None, n_hidden=first), MLP(first, None, n_hidden=second)
        )
        self.head = RateHead(second, n_input, zero_inflated=gene_likelihood == "zinb")
        # softplus(.54) = 1: a variance between those of a Poisson and of a geometric law
        self.raw_theta = nn.Parameter(torch.full((n_batch, n_input), 0.5413))

    def forward(self, z: Tensor, levels: Tensor) -> Decoded:
        """Map latents (n, d) and levels of the registered columns (n, C) to the parameters of counts."""
        one_hot = [nn.functional.one_hot(c, n).to(z) for c, n in zip(levels.T, self.n_levels, strict=True)]
        logits, dropout_logits = self.head(self.layers(torch.cat([z, *one_hot], dim=1)))
        theta = eq.inverse_dispersion(self.raw_theta)
        return Decoded(logits, theta[0] if len(theta) == 1 else theta[levels[:, 0]], dropout_logits)


class GraphModule(BaseModuleClass):
    """What the modules of both variants have: library sizes, the fitted tables, and the bookkeeping of scvi-tools."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("median_total", torch.ones(()))
        self.register_buffer("median_factor", torch.ones(()))
        self.fitted = FittedTables()
        self.centers: nn.Parameter | None = None
        GraphModule.forget(self)

    def forget(self) -> None:
        """Drop what only a running training needs; see training.py."""
        self.tables: GraphTables | None = None
        self.keeper: Any = None
        self.partners: Tensor | None = None
        self.target_sizes: Tensor | None = None
        self.negatives: torch.Generator | None = None
        self.first_target: Any = None

    def library(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return size factor x median total (n,), counts: the totals themselves where no size factor is registered."""
        if (known := tensors.get(LIBRARY_KEY)) is not None:
            return known
        factor = tensors.get(REGISTRY_KEYS.SIZE_FACTOR_KEY)
        if factor is None:
            return row_totals(tensors[REGISTRY_KEYS.X_KEY]).float()
        return factor.reshape(-1).float() * (self.median_total / self.median_factor)

    def next_epoch(self, epoch: int, n_epochs: int) -> bool:
        """Prepare the graph for an epoch; answer whether the stage may end here (see ``EpochKeeper``)."""
        return False if self.keeper is None else self.keeper(epoch, n_epochs)

    def on_load(self, model: Any, **kwargs: Any) -> None:
        """Give a model that is being loaded the centres of its clusters."""
        if model._cluster_head == "dec" and model.n_clusters_ is not None and not model.is_untrained_:
            self.centers = nn.Parameter(torch.zeros(model.n_clusters_, self.n_latent))

    def _sum(self, terms: dict[str, Tensor], weights: Mapping[str, float], n: int) -> LossOutput:
        extra = {name: value.detach() for name, value in terms.items()}
        return LossOutput(loss=eq.total_loss(terms, dict(weights)), n_obs_minibatch=n, extra_metrics=extra)

    def _get_inference_input(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {}

    def _get_generative_input(self, tensors: Mapping[str, Tensor], inference_outputs: Any) -> dict[str, Any]:
        return {}

    def inference(self) -> dict[str, Any]:
        """Nothing: queries read the fitted tables."""
        return {}

    def generative(self) -> dict[str, Any]:
        """Nothing: queries decode latents themselves."""
        return {}


class SCAGCModule(GraphModule):
    """A per-cell encoder whose hidden rows are smoothed over a graph that is drawn from their own latents.

    Parameters
    ----------
    n_input
        G, genes.
    n_levels
        Categories of each registered column; empty where there is nothing to correct.
    n_hidden, n_layers, n_latent, n_hops, dropout_rate, gene_likelihood, dispersion
        See :class:`cellsmith.model.SCAGC`.
    n_negatives, contrast_temperature, n_clusters
        See :class:`cellsmith.model.SCAGC`; ``n_clusters`` of the head, None without one.
    """

    def __init__(
        self,
        n_input: int,
        *,
        n_levels: Sequence[int] = (),
        n_hidden: int = 128,
        n_layers: int = 1,
        n_latent: int = 15,
        n_hops: int = 3,
        dropout_rate: float = 0.1,
        gene_likelihood: str = "nb",
        dispersion: str = "gene",
        n_negatives: int = 5,
        contrast_temperature: float = 0.5,
        n_clusters: int | None = None,
    ) -> None:
        super().__init__()
        self.n_input, self.n_latent, self.n_hops, self.n_levels = n_input, n_latent, n_hops, tuple(n_levels)
        self.n_negatives, self.contrast_temperature = n_negatives, contrast_temperature
        self.encoder = MLP(n_input, None, n_hidden=n_hidden, n_layers=n_layers, dropout_rate=dropout_rate)
        spread = (n_hidden * (n_hops + 1)) ** -0.5  # of K + 1 summands
        self.hop_weights = nn.Parameter(torch.randn(n_hops + 1, n_hidden, n_latent) * spread)
        self.hop_bias = nn.Parameter(torch.zeros(n_latent))
        n_theta = self.n_levels[0] if dispersion == "gene-batch" and self.n_levels else 1
        self.decoder = CountDecoder(
            n_input, n_latent=n_latent, n_levels=n_levels, gene_likelihood=gene_likelihood, n_batch=n_theta
        )
        self.score = nn.Linear(n_latent, N_SCORE)
        self.score_form = nn.Parameter(torch.eye(N_SCORE))
        if n_clusters is not None:
            self.centers = nn.Parameter(torch.zeros(n_clusters, n_latent))

    # --- what a batch of cells is ---------------------------------------------------------------------------------

    def levels(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the level of every registered column, (n, C)."""
        n = tensors[REGISTRY_KEYS.X_KEY].shape[0]
        if not self.n_levels:
            return torch.zeros(n, 0, dtype=torch.long, device=self.median_total.device)
        extra = tensors.get(REGISTRY_KEYS.CAT_COVS_KEY)
        columns = [tensors[REGISTRY_KEYS.BATCH_KEY].reshape(n, 1)] + ([] if extra is None else [extra])
        return torch.cat(columns, dim=1).long()

    def hidden(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """S1: hidden rows h of cells, (n, n_hidden)."""
        factor = self.library(tensors) / self.median_total
        return self.encoder(eq.log_input(dense(tensors[REGISTRY_KEYS.X_KEY]).float(), factor[:, None]))

    def alone(self, h: Tensor) -> Tensor:
        """S8: e = h sum_k W_k + b (n, d), the latent of a cell whose neighbours equal itself."""
        return h @ self.hop_weights.sum(dim=0) + self.hop_bias

    def halves(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """S10: what the encoder sees of the counts of a batch, and the rest, which is to be predicted.

        The halves of Poisson counts are independent given the cell's state: noise of single molecules cannot be learnt
        by heart, which autoencoders of a few thousand cells do otherwise. The stored rows of all cells come from the
        same halves, so that nothing of the rest returns to a cell by way of its neighbours.
        """
        x, seen = (dense(tensors[key]).float() for key in (REGISTRY_KEYS.X_KEY, SEEN_KEY))
        library, total, parts = self.library(tensors), x.sum(dim=1).clamp(min=1.0), []
        for part in (seen, x - seen):
            own = library * part.sum(dim=1).clamp(min=1.0) / total
            parts.append({**tensors, REGISTRY_KEYS.X_KEY: part, LIBRARY_KEY: own})
        return parts[0], parts[1]

    # --- losses of the stages -------------------------------------------------------------------------------------

    def loss_fixed(
        self, tensors: Mapping[str, Tensor], *, weights: Mapping[str, float], generator: torch.Generator | None = None
    ) -> LossOutput:
        """S10, and S11 where it has a weight, on the graph as it is selected: the warm-up, and the fixed graphs."""
        rows = tensors[ROWS_KEY]
        seen, rest = self.halves(tensors)
        h = self.hidden(seen)
        if self.tables is None:
            z = h @ self.hop_weights[0] + self.hop_bias
            found = {"reconstruction": self._reconstruction(z, rest), **self._first_term(z, rest)}
            return self._sum(found, weights, len(rows))
        edges = self.tables.to(rows.device).batch_edges(rows, only_selected=True)
        z, hops = self._smooth(rows, edges, self.tables.batch_weights(rows, edges)[0], h)
        if self.training:
            self.tables.store_rows(rows, z, hops, alone=self.alone(h))
        found = {"reconstruction": self._reconstruction(z, rest), **self._first_term(z, rest)}
        if weights.get("graph"):
            chosen = self.tables.selected[0, rows].float()
            found["graph"] = self._graph_term(z, rows, chosen, generator)
        return self._sum(found, weights, len(rows))

    def loss_learned(
        self, tensors: Mapping[str, Tensor], *, weights: Mapping[str, float], generator: torch.Generator | None = None
    ) -> LossOutput:
        """S10 to S13 on two draws of the graph; in evaluation on the graph without noise."""
        rows = tensors[ROWS_KEY]
        seen, rest = self.halves(tensors)
        h = self.hidden(seen)
        z, drawn, edges = self._draw(rows, h, which=0)
        found = {"reconstruction": self._reconstruction(z, rest), **self._first_term(z, rest)}
        if weights.get("graph"):
            found["graph"] = self._graph_term(z, rows, drawn, generator)
        if weights.get("contrast") and self.training and len(rows) > 1:
            other = self._draw(rows, h, which=1)[0]
            keep, partner = self._negatives(rows, edges), self._partners(rows)
            found["contrast"] = eq.contrast(z, other, temperature=self.contrast_temperature, keep=keep, partner=partner)
        if self.centers is not None and weights.get("cluster"):
            q = assign.student_t(z, self.centers)
            p = assign.sharpen(q, sizes=self.target_sizes).detach()
            found["cluster"] = assign.row_divergence(p, q)
        return self._sum(found, weights, len(rows))

    def _draw(self, rows: Tensor, h: Tensor, *, which: int) -> tuple[Tensor, Tensor, BatchEdges]:
        """Draw the edges of a batch and smooth over them; in training the tables learn of it.

        Cells choose by what they are alone: smoothed latents are like those of their neighbours by construction, and a
        graph that is drawn from them confirms itself.
        """
        tables, alone = self.tables.to(rows.device), self.alone(h)
        own, hard = tables.draw_rows(rows, alone, which=which if self.training else None)
        edges = tables.batch_edges(rows, which=which, only_selected=False)
        edge_weights, degree = tables.batch_weights(rows, edges, which=which, own=own)
        smooth, hops = self._smooth(rows, edges, edge_weights, h)
        if self.training:
            tables.store_selection(rows, hard, degree, which=which)
            if which == 0:
                tables.store_rows(rows, smooth, hops, alone=alone)
        return smooth, hard, edges

    def _smooth(self, rows: Tensor, edges: BatchEdges, edge_weights: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.tables.filter_rows(rows, edges, edge_weights, h=h, hop_weights=self.hop_weights, bias=self.hop_bias)

    def _reconstruction(self, z: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        decoded = self.decoder(z, self.levels(tensors))
        return eq.reconstruction(
            tensors[REGISTRY_KEYS.X_KEY],
            decoded.logits,
            decoded.theta,
            library=self.library(tensors),
            dropout_logits=decoded.dropout_logits,
        )

    def _first_term(self, z: Tensor, rest: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """S10b: how far the latents are from the first coordinates of the half that the encoder did not see."""
        if self.first_target is None:
            return {}
        target = self.first_target(dense(rest[REGISTRY_KEYS.X_KEY]), rest[ROWS_KEY])
        return {"first": eq.relative_error(z[:, : target.shape[1]], target)}

    def _graph_term(self, z: Tensor, rows: Tensor, chosen: Tensor, generator: torch.Generator | None) -> Tensor:
        """S11: selected edges of the batch against cells drawn at random."""
        tables = self.tables
        listed = tables.candidates[rows].long()
        k = tables.rule.n_neighbors
        slots = chosen.topk(k, dim=1).indices
        source = generator if generator is not None else self.negatives
        shape = (len(rows), k * self.n_negatives)
        drawn = torch.randint(tables.n_cells, shape, generator=source, device=source.device).to(rows.device)
        ordered = listed.sort(dim=1).values
        place = torch.searchsorted(ordered, drawn).clamp(max=ordered.shape[1] - 1)
        is_negative = (torch.gather(ordered, 1, place) != drawn) & (drawn != rows[:, None])
        form = 0.5 * (self.score_form + self.score_form.T)
        u = self.score(z) @ form
        # u_i S u_j with u_j = L z_j + c: one product of width d an edge
        direction, offset = u @ self.score.weight, u @ self.score.bias
        positive, negative = (
            torch.einsum("nd,nmd->nm", direction, tables.z[cells]) + offset[:, None]
            for cells in (torch.gather(listed, 1, slots), drawn)
        )
        return eq.edge_cross_entropy(positive, negative, is_negative=is_negative)

    def _negatives(self, rows: Tensor, edges: BatchEdges) -> Tensor:
        """S12: which cells of the batch may be negatives of which: those that are no candidates, either way."""
        keep = torch.ones(len(rows), len(rows), dtype=torch.bool, device=rows.device)
        inside = edges.place >= 0
        keep[edges.row[inside], edges.place[inside]] = False
        keep[edges.place[inside], edges.row[inside]] = False
        return keep

    def _partners(self, rows: Tensor) -> Tensor | None:
        """S12: one mutual neighbour in another sample batch that is here as well, (b,), -1 for none."""
        if self.partners is None:
            return None
        self.partners = self.partners.to(rows.device)
        found, listed = torch.full_like(rows, -1), self.partners[rows]
        place = rows.new_full((self.tables.n_cells + 1,), -1)
        place[rows] = torch.arange(len(rows), device=rows.device)
        for column in range(listed.shape[1] - 1, -1, -1):
            here = place[listed[:, column]]  # -1, no partner, reads the last place, which is empty
            found = torch.where(here >= 0, here, found)
        return found

    def loss(self, *args: Any, **kwargs: Any) -> LossOutput:
        """Return the loss of the stages over the learned graph."""
        return self.loss_learned(*args, **kwargs)
