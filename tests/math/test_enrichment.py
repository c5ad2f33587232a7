"""Tests of gene sets and of groups: equal to scipy, and free of the faults of public code (F8-F10)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cellsmith._errors import SetupError
from cellsmith.math.enrichment import (
    benjamini_hochberg,
    hypergeometric_tail,
    over_representation,
    parse_gmt,
    rank_sum,
    sets_within,
)

GENES = [f"G{i}" for i in range(400)]


# over-representation


@pytest.mark.parametrize(
    ("n_background", "n_list"), [(20, 7), (60, 40), (765, 10), (2000, 200), (20_000, 500), (20_000, 1), (10, 0)]
)
def test_hypergeometric_tail_is_scipys(n_background, n_list):
    sizes = np.unique(np.clip([0, 1, 3, 15, 47, 500, n_background // 2, n_background], 0, n_background))
    ours = hypergeometric_tail(n_background, sizes, n_list)
    k = np.arange(n_list + 1)
    theirs = stats.hypergeom.sf(k[None, :] - 1, n_background, sizes[:, None], n_list)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert np.abs(ours - theirs).max() <= 1e-12


def test_a_tail_by_hand():
    """M = 5, m = 2, N = 2: of the 10 pairs 3 miss the set, 6 share one gene, 1 is the set."""
    np.testing.assert_allclose(hypergeometric_tail(5, [2], 2), [[1.0, 0.7, 0.1]], rtol=1e-14)


def test_over_representation_counts_within_the_background_only():
    lists = [["a", "b", "c", "unknown"], ["d"]]
    sets = {"one": ["a", "b", "b", "elsewhere"], "two": ["d"], "none": ["elsewhere"]}
    found = over_representation(lists, sets, list("abcdefgh"))
    assert found.background_size == 8
    assert found.list_size.tolist() == [3, 1]
    assert found.set_size.tolist() == [2, 1, 0]
    assert found.overlap.tolist() == [[2, 0, 0], [0, 1, 0]]
    np.testing.assert_allclose(found.p[0, 0], stats.hypergeom.sf(1, 8, 2, 3), rtol=1e-12)
    np.testing.assert_allclose(found.p[1, 1], 1 / 8, rtol=1e-12)
    assert found.p[0, 1] == found.p[0, 2] == 1.0


def test_a_background_with_a_gene_twice_is_refused():
    with pytest.raises(SetupError, match="names 1 genes twice"):
        over_representation([["a"]], {"s": ["a"]}, ["a", "a", "b"])


def test_sets_of_later_lists_are_found():
    """F9: public code counts topic 0 alone, behind a bare except. Sets planted in topics 3 and 7 must be found."""
    rng = np.random.default_rng(0)
    lists = [list(rng.choice(GENES, 10, replace=False)) for _ in range(10)]
    sets = {f"random {i}": list(rng.choice(GENES, 20, replace=False)) for i in range(40)}
    sets |= {"planted/3": [*lists[3][:8], "G0"], "planted-7": lists[7][:7]}
    found = over_representation(lists, sets, GENES)
    hits = {(int(a), list(sets)[b]) for a, b in np.argwhere(benjamini_hochberg(found.p) < 0.01)}
    assert {(3, "planted/3"), (7, "planted-7")} <= hits


def test_random_lists_are_rarely_called_against_the_models_genes():
    """F10: with the union of all sets as background, every set of modelled genes looks enriched."""
    rng = np.random.default_rng(1)
    elsewhere = [f"E{i}" for i in range(4000)]
    sets = {
        f"s{i}": [*rng.choice(GENES, 60, replace=False), *rng.choice(elsewhere, 60, replace=False)] for i in range(100)
    }
    lists = [list(rng.choice(GENES, 10, replace=False)) for _ in range(50)]
    right = over_representation(lists, sets, GENES)
    wrong = over_representation(lists, sets, [*GENES, *elsewhere])
    assert (right.p < 0.05).mean() <= 0.05
    assert (benjamini_hochberg(right.p) < 0.05).mean() <= 0.001
    assert (wrong.p < 0.05).mean() > 0.2


# gene sets


def test_gmt_lines():
    lines = ["SET/A\thttp://x\tHLA-DRA\tMT-CO1\tHLA-DRA\n", "\n", "B (GO:1)\t\tNKX2-2\t\t\r\n"]
    assert parse_gmt(lines) == {"SET/A": ("HLA-DRA", "MT-CO1"), "B (GO:1)": ("NKX2-2",)}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "are empty"),
        (["\n", "  \n"], "are empty"),
        (["A\tx\tG1\n", "B\tx\n"], "Line 2 of the gene sets is 'B"),
        (["just words\n"], "expected name, description and genes"),
        (["A\tx\tG1\n", "A\tx\tG2\n"], "names 'A' a second time"),
    ],
)
def test_lines_that_are_no_gene_sets(lines, message):
    with pytest.raises(SetupError, match=message):
        parse_gmt(lines)


def test_sets_are_cut_to_the_background_and_counted():
    kept, counts = sets_within(
        {"a": ["x", "y", "x", "z", "w"], "b": ["x"], "c": list("xyzuv")}, "xyzuv", min_size=2, max_size=4
    )
    assert kept == {"a": ("x", "y", "z")}
    assert counts == {"kept": 1, "too_small": 1, "too_large": 1}


def test_no_set_left_says_what_both_sides_look_like():
    with pytest.raises(SetupError, match=r"None of 1 gene sets has 3 to 500 .* largest has 0.*'ENSG1'.*'CD3D'"):
        sets_within({"a": ["ENSG1", "ENSG2"]}, ["CD3D", "LYZ"], min_size=3, max_size=500)
    with pytest.raises(SetupError, match="1 <= min_size <= max_size"):
        sets_within({"a": ["x"]}, ["x"], min_size=5, max_size=4)


# corrections and ranks


def test_benjamini_hochberg_is_scipys():
    p = np.random.default_rng(0).uniform(size=(7, 30)) ** 3
    p[0, :5] = p[1, :5] = 0.01
    ours = benjamini_hochberg(p)
    assert ours.shape == p.shape
    np.testing.assert_allclose(ours.ravel(), stats.false_discovery_control(p.ravel()), rtol=1e-14)
    assert benjamini_hochberg([]).shape == (0,)
    with pytest.raises(SetupError, match="NaN"):
        benjamini_hochberg([0.1, np.nan])


@pytest.mark.parametrize(("n1", "n2"), [(40, 61), (1, 30), (3, 3), (2, 2), (8, 200), (9, 9), (5, 1)])
@pytest.mark.parametrize("digits", [12, 1])
def test_rank_sum_is_scipys(n1, n2, digits):
    rng = np.random.default_rng(n1 * n2)
    x = np.round(rng.normal(size=(n1 + n2, 30)), digits)
    mask = rng.permutation(np.arange(n1 + n2) < n1)
    x[mask, :10] += 1
    x[:, 11] = 3.0  # one constant column
    ours = rank_sum(x, mask)
    keep = np.arange(30) != 11
    theirs = stats.mannwhitneyu(x[mask][:, keep], x[~mask][:, keep])
    # scipy chooses between exact and normal once for all columns: a tie in one of them makes it normal for all
    each = [stats.mannwhitneyu(x[mask, c], x[~mask, c]) for c in np.flatnonzero(keep)]
    np.testing.assert_array_equal(ours.statistic[keep], theirs.statistic)
    np.testing.assert_allclose(ours.p[keep], [found.pvalue for found in each], rtol=1e-10)
    assert ours.p[11] == 1.0


def test_rank_sum_refuses_what_it_cannot_rank():
    with pytest.raises(SetupError, match="1 values that are not finite"):
        rank_sum([[1.0], [np.nan]], [True, False])
    with pytest.raises(SetupError, match="groups of 2 and 0"):
        rank_sum([[1.0], [2.0]], [True, True])
    with pytest.raises(SetupError, match="expected \\(n, C\\) and n booleans"):
        rank_sum([1.0, 2.0], [True, False])
