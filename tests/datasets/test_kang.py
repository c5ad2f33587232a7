"""The embedded data set: complete, raw, small, and traceable to its source."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from cellsmith.datasets import kang_pbmc
from cellsmith.datasets.make_kang_pbmc import build, main, residual_variance

EXPECTED_GENES = "ISG15 IFI6 IFIT1 IFIT2 IFIT3 MX1 OAS1 CXCL10 CD3D CD8A NKG7 GNLY MS4A1 CD79A CD14 LYZ FCGR3A PPBP"


@pytest.fixture(scope="module")
def adata():
    return kang_pbmc()


def test_every_cell_and_its_labels(adata):
    assert adata.shape == (2800, 2000)
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert adata.obs["condition"].value_counts().to_dict() == {"CTRL": 1310, "STIM": 1490}
    counts = adata.obs["cell_type"].value_counts()
    assert len(counts) == 13
    assert counts["CD14 Mono"] == 912
    assert counts["Eryth"] == 8


def test_raw_counts(adata):
    assert sparse.issparse(adata.X)
    assert adata.X.format == "csr"
    assert adata.X.dtype == np.float32
    assert adata.X.data.min() >= 1
    assert not np.any(adata.X.data % 1)
    assert np.asarray(adata.X.sum(axis=1)).min() >= 400


def test_known_biology(adata):
    assert set(EXPECTED_GENES.split(" ")) <= set(adata.var_names)
    depth = np.asarray(adata.X.sum(axis=1)).ravel()
    stim = (adata.obs["condition"] == "STIM").to_numpy()
    response = np.asarray(adata[:, adata.var["interferon_response"]].X.sum(axis=1)).ravel() / depth
    assert np.median(response[stim]) > 2 * np.median(response[~stim])
    isg15 = adata[:, "ISG15"].X.toarray().ravel() / depth
    for kind in adata.obs["cell_type"].cat.categories.drop("Eryth"):
        here = (adata.obs["cell_type"] == kind).to_numpy()
        assert isg15[here & stim].mean() > 2 * isg15[here & ~stim].mean(), kind


def test_source_and_size(adata):
    source = adata.uns["source"]
    assert source["accession"] == "GSE96583"
    assert "MIT" in source["licence"]
    assert "Kang" in source["study"]
    assert "rDeepmaps" in source["carrier"]
    assert len(files("cellsmith.datasets").joinpath("kang_pbmc.h5ad").read_bytes()) < 2_000_000


def test_calls_do_not_share_memory(adata):
    other = kang_pbmc()
    other.X.data[:] = 0
    assert kang_pbmc().X.data.min() == 1


def test_round_trip(adata, tmp_path):
    import anndata as ad

    adata.write_h5ad(tmp_path / "a.h5ad")
    assert (ad.read_h5ad(tmp_path / "a.h5ad").X != adata.X).nnz == 0


def test_residual_variance_finds_structure():
    generator = np.random.default_rng(0)
    x = generator.poisson(5.0, (300, 40)).astype(float)
    x[:150, 3] += 20
    variance = residual_variance(sparse.csr_matrix(x), chunk=7)
    assert variance.argmax() == 3
    assert np.median(variance) == pytest.approx(1.0, abs=0.15)
    np.testing.assert_allclose(variance, residual_variance(sparse.csr_matrix(x), chunk=40))


SOURCE = Path(os.environ.get("CELLSMITH_DATA", Path(__file__).parents[3] / "shared" / "data")) / "kang_ifnb.h5ad"


@pytest.mark.needs_data
@pytest.mark.skipif(not SOURCE.exists(), reason="the full source is not on this machine")
def test_the_script_makes_what_is_shipped(adata, tmp_path, capsys):
    made = build(SOURCE)
    assert list(made.var_names) == list(adata.var_names)
    assert list(made.obs_names) == list(adata.obs_names)
    assert (made.X.astype(np.float32) != adata.X).nnz == 0
    assert main([str(SOURCE), "--out", str(tmp_path / "x.h5ad")]) == 0
    assert "2800 x 2000" in capsys.readouterr().out
