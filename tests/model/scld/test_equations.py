"""The equations that stand alone, and what the tables EQUATIONS and DEVIATIONS claim."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellsmith.model.scld import equations as eq


def test_first_deviation_states_what_is_ours() -> None:
    first = eq.DEVIATIONS[0]
    assert first.published.startswith("abstract and opening only")
    assert first.change == (
        "SCLD-style latent diffusion with pre- and post-guidance; the published text names the two mechanisms, our "
        "equations for them are our own; no claim to reproduce the paper's tables"
    )


def test_every_equation_has_its_number() -> None:
    assert list(eq.EQUATIONS) == [f"E{i}" for i in range(1, 24)]


def test_latent_draw_has_its_mean_and_spread() -> None:
    mean, sd = torch.tensor([[1.0, -2.0]]).expand(40_000, 2), torch.tensor([[0.5, 2.0]]).expand(40_000, 2)
    z = eq.draw_latent(mean, sd, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(z.mean(dim=0), mean[0], atol=0.04, rtol=0)
    torch.testing.assert_close(z.std(dim=0), sd[0], atol=0.03, rtol=0)


def test_kl_agrees_with_torch() -> None:
    mean, log_variance = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0)).double()
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (0.5 * log_variance).exp()), normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(eq.gaussian_kl(mean, log_variance), expected)
    assert float(eq.gaussian_kl(torch.zeros(1, 3), torch.zeros(1, 3))) == 0.0


def test_statistics_are_those_of_the_aggregate_posterior() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = 3.0 + 2.0 * torch.randn(20_000, 3, generator=generator)
    sd = torch.tensor([0.1, 1.0, 3.0]).expand_as(mean)
    centre, scale, collapsed = eq.latent_statistics(mean, sd)
    z = eq.draw_latent(mean, sd, generator=generator)
    torch.testing.assert_close(centre, z.mean(dim=0), atol=0.1, rtol=0)
    torch.testing.assert_close(scale, z.std(dim=0), rtol=0.02, atol=0)
    assert not collapsed.any()


def test_collapsed_dimensions_keep_their_scale_and_are_marked() -> None:
    mean = torch.randn(50, 2) * torch.tensor([1.0, 0.0])
    _, scale, collapsed = eq.latent_statistics(mean, torch.zeros(50, 2))
    assert collapsed.tolist() == [False, True]
    assert scale[1] == 1.0


def test_constant_library_has_scale_one() -> None:
    centre, scale = eq.moment_statistics(torch.full((20,), 7.0))
    assert (float(centre), float(scale)) == (7.0, 1.0)


@given(n=st.integers(1, 20), d=st.integers(1, 5), with_library=st.booleans())
def test_unassemble_inverts_assemble(n: int, d: int, with_library: bool) -> None:
    z, u = torch.randn(n, d), torch.randn(n) if with_library else None
    w = eq.assemble(z, u)
    assert w.shape == (n, d + with_library)
    z_back, u_back = eq.unassemble(w, d)
    assert torch.equal(z, z_back)
    assert (u_back is None) == (u is None)
    if u is not None:
        assert torch.equal(u, u_back)


@pytest.mark.parametrize("noise", [0.1, 1.0, 3.0])
def test_log_evidence_is_exact_where_the_posterior_is_gaussian(noise: float) -> None:
    # x = A z + noise e with orthogonal columns of A: the posterior is Gaussian with a diagonal covariance.
    generator = torch.Generator().manual_seed(0)
    a = torch.linalg.qr(torch.randn(7, 3, generator=generator, dtype=torch.float64))[0] * torch.tensor([0.5, 1.0, 4.0])
    x = 3.0 * torch.randn(20, 7, generator=generator, dtype=torch.float64)
    variance = 1.0 / (1.0 + a.square().sum(dim=0) / noise**2)
    z = (x @ a) * variance / noise**2
    normal = torch.distributions.Normal
    likelihood = normal(z @ a.T, noise).log_prob(x).sum(dim=1)
    found = eq.log_evidence(likelihood, normal(0.0, 1.0).log_prob(z).sum(dim=1), variance.sqrt().expand(20, 3))
    covariance = a @ a.T + noise**2 * torch.eye(7, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(torch.zeros(7, dtype=torch.float64), covariance).log_prob(x)
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_interpolation_ends_at_its_ends(weight: float) -> None:
    a, b = torch.randn(2, 4, 3)
    got = eq.interpolate_embeddings(a, b, weight)
    torch.testing.assert_close(got, a + weight * (b - a))
    if weight in (0.0, 1.0):
        assert torch.equal(got, b if weight else a)
