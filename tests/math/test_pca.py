"""Principal components of sparse matrices."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from cellsmith._errors import SetupError
from cellsmith.math.pca import principal_axes


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.poisson(1.0, (70, 40)) * generator.gamma(1.0, 1.0, 40)


def test_scores_are_those_of_the_singular_value_decomposition(x: np.ndarray) -> None:
    found = principal_axes(sparse.csr_matrix(x), 5)
    u, s, vt = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found.axes.T @ vt[:5].T), np.eye(5), atol=1e-8)
    np.testing.assert_allclose(np.abs(found.project(x)), np.abs(u[:, :5] * s[:5]), atol=1e-8)
    np.testing.assert_allclose(found.project(sparse.csr_matrix(x[:3])), found.project(x)[:3], atol=1e-10)


def test_signs_are_fixed_and_equal_input_gives_equal_output(x: np.ndarray) -> None:
    found, again = principal_axes(x, 4), principal_axes(x.copy(), 4)
    np.testing.assert_array_equal(found.axes, again.axes)
    assert (found.axes[np.abs(found.axes).argmax(axis=0), np.arange(4)] > 0).all()


def test_no_more_components_than_there_can_be(x: np.ndarray) -> None:
    assert principal_axes(x[:6], 50).axes.shape == (40, 5)


def test_values_that_are_not_finite_are_refused(x: np.ndarray) -> None:
    with pytest.raises(SetupError, match="expected finite numbers"):
        principal_axes(np.where(x > 3, np.nan, x), 4)
