"""Selections against brute force, sums against plain loops, matching losses against closed forms."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

from cellsmith._errors import SetupError
from cellsmith.math import matching


def points(n: int = 12, d: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def counts(n: int = 20, g: int = 7) -> np.ndarray:
    return np.random.default_rng(1).poisson(2.0, size=(n, g)).astype(float) + np.eye(n, g)


# --- selections ------------------------------------------------------------------------------------------------------


def test_herding_equals_the_plain_loop() -> None:
    x = points()
    mean, chosen = x.mean(axis=0), []
    for m in range(5):
        cost = [
            np.inf if i in chosen else np.linalg.norm(mean - (x[chosen].sum(axis=0) + x[i]) / (m + 1))
            for i in range(len(x))
        ]
        chosen.append(int(np.argmin(cost)))
    assert matching.herding(x, 5).tolist() == chosen


@pytest.mark.parametrize("seed", range(5))
def test_k_center_is_within_twice_the_optimum(seed: int) -> None:
    x = points(seed=seed)
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    best = min(distance[:, list(c)].min(axis=1).max() for c in combinations(range(len(x)), 3))
    picked = matching.k_center(x, 3)
    assert distance[:, picked].min(axis=1).max() <= 2 * best + 1e-12
    assert picked[0] == np.linalg.norm(x - x.mean(axis=0), axis=1).argmin()
    assert picked[1] == distance[picked[0]].argmax()


def mmd(x: np.ndarray, rows: np.ndarray) -> float:
    squared = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    k = np.exp(-squared / (2 * np.median(np.sqrt(squared[squared > 0])) ** 2))
    return float(k.mean() - 2 * k[:, rows].mean() + k[np.ix_(rows, rows)].mean())


def test_kernel_herding_follows_a_mixture_better_than_random_draws() -> None:
    generator = np.random.default_rng(0)
    x = np.concatenate([generator.normal(m, 0.5, size=(n, 2)) for m, n in ((-4, 60), (0, 30), (5, 30))])
    random = [mmd(x, generator.choice(len(x), 10, replace=False)) for _ in range(20)]
    picked = matching.kernel_herding(x, 10, generator=np.random.default_rng(1))
    assert mmd(x, picked) < np.mean(random)
    again = matching.kernel_herding(x, 10, generator=np.random.default_rng(1))
    assert picked.tolist() == again.tolist()


@pytest.mark.parametrize("pick", [matching.herding, matching.k_center])
def test_all_cells_are_picked_once_even_where_they_coincide(pick) -> None:
    x = np.zeros((6, 2))
    assert sorted(pick(x, 6).tolist()) == list(range(6))
    with pytest.raises(SetupError, match="expected 1 to 6"):
        pick(x, 7)
    with pytest.raises(SetupError, match="finite"):
        pick(np.full((3, 2), np.nan), 1)


# --- groups and profiles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_sums_and_log_means_equal_plain_loops(form) -> None:
    x, groups = counts(), np.arange(20) % 4 - 1
    total = matching.metacell_sums(form(x), groups)
    means = matching.metacell_log_means(form(x), groups, scale=1e3)
    assert total.format == means.format == "csr"
    for g in range(3):
        rows = x[groups == g]
        np.testing.assert_array_equal(total.toarray()[g], rows.sum(axis=0))
        phi = np.log1p(1e3 * rows / rows.sum(axis=1, keepdims=True))
        np.testing.assert_allclose(means.toarray()[g], phi.mean(axis=0), rtol=1e-12)


def test_sums_of_a_matrix_that_is_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnDisk:
        def __init__(self, x: np.ndarray) -> None:
            self.x, self.shape = x, x.shape

        def __getitem__(self, rows: slice) -> np.ndarray:
            return self.x[rows]

    monkeypatch.setattr(matching.grouping, "ROWS_AT_ONCE", 6)
    x, groups = counts(), np.arange(20) % 3
    got = matching.metacell_sums(OnDisk(x), groups)
    np.testing.assert_array_equal(got.toarray(), matching.metacell_sums(x, groups).toarray())
    with pytest.raises(SetupError, match="one for each of 20 cells"):
        matching.metacell_sums(x, groups[:-1])


def test_the_log_view_leaves_counts_as_they_are() -> None:
    """Columns out of order and an entry in two parts: the answer is that of the dense table, the input untouched."""
    x = sp.csr_matrix((np.array([2.0, 1.0, 1.0, 3.0]), np.array([2, 0, 2, 1]), np.array([0, 3, 4])), shape=(2, 3))
    before = [part.copy() for part in (x.data, x.indices, x.indptr)]
    phi = matching.log_normalize(x, scale=10.0)
    phi.sort_indices()
    phi.data[:] += 1.0
    np.testing.assert_allclose(phi.toarray()[0], [np.log1p(10 / 4) + 1, 0.0, np.log1p(10 * 3 / 4) + 1])
    for part, kept in zip((x.data, x.indices, x.indptr), before, strict=True):
        np.testing.assert_array_equal(part, kept)


def test_profiles_are_shares_or_the_mean_of_the_log_view() -> None:
    x, groups = counts(), np.arange(20) % 3
    p, total = matching.group_profiles(x, groups, summary="sum", scale=1e3)
    np.testing.assert_array_equal(total, [x[groups == g].sum() for g in range(3)])
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    q, _ = matching.group_profiles(x, groups, summary="mean_log", scale=1e3)
    means = matching.metacell_log_means(x, groups, scale=1e3).toarray()
    np.testing.assert_allclose(np.log1p(1e3 * q), means, rtol=1e-12)
    assert np.all(q.sum(axis=1) < 1.0)
    with pytest.raises(SetupError, match="mean_log"):
        matching.group_profiles(x, groups, summary="mean", scale=1e3)  # type: ignore[arg-type]


def test_rounding_keeps_totals_and_stays_below_one() -> None:
    expected = np.random.default_rng(0).gamma(0.3, 5.0, size=(40, 25))
    got = matching.round_profiles(expected)
    np.testing.assert_array_equal(got.sum(axis=1), np.rint(expected.sum(axis=1)))
    assert np.abs(got - expected).max() < 1
    assert matching.round_profiles([[0.5, 0.5, 1.0]]).tolist() == [[1, 0, 1]]
    sums = matching.metacell_sums(counts(), np.zeros(20, dtype=int)).toarray()
    np.testing.assert_array_equal(matching.round_profiles(sums / sums.sum() * sums.sum()), sums)


def test_groups_stay_within_classes_and_none_is_empty() -> None:
    x, codes = points(30, 2), np.repeat([0, 1, -1], 10)
    x[10:20] = 0.0  # a class whose cells coincide
    groups = matching.class_groups(x, codes, [3, 4], generator=np.random.default_rng(0))
    assert set(groups[:10]) == {0, 1, 2}
    assert set(groups[10:20]) == {3, 4, 5, 6}
    assert set(groups[20:]) == {-1}
    again = matching.class_groups(x, codes, [3, 4], generator=np.random.default_rng(0))
    np.testing.assert_array_equal(groups, again)
    with pytest.raises(SetupError, match="Class 1 has 10 cells"):
        matching.class_groups(x, codes, [1, 11], generator=np.random.default_rng(0))


def test_principal_components_are_those_of_the_dense_table() -> None:
    phi = sp.random(60, 40, density=0.3, random_state=0, format="csr")
    got = matching.principal_components(phi, n_components=5, seed=0)
    dense = phi.toarray() - phi.toarray().mean(axis=0)
    u, s, _ = np.linalg.svd(dense, full_matrices=False)
    np.testing.assert_allclose(got @ got.T, (u[:, :5] * s[:5] ** 2) @ u[:, :5].T, atol=1e-8)
    assert matching.principal_components(phi[:4], n_components=50, seed=0).shape == (4, 3)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_components_of_many_cells_are_those_of_all_at_once(form, monkeypatch: pytest.MonkeyPatch) -> None:
    x = form(np.random.default_rng(0).poisson(2.0, size=(120, 8)) + 1.0)
    whole = matching.count_components(x, scale=10.0, seed=0)
    phi = matching.log_normalize(x, scale=10.0)
    np.testing.assert_array_equal(whole, matching.principal_components(phi, seed=0))
    monkeypatch.setattr(matching.grouping, "WHOLE_CELLS", 50)
    monkeypatch.setattr(matching.grouping, "ROWS_AT_ONCE", 35)
    parts = matching.count_components(x, scale=10.0, seed=0)
    np.testing.assert_allclose(parts * np.sign((parts * whole).sum(axis=0)), whole, atol=1e-9)


@pytest.mark.parametrize("total", [3, 4, 10, 57, 111, 500])
def test_allocation_is_exact(total: int) -> None:
    sizes = np.array([100, 10, 1, 0])
    shared = {how: matching.allocate(sizes, total, allocation=how) for how in ("equal", "proportional", "sqrt")}
    for given in shared.values():
        assert given.sum() == np.clip(total, 3, 111)
        assert np.all(given <= sizes)
        assert np.all(given[:3] >= 1)
    if 10 <= total < 111:
        assert shared["equal"][0] <= shared["sqrt"][0] <= shared["proportional"][0]
    with pytest.raises(SetupError, match="equal"):
        matching.allocate(sizes, 5, allocation="equl")  # type: ignore[arg-type]


def test_target_sum_depends_on_the_genes_alone() -> None:
    assert matching.target_sum(1_000) == 1e3
    assert matching.target_sum(1_001) == 1e4


# --- losses ----------------------------------------------------------------------------------------------------------


def network(*sizes: int) -> nn.Module:
    torch.random.manual_seed(0)
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1]).double()


def tables(n: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 6, generator=generator, dtype=torch.float64) + k for k in range(3)]


def test_gradient_of_a_linear_softmax_is_the_closed_form() -> None:
    net, x = network(6, 3), tables(5, 0)[1]
    got = matching.class_gradients(net, x, 1, parameters=list(net.parameters()), on_tape=False)
    residual = net(x).softmax(dim=1) - torch.eye(3, dtype=torch.float64)[1]
    torch.testing.assert_close(got[0], residual.T @ x / len(x), rtol=1e-10, atol=1e-12)
    assert not got[0].requires_grad


def test_gradient_matching_equals_the_sum_over_rows_of_every_layer() -> None:
    net, real, synthetic = network(6, 4, 3), tables(5, 0), tables(2, 1)
    parameters = list(net.parameters())
    expected = 0.0
    for k in range(3):
        a, b = (matching.class_gradients(net, t[k], k, parameters=parameters, on_tape=False) for t in (real, synthetic))
        for u, v in zip(a, b, strict=True):
            if u.dim() == 2:
                expected += sum(1 - float(torch.cosine_similarity(p, q, dim=0)) for p, q in zip(u, v, strict=True))
    got = matching.gradient_matching(net, real, synthetic, parameters=parameters)
    assert float(got.detach()) == pytest.approx(expected, rel=1e-8)


def test_gradient_matching_can_be_differentiated_by_the_profiles() -> None:
    net, real = network(6, 4, 3), tables(5, 0)
    parameters = list(net.parameters())

    def loss(x: torch.Tensor) -> torch.Tensor:
        return matching.gradient_matching(net, real, list(x.split(2)), parameters=parameters)

    assert torch.autograd.gradcheck(loss, torch.cat(tables(2, 1)).requires_grad_(True))


def test_both_losses_vanish_where_the_sets_are_equal() -> None:
    net, real = network(6, 4, 3), tables(5, 0)
    loss = matching.gradient_matching(net, real, real, parameters=list(net.parameters()))
    assert abs(float(loss.detach())) < 1e-10
    assert float(matching.distribution_matching(real, real)) == 0.0


def test_collapsed_profiles_are_seen_by_the_second_moment_only() -> None:
    real = tables(5, 0)
    collapsed = [t.mean(dim=0, keepdim=True).expand(4, -1) for t in real]
    assert float(matching.distribution_matching(real, collapsed, variance_weight=0.0)) == pytest.approx(0.0, abs=1e-20)
    assert float(matching.distribution_matching(real, collapsed)) > 0.01
    single = [t[:1] for t in collapsed]
    assert float(matching.distribution_matching(real, single)) == pytest.approx(0.0, abs=1e-20)


def test_classes_without_profiles_are_skipped_and_must_agree_in_number() -> None:
    real = tables(5, 0)
    empty = [real[0], real[1], real[2][:0]]
    assert float(matching.distribution_matching(real, empty)) == 0.0
    with pytest.raises(SetupError, match="3 real and 2 synthetic"):
        matching.distribution_matching(real, real[:2])
