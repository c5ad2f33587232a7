"""How many clusters: merging and dropping by markers on the other half of the counts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from cellsmith.datasets import toy_counts
from cellsmith.model.scsiameseclu import clusters


@pytest.fixture(scope="module")
def typed() -> tuple[sparse.csr_matrix, np.ndarray]:
    adata = toy_counts(240, 200, n_types=3)
    return adata.X.tocsr(), adata.obs["cell_type"].cat.codes.to_numpy().astype(np.int64)


def centres(counts: sparse.csr_matrix, codes: np.ndarray) -> np.ndarray:
    x = np.log1p(counts.toarray())
    return np.stack([x[codes == c].mean(axis=0) for c in range(codes.max() + 1)])


def test_a_type_split_at_random_is_merged_again(typed: tuple[sparse.csr_matrix, np.ndarray]) -> None:
    counts, codes = typed
    split = codes.copy()
    own = np.flatnonzero(codes == 0)
    split[own[::2]] = 3
    threshold = clusters.marker_threshold(counts, split, min_markers=5, batches=None)
    assert threshold >= 5
    found = clusters.prune(counts, split, centres(counts, split), threshold=threshold, min_markers=5)
    assert found.into[0] == found.into[3]
    assert len(np.unique(found.into)) == 3
    assert any("merged" in step for step in found.steps)


def test_rare_cluster_with_markers_stays_and_a_handful_of_cells_without_goes(
    typed: tuple[sparse.csr_matrix, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "RARE_CELLS", 15)
    counts, codes = typed
    options = {"threshold": 0.0, "min_markers": 5, "merge": False}
    rare = np.concatenate([np.flatnonzero(codes != 2), np.flatnonzero(codes == 2)[:12]])
    found = clusters.prune(counts[rare], codes[rare], centres(counts, codes), **options)
    assert found.into[2] == 2
    assert any("kept a cluster of 12 cells" in step for step in found.steps)
    assert clusters.prune(counts[rare], codes[rare], centres(counts, codes), guard=False, **options).into[2] == -1
    false = codes.copy()
    false[np.flatnonzero(codes == 0)[:12]] = 3
    assert clusters.prune(counts, false, centres(counts, false), **options).into[3] == -1


def test_one_cluster_is_never_dropped_and_empty_ones_are(typed: tuple[sparse.csr_matrix, np.ndarray]) -> None:
    counts, codes = typed
    none = np.zeros_like(codes)
    found = clusters.prune(counts, none, np.zeros((3, 2)), threshold=5, min_markers=5)
    np.testing.assert_array_equal(found.into, [0, -1, -1])


def test_starting_number_exceeds_the_communities() -> None:
    z = np.concatenate([np.random.default_rng(k).normal(20.0 * k, 1.0, (60, 3)) for k in range(3)])
    k = clusters.start_number(z, 10, seed=0)
    assert k >= 5
    centre, labels = clusters.kmeans(z, 3, seed=0)
    assert centre.shape == (3, 3)
    assert len(np.unique(labels[:60])) == 1
    means, found = clusters.communities(z, 3, seed=0)
    assert len(np.unique(found[:60])) == 1
    np.testing.assert_allclose(np.sort(means[:, 0]), np.sort(centre[:, 0]), atol=1e-4)


def test_a_mixture_with_one_covariance_straightens_long_clusters() -> None:
    """Two long clusters side by side, cut across by whoever looks at distances alone."""
    generator = np.random.default_rng(0)
    types = np.repeat([0, 1], 150)
    z = np.column_stack([generator.normal(0, 10, 300), 6.0 * types + generator.normal(0, 1, 300), np.zeros(300)])
    mixed = np.where(generator.random(300) < 0.75, types, 1 - types)
    np.random.seed(0)  # noqa: NPY002  (the generator that scikit-learn would draw from)
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    means, labels = clusters.refined(z.astype(np.float32), mixed)
    assert means.shape == (2, 3)
    assert means.dtype == np.float32
    agreement = (labels == types).mean()
    assert max(agreement, 1 - agreement) > 0.98
    assert max((mixed == types).mean(), (mixed != types).mean()) < 0.8
    np.testing.assert_array_equal(labels, clusters.refined(z.astype(np.float32), mixed)[1])
    assert np.random.random() == expected  # noqa: NPY002


def test_a_given_number_is_reached_by_merging(typed: tuple[sparse.csr_matrix, np.ndarray]) -> None:
    counts, types = typed
    split = types.copy()
    split[np.flatnonzero(types == 0)[::2]] = types.max() + 1
    k = int(types.max()) + 1
    places = np.vstack([centres(counts, split), np.zeros((1, counts.shape[1]))])
    found = clusters.prune(counts, split, places, threshold=1e9, min_markers=5, n_left=k)
    assert found.into[0] == found.into[k] != -1  # the halves of a type; the empty cluster is dropped
    assert found.into[k + 1] == -1
    assert len(set(found.into.tolist()) - {-1}) == k


def test_only_clusters_nearest_to_each_other_are_merged(typed: tuple[sparse.csr_matrix, np.ndarray]) -> None:
    """Two clusters of 4 cells have hardly a gene that separates them, whatever their types."""
    counts, codes = typed
    small = codes.copy()
    small[np.flatnonzero(codes == 0)[:4]], small[np.flatnonzero(codes == 1)[:4]] = 3, 4
    options = {"threshold": 10.0, "min_markers": 5}
    assert clusters._separating(counts, small, 3, 4, batches=None) < 10
    for n_left in (4, 3):
        found = clusters.prune(counts, small, centres(counts, small), n_left=n_left, **options)
        assert len(np.unique(found.into)) == n_left
        assert found.into[3] != found.into[4]
    np.testing.assert_array_equal(found.into, [0, 1, 2, 0, 1])
