"""variant="paper": the published full-batch networks and their loss, with the faults of the public code repaired."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from scvi.module.base import LossOutput
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, mse_loss, softplus

from cellsmith.math.contrast import propagation_divergence
from cellsmith.math.likelihood import zinb_log_prob
from cellsmith.model.scsiameseclu import equations as eq
from cellsmith.model.scsiameseclu.cells import ROWS_KEY
from cellsmith.model.scsiameseclu.module import PrototypeModule
from cellsmith.nn.autoencoder import Decoded

__all__ = ["PAPER", "PaperModule"]

# Numbers of the public code; the weights are those of its joint objective.
PAPER: dict[str, Any] = {
    "n_components": 100,
    "n_top_genes": 1000,
    "n_neighbors": 10,
    "teleport": 0.1,
    "noise_scale": 0.1,
    "edge_drop_rate": 0.1,
    "gene_widths": (128, 256, 512),
    "graph_widths": (128, 256),
    "slope": 0.2,
    "transport_temperature": 0.2,
    "refresh_every": 10,
    "cell": {"gene": 0.1, "graph": 5.0},
    "propagation": 1e3,
    "zinb": 2.0,
    "transport": 10.0,
}


class _Chain(nn.Module):
    """Linear layers with leaky rectifiers between them; returns the last hidden layer as well."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers[:-1]:
            x = leaky_relu(layer(x), PAPER["slope"])
        return self.layers[-1](x), x


