"""Readers fitted to profiles in closed form: against plain formulas, gradients, settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cellsmith.math import matching


def cells(seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x, s = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (30, 6))
    return x, torch.arange(30) % 3, s, torch.arange(6) % 3


def test_neighbour_is_a_softmax_over_distances_and_hardens() -> None:
    x, y, s, t = cells()
    distance = ((x[:, None] - s[None]) ** 2).sum(-1).numpy()
    weight = np.exp(-distance / 2.0)
    own = np.array([weight[i][t.numpy() == y[i].item()].sum() for i in range(len(x))]) / weight.sum(axis=1)
    assert float(matching.neighbour_loss(x, y, s, t=t, temperature=2.0)) == pytest.approx(-np.log(own).mean())
    at_their_profiles = matching.neighbour_loss(s, t, s, t=t, temperature=1e-3)
    assert float(at_their_profiles) < 1e-6


def test_ridge_is_the_closed_form() -> None:
    x, y, s, t = cells()
    scale = (s**2).sum(1).mean().item()
    k = (s @ s.T).numpy() / scale + 1.0 + np.eye(6) / 6
    alpha = np.linalg.solve(k, np.eye(3)[t] - 1 / 3)
    scores = 4.0 * ((x @ s.T).numpy() / scale + 1.0) @ alpha
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    expected = -log_p[np.arange(30), y].mean()
    assert float(matching.ridge_loss(x, y, s, t=t, sharpness=4.0)) == pytest.approx(expected)


@pytest.mark.parametrize("reader", ["neighbour", "ridge"])
def test_profiles_that_follow_the_gradient_are_read_better(reader: str) -> None:
    x, y, s, t = cells()
    s.requires_grad_(True)
    options = {"neighbour": {"temperature": 3.0}, "ridge": {"sharpness": 4.0}}[reader]
    loss_of = getattr(matching, f"{reader}_loss")
    optimizer = torch.optim.SGD([s], lr=0.1)
    first = loss_of(x, y, s, t=t, **options).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(x, y, s, t=t, **options).backward()
        optimizer.step()
    assert loss_of(x, y, s, t=t, **options).item() < first - 0.01


def test_settings_are_the_best_of_those_tried() -> None:
    x, y, s, t = cells()
    found = matching.settle_readers(x, y, s, t=t)
    best = float(matching.neighbour_loss(x, y, s, t=t, temperature=found["temperature"]))
    for factor in (0.2, 5.0):
        assert best <= float(matching.neighbour_loss(x, y, s, t=t, temperature=factor * found["temperature"])) + 1e-9
    assert found["sharpness"] in 2.0 ** np.arange(7)
