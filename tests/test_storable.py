"""Whatever `storable` lets through survives h5ad and zarr; everything else is refused with its place."""

from __future__ import annotations

import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from cellsmith._errors import SetupError
from cellsmith._record import Result, provenance, read, write
from cellsmith._storable import storable

N, G = 6, 4
FORMATS = ("h5ad", "zarr2", "zarr3")


def _through_file(adata: AnnData, path, form: str) -> AnnData:
    """Write and read back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "h5ad":
            adata.write_h5ad(path / "a.h5ad")
            return anndata.read_h5ad(path / "a.h5ad")
        with anndata.settings.override(zarr_write_format=int(form[-1])):
            adata.write_zarr(path / f"a_{form}.zarr")
        return anndata.read_zarr(path / f"a_{form}.zarr")


def _equal(found: object, expected: object, where: str = "") -> None:
    if isinstance(expected, dict):
        assert isinstance(found, dict), where
        assert set(found) == set(expected), where
        for key, value in expected.items():
            _equal(found[key], value, f"{where}/{key}")
    elif isinstance(expected, pd.Categorical):
        pd.testing.assert_extension_array_equal(pd.Categorical(found), expected)
    elif sparse.issparse(expected):
        assert found.dtype == expected.dtype
        assert (found != expected).nnz == 0
    elif isinstance(expected, np.ndarray) and expected.dtype.names:
        assert expected.dtype.names == found.dtype.names
        for name in expected.dtype.names:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=where)
    elif isinstance(expected, np.ndarray):
        assert found.shape == expected.shape, where
        assert found.dtype.kind == expected.dtype.kind or expected.dtype == object, where
        np.testing.assert_array_equal(found, expected, err_msg=where)
    else:
        np.testing.assert_equal(found, expected, err_msg=where)


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\\0"), min_size=1, max_size=8).map(
    lambda name: "n" + name
)
dtypes = st.sampled_from(["bool", "int8", "uint16", "int64", "uint64", "float16", "float32", "float64", ">f4", ">i8"])
arrays = dtypes.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(max_dims=3, min_side=0, max_side=4)))
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    text,
    arrays,
    st.lists(text, max_size=4),
    st.lists(st.floats(), max_size=4).map(tuple),
    st.lists(st.integers(-(2**31), 2**31), max_size=4),
    st.lists(st.sampled_from(["a", "b", "ä"]), max_size=5).map(pd.Categorical),
    st.lists(text, max_size=3).map(lambda values: pd.Series(values, dtype=object)),
)
blocks = st.dictionaries(
    names, st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=3)), max_size=4
)


@pytest.mark.parametrize("form", FORMATS)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(block=blocks)
def test_every_block_survives(form, block):
    stored = storable(block)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "h5ad":
            group = h5py.File("memory.h5", "w", driver="core", backing_store=False)
        else:
            group = zarr.open_group(zarr.storage.MemoryStore(), mode="w", zarr_format=int(form[-1]))
        anndata.io.write_elem(group, "block", stored)
        _equal(anndata.io.read_elem(group["block"]), stored)


def _full() -> AnnData:
    adata = AnnData(np.zeros((N, G), np.float32))
    graph = sparse.random(N, N, 0.3, "csr", rng=np.random.default_rng(0))
    record = provenance(
        method="scsiameseclu",
        seed=2**63 - 1,
        device="cpu",
        dtype="float32",
        n_obs=N,
        var_names=adata.var_names,
        inputs={"layer": "counts"},
        histories={"autoencode/train_loss": np.arange(3.0), "autoencode/empty": []},
        warnings=["one: ünïcode", "two / slash in a value"],
    )
    ranked = np.array([("g1", "g2"), ("g3", "g1")], dtype=[("0", "O"), ("1", "O")])
    scores = np.array([(1.0, 2.0), (3.0, 4.0)], dtype=[("0", "f4"), ("1", "f4")])
    result = Result(
        "scsiameseclu",
        obs={
            "{k}": pd.Categorical(["a", "b", "a", None, "b", "a"], categories=["b", "a", "unused"], ordered=True),
            "{k}_confidence": torch.linspace(0, 1, N),
            "{k}_rejected": np.array([True, False] * 3),
            "{k}_margin": pd.array([1, None, 2, 3, 4, 5], dtype="Int64"),
            "{k}_entropy": pd.array([True, None] * 3, dtype="boolean"),
            "{k}_annotation": np.array([None] * N, dtype=object),
            "is_synthetic": np.zeros(N, bool),
        },
        obsm={"X_{k}": np.full((N, 2), np.nan, np.float16), "{k}_proba": np.ones((N, 1), ">f8")},
        obsp={"{k}_connectivities": graph, "{k}_distances": sparse.coo_matrix(graph)},
        varm={"{k}_loadings": torch.ones(G, 2, dtype=torch.bfloat16)},
        layers={"{k}_expected": sparse.csc_matrix(np.eye(N, G))},
        uns={
            "provenance": record,
            "classes": ("a", "b"),
            "empty": {},
            "matrix": sparse.csr_array(np.eye(3)),
            "table": pd.DataFrame({"term": ["x/y"], "p": [0.5]}, index=["row"]),
            "empty_table": pd.DataFrame({"term": pd.Series([], dtype=object), "p": pd.Series([], dtype=float)}),
            1: {"scalars": {"b": np.bool_(True), "i": np.uint8(3), "f": np.float32(0.5), "s": np.str_("x")}},
        },
        extra_uns={"{k}_markers": {"params": {"groupby": "k"}, "names": ranked, "scores": scores}},
    )
    write(adata, "k", result)
    return adata


@pytest.mark.parametrize("form", FORMATS)
def test_every_slot_survives(form, tmp_path):
    adata = _full()
    back = _through_file(adata.copy(), tmp_path, form)
    pd.testing.assert_frame_equal(back.obs, adata.obs)
    for slot in ("obsm", "obsp", "varm", "layers", "uns"):
        _equal(dict(getattr(back, slot)), dict(getattr(adata, slot)), slot)
    assert read(back, "k")["provenance"]["seed"] == 2**63 - 1


@pytest.mark.parametrize("form", FORMATS)
def test_what_was_read_can_be_stored_again(form, tmp_path):
    adata = _full()
    block = read(_through_file(adata.copy(), tmp_path, form), "k")
    _equal(storable(block), read(adata, "k"))


def test_conversions():
    assert storable({1: None, "a": np.float32(0.5), "b": np.array(3)}) == {"a": 0.5, "b": 3}
    assert storable(range(3)).tolist() == [0, 1, 2]
    assert storable(["a", "b"]).dtype == object
    assert storable(torch.arange(3)).tolist() == [0, 1, 2]
    assert storable(torch.tensor(2.0)) == 2.0
    table = storable(pd.DataFrame({"p": [0.1]}, index=pd.Index(["x"], name="gene")))
    assert {name: list(values) for name, values in table.items()} == {"gene": ["x"], "p": [0.1]}
    assert list(storable(pd.DataFrame({"p": [0.1]}))) == ["p"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "a NoneType"),
        (object(), "a object"),
        ({1, 2}, "a set"),
        (b"bytes", "a bytes"),
        (1j, "a complex"),
        (2**63, "at most 64 bits"),
        ("a\0", "the string"),
        (["\ud800"], "half surrogate"),
        ([1, "a"], "mixes strings"),
        ([None, 1.0], "NoneType"),
        ([[1], [1, 2]], "ragged"),
        ([{"a": 1}], "the entry"),
        (np.array(["2020-01-01"], "datetime64[D]"), "datetime64"),
        (np.ma.array([1.0], mask=[True]), "masked"),
        (np.zeros(1, "S3"), "S3"),
        (np.zeros(1, np.longdouble), "float128|longdouble|64 bits"),
        (np.zeros(1, [("a", "M8[D]")]), "field 'a'"),
        (pd.MultiIndex.from_tuples([(1, 2)]), "MultiIndex"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "two columns 'a'"),
        (pd.DataFrame({"a/b": [1]}), "a slash"),
        ({"a": {"b/c": 1}}, r"A key of \.uns\['a'\] is 'b/c'"),
        ({1: 0, "1": 0}, "two keys that read '1'"),
        ({1.5: 0}, "the key 1.5"),
        ({"..": 0}, "dots"),
        ({"__x": 0}, "reserved by zarr"),
        (torch.eye(2).to_sparse(), "layout torch.sparse_coo"),
    ],
)
def test_the_rest_is_refused(value, message):
    with pytest.raises(SetupError, match=message):
        storable(value)
