"""Networks: shapes, starts, independence of cells, and gradients where the training needs them."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import jvp, vmap

from cellsmith.math import edm
from cellsmith.nn.denoiser import Denoiser, NoisyClassifier
from cellsmith.nn.heads import GaussianHead, RateHead
from cellsmith.nn.mlp import MLP, Dropout


@pytest.fixture(autouse=True)
def _fixed_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _shaken(network):
    """Network whose zero-initialised layers are not zero, so that every path is alive."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


# -------------------------------------------------------------------------------------------------------------- mlp


def test_mlp_shapes_and_blocks():
    assert MLP(7, 3, n_hidden=16, n_layers=2, dropout_rate=0.1, input_dropout=0.1)(torch.randn(5, 7)).shape == (5, 3)
    trunk = MLP(7, None, n_hidden=16)
    assert trunk(torch.randn(5, 7)).shape == (5, 16)
    assert trunk.n_output == 16
    kinds = [type(m).__name__ for m in MLP(7, 3, n_hidden=16, dropout_rate=0.1, input_dropout=0.2).layers]
    assert kinds == ["Dropout", "Linear", "LayerNorm", "SiLU", "Dropout", "Linear"]
    assert [type(m).__name__ for m in MLP(7, 3, n_layers=0).layers] == ["Linear"]


@pytest.mark.parametrize("training", [True, False])
def test_a_cell_does_not_see_its_batch(training):
    network = MLP(6, 4, n_hidden=8, n_layers=2).train(training)
    x = torch.randn(30, 6)
    torch.testing.assert_close(network(x)[:3], network(x[:3]), rtol=0, atol=1e-6)


def test_dropout_keeps_the_mean_and_masks_the_gradient():
    layer, x = Dropout(0.1), torch.ones(1000, 1001, requires_grad=True)
    y = layer(x)
    kept = y != 0
    assert float(kept.double().mean()) == pytest.approx(0.9, abs=0.002)
    assert len(torch.unique(y.detach())) == 2
    assert float(y.detach().mean()) == pytest.approx(1.0, abs=0.003)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())
    # the four 16-bit pieces of one random word are independent of each other
    pieces = kept[:, :1000].reshape(-1, 4).double()
    assert float((torch.corrcoef(pieces.T) - torch.eye(4)).abs().max()) < 0.01


def test_dropout_is_reproducible_and_absent_in_eval_mode():
    layer, x = Dropout(0.3), torch.randn(20, 7)
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(first, layer(x))
    assert not torch.equal(first, layer(x))
    assert layer.eval()(x) is x
    assert Dropout(0.0)(x) is x
    with pytest.raises(ValueError, match="outside"):
        Dropout(1.0)


# ------------------------------------------------------------------------------------------------------------ heads


def test_gaussian_head_clamps_the_log_variance():
    mu, log_variance = GaussianHead(8, 3)(torch.randn(500, 8) * 100)
    assert mu.shape == log_variance.shape == (500, 3)
    assert log_variance.min().item() == -8.0
    assert log_variance.max().item() == 4.0


def test_rate_head_starts_at_the_mean_profile():
    head, means = RateHead(8, 5), torch.tensor([0.0, 0.5, 1.0, 3.0, 10.0])
    head.init_bias(means)
    torch.testing.assert_close(head.logits.bias, (means + 1e-4).log())
    logits, dropout_logits = head(torch.zeros(2, 8))
    assert dropout_logits is None
    torch.testing.assert_close(logits.softmax(dim=1)[0], (means + 1e-4) / (means + 1e-4).sum())
    torch.testing.assert_close(head.rate(torch.zeros(2, 8)).sum(dim=1), torch.ones(2))
    assert RateHead(8, 5, zero_inflated=True)(torch.zeros(2, 8))[1].shape == (2, 5)


# --------------------------------------------------------------------------------------------------------- denoiser


def test_denoiser_starts_at_zero_and_every_weight_learns():
    network = Denoiser(5, n_hidden=16, n_layers=2, n_cats_per_cov=(3, 2), n_continuous_cov=2)
    categories = torch.tensor([[0, 1], [2, 0], [3, 2]])
    z, code = torch.randn(3, 5), torch.randn(3)
    assert not bool(network(z, code, network.embed(categories, torch.randn(3, 2))).any())
    _shaken(network)
    network(z, code, network.embed(categories, torch.randn(3, 2))).square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in network.parameters())


