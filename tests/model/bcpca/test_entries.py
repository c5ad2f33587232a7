"""Every form of data and of mask gives the same answer, wherever it lies; bad entries are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from cellsmith import pp
from cellsmith._errors import DataWarning, MissingnessWarning, SetupError
from cellsmith.model import BCPCA
from cellsmith.model.bcpca.source import MASK_LAYER

Simulate = Callable[..., AnnData]
Fit = Callable[..., BCPCA]


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    """Small integers, a third of them zero; zeros are missing."""
    generator = np.random.default_rng(0)
    depth = generator.uniform(0.5, 3.0, (90, 1))
    return generator.poisson(depth * generator.uniform(0.3, 2.0, 40) * np.exp(generator.normal(size=(90, 1)) * 0.3))


def forms(x: np.ndarray) -> dict[str, tuple[AnnData, Any]]:
    """One data set whose zeros are missing, in every form, with the mask that says so."""
    known, values = x != 0, x.astype(np.float32)
    csr = sp.csr_matrix(values)
    explicit = sp.csr_matrix(np.where(values == 0, 7.5, values))
    explicit.data[explicit.data == 7.5] = 0.0
    stored_nan = sp.csr_matrix(np.where(values == 0, 7.5, values))
    stored_nan.data[stored_nan.data == 7.5] = np.nan
    nan = np.where(known, values, np.nan)
    out: dict[str, tuple[AnnData, Any]] = {
        "nan": (AnnData(nan), "nan"),
        "float64": (AnnData(nan.astype(np.float64)), "nan"),
        "fortran order": (AnnData(np.asfortranarray(nan)), "nan"),
        "masked array": (AnnData(np.ma.masked_array(values, ~known)), "nan"),
        "stored nan": (AnnData(stored_nan), "nan"),
        "zero, csr": (AnnData(csr), "zero"),
        "zero, explicit": (AnnData(explicit), "zero"),
        "zero, dense": (AnnData(values), "zero"),
        "zero, csc": (AnnData(sp.csc_matrix(csr)), "zero"),
        "zero, integers": (AnnData(sp.csr_matrix(x.astype(np.int32))), "zero"),
        "zero, int64 indices": (AnnData(_wide(csr)), "zero"),
        "array": (AnnData(values), known.astype(float)),
        "array, csr": (AnnData(csr), sp.csr_matrix(known.astype(np.uint8))),
        "array, bool": (AnnData(csr), known),
        "array, frame": (AnnData(pd.DataFrame(values)), pd.DataFrame(known)),
    }
    for marks in ("observed", "missing"):
        for name, held in (("dense", values), ("csr", csr)):
            adata = AnnData(held)
            adata.layers["m"] = sp.csr_matrix((known if marks == "observed" else ~known).astype(np.uint8))
            adata.uns["m"] = {"marks": marks}
            out[f"{marks}, {name}"] = (adata, "m")
    in_layer = AnnData(np.zeros_like(values))
    in_layer.layers["log"] = nan
    out["layer"] = (in_layer, "nan")
    return out


def _wide(x: Any) -> Any:
    return sp.csr_matrix((x.data, x.indices.astype(np.int64), x.indptr.astype(np.int64)), shape=x.shape)


def test_forms_of_data_and_mask_agree(counts: np.ndarray, fitted: Fit) -> None:
    answers = {}
    for name, (adata, mask) in forms(counts).items():
        setup = {"mask": mask, **({"layer": "log"} if name == "layer" else {})}
        answers[name] = fitted(adata, setup=setup).get_latent()
    reference = answers.pop("nan")
    assert np.isfinite(reference).any()
    for name, latent in answers.items():
        np.testing.assert_allclose(latent, reference, atol=1e-6 * np.nanmax(np.abs(reference)), err_msg=name)


def test_an_explicit_zero_is_observed_where_the_mask_says_so(counts: np.ndarray, fitted: Fit) -> None:
    known = np.random.default_rng(1).random(counts.shape) < 0.7
    dense = AnnData(np.where(known, counts, np.nan).astype(np.float32))
    explicit = sp.csr_matrix(np.where(counts == 0, 7.5, counts).astype(np.float32))
    explicit.data[explicit.data == 7.5] = 0.0
    latent = [fitted(a, setup={"mask": m}).get_latent() for a, m in ((dense, "nan"), (AnnData(explicit), known))]
    latent.append(fitted(AnnData(sp.csr_matrix(counts.astype(np.float32))), setup={"mask": known}).get_latent())
    for other in latent[1:]:
        np.testing.assert_allclose(other, latent[0], atol=1e-6 * np.abs(latent[0]).max())


def test_fractions_weigh_entries(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(80, 60, mechanism="complete")
    hard = np.random.default_rng(0).random(adata.shape) < 0.6
    soft = np.where(hard, 0.999999, 1e-6)
    same = [fitted(adata, setup={"mask": m}).get_latent() for m in (hard, soft)]
    np.testing.assert_allclose(same[1], same[0], atol=2e-3 * np.abs(same[0]).max())
    half = fitted(adata, setup={"mask": np.where(hard, 1.0, 0.5)})
    assert not np.allclose(half.get_latent(), same[0], atol=1e-2)
    np.testing.assert_allclose(
        half.results().obs["{k}_observed_rate"], np.where(hard, 1.0, 0.5).mean(axis=1), rtol=1e-5
    )


def test_a_mask_that_came_as_an_array_stays_with_the_object(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(40, 30, mechanism="complete")
    known = np.random.default_rng(0).random(adata.shape) < 0.8
    model = fitted(adata, setup={"mask": known})
    assert adata.uns[MASK_LAYER]["marks"] == "missing"
    assert (adata.layers[MASK_LAYER].toarray() == ~known).all()
    assert model.registry["setup_args"]["mask"] == MASK_LAYER
    pp.missing_mask(adata, key_added=MASK_LAYER)  # a later mask of ours replaces it
    adata.layers["mine"] = np.ones(adata.shape)
    assert fitted(adata, setup={"mask": "mine"}).get_latent().shape == (40, 3)


def test_streams_agree_with_memory(simulated: Simulate, fitted: Fit, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    adata = simulated(120, 70)
    x = np.nan_to_num(adata.X)
    known = ~np.isnan(adata.X)
    sparse = AnnData(sp.csr_matrix(x))
    sparse.layers["observed"] = sp.csr_matrix(known.astype(np.uint8))
    dense, plain = AnnData(adata.X), {"mask": "observed"}
    reference = fitted(sparse, setup=plain).get_latent()
    sparse.write_h5ad(tmp_path / "s.h5ad")
    sparse.write_zarr(tmp_path / "s.zarr")
    dense.write_h5ad(tmp_path / "d.h5ad")
    array = zarr.create_array(store=str(tmp_path / "a.zarr"), shape=adata.shape, dtype="f4", chunks=(50, 70))
    array[:] = adata.X
    group = zarr.open(str(tmp_path / "s.zarr"), mode="r")
    from anndata.io import sparse_dataset

    on_zarr = AnnData(sparse_dataset(group["X"]), layers={"observed": sparse_dataset(group["layers/observed"])})
    streams = {
        "backed csr": (anndata.read_h5ad(tmp_path / "s.h5ad", backed="r"), plain),
        "backed dense": (anndata.read_h5ad(tmp_path / "d.h5ad", backed="r"), {}),
        "zarr csr": (on_zarr, plain),
        "zarr dense": (AnnData(array), {}),
    }
    for name, (held, setup) in streams.items():
        for chunk_size in (None, 33):
            latent = fitted(held, setup=setup, chunk_size=chunk_size).get_latent()
            np.testing.assert_allclose(latent, reference, atol=1e-5 * np.abs(reference).max(), err_msg=name)


@pytest.mark.parametrize("chunk_size", [1, 7, 50, 120, 1000])
def test_chunks_of_any_size_agree(chunk_size: int, simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(120, 70)
    reference = fitted(adata).get_latent()
    latent = fitted(adata, chunk_size=chunk_size).get_latent()
    np.testing.assert_allclose(latent, reference, atol=1e-5 * np.abs(reference).max())


def test_dask_rows_agree(simulated: Simulate, fitted: Fit) -> None:
    da = pytest.importorskip("dask.array")
    adata = simulated(120, 70)
    reference = fitted(adata).get_latent()
    lazy = AnnData(da.from_array(adata.X, chunks=(40, 70)))
    latent = fitted(lazy, chunk_size=40).get_latent()
    np.testing.assert_allclose(latent, reference, atol=1e-5 * np.abs(reference).max())


class LikeDask:
    """What a dask array offers of what is used, for environments without dask."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.shape, self.dtype, self.computed = x, x.shape, x.dtype, 0

    def __getitem__(self, rows: slice) -> LikeDask:
        return LikeDask(self.x[rows])

    def compute(self) -> np.ndarray:
        return self.x


