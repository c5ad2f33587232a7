"""Releases: what one unit can change, the shape of the noise, k-means, wiring, audit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from cellsmith._errors import PrivacyError, SizeError
from cellsmith.math import privacy
from cellsmith.math.privacy.kmeans import lloyd_contributions, random_starts, score_starts


def strange_cells(n_genes: int = 30) -> np.ndarray:
    g = np.random.default_rng(0)
    cells = g.poisson(1.0, (200, n_genes)).astype(float)
    cells[0] = 0
    cells[1] *= 10
    cells[2] *= 1000
    cells[3, 4] = np.nan
    cells[4, 5] = np.inf
    cells[5] = 1e300
    return cells


def test_one_cell_moves_the_second_moment_by_at_most_one() -> None:
    x = privacy.transform_counts(strange_cells())
    assert np.isfinite(x).all()
    norms = [np.linalg.norm(np.outer(row, row)) for row in x]
    assert max(norms) <= 1 + 1e-9
    np.testing.assert_array_equal(x[0], 0)
    # rows that somebody else hands over are cut as well
    silent = privacy.noisy_second_moment([strange_cells()], 30, sd=0.0, generator=np.random.default_rng(0))
    fewer = privacy.noisy_second_moment([strange_cells()[:2]], 30, sd=0.0, generator=np.random.default_rng(0))
    assert np.isfinite(silent).all()
    assert np.linalg.norm(fewer) <= 2 + 1e-9


def test_the_transform_of_a_cell_ignores_all_others() -> None:
    cells = np.random.default_rng(1).poisson(1.0, (20, 30)).astype(float)
    other = cells.copy()
    other[3] = 50
    first, second = privacy.transform_counts(cells), privacy.transform_counts(other)
    np.testing.assert_array_equal(np.delete(first, 3, axis=0), np.delete(second, 3, axis=0))


def test_a_unit_of_many_cells_contributes_like_one() -> None:
    x = privacy.transform_counts(np.random.default_rng(1).poisson(1.0, (40, 30)))
    units = np.repeat(np.arange(4), 10)
    rows = privacy.unit_means(x, units, n_units=5, most=3, generator=np.random.default_rng(0))
    assert rows.shape == (5, 30)
    assert np.linalg.norm(rows, axis=1).max() <= 1 + 1e-9
    np.testing.assert_array_equal(rows[4], 0)
    whole = privacy.unit_means(x, units, n_units=4, most=100, generator=np.random.default_rng(0))
    np.testing.assert_allclose(whole[1], x[10:20].mean(axis=0))


def test_noise_of_the_moment_is_isometric() -> None:
    n, sd, generator = 500, 2.0, np.random.default_rng(0)
    edges = []
    off = []
    for _ in range(5):
        noise = privacy.symmetric_noise(n, sd, generator)
        np.testing.assert_array_equal(noise, noise.T)
        off.append(noise[np.triu_indices(n, 1)].std())
        edges.append(np.linalg.norm(noise, 2))
    assert np.mean(off) == pytest.approx(sd / np.sqrt(2), rel=0.01)
    assert np.mean(edges) == pytest.approx(privacy.noise_edge(n, sd), rel=0.05)


@pytest.mark.slow
def test_noise_of_the_moment_over_fifty_draws() -> None:
    n, sd, generator = 500, 2.0, np.random.default_rng(1)
    draws = [privacy.symmetric_noise(n, sd, generator) for _ in range(50)]
    off = [noise[np.triu_indices(n, 1)].std() for noise in draws]
    edges = [np.linalg.norm(noise, 2) for noise in draws]
    assert np.mean(off) == pytest.approx(sd / np.sqrt(2), rel=0.01)
    assert np.mean([np.diag(noise).std() for noise in draws]) == pytest.approx(sd, rel=0.02)
    np.testing.assert_allclose(edges, privacy.noise_edge(n, sd), rtol=0.05)


def test_sparse_rows_give_the_moment_of_dense_ones() -> None:
    g = np.random.default_rng(2)
    counts = g.poisson(np.r_[np.full(5, 2.0), np.full(55, 0.05)], (150, 60)).astype(float)
    counts[3] = 0
    counts[4, 6] = np.nan
    rows = privacy.unit_counts(sparse.csr_matrix(counts))
    blocks = [[rows[:70], rows[70:]], [privacy.transform_counts(counts)]]
    found = [privacy.noisy_second_moment(b, 60, sd=0.0, generator=np.random.default_rng(0)) for b in blocks]
    np.testing.assert_allclose(found[0], found[1], atol=1e-12)
    np.testing.assert_array_equal(found[0], found[0].T)


def test_an_entry_stored_twice_cannot_lengthen_a_row() -> None:
    twice = sparse.csr_matrix((np.ones(4), np.array([2, 2, 5, 5]), np.array([0, 4])), shape=(1, 6))
    assert np.linalg.norm(privacy.transform_counts(twice)) == pytest.approx(1.0)
    long = sparse.csr_matrix((np.full(4, 0.5), np.array([2, 2, 2, 2]), np.array([0, 4])), shape=(1, 6))
    moment = privacy.noisy_second_moment([long * 3], 6, sd=0.0, generator=np.random.default_rng(0))
    assert np.linalg.norm(moment) <= 1 + 1e-9
    assert twice.nnz == 4  # the caller's matrix is left as it was


def test_leading_axes_of_a_large_moment_are_those_of_its_whole_solution() -> None:
    g = np.random.default_rng(4)
    x = privacy.transform_counts(g.poisson(g.gamma(0.3, 2.0, (3, 600))[g.integers(0, 3, 300)]))
    moment = privacy.noisy_second_moment([x], 600, sd=0.5, generator=g)
    values, axes = privacy.principal_axes(moment, 10)
    expected, whole = np.linalg.eigh(moment)
    np.testing.assert_allclose(values, expected[::-1][:10], rtol=1e-9)
    np.testing.assert_allclose(np.abs((axes * whole[:, ::-1][:, :10]).sum(axis=0)), 1.0, atol=1e-9)
    np.testing.assert_array_equal(privacy.principal_axes(moment, 10)[1], axes)


def test_debiased_values_solve_their_equation() -> None:
    n, sd = 200, 1.5
    edge = privacy.noise_edge(n, sd)
    found = privacy.debias_values([3 * edge, 1.01 * edge, 0.5 * edge], n, sd)
    np.testing.assert_allclose(found[:2] + sd**2 * n / (2 * found[:2]), [3 * edge, 1.01 * edge])
    assert found[2] == 0.5 * edge


def test_a_spike_is_found_where_it_was() -> None:
    g = np.random.default_rng(0)
    direction = np.full(100, 0.1)
    x = direction + 0.01 * g.standard_normal((3000, 100))
    moment = privacy.noisy_second_moment([x / np.linalg.norm(x, axis=1, keepdims=True)], 100, sd=5.0, generator=g)
    values, axes = privacy.principal_axes(moment, 3)
    assert abs(axes[:, 0] @ direction) > 0.99
    assert values[0] > privacy.noise_edge(100, 5.0) > values[1]


def test_centred_moment_gives_number_mean_and_covariance() -> None:
    g = np.random.default_rng(0)
    x = 0.2 + 0.02 * g.standard_normal((500, 8))
    w = 0.1
    rows = np.hstack([np.sqrt(1 - w) * x, np.full((500, 1), np.sqrt(w))])
    assert np.linalg.norm(rows, axis=1).max() <= 1
    n, mean, scatter = privacy.split_centered(privacy.noisy_second_moment([rows], 9, sd=0.0, generator=g))
    assert n == pytest.approx(500)
    np.testing.assert_allclose(mean, x.mean(axis=0))
    np.testing.assert_allclose(scatter, np.cov(x.T, bias=True) * 500, atol=1e-9)


def test_too_many_genes_are_refused_with_their_size() -> None:
    with pytest.raises(SizeError, match=r"6,000 genes.*GiB.*gene_panel=1000"):
        privacy.noisy_second_moment([], 6000, sd=1.0, generator=np.random.default_rng(0))


def test_contributions_to_k_means_are_bounded() -> None:
    g = np.random.default_rng(0)
    z = g.standard_normal((500, 4))
    z /= np.maximum(1, np.linalg.norm(z, axis=1, keepdims=True))
    starts = random_starts(10, 5, 4, g)
    assert np.linalg.norm(score_starts(z, starts), axis=1).max() <= np.sqrt(10)
    assert np.linalg.norm(lloyd_contributions(z, starts[0]), axis=1).max() <= np.sqrt(2) + 1e-12


def test_k_means_finds_far_clusters_where_noise_is_small() -> None:
    g = np.random.default_rng(3)
    truth = np.eye(4)[:3] * 0.8
    z = np.repeat(truth, 400, axis=0) + 0.03 * g.standard_normal((1200, 4))
    runs = [privacy.private_kmeans(z, 3, mu=5.0, generator=np.random.default_rng(seed)) for seed in range(8)]
    far = [np.linalg.norm(r.centers[:, None] - truth, axis=2).min(axis=0).max() for r in runs]
    # Starts that look at no data may leave two clusters in one, whatever the noise; the best run has all three.
    assert min(far) < 0.05
    assert runs[0].counts.sum() == pytest.approx(1200, rel=0.05)
    strange = z.copy()
    strange[0] = np.nan
    assert np.isfinite(privacy.private_kmeans(strange, 3, mu=1.0, generator=g).centers).all()


def test_frame_of_k_means_follows_released_eigenvalues() -> None:
    frame = privacy.frame_of_axes([90.0, 4.0, 1.0, 0.5, 0.4], 3, n_units=100)
    np.testing.assert_allclose(frame.offset, [np.sqrt(0.9), 0, 0])
    np.testing.assert_allclose(frame.spread, [0, 0.2, 0.1])
    assert frame.radius == pytest.approx(2 * np.sqrt(0.05))
    around = privacy.frame_of_axes([4.0, 1.0, -0.5], 0, n_units=100, centered=True)
    np.testing.assert_allclose(around.spread, [0.2, 0.1])
    assert not around.offset.any()


# --- wiring -----------------------------------------------------------------------------------------------------------


def sound(p: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    return (b["x"] @ p["w"]).square().sum(dim=-1)


def coupled(p: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    """The cosine runs over the cells of the batch, as in the published code."""
    z = b["x"] @ p["w"]
    other = torch.roll(b["x"], 1, dims=-1) @ p["w"]
    return z.square().sum(dim=-1) * 0.1 - 5 * torch.cosine_similarity(z, other, dim=0).mean()


def hidden(p: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    return ((b["x"] @ p["w"]) @ p["decoder"] - b["x"]).square().sum(dim=-1)


def measure(fn, **trained: Tensor) -> privacy.Wiring:
    g = torch.Generator().manual_seed(0)
    batch = {"x": torch.randn(12, 6, generator=g, dtype=torch.float64)}
    others = [{"x": s * torch.randn(6, generator=g, dtype=torch.float64)} for s in (1, 1, 0, 10, 1000)]
    params = {"w": torch.randn(6, 3, generator=g, dtype=torch.float64)}
    return privacy.wiring(
        fn,
        params,
        batch,
        clip_norm=0.5,
        replacements=others,
        trained=trained,
        n_steps=8,
        learning_rate=0.01,
        generator=np.random.default_rng(0),
    )


def test_a_loss_of_single_cells_passes() -> None:
    found = measure(sound)
    assert found.passed
    assert found.coupling == 0.0
    assert found.interference == 0.0
    assert 0.5 < found.add_remove <= 1 + 1e-5
    assert "passed" in str(found)


def test_a_coupled_loss_is_caught() -> None:
    found = measure(coupled)
    assert not found.passed
    assert found.coupling > 0.01
    assert found.add_remove > 1.01
    assert "FAILED" in str(found)


def test_a_decoder_that_is_trained_without_noise_is_caught() -> None:
    decoder = torch.randn(3, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = measure(hidden, decoder=decoder)
    assert found.coupling == 0.0
    assert found.interference > 1e-6
    assert not found.passed
    frozen = measure(lambda p, b: hidden({**p, "decoder": decoder}, b))
    assert frozen.passed


# --- audit ------------------------------------------------------------------------------------------------------------

SIGMAS = {1: 11.70, 2: 6.27, 4: 3.451, 8: 2.0}


def bounds(epsilon: int, *, gradient: float) -> np.ndarray:
    g = np.random.default_rng(epsilon)
    run = {"n_canaries": 4000, "sample_rate": 0.099, "noise_multiplier": SIGMAS[epsilon], "steps": 842}
    threshold = 842 * 0.099 / 2
    return np.array(
        [
            privacy.gaussian_lower_bound(
                *privacy.canary_run(**run, gradient=gradient, generator=g), threshold=threshold, delta=1e-5
            )
            for _ in range(40)
        ]
    )


@pytest.mark.parametrize("epsilon", SIGMAS)
def test_the_audit_does_not_accuse_a_correct_mechanism(epsilon: int) -> None:
    found = bounds(epsilon, gradient=1.0)
    assert (found <= epsilon).mean() >= 0.95
    assert found.mean() > 0.3 * epsilon  # it is not blind either


@pytest.mark.parametrize("epsilon", SIGMAS)
def test_the_audit_finds_a_doubled_sensitivity(epsilon: int) -> None:
    assert (bounds(epsilon, gradient=2.0) > epsilon).mean() >= 0.95


def test_guesses_bound_epsilon() -> None:
    assert privacy.guesses_lower_bound(50, 100, n_canaries=1000, delta=1e-5) == 0.0
    assert privacy.guesses_lower_bound(100, 100, n_canaries=1000, delta=1e-5) == pytest.approx(3.47, abs=0.02)
    with pytest.raises(PrivacyError, match="101 right of 100"):
        privacy.guesses_lower_bound(101, 100, n_canaries=1000, delta=1e-5)
