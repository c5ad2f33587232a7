"""Hungarian alignment, entropy and margin of rows, agreement of partitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from cellsmith._errors import SetupError
from cellsmith.math.assign import (
    adjusted_rand,
    entropy,
    hungarian,
    margin,
    ordered_clusters,
    row_divergence,
    sharpen,
    student_t,
)


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3)])
def test_hungarian_equals_trying_all_pairings(shape):
    table = np.random.default_rng(0).normal(size=shape)
    rows, columns = hungarian(table)
    wide = table if shape[0] <= shape[1] else table.T
    best = max(
        sum(wide[i, j] for i, j in enumerate(pick)) for pick in itertools.permutations(range(max(shape)), min(shape))
    )
    assert table[rows, columns].sum() == pytest.approx(best)
    assert len(set(rows)) == len(set(columns)) == min(shape)
    assert (np.diff(rows) > 0).all()


@pytest.mark.parametrize(
    ("table", "message"), [([1.0, 2.0], r"shape \(2,\)"), ([[1.0, np.nan]], "1 non-finite entries")]
)
def test_hungarian_refuses_what_is_no_table(table, message):
    with pytest.raises(SetupError, match=message):
        hungarian(table)


def test_entropy_runs_from_zero_to_one():
    p = [[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0], [np.nan, 0.5, 0.5]]
    np.testing.assert_allclose(entropy(p), [0.0, 1.0, np.log(2) / np.log(3), np.nan], atol=1e-15)


def test_one_class_is_certain():
    assert entropy([[1.0], [0.4]]).tolist() == [0.0, 0.0]
    assert margin([[1.0], [0.4]]).tolist() == [1.0, 0.4]


def test_margin_is_best_minus_second():
    np.testing.assert_allclose(margin([[0.2, 0.7, 0.1], [0.5, 0.5, 0.0], [np.nan, 0.5, 0.5]]), [0.5, 0.0, np.nan])


def test_rows_need_a_class():
    for function in (entropy, margin):
        with pytest.raises(SetupError, match=r"shape \(3, 0\)"):
            function(np.empty((3, 0)))


def test_adjusted_rand_ignores_names_and_counts_only_what_is_shared():
    a = np.array(["x", "x", "y", "y", "z"])
    assert adjusted_rand(a, [2, 2, 0, 0, 1]) == 1.0
    assert adjusted_rand(a, [0, 0, 0, 0, 0]) == 0.0
    assert adjusted_rand([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(-0.5)
    assert adjusted_rand([], []) == 1.0
    with pytest.raises(SetupError, match="5 and 4 labels"):
        adjusted_rand(a, [0, 0, 1, 1])


def test_clusters_are_numbered_by_size_then_by_first_cell():
    assert ordered_clusters(["x", "b", "b", "a", "a", "a", "c", "c"]).tolist() == [3, 1, 1, 0, 0, 0, 2, 2]
    assert ordered_clusters([7, 1, 1, 0, 0, 0, 9, 9]).tolist() == [3, 1, 1, 0, 0, 0, 2, 2]


def test_student_t_and_its_target_by_hand():
    z = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    centers = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    kernel = torch.tensor([[1, 1 / 5], [1 / 2, 1 / 2], [1 / 10, 1 / 2]], dtype=torch.float64)
    q = student_t(z, centers)
    torch.testing.assert_close(q, kernel / kernel.sum(dim=1, keepdim=True))
    p = sharpen(q)
    weight = q**2 / q.sum(dim=0)
    torch.testing.assert_close(p, weight / weight.sum(dim=1, keepdim=True))
    torch.testing.assert_close(p.sum(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(sharpen(q, sizes=3 * q.sum(dim=0)), p)
    assert not torch.allclose(sharpen(q, sizes=torch.tensor([1.0, 3.0], dtype=torch.float64)), p)
    wide = student_t(z, centers, dof=5.0)
    torch.testing.assert_close(wide[0, 0] / wide[0, 1], torch.tensor((1 + 4 / 5) ** 3.0, dtype=torch.float64))


@pytest.mark.parametrize("towards_target", [True, False])
def test_divergence_in_both_directions_by_hand(towards_target):
    p = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]], dtype=torch.float64)
    logits = torch.tensor([[1.0, 0.0], [0.2, 0.1], [-1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    q = logits.softmax(dim=1)
    a, b = (p, q) if towards_target else (q, p)
    loss = row_divergence(a, b)
    by_hand = sum((a[i, c] * torch.log(a[i, c] / b[i, c])) for i in range(3) for c in range(2)) / 3
    torch.testing.assert_close(loss, by_hand)
    assert loss > 0
    assert row_divergence(p, p) == 0
    (grad,) = torch.autograd.grad(loss, logits)
    if towards_target:
        expected = (q - p) / 3
    else:
        log_ratio = torch.log(q / p)
        expected = q * (log_ratio - (q * log_ratio).sum(dim=1, keepdim=True)) / 3
    torch.testing.assert_close(grad, expected)
