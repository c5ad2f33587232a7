"""The networks of DP-DCAN, and the loss of one unit.

Two families: "low rank" (a small network between private principal axes) and "whole" (genes in, genes out). Both treat
every unit by itself: ``prepare`` draws views and brings data into the form that ``losses`` maps over units.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scvi.module.base import BaseModuleClass, LossOutput
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus

from cellsmith._errors import PrivacyError
from cellsmith.math.assign import student_t
from cellsmith.model.dpdcan import equations as eq

__all__ = ["DPDCANModule", "refuse_batch_norm"]

LOW_RANK = "dp_pca_init"
PUBLISHED = ("reference", "none")
PUBLISHED_LATENT = 32
_BATCH_COUPLED = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def refuse_batch_norm(module: nn.Module) -> None:
    """Raise if a layer mixes the cells of a batch.

    Raises
    ------
    PrivacyError
        Naming the layer.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, _BATCH_COUPLED):
            raise PrivacyError(
                f"The layer {name!r} ({type(layer).__name__}) mixes the cells of a batch: no gradient belongs to one "
                "unit. Use LayerNorm."
            )


def _blocks(widths: list[int], activation: type[nn.Module], *, norm: bool) -> nn.Sequential:
    """Linear layers with a nonlinearity after each; LayerNorm without weights, so that norms see linear layers only."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers.append(nn.Linear(a, b))
        if norm:
            layers.append(nn.LayerNorm(b, elementwise_affine=False))
        layers.append(activation())
    return nn.Sequential(*layers)


class LowRankEncoder(nn.Module):
    """z = A p + MLP(p / scale); A starts as rows of the identity and the MLP at zero, so z starts as private PCA.

    Parameters
    ----------
    n_axes
        r.
    n_latent
        d, at most r.
    n_hidden, n_layers
        Width and number of hidden layers.
    """

    def __init__(self, n_axes: int, n_latent: int, *, n_hidden: int, n_layers: int) -> None:
        super().__init__()
        self.straight = nn.Linear(n_axes, n_latent, bias=False)
        nn.init.eye_(self.straight.weight)
        self.hidden = _blocks([n_axes, *[n_hidden] * n_layers], nn.Tanh, norm=False)
        self.last = nn.Linear(n_hidden, n_latent)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, p: Tensor, scale: Tensor) -> Tensor:
        """Map components p (..., r) to latents (..., d)."""
        return self.straight(p) + self.last(self.hidden(p / scale))


class GeneDecoder(nn.Module):
    """Latent to mean, inverse dispersion and zero-inflation logit of every gene.

    Parameters
    ----------
    widths
        From the latent (with the batch) to the last hidden layer.
    n_genes
        G.
    activation, norm
        Of the hidden layers.
    """

    def __init__(self, widths: list[int], n_genes: int, *, activation: type[nn.Module], norm: bool) -> None:
        super().__init__()
        self.trunk = _blocks(widths, activation, norm=norm)
        self.heads = nn.ModuleDict({h: nn.Linear(widths[-1], n_genes) for h in ("mean", "dispersion", "zero")})

    def forward(self, z: Tensor, totals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map z (..., d) to rate, inverse dispersion and logit, (..., G) each."""
        h = self.trunk(z)
        rate = self.heads["mean"](h).clamp(max=13.8).exp().clamp(1e-5, 1e6) * totals / eq.PER_CELL
        return rate, softplus(self.heads["dispersion"](h)).clamp(1e-4, 1e4), self.heads["zero"](h)


