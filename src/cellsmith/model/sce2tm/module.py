"""The torch module of scE2TM: encoder, topic and gene tables, decoder, head of the external view, and the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass, LossOutput
from torch import Tensor, nn

from cellsmith._rng import isolated
from cellsmith.math import topics
from cellsmith.math.likelihood import nb_log_prob_softmax
from cellsmith.model.sce2tm import equations as eq
from cellsmith.nn.mlp import Dropout

__all__ = ["CODES_KEY", "TOTALS_KEY", "Encoder", "SCE2TMModule", "ViewHead"]

# What the batches of a training run hold beside the counts of the modelled genes; see cells.py.
TOTALS_KEY, CODES_KEY = "totals", "codes"
NEIGHBOR_KEY, NEIGHBOR_TOTALS_KEY = "neighbor", "neighbor_totals"
ROWS_KEY, VIEW_KEY, VIEW_NEIGHBOR_KEY = "view_rows", "view", "view_neighbor"
MAX_LOG_VARIANCE = 10.0


class Encoder(nn.Module):
    """T2: h = Dropout(W_2 tanh(BN(W_1 x))); mu = BN(W_mu h), log sigma^2 = BN(W_s h), within [-10, 10].

    Linear layers carry no bias: the batch norm after them would take it away again.

    Parameters
    ----------
    n_input
        V.
    n_topics
        K.
    n_hidden
        H.
    dropout_rate
        On h.
    """

    def __init__(self, n_input: int, n_topics: int, *, n_hidden: int, dropout_rate: float) -> None:
        super().__init__()
        self.first = nn.Linear(n_input, n_hidden, bias=False)
        self.norm = nn.BatchNorm1d(n_hidden)
        self.second = nn.Linear(n_hidden, n_hidden, bias=False)
        self.dropout = Dropout(dropout_rate)
        self.mean = nn.Linear(n_hidden, n_topics, bias=False)
        self.mean_norm = nn.BatchNorm1d(n_topics)
        self.log_variance = nn.Linear(n_hidden, n_topics, bias=False)
        self.log_variance_norm = nn.BatchNorm1d(n_topics)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map log-normalised expression (n, V) to the posterior of the topic scores, mu and log sigma^2 (n, K)."""
        h = self.dropout(self.second(torch.tanh(self.norm(self.first(x)))))
        log_variance = self.log_variance_norm(self.log_variance(h))
        return self.mean_norm(self.mean(h)), log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)


class ViewHead(nn.Module):
    """T2: the external view's own way to topics, E -> 512 -> batch norm -> tanh -> K -> softmax.

    Parameters
    ----------
    n_input
        E.
    n_topics
        K.
    """

    def __init__(self, n_input: int, n_topics: int) -> None:
        super().__init__()
        self.first = nn.Linear(n_input, 512, bias=False)
        self.norm = nn.BatchNorm1d(512)
        self.last = nn.Linear(512, n_topics)

    def forward(self, view: Tensor) -> Tensor:
        """Map rows of the view (n, E) to proportions (n, K)."""
        return self.last(torch.tanh(self.norm(self.first(view)))).softmax(dim=-1)


class Draw(NamedTuple):
    """Posterior of a batch and one draw z from it, (n, K) each; in evaluation z is the mean."""

    mean: Tensor
    log_variance: Tensor
    z: Tensor


