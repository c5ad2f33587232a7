"""The graph of the BC-PCA embedding is one that scanpy reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData

from cellsmith import _record, pp
from cellsmith._errors import DataWarning, SetupError


def embedded(n: int = 60, k: int = 4, *, empty: int | None = None) -> AnnData:
    """An object that looks as if BC-PCA had run on it."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(n, k)).astype(np.float32) + 6.0 * (np.arange(n) % 3 == 0)[:, None]
    if empty is not None:
        x[empty] = np.nan
    adata = AnnData(generator.normal(size=(n, 8)).astype(np.float32))
    _record.write(adata, "bcpca", _record.Result(method="bcpca", obsm={"X_{k}": x}, uns={"params": {}}))
    return adata


@pytest.mark.slow  # scanpy compiles itself first
def test_graph_equals_that_of_scanpy() -> None:
    adata = embedded()
    assert pp.bc_neighbors(adata, n_neighbors=8) is None
    sc.pp.neighbors(adata, n_neighbors=8, use_rep="X_bcpca")
    np.testing.assert_allclose(
        adata.obsp["bc_neighbors_connectivities"].toarray(), adata.obsp["connectivities"].toarray(), atol=1e-5
    )
    np.testing.assert_allclose(
        adata.obsp["bc_neighbors_distances"].toarray(), adata.obsp["distances"].toarray(), atol=1e-4
    )
    block = adata.uns["bc_neighbors"]
    assert block["connectivities_key"] == "bc_neighbors_connectivities"
    assert block["params"]["method"] == "umap"


def test_scanpy_runs_on_it() -> None:
    adata = embedded()
    pp.bc_neighbors(adata)
    sc.tl.leiden(adata, neighbors_key="bc_neighbors", flavor="igraph", n_iterations=2, directed=False)
    sc.tl.paga(adata, groups="leiden", neighbors_key="bc_neighbors")
    sc.tl.draw_graph(adata, neighbors_key="bc_neighbors", layout="fr")
    assert adata.obs["leiden"].nunique() >= 2
    assert np.isfinite(adata.obsm["X_draw_graph_fr"]).all()


@pytest.mark.slow  # umap-learn compiles itself first
def test_umap_runs_on_it() -> None:
    adata = embedded()
    pp.bc_neighbors(adata)
    sc.tl.umap(adata, neighbors_key="bc_neighbors", maxiter=20)
    assert np.isfinite(adata.obsm["X_umap"]).all()


def test_cells_without_an_embedding_have_no_neighbours() -> None:
    adata = embedded(empty=7)
    with pytest.warns(DataWarning, match="1 cells have no embedding"):
        pp.bc_neighbors(adata, n_neighbors=5)
    graph = adata.obsp["bc_neighbors_connectivities"]
    assert graph[7].nnz == 0
    assert graph[:, 7].nnz == 0
    rest = embedded(empty=7)[np.arange(60) != 7].copy()
    pp.bc_neighbors(rest, n_neighbors=5)
    kept = np.delete(np.delete(graph.toarray(), 7, 0), 7, 1)
    np.testing.assert_allclose(kept, rest.obsp["bc_neighbors_connectivities"].toarray(), atol=1e-6)


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_copy_and_files(form: str, tmp_path: Path) -> None:
    adata = embedded()
    made = pp.bc_neighbors(adata, copy=True, key_added="g")
    assert "g" not in adata.uns
    getattr(made, f"write_{form}")(tmp_path / f"a.{form}")
    back = getattr(anndata, f"read_{form}")(tmp_path / f"a.{form}")
    assert (back.obsp["g_connectivities"] != made.obsp["g_connectivities"]).nnz == 0
    assert back.uns["g"]["params"]["use_rep"] == "X_bcpca"


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"n_neighbors": 1}, "expected 2 to 60"),
        ({"n_neighbors": 61}, "expected 2 to 60"),
        ({"metric": "euclidean"}, "metric='euclidean'"),
        ({"key": "bcpc"}, "Did you mean 'bcpca'"),
    ],
)
def test_refusals(kwargs: dict[str, Any], text: str) -> None:
    adata = embedded()
    with pytest.raises(SetupError, match=text):
        pp.bc_neighbors(adata, **kwargs)
    assert not adata.obsp
