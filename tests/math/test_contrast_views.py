"""Masked cross-correlation and the divergence of propagation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from cellsmith._errors import SetupError
from cellsmith.math.contrast import cross_correlation, propagation_divergence


def correlation_by_hand(a: np.ndarray, b: np.ndarray, keep: np.ndarray) -> float:
    """The loss term by term, with loops."""
    r = np.array([[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a])
    n = len(a)
    apart = [r[i, j] ** 2 for i in range(n) for j in range(n) if i != j and keep[i, j]]
    return float(np.mean((np.diag(r) - 1) ** 2) + sum(apart) / max(1, len(apart)))


def test_cross_correlation_is_the_sum_over_pairs_that_the_mask_allows() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 9, 4))
    keep = generator.random((9, 9)) < 0.5
    found = cross_correlation(torch.tensor(a), torch.tensor(b), keep=torch.tensor(keep))
    assert float(found) == pytest.approx(correlation_by_hand(a, b, keep))
    whole = cross_correlation(torch.tensor(a), torch.tensor(b))
    assert float(whole) == pytest.approx(correlation_by_hand(a, b, np.ones((9, 9), dtype=bool)))
    alone = cross_correlation(torch.tensor(a), torch.tensor(a), keep=torch.zeros(9, 9, dtype=torch.bool))
    assert float(alone) == pytest.approx(0.0, abs=1e-12)


def test_centred_cross_correlation_is_that_of_correlations_of_columns() -> None:
    generator = np.random.default_rng(1)
    a = generator.normal(size=(200, 4))
    b = a + 0.5 * generator.normal(size=(200, 4))
    r = np.corrcoef(a.T, b.T)[:4, 4:]
    expected = np.mean((np.diag(r) - 1) ** 2) + ((r - np.diag(np.diag(r))) ** 2).sum() / 12
    found = cross_correlation(torch.tensor(a).T, torch.tensor(b).T, center=True)
    assert float(found) == pytest.approx(expected, abs=1e-4)


def test_cross_correlation_has_a_gradient_and_no_order() -> None:
    """F15: the released readout had gradients of 1e-7 and depended on the order of the cells."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(64, 20, generator=generator, requires_grad=True)
    b = torch.randn(64, 20, generator=generator)
    loss = cross_correlation(a.T, b.T, center=True)
    (gradient,) = torch.autograd.grad(loss, a)
    assert float(gradient.norm()) > 1e-3
    a = a.detach()
    order = torch.randperm(64, generator=generator)
    assert float(cross_correlation(a[order].T, b[order].T, center=True)) == pytest.approx(loss.item(), rel=1e-5)
    assert float(cross_correlation(a[order], b[order])) == pytest.approx(float(cross_correlation(a, b)), rel=1e-5)


def test_constant_latent_dimension_is_harmless() -> None:
    a = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    a[:, 1] = 2.0
    assert torch.isfinite(cross_correlation(a.T, a.T, center=True))


def test_cross_correlation_refuses_shapes_and_masks_that_do_not_fit() -> None:
    with pytest.raises(SetupError, match="expected the same"):
        cross_correlation(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(SetupError, match="expected boolean"):
        cross_correlation(torch.ones(3, 2), torch.ones(3, 2), keep=torch.ones(3, 3))


def test_propagation_divergence_is_the_square_of_scipys_distance() -> None:
    """F14: the released code added one of the two sides twice."""
    generator = torch.Generator().manual_seed(0)
    z, moved = torch.randn(2, 12, 5, generator=generator, dtype=torch.float64)
    p, q = (torch.softmax(t, dim=1).numpy() for t in (z, moved))
    expected = np.mean(jensenshannon(p, q, axis=1) ** 2)
    assert float(propagation_divergence(z, moved)) == pytest.approx(expected, abs=1e-12)
    assert float(propagation_divergence(moved, z)) == pytest.approx(expected, abs=1e-12)
    assert float(propagation_divergence(z, z)) == pytest.approx(0.0, abs=1e-12)
    far = 1e3 * torch.eye(2)
    assert float(propagation_divergence(far, far.flip(0))) == pytest.approx(np.log(2), rel=1e-6)
