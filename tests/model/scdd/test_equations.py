"""The equations of SCDD one by one: closed forms, limits and laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cellsmith.math import edm
from cellsmith.model.scdd import equations as eq


def test_first_deviation_states_what_is_ours() -> None:
    assert "No claim to reproduce" in eq.DEVIATIONS[0].change
    assert {d.subject for d in eq.DEVIATIONS} >= {"sigma_star", "prototype start", "residual", "second moments"} | {
        "best iterate",
        "deep counts",
        "soft labels",
    }


def test_equations_are_numbered_and_resolve() -> None:
    numbers = [k for k in eq.EQUATIONS if k.isdigit()]
    assert numbers == [str(i) for i in range(1, 24) if i != 17]  # trajectory matching is left out
    assert any(d.subject == "trajectory matching" for d in eq.DEVIATIONS)


def test_label_loss_reads_labelled_cells_only() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]], requires_grad=True)
    got = eq.label_loss(logits, torch.tensor([0, 1, 2]))
    expected = torch.nn.functional.cross_entropy(logits[:2], torch.tensor([0, 1]))
    torch.testing.assert_close(got, expected)
    none = eq.label_loss(logits, torch.tensor([2, 2, 2]))
    none.backward()
    assert float(none.detach()) == 0.0
    assert torch.equal(logits.grad, torch.zeros(3, 2))


def test_foundation_loss_ignores_rotation_and_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=generator)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator))[0]
    assert float(eq.foundation_loss(x, 3.0 * x @ rotation + 1.0)) == pytest.approx(0.0, abs=1e-5)
    assert float(eq.foundation_loss(x, torch.randn(50, 4, generator=generator))) > 0.5


def test_preconditioning_is_that_of_the_spec() -> None:
    """D = z/(1 + s^2) + s/sqrt(1 + s^2) F, and the v-loss is w |D - z0|^2 with w = (1 + s^2)/s^2."""
    generator = torch.Generator().manual_seed(0)
    z0, noise, f = (torch.randn(7, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    sigma = torch.rand(7, generator=generator, dtype=torch.float64) * 5 + 0.1
    s = sigma[:, None]
    z = z0 + s * noise
    d = edm.denoise(lambda *_: f, z, sigma)
    torch.testing.assert_close(d, z / (1 + s**2) + s / (1 + s**2).sqrt() * f, rtol=1e-6, atol=1e-9)
    loss = edm.denoising_loss(lambda *_: f, z0, sigma, noise=noise)
    torch.testing.assert_close(loss, ((1 + s**2) / s**2 * (d - z0) ** 2).sum(dim=1), rtol=1e-6, atol=1e-9)


def test_training_noise_is_log_normal_within_its_range() -> None:
    sigma = eq.training_sigma(50_000, generator=torch.Generator().manual_seed(0))
    assert float(sigma.min()) == pytest.approx(0.02)
    assert float(sigma.max()) <= 20.0 + 1e-5
    assert float(sigma.log().mean()) == pytest.approx(-0.4, abs=0.02)
    assert float(sigma.log().std()) == pytest.approx(1.0, abs=0.02)


def test_diversity_is_the_largest_cosine_of_the_same_class() -> None:
    memory = torch.zeros(2, 3, 2)
    estimate, labels = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])
    assert float(eq.diversity(estimate, memory, labels)) == 0.0
    memory[0, 1] = torch.tensor([5.0, 0.0])
    memory[0, 2] = torch.tensor([0.0, 1.0])  # of class 0: the second cell, of class 1, does not see it
    assert float(eq.diversity(estimate, memory, labels)) == pytest.approx(0.5)


def test_ideal_response_vanishes_with_the_noise() -> None:
    jacobian, spread = zip(*(eq.ideal_response(1.0, s) for s in (0.1, 1.0, 10.0, 100.0)), strict=True)
    assert np.all(np.diff(jacobian) < 0)
    assert np.all(np.diff(spread) < 0)
    assert float(jacobian[1]) == pytest.approx(0.5)
    assert float(spread[1]) == pytest.approx(0.5**0.5)


def test_inversion_start_inverts_the_ideal_denoiser() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, centre = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    variance, sigma = torch.rand(5, 3, generator=generator, dtype=torch.float64) + 0.1, 1.7
    z = eq.inversion_start(mean, centre, variance, sigma=sigma)
    torch.testing.assert_close(centre + variance / (variance + sigma**2) * (z - centre), mean)


def test_levels_begin_and_end_where_they_should() -> None:
    assert eq.generator_levels(1.0, 1).tolist() == [1.0]
    levels = eq.sampling_levels(20)
    assert float(levels[0]) == pytest.approx(20.0)
    assert float(levels[-1]) == pytest.approx(0.02)
    assert np.all(np.diff(levels.numpy()) < 0)


def test_rendering_keeps_the_mass_whatever_the_residual() -> None:
    shares = torch.randn(3, 6, dtype=torch.float64).log_softmax(dim=1)
    mass = torch.tensor([1.0, 0.8, 0.5], dtype=torch.float64)
    residual = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(eq.render(shares, residual, mass).exp().sum(dim=1), mass)
    torch.testing.assert_close(eq.render(shares, None, torch.ones(3, dtype=torch.float64)), shares)
    wanted = torch.rand(3, 6, dtype=torch.float64)
    wanted = wanted / wanted.sum(dim=1, keepdim=True) * mass[:, None]
    torch.testing.assert_close(eq.render(shares, wanted.log() - shares, mass).exp(), wanted)


def test_penalties_are_sums_over_profiles() -> None:
    ones = torch.ones(3, 4)
    assert float(eq.code_penalty(ones, 0 * ones)) == 12.0
    assert float(eq.residual_penalty(ones, 0 * ones)) == 3.0


def test_soft_labels_are_means_over_the_cells_of_a_profile() -> None:
    p = np.array([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]])
    got = eq.soft_labels(p, np.array([0, 0, -1]), n_groups=2)
    np.testing.assert_allclose(got[0], [0.7, 0.3])
    assert np.isnan(got[1]).all()
