"""SCLD: latent diffusion synthesis of single-cell counts (arXiv 2312.14220).

The published text that was available names two mechanisms, pre-guidance and post-guidance, and the latent diffusion
that they steer. The equations E1 to E23 are this package's own; ``DEVIATIONS`` says so first.

Symbols: n cells, G genes, d latent dimensions; x (n, G) counts; l (n,) totals, counts; s batch; c conditions;
z (n, d) latents; rho (n, G) shares, rows sum to 1; m = l rho mean counts; theta (G,) inverse dispersion;
w (n, d + 1) standardised latents with the standardised log total; log-likelihoods in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cellsmith.math import counts, edm, likelihood
from cellsmith.math.latent import COLLAPSED_SD, draw_latent, gaussian_kl, latent_statistics
from cellsmith.model._deviation import Deviation

__all__ = [
    "DEVIATIONS",
    "EQUATIONS",
    "assemble",
    "draw_latent",
    "gaussian_kl",
    "interpolate_embeddings",
    "latent_statistics",
    "log_evidence",
    "moment_statistics",
    "standardise",
    "unassemble",
]


def moment_statistics(log_total: Tensor) -> tuple[Tensor, Tensor]:
    """E10: mean and standard deviation of the log totals (n,); a constant total has scale 1."""
    sd = log_total.std(unbiased=False)
    return log_total.mean(), torch.where(sd < COLLAPSED_SD, torch.ones_like(sd), sd)


def standardise(z: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """E9: (z - centre) / scale."""
    return (z - centre) / scale


def assemble(z_standard: Tensor, u: Tensor | None) -> Tensor:
    """E10: w = [z, u], so that depth and state stay correlated; without u, w = z."""
    return z_standard if u is None else torch.cat([z_standard, u.reshape(-1, 1)], dim=1)


def unassemble(w: Tensor, n_latent: int) -> tuple[Tensor, Tensor | None]:
    """Inverse of :func:`assemble`."""
    return (w, None) if w.shape[1] == n_latent else (w[:, :n_latent], w[:, n_latent])


def log_evidence(log_likelihood: Tensor, log_prior: Tensor, sd: Tensor) -> Tensor:
    """E22: log p(x) of every cell (n,), nats, from its posterior mean z.

    The identity log p(x) = log p(x | z) + log p(z) - log p(z | x) holds at every z; the encoder's Gaussian stands in
    for the posterior, at its mean, where its log density needs the standard deviations only (Chib, 1995,
    doi:10.1080/01621459.1995.10476635). Without that last term the answer would be a density of x and z.

    Parameters
    ----------
    log_likelihood
        log p(x | z) (n,), nats.
    log_prior
        log p(z) (n,), nats, in the units of z.
    sd
        Posterior standard deviations (n, d).
    """
    at_mean = -(sd.log() + 0.5 * math.log(2.0 * math.pi)).sum(dim=-1)
    return log_likelihood + log_prior - at_mean


def interpolate_embeddings(start: Tensor, end: Tensor, weight: float) -> Tensor:
    """E23: (1 - weight) E[a] + weight E[b], of condition embeddings (n, h)."""
    return (1.0 - weight) * start + weight * end


EQUATIONS = {
    "E1": draw_latent,
    "E2": likelihood.nb_log_prob_softmax,
    "E3": likelihood.nb_log_prob,
    "E4": likelihood.nb_log_prob,
    "E5": likelihood.zinb_log_prob,
    "E6": gaussian_kl,
    "E7": counts.dispersion_moments,
    "E8": counts.refit_dispersion,
    "E9": latent_statistics,
    "E10": assemble,
    "E11": counts.empirical_library,
    "E12": edm.signal_noise,
    "E13": edm.denoise,
    "E14": edm.denoising_loss,
    "E15": "cellsmith.nn.denoiser.Denoiser",
    "E16": edm.drop_conditions,
    "E17": edm.guided_denoiser,
    "E18": edm.sample_dpmpp_2m,
    "E19": edm.invert_ddim,
    "E20": "cellsmith.model.scld.post_guidance.apply_post_guidance",
    "E21": counts.exact_total,
    "E22": edm.log_density,
    "E23": interpolate_embeddings,
}


DEVIATIONS = (
    Deviation(
        "the method as a whole",
        "abstract and opening only: a latent diffusion model for scRNA-seq with pre- and post-guidance",
        "SCLD-style latent diffusion with pre- and post-guidance; the published text names the two mechanisms, our "
        "equations for them are our own; no claim to reproduce the paper's tables",
        "architecture, losses, constants and data sets of the paper were not available",
        "tests/model/scld/test_equations.py::test_first_deviation_states_what_is_ours",
    ),
    Deviation(
        "latent scale",
        "not stated",
        "latents are standardised by the aggregate posterior before the diffusion (E9)",
        "a schedule made for unit variance wastes its steps on latents of another scale",
        "tests/model/scld/test_train.py::test_cached_latents_have_unit_variance",
    ),
    Deviation(
        "sequencing depth",
        "not stated",
        "the log total is one more dimension of the diffusion (E10) and counts are drawn at that exact total (E21)",
        "depth and cell state are correlated; an observed total used as a mean counts its variance twice",
        "tests/model/scld/test_generate.py::test_exact_total_gives_the_requested_totals",
    ),
    Deviation(
        "dispersion",
        "not stated",
        "started from moments (E7), learned at ten times the rate, refitted by maximum likelihood (E8)",
        "learned at the common rate it stays near its start, and any classifier then tells generated genes",
        "tests/model/scld/test_train.py::test_dispersion_moves_away_from_its_start",
    ),
    Deviation(
        "guard of the refit",
        "not stated",
        "the refitted dispersion (E8) is kept unless the held-out negative log-likelihood rises by more than 0.5 %",
        "generated states lie where the training cells do, and so does the dispersion that goes with them; unseen "
        "cells, which the decoder fits less tightly, are slightly less likely under it",
        "tests/model/scld/test_train.py::test_refit_guard_rejects_a_failed_fit",
    ),
    Deviation(
        "depth of a taken-over source with size factors",
        "not stated",
        "u of E10 is the log of the observed total, not of the size factor; the rates of the source, normalised to "
        "shares, and their sum enter the likelihood and the refit (E2-E5, E8)",
        "size factor x sum of the rates meets the totals of a type only as well as the source was trained, and it "
        "lacks the spread of the totals around it",
        "tests/model/scld/test_source.py::test_totals_are_those_of_the_cells_where_the_source_has_size_factors",
    ),
    Deviation(
        "sampler heun",
        "not stated",
        "the trapezoid averages the denoised estimates D at both ends of a step, that is Heun for "
        "d(y/sigma)/d(1/sigma) = D (E18)",
        "the same rule on dy/dsigma has the same order, but at 10 steps it gives several times the variance",
        "tests/theory/test_diffusion.py::test_default_lengths_reach_the_mixture",
    ),
    Deviation(
        "log density",
        "not stated",
        "the ODE of E22 is solved in x = y / sqrt(1 + sigma^2), and traces come from vector-Jacobian products",
        "x keeps unit scale from the clean to the noisiest level; one forward pass serves all directions of the trace",
        "tests/theory/test_diffusion.py::test_log_density_of_a_gaussian",
    ),
    Deviation(
        "log density of counts",
        "not stated",
        "get_log_density(counts=True) adds log p(x | z) - log q(z | x) at the posterior mean to the log density of the "
        "state (E22), which makes it one of the counts",
        "the encoder maps a cell whose genes were shuffled to a state that may be as common as any; only its counts "
        "say that it is none",
        "tests/model/scld/test_queries.py::test_log_density_of_counts_finds_shuffled_genes",
    ),
    Deviation(
        "post-guidance",
        "raises sample quality",
        "four readings under one argument (E20), none by default",
        "no reading has been shown to raise quality beyond the noise between draws (see the benchmark page)",
        "tests/model/scld/test_post_guidance.py::test_no_post_guidance_by_default",
    ),
)
