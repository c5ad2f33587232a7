"""The torch module of scSiameseClu: encoder, graph branch, gate, decoder, prototypes, and the loss of its stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass, LossOutput
from torch import Tensor, nn

from cellsmith._rng import isolated
from cellsmith.math.contrast import propagation_divergence
from cellsmith.model.scsiameseclu import equations as eq
from cellsmith.model.scsiameseclu.cells import BATCH_KEY, INPUT_KEY, LIBRARY_KEY, NEAR_KEY, ROWS_KEY
from cellsmith.nn.autoencoder import Decoded
from cellsmith.nn.heads import RateHead
from cellsmith.nn.mlp import MLP

__all__ = ["Embedded", "PrototypeModule", "SiameseModule"]


class Embedded(NamedTuple):
    """Embeddings of n cells: the branch of their own genes, that of the graph, both fused (n, d), the gate (n, 1)."""

    gene: Tensor
    graph: Tensor
    fused: Tensor
    gate: Tensor


class PrototypeModule(BaseModuleClass):
    """What both variants have: prototypes of clusters, the transport that uses them, and a hook between epochs.

    Parameters
    ----------
    n_latent
        d.
    n_prototypes
        K.
    targets
        How the transport is solved.
    """

    def __init__(self, n_latent: int, n_prototypes: int, *, targets: eq.Targets) -> None:
        super().__init__()
        self.n_latent, self.n_batch_columns = n_latent, 0
        self.targets = targets
        self.keeper: Callable[[int, int], bool] | None = None
        self.register_buffer("modelled_share", torch.ones(()))
        self.set_prototypes(torch.zeros(n_prototypes, n_latent))

    def set_prototypes(self, values: Tensor, proportions: Tensor | None = None) -> None:
        """Take K prototypes, all alive.

        Parameters
        ----------
        values
            (K, d).
        proportions
            Shares (K,) of the cells that the clusters should have; None: equal ones.
        """
        k, device = len(values), self.modelled_share.device
        self.prototypes = nn.Parameter(values.clone().float().to(device))
        self.register_buffer("alive", torch.ones(k, dtype=torch.bool, device=device))
        sizes = torch.full((k,), 1.0 / k) if proportions is None else proportions
        self.register_buffer("proportions", sizes.float().to(device))
        self.targets.forget()

    def between(self, epoch: int, n_epochs: int) -> bool:
        """Let the model do what it does between two epochs.

        Parameters
        ----------
        epoch, n_epochs
            Number of the next epoch, and of all.

        Returns
        -------
        True ends the stage.
        """
        return False if self.keeper is None else self.keeper(epoch, n_epochs)

    def log_q(self, z: Tensor) -> Tensor:
        """S21: log Q (n, K) of embeddings (n, d), over the prototypes that are alive."""
        return eq.log_assignment(z, self.prototypes[self.alive])

    def on_load(self, model: Any, **kwargs: Any) -> None:
        """Let a model that is being loaded take the shape that its training gave it."""
        with isolated():
            model._fit_module_to_training()


class SiameseModule(PrototypeModule):
    """One encoder for both views of a cell, a branch over the graph, a gate between the two, prototypes of clusters.

    Parameters
    ----------
    n_input
        p, modelled genes.
    n_batch
        Batches that the decoder tells apart; 1 corrects nothing.
    n_latent, n_hidden, n_layers, dropout_rate, gene_likelihood
        See :class:`cellsmith.model.ScSiameseClu`.
    n_prototypes
        K.
    proportions, transport_temperature
        See :class:`cellsmith.model.ScSiameseClu`; an array is "given" here.
    fixed_gate
        A gate that is not learned, for comparison; None learns it.
    """

    def __init__(
        self,
        n_input: int,
        *,
        n_batch: int = 1,
        n_latent: int = 20,
        n_hidden: int = 128,
        n_layers: int = 2,
        dropout_rate: float = 0.1,
        gene_likelihood: str = "nb",
        n_prototypes: int = 2,
        proportions: str = "relaxed",
        transport_temperature: float = 0.2,
        fixed_gate: float | None = None,
    ) -> None:
        super().__init__(n_latent, n_prototypes, targets=eq.Targets(proportions, transport_temperature))
        self.n_input = n_input
        self.n_batch_columns = n_batch if n_batch > 1 else 0
        self.fixed_gate = fixed_gate
        sizes: dict[str, Any] = {"n_hidden": n_hidden, "n_layers": n_layers, "dropout_rate": dropout_rate}
        self.encoder = MLP(n_input, n_latent, **sizes)
        self.to_gene = nn.Linear(n_latent, n_latent)
        self.to_graph = nn.Linear(n_latent, n_latent)
        self.gate = nn.Linear(2 * n_latent, 1)
        nn.init.zeros_(self.gate.bias)
        self.decoder = MLP(n_latent + self.n_batch_columns, None, **{**sizes, "dropout_rate": 0.0})
        self.head = RateHead(n_hidden, n_input, zero_inflated=gene_likelihood == "zinb")
        self.log_theta = nn.Parameter(torch.zeros(n_input))
        # For comparison: targets of a view from the other one, or from itself; whether neighbours are pushed apart too.
        self.swaps, self.masks = True, True
        self.hold(n_cells=0, n_queue=0)

    # --- what a training run holds beside the weights --------------------------------------------------------------

    def hold(self, *, n_cells: int, n_queue: int) -> None:
        """Make room for what a training run holds beside the weights.

        Parameters
        ----------
        n_cells
            n: the last H of all cells, their clusters and confidences.
        n_queue
            Rows of the views of earlier batches.
        """
        like, d = self.log_theta.detach(), self.n_latent
        # Buffers, so that they follow the module to its device; not in its files, since no query needs them.
        held = {
            "bank": like.new_zeros(n_cells, d),
            "codes": torch.full((n_cells,), -1, dtype=torch.long, device=like.device),
            "confidence": like.new_zeros(n_cells),
            "queue": like.new_zeros(2, 0, d),
        }
        for name, value in held.items():
            self.register_buffer(name, value, persistent=False)
        self.n_queue = n_queue
        self.balance, self.mass = 1.0, 1.0

    # --- a cell's way to its embedding and back -------------------------------------------------------------------

    def hidden(self, x: Tensor) -> Tensor:
        """S11: H (n, d) of log-normalised expression (n, p), dense or CSR; never sees the batch."""
        return self.encoder(x if x.layout is torch.strided else x.to_dense())

    def propagate(self, h: Tensor, tensors: Mapping[str, Tensor], view: int) -> Tensor:
        """S12: Z_C (b, d) = W_C O H: rows of H of this batch are live, those of other cells come from the bank.

        Parameters
        ----------
        h
            H (b, d) of the batch.
        tensors
            The batch.
        view
            0 or 1, which operator.
        """
        smoothed = torch.mm(tensors[f"operator{view}"], self.bank)
        smoothed = smoothed + tensors[f"inside{view}"] @ (h - self.bank[tensors[ROWS_KEY]])
        return self.to_graph(smoothed)

    def fuse(self, z_gene: Tensor, z_graph: Tensor, *, use_graph: bool = True) -> Embedded:
        """S13: gate and fuse both branches.

        Parameters
        ----------
        z_gene, z_graph
            (n, d).
        use_graph
            False: the gate is 1.
        """
        if use_graph and self.fixed_gate is None:
            gate = torch.sigmoid(self.gate(torch.cat([z_gene, z_graph], dim=1)))
        else:
            gate = z_gene.new_full((len(z_gene), 1), 1.0 if not use_graph else float(self.fixed_gate))
        return Embedded(z_gene, z_graph, eq.fuse(z_gene, z_graph, gate), gate)

    def decode(self, z: Tensor, batch: Tensor) -> Decoded:
        """S14: parameters of the counts of cells.

        Parameters
        ----------
        z
            Embeddings (n, d).
        batch
            Codes (n,); one past the last is the mean of all batches.
        """
        if self.n_batch_columns:
            k = self.n_batch_columns
            table = torch.cat([torch.eye(k), torch.full((1, k), 1.0 / k)]).to(z)
            z = torch.cat([z, table[batch.reshape(-1)]], dim=1)
        logits, dropout_logits = self.head(self.decoder(z))
        return Decoded(logits, self.log_theta.exp(), dropout_logits)

    # --- the loss -------------------------------------------------------------------------------------------------

    def loss_views(
        self, tensors: Mapping[str, Tensor], *, weights: Mapping[str, float], generator: torch.Generator | None = None
    ) -> LossOutput:
        """S25: the terms that have a weight, on two views of every cell of a batch."""
        del generator  # the views were drawn when the batch was read
        rows = tensors[ROWS_KEY]
        h = [self.hidden(tensors[f"{INPUT_KEY}{v}"]) for v in (0, 1)]
        views = [self.fuse(self.to_gene(h[v]), self.propagate(h[v], tensors, v)) for v in (0, 1)]
        if self.training:
            self.bank[rows] = (0.5 * (h[0] + h[1])).detach()
        wanted = {name for name, weight in weights.items() if weight}
        terms: dict[str, Tensor] = {}
        if "reconstruction" in wanted:
            terms["reconstruction"] = self._reconstruction(0.5 * (views[0].fused + views[1].fused), tensors)
        if "cell" in wanted:
            sure = (self.codes[rows], self.confidence[rows]) if "transport" in wanted else (None, None)
            keep = eq.pairs_apart(tensors[NEAR_KEY], *sure) if self.masks else None
            terms["cell"] = sum(eq.cell_term(a, b, keep=keep) for a, b in _branches(views))
        if "latent" in wanted:
            terms["latent"] = sum(eq.latent_term(a, b) for a, b in _branches(views))
        if "propagation" in wanted:
            terms["propagation"] = sum(self._propagation(views[v].fused, tensors[f"inside{v}"]) for v in (0, 1))
        if "transport" in wanted:
            log_q = (self.log_q(views[0].fused), self.log_q(views[1].fused))
            terms["transport"] = self._transport(views, log_q)
            if "cluster" in wanted:
                q = (0.5 * (log_q[0].exp() + log_q[1].exp())).detach()
                terms["cluster"] = sum(eq.cluster_term(a, b, q) for a, b in _branches(views))
        loss = eq.total_loss(terms, dict(weights))
        return LossOutput(loss=loss, n_obs_minibatch=len(rows), extra_metrics={k: v.detach() for k, v in terms.items()})

    def _reconstruction(self, z: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        found = self.decode(z, tensors[BATCH_KEY])
        return eq.reconstruction(
            tensors[REGISTRY_KEYS.X_KEY],
            found.logits,
            found.theta,
            library=tensors[LIBRARY_KEY] * self.modelled_share,
            dropout_logits=found.dropout_logits,
        )

    def _propagation(self, z: Tensor, inside: Tensor) -> Tensor:
        """S20 on the part of the operator that lies within the batch, rows scaled to sum to 1."""
        return propagation_divergence(z, inside / inside.sum(dim=1, keepdim=True) @ z)

    def _transport(self, views: list[Embedded], log_q: tuple[Tensor, Tensor]) -> Tensor:
        """S22 to S24 over the batch and the queue; the queue takes the batch in."""
        b = len(log_q[0])
        target_sizes = self.proportions[self.alive] / self.proportions[self.alive].sum()
        plans = []
        with torch.no_grad():
            for v in (0, 1):
                whole = torch.cat([log_q[v].detach(), self.log_q(self.queue[v])])
                plan = self.targets.solve(whole, target_sizes, balance=self.balance, mass=self.mass, view=v)
                plans.append(plan[:b])
            if self.training:
                fresh = torch.stack([view.fused.detach() for view in views])
                self.queue = torch.cat([fresh, self.queue], dim=1)[:, : self.n_queue]
                if self.targets.kind == "learned":
                    self.proportions[self.alive] = eq.move_proportions(target_sizes, log_q[0].exp())
        return eq.swapped_loss((plans[0], plans[1]) if self.swaps else (plans[1], plans[0]), log_q)

    # --- the interface of scvi-tools ------------------------------------------------------------------------------

    def _get_inference_input(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"x": tensors[f"{INPUT_KEY}0"]}

    def _get_generative_input(
        self, tensors: Mapping[str, Tensor], inference_outputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"z": inference_outputs["z"], "batch": tensors[BATCH_KEY]}

    def inference(self, x: Tensor) -> dict[str, Tensor]:
        """Return the embedding z (n, d) of log-normalised expression (n, p) by its own genes alone."""
        return {"z": self.to_gene(self.hidden(x))}

    def generative(self, z: Tensor, batch: Tensor) -> dict[str, Tensor]:
        """Return the shares rho (n, p) of embeddings (n, d)."""
        return {"rho": self.decode(z, batch).rho}

    def loss(self, tensors: Mapping[str, Tensor]) -> LossOutput:
        """Return the reconstruction alone."""
        return self.loss_views(tensors, weights={"reconstruction": 1.0})


def _branches(views: list[Embedded]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return both views of the gene branch, and of the graph branch."""
    return (views[0].gene, views[1].gene), (views[0].graph, views[1].graph)
