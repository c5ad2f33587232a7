from __future__ import annotations

import math

import pytest
import torch

from cellsmith._errors import SetupError
from cellsmith.math.contrast import info_nce


def pair(n: int = 7, d: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, d, dtype=torch.float64, generator=generator) for _ in range(2))


def by_loops(a, b, temperature, keep=None, within=False) -> float:
    """The definition, one cosine at a time."""

    def score(x, y):
        return math.exp(float(x @ y / (x.norm() * y.norm())) / temperature)

    n, terms = len(a), []
    for one, other in ((a, b), (b, a)):
        for i in range(n):
            below = score(one[i], other[i])
            for j in range(n):
                if j != i and (keep is None or keep[i, j]):
                    below += score(one[i], other[j]) + (score(one[i], one[j]) if within else 0.0)
            terms.append(-math.log(score(one[i], other[i]) / below))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_loops(within, masked):
    a, b = pair()
    keep = torch.rand(7, 7, generator=torch.Generator().manual_seed(3)) < 0.6 if masked else None
    found = info_nce(a, b, temperature=0.5, keep=keep, within=within)
    assert found.item() == pytest.approx(by_loops(a, b, 0.5, keep, within), rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 30])
def test_equal_cosines_give_the_log_of_the_number_of_candidates(n):
    same = torch.ones(n, 4, dtype=torch.float64)
    assert info_nce(same, 3 * same, temperature=0.5, within=True).item() == pytest.approx(
        math.log(2 * n - 1), abs=1e-12
    )
    assert info_nce(same, same, temperature=0.5).item() == pytest.approx(math.log(n), abs=1e-12)


def test_distils_columns_of_topic_proportions():
    r, p = (torch.softmax(3 * x, dim=1) for x in pair(40, 6))
    found = info_nce(r.T, p.T, temperature=0.5, within=True)
    assert found.item() == pytest.approx(by_loops(r.T, p.T, 0.5, within=True), rel=1e-12)
    assert info_nce(r.T, r.T, temperature=0.5, within=True) < found  # partners that agree cost less


@pytest.mark.parametrize("within", [False, True])
def test_gradient_is_that_of_differences(within):
    a, b = (x.requires_grad_() for x in pair(5, 3))
    keep = torch.rand(5, 5, generator=torch.Generator().manual_seed(1)) < 0.7
    assert torch.autograd.gradcheck(lambda x, y: info_nce(x, y, temperature=0.3, keep=keep, within=within), (a, b))


def test_scale_and_order_do_not_matter():
    a, b = pair()
    found = info_nce(a, b, temperature=0.2, within=True)
    order = torch.tensor([3, 1, 0, 6, 5, 4, 2])
    assert torch.allclose(found, info_nce(5 * a[order], b[order] / 7, temperature=0.2, within=True))
    assert torch.allclose(found, info_nce(b, a, temperature=0.2, within=True))


def test_nothing_left_to_tell_apart_costs_nothing():
    a, b = pair()
    nothing = torch.zeros(7, 7, dtype=torch.bool)
    assert info_nce(a, b, temperature=0.5, keep=nothing, within=True).item() == pytest.approx(0.0, abs=1e-12)


def test_extreme_input_stays_finite():
    a, b = (x.float() for x in pair())
    a[0], b[1] = 0.0, 1e-30
    a.requires_grad_()
    loss = info_nce(a * 1e4, b, temperature=1e-3, within=True)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(a.grad).all()


def test_wrong_input_is_named():
    a, b = pair()
    with pytest.raises(SetupError, match=r"shapes \(7, 5\) and \(6, 5\)"):
        info_nce(a, b[:6], temperature=0.5)
    with pytest.raises(SetupError, match="temperature=0"):
        info_nce(a, b, temperature=0)
    with pytest.raises(SetupError, match=r"keep of shape \(7, 5\) and torch.bool, expected boolean \(7, 7\)"):
        info_nce(a, b, temperature=0.5, keep=a > 0)
