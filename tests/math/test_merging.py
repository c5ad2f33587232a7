from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import ttest_ind

from cellsmith._errors import SetupError
from cellsmith.math import enrichment
from cellsmith.math.counts import pearson_components
from cellsmith.math.graph import fuzzy_union, knn_table, leiden


def _counts(profiles, cells, *, depth=2000, seed=0):
    """Negative binomial counts (theta 5) of cells with the given profiles."""
    rng = np.random.default_rng(seed)
    rates = np.asarray(profiles, dtype=float)
    rates /= rates.sum(axis=1, keepdims=True)
    library = rng.lognormal(np.log(depth), 0.3, size=sum(cells))
    mean = library[:, None] * np.repeat(rates, cells, axis=0)
    return sp.csr_matrix(rng.negative_binomial(5, 5 / (5 + mean))), np.repeat(np.arange(len(cells)), cells)


def _profiles(n_types, *, n_genes=300, n_markers=15, seed=1):
    base = np.random.default_rng(seed).gamma(1.0, size=n_genes) + 0.1
    found = np.tile(base, (n_types, 1))
    for t in range(n_types):
        found[t, t * n_markers : (t + 1) * n_markers] *= 8
    return found


def _direct(x, groups, a, b):
    """The same count from scipy's Welch test on dense values."""
    dense = x.toarray().astype(float)
    logged = np.log1p(1e4 * dense / dense.sum(axis=1, keepdims=True))
    one, two = groups == a, groups == b
    seen = dense[one | two].sum(axis=0) > 0
    t, p = ttest_ind(logged[one][:, seen], logged[two][:, seen], equal_var=False)
    called = enrichment.benjamini_hochberg(np.nan_to_num(p, nan=1.0)) <= 0.05
    rates = [dense[m][:, seen].sum(axis=0) / dense[m].sum() + 1e-5 for m in (one, two)]
    return int((called & (t > 0) & (np.log2(rates[0] / rates[1]) > 1)).sum())


def test_counts_equal_welch_tests_on_dense_values():
    x, groups = _counts(_profiles(3), (40, 25, 60))
    table = enrichment.pair_marker_counts(x, groups)
    expected = [[0 if a == b else _direct(x, groups, a, b) for b in range(3)] for a in range(3)]
    np.testing.assert_array_equal(table, expected)
    assert table.max() > 10


def test_groups_of_two_cells_have_no_markers():
    x, groups = _counts(_profiles(2), (30, 30))
    groups[:2] = 2
    table = enrichment.pair_marker_counts(x, groups)
    assert table[2].sum() == table[:, 2].sum() == 0
    assert table[0, 1] > 0


def test_structureless_counts_become_one_cluster():
    x, _ = _counts(_profiles(1), (150,))
    groups = leiden(fuzzy_union(*knn_table(pearson_components(x, 10), 10, seed=0)), resolution=1.0, seed=0)
    assert groups.max() >= 2
    merged, path = enrichment.merge_by_markers(x, groups)
    assert set(merged) == {0}
    assert len(path.first) == groups.max()
    assert path.n_clusters.tolist() == list(range(int(groups.max()), 0, -1))


def test_populations_with_markers_each_way_stay_and_halves_of_one_merge():
    x, groups = _counts(_profiles(3), (60, 50, 40))
    halves = groups.copy()
    halves[:30] = 3
    merged, path = enrichment.merge_by_markers(x, halves)
    np.testing.assert_array_equal(merged, groups)
    assert path.n_clusters.tolist() == [3]
    assert path.score[0] < path.threshold
    assert path.threshold >= 5


def test_markers_in_one_direction_do_not_make_two_types():
    profiles = _profiles(2)
    profiles[1, :30] = profiles[0, :30] / 8  # lacks what the other has, and has nothing of its own
    x, groups = _counts(profiles, (60, 60))
    table = enrichment.pair_marker_counts(x, groups)
    fewer, more = sorted((table[0, 1], table[1, 0]))
    assert more >= fewer + 10
    assert enrichment.merge_by_markers(x, groups, min_markers=fewer + 1, median_share=0)[0].max() == 0
    assert enrichment.merge_by_markers(x, groups, min_markers=fewer, median_share=0)[0].max() == 1


def test_partition_does_not_depend_on_names():
    x, groups = _counts(_profiles(4, n_markers=6), (40, 40, 40, 40))
    split = groups * 2 + np.random.default_rng(0).integers(2, size=len(groups))
    one, path = enrichment.merge_by_markers(x, split)
    two, again = enrichment.merge_by_markers(x, np.array(list("hgfedcba"))[split])
    np.testing.assert_array_equal(one, two)
    assert len(path.first) >= 4
    assert all(np.array_equal(a, b) for a, b in zip(path, again, strict=True))


def test_within_batches_a_shift_of_a_batch_is_no_marker():
    base = _profiles(2, n_markers=10)
    shifted = base.copy()
    shifted[:, 100:150] *= 6
    x, code = _counts(np.concatenate([base, shifted]), (40, 10, 10, 40))
    batches, types = code // 2, code % 2
    plain = enrichment.pair_marker_counts(x, types)
    within = enrichment.pair_marker_counts(x, types, batches=batches)
    assert plain[1, 0] > 30
    assert 5 <= within[1, 0] <= 20
    apart = enrichment.pair_marker_counts(x, batches, batches=batches)
    np.testing.assert_array_equal(apart, enrichment.pair_marker_counts(x, batches))


def test_a_number_of_clusters_can_be_asked_for():
    x, groups = _counts(_profiles(4), (40, 40, 40, 40))
    split = groups * 2 + np.random.default_rng(0).integers(2, size=len(groups))
    merged, path = enrichment.merge_by_markers(x, split, n_clusters=4)
    assert len(np.unique(np.c_[merged, groups], axis=0)) == 4
    assert np.isnan(path.threshold)
    assert path.n_clusters.tolist() == [7, 6, 5, 4]
    for wanted in (8, 2, 1):
        assert enrichment.merge_by_markers(x, split, n_clusters=wanted)[0].max() == wanted - 1
    with pytest.raises(SetupError, match="n_clusters=9"):
        enrichment.merge_by_markers(x, split, n_clusters=9)


def test_wrong_input_is_named():
    x, groups = _counts(_profiles(2), (5, 5))
    with pytest.raises(SetupError, match="10 codes from 0"):
        enrichment.pair_marker_counts(x, groups[:-1])
    with pytest.raises(SetupError, match="min_markers=-1"):
        enrichment.merge_by_markers(x, groups, min_markers=-1)
