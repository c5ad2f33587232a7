"""The published design of scAGC on dense arrays, with its repairs: ``variant="paper"``, up to 5,000 cells."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scvi.module.base import LossOutput
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from cellsmith._rng import Streams, isolated
from cellsmith.math import assign, graph
from cellsmith.math.counts import library_totals, log_normalized
from cellsmith.math.likelihood import zinb_log_prob
from cellsmith.math.pca import principal_axes
from cellsmith.model._stage import Optim, Stage
from cellsmith.model.scagc import equations as eq
from cellsmith.model.scagc.clusters import choose_clusters
from cellsmith.model.scagc.module import N_SCORE, GraphModule
from cellsmith.nn.autoencoder import Decoded

__all__ = ["PublishedMixin", "PublishedModule"]

N_HIDDEN, N_LATENT, N_HOPS, N_NEIGHBORS, N_COMPONENTS = 128, 15, 3, 15, 50
DECODER = (128, 256, 512)
TEMPERATURE, RELAXATION, CONTRAST = 1.0, 0.5, 0.7
MEAN_RANGE = (1e-5, 1e6)
TARGET_EVERY = 8


class TAGLayer(nn.Module):
    """sum_k A^k h W_k + b for k = 0 ... K (Du et al., 2017), on a dense graph; every hop starts from the last one.

    Parameters
    ----------
    n_in, n_out
        Widths.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(N_HOPS + 1, n_in, n_out))
        for hop in self.weight.data:
            nn.init.xavier_uniform_(hop)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, h: Tensor, a: Tensor) -> Tensor:
        """Map rows (n, n_in) over a normalised graph (n, n) to (n, n_out)."""
        found = h @ self.weight[-1]
        for k in range(N_HOPS - 1, -1, -1):
            found = h @ self.weight[k] + a @ found
        return found + self.bias


class PublishedDecoder(nn.Module):
    """128-256-512 ReLU, then mean, inverse dispersion and dropout for every cell and gene.

    Parameters
    ----------
    n_input
        G.
    """

    def __init__(self, n_input: int) -> None:
        super().__init__()
        widths = (N_LATENT, *DECODER)
        layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*layers)
        self.mean, self.theta, self.dropout = (nn.Linear(widths[-1], n_input) for _ in range(3))
        self.register_buffer("median_total", torch.ones(()))

    def forward(self, z: Tensor, levels: Tensor) -> Decoded:
        """Map latents (n, d) to parameters of counts; the decoder reads no batch."""
        h = self.layers(z)
        logits = self.mean(h).clamp(*(float(np.log(v)) for v in MEAN_RANGE))
        theta = softplus(self.theta(h)).clamp(*eq.THETA_RANGE)
        return Decoded(logits, theta, self.dropout(h), logits.exp().sum(dim=1) / self.median_total)


class PublishedModule(GraphModule):
    """Graph layers on the full input, all cells at once.

    Parameters
    ----------
    n_input
        G, genes.
    """

    n_latent, n_hops = N_LATENT, N_HOPS

    def __init__(self, n_input: int) -> None:
        super().__init__()
        self.first, self.second = TAGLayer(n_input, N_HIDDEN), TAGLayer(N_HIDDEN, N_LATENT)
        self.decoder = PublishedDecoder(n_input)
        self.score = nn.Linear(N_LATENT, N_SCORE)
        self.score_form = nn.Parameter(torch.eye(N_SCORE))
        self.forget()

    def forget(self) -> None:
        """Drop what only a running training needs."""
        super().forget()
        # Input (n, G), counts, library (n,), graph of the last epoch, target: buffers, so that they follow the module.
        for name in ("inputs", "counts", "size_factor", "graph", "target"):
            self.register_buffer(name, None, persistent=False)
        self.noise: torch.Generator | None = None

    def encode(self, a: Tensor) -> Tensor:
        """Return the latents of all cells (n, d) on a normalised graph (n, n)."""
        return self.second(self.first(self.inputs, a).relu(), a)

    def draw(self, z: Tensor, *, noise_scale: float) -> tuple[Tensor, Tensor]:
        """S3 to S7 over all other cells: the union (n, n) of what every cell selects, and its normalisation."""
        unit = normalize(z, dim=1)
        cosine = (unit @ unit.T / TEMPERATURE).masked_fill(
            torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf
        )
        hard, relaxed = graph.gumbel_topk(
            cosine,
            min(N_NEIGHBORS, len(z) - 1),
            noise_scale=noise_scale,
            relaxation_temperature=RELAXATION,
            generator=self.noise,
        )
        w = graph.straight_through(hard, relaxed)
        a = w + w.T - w * w.T
        return a, normalised(a)

    def loss_published(
        self, tensors: Mapping[str, Tensor], *, weights: Mapping[str, float], generator: torch.Generator | None = None
    ) -> LossOutput:
        """ZINB, edges, contrast with the last graph, and in the second stage KL(q to p)."""
        z = self.encode(self.graph)
        a, normal = self.draw(z, noise_scale=1.0)
        self.graph = normal.detach()
        z2 = self.encode(normal)
        decoded = self.decoder(z2, z2[:, :0].long())
        mean = decoded.logits.exp() * self.size_factor[:, None]
        log_prob = zinb_log_prob(self.counts, mean, decoded.theta, dropout_logits=decoded.dropout_logits)
        u = self.score(z2)
        edges = torch.sigmoid(u @ (0.5 * (self.score_form + self.score_form.T)) @ u.T)
        similar = normalize(z, dim=1) @ normalize(z2, dim=1).T / CONTRAST
        found = {
            "reconstruction": -log_prob.mean() / mean.shape[1],
            "graph": (edges - a.detach()).square().mean(),
            "contrast": (similar.logsumexp(dim=1) - similar.diagonal()).mean(),
        }
        if self.centers is not None and weights.get("cluster"):
            found["cluster"] = assign.row_divergence(assign.student_t(z2, self.centers), self.target)
        return self._sum(found, weights, len(z2))

    def next_epoch(self, epoch: int, n_epochs: int) -> bool:
        """Renew the target of the clusters every 8 epochs; the length is fixed."""
        if self.centers is not None and epoch % TARGET_EVERY == 0:
            with torch.no_grad():
                self.target = assign.sharpen(assign.student_t(self.encode(self.graph), self.centers))
        return False

    def loss(self, *args: Any, **kwargs: Any) -> LossOutput:
        """Return the loss of the published stages."""
        return self.loss_published(*args, **kwargs)