class _GraphChain(nn.Module):
    """H <- A tanh(H W), the last layer without tanh; returns every layer before and after its step over the graph."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(widths))

    def forward(self, h: Tensor, a: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        steps = []
        for number, layer in enumerate(self.layers):
            inside = layer(h)
            # A tanh at the end would bound what is to reconstruct principal components.
            inside = inside if number == len(self.layers) - 1 else torch.tanh(inside)
            h = a @ inside
            steps.append((inside, h))
        return h, steps


class PaperModule(PrototypeModule):
    """Gene autoencoder, graph autoencoder, free fusion weights of every cell, and attention of all cells on all.

    Parameters
    ----------
    n_input
        p, modelled genes.
    n_cells
        n; the fusion weights belong to these cells.
    n_components
        Principal components that the networks see.
    n_latent, n_prototypes
        d and K.
    """

    def __init__(self, n_input: int, *, n_cells: int, n_components: int, n_latent: int, n_prototypes: int) -> None:
        super().__init__(n_latent, n_prototypes, targets=eq.Targets("init", PAPER["transport_temperature"]))
        self.n_input, wide, narrow = n_input, PAPER["gene_widths"], PAPER["graph_widths"]
        self.gene_encoder = _Chain((n_components, *wide, n_latent))
        self.gene_decoder = _Chain((n_latent, *wide[::-1], n_components))
        self.graph_encoder = _GraphChain((n_components, *narrow, n_latent))
        self.graph_decoder = _GraphChain((n_latent, *narrow[::-1], n_components))
        self.mean, self.dispersion, self.zero = (nn.Linear(wide[0], n_input) for _ in range(3))
        self.gene_share, self.graph_share = (nn.Parameter(torch.full((n_cells, n_latent), 0.5)) for _ in range(2))
        self.attention = nn.Parameter(torch.zeros(()))
        self.hold()

    def hold(
        self,
        x: Tensor | None = None,
        *,
        counts: Tensor | None = None,
        walk: Tensor | None = None,
        diffusion: Tensor | None = None,
    ) -> None:
        """Hold what a full-batch run needs, or let it go.

        Parameters
        ----------
        x
            (n, c) principal components.
        counts
            (n, p).
        walk, diffusion
            (n, n) symmetric walk A_n and its PageRank A_d.
        """
        # Buffers, so that they follow the module to its device; not in its files.
        held = {"x": x, "counts": counts, "walk": walk, "diffusion": diffusion, "dropped": walk, "plan": None}
        for name, value in held.items():
            self.register_buffer(name, value, persistent=False)
        self.generator: torch.Generator | None = None

    # --- pre-training ---------------------------------------------------------------------------------------------

    def loss_gene(
        self, tensors: Mapping[str, Tensor], *, weights: Mapping[str, float], generator: torch.Generator | None = None
    ) -> LossOutput:
        """10 MSE of the principal components, in batches."""
        x = self.x[tensors[ROWS_KEY]]
        return _out({"gene": 10 * mse_loss(self.gene_decoder(self.gene_encoder(x)[0])[0], x)}, weights, len(x))

    def loss_graph(
        self, tensors: Mapping[str, Tensor], *, weights: Mapping[str, float], generator: torch.Generator | None = None
    ) -> LossOutput:
        """MSE of A_n X, and of A_n itself with weight .5."""
        z, _ = self.graph_encoder(self.x, self.walk)
        out, _ = self.graph_decoder(z, self.walk)
        terms = {"graph": mse_loss(out, self.walk @ self.x), "edges": 0.5 * mse_loss(_edges(z, out), self.walk)}
        return _out(terms, weights, len(z))

    def loss_joint(
        self, tensors: Mapping[str, Tensor], *, weights: Mapping[str, float], generator: torch.Generator | None = None
    ) -> LossOutput:
        """Both autoencoders through their common embedding."""
        z_gene, z_graph = self.gene_encoder(self.x)[0], self.graph_encoder(self.x, self.walk)[0]
        z = self.fuse(z_gene, z_graph, self.walk)
        terms = self._reconstructions(z, edges=0.1, graph=0.9)[0]
        terms["agreement"] = 0.1 * mse_loss(z_gene, z_graph)
        return _out(terms, weights, len(z))

    def _reconstructions(self, z: Tensor, *, edges: float, graph: float) -> tuple[dict[str, Tensor], Tensor, list[Any]]:
        x_hat, last = self.gene_decoder(z)
        out, steps = self.graph_decoder(z, self.walk)
        terms = {
            "gene": mse_loss(x_hat, self.x),
            "graph": graph * mse_loss(out, self.walk @ self.x),
            "edges": edges * mse_loss(_edges(z, out), self.walk),
        }
        return terms, last, steps

    # --- the objective --------------------------------------------------------------------------------------------

    def fuse(self, z_gene: Tensor, z_graph: Tensor, walk: Tensor) -> Tensor:
        """Z = alpha softmax(Z_L Z_L^T) Z_L + Z_L with Z_L = A (A_w Z_G + B_w Z_C); (n, d).

        Parameters
        ----------
        z_gene, z_graph
            (n, d).
        walk
            (n, n) A.
        """
        local = walk @ (self.gene_share * z_gene + self.graph_share * z_graph)
        return self.attention * (torch.softmax(local @ local.T, dim=1) @ local) + local

    def embed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return Z_G, Z_C and Z (n, d) without noise."""
        z_gene = self.gene_encoder(self.x)[0]
        z_graph = 0.5 * (self.graph_encoder(self.x, self.walk)[0] + self.graph_encoder(self.x, self.diffusion)[0])
        return z_gene, z_graph, self.fuse(z_gene, z_graph, self.walk)

    def loss_main(
        self, tensors: Mapping[str, Tensor], *, weights: Mapping[str, float], generator: torch.Generator | None = None
    ) -> LossOutput:
        """L_corr + L_rec + 2 L_ZINB + 10 L_clu."""
        noise = [torch.randn(self.x.shape, generator=self.generator).to(self.x) for _ in (0, 1)]
        views = [self.x * (1 + PAPER["noise_scale"] * e) for e in noise]
        gene = [self.gene_encoder(v)[0] for v in views]
        graph, steps = zip(
            *(self.graph_encoder(v, a) for v, a in zip(views, (self.dropped, self.diffusion), strict=True)), strict=True
        )
        z = self.fuse(sum(gene) / 2, sum(graph) / 2, self.dropped)
        log_q = self.log_q(z)
        terms, last, down = self._reconstructions(z, edges=0.1, graph=1.0)
        terms["cell"] = PAPER["cell"]["gene"] * eq.cell_term(*gene, keep=None)
        terms["cell"] = terms["cell"] + PAPER["cell"]["graph"] * eq.cell_term(*graph, keep=None)
        terms["cluster"] = sum(eq.cluster_term(a, b, log_q.exp().detach()) for a, b in (gene, graph))
        both = [0.5 * (propagation_divergence(*a) + propagation_divergence(*b)) for a, b in zip(*steps, strict=True)]
        terms["propagation"] = PAPER["propagation"] * sum(both + [propagation_divergence(*pair) for pair in down])
        terms["zinb"] = PAPER["zinb"] * self._zinb(last)
        terms["transport"] = PAPER["transport"] * self._divergence(log_q)
        return _out(terms, weights, len(z))

    def heads(self, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log mean, inverse dispersion and zero logits (n, p) of the last hidden layer (n, 128)."""
        log_mean = self.mean(last).clamp(-11.5, 13.8)  # means from 1e-5 to 1e6
        return log_mean, softplus(self.dispersion(last)).clamp(1e-4, 1e4), self.zero(last)

    def _zinb(self, last: Tensor) -> Tensor:
        log_mean, theta, zero = self.heads(last)
        return -zinb_log_prob(self.counts, log_mean.exp(), theta, dropout_logits=zero).mean() / self.n_input

    def _divergence(self, log_q: Tensor) -> Tensor:
        """KL(P || Q) / n, with log Q and not Q; P is renewed every ten epochs."""
        if self.plan is None:
            self.plan = self.targets.solve(log_q, self.proportions, balance=1.0) * len(log_q)
        return (self.plan * (self.plan.clamp_min(1e-30).log() - log_q)).sum(dim=1).mean()

    def decode(self, z: Tensor, batch: Tensor) -> Decoded:
        """Return the parameters of the counts of embeddings (n, d); no batch is corrected."""
        log_mean, theta, zero = self.heads(self.gene_decoder(z)[1])
        return Decoded(log_mean, theta, zero)

    # --- the interface of scvi-tools ------------------------------------------------------------------------------

    def _get_inference_input(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def _get_generative_input(self, tensors: Mapping[str, Tensor], inference_outputs: Any) -> dict[str, Tensor]:
        return {"z": inference_outputs["z"]}

    def inference(self) -> dict[str, Tensor]:
        """Return the embedding of all cells."""
        return {"z": self.embed()[2]}

    def generative(self, z: Tensor) -> dict[str, Tensor]:
        """Return the shares of genes (n, p)."""
        return {"rho": self.decode(z, z).rho}

    def loss(self, tensors: Mapping[str, Tensor]) -> LossOutput:
        """Return the objective of the last stage."""
        return self.loss_main(tensors, weights={})


def _edges(z: Tensor, out: Tensor) -> Tensor:
    """Return the mean of both reconstructions of the graph (n, n); their sum would reach 2."""
    return 0.5 * (torch.sigmoid(z @ z.T) + torch.sigmoid(out @ out.T))


def _out(terms: dict[str, Tensor], weights: Mapping[str, float], n: int) -> LossOutput:
    extra = {name: value.detach() for name, value in terms.items()}
    return LossOutput(loss=eq.total_loss(terms, dict(weights)), n_obs_minibatch=n, extra_metrics=extra)
