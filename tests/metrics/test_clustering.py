"""Scores of clusters: naming by Hungarian, rare types, and cells that must not be mixed up."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.metrics import f1_score

from cellsmith._errors import SetupError
from cellsmith.metrics import ari, homophily, hubness, macro_f1, nmi, rare_f1


@pytest.fixture(scope="module")
def labels():
    rng = np.random.default_rng(0)
    truth = rng.choice(4, 400, p=[0.6, 0.3, 0.08, 0.02])
    return truth, np.where(rng.random(400) < 0.25, rng.integers(0, 4, 400), truth)


def test_macro_f1_takes_the_best_naming(labels):
    truth, predicted = labels
    shuffled = np.array([2, 3, 1, 0])[predicted]
    best = max(itertools.permutations(range(4)), key=lambda p: (np.array(p)[shuffled] == truth).sum())
    expected = f1_score(truth, np.array(best)[shuffled], average="macro")
    assert macro_f1(truth, shuffled) == pytest.approx(expected, abs=1e-12)
    assert macro_f1(truth, shuffled) == pytest.approx(macro_f1(truth, predicted), abs=1e-12)
    assert isinstance(macro_f1(truth, shuffled), float)


def test_more_and_fewer_clusters_than_types():
    truth = np.repeat(["a", "b"], 10)
    assert macro_f1(truth, np.arange(20) // 5) == pytest.approx(2 / 3)  # each half-found: precision 1, recall 1/2
    assert macro_f1(truth, np.zeros(20)) == pytest.approx(1 / 3)  # one type found with precision 1/2, one lost


def test_rare_f1_is_about_rare_types_of_some_size():
    truth = np.repeat(["big", "rare", "tiny"], [1_000, 20, 3])
    predicted = np.repeat([0, 1, 0, 2], [1_000, 15, 5, 3])
    assert rare_f1(truth, predicted) == pytest.approx(30 / 35)
    assert rare_f1(truth, predicted, min_cells=3) == pytest.approx((30 / 35 + 1) / 2)
    assert math.isnan(rare_f1(truth, predicted, max_share=0.001))
    assert rare_f1(truth, np.zeros(1_023)) == 0.0


def test_series_are_matched_by_cell_and_not_by_position(labels):
    truth, predicted = (pd.Series(side, index=[f"c{i}" for i in range(400)]) for side in labels)
    shuffled = predicted.sample(frac=1, random_state=0)
    for score in (ari, nmi, macro_f1, rare_f1):
        assert score(truth, shuffled) == score(truth, predicted) == score(*labels)
    with pytest.raises(SetupError, match=r"different cells.*predicted.loc\[truth.index\]"):
        ari(truth, shuffled.iloc[:399])


def test_missing_truth_is_left_out_and_missing_clusters_are_not(labels):
    truth = pd.Series(labels[0]).astype("string").astype("category")
    truth[:10] = None
    assert nmi(truth, labels[1]) == pytest.approx(nmi(labels[0][10:], labels[1][10:]))
    predicted = labels[1].astype(object)
    predicted[[0, 20, 30]] = np.nan
    with pytest.raises(SetupError, match="missing for 2 of 390 labelled cells"):
        ari(truth, predicted)
    with pytest.raises(SetupError, match="None of the 400 cells"):
        ari([None] * 400, labels[1])
    with pytest.raises(SetupError, match="400 labels, `predicted` 3"):
        ari(labels[0], [1, 2, 3])


def _star(n=6):
    graph = sp.lil_matrix((n, n))
    graph[0, 1:], graph[1:, 0] = 0.3, 0.7
    return graph.tocsr()


def test_homophily_counts_edges_whatever_they_weigh():
    graph = _star()
    graph.setdiag(5)
    assert homophily(graph, ["a", "a", "a", "b", "b", "b"]) == pytest.approx(2 / 5)
    assert homophily(graph, ["a", "a", None, "b", None, None]) == pytest.approx(1 / 2)
    random = sp.random(400, 400, density=0.2, random_state=0, format="csr")
    types = np.repeat(["a", "b", "c", "d"], 100)
    assert homophily(random, types) == pytest.approx(0.25, abs=0.01)


def test_hubness_of_a_star_and_of_a_ring():
    assert hubness(_star()) == (pytest.approx(np.std([5, 1, 1, 1, 1, 1]) / (10 / 6)), 5)
    ring = sp.csr_matrix(np.roll(np.eye(6), 1, axis=1) + np.roll(np.eye(6), -1, axis=1))
    assert hubness(ring) == (0.0, 2)
    chosen = sp.csr_matrix((np.ones(5), (range(1, 6), np.zeros(5, int))), shape=(6, 6))
    assert hubness(chosen).largest == 5


@pytest.mark.parametrize("graph", [np.eye(3), sp.csr_matrix((3, 4)), sp.identity(3)])
def test_no_graph_is_an_error(graph):
    with pytest.raises(SetupError):
        hubness(graph)
    with pytest.raises(SetupError):
        homophily(graph, ["a", "a", "a"])
