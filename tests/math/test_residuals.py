from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from cellsmith._errors import SetupError, SizeError
from cellsmith.math.counts import pearson_components, residuals


def _x(n=90, g=40):
    x = np.random.default_rng(0).poisson(np.random.default_rng(1).gamma(0.5, 2.0, size=(n, g)))
    x[:, 3] = 0
    return sp.csr_matrix(x)


def test_residuals_equal_scanpy():
    sc = pytest.importorskip("scanpy")
    from anndata import AnnData

    x = _x()[:, np.arange(40) != 3]
    adata = AnnData(x.astype(np.float32))
    sc.experimental.pp.normalize_pearson_residuals(adata, theta=100)
    totals = np.asarray(x.sum(axis=1)).reshape(-1)
    shares = np.asarray(x.sum(axis=0)).reshape(-1) / totals.sum()
    found = residuals.pearson_residuals(x, totals=totals, shares=shares, clip=np.sqrt(90))
    np.testing.assert_allclose(found, adata.X, atol=1e-4)


@pytest.mark.parametrize("block", [1 << 23, 400])
def test_components_equal_a_dense_decomposition(monkeypatch, block):
    monkeypatch.setattr(residuals, "_BLOCK", block)
    x = _x()
    totals = np.asarray(x.sum(axis=1)).reshape(-1)
    shares = np.asarray(x.sum(axis=0)).reshape(-1) / totals.sum()
    r = residuals.pearson_residuals(x, totals=totals, shares=shares, clip=np.sqrt(90)).astype(float)
    u, s, _ = np.linalg.svd(r - r.mean(axis=0), full_matrices=False)
    found = pearson_components(x, 5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.abs(found), np.abs(u[:, :5] * s[:5]), atol=1e-3)
    np.testing.assert_array_equal(found, pearson_components(x.toarray(), 5))


def test_wrong_input_is_named():
    with pytest.raises(SizeError, match="highly_variable_genes"):
        pearson_components(sp.csr_matrix((10, residuals.MAX_GENES + 1)))
    with pytest.raises(SetupError, match="no count"):
        pearson_components(sp.csr_matrix((10, 5)))
    with pytest.raises(SetupError, match="theta=0"):
        pearson_components(_x(), theta=0)