class SCE2TMModule(BaseModuleClass):
    """Topics as proportions of cells and as loadings of genes.

    Parameters
    ----------
    n_input
        V, modelled genes.
    n_all_genes
        Genes of the registered object, of which the modelled ones are chosen.
    n_levels
        Categories of each registered column (batch, further covariates); empty where there is nothing to correct.
    n_view
        E; None builds no head.
    n_topics, n_hidden, n_embedding, dropout_rate, gene_likelihood, decoder_scale
        See :class:`cellsmith.model.SCE2TM`.
    prior_concentration, topic_gene_temperature, ecr_temperature, ecr_gradient
        See :class:`cellsmith.model.SCE2TM`.
    balance_weight, contrast_temperature
        See :class:`cellsmith.model.SCE2TM`.
    own_draw_for_cross
        Encode the cells once more, with a draw of their own, for the cross-view term, as the public code does.
    """

    def __init__(
        self,
        n_input: int,
        *,
        n_all_genes: int,
        n_levels: Sequence[int] = (),
        n_view: int | None = None,
        n_topics: int = 20,
        n_hidden: int = 200,
        n_embedding: int = 200,
        dropout_rate: float = 0.0,
        gene_likelihood: str = "log-multinomial",
        decoder_scale: str = "free",
        prior_concentration: float = 1.0,
        topic_gene_temperature: float = 0.2,
        ecr_temperature: float = 0.05,
        ecr_gradient: str = "implicit",
        balance_weight: float = 5.0,
        contrast_temperature: float = 0.5,
        own_draw_for_cross: bool = False,
    ) -> None:
        super().__init__()
        self.n_input, self.n_topics, self.n_levels = n_input, n_topics, tuple(n_levels)
        self.gene_likelihood = gene_likelihood
        self.topic_gene_temperature = topic_gene_temperature
        self.ecr_temperature, self.ecr_gradient = ecr_temperature, ecr_gradient
        self.balance_weight, self.contrast_temperature = balance_weight, contrast_temperature
        self.own_draw_for_cross = own_draw_for_cross
        self.encoder = Encoder(n_input, n_topics, n_hidden=n_hidden, dropout_rate=dropout_rate)
        self.topic_table = nn.Parameter(eq.start_table(n_topics, n_embedding))
        self.gene_table = nn.Parameter(eq.start_table(n_input, n_embedding))
        self.decoder_norm = nn.BatchNorm1d(n_input)
        if decoder_scale == "fixed":
            del self.decoder_norm.weight
            self.decoder_norm.register_buffer("weight", torch.ones(n_input))
        if self.n_levels:
            self.level_offset = nn.Parameter(torch.zeros(sum(self.n_levels), n_input))
            # A level of one cell would learn that cell by heart: it keeps the offset 0.
            self.register_buffer("level_free", torch.ones(sum(self.n_levels), 1))
        if gene_likelihood == "nb":
            self.log_theta = nn.Parameter(torch.zeros(n_input))
        self.head = None if n_view is None else ViewHead(n_view, n_topics)
        n_chosen = min(n_input, n_all_genes)
        for name, value in {
            "gene_index": torch.arange(n_chosen),
            # Position of every registered gene among the modelled ones; V where it is not modelled.
            "gene_place": torch.cat([torch.arange(n_chosen), torch.full((n_all_genes - n_chosen,), n_input)]),
            "prior_variance": torch.tensor(eq.prior_variance(n_topics, prior_concentration)),
            "mass_factor": torch.ones(()),
            "view_weight": torch.zeros(()),
            "reference_loss": torch.tensor(float("inf")),
            "mean_profile": torch.full((n_input,), 1.0 / n_input),
        }.items():
            self.register_buffer(name, value)
        # Sweeps of the transport solver over a training run, and solves that stopped short of their tolerance.
        self.n_sweeps, self.n_solves, self.n_unconverged = 0, 0, 0
        self.n_worse, self.halvings = 0, []
        # Column potential of the last plan, from which the next one starts: tables move little in a step.
        self.last_potential: Tensor | None = None

    # --- what a batch of cells is ---------------------------------------------------------------------------------

    def choose_genes(self, index: Tensor) -> None:
        """Model the genes with these positions (V,) among the registered ones."""
        self.gene_index.copy_(index)
        self.gene_place.fill_(self.n_input)
        self.gene_place[index] = torch.arange(self.n_input, device=index.device)

    def build_head(self, n_view: int) -> None:
        """Give the external view (n, E) its own way to topics, with fresh weights."""
        self.head = ViewHead(n_view, self.n_topics).to(self.gene_table.device)

    @torch.no_grad()
    def permute_topics(self, order: Tensor) -> None:
        """Renumber the topics: the new topic k is the old order[k] (K,)."""
        encoder = self.encoder
        tensors = [self.topic_table, encoder.mean.weight, encoder.log_variance.weight]
        if self.head is not None:
            tensors += [self.head.last.weight, self.head.last.bias]
        for norm in (encoder.mean_norm, encoder.log_variance_norm):
            tensors += [norm.weight, norm.bias, *map(norm.get_buffer, ("running_mean", "running_var"))]
        for tensor in tensors:
            tensor.copy_(tensor[order])

    def counts(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the counts of the modelled genes (n, V), dense, and the totals over all genes (n, 1)."""
        x = tensors[REGISTRY_KEYS.X_KEY]
        if (totals := tensors.get(TOTALS_KEY)) is not None:
            return _dense(x), totals
        if x.layout is torch.strided:
            return x[:, self.gene_index].float(), x.sum(dim=1, keepdim=True).float()
        rows = torch.repeat_interleave(x.crow_indices().diff(), output_size=x.values().numel())
        place = self.gene_place[x.col_indices()]
        modelled = place < self.n_input
        out = x.values().new_zeros(x.shape[0], self.n_input, dtype=torch.float32)
        out[rows[modelled], place[modelled]] = x.values()[modelled].float()
        totals = out.new_zeros(x.shape[0]).scatter_add_(0, rows, x.values().float())
        return out, totals[:, None]

    def codes(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the level of every registered column (n, C); a code past the last level means "not seen"."""
        if (codes := tensors.get(CODES_KEY)) is not None:
            return codes
        columns = []
        if self.n_levels:
            batch, extra = tensors[REGISTRY_KEYS.BATCH_KEY], tensors.get(REGISTRY_KEYS.CAT_COVS_KEY)
            columns = [batch.reshape(-1, 1)] if extra is None else [batch.reshape(-1, 1), extra]
        n = tensors[REGISTRY_KEYS.X_KEY].shape[0]
        codes = torch.cat(columns, dim=1).long() if columns else torch.zeros(n, 0, dtype=torch.long)
        return codes.minimum(torch.tensor(self.n_levels, dtype=torch.long, device=codes.device)).to(
            self.gene_table.device
        )

    # --- topics of cells, topics of genes -------------------------------------------------------------------------

    def beta(self) -> Tensor:
        """T5: loadings (K, V); the column of every gene sums to 1 over the topics."""
        return topics.topic_gene(self.distances(), temperature=self.topic_gene_temperature)

    def distances(self) -> Tensor:
        """T5: squared Euclidean distances of topics and genes (K, V)."""
        return topics.squared_distances(self.topic_table, self.gene_table)

    def logits(self, theta: Tensor, codes: Tensor, *, beta: Tensor | None = None) -> Tensor:
        """T7: a = BN(theta beta) + R_s, (n, V), of proportions (n, K) and levels (n, C)."""
        out = self.decoder_norm(theta @ (self.beta() if beta is None else beta))
        return out + self.offsets(codes) if self.n_levels else out

    def offsets(self, codes: Tensor) -> Tensor:
        """T7: R_s (n, V), summed over the registered columns; a level that was not seen gets the mean of its column."""
        table, start, parts = self.level_offset * self.level_free, 0, []
        for column, n in enumerate(self.n_levels):
            own = table[start : start + n]
            parts.append(torch.cat([own, own.mean(dim=0, keepdim=True)])[codes[:, column]])
            start += n
        return torch.stack(parts).sum(dim=0) if len(parts) > 1 else parts[0]

    def draw(self, x: Tensor) -> Draw:
        """T2, T3: the posterior of log-normalised expression (n, V), and a draw; in evaluation z = mu."""
        mean, log_variance = self.encoder(x)
        return Draw(mean, log_variance, eq.draw_topics(mean, log_variance) if self.training else mean)

    # --- losses of the stages -------------------------------------------------------------------------------------

    def loss_topics(
        self, tensors: Mapping[str, Tensor], *, weights: Mapping[str, float], generator: torch.Generator | None = None
    ) -> LossOutput:
        """T20 without its last term: reconstruction, KL, ECR and the penalty on the offsets."""
        del generator  # evaluation draws nothing: z = mu
        counts, totals = self.counts(tensors)
        x = eq.log_normalize(counts, totals)
        drawn = self.draw(x)
        return self._sum(self._own_terms(tensors, counts=counts, x=x, drawn=drawn), weights, n=len(x))

    def loss_guide(
        self, tensors: Mapping[str, Tensor], *, weights: Mapping[str, float], generator: torch.Generator | None = None
    ) -> LossOutput:
        """T20: the same and the cross-view term, which the monitor leaves out so that it means the same everywhere."""
        if not self.training or NEIGHBOR_KEY not in tensors:
            return self.loss_topics(tensors, weights=weights, generator=generator)
        counts, totals = self.counts(tensors)
        x, rows = eq.log_normalize(counts, totals), tensors[ROWS_KEY]
        neighbor = eq.log_normalize(_dense(tensors[NEIGHBOR_KEY]), tensors[NEIGHBOR_TOTALS_KEY])
        if self.own_draw_for_cross:
            drawn, own, other = self.draw(x), self.draw(x[rows]).z, self.draw(neighbor).z
        else:
            # One pass: cells and neighbours share the statistics of the batch norms.
            both = self.draw(torch.cat([x, neighbor]))
            drawn = Draw(*(part[: len(x)] for part in both))
            own, other = drawn.z[rows], both.z[len(x) :]
        terms = self._own_terms(tensors, counts=counts, x=x, drawn=drawn)
        terms["cross"] = self.view_weight * self.cross_term(own, other, tensors=tensors)
        return self._sum(terms, weights, n=len(x))

    def cross_term(self, z: Tensor, z_neighbor: Tensor, *, tensors: Mapping[str, Tensor]) -> Tensor:
        """T16, T19: p and p' from scores of cells that have a view and of their neighbours, r and r' by the head."""
        view = torch.cat([tensors[VIEW_KEY], tensors[VIEW_NEIGHBOR_KEY]])
        r, r_neighbor = self.head(view).chunk(2)
        return eq.cross_view(
            eq.proportions(z),
            r,
            p_neighbor=eq.proportions(z_neighbor),
            r_neighbor=r_neighbor,
            temperature=self.contrast_temperature,
            balance_weight=self.balance_weight,
        )

    def _own_terms(self, tensors: Mapping[str, Tensor], *, counts: Tensor, x: Tensor, drawn: Draw) -> dict[str, Tensor]:
        """T8-T10, T13: the terms that need no external view."""
        distances = self.distances()
        beta = topics.topic_gene(distances, temperature=self.topic_gene_temperature)
        logits = self.logits(eq.proportions(drawn.z), self.codes(tensors), beta=beta)
        terms = {
            "reconstruction": self.mass_factor * self.neg_log_likelihood(counts, x, logits).mean(),
            "kl": eq.prior_kl(drawn.mean, drawn.log_variance, self.prior_variance).mean(),
            "ecr": self._ecr(distances),
        }
        if self.n_levels:
            terms["offset"] = eq.OFFSET_PENALTY * (self.level_offset * self.level_free).square().sum()
        return terms

    def neg_log_likelihood(self, counts: Tensor, x: Tensor, logits: Tensor) -> Tensor:
        """T8: minus the log-likelihood of every cell (n,), nats."""
        if self.gene_likelihood == "nb":
            # Shares are of the modelled genes, hence so is the total that they divide.
            total = counts.sum(dim=1).clamp_min(1e-4)
            return -nb_log_prob_softmax(counts, logits, self.log_theta.exp(), library=total)
        return eq.neg_log_multinomial(counts if self.gene_likelihood == "multinomial" else x, logits)

    def _ecr(self, distances: Tensor) -> Tensor:
        """T13: the transported distance, with the solver's sweeps counted."""
        start = self.last_potential if self.ecr_gradient == "implicit" else None
        loss, plan = topics.ecr(distances, epsilon=self.ecr_temperature, gradient=self.ecr_gradient, start=start)
        if self.training:
            self.last_potential = plan.col_potential.detach()
            self.n_solves += 1
            self.n_sweeps += plan.n_sweeps
            self.n_unconverged += not plan.converged
        return loss

    def _sum(self, terms: dict[str, Tensor], weights: Mapping[str, float], *, n: int) -> LossOutput:
        extra = {name: value.detach() for name, value in terms.items()}
        return LossOutput(loss=eq.total_loss(terms, weights), n_obs_minibatch=n, extra_metrics=extra)

    def guard_view(self, means: Mapping[str, float]) -> None:
        """Halve the gate q where the held-out reconstruction stays more than 1 % above its reference for 5 epochs."""
        self.n_worse = self.n_worse + 1 if means["reconstruction"] > 1.01 * float(self.reference_loss) else 0
        if self.n_worse == 5 and float(self.view_weight) > 0:
            before = float(self.view_weight)
            self.view_weight.mul_(0.5 if len(self.halvings) < 3 else 0.0)
            self.halvings.append((before, float(self.view_weight)))
            self.n_worse = 0

    def on_load(self, model: Any, **kwargs: Any) -> None:
        """Let a model that is being loaded take the shape that its training gave it."""
        with isolated():
            model._fit_module_to_training()

    # --- the interface of scvi-tools ------------------------------------------------------------------------------

    def _get_inference_input(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        counts, totals = self.counts(tensors)
        return {"x": eq.log_normalize(counts, totals)}

    def _get_generative_input(
        self, tensors: Mapping[str, Tensor], inference_outputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"z": inference_outputs["z"], "codes": self.codes(tensors)}

    def inference(self, x: Tensor) -> dict[str, Tensor]:
        """Return mu, log sigma^2 and z (n, K) of log-normalised expression (n, V)."""
        return self.draw(x)._asdict()

    def generative(self, z: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Return log rho (n, V) of topic scores (n, K) and levels (n, C)."""
        return {"log_rho": torch.log_softmax(self.logits(eq.proportions(z), codes), dim=-1)}

    def loss(self, tensors: Mapping[str, Tensor]) -> LossOutput:
        """Return the unweighted objective without a view."""
        return self.loss_topics(tensors, weights={})


def _dense(x: Tensor) -> Tensor:
    return x if x.layout is torch.strided else x.to_dense()