def test_lazy_arrays_are_computed_by_rows(simulated: Simulate) -> None:
    from cellsmith.math import missing

    adata = simulated(30, 20)
    rows = missing.rows_of(LikeDask(adata.X))
    assert not rows.in_memory
    np.testing.assert_array_equal(rows.read(3, 9), adata.X[3:9])


def broken(simulated: Simulate, value: float, *, observed: bool = False) -> AnnData:
    adata = simulated(30, 20, mechanism="complete")
    adata.X[4, 6] = value
    if observed:
        adata.layers["m"] = np.ones(adata.shape)
    return adata


@pytest.mark.parametrize(("value", "mask"), [(np.inf, "nan"), (-np.inf, None), (np.nan, None), (np.nan, "m")])
def test_observed_entries_that_are_no_numbers_are_named(
    value: float, mask: Any, simulated: Simulate, fitted: Fit
) -> None:
    for sparse in (False, True):
        adata = broken(simulated, value, observed=True)
        adata.X = sp.csr_matrix(adata.X) if sparse else adata.X
        with pytest.raises(SetupError, match=r"cell '4', feature 'g6' is (inf|-inf|nan), but the mask says"):
            fitted(adata, setup={"mask": mask})


def test_values_under_a_missing_entry_are_never_read(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(30, 20, mechanism="complete")
    adata.layers["m"] = np.ones(adata.shape)
    adata.layers["m"][4, 6] = 0
    reference = fitted(adata, setup={"mask": "m"}).get_latent()
    for value in (np.nan, np.inf, 1e30):
        adata.X[4, 6] = value
        for held in (adata.X, sp.csr_matrix(adata.X)):
            other = AnnData(held, layers={"m": adata.layers["m"]})
            np.testing.assert_allclose(fitted(other, setup={"mask": "m"}).get_latent(), reference, atol=1e-5)


@pytest.mark.parametrize(
    ("setup", "text"),
    [
        ({"mask": "zero"}, 'mask="zero" found NaN in row 4'),
        ({"mask": np.ones((30, 19))}, r"mask has shape \(30, 19\); expected \(30, 20\)"),
        ({"mask": np.full((30, 20), 1.5)}, "mask holds 1.5 .* expected values from 0 to 1"),
        ({"mask": np.full((30, 20), -0.5)}, "mask holds -0.5"),
        ({"mask": np.full((30, 20), np.nan)}, "mask holds nan"),
        ({"mask": "two"}, r"\.layers\['two'\] holds 2.0"),
        ({"mask": "nam"}, "Did you mean 'nan'"),
        ({"layer": "log"}, "layer='log' is not in .layers"),
        ({"batch_key": "batch"}, "batch_key='batch' is not a column"),
        ({"mask": np.ones(30)}, "expected two dimensions"),
        ({"layer": "words"}, "expected real numbers"),
        ({"mask": "odd"}, "marks'\\] is 'both'"),
    ],
)
def test_masks_that_cannot_be_used(setup: dict[str, Any], text: str, simulated: Simulate, fitted: Fit) -> None:
    adata = broken(simulated, np.nan)
    adata.layers["two"] = np.full(adata.shape, 2.0)
    adata.layers["words"] = np.full(adata.shape, "a", dtype=object)
    adata.layers["odd"] = np.ones(adata.shape)
    adata.uns["odd"] = {"marks": "both"}
    with pytest.raises(SetupError, match=text):
        fitted(adata, setup=setup)
    assert MASK_LAYER not in adata.layers


def test_zeros_and_raw_counts_are_warned_of(counts: np.ndarray) -> None:
    adata = AnnData(sp.csr_matrix(counts.astype(np.float32)))
    with pytest.warns(DataWarning, match="raw counts"), pytest.warns(MissingnessWarning, match="On UMI counts"):
        BCPCA.setup_anndata(adata, mask="zero")
    logged = AnnData(np.log1p(counts).astype(np.float32))
    with pytest.warns(MissingnessWarning) as caught:
        BCPCA.setup_anndata(logged, mask="zero")
    assert len(caught) == 1


def test_a_file_stored_by_columns_is_refused(simulated: Simulate, fitted: Fit, tmp_path: Path) -> None:
    AnnData(sp.csc_matrix(np.nan_to_num(simulated(30, 20).X))).write_h5ad(tmp_path / "c.h5ad")
    with pytest.raises(SetupError, match=r"stored by columns .* expected CSR"):
        fitted(anndata.read_h5ad(tmp_path / "c.h5ad", backed="r"), setup={"mask": "zero"})


def test_odd_but_harmless_data(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(60, 40)
    adata.X[:, 3] = np.where(np.isnan(adata.X[:, 3]), np.nan, 2.5)  # constant
    adata.var_names = ["same"] * 40
    latent = fitted(adata).get_latent()
    assert np.isfinite(latent).all()
    boolean = AnnData(np.random.default_rng(0).random((60, 40)) < 0.5)
    assert np.isfinite(fitted(boolean, setup={"mask": None}).get_latent()).all()
