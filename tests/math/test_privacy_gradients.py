"""Gradients of single units, clipping, noise and sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor
from torch.nn.functional import linear

from cellsmith._errors import PrivacyError
from cellsmith.math import privacy


def parameters(dtype: torch.dtype) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = {"w1": (6, 5), "b1": (6,), "w2": (3, 6), "b2": (3,)}
    return {k: torch.randn(s, generator=g, dtype=dtype) for k, s in shapes.items()}


def loss(p: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    """Losses of units with two views each: (B, 2, 5) -> (B,), (2, 5) -> scalar."""
    hidden = torch.tanh(linear(b["x"], p["w1"], p["b1"]))
    out = linear(hidden, p["w2"], p["b2"])
    return out.square().sum(dim=(-1, -2)) + torch.cosine_similarity(out[..., 0, :], out[..., 1, :], dim=-1)


def twice(p: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    """The first layer is called once for each view."""
    out = [linear(torch.tanh(linear(b["x"][..., v, :], p["w1"], p["b1"])), p["w2"], p["b2"]) for v in range(2)]
    return (out[0] * out[1]).sum(dim=-1)


def slow(fn, params, batch, clip: float) -> tuple[dict[str, Tensor], list[float]]:
    total = {k: torch.zeros_like(v) for k, v in params.items()}
    norms = []
    for i in range(len(batch["x"])):
        leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
        grads = torch.autograd.grad(fn(leaves, {k: v[i] for k, v in batch.items()}), list(leaves.values()))
        norm = torch.sqrt(sum(g.square().sum() for g in grads))
        norms.append(float(norm))
        for k, g in zip(leaves, grads, strict=True):
            total[k] += g * min(1.0, clip / (float(norm) + 1e-6))
    return total, norms


@pytest.mark.parametrize("fn", [loss, twice])
@pytest.mark.parametrize(("method", "chunk"), [("vmap", 1), ("vmap", 7), ("vmap", None), ("ghost", None)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_a_slow_loop(fn, method: str, chunk: int | None, dtype: torch.dtype, tolerance: float) -> None:
    params = parameters(dtype)
    batch = {"x": torch.randn(23, 2, 5, generator=torch.Generator().manual_seed(1), dtype=dtype)}
    expected, norms = slow(fn, params, batch, clip=2.0)
    found = privacy.clipped_gradient_sum(fn, params, batch, clip_norm=2.0, method=method, chunk_size=chunk)
    scale = max(float(v.norm()) for v in expected.values())
    for k, v in expected.items():
        assert float((found.gradients[k] - v).norm()) <= tolerance * scale
    np.testing.assert_allclose(found.norms.numpy(), norms, rtol=max(1e-9, 3 * tolerance))


@pytest.mark.parametrize("method", ["vmap", "ghost"])
def test_units_that_are_not_finite_contribute_nothing(method: str) -> None:
    params = parameters(torch.float64)
    x = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    clean = privacy.clipped_gradient_sum(loss, params, {"x": x[1:]}, clip_norm=0.5, method=method)
    x[0, 0, 0] = torch.nan
    dirty = privacy.clipped_gradient_sum(loss, params, {"x": x}, clip_norm=0.5, method=method)
    for k in params:
        torch.testing.assert_close(dirty.gradients[k], clean.gradients[k])
    assert not torch.isfinite(dirty.norms[0])


@pytest.mark.parametrize("method", ["vmap", "ghost"])
def test_an_empty_batch_is_a_sum_of_nothing(method: str) -> None:
    params = parameters(torch.float32)
    found = privacy.clipped_gradient_sum(loss, params, {"x": torch.zeros(0, 2, 5)}, clip_norm=1.0, method=method)
    assert all(float(g.abs().sum()) == 0 for g in found.gradients.values())


def test_a_shared_gradient_is_clipped_with_each_unit() -> None:
    params = parameters(torch.float64)
    batch = {"x": torch.randn(9, 2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)}
    shared = {k: torch.full_like(v, 0.3) for k, v in params.items()}
    one, other = (
        privacy.clipped_gradient_sum(loss, params, batch, clip_norm=1.0, method=m, shared=shared)
        for m in ("vmap", "ghost")
    )
    for k in params:
        torch.testing.assert_close(one.gradients[k], other.gradients[k], rtol=1e-9, atol=1e-12)


def test_ghost_counts_parameters_outside_linear_layers() -> None:
    params = {**parameters(torch.float64), "scale": torch.tensor(1.3, dtype=torch.float64)}
    batch = {"x": torch.randn(9, 2, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)}
    found, oracle = (
        privacy.clipped_gradient_sum(lambda p, b: p["scale"] * loss(p, b), params, batch, clip_norm=1.0, method=m)
        for m in ("ghost", "vmap")
    )
    torch.testing.assert_close(found.norms, oracle.norms)
    for k in params:
        torch.testing.assert_close(found.gradients[k], oracle.gradients[k])


def test_ghost_refuses_many_parameters_outside_linear_layers() -> None:
    params = {**parameters(torch.float32), "table": torch.ones(100_000)}
    with pytest.raises(PrivacyError, match=r"table.*method='vmap'"):
        privacy.clipped_gradient_sum(
            lambda p, b: p["table"].sum() * loss(p, b),
            params,
            {"x": torch.ones(2, 2, 5)},
            clip_norm=1.0,
            method="ghost",
        )


def test_noise_has_the_stated_size_on_every_coordinate() -> None:
    zeros = {"a": torch.zeros(300, 200), "b": torch.zeros(40_000)}
    noisy = privacy.add_noise(zeros, noise_multiplier=3.0, clip_norm=0.5, generator=np.random.default_rng(0))
    for name, values in noisy.items():
        flat = values.flatten().double().numpy()
        assert flat.std() == pytest.approx(1.5, rel=0.02), name
        assert kstest(flat[:20_000] / 1.5, "norm").pvalue > 0.01


def test_sampling_is_independent_for_each_unit() -> None:
    generator, n, rate = np.random.default_rng(0), 50, 0.3
    drawn = np.zeros((2000, n))
    for row in drawn:
        row[privacy.poisson_sample(n, rate, generator)] = 1
    sd = np.sqrt(rate * (1 - rate) / 2000)
    assert np.abs(drawn.mean(axis=0) - rate).max() < 4.5 * sd  # the largest of 50
    sizes = drawn.sum(axis=1)
    # A shuffled batch of fixed size would have variance 0; independent draws have n q (1 - q).
    assert sizes.var() == pytest.approx(n * rate * (1 - rate), rel=3 * np.sqrt(2 / 2000))
    correlation = np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]
    assert abs(correlation) < 3 / np.sqrt(2000)


def test_a_draw_may_be_empty() -> None:
    sizes = [len(privacy.poisson_sample(5, 0.05, np.random.default_rng(s))) for s in range(20)]
    assert 0 in sizes


def test_secret_generators_differ() -> None:
    assert privacy.secret_generator().random() != privacy.secret_generator().random()
