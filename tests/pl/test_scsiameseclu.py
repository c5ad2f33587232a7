"""Pictures of clusters."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import cellsmith
from cellsmith._errors import SetupError

mpl.use("agg")


@pytest.fixture
def clustered() -> AnnData:
    adata = AnnData(np.ones((60, 4), dtype=np.float32))
    generator = np.random.default_rng(0)
    adata.obs["scsiameseclu"] = pd.Categorical(generator.choice(["0", "1"], 60), categories=["0", "1", "2"])
    adata.obs["scsiameseclu_confidence"] = generator.random(60)
    adata.obsm["X_scsiameseclu"] = generator.normal(size=(60, 5))
    adata.uns["scsiameseclu"] = {
        "classes": np.array(["0", "1", "2"], dtype=object),
        "k_path": {"n_clusters": np.array([6, 3, 2])},
    }
    return adata


def test_three_panels_show_the_clusters_that_have_cells(clustered: AnnData) -> None:
    axes = cellsmith.pl.scsiameseclu_clusters(clustered)
    assert [a.get_title() for a in axes][0::2] == ["Clusters", "Number of clusters"]
    assert [t.get_text() for t in axes[0].texts] == ["0", "1"]
    np.testing.assert_array_equal(axes[2].lines[0].get_ydata(), [6, 3, 2])


def test_the_map_can_be_chosen(clustered: AnnData) -> None:
    clustered.obsm["X_umap"] = np.arange(120.0).reshape(60, 2)
    axes = cellsmith.pl.scsiameseclu_clusters(clustered)
    shown = np.concatenate([c.get_offsets() for c in axes[0].collections])
    assert set(map(tuple, shown)) == set(map(tuple, clustered.obsm["X_umap"]))
    with pytest.raises(SetupError, match="basis='X_tsn'"):
        cellsmith.pl.scsiameseclu_clusters(clustered, basis="X_tsn")
    with pytest.raises(SetupError, match="names no clusters"):
        cellsmith.pl.scsiameseclu_clusters(clustered, key="leiden")