def normalised(a: Tensor) -> Tensor:
    """S7 on a dense graph: a_ij / sqrt(D_i D_j), (n, n)."""
    root = a.sum(dim=1).clamp(min=1e-8).rsqrt()
    return root[:, None] * a * root


class AllCells:
    """Stands in for a reader: a batch is all cells, which the module holds."""

    def __getitem__(self, indices: np.ndarray) -> dict[str, Tensor]:
        return {"rows": torch.from_numpy(np.asarray(indices))}


class PublishedMixin:
    """Stages of ``variant="paper"`` of :class:`cellsmith.model.SCAGC`."""

    def _published_stages(self) -> tuple[Stage, ...]:
        """Return ``index``, ``pretrain``, ``centers``, ``cluster`` and ``assign``; lengths are fixed as published."""
        plan = Optim(optimizer="adam", lr=1e-4, schedule="constant", patience=None, keep_best=False, weight_decay=0.0)
        weights = {name: self._weights[name] for name in ("graph", "contrast")}
        trains = ("first", "second", "decoder", "score")
        common: dict[str, Any] = {"loss": "loss_published", "refresh": "_read_all", "between": "next_epoch"}
        common |= {"batch_size": self._n_cells()}
        return (
            Stage(name="index", solve="_published_index"),
            Stage(name="pretrain", max_epochs=1000, trains=trains, weights=weights, plan=plan, **common),
            Stage(name="centers", solve="_published_centers"),
            Stage(
                name="cluster",
                max_epochs=300,
                trains=(*trains, "centers"),
                weights={**weights, "cluster": self._weights["cluster"]},
                plan=Optim(
                    optimizer="adam", lr=5e-4, schedule="constant", patience=None, keep_best=False, weight_decay=0.0
                ),
                **common,
            ),
            Stage(name="assign", solve="_assign"),
        )

    def _draw_split(self, streams: Streams, args: Mapping[str, Any]) -> Any:
        """Train on all cells where nothing is validated: the published stages have a fixed length."""
        if self._variant == "paper":
            args = {"train_size": 1.0, "validation_size": 0.0, "shuffle_set_split": False}
        return super()._draw_split(streams, args)

    def _read_all(self, streams: Streams) -> AllCells:
        self.module.next_epoch(0, 1)
        return AllCells()

    def _published_index(self, streams: Streams) -> None:
        """z-scored input, the initial kNN graph, and how many clusters it has where no number is given."""
        self._index(streams)
        module, counts = self.module, self._counts_in_memory()
        x = log_normalized(counts, library_totals(counts))
        dense_x = torch.from_numpy(x.toarray().astype(np.float32))
        module.inputs = (dense_x - dense_x.mean(dim=0)) / dense_x.std(dim=0).clamp(min=1e-6)
        module.counts = torch.from_numpy(counts.toarray().astype(np.float32))
        module.size_factor = module.counts.sum(dim=1) / module.median_total
        module.decoder.median_total.copy_(module.median_total)
        module.noise = streams.torch("noise")
        scores = principal_axes(x, N_COMPONENTS).project(x)
        table = graph.knn_table(scores, min(N_NEIGHBORS, len(scores) - 1), seed=streams.integer("init", 1))[0]
        start = graph.probabilistic_union(graph.table_matrix(table, np.ones(table.shape), len(table)))
        module.graph = normalised(torch.from_numpy(start.toarray().astype(np.float32)))
        self._initial_graph = start

    def _published_centers(self, streams: Streams) -> None:
        """Start the centres at the means of spectral clusters of the INITIAL graph; they are trained from here on."""
        module, start = self.module, sparse.csr_matrix(self._initial_graph)
        wanted = self._n_clusters
        if not isinstance(wanted, int):
            choice = choose_clusters(
                start, "auto", counts=self._counts_in_memory, batches=None, perturbed=lambda n: [], streams=streams
            )
            wanted = max(2, int(choice.labels.max()) + 1)
        labels = graph.spectral_clusters(start, wanted, seed=streams.integer("init", 3))
        self.n_clusters_ = wanted
        with torch.no_grad(), isolated():
            z = module.encode(module.graph)
            codes = torch.from_numpy(labels).to(z.device)
            sums = z.new_zeros(wanted, z.shape[1]).index_add(0, codes, z)
            module.centers = nn.Parameter(sums / torch.bincount(codes, minlength=wanted).clamp(min=1)[:, None])

    @torch.no_grad()
    def _published_latents(self) -> dict[str, Tensor]:
        """Return the latents on the graph without noise; nothing is kept for new cells, which have no place here."""
        module = self.module.eval()
        z = module.encode(module.draw(module.encode(module.graph), noise_scale=0.0)[1]).cpu()
        return {"z": z, "alone": z, "hops": torch.zeros(0, *z.shape), "degree": torch.ones(len(z))}