def test_blocks_are_the_identity_at_the_start():
    network = Denoiser(5, n_hidden=16, n_layers=2)
    torch.nn.init.normal_(network.leave.weight)
    z = torch.randn(4, 5)
    torch.testing.assert_close(network(z, torch.randn(4)), network.leave(network.enter(z)))


def test_denoiser_equals_the_textbook_form():
    network = _shaken(Denoiser(5, n_hidden=16, n_layers=2, n_cats_per_cov=(3,)))
    z, code, cond = torch.randn(4, 5), torch.randn(4), network.embed(torch.tensor([[0], [1], [2], [3]]))
    c = torch.nn.functional.silu(network.code(code) + cond)
    x = network.enter(z)
    for block, modulation in zip(network.blocks, network.modulate(c).chunk(2, dim=1), strict=True):
        scale, shift, gate = modulation.chunk(3, dim=1)
        normal = (x - x.mean(dim=1, keepdim=True)) / (x.var(dim=1, keepdim=True, correction=0) + 1e-5).sqrt()
        h = normal * (1 + scale) + shift
        x = x + gate * block.contract(torch.nn.functional.silu(block.expand(h)))
    torch.testing.assert_close(network(z, code, cond), network.leave(x))


def test_size_is_one_to_two_million_at_width_256():
    count = sum(p.numel() for p in Denoiser(17, n_hidden=256, n_cats_per_cov=(8,)).parameters())
    assert 1e6 <= count <= 2e6


def test_embeddings_null_and_mixtures():
    network = Denoiser(5, n_hidden=16, n_cats_per_cov=(3, 2), n_continuous_cov=2)
    assert network.null_index == (3, 2)
    categories = torch.tensor([[0, 1], [3, 0], [2, 2]])
    continuous = torch.randn(3, 2)
    plain = network.embed(categories, continuous)
    weights = [torch.nn.functional.one_hot(categories[:, k], n + 1).float() for k, n in enumerate((3, 2))]
    torch.testing.assert_close(network.embed_weights(weights, continuous), plain)
    half = [torch.tensor([[0.5, 0.5, 0, 0]]), torch.tensor([[1.0, 0, 0]])]
    ends = network.embed(torch.tensor([[0, 0], [1, 0]]))
    torch.testing.assert_close(network.embed_weights(half), ends.mean(dim=0, keepdim=True))
    all_null = torch.tensor([[3, 2]]).expand(4, -1)
    assert torch.equal(network.null(4), network.embed(all_null))
    hidden = network.embed(categories, continuous, torch.tensor([False, True, True]))
    torch.testing.assert_close(hidden[0], plain[0])
    torch.testing.assert_close(hidden[1:], network.embed(categories)[1:])


def test_without_covariates_the_embedding_is_zero():
    network = Denoiser(5, n_hidden=16)
    assert torch.equal(network.null(4), torch.zeros(4, 16))
    assert torch.equal(network.embed(torch.zeros(4, 0, dtype=torch.long)), torch.zeros(4, 16))
    _shaken(network)
    z, code = torch.randn(4, 5), torch.randn(4)
    assert torch.equal(network(z, code, network.null(4)), network(z, code))
    with pytest.raises(ValueError, match="no categorical covariate"):
        network.embed_weights([])


def test_continuous_covariates_alone():
    network = Denoiser(5, n_hidden=16, n_continuous_cov=1)
    nothing = torch.zeros(3, 0, dtype=torch.long)
    assert float(network.embed(nothing, torch.ones(3, 1)).abs().max()) > 0
    assert torch.equal(network.null(3), torch.zeros(3, 16))


@pytest.mark.parametrize("n_kinds", [1, 2, 40])
def test_fixed_conditions_give_the_same_output(n_kinds):
    network = _shaken(Denoiser(5, n_hidden=16, n_cats_per_cov=(50,)))
    cond = network.embed(torch.arange(40)[:, None] % n_kinds)
    z = torch.randn(40, 5)
    fixed = network.fixed(cond)
    for code in (torch.tensor([0.3]), torch.randn(40)):
        torch.testing.assert_close(fixed(z, code, None), network(z, code, cond))