class DPDCANModule(BaseModuleClass):
    """Networks, and the loss of a unit.

    Parameters
    ----------
    mode
        See :class:`cellsmith.model.DPDCAN`.
    n_genes
        G.
    n_batch
        Batches, 1 where there is nothing to correct.
    n_components, n_hidden, n_layers, n_latent
        r, width, depth, d.
    n_clusters
        K of trained centres; 0 has none.
    gene_likelihood
        "zinb" or "nb".
    mask_rate
        Of the views.
    fixed_decoder
        The decoder is V and an intercept without parameters.
    freeze_projection
        Keep V as it was released.
    """

    def __init__(
        self,
        mode: str,
        n_genes: int,
        *,
        n_batch: int = 1,
        n_components: int = 32,
        n_hidden: int = 64,
        n_layers: int = 1,
        n_latent: int = 16,
        n_clusters: int = 0,
        gene_likelihood: str = "zinb",
        mask_rate: float = 0.2,
        fixed_decoder: bool = False,
        freeze_projection: bool = True,
    ) -> None:
        super().__init__()
        self.mode, self.n_batch, self.mask_rate = mode, n_batch, mask_rate
        self.low_rank, self.fixed_decoder = mode == LOW_RANK, fixed_decoder
        self.zero_inflated = gene_likelihood == "zinb"
        n_extra = n_batch if n_batch > 1 else 0
        axes = torch.zeros(n_genes, n_components)
        if self.low_rank and not freeze_projection:
            self.axes = nn.Parameter(axes)
        else:
            self.register_buffer("axes", axes)
        self.register_buffer("intercept", torch.zeros(n_genes))
        self.register_buffer("scale", torch.ones(n_components))
        self.register_buffer("gene_mean", torch.zeros(n_genes))
        self.register_buffer("gene_sd", torch.ones(n_genes))
        self.register_buffer("totals_median", torch.tensor(eq.PER_CELL))
        self.register_buffer("cluster_sizes", torch.ones(max(1, n_clusters)))
        self.register_buffer("density", torch.zeros(n_latent + 1, n_latent))
        if n_clusters:
            width = PUBLISHED_LATENT if mode in PUBLISHED else n_latent
            self.centers = nn.Parameter(torch.randn(n_clusters, width) * 0.1)
        if self.low_rank:
            self.encoder = LowRankEncoder(n_components, n_latent, n_hidden=n_hidden, n_layers=n_layers)
            trunk = _blocks([n_latent + n_extra, n_hidden], nn.Tanh, norm=False)
            self.decoder = nn.Sequential(*trunk, nn.Linear(n_hidden, n_components))
            self.log_theta = nn.Parameter(torch.zeros(()))
            self.zero_logit = nn.Parameter(torch.tensor(-3.0))
            return
        published = mode in PUBLISHED
        activation = nn.ReLU if mode == "none" else nn.Tanh
        inner, last = ([256, 64], PUBLISHED_LATENT) if published else ([128, 32], n_latent)
        self.encoder = nn.Sequential(
            *_blocks([n_genes, *inner], activation, norm=not published), nn.Linear(inner[-1], last)
        )
        if fixed_decoder:
            self.register_buffer("log_theta", torch.zeros(()))
        else:
            widths = [last + n_extra, *inner[::-1]]
            self.decoder = GeneDecoder(widths, n_genes, activation=activation, norm=not published)

    # --- a cell through the networks ------------------------------------------------------------------------------

    def inputs(self, counts: Tensor) -> Tensor:
        """Return what the encoder reads of counts (..., G), genes in, for each cell by itself given the buffers."""
        if self.mode in PUBLISHED:
            return eq.published_input(counts, totals_median=self.totals_median, mean=self.gene_mean, sd=self.gene_sd)
        x = eq.transform(counts)
        return x if self.low_rank else (x - self.gene_mean) / self.gene_sd

    def encode(self, inputs: Tensor) -> Tensor:
        """Map inputs (..., G) to latents (..., d)."""
        return self.encoder(inputs @ self.axes, self.scale) if self.low_rank else self.encoder(inputs)

    def decode(self, z: Tensor, totals: Tensor, batch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Map latents (..., d), totals (..., 1) and one-hot batch (..., n_batch) to the likelihood's parameters."""
        if self.fixed_decoder:
            u = z[..., : self.axes.shape[1]]
            axes = self.axes[:, : u.shape[-1]] * self.axes.shape[0] ** 0.5
            return eq.low_rank_rate(u, axes, intercept=self.intercept, totals=totals), self.log_theta.exp(), None
        joined = torch.cat([z, batch], dim=-1) if self.n_batch > 1 else z
        if not self.low_rank:
            rate, theta, logits = self.decoder(joined, totals)
            return rate, theta, logits if self.zero_inflated else None
        rate = eq.low_rank_rate(self.decoder(joined), self.axes, intercept=self.intercept, totals=totals)
        return rate, self.log_theta.exp(), self.zero_logit if self.zero_inflated else None

    # --- the loss of a unit ---------------------------------------------------------------------------------------

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw two views of every cell, and hand on what the loss maps over: (B, ...) for B units."""
        counts = batch["x"]
        inputs = self.inputs(counts)
        views = [inputs] + [eq.mask_genes(inputs, self.mask_rate, generator=generator) for _ in range(2)]
        stacked = torch.stack(views, dim=-2)
        if self.low_rank and not isinstance(self.axes, nn.Parameter):
            stacked = stacked @ self.axes
        out = {"counts": counts, "views": stacked, "batch": one_hot(batch["batch"], self.n_batch).to(counts.dtype)}
        return out | ({"keep": batch["keep"]} if "keep" in batch else {})

    def losses(self, data: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        """Return the loss of every unit, (B,), or of one, scalar.

        Parameters
        ----------
        data
            From :meth:`prepare`.
        weights
            Of "reconstruction", "instance" and, where centres are trained, "cluster".
        """
        projected = self.low_rank and data["views"].shape[-1] == self.axes.shape[1]
        z = self.encoder(data["views"], self.scale) if projected else self.encode(data["views"])
        whole, first, second = z.unbind(dim=-2)
        totals = data["counts"].sum(dim=-1, keepdim=True)
        rate, theta, logits = self.decode(whole, totals, data["batch"])
        if isinstance(weights, str):
            return self._published_losses(
                weights, data, whole, eq.zinb_loss(data["counts"], rate, theta=theta, logits=logits)
            )
        loss = weights["reconstruction"] * eq.zinb_loss(data["counts"], rate, theta=theta, logits=logits)
        if "cluster" in weights:
            loss = loss + weights["cluster"] * eq.cluster_divergence(whole, self.centers, self.cluster_sizes)
        else:
            loss = loss - weights["instance"] * eq.instance_similarity(first, second)
        if "keep" not in data:
            return loss
        return (loss * data["keep"]).sum(dim=-1) / data["keep"].sum(dim=-1).clamp(min=1.0)

    def _published_losses(self, stage: str, data: Mapping[str, Tensor], z: Tensor, likelihood: Tensor) -> Tensor:
        """Return the part of the published loss (4.14) that belongs to single cells."""
        if stage == "pretrain":
            return 0.8 * likelihood
        q = student_t(z.reshape(-1, z.shape[-1]), self.centers).reshape(*z.shape[:-1], -1)
        ratio = data["target"].clamp(min=1e-8).log() - q.clamp(min=1e-8).log()
        return 0.4 * likelihood + 0.4 * (data["target"] * ratio).sum(dim=-1)

    def shared_loss(self, params: Mapping[str, Tensor], data: Mapping[str, Tensor], stage: str) -> Tensor:
        """Return the part of the published loss that all cells of a batch share: a coupled cosine, or the repulsion."""
        if stage == "cluster":
            return 0.2 * eq.repulsion(params["centers"])
        encoder = {k.removeprefix("encoder."): v for k, v in params.items() if k.startswith("encoder.")}
        z = [torch.func.functional_call(self.encoder, encoder, (data["views"][:, v],)) for v in (1, 2)]
        return -0.2 * eq.published_similarity(z[0], z[1])

    def wiring_loss(self, params: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
        """Return the losses of a whole batch (B,) as the first stage trains them, coupling included."""
        if self.mode == "reference":
            return self.unit_losses(params, data, "pretrain") + self.shared_loss(params, data, "pretrain")
        return self.unit_losses(params, data, {"reconstruction": 0.8, "instance": 0.2})

    def synthetic_cells(self, n_cells: int, *, seed: int = 0) -> dict[str, Tensor]:
        """Return a batch of made-up cells, of which the second is empty and the last very deep."""
        g = np.random.default_rng(seed)
        rate = g.gamma(0.3, 2.0, len(self.intercept)) * g.lognormal(0.0, 0.5, (n_cells, 1))
        counts = g.poisson(rate).astype(np.float32)
        counts[1] = 0
        counts[-1] *= 100
        x = torch.from_numpy(counts).to(self.intercept.dtype)
        return {"x": x, "batch": torch.from_numpy(g.integers(0, self.n_batch, n_cells))}

    def unit_losses(self, params: Mapping[str, Tensor], data: Mapping[str, Tensor], weights: Any) -> Tensor:
        """Return :meth:`losses` as a function of parameters, for ``torch.func``."""
        return torch.func.functional_call(self, dict(params), (data,), {"weights": weights})

    def forward(self, data: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        """Return :meth:`losses`; here because ``functional_call`` calls the module."""
        return self.losses(data, weights)

    def loss_plain(self, batch: Mapping[str, Tensor], *, weights: Any, generator: Any = None) -> LossOutput:
        """Mean loss of a batch, without clipping and noise: public cells, and the modes that promise nothing."""
        loss = self.losses(self.prepare(batch, generator), weights).mean()
        n = batch["x"].shape[0]
        return LossOutput(loss=loss, n_obs_minibatch=n)

    # scvi-tools' interface, which the queries do not use
    def _get_inference_input(self, tensors: Any) -> dict[str, Any]:
        return {"tensors": tensors}

    def _get_generative_input(self, tensors: Any, inference_outputs: Any) -> dict[str, Any]:
        return {"tensors": tensors, "z": inference_outputs["z"]}

    def inference(self, tensors: Any) -> dict[str, Tensor]:
        """Return the latents of a batch."""
        return {"z": self.encode(self.inputs(tensors["x"]))}

    def generative(self, tensors: Any, z: Tensor) -> dict[str, Any]:
        """Return the parameters of the likelihood of a batch."""
        batch = one_hot(tensors["batch"], self.n_batch).to(z.dtype)
        rate, theta, logits = self.decode(z, tensors["x"].sum(dim=-1, keepdim=True), batch)
        return {"rate": rate, "theta": theta, "logits": logits}

    def loss(self, tensors: Any, inference_outputs: Any, generative_outputs: Any, **kwargs: Any) -> LossOutput:
        """Return the loss of the first stage, without noise."""
        return self.loss_plain(tensors, weights={"reconstruction": 0.8, "instance": 0.2})
