"""The recovered counts: whole, on the scale of the stored values, and refused where no scale exists."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from cellsmith._errors import SetupError
from cellsmith.datasets import pbmc68k_counts
from cellsmith.datasets._pbmc68k import whole_counts


def test_counts_of_scanpys_cells():
    import scanpy as sc

    adata = pbmc68k_counts()
    assert adata.shape == (700, 765)
    assert sparse.issparse(adata.X)
    assert not np.any(adata.X.data % 1)
    assert adata.X.data.min() == 1
    assert adata.obs["cell_type"].nunique() == 10
    assert adata.obs_names.is_unique
    stored = np.expm1(sc.datasets.pbmc68k_reduced().raw.X.toarray().astype(np.float64))
    counts = adata.X.toarray()
    scale = stored.sum(axis=1) / counts.sum(axis=1)
    np.testing.assert_allclose(counts * scale[:, None], stored, atol=0.11 * scale.max())
    assert np.array_equal(counts > 0, stored > 0)


def test_scale_of_each_cell_is_undone():
    counts = np.random.default_rng(0).poisson(0.8, (30, 50)).astype(float)
    counts[:, 0] = 1
    factor = np.random.default_rng(1).uniform(0.5, 20, (30, 1))
    np.testing.assert_array_equal(whole_counts(np.round(counts * factor, 3)), counts)


def test_what_is_no_scaled_counts_is_refused():
    with pytest.raises(SetupError, match="whole number of counts"):
        whole_counts(np.array([[1.0, 1.5, 2.0, 7.0, 0.0]]))


def test_normalising_the_counts_again_gives_the_stored_values_to_their_three_digits():
    """The totals over all genes are in scanpy's file: with them the counts must reproduce every stored value."""
    import scanpy as sc

    reduced = sc.datasets.pbmc68k_reduced()
    total = reduced.obs["n_counts"].to_numpy()[:, None]
    again = np.log1p(pbmc68k_counts().X.toarray() / total * 1e4)
    np.testing.assert_allclose(again, reduced.raw.X.toarray(), atol=6e-4)
