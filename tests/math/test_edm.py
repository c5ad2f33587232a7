"""Noise schedules, denoiser forms, guidance and samplers on inputs with a known answer."""

from __future__ import annotations

import math

import pytest
import torch

from cellsmith._errors import SetupError
from cellsmith.math import edm


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _linear_network(d: int, seed: int = 0):
    weight = torch.randn(d + 1, d, generator=_generator(seed), dtype=torch.float64)

    def network(z, c_noise, cond):
        code = c_noise.to(z)[:, None].expand(len(z), 1)
        extra = 0.0 if cond is None else cond.to(z)
        return torch.cat([z, code], dim=1) @ weight.to(z) + extra

    return network


# ------------------------------------------------------------------------------------------------------- schedule


def test_cosine_schedule_has_the_specified_ends():
    t = torch.tensor([0.001, 0.999], dtype=torch.float64)
    sigma = edm.sigma_of_time(t)
    assert sigma[0] == pytest.approx(0.0140, abs=5e-5)
    assert sigma[1] == pytest.approx(642, abs=0.5)
    a, s = edm.signal_noise(t)
    torch.testing.assert_close(s / a, sigma)
    torch.testing.assert_close(a**2 + s**2, torch.ones(2, dtype=torch.float64))


def test_float32_times_keep_the_float64_level():
    t = torch.tensor([0.001, 0.5, 0.999], dtype=torch.float32)
    torch.testing.assert_close(edm.sigma_of_time(t).double(), edm.sigma_of_time(t.double()), rtol=1e-6, atol=0)


@pytest.mark.parametrize("prior", ["diffusion", "flow"])
@pytest.mark.parametrize("spacing", ["time", "log"])
def test_grid_falls_between_the_ends(prior, spacing):
    grid = edm.sigma_grid(20, prior=prior, spacing=spacing)
    assert grid.shape == (20,)
    assert bool((grid.diff() < 0).all())
    whole = edm.sigma_grid(2, prior=prior)
    torch.testing.assert_close(grid[[0, -1]], whole)
    if spacing == "log":
        torch.testing.assert_close(grid.log().diff(), torch.full((19,), grid.log().diff()[0].item()).double())


def test_flow_grid_is_uniform_in_flow_time():
    grid = edm.sigma_grid(11, prior="flow")
    times = 1 / (1 + grid)
    torch.testing.assert_close(times, torch.linspace(0.001, 0.999, 11, dtype=torch.float64))


def test_grid_of_one_step_is_the_noisiest_level_and_start_lowers_it():
    assert edm.sigma_grid(1).item() == pytest.approx(edm.sigma_grid(5)[0].item())
    assert edm.sigma_grid(5, start=0.5)[0].item() == pytest.approx(math.tan(math.pi / 2 * 0.508 / 1.008))
    assert edm.sigma_grid(5, start=0.5, prior="flow")[0].item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("kwargs", "words"), [({"n_steps": 0}, "n_steps=0"), ({"n_steps": 3, "start": 1.0}, "start=1.0")]
)
def test_grid_refuses_impossible_requests(kwargs, words):
    with pytest.raises(SetupError, match=words):
        edm.sigma_grid(**kwargs)


def test_times_are_stratified_and_shuffled():
    t = edm.stratified_times(256, generator=_generator())
    assert t.shape == (256,)
    low, high = edm.TIME_RANGE
    assert low <= t.min()
    assert t.max() <= high
    cells = ((t - low) / (high - low) * 256).floor()
    assert len(set(cells.tolist())) >= 255  # one time a stratum, up to rounding at an edge
    assert not bool((t.diff() > 0).all())
    steps = t.sort().values.diff()
    torch.testing.assert_close(steps, torch.full((255,), (high - low) / 256), rtol=1e-2, atol=0)


