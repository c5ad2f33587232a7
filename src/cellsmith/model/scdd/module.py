"""The torch module of SCDD: count autoencoder, single-step generator, and the losses of the two stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from scvi import REGISTRY_KEYS
from scvi.distributions import NegativeBinomial
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cellsmith.math import edm
from cellsmith.math.likelihood import nb_log_prob_softmax, zinb_log_prob
from cellsmith.math.matching import target_sum
from cellsmith.model.scdd import equations as eq
from cellsmith.nn.autoencoder import REP_KEY, CountAutoencoder, Decoded, ForeignAutoencoder, row_totals
from cellsmith.nn.denoiser import Denoiser

__all__ = ["SCDDModule"]

# Estimates of each class that the diversity term remembers.
MEMORY = 64
# Share of the training batches whose estimates are also decoded and classified.
DECODED_SHARE = 0.25


class SCDDModule(BaseModuleClass):
    """Count autoencoder with a label head, and the conditional denoiser that turns codes into latents in one step.

    Parameters
    ----------
    n_input, n_batch, n_labels
        Genes, batches and classes.
    autoencoder
        A :class:`~cellsmith.nn.autoencoder.ForeignAutoencoder`; None builds our own.
    n_latent, n_hidden, n_layers, dropout_rate, gene_likelihood
        Of the autoencoder; see :class:`cellsmith.model.SCDD`.
    n_denoiser_hidden, n_denoiser_layers
        Of the denoiser.
    """

    def __init__(
        self,
        n_input: int,
        *,
        n_batch: int,
        n_labels: int,
        autoencoder: ForeignAutoencoder | None = None,
        n_latent: int,
        n_hidden: int,
        n_layers: int,
        dropout_rate: float,
        gene_likelihood: str,
        n_denoiser_hidden: int,
        n_denoiser_layers: int,
    ) -> None:
        super().__init__()
        self.n_input, self.n_batch, self.n_labels, self.n_latent = n_input, n_batch, n_labels, n_latent
        self.scale = target_sum(n_input)
        self.autoencoder = autoencoder or CountAutoencoder(
            n_input,
            n_batch=n_batch,
            # The decoder never sees the label: what separates the classes must come through the latent.
            n_labels=1,
            n_latent=n_latent,
            n_hidden=n_hidden,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            gene_likelihood=gene_likelihood,
            dispersion="gene",
            log_variational=True,
            use_rep=False,
        )
        self.label_head = nn.Linear(n_latent, n_labels)
        size = {"n_hidden": n_denoiser_hidden, "n_layers": n_denoiser_layers, "n_cats_per_cov": (n_labels,)}
        self.denoiser, self.ema_denoiser = Denoiser(n_latent, **size), Denoiser(n_latent, **size)
        self.ema_denoiser.load_state_dict(self.denoiser.state_dict())
        # C of eq. (8) and (19): a linear classifier of the log view, fitted before the generator and never trained.
        self.readout = nn.Linear(n_input, n_labels)
        self.sigma_star = 1.0
        for name, value in {
            "latent_centre": torch.zeros(n_latent),
            "latent_scale": torch.ones(n_latent),
            "size_factor_scale": torch.ones(()),
        }.items():
            self.register_buffer(name, value)
        self.register_buffer("memory", torch.zeros(n_labels, MEMORY, n_latent), persistent=False)

    # --- what a batch of cells is ---------------------------------------------------------------------------------

    def log_library(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return log l (n,): of the observed totals, or of the size factors on the scale of the totals."""
        if (factor := tensors.get(REGISTRY_KEYS.SIZE_FACTOR_KEY)) is not None:
            return (factor.reshape(-1) * self.size_factor_scale).log()
        if isinstance(self.autoencoder, ForeignAutoencoder):
            return self.autoencoder.log_library(tensors)
        return row_totals(tensors[REGISTRY_KEYS.X_KEY]).log()

    def posterior(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return posterior mean and standard deviation (n, d), eq. (1)."""
        mean, log_variance = self.autoencoder.encode(tensors)
        return mean, (0.5 * log_variance).exp()

    def decode(self, z: Tensor, covariates: Mapping[str, Tensor]) -> Decoded:
        """Return the parameters of the counts of latents z (n, d) under their batch."""
        return self.autoencoder.decode(z, covariates)

    def log_prob(self, tensors: Mapping[str, Tensor], z: Tensor) -> Tensor:
        """Return log p(x | z, b, l) of every cell (n,), nats."""
        x, decoded = tensors[REGISTRY_KEYS.X_KEY], self.decode(z, tensors)
        library = self.log_library(tensors).exp()
        if decoded.dropout_logits is None:
            return nb_log_prob_softmax(x, decoded.logits, decoded.theta, library=decoded.total(library))
        return zinb_log_prob(x, decoded.mean(library), decoded.theta, dropout_logits=decoded.dropout_logits)

    def standardise(self, z: Tensor) -> Tensor:
        """Return latents in units of the spread of all cells, eq. (4)."""
        return (z - self.latent_centre) / self.latent_scale

    def restore(self, w: Tensor) -> Tensor:
        """Invert :meth:`standardise`."""
        return w * self.latent_scale + self.latent_centre

    # --- losses of the stages -------------------------------------------------------------------------------------

    def loss_autoencoder(
        self, tensors: Mapping[str, Tensor], *, weights: Mapping[str, float], generator: torch.Generator | None = None
    ) -> LossOutput:
        """L_A, eq. (2): reconstruction + KL + classes of the labelled cells [+ foundation embedding]."""
        mean, log_variance = self.autoencoder.encode(tensors)
        z = eq.draw_latent(mean, (0.5 * log_variance).exp(), generator=generator)
        terms = {
            "reconstruction": -self.log_prob(tensors, z).mean(),
            "kl": eq.gaussian_kl(mean, log_variance).mean(),
            "label": eq.label_loss(self.label_head(mean), tensors[REGISTRY_KEYS.LABELS_KEY].reshape(-1)),
        }
        if REP_KEY in tensors:
            terms["foundation"] = eq.foundation_loss(mean, tensors[REP_KEY].float())
        return _weighted(terms, weights, n=len(z))

    def loss_generator(
        self, tensors: Mapping[str, Tensor], *, weights: Mapping[str, float], generator: torch.Generator | None = None
    ) -> LossOutput:
        """L_B, eq. (8): denoising; on a quarter of the batches also reconstruction, separation and diversity.

        Only labelled cells take part. In validation the noise levels are fixed, the moving average is judged, and the
        denoising loss stands alone.
        """
        labels = tensors[REGISTRY_KEYS.LABELS_KEY].reshape(-1)
        known = labels < self.n_labels
        labels, mean, sd = labels[known], tensors["mean"][known], tensors["sd"][known]
        network = self.denoiser if self.training else self.ema_denoiser
        z = self.standardise(eq.draw_latent(mean, sd, generator=generator))
        n = len(z)
        if self.training:
            sigma = eq.training_sigma(n, generator=generator).to(z)
            labels_seen = self._hide(labels, generator)
        else:
            sigma = torch.tensor(eq.VALIDATION_SIGMAS, device=z.device).repeat(n // len(eq.VALIDATION_SIGMAS) + 1)[:n]
            labels_seen = labels
        noise = torch.empty_like(z).normal_(generator=generator)
        loss = edm.denoising_loss(network, z, sigma, noise=noise, cond=network.embed(labels_seen[:, None]))
        terms = {"denoising": loss.sum() / (self.n_latent * max(n, 1))}
        if self.training and n and float(torch.rand((), generator=generator)) < DECODED_SHARE:
            terms |= self._decoded_terms(tensors, known, z + self.sigma_star * noise)
        return _weighted(terms, weights, n=max(n, 1))

    def _hide(self, labels: Tensor, generator: torch.Generator | None) -> Tensor:
        hidden = edm.drop_conditions(len(labels), 1, generator=generator)[:, 0].to(labels.device)
        return torch.where(hidden, torch.full_like(labels, self.n_labels), labels)

    def _decoded_terms(self, tensors: Mapping[str, Tensor], known: Tensor, noisy: Tensor) -> dict[str, Tensor]:
        cells = {k: _rows(v, known) for k, v in tensors.items()}
        labels = cells[REGISTRY_KEYS.LABELS_KEY].reshape(-1)
        estimate = edm.denoise(self.denoiser, noisy, self.sigma_star, cond=self.denoiser.embed(labels[:, None]))
        z = self.restore(estimate)
        logits = self.readout(torch.log1p(self.scale * self.decode(z, cells).rho))
        terms = {
            "reconstruction": -self.log_prob(cells, z).mean(),
            "separation": cross_entropy(logits, labels),
            "diversity": eq.diversity(estimate, self.memory, labels),
        }
        with torch.no_grad():
            for k in labels.unique():
                new = estimate[labels == k][:MEMORY]
                self.memory[k] = torch.cat([new, self.memory[k]])[:MEMORY]
        return terms

    # --- the generator --------------------------------------------------------------------------------------------

    def denoiser_of(self, labels: Tensor, *, guidance: float) -> edm.GuidedDenoiser:
        """Return D_w of eq. (9) for rows of the classes ``labels`` (M,); K is "no class"."""
        network = self.ema_denoiser
        # The embeddings are constants of the step: codes are moved, never the network.
        with torch.no_grad():
            null, cond = network.null(len(labels)), network.embed(labels[:, None])
        return edm.guided_denoiser(network, null, [cond], weights=[guidance])

    def generate_step(
        self, z: Tensor, labels: Tensor, *, sigma_star: float, guidance: float, n_generator_steps: int = 1
    ) -> Tensor:
        """Map codes (M, d) to standardised latents (M, d): one call of the network, or a few DDIM steps (eq. 10)."""
        levels = eq.generator_levels(sigma_star, n_generator_steps)
        return edm.sample_ddim(self.denoiser_of(labels, guidance=guidance), z, levels)

    def log_shares(self, w: Tensor, covariates: Mapping[str, Tensor]) -> Tensor:
        """Return log Dec (M, G), float64, of standardised latents (M, d)."""
        return self.decode(self.restore(w), covariates).logits.double().log_softmax(dim=1)

    def covariates_of(self, batch: Tensor) -> dict[str, Tensor]:
        """Return what the decoder is told of rows in batches ``batch`` (M,)."""
        return {REGISTRY_KEYS.BATCH_KEY: batch[:, None], REGISTRY_KEYS.LABELS_KEY: torch.zeros_like(batch)[:, None]}

    # --- the interface that scvi-tools calls ----------------------------------------------------------------------

    def _get_inference_input(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"tensors": tensors}

    def _get_generative_input(
        self, tensors: Mapping[str, Tensor], inference_outputs: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {"z": inference_outputs["z"], "library": inference_outputs["library"], "tensors": tensors}

    @auto_move_data
    def inference(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the posterior ``qz``, a draw ``z`` (n, d) and the log ``library`` (n, 1)."""
        mean, sd = self.posterior(tensors)
        qz = torch.distributions.Normal(mean, sd)
        return {"z": qz.rsample(), "qz": qz, "library": self.log_library(tensors).reshape(-1, 1)}

    @auto_move_data
    def generative(self, z: Tensor, library: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the distribution ``px`` of the counts, without extra zeros."""
        decoded = self.decode(z, tensors)
        px = NegativeBinomial(mu=decoded.mean(library.exp().reshape(-1)), theta=decoded.theta, scale=decoded.rho)
        return {"px": px}

    def loss(
        self, tensors: Mapping[str, Tensor], inference_outputs: Mapping[str, Any], generative_outputs: Mapping[str, Any]
    ) -> LossOutput:
        """Negative ELBO of every cell (KL at weight 1)."""
        qz = inference_outputs["qz"]
        reconstruction = -self.log_prob(tensors, inference_outputs["z"])
        kl = eq.gaussian_kl(qz.loc, 2.0 * qz.scale.log())
        return LossOutput(loss=(reconstruction + kl).mean(), reconstruction_loss=reconstruction, kl_local=kl)


def _rows(values: Tensor, keep: Tensor) -> Tensor:
    """Return the rows of a tensor (n, ...), dense or CSR, that ``keep`` (n,) marks."""
    if values.layout is torch.strided:
        return values[keep]
    return values if bool(keep.all()) else values.to_dense()[keep]


def _weighted(terms: Mapping[str, Tensor], weights: Mapping[str, float], *, n: int) -> LossOutput:
    total = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
    return LossOutput(
        loss=total, n_obs_minibatch=n, extra_metrics={name: term.detach() for name, term in terms.items()}
    )
