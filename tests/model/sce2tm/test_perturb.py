"""Selection and edits of topics: laws on arrays, then the same questions asked of a trained model."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import mannwhitneyu

from cellsmith._errors import SetupError, SizeError
from cellsmith.model.sce2tm import perturb

N, K = 120, 6


@pytest.fixture
def mu() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, K)).astype(np.float32)


@pytest.mark.parametrize("space", perturb.SPACES)
@pytest.mark.parametrize("op", perturb.OPERATIONS)
def test_strength_zero_is_the_identity(mu: np.ndarray, op: str, space: str) -> None:
    values = np.full((N, 2), 0.7)
    after = perturb.edit_topics(mu, np.array([1, 4]), values, op=op, strength=0.0, space=space)
    np.testing.assert_allclose(softmax(after, axis=1), softmax(mu, axis=1), atol=1e-6)


@pytest.mark.parametrize("space", perturb.SPACES)
@pytest.mark.parametrize("op", perturb.OPERATIONS)
def test_topics_that_were_not_chosen_are_bit_equal(mu: np.ndarray, op: str, space: str) -> None:
    after = perturb.edit_topics(mu, np.array([1, 4]), np.array([0.3, 0.2]), op=op, strength=1.0, space=space)
    others = [0, 2, 3, 5]
    np.testing.assert_array_equal(after[:, others], mu[:, others])
    assert not np.array_equal(after[:, [1, 4]], mu[:, [1, 4]])


def test_operations_on_mu_by_hand(mu: np.ndarray) -> None:
    def edited(op: str, v: float, strength: float) -> np.ndarray:
        return perturb.edit_topics(mu, np.array([2]), np.array([v]), op=op, strength=strength)[:, 2]

    x = mu[:, 2].astype(float)
    np.testing.assert_allclose(edited("add", 1.5, 2.0), x + 3.0, rtol=1e-5)
    np.testing.assert_allclose(edited("scale", 3.0, 0.5), 2 * x, rtol=1e-5)
    np.testing.assert_allclose(edited("set", 1.5, 1.0), 1.5, rtol=1e-6)
    np.testing.assert_allclose(edited("set", 1.5, 0.5), (x + 1.5) / 2, rtol=1e-5, atol=1e-6)


def test_ablation_is_a_share_taken_away_and_renormalised(mu: np.ndarray) -> None:
    theta = softmax(mu.astype(float), axis=1)
    after = perturb.edit_topics(mu, np.array([0, 3]), np.ones(2), op="ablate", strength=0.4)
    expected = theta * np.where(np.isin(np.arange(K), [0, 3]), 0.6, 1.0)
    np.testing.assert_allclose(softmax(after, axis=1), expected / expected.sum(axis=1, keepdims=True), atol=1e-6)


def test_ablation_of_all_but_one_leaves_it_alone_and_of_all_is_refused(mu: np.ndarray) -> None:
    after = perturb.edit_topics(mu, np.arange(1, K), np.ones(K - 1), op="ablate", strength=1.0)
    np.testing.assert_array_equal(softmax(after, axis=1), np.eye(K)[[0] * N])
    with pytest.raises(SetupError, match=f"leaves {N} cells without any topic"):
        perturb.edit_topics(mu, np.arange(K), np.ones(K), op="ablate", strength=1.0)


def test_shares_are_edited_before_rows_are_renormalised(mu: np.ndarray) -> None:
    theta = softmax(mu.astype(float), axis=1)
    after = perturb.edit_topics(mu, np.array([1]), np.array([0.5]), op="add", strength=1.0, space="theta")
    expected = theta + 0.5 * np.eye(K)[1]
    np.testing.assert_allclose(softmax(after, axis=1), expected / 1.5, atol=1e-6)
    gone = perturb.edit_topics(mu, np.array([1]), np.array([-2.0]), op="add", strength=1.0, space="theta")
    assert (softmax(gone, axis=1)[:, 1] == 0).all()


def test_comparison_finds_the_topic_that_was_shifted(mu: np.ndarray) -> None:
    group = np.arange(N) < 60
    mu[group, 3] += 2.0
    scale = mu.std(axis=0)
    table = perturb.compare_topics(mu, group, ~group, scale=scale)
    assert table["fdr"][3] < 1e-6
    assert (np.delete(table["fdr"], 3) > 0.05).all()
    np.testing.assert_allclose(table["effect"], (mu[group].mean(axis=0) - mu[~group].mean(axis=0)) / scale, rtol=1e-4)
    x = mu.astype(float)
    reference = mannwhitneyu(x[group], x[~group]).pvalue
    np.testing.assert_allclose(table["p_value"], reference, rtol=1e-9)


def test_permutations_agree_with_ranks_on_what_is_there(mu: np.ndarray) -> None:
    group = np.arange(N) < 60
    mu[group, 3] += 2.0
    mu[:, 5] = 1.0  # a topic without any spread differs nowhere
    table = perturb.compare_topics(
        mu, group, ~group, scale=mu.std(axis=0), test="permutation", generator=np.random.default_rng(0)
    )
    assert table["p_value"][3] == pytest.approx(1 / 1001)
    assert table["p_value"][5] == 1.0
    assert table["effect"][5] == 0.0


def test_samples_are_averaged_and_counted(mu: np.ndarray) -> None:
    group, samples = np.arange(N) < 60, np.arange(N) // 15
    # two of four donors carry the difference: cells see it, samples do not
    mu[samples <= 1, 2] += 6.0
    by_cell = perturb.compare_topics(mu, group, ~group, scale=mu.std(axis=0))
    by_sample = perturb.compare_topics(mu, group, ~group, scale=mu.std(axis=0), samples=samples)
    assert by_cell["fdr"][2] < 0.05 < by_sample["fdr"][2]
    means = np.array([mu[samples == s].mean(axis=0) for s in range(8)])
    np.testing.assert_allclose(by_sample["mean_group"], means[:4].mean(axis=0), rtol=1e-5)
    with pytest.raises(SetupError, match="Found 2 samples in the group and 8 in the reference"):
        perturb.compare_topics(mu, samples < 2, group | ~group, scale=mu.std(axis=0), samples=samples)


@pytest.mark.parametrize("by_sample", [False, True])
def test_no_effect_is_seldom_found(by_sample: bool) -> None:
    """The share of random splits with any topic at FDR < .05 stays near .05 (and effects are far below 1 sd)."""
    generator = np.random.default_rng(1)
    found = 0
    for _ in range(60):
        mu, order = generator.normal(size=(N, K)), generator.permutation(N)
        samples = order // 15 if by_sample else None
        table = perturb.compare_topics(mu, order < 60, order >= 60, scale=mu.std(axis=0), samples=samples)
        assert np.abs(table["effect"]).max() < 1.0
        found += (table["fdr"] < 0.05).any()
    assert found <= 8  # 3 expected; more than 8 of 60 has probability .003


def test_small_groups_take_the_shift_of_all_cells(mu: np.ndarray) -> None:
    codes = np.where(np.arange(N) < 100, 0, 1)
    source, target = np.arange(N) % 2 == 0, np.arange(N) % 2 == 1
    shifts, pooled = perturb.group_shifts(mu, source, target, codes=codes, n_groups=2)
    assert pooled.tolist() == [False, True]
    np.testing.assert_allclose(shifts[1], mu[target].mean(axis=0) - mu[source].mean(axis=0), rtol=1e-5)
    own = mu[:100]
    np.testing.assert_allclose(shifts[0], own[1::2].mean(axis=0) - own[::2].mean(axis=0), rtol=1e-4, atol=1e-6)


def test_batches_that_tell_the_sides_apart() -> None:
    side = np.array([True, True, False, False])
    assert perturb.told_by_batch(np.array([0, 1, 2, 2]), side, ~side)
    assert not perturb.told_by_batch(np.array([0, 1, 1, 2]), side, ~side)
    assert not perturb.told_by_batch(np.zeros(4), side, ~side)


def test_means_of_blocks_and_fold_changes() -> None:
    x = np.random.default_rng(0).gamma(1.0, 10.0, size=(50, 7))
    codes = np.arange(50) % 3
    blocks = ((np.arange(i, min(i + 16, 50)), x[i : i + 16]) for i in range(0, 50, 16))
    means = perturb.mean_by_group(blocks, codes, 3)
    np.testing.assert_allclose(means, [x[codes == c].mean(axis=0) for c in range(3)])
    np.testing.assert_allclose(perturb.log_fold_change(np.array([1.0]), np.array([3.0])), 1.0)


def test_too_many_single_cells_name_the_way_out() -> None:
    perturb.check_size(100_000, 2_000)
    with pytest.raises(SizeError, match=r"300,000 cells x 2,000 genes \(2\.2 GiB\).*by="):
        perturb.check_size(300_000, 2_000)
