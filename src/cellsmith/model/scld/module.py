"""The torch module of SCLD: autoencoder, denoiser and its moving average, and the losses of the stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cellsmith.data.splits import scipy_counts
from cellsmith.math import edm
from cellsmith.math.likelihood import nb_log_prob_softmax, zinb_log_prob
from cellsmith.model.scld import equations as eq
from cellsmith.nn.autoencoder import CountAutoencoder, Decoded, ForeignAutoencoder, dense, row_totals
from cellsmith.nn.denoiser import Denoiser, NoisyClassifier

__all__ = ["SCLDModule", "log_totals"]


class SCLDModule(BaseModuleClass):
    """Count autoencoder and latent diffusion.

    Parameters
    ----------
    n_input
        Number of genes.
    n_batch, n_labels
        Categories of batch and label; 1 where none was registered.
    n_continuous_cov
        Number of continuous covariates.
    n_cats_per_cov
        Categories of the further categorical covariates.
    conditions
        Which of "batch" and "labels" the denoiser is told; further covariates always are.
    autoencoder
        A :class:`ForeignAutoencoder`; None builds our own.
    use_rep
        The latents are given.
    n_latent, n_hidden, n_layers, dropout_rate, gene_likelihood, dispersion, log_variational, kl_weight
        Of the autoencoder; see :class:`cellsmith.model.SCLD`.
    classification_weight, library_model, prior, prediction, n_denoiser_hidden, n_denoiser_layers
        See :class:`cellsmith.model.SCLD`.
    condition_dropout, guidance_classifier
        See :class:`cellsmith.model.SCLD`.
    """

    def __init__(
        self,
        n_input: int,
        *,
        n_batch: int = 1,
        n_labels: int = 1,
        n_continuous_cov: int = 0,
        n_cats_per_cov: Sequence[int] | None = None,
        conditions: Sequence[str] = (),
        autoencoder: ForeignAutoencoder | None = None,
        use_rep: bool = False,
        n_latent: int = 16,
        n_hidden: int = 128,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        gene_likelihood: str = "nb",
        dispersion: str = "gene",
        log_variational: bool = True,
        kl_weight: float = 0.1,
        classification_weight: float = 0.0,
        library_model: str = "joint",
        prior: str = "diffusion",
        prediction: str = "v",
        n_denoiser_hidden: int = 128,
        n_denoiser_layers: int = 3,
        condition_dropout: float = 0.1,
        guidance_classifier: bool = False,
    ) -> None:
        super().__init__()
        self.n_input, self.n_batch, self.n_labels, self.n_latent = n_input, n_batch, n_labels, n_latent
        self.gene_likelihood, self.dispersion = gene_likelihood, dispersion
        self.kl_weight, self.classification_weight = kl_weight, classification_weight
        self.library_model, self.prior, self.prediction = library_model, prior, prediction
        self.condition_dropout = condition_dropout
        self.conditions = tuple(conditions)
        own = {"batch": n_batch, "labels": n_labels}
        self.n_cats = (*(own[c] for c in self.conditions), *(n_cats_per_cov or ()))
        self.n_continuous = n_continuous_cov
        self.autoencoder = autoencoder or CountAutoencoder(
            n_input,
            n_batch=n_batch,
            n_labels=n_labels,
            n_latent=n_latent,
            n_hidden=n_hidden,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            gene_likelihood=gene_likelihood,
            dispersion=dispersion,
            log_variational=log_variational,
            use_rep=use_rep,
        )
        self.classifier = nn.Linear(n_latent, n_labels) if classification_weight > 0 else None
        self.n_state = n_latent + (library_model == "joint")
        size = {"n_hidden": n_denoiser_hidden, "n_layers": n_denoiser_layers}
        covariates = {"n_cats_per_cov": self.n_cats, "n_continuous_cov": n_continuous_cov}
        self.denoiser = Denoiser(self.n_state, **size, **covariates)
        self.ema_denoiser = Denoiser(self.n_state, **size, **covariates)
        self.ema_denoiser.load_state_dict(self.denoiser.state_dict())
        self.guide = NoisyClassifier(self.n_state, self.n_cats) if guidance_classifier and self.n_cats else None
        for name, value in {
            "latent_centre": torch.zeros(n_latent),
            "latent_scale": torch.ones(n_latent),
            "library_centre": torch.zeros(()),
            "library_scale": torch.ones(()),
            "size_factor_scale": torch.ones(()),
            "continuous_centre": torch.zeros(n_continuous_cov),
            "continuous_scale": torch.ones(n_continuous_cov),
        }.items():
            self.register_buffer(name, value)

    # --- what a batch of cells is ---------------------------------------------------------------------------------

    def condition_codes(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the codes (n, K) of the conditions; K_k, one past the last, is "unknown"."""
        keys = {"batch": REGISTRY_KEYS.BATCH_KEY, "labels": REGISTRY_KEYS.LABELS_KEY}
        columns = [tensors[keys[c]].reshape(-1, 1).long() for c in self.conditions]
        if (extra := tensors.get(REGISTRY_KEYS.CAT_COVS_KEY)) is not None:
            columns.append(extra.long())
        n = tensors[REGISTRY_KEYS.BATCH_KEY].shape[0]
        if not columns:
            return torch.zeros(n, 0, dtype=torch.long, device=tensors[REGISTRY_KEYS.BATCH_KEY].device)
        codes = torch.cat(columns, dim=1)
        # The labels of a foreign model may list "unlabelled" as a last class; it is the null token here.
        return torch.minimum(codes, torch.tensor(self.n_cats, device=codes.device))

    def log_library(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return log l (n,): of the observed totals, or of the size factors on the scale of the totals."""
        if (factor := tensors.get(REGISTRY_KEYS.SIZE_FACTOR_KEY)) is not None:
            return (factor.reshape(-1) * self.size_factor_scale).log()
        if isinstance(self.autoencoder, ForeignAutoencoder):
            return self.autoencoder.log_library(tensors)
        return row_totals(tensors[REGISTRY_KEYS.X_KEY]).log()

    def log_depth(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return what the diffusion calls depth (n,): the log library, or the log total where the decoder gives rates.

        A size factor that multiplies rates is no total, and the total that the rates add up to is only as good as
        their fit; the observed totals need neither.
        """
        return log_totals(tensors) if self.autoencoder.gives_rates else self.log_library(tensors)

    def posterior(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return posterior mean and standard deviation (n, d)."""
        mean, log_variance = self.autoencoder.encode(tensors)
        return mean, (0.5 * log_variance).exp()

    def decode(self, z: Tensor, covariates: Mapping[str, Tensor]) -> Decoded:
        """Return the parameters of the counts of latents z (n, d)."""
        return self.autoencoder.decode(z, covariates)

    def standardise_continuous(self, values: Tensor) -> Tensor:
        """Return continuous covariates (n, C) in units of their spread over the training cells."""
        return (values - self.continuous_centre) / self.continuous_scale

    # --- losses of the stages -------------------------------------------------------------------------------------

    def loss_autoencode(
        self, tensors: Mapping[str, Tensor], *, weights: Mapping[str, float], generator: torch.Generator | None = None
    ) -> LossOutput:
        """E6: reconstruction + weighted KL [+ classification], means over the cells of a batch."""
        mean, log_variance = self.autoencoder.encode(tensors)
        z = eq.draw_latent(mean, (0.5 * log_variance).exp(), generator=generator)
        terms = {"reconstruction": -self.log_prob(tensors, z).mean()}
        if not self.autoencoder.use_rep:
            terms["kl"] = eq.gaussian_kl(mean, log_variance).mean()
        if self.classifier is not None:
            terms["classification"] = self._classification(z, tensors[REGISTRY_KEYS.LABELS_KEY].reshape(-1))
        return _sum_terms(terms, weights, n=len(z))

    def log_prob(self, tensors: Mapping[str, Tensor], z: Tensor) -> Tensor:
        """E2-E5: log p(x | z, l, s) of every cell (n,), nats."""
        x, decoded = tensors[REGISTRY_KEYS.X_KEY], self.decode(z, tensors)
        library = self.log_library(tensors).exp()
        if decoded.dropout_logits is None:
            return nb_log_prob_softmax(x, decoded.logits, decoded.theta, library=decoded.total(library))
        return zinb_log_prob(x, decoded.mean(library), decoded.theta, dropout_logits=decoded.dropout_logits)

    def _classification(self, z: Tensor, labels: Tensor) -> Tensor:
        known = labels < self.n_labels
        if not bool(known.any()):
            # Every parameter takes part in every loss, or several processes could not agree on their gradients.
            return self.classifier(z).sum() * 0.0
        return cross_entropy(self.classifier(z[known]), labels[known])

    def loss_diffuse(
        self, tensors: Mapping[str, Tensor], *, weights: Mapping[str, float], generator: torch.Generator | None = None
    ) -> LossOutput:
        """E14: the denoising loss of rows of the cached table; validation uses the moving average."""
        network = self.denoiser if self.training else self.ema_denoiser
        w, noise, sigma = self._noisy(tensors, generator)
        cond = self.embed(network, tensors["codes"], tensors["continuous"], drop=True, generator=generator)
        loss = edm.denoising_loss(
            network, w, sigma, noise=noise, cond=cond, prediction=self.prediction, prior=self.prior
        )
        return _sum_terms({"denoising": loss.mean() / self.n_state}, weights, n=len(w))

    def loss_guide(
        self, tensors: Mapping[str, Tensor], *, weights: Mapping[str, float], generator: torch.Generator | None = None
    ) -> LossOutput:
        """Cross-entropy of the noise-aware classifier over all noise levels (E20, kind "classifier")."""
        w, noise, sigma = self._noisy(tensors, generator)
        losses = []
        for k, logits in enumerate(self.classify_noisy(w + sigma[:, None] * noise, sigma)):
            codes = tensors["codes"][:, k]
            known = codes < self.n_cats[k]
            losses.append(cross_entropy(logits[known], codes[known]) if bool(known.any()) else logits.sum() * 0.0)
        return _sum_terms({"classification": torch.stack(losses).sum()}, weights, n=len(w))

    def _noisy(self, tensors: Mapping[str, Tensor], generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        z = eq.draw_latent(tensors["mean"], tensors["sd"], generator=generator)
        w = self.to_state(z, tensors["log_library"])
        t = edm.stratified_times(len(w), generator=generator).to(w.device)
        noise = torch.empty_like(w).normal_(generator=generator)
        return w, noise, edm.sigma_of_time(t, prior=self.prior)

    # --- the state of the diffusion -------------------------------------------------------------------------------

    def to_state(self, z: Tensor, log_library: Tensor) -> Tensor:
        """E9, E10: w (n, d [+ 1]) of latents and log totals."""
        u = None
        if self.library_model == "joint":
            u = eq.standardise(log_library.reshape(-1), self.library_centre, self.library_scale)
        return eq.assemble(eq.standardise(z, self.latent_centre, self.latent_scale), u)

    def from_state(self, w: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return latents z (n, d) and log totals (n,), None where the diffusion does not model them."""
        z, u = eq.unassemble(w, self.n_latent)
        z = z * self.latent_scale + self.latent_centre
        return z, None if u is None else u * self.library_scale + self.library_centre

    def log_volume(self) -> Tensor:
        """E9, E10: log of the volume in units of latents and log totals that one unit of w stands for."""
        joint = self.library_model == "joint"
        return self.latent_scale.log().sum().cpu() + (self.library_scale.log().cpu() if joint else 0.0)

    def embed(
        self,
        network: Denoiser,
        codes: Tensor,
        continuous: Tensor,
        *,
        drop: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """E15, E16: condition embedding (n, h), with random dropping per cell during training."""
        n_cov = len(self.n_cats) + (self.n_continuous > 0)
        dropped = None
        if drop and n_cov:
            mask = edm.drop_conditions(len(codes), n_cov, probability=self.condition_dropout, generator=generator).to(
                codes.device
            )
            if self.n_cats:
                null = torch.tensor(self.n_cats, device=codes.device).expand_as(codes)
                codes = torch.where(mask[:, : len(self.n_cats)], null, codes)
            dropped = mask[:, -1] if self.n_continuous else None
        values = self.standardise_continuous(continuous) if self.n_continuous else None
        return network.embed(codes, values, dropped)

    def classify_noisy(self, y: Tensor, sigma: Tensor) -> list[Tensor]:
        """Logits of every condition for noisy states y = w + sigma e (n, d), sigma (n,) or (1,)."""
        scale = torch.rsqrt(1.0 + sigma.square()) if self.prior == "diffusion" else 1.0 / (1.0 + sigma)
        return self.guide(scale[:, None] * y, sigma.log() / 4.0)

    # --- the interface that scvi-tools' queries call --------------------------------------------------------------

    def _get_inference_input(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"tensors": tensors}

    def _get_generative_input(
        self, tensors: Mapping[str, Tensor], inference_outputs: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {"z": inference_outputs["z"], "library": inference_outputs["library"], "tensors": tensors}

    @auto_move_data
    def inference(self, tensors: Mapping[str, Tensor], n_samples: int = 1) -> dict[str, Any]:
        """Return the posterior ``qz``, a draw ``z`` ([n_samples,] n, d) and the log ``library`` (n, 1)."""
        mean, sd = self.posterior(tensors)
        qz = torch.distributions.Normal(mean, sd)
        z = qz.rsample() if n_samples == 1 else qz.sample((n_samples,))
        return {"z": z, "qz": qz, "library": self.log_library(tensors).reshape(-1, 1)}

    @auto_move_data
    def generative(
        self, z: Tensor, library: Tensor, tensors: Mapping[str, Tensor], transform_batch: int | None = None
    ) -> dict[str, Any]:
        """Return the distribution ``px`` of the counts."""
        covariates = dict(tensors)
        if transform_batch is not None:
            covariates[REGISTRY_KEYS.BATCH_KEY] = torch.full_like(tensors[REGISTRY_KEYS.BATCH_KEY], transform_batch)
        if z.dim() == 3:
            parts = [self._distribution(self.decode(zs, covariates), library) for zs in z]
            return {"px": _stack(parts)}
        return {"px": self._distribution(self.decode(z, covariates), library)}

    def _distribution(self, decoded: Decoded, library: Tensor) -> Any:
        common = {"mu": decoded.mean(library.exp().reshape(-1)), "theta": decoded.theta, "scale": decoded.rho}
        if decoded.dropout_logits is None:
            return NegativeBinomial(**common)
        return ZeroInflatedNegativeBinomial(**common, zi_logits=decoded.dropout_logits)

    def loss(
        self, tensors: Mapping[str, Tensor], inference_outputs: Mapping[str, Any], generative_outputs: Mapping[str, Any]
    ) -> LossOutput:
        """Negative ELBO of every cell, for the queries of scvi-tools (KL at weight 1)."""
        qz, x = inference_outputs["qz"], dense(tensors[REGISTRY_KEYS.X_KEY])
        reconstruction = -generative_outputs["px"].log_prob(x).sum(dim=-1)
        kl = eq.gaussian_kl(qz.loc, 2.0 * qz.scale.log())
        return LossOutput(loss=(reconstruction + kl).mean(), reconstruction_loss=reconstruction, kl_local=kl)


def log_totals(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the log observed totals (n,) of a batch, float64; a minified one has kept them."""
    kept = tensors.get(REGISTRY_KEYS.OBSERVED_LIB_SIZE)
    if kept is not None:
        return kept.reshape(-1).double().log()
    total = scipy_counts(tensors[REGISTRY_KEYS.X_KEY].cpu()).sum(axis=1)
    return torch.from_numpy(np.asarray(total, dtype=float).ravel()).log()


def _sum_terms(terms: Mapping[str, Tensor], weights: Mapping[str, float], *, n: int) -> LossOutput:
    total = sum((weights.get(name, 1.0) * term for name, term in terms.items()), start=torch.zeros(()))
    return LossOutput(
        loss=total, n_obs_minibatch=n, extra_metrics={name: term.detach() for name, term in terms.items()}
    )


def _stack(parts: Sequence[Any]) -> Any:
    """Stack distributions of the same cells along a new first dimension."""
    kind: Callable[..., Any] = type(parts[0])
    names = ["mu", "theta", "scale"] + (["zi_logits"] if hasattr(parts[0], "zi_logits") else [])
    return kind(**{name: torch.stack([getattr(p, name) for p in parts]) for name in names})