def test_noise_does_not_depend_on_the_batch():
    def generators(first, last):
        return [_generator(100 + i) for i in range(first, last)]

    whole = edm.chunked_noise(2500, 3, generators=generators(0, 3))
    parts = [
        edm.chunked_noise(1024, 3, generators=generators(0, 1)),
        edm.chunked_noise(1476, 3, generators=generators(1, 3)),
    ]
    assert torch.equal(whole, torch.cat(parts))
    with pytest.raises(SetupError, match="expected 3"):
        edm.chunked_noise(2500, 3, generators=generators(0, 2))


def test_ema_decay_ramps():
    assert edm.ema_decay(0) == pytest.approx(0.1)
    assert edm.ema_decay(90) == pytest.approx(0.91)
    assert edm.ema_decay(10**6) == 0.999


# ------------------------------------------------------------------------------------------------ denoiser and loss


@pytest.mark.parametrize("prior", ["diffusion", "flow"])
@pytest.mark.parametrize("prediction", ["v", "epsilon", "x0"])
@pytest.mark.parametrize("t", [0.001, 0.3, 0.999])
def test_a_perfect_network_gives_back_the_clean_vectors(prior, prediction, t):
    w = torch.randn(50, 5, generator=_generator(1))
    noise = torch.randn(50, 5, generator=_generator(2))
    sigma = edm.sigma_of_time(torch.full((50,), t), prior=prior)
    a = 1 / (1 + sigma**2).sqrt()
    velocity = (sigma * a)[:, None] * w - a[:, None] * noise if prior == "diffusion" else w - noise
    answer = {"v": velocity, "epsilon": noise, "x0": w}[prediction]

    def network(z, c_noise, cond):
        return answer

    estimate = edm.denoise(network, w + sigma[:, None] * noise, sigma, prediction=prediction, prior=prior)
    # float32 noise of epsilon reaches D multiplied by sigma
    tolerance = max(1e-5, 4e-7 * float(sigma[0]) if prediction == "epsilon" else 0.0)
    torch.testing.assert_close(estimate, w, rtol=0, atol=tolerance)
    loss = edm.denoising_loss(network, w, sigma, noise=noise, prediction=prediction, prior=prior)
    assert loss.shape == (50,)
    assert float(loss.max()) < 1e-10


@pytest.mark.parametrize("prior", ["diffusion", "flow"])
@pytest.mark.parametrize("prediction", ["v", "epsilon", "x0"])
def test_loss_is_the_weighted_error_of_the_denoised_estimate(prior, prediction):
    w = torch.randn(40, 4, generator=_generator(3), dtype=torch.float64)
    noise = torch.randn(40, 4, generator=_generator(4), dtype=torch.float64)
    sigma = edm.sigma_of_time(edm.stratified_times(40, generator=_generator(5)).double(), prior=prior)
    network = _linear_network(4)
    how = {"prediction": prediction, "prior": prior}
    estimate = edm.denoise(network, w + sigma[:, None] * noise, sigma, **how)
    out_scale = {"x0": torch.ones_like(sigma), "epsilon": sigma}.get(
        prediction, sigma / (1 + sigma) if prior == "flow" else sigma / (1 + sigma**2).sqrt()
    )
    expected = ((estimate - w) / out_scale[:, None]).square().sum(dim=1)
    torch.testing.assert_close(edm.denoising_loss(network, w, sigma, noise=noise, **how), expected)


def test_one_sigma_for_all_rows_equals_one_sigma_a_row():
    y = torch.randn(6, 4, generator=_generator(6))
    network = _linear_network(4)
    each = edm.denoise(network, y, torch.full((6,), 0.7))
    torch.testing.assert_close(edm.denoise(network, y, 0.7), each)
    torch.testing.assert_close(edm.denoise(network, y, torch.tensor(0.7, dtype=torch.float64)), each)


def test_unknown_words_are_refused_with_the_nearest_one():
    y = torch.zeros(2, 2)
    with pytest.raises(SetupError, match="Did you mean 'epsilon'"):
        edm.denoise(_linear_network(2), y, 1.0, prediction="epsilom")
    with pytest.raises(SetupError, match="Did you mean 'diffusion'"):
        edm.denoise(_linear_network(2), y, 1.0, prior="difusion")


