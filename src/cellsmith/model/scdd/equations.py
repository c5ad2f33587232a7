"""SCDD: distillation of labelled single-cell counts through a single-step conditional generator (arXiv 2503.04357).

The published text gives an outline: codes in a latent space are optimised by matching gradients and distributions, a
generator conditioned on the class maps them to expression, one back-propagated step suffices. The equations (1) to (23)
are this package's design of it; ``DEVIATIONS`` says so first.

Symbols: n cells, G genes, K classes, M profiles, c_k of them of class k; x (n, G) counts; l (n,) totals, counts; y (n,)
class, K where unknown; z (M, d) codes; sigma noise level relative to the signal; D denoised estimate; p (M, G) profile
of a group of cells, L (M,) its counts, a (M,) its mass; rho (M, G) shares, rows sum to a; phi(x) = log1p(s x / sum x),
s = 1e4 (1e3 for at most 1,000 genes).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cellsmith.math import edm, likelihood, matching
from cellsmith.math.latent import draw_latent, gaussian_kl, latent_statistics
from cellsmith.model.scdd.deviations import DEVIATIONS

__all__ = [
    "DEVIATIONS",
    "EQUATIONS",
    "SIGMA_RANGE",
    "Choice",
    "best_iterate",
    "code_penalty",
    "diversity",
    "draw_latent",
    "foundation_loss",
    "gaussian_kl",
    "generator_levels",
    "ideal_response",
    "inversion_start",
    "label_loss",
    "latent_statistics",
    "log_view",
    "render",
    "residual_penalty",
    "sampling_levels",
    "soft_labels",
    "training_sigma",
]

SIGMA_RANGE = (0.02, 20.0)
LOG_SIGMA_MEAN, LOG_SIGMA_SD = -0.4, 1.0
# Noise levels at which the generator is validated, the same at every check.
VALIDATION_SIGMAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
# Curvature of the levels of a sampler (Karras et al., 2022).
LEVEL_POWER = 7.0


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the labelled cells, eq. (2), nats; logits (n, K), labels (n,) with K for "unknown"."""
    known = labels < logits.shape[1]
    # Without a labelled cell every parameter still takes part in the loss, or several processes would not agree.
    return functional.cross_entropy(logits[known], labels[known]) if bool(known.any()) else logits.sum() * 0.0


def foundation_loss(mean: Tensor, embedding: Tensor) -> Tensor:
    """Return 1 - CKA of latents and a given embedding, the F of eq. (2) (Kornblith et al., 2019).

    Parameters
    ----------
    mean
        Posterior means (n, d).
    embedding
        Embedding of the same cells (n, e).

    Returns
    -------
    Scalar from 0 (the same geometry up to rotation and scale) to 1.
    """
    x, y = mean - mean.mean(dim=0), embedding - embedding.mean(dim=0)
    across = (x.T @ y).square().sum()
    within = (x.T @ x).norm() * (y.T @ y).norm()
    return 1.0 - across / within.clamp_min(1e-12)


