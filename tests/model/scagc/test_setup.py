"""What is refused, and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from cellsmith._errors import SetupError, SizeError
from cellsmith.model import SCAGC
from cellsmith.model.scagc.arguments import check_size, settle_arguments

Cells = Callable[..., AnnData]
Fit = Callable[..., SCAGC]


def _zero(adata: AnnData) -> None:
    dense = adata.X.toarray()
    dense[3] = 0
    adata.X = dense


@pytest.mark.parametrize(
    ("break_it", "kwargs", "match"),
    [
        (lambda a: a.X.data.__setitem__(0, -1), {}, "must hold raw counts, but cell 'cell_0'"),
        (lambda a: a.X.data.__setitem__(0, 0.5), {}, "fractional"),
        (lambda a: a.X.data.__setitem__(0, np.nan), {}, "nan"),
        (lambda a: a.X.data.__setitem__(0, np.inf), {}, "inf"),
        (_zero, {}, r"1 cells have a total of zero.*sc.pp.filter_cells"),
        (lambda a: None, {"use_rep": "X_pcaa"}, r"use_rep='X_pcaa' is not in .obsm. Did you mean 'X_pca'"),
        (lambda a: a.obsm["X_pca"].__setitem__((2, 0), np.nan), {"use_rep": "X_pca"}, "not finite in 1 rows"),
        (lambda a: None, {"batch_key": "batches"}, "Did you mean 'batch'"),
    ],
)
def test_data_that_cannot_be_used_are_refused_and_untouched(
    cells: Cells, break_it: Any, kwargs: dict[str, Any], match: str
) -> None:
    adata = cells(60)
    adata.obsm["X_pca"] = np.zeros((60, 2))
    break_it(adata)
    before = list(adata.obs)
    with pytest.raises(SetupError, match=match):
        SCAGC.setup_anndata(adata, **kwargs)
    assert list(adata.obs) == before
    assert "_scvi_uuid" not in adata.uns


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"n_neighbors": 60}, r"n_neighbors=60 neighbours cannot be chosen among n_candidates=50. Type n_neighbors=50"),
        ({"edge_temperature": 0.0}, "edge_temperature=0.0; expected a number above 0. Type edge_temperature=0.05"),
        ({"n_clusters": 1}, r"n_clusters=1; expected a whole number from 2 to 60.*Type n_clusters=2"),
        ({"n_clusters": 61}, "Type n_clusters=60"),
        ({"n_clusters": "autom"}, "Did you mean 'auto'"),
        ({"graph": "learnd"}, "Did you mean 'learned'"),
        ({"variant": "papr"}, "Did you mean 'paper'"),
        ({"hub_penalty": -1.0}, "expected a number of 0 or more"),
        ({"n_hops": -1}, "n_hops=-1"),
        ({"dropout_rate": 1.0}, r"expected a number in \[0, 1\)"),
        ({"n_latent": 0}, "n_latent=0; expected a whole number of 1 or more"),
        ({"variant": "paper", "graph": "knn"}, "graph='knn' contradicts variant='paper', where it is 'learned'"),
        ({"graph": "learned", "cluster_head": "dec", "n_clusters": None}, "needs clusters, but n_clusters=None"),
    ],
)
def test_arguments_out_of_range_name_the_nearest_valid_value(cells: Cells, kwargs: dict[str, Any], match: str) -> None:
    adata = cells(60)
    SCAGC.setup_anndata(adata)
    with pytest.raises(SetupError, match=match):
        SCAGC(adata, **kwargs)


def test_too_few_cells_and_too_many_for_dense_arrays_are_refused() -> None:
    with pytest.raises(SetupError, match="Found 9 cells, expected at least 10"):
        check_size(9, 100, variant="default")
    with pytest.raises(SizeError, match=r"20,000 cells would take about 23 GB; it stops at 5,000"):
        check_size(20_000, 1000, variant="paper")
    check_size(20_000, 1000, variant="default")


def test_data_modules_are_refused(cells: Cells) -> None:
    from lightning.pytorch import LightningDataModule

    adata = cells(60)
    SCAGC.setup_anndata(adata)
    with pytest.raises(SetupError, match="needs to know which cell is which"):
        SCAGC(adata).train(max_epochs=1, datamodule=LightningDataModule(), accelerator="cpu")


def test_silent_genes_and_equal_cells_are_allowed(cells: Cells, fitted: Fit) -> None:
    adata = cells(60)
    dense = adata.X.toarray()
    dense[:, 3] = 0
    dense[10:14] = dense[10]
    adata.X = dense
    model = fitted(adata, train={"max_epochs": 1})
    assert np.isfinite(model.get_latent()).all()
    assert np.isfinite(model.get_learned_graph(kind="distances").data).all()
    assert model.get_learned_graph(kind="distances").data.min() >= 1e-7


def test_size_factors_of_any_scale_give_the_same_model(cells: Cells, fitted: Fit) -> None:
    latents = []
    for scale in (1.0, 1000.0):
        adata = cells(60)
        adata.obs["factor"] = scale * np.asarray(adata.X.sum(axis=1)).ravel()
        latents.append(fitted(adata, setup={"size_factor_key": "factor"}, train={"max_epochs": 1}).get_latent())
    latents.append(fitted(cells(60), train={"max_epochs": 1}).get_latent())
    np.testing.assert_allclose(latents[0], latents[1], atol=1e-4)
    np.testing.assert_allclose(latents[0], latents[2], atol=1e-4)


def test_paper_takes_its_own_values_where_defaults_are_given() -> None:
    from inspect import signature

    given = {k: p.default for k, p in signature(SCAGC.__init__).parameters.items() if k not in ("self", "adata")}
    settled = settle_arguments({**given, "variant": "paper"}, n_cells=100)
    assert settled["edge_temperature"] == 1.0
    assert settled["gene_likelihood"] == "zinb"
    assert settled["contrast_weight"] == 0.01
