"""Neighbour tables, weights and communities against scikit-learn, umap-learn and scanpy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse as sp

from cellsmith.math import graph

sc = pytest.importorskip("scanpy")


@pytest.fixture(scope="module")
def cells():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sc.datasets.pbmc68k_reduced()


def test_table_equals_sklearn(cells):
    sklearn_neighbors = pytest.importorskip("sklearn.neighbors")
    x = cells.obsm["X_pca"].astype(np.float64)
    distances, indices = sklearn_neighbors.NearestNeighbors(n_neighbors=14).fit(x).kneighbors()
    found = graph.knn_table(x, 14, seed=0)
    np.testing.assert_array_equal(found[0], indices)
    np.testing.assert_allclose(found[1], distances, rtol=1e-5)
    distances, indices = sklearn_neighbors.NearestNeighbors(n_neighbors=5).fit(x[:500]).kneighbors(x[500:])
    found = graph.cross_knn(x[500:], x[:500], 5, seed=0)
    np.testing.assert_array_equal(found[0], indices)
    np.testing.assert_allclose(found[1], distances, rtol=1e-5)


@pytest.mark.parametrize("n_neighbors", [10, 15, 30])
def test_union_equals_the_connectivities_of_scanpy(cells, n_neighbors):
    adata = cells.copy()
    sc.pp.neighbors(adata, n_neighbors=n_neighbors, use_rep="X_pca")
    union = graph.fuzzy_union(*graph.knn_table(adata.obsm["X_pca"], n_neighbors - 1, seed=0))
    expected = adata.obsp["connectivities"]
    assert union.nnz == expected.nnz
    # umap stops its bisection at 1e-5 of the summed weights
    assert abs(union - expected).max() <= 1e-5
    if n_neighbors == 15:  # the reference shape of the annotation benchmark
        assert union.sum() / 700 == pytest.approx(6.93, abs=0.005)
        assert union.nnz / 700 == pytest.approx(22.7, abs=0.05)


@pytest.mark.parametrize("k", [2, 15, 40])
@pytest.mark.parametrize("ties", [False, True])
def test_kernel_equals_umap(k, ties):
    umap_ = pytest.importorskip("umap.umap_")
    x = np.random.default_rng(k).normal(size=(600, 5))
    x = np.round(x) if ties else x
    x[:30] = x[0]
    indices, distances = graph.knn_table(x, k, seed=0)
    with_self = [np.c_[np.arange(600), indices], np.c_[np.zeros(600, np.float32), distances]]
    expected, sigma, rho = umap_.fuzzy_simplicial_set(
        sp.coo_matrix((600, 1)), k + 1, None, None, knn_indices=with_self[0], knn_dists=with_self[1]
    )
    union = graph.fuzzy_union(indices, distances)
    own = graph.smooth_distances(distances)
    np.testing.assert_array_equal(own[0], rho)
    np.testing.assert_allclose(own[1], sigma, rtol=2e-4)
    difference = abs(union - expected.tocsr())
    assert union.nnz == expected.nnz
    assert difference.max() <= 2e-5  # both directions, each to 1e-5 of the summed weights
    assert np.quantile(difference.toarray()[union.nonzero()], 0.99) <= 1e-6


@pytest.mark.parametrize(("resolution", "seed"), [(0.5, 0), (1.0, 7)])
def test_leiden_equals_scanpy(cells, resolution, seed):
    adata = cells.copy()
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, resolution=resolution, random_state=seed, directed=False)
    labels = graph.leiden(adata.obsp["connectivities"], resolution=resolution, seed=seed)
    np.testing.assert_array_equal(labels, adata.obs["leiden"].astype(int))
