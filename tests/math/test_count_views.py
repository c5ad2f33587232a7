"""Perturbed views of counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse

from cellsmith._errors import SetupError
from cellsmith.math.counts import log_normalized, perturbed_view

PLAIN: dict[str, Any] = {"thinning_fraction": 1.0, "noise_scale": 0.0, "mask_rate": 0.0}


@pytest.fixture(scope="module")
def counts() -> sparse.csr_matrix:
    return sparse.csr_matrix(np.random.default_rng(0).poisson(2.0, (200, 50)).astype(np.float32))


def view(counts: sparse.csr_matrix, seed: int = 0, **given: Any) -> sparse.csr_matrix:
    rest = np.full(counts.shape[0], 100.0)
    return perturbed_view(counts, rest, **{**PLAIN, **given}, generator=np.random.default_rng(seed))


def test_everything_switched_off_is_the_log_normalised_cell(counts: sparse.csr_matrix) -> None:
    totals = np.asarray(counts.sum(axis=1)).ravel() + 100
    expected = np.log1p(counts.toarray() * (1e4 / totals)[:, None])
    np.testing.assert_allclose(view(counts).toarray(), expected, rtol=1e-5)
    np.testing.assert_allclose(log_normalized(counts, totals).toarray(), expected, rtol=1e-5)


def test_each_augmentation_has_its_law(counts: sparse.csr_matrix) -> None:
    plain = view(counts)
    masked = view(counts, mask_rate=0.2)
    assert abs(1 - masked.nnz / plain.nnz - 0.2) < 0.02
    noisy = view(counts, noise_scale=0.1)
    ratio = noisy.data / plain.data
    assert abs(ratio.mean() - 1) < 0.005
    assert abs(ratio.std() - 0.1) < 0.005
    thinned = view(counts, thinning_fraction=0.5)
    # a molecule alone in its gene is kept half of the time
    alone = counts.toarray() == 1
    assert abs((thinned.toarray()[alone] > 0).mean() - 0.5) < 0.05


def test_thinned_views_are_normalised_by_their_own_totals() -> None:
    deep = sparse.csr_matrix(np.full((1, 3), 20_000.0, dtype=np.float32))
    found = perturbed_view(
        deep,
        np.array([40_000.0]),
        thinning_fraction=0.5,
        noise_scale=0.0,
        mask_rate=0.0,
        generator=np.random.default_rng(0),
    )
    np.testing.assert_allclose(found.toarray(), np.log1p(2000.0), rtol=0.01)


def test_views_differ_by_seed_only_and_counts_stay(counts: sparse.csr_matrix) -> None:
    before = counts.copy()
    given = {"thinning_fraction": 0.8, "noise_scale": 0.1, "mask_rate": 0.2}
    a, b, c = view(counts, 1, **given), view(counts, 1, **given), view(counts, 2, **given)
    assert (a != b).nnz == 0
    assert (a != c).nnz > 0
    assert (counts != before).nnz == 0


def test_numbers_out_of_range_are_refused(counts: sparse.csr_matrix) -> None:
    for given in ({"thinning_fraction": 0.0}, {"noise_scale": -1.0}, {"mask_rate": 1.0}):
        with pytest.raises(SetupError, match="expected a fraction in"):
            view(counts, **given)