# --------------------------------------------------------------------------------------------------------- guidance


def test_weights_zero_and_one_are_bit_equal_to_their_estimate():
    null, cond = torch.randn(2, 30, 5, generator=_generator(7))
    assert torch.equal(edm.guide(null, cond, 0.0), null)
    assert torch.equal(edm.guide(null, cond, 1.0), cond)
    weights = torch.tensor([0.0, 1.0, 2.0]).repeat(10)
    mixed = edm.guide(null, cond, weights)
    assert torch.equal(mixed[0::3], null[0::3])
    assert torch.equal(mixed[1::3], cond[1::3])
    torch.testing.assert_close(mixed[2::3], (2 * cond - null)[2::3])


def test_additive_guidance_sums_the_differences():
    null, first, second = torch.randn(3, 30, 5, generator=_generator(8))
    expected = null + 0.5 * (first - null) + 1.5 * (second - null)
    torch.testing.assert_close(edm.guide_additive(null, [first, second], [0.5, 1.5]), expected)
    assert torch.equal(edm.guide_additive(null, [first, second], [0.0, 0.0]), null)
    assert torch.equal(edm.guide_additive(null, [first, second], [0.0, 1.0]), second)


class _Counting:
    """Network that counts the rows it is asked for."""

    def __init__(self):
        self.network, self.rows = _linear_network(4), 0

    def __call__(self, z, c_noise, cond):
        self.rows += len(z)
        return self.network(z, c_noise, cond)


@pytest.mark.parametrize(
    ("weights", "passes"),
    [([0.0], 1.0), ([1.0], 1.0), ([2.0], 2.0), ([0.0, 1.0], 1.0), ([1.5, 1.5], 3.0), ([2.0, 0.0], 2.0), ([], 1.0)],
)
def test_guided_denoiser_makes_only_the_passes_it_needs(weights, passes):
    y = torch.randn(12, 4, generator=_generator(9))
    null = torch.zeros(12, 4)
    conds = list(torch.randn(2, 12, 4, generator=_generator(10)))[: len(weights)]
    network = _Counting()
    denoiser = edm.guided_denoiser(network, null, conds, weights=weights)
    estimate = denoiser(y, 0.8)
    assert network.rows == 12 * passes
    assert denoiser.n_passes == passes
    plain = [edm.denoise(network, y, 0.8, cond=c) for c in [null, *conds]]
    torch.testing.assert_close(estimate, edm.guide_additive(plain[0], plain[1:], weights))
    if passes == 1.0:
        assert any(torch.equal(estimate, p) for p in plain)


def test_guided_denoiser_skips_rows_of_weight_zero():
    y = torch.randn(12, 4, generator=_generator(11))
    null, cond = torch.zeros(12, 4), torch.ones(12, 4)
    weights = torch.tensor([0.0, 1.0, 2.0]).repeat(4)
    network = _Counting()
    denoiser = edm.guided_denoiser(network, null, [cond], weights=[weights])
    estimate = denoiser(y, torch.full((12,), 0.8))
    assert network.rows == 4 + 4 + 8
    plain = [edm.denoise(network, y, 0.8, cond=c) for c in (null, cond)]
    torch.testing.assert_close(estimate, edm.guide(*plain, weights))


def test_rows_of_one_batch_hide_different_covariates():
    dropped = edm.drop_conditions(256, 2, generator=_generator(12))
    assert len(torch.unique(dropped, dim=0)) == 4
    assert edm.drop_conditions(5, 0, generator=_generator()).shape == (5, 0)
    assert not bool(edm.drop_conditions(100, 3, probability=0.0, generator=_generator()).any())
    assert bool(edm.drop_conditions(100, 3, probability=1.0, generator=_generator()).all())


# --------------------------------------------------------------------------------------------------------- samplers


