"""The pool of small classifiers: four kinds, reproducible, none with batch norm."""

from __future__ import annotations

import pytest
import torch

from cellsmith.nn.pool import KINDS, PoolNetwork


def build(kind: str, seed: int = 0) -> PoolNetwork:
    return PoolNetwork(9, 4, kind=kind, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_does_not_see_its_batch_and_weights_repeat(kind: str) -> None:
    x, network = torch.randn(6, 9), build(kind)
    assert network(x).shape == (6, 4)
    torch.testing.assert_close(network(x[:1]), network(x)[:1])
    assert torch.equal(network(x), build(kind)(x))
    assert not torch.equal(network(x), build(kind, 1)(x))
    assert network.features(x).shape[0] == 6


def test_the_kinds_are_what_they_say() -> None:
    x = torch.randn(5, 9)
    assert [len(build(k).weights) for k in KINDS] == [1, 2, 3, 1]
    linear, cosine = build("linear"), build("cosine")
    torch.testing.assert_close(linear(x), x @ linear.head.weight.T + linear.head.bias)
    torch.testing.assert_close(cosine(3.0 * x), cosine(x))
    assert float(cosine(x).detach().abs().max()) <= 10.0
    assert not any("BatchNorm" in type(m).__name__ for k in KINDS for m in build(k).modules())
