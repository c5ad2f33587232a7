"""Laws of the diffusion: identities, orders of convergence, sampled moments, densities, dropout frequencies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cellsmith.math import edm

MEANS = torch.tensor([[-1.5, 0.5], [1.0, 1.0], [0.5, -1.5]], dtype=torch.float64)
SDS = torch.tensor([0.4, 0.6, 0.5], dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def mixture_denoiser(y, sigma):
    """E[w | y] of a mixture of isotropic Gaussians, exact."""
    variance = SDS**2 + sigma**2
    square = torch.cdist(y, MEANS).square()
    weight = (SHARES.log() - variance.log() * (y.shape[1] / 2) - square / (2 * variance)).softmax(dim=1)
    shrink = SDS**2 / variance
    return (weight * (1 - shrink)) @ MEANS + (weight @ shrink)[:, None] * y


def test_v_form_equals_the_preconditioned_form():
    generator = torch.Generator().manual_seed(0)
    w, noise, output = torch.randn(3, 500, 6, generator=generator)
    t = edm.stratified_times(500, generator=generator)
    a, s = (c[:, None] for c in edm.signal_noise(t))
    sigma = edm.sigma_of_time(t)
    c_skip, c_out, c_in, c_noise = edm.precondition(sigma)
    y = w + sigma[:, None] * noise
    noisy = a * w + s * noise
    received = {}

    def network(z, code, cond):
        received.update(z=z, code=code)
        return output

    by_velocity = a * noisy - s * (-output)  # D = a w_t - s v with F = -v
    by_coefficients = c_skip[:, None] * y + c_out[:, None] * output
    estimate = edm.denoise(network, y, sigma)
    torch.testing.assert_close(estimate, by_velocity, rtol=0, atol=1e-6)
    torch.testing.assert_close(estimate, by_coefficients, rtol=0, atol=1e-6)
    torch.testing.assert_close(received["z"], c_in[:, None] * y, rtol=0, atol=1e-6)
    torch.testing.assert_close(received["code"], c_noise, rtol=0, atol=1e-6)


def test_unit_weight_velocity_loss_is_the_preconditioned_loss():
    generator = torch.Generator().manual_seed(1)
    w, noise, output = torch.randn(3, 500, 6, generator=generator, dtype=torch.float64)
    sigma = edm.sigma_of_time(edm.stratified_times(500, generator=generator).double())

    def network(z, code, cond):
        return output

    estimate = edm.denoise(network, w + sigma[:, None] * noise, sigma)
    weighted = (1 + sigma**2) / sigma**2 * (estimate - w).square().sum(dim=1)
    torch.testing.assert_close(edm.denoising_loss(network, w, sigma, noise=noise), weighted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prior", ["diffusion", "flow"])
@pytest.mark.parametrize("weight", [0.0, 0.7, 1.0, 3.0])
def test_guiding_velocities_equals_guiding_estimates(prior, weight):
    generator = torch.Generator().manual_seed(2)
    y, null, cond = torch.randn(3, 200, 6, generator=generator)
    sigma = edm.sigma_of_time(edm.stratified_times(200, generator=generator), prior=prior)
    y = y * (1 + sigma**2).sqrt()[:, None]

    def estimate(output):
        return edm.denoise(lambda z, code, c: output, y, sigma, prior=prior)

    on_velocity = estimate(edm.guide(null, cond, weight))
    on_estimate = edm.guide(estimate(null), estimate(cond), weight)
    torch.testing.assert_close(on_velocity, on_estimate, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_samplers_converge_at_their_order(name, order):
    # levels uniform in ln sigma: the step both proofs of order speak of; the range holds all of the curvature
    def levels(n_steps):
        return torch.linspace(math.log(8.0), math.log(0.1), n_steps + 1, dtype=torch.float64).exp()

    generator = torch.Generator().manual_seed(3)
    y = torch.randn(16, 2, generator=generator, dtype=torch.float64) * 8.0
    exact = edm.sample_heun(mixture_denoiser, y, levels(3000))
    sizes = [40, 80, 160, 320]
    errors = [(edm.SAMPLERS[name](mixture_denoiser, y, levels(n)) - exact).square().mean().sqrt().item() for n in sizes]
    slope = np.polyfit(np.log(1.0 / np.array(sizes)), np.log(errors), 1)[0]
    assert abs(slope - order) <= 0.3, (slope, errors)


@pytest.mark.parametrize("prior", ["diffusion", "flow"])
def test_ancestral_sampler_has_the_right_mean_and_variance(prior):
    n = 5_000
    generator = torch.Generator().manual_seed(4)
    sampler = edm.SAMPLERS["ancestral"]
    sigmas = edm.sigma_grid(sampler.default_steps, prior=prior)
    y = torch.randn(n, 2, generator=generator, dtype=torch.float64) * sigmas[0]
    drawn = sampler(mixture_denoiser, y, sigmas, generator=generator)
    mean = SHARES @ MEANS
    centred = MEANS - mean
    variance = SHARES @ (centred**2 + SDS[:, None] ** 2)
    fourth = SHARES @ (centred**4 + 6 * centred**2 * SDS[:, None] ** 2 + 3 * SDS[:, None] ** 4)
    assert bool(((drawn.mean(dim=0) - mean).abs() <= 3 * (variance / n).sqrt()).all())
    assert bool(((drawn.var(dim=0) - variance).abs() <= 3 * ((fourth - variance**2) / n).sqrt()).all())


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m"])
def test_default_lengths_reach_the_mixture(name):
    generator = torch.Generator().manual_seed(5)
    sampler = edm.SAMPLERS[name]
    sigmas = edm.sigma_grid(sampler.default_steps)
    y = torch.randn(5_000, 2, generator=generator, dtype=torch.float64) * sigmas[0]
    drawn = sampler(mixture_denoiser, y, sigmas)
    nearest = torch.cdist(drawn, MEANS).argmin(dim=1)
    share = torch.bincount(nearest, minlength=3) / len(drawn)
    torch.testing.assert_close(share.double(), SHARES, rtol=0, atol=0.03)
    mean = SHARES @ MEANS
    variance = SHARES @ ((MEANS - mean) ** 2 + SDS[:, None] ** 2)
    torch.testing.assert_close(drawn.var(dim=0), variance, rtol=0.1, atol=0)


def _gaussian(d, seed):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    spectrum = torch.logspace(0.5, -1.5, d, dtype=torch.float64)
    mean = torch.randn(d, generator=generator, dtype=torch.float64)
    w = mean + (torch.randn(64, d, generator=generator, dtype=torch.float64) * spectrum.sqrt()) @ basis.T

    def denoiser(y, sigma):
        shrink = (spectrum / (spectrum + sigma**2)).to(y)
        return mean.to(y) + ((y - mean.to(y)) @ basis.to(y) * shrink) @ basis.T.to(y)

    # the density at the first level, where the data have been blurred by sigma_min
    def exact(sigma_min):
        total = spectrum + sigma_min**2
        square = ((w - mean) @ basis).square() / total
        return -0.5 * (square + total.log() + math.log(2 * math.pi)).sum(dim=1)

    return denoiser, w, exact


@pytest.mark.parametrize("prior", ["diffusion", "flow"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 17, 64])
def test_log_density_of_a_gaussian(d, dtype, prior):
    denoiser, w, exact = _gaussian(d, seed=6)
    sigmas = edm.sigma_grid(50, prior=prior, spacing="log").flip(0)
    found = edm.log_density(denoiser, w.to(dtype), sigmas)
    assert found.dtype == torch.float64
    assert float((found - exact(sigmas[0])).abs().max()) <= 0.02 * d


def test_log_density_by_random_probes_is_unbiased():
    denoiser, w, exact = _gaussian(80, seed=7)
    sigmas = edm.sigma_grid(50, spacing="log").flip(0)
    generator = torch.Generator().manual_seed(8)
    found = edm.log_density(denoiser, w, sigmas, n_probes=8, generator=generator)
    error = (found - exact(sigmas[0])) / 80
    assert abs(float(error.mean())) <= 0.02
    again = edm.log_density(denoiser, w, sigmas, n_probes=8, generator=torch.Generator().manual_seed(8))
    assert torch.equal(found, again)


def test_log_density_ranks_data_above_shuffled_data():
    denoiser, w, _ = _gaussian(10, seed=9)
    generator = torch.Generator().manual_seed(10)
    shuffled = torch.stack([column[torch.randperm(len(w), generator=generator)] for column in w.T], dim=1)
    sigmas = edm.sigma_grid(50, spacing="log").flip(0)
    real, broken = (edm.log_density(denoiser, v, sigmas) for v in (w, shuffled))
    assert float((real[:, None] > broken).double().mean()) >= 0.95


@pytest.mark.parametrize("n_covariates", [1, 2, 4])
def test_every_pattern_of_hidden_conditions_has_its_frequency(n_covariates):
    n, p = 100_000, 0.1
    dropped = edm.drop_conditions(n, n_covariates, generator=torch.Generator().manual_seed(11))
    codes = (dropped.long() * 2 ** torch.arange(n_covariates)).sum(dim=1)
    counts = torch.bincount(codes, minlength=2**n_covariates).double()
    single = p if n_covariates >= 2 else 0.0
    for code in range(2**n_covariates):
        hidden = code.bit_count()
        expected = (1 - p) * (1 - single) * p**hidden * (1 - p) ** (n_covariates - hidden)
        if hidden == n_covariates:
            expected += p
        if n_covariates >= 2 and hidden == n_covariates - 1:
            expected += (1 - p) * single / n_covariates
        deviation = math.sqrt(n * expected * (1 - expected))
        assert abs(float(counts[code]) - n * expected) <= 3 * deviation, (code, counts[code], n * expected)