@pytest.mark.parametrize("name", sorted(edm.SAMPLERS))
@pytest.mark.parametrize("n_steps", [1, 2, 7])
def test_samplers_evaluate_as_often_as_they_say(name, n_steps):
    seen = []

    def denoiser(y, sigma):
        seen.append(float(sigma))
        return y / (1 + sigma**2)

    sampler, sigmas = edm.SAMPLERS[name], edm.sigma_grid(n_steps)
    sampler(denoiser, torch.randn(3, 2) * sigmas[0], sigmas, generator=_generator())
    assert len(seen) == sampler.n_evaluations(n_steps)
    assert seen[-1] == pytest.approx(float(sigmas[-1]))


def test_sampler_defaults():
    assert {name: s.default_steps for name, s in edm.SAMPLERS.items()} == {
        "dpmpp_2m": 20,
        "ddim": 50,
        "heun": 10,
        "ancestral": 200,
    }
    assert edm.SAMPLERS["heun"].n_evaluations() == 19
    assert edm.SAMPLERS["dpmpp_2m"].n_evaluations() == 20


def test_ancestral_rows_do_not_depend_on_their_batch():
    sigmas = edm.sigma_grid(5)
    y = torch.randn(1500, 2, generator=_generator(13)) * sigmas[0]

    def run(rows, first, last):
        generators = [_generator(i) for i in range(first, last)]
        return edm.sample_ancestral(lambda y, s: y / (1 + s**2), y[rows], sigmas, generator=generators)

    whole = run(slice(None), 0, 2)
    parts = torch.cat([run(slice(0, 1024), 0, 1), run(slice(1024, None), 1, 2)])
    torch.testing.assert_close(whole, parts)


def test_inversion_then_sampling_returns_the_start():
    centre = torch.tensor([[2.0, -1.0]], dtype=torch.float64)

    def denoiser(y, sigma):  # two Gaussians of sd 0.5 at plus and minus the centre
        share = torch.tanh((y * centre).sum(dim=1, keepdim=True) / (0.25 + sigma**2))
        return (0.25 * y + sigma**2 * share * centre) / (0.25 + sigma**2)

    w = torch.randn(200, 2, generator=_generator(14), dtype=torch.float64) * 0.5
    w += centre * torch.randn(200, 1, generator=_generator(15), dtype=torch.float64).sign()
    errors = []
    for n_steps in (50, 200, 800):
        sigmas = edm.sigma_grid(n_steps)
        back = edm.sample_ddim(denoiser, edm.invert_ddim(denoiser, w, sigmas.flip(0)), sigmas)
        errors.append(float((back - w).abs().mean()))
    assert errors[0] < 0.1
    assert errors[-1] < 0.01
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_spherical_line_keeps_length_and_ends():
    start, end = torch.randn(2, 40, 6, generator=_generator(16), dtype=torch.float64)
    start, end = (v / v.norm(dim=1, keepdim=True) for v in (start, end))
    torch.testing.assert_close(edm.spherical_line(start, end, 0.0), start)
    torch.testing.assert_close(edm.spherical_line(start, end, 1.0), end)
    middle = edm.spherical_line(start, end, torch.full((40,), 0.3))
    torch.testing.assert_close(middle.norm(dim=1), torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(edm.spherical_line(start, start, 0.3), start)


# ---------------------------------------------------------------------------------------------------------- density


def test_density_refuses_falling_levels():
    with pytest.raises(SetupError, match="rising"):
        edm.log_density(lambda y, s: y, torch.zeros(2, 2), edm.sigma_grid(5))


def test_density_does_not_depend_on_chunks_and_passes_conditions():
    def denoiser(y, sigma, cond):
        return cond + (y - cond) / (1 + sigma**2)

    w, cond = torch.randn(2, 70, 3, generator=_generator(17))
    sigmas = edm.sigma_grid(50, spacing="log").flip(0)
    whole = edm.log_density(denoiser, w, sigmas, cond=cond)
    torch.testing.assert_close(edm.log_density(denoiser, w, sigmas, cond=cond, chunk_size=16), whole)
    expected = -0.5 * ((w - cond).double().square().sum(dim=1) + 3 * math.log(2 * math.pi))
    torch.testing.assert_close(whole, expected, rtol=0, atol=0.06)