def training_sigma(n: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Eq. (7): noise levels (n,), ln sigma ~ N(-0.4, 1) clipped to [0.02, 20]."""
    log_sigma = torch.empty(n).normal_(LOG_SIGMA_MEAN, LOG_SIGMA_SD, generator=generator)
    return log_sigma.exp().clamp(*SIGMA_RANGE)


def diversity(estimate: Tensor, memory: Tensor, labels: Tensor) -> Tensor:
    """Eq. (8): mean over cells of the largest cosine with remembered estimates of the same class.

    Parameters
    ----------
    estimate
        Denoised estimates (n, d).
    memory
        The last estimates of every class (K, m, d); rows of zeros are empty.
    labels
        Class of each cell (n,).

    Returns
    -------
    Scalar in [-1, 1]; 0 for an empty memory.
    """
    unit = functional.normalize(estimate, dim=1)
    cosine = torch.einsum("nd,nmd->nm", unit, functional.normalize(memory[labels], dim=2))
    return cosine.amax(dim=1).mean()


def ideal_response(tau: Tensor | float, sigma: float) -> tuple[Tensor, Tensor]:
    """Eq. (10): how the ideal denoiser of a class N(m, tau^2 I) answers its codes.

    Parameters
    ----------
    tau
        Standard deviation of the class, any shape.
    sigma
        Noise level.

    Returns
    -------
    Jacobian tau^2 / (tau^2 + sigma^2) and spread of the outputs tau^2 / sqrt(tau^2 + sigma^2); both vanish as sigma
    grows, and every code of a class then gives the class mean.
    """
    variance = torch.as_tensor(tau, dtype=torch.float64) ** 2
    return variance / (variance + sigma**2), variance * torch.rsqrt(variance + sigma**2)


def inversion_start(mean: Tensor, centre: Tensor, variance: Tensor, *, sigma: float) -> Tensor:
    """Eq. (11): the code that the ideal denoiser of a Gaussian class maps to ``mean``.

    Parameters
    ----------
    mean
        Where the codes shall lead (M, d), standardised.
    centre, variance
        Moments of the class of each (M, d).
    sigma
        Noise level of the step.

    Returns
    -------
    Codes (M, d).
    """
    return centre + (mean - centre) * (variance + sigma**2) / variance


def generator_levels(sigma_star: float, n_steps: int) -> Tensor:
    """Return the noise levels (n_steps,) of the generator, from sigma_star down to 0.02; one step: sigma_star alone."""
    return torch.logspace(math.log10(sigma_star), math.log10(SIGMA_RANGE[0]), n_steps, dtype=torch.float64)


def sampling_levels(n_steps: int) -> Tensor:
    """Return the noise levels (n_steps,) of a sampler, from 20 down to 0.02, evenly spaced in sigma^(1/7)."""
    low, high = (level ** (1.0 / LEVEL_POWER) for level in SIGMA_RANGE)
    return torch.linspace(high, low, n_steps, dtype=torch.float64) ** LEVEL_POWER


def render(log_shares: Tensor, residual: Tensor | None, mass: Tensor) -> Tensor:
    """Eq. (13): log rho = log shares + r, renormalised to the mass of the profile.

    Parameters
    ----------
    log_shares
        Log of the decoder's shares (M, G), float64.
    residual
        r (M, G), or None for r = 0.
    mass
        a (M,), what the shares of each profile add up to.

    Returns
    -------
    log rho (M, G).
    """
    out = log_shares if residual is None else log_shares + residual
    return out - out.logsumexp(dim=1, keepdim=True) + mass.log()[:, None]


def log_view(log_rho: Tensor, *, scale: float) -> Tensor:
    """Eq. (14): what a classifier reads of a profile, log1p(s rho) (M, G); never normalised again."""
    return torch.log1p(scale * log_rho.exp())


def code_penalty(z: Tensor, start: Tensor) -> Tensor:
    """Eq. (19): squared distance of codes (M, d) from their start, summed."""
    return (z - start).square().sum()


def residual_penalty(residual: Tensor, start: Tensor) -> Tensor:
    """Eq. (19): squared distance of residuals (M, G) from their start, a mean over genes and a sum over profiles."""
    return (residual - start).square().mean(dim=1).sum()


def soft_labels(probabilities: np.ndarray, groups: np.ndarray, *, n_groups: int) -> np.ndarray:
    """Eq. (21): mean class probabilities of the cells that a profile stands for.

    Parameters
    ----------
    probabilities
        Cross-fitted probabilities of the cells (n, K), rows sum to 1.
    groups
        Profile of each cell (n,); negative ones are left out.
    n_groups
        M.

    Returns
    -------
    (M, K), rows sum to 1; NaN for a profile that stands for no cell.
    """
    kept = groups >= 0
    total = np.zeros((n_groups, probabilities.shape[1]))
    np.add.at(total, groups[kept], probabilities[kept])
    size = np.bincount(groups[kept], minlength=n_groups)[:, None]
    return np.divide(total, size, out=np.full_like(total, np.nan), where=size > 0)


class Choice(NamedTuple):
    """Which iterate was chosen: its position, its gain over the first, and the standard error of that gain (shares)."""

    position: int
    gain: float
    standard_error: float


def best_iterate(wrong: np.ndarray, labels: np.ndarray) -> Choice:
    """Choose among iterates by the errors of readers on held-out cells; the first stays unless another is better.

    Errors decide and not the log-loss: moving profiles makes readers surer, which a log-loss whose temperature suits
    step 0 punishes although fewer cells are named wrongly.

    Parameters
    ----------
    wrong
        Whether a reader names another class than a cell's own, under every iterate (T, R, n); row 0 is step 0.
    labels
        Class of the held-out cells (n,).

    Returns
    -------
    Of the iterates under which no reader makes more errors than under row 0, and the mean of the classes' error rates
    does not rise either, the one with the fewest errors (mean of readers; ties go to the earliest), if its paired gain
    over row 0 exceeds one standard error; else row 0.
    """
    classes, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    errors = wrong.sum(axis=2)
    balanced = np.round(wrong.mean(axis=1) @ (1.0 / (len(classes) * sizes[codes])), 12)
    harmless = (errors <= errors[0]).all(axis=1) & (balanced <= balanced[0])
    best = int(np.argmin(np.where(harmless, errors.mean(axis=1), np.inf)))
    gains = wrong[0].mean(axis=0) - wrong[best].mean(axis=0)
    gain, error = float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else 0.0
    return Choice(best, gain, error) if best and gain > error + 1e-12 else Choice(0, 0.0, error)


EQUATIONS = {
    "1": draw_latent,
    "2": label_loss,
    "3": "cellsmith.math.counts.refit_dispersion",
    "4": latent_statistics,
    "5": edm.denoise,
    "6": edm.denoising_loss,
    "7": training_sigma,
    "8": "cellsmith.model.scdd.module.SCDDModule.loss_generator",
    "9": edm.guide,
    "10": ideal_response,
    "11": inversion_start,
    "12": matching.group_profiles,
    "13": render,
    "14": matching.round_profiles,
    "15": matching.gradient_matching,
    "16": matching.distribution_matching,
    "18": "cellsmith.nn.pool.PoolNetwork",
    "19": "cellsmith.model.scdd.distilling.Distiller.loss",
    "20": "cellsmith.model.scdd.distilling.Distiller.backward",
    "21": soft_labels,
    "22": matching.herding,
    "23": matching.ridge_loss,
    "likelihood": likelihood.nb_log_prob_softmax,
    "selection": best_iterate,
}
