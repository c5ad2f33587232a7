"""Gene-wise and label-wise scores against second implementations and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats

from cellsmith.metrics import _expression as expression
from cellsmith.metrics import _labels as by_label
from cellsmith.metrics._cells import log_normalise, top_variable


def test_log_normalise_scales_to_ten_thousand_and_keeps_empty_cells():
    x = sparse.csr_matrix([[1.0, 3.0, 0.0], [0.0, 0.0, 0.0], [0.0, 5.0, 5.0]])
    out = log_normalise(x).toarray()
    np.testing.assert_allclose(np.expm1(out).sum(axis=1), [1e4, 0.0, 1e4])
    assert out[0, 1] == pytest.approx(np.log1p(7500))
    assert x[0, 0] == 1.0


def test_top_variable_orders_by_variance():
    x = sparse.csr_matrix(np.array([[0, 0, 1, 5], [0, 2, 1, 0], [0, 0, 1, 5], [0, 2, 1, 0]], dtype=float))
    assert top_variable(x, 2).tolist() == [3, 1]


def test_gene_gene_equals_corrcoef():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(80, 6)), generator.normal(size=(70, 6)) @ generator.normal(size=(6, 6))
    upper = np.triu_indices(6, 1)
    x, y = np.corrcoef(a.T)[upper], np.corrcoef(b.T)[upper]
    r, error = expression.gene_gene(a, b)
    assert r == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert error == pytest.approx(np.abs(x - y).mean())
    a[:, 0] = 1.0  # a constant gene correlates with nothing, and breaks nothing
    assert np.isfinite(expression.gene_gene(a, b)).all()


def test_fold_change_is_type_against_the_rest_of_the_labelled_cells():
    log = sparse.csr_matrix([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [9.0, 9.0]])
    labels = np.array(["a", "a", "b", None], dtype=object)
    np.testing.assert_allclose(expression.fold_changes(log, labels, ["a", "b"]), [[2.0, -2.0], [-2.0, 2.0]])


def test_slope_sees_attenuation():
    generator = np.random.default_rng(0)
    real = generator.normal(size=200)
    other = 0.6 * real + 0.01 * generator.normal(size=200)
    expected = np.linalg.lstsq(real[:, None], other, rcond=None)[0][0]
    assert expression.slope_through_zero(real, other) == pytest.approx(expected)
    assert expected == pytest.approx(0.6, abs=0.01)
    assert np.isnan(expression.slope_through_zero(np.zeros(3), np.ones(3)))


def test_overlap_of_top_genes():
    real = np.array([5.0, 4.0, 3.0, 0.0, -9.0])
    assert expression.overlap_of_top(real, np.array([5.0, 0.0, 4.0, 1.0, 9.0]), 3) == pytest.approx(2 / 3)


def test_ks_distance_equals_scipy():
    generator = np.random.default_rng(0)
    a, b = generator.poisson(5, 90).astype(float), generator.poisson(7, 70).astype(float)
    assert expression.ks_distance(a, b) == pytest.approx(stats.ks_2samp(a, b).statistic)


def test_curves_of_counts():
    curves = expression.count_curves(sparse.csr_matrix([[0.0, 4.0], [2.0, 0.0], [0.0, 2.0]]))
    assert curves["library"].tolist() == [2.0, 2.0, 4.0]
    assert curves["genes_detected"].tolist() == [1.0, 1.0, 1.0]
    np.testing.assert_allclose(curves["zero_fraction"], [2 / 3, 1 / 3])
    np.testing.assert_allclose(curves["variance"], [np.var([0, 2, 0]), np.var([4, 0, 2])])


def test_mean_variance_error_is_a_factor_in_decades():
    real = {"mean": np.array([1.0, 2.0, 0.001]), "variance": np.array([2.0, 6.0, 0.1])}
    other = {"mean": np.array([1.0, 2.0, 0.001]), "variance": np.array([20.0, 60.0, 99.0])}
    assert expression.mean_variance_error(real, other) == pytest.approx(1.0)


def test_types_need_more_than_five_cells_on_both_sides():
    a = np.array(["x"] * 6 + ["y"] * 5 + ["z"] * 9 + [None] * 20, dtype=object)
    b = np.array(["x"] * 8 + ["y"] * 8, dtype=object)
    assert by_label.shared_types(a, b) == ["x"]


def test_composition_distance_is_total_variation():
    a = np.array(["x", "x", "y", None], dtype=object)
    b = np.array(["x", "z"], dtype=object)
    assert by_label.composition_distance(a, b) == pytest.approx(0.5)
    assert np.isnan(by_label.composition_distance(a, np.array([None], dtype=object)))


def test_classifier_of_one_label_is_constant():
    model = by_label.classifier(np.zeros((5, 2)), np.array(["only"] * 4 + [None], dtype=object))
    assert model.predict(np.ones((3, 2))).tolist() == ["only"] * 3