def test_guidance_through_a_network_is_bit_equal_at_zero_and_one():
    network = _shaken(Denoiser(5, n_hidden=16, n_cats_per_cov=(3,))).requires_grad_(False)
    null, cond = network.null(30), network.embed(torch.arange(30)[:, None] % 3)
    y = torch.randn(30, 5) * 3

    def run(conds, weights):
        return edm.guided_denoiser(network, null, conds, weights=weights)(y, 3.0)

    assert torch.equal(run([cond], [0.0]), run([], []))
    assert torch.equal(run([cond], [1.0]), run([cond, null], [1.0, 0.0]))
    assert float((run([cond], [1.0]) - run([], [])).abs().max()) > 1e-3


def test_jacobian_by_forward_and_reverse_mode_agree():
    network = _shaken(Denoiser(4, n_hidden=16, n_cats_per_cov=(3,))).requires_grad_(False)
    cond = network.embed(torch.tensor([[0], [1], [3]]))
    y, sigma = torch.randn(3, 4), torch.tensor(0.6)

    def denoiser(point):
        return edm.denoise(network, point, sigma, cond=cond)

    directions = torch.eye(4)[:, None].expand(4, 3, 4)
    forward = vmap(lambda u: jvp(denoiser, (y,), (u,))[1])(directions)
    point = y.clone().requires_grad_()
    (reverse,) = torch.autograd.grad(denoiser(point), point, directions, is_grads_batched=True)
    torch.testing.assert_close(forward.permute(1, 2, 0), reverse.permute(1, 0, 2))


@pytest.mark.parametrize("prior", ["diffusion", "flow"])
def test_trained_network_finds_a_gaussian(prior):
    centre = torch.tensor([1.0, -1.0])
    network = Denoiser(2, n_hidden=32, n_layers=2, n_cats_per_cov=(2,))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        label = torch.randint(0, 2, (128,), generator=generator)
        w = (2.0 * label[:, None] - 1) * centre + 0.3 * torch.randn(128, 2, generator=generator)
        hidden = edm.drop_conditions(128, 1, generator=generator)
        cond = network.embed(torch.where(hidden, 2, label[:, None]))
        sigma = edm.sigma_of_time(edm.stratified_times(128, generator=generator), prior=prior)
        noise = torch.randn(128, 2, generator=generator)
        loss = edm.denoising_loss(network, w, sigma, noise=noise, cond=cond, prior=prior).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.requires_grad_(False)
    sigmas = edm.sigma_grid(20, prior=prior)
    y = torch.randn(400, 2, generator=generator) * sigmas[0]
    for label, weight in ((0, 1.0), (1, 1.0), (1, 0.0)):
        cond = network.embed(torch.full((400, 1), label))
        denoiser = edm.guided_denoiser(network, network.null(400), [cond], weights=[weight], prior=prior)
        drawn = edm.sample_dpmpp_2m(denoiser, y, sigmas)
        if weight:
            torch.testing.assert_close(drawn.mean(dim=0), (2.0 * label - 1) * centre, rtol=0, atol=0.15)
            assert float((drawn.std(dim=0) - 0.3).abs().max()) < 0.15
        else:
            assert 0.35 <= float((drawn[:, 0] > 0).double().mean()) <= 0.65
    density = edm.log_density(
        lambda y, s: edm.denoise(network, y, s, cond=network.null(len(y)), prior=prior),
        torch.stack([centre, -centre, 4 * centre]),
        edm.sigma_grid(50, prior=prior, spacing="log").flip(0),
    )
    assert float(density[:2].min()) > float(density[2]) + 3
    assert math.isfinite(float(density[2]))


def test_noisy_classifier():
    network = NoisyClassifier(5, (3, 2), n_hidden=16)
    z = torch.randn(7, 5, requires_grad=True)
    logits = network(z, torch.randn(7))
    assert [tuple(part.shape) for part in logits] == [(7, 3), (7, 2)]
    sum(part.log_softmax(dim=1)[:, 0].sum() for part in logits).backward()
    assert float(z.grad.abs().min()) > 0
    torch.testing.assert_close(network(z, torch.tensor([0.2]))[0], network(z, torch.full((7,), 0.2))[0])
