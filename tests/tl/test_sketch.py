"""tl.sketch: one signature for real cells and metacells; strata, small groups, integers, provenance, bad input."""

from __future__ import annotations

import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import cellsmith as cs
from cellsmith._errors import MissingExtraError, SetupError
from cellsmith.math import matching

SELECTIONS = ("random", "herding", "kcenter", "kernel_herding")
SIZES = {"a": 30, "b": 12, "c": 2}


@pytest.fixture
def cells() -> ad.AnnData:
    """Three groups in two batches; the rarest has two cells."""
    rng = np.random.default_rng(0)
    codes = rng.permutation(np.repeat([0, 1, 2], list(SIZES.values())))
    rates = rng.gamma(1.0, 3.0, size=(3, 20))
    x = rng.poisson(rates[codes]) + (np.arange(20) == 0)
    adata = ad.AnnData(sparse.csr_matrix(x, dtype=np.float32))
    # Not alphabetical: the order of the categories has to survive.
    adata.obs["kind"] = pd.Categorical.from_codes(codes, ["c2", "a", "b"])
    adata.obs["kind"] = adata.obs["kind"].cat.rename_categories({"c2": "a", "a": "b", "b": "c"})
    adata.obs["batch"] = pd.Categorical(np.where(np.arange(44) % 3 == 0, "one", "two"))
    adata.obs["kind"] = adata.obs["kind"].cat.reorder_categories(["c", "a", "b"])
    adata.uns["kind_colors"] = np.array(["#111111", "#222222", "#333333"], dtype=object)
    adata.obsm["rep"] = rng.normal(size=(44, 3))
    return adata


def rows(adata: ad.AnnData) -> dict[str, int]:
    return adata.obs["kind"].value_counts().to_dict()


@pytest.mark.parametrize("method", SELECTIONS)
def test_real_cells_are_those_of_the_source_and_small_groups_are_whole(cells, method) -> None:
    before = cells.copy()
    small = cs.tl.sketch(cells, "kind", 4, method=method)
    assert rows(small) == {"a": 4, "b": 4, "c": 2}
    indices = small.uns["sketch"]["indices"]
    assert len(set(indices)) == 10
    assert (np.diff(indices) > 0).all()
    np.testing.assert_array_equal(small.X.toarray(), cells.X[indices].toarray())
    assert list(small.obs_names) == list(cells.obs_names[indices])
    assert list(small.obs["kind"].cat.categories) == ["c", "a", "b"]
    weight = small.obs.groupby("kind", observed=True)["sketch_weight"].sum()
    assert weight.to_dict() == pytest.approx(SIZES)
    assert (small.obs["sketch_n_source_cells"] == 1).all()
    # The source has not changed.
    assert list(cells.uns) == list(before.uns)
    pd.testing.assert_frame_equal(cells.obs, before.obs)


@pytest.mark.parametrize("summary", ["sum", "mean_log"])
def test_metacells_are_integers_and_never_cross_a_group(cells, summary) -> None:
    small = cs.tl.sketch(cells, "kind", 3, method="metacell", method_kwargs={"summary": summary})
    assert small.X.dtype == np.int32
    assert sparse.issparse(small.X)
    assert rows(small) == {"a": 3, "b": 3, "c": 2}
    assert small.obs["is_synthetic"].all()
    assert not small.obs.isna().any().any()
    assigned = small.uns["sketch"]["assignment"]
    assert assigned.dtype == np.int32
    # Seurat's silent fault: label by label, every source cell finds its own group again.
    assert (small.obs["kind"].to_numpy()[assigned] == cells.obs["kind"].to_numpy()).all()
    np.testing.assert_array_equal(np.bincount(assigned), small.obs["sketch_n_source_cells"])
    assert list(small.uns["kind_colors"]) == list(cells.uns["kind_colors"])
    assert small.obs["sketch_weight"].sum() == pytest.approx(44)


def test_summed_metacells_keep_every_count_and_equal_scanpy(cells) -> None:
    small = cs.tl.sketch(cells, "kind", 3, method="metacell")
    for name in SIZES:
        own = small[small.obs["kind"] == name].X.sum(axis=0)
        np.testing.assert_array_equal(own, cells[cells.obs["kind"] == name].X.sum(axis=0))
    group = cells.copy()
    group.obs["group"] = pd.Categorical(small.uns["sketch"]["assignment"])
    theirs = sc.get.aggregate(group, "group", func="sum").layers["sum"]
    np.testing.assert_array_equal(
        small.X.toarray(), np.asarray(theirs.todense() if sparse.issparse(theirs) else theirs)
    )
    np.testing.assert_array_equal(small.obs["sketch_library"], small.X.sum(axis=1).A1)


def test_mean_log_metacells_are_read_by_their_own_library(cells) -> None:
    small = cs.tl.sketch(cells, "kind", 3, method="metacell", method_kwargs={"summary": "mean_log"})
    log, library = small.layers["sketch_log"], small.obs["sketch_library"].to_numpy()[:, None]
    assigned, phi = small.uns["sketch"]["assignment"], np.log1p(1e3 * cells.X.toarray() / cells.X.sum(axis=1).A)
    for j in range(small.n_obs):
        np.testing.assert_allclose(log[j], phi[assigned == j].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.log1p(1e3 * small.layers["sketch_expected"] / library), log, rtol=1e-5)
    # Jensen: the mean of logs holds less mass than the sum, and rounding keeps that total.
    expected = small.layers["sketch_expected"]
    assert (expected.sum(axis=1) <= library[:, 0] * (1 + 1e-6)).all()
    np.testing.assert_array_equal(small.X.sum(axis=1).A1, np.rint(expected.sum(axis=1)))
    assert np.abs(small.X.toarray() - expected).max() < 1


def test_one_cell_is_the_nearest_to_the_mean_and_a_group_of_its_own_size_is_itself(cells) -> None:
    small = cs.tl.sketch(cells, "kind", 1, method="herding", use_rep="rep")
    for i in small.uns["sketch"]["indices"]:
        mask = (cells.obs["kind"] == cells.obs["kind"].iloc[i]).to_numpy()
        x = cells.obsm["rep"]
        distance = np.linalg.norm(x - x[mask].mean(axis=0), axis=1)
        assert distance[i] == distance[mask].min()
    whole = cs.tl.sketch(cells, "kind", 30, method="metacell")
    np.testing.assert_array_equal(
        np.sort(whole.X.toarray(), axis=0), np.sort(cells.X.toarray().astype(np.int32), axis=0)
    )


def test_herding_equals_a_plain_loop(cells) -> None:
    chosen = set(cs.tl.sketch(cells, "kind", {"a": 6, "b": 5, "c": 1}, method="herding", use_rep="rep").obs_names)
    picked = set()
    for name, k in {"a": 6, "b": 5, "c": 1}.items():
        members = np.flatnonzero(cells.obs["kind"] == name)
        x, taken = cells.obsm["rep"][members], []
        for m in range(k):
            gap = [np.linalg.norm(x.mean(0) - (x[taken].sum(0) + x[i]) / (m + 1)) for i in range(len(x))]
            taken.append(min((i for i in range(len(x)) if i not in taken), key=gap.__getitem__))
        picked |= set(cells.obs_names[members[taken]])
    assert chosen == picked


def test_strata_of_batches_and_fractions(cells) -> None:
    small = cs.tl.sketch(cells, "kind", 0.25, batch_key="batch")
    found = small.obs.groupby(["kind", "batch"], observed=True).size()
    sizes = cells.obs.groupby(["kind", "batch"], observed=True).size()
    assert found.to_dict() == np.maximum(1, np.rint(0.25 * sizes)).astype(int).to_dict()
    table = small.uns["sketch"]["groups"]
    assert table["n_source_cells"].sum() == 44
    assert set(table["kind"]) == set("abc")
    meta = cs.tl.sketch(cells, "kind", 2, batch_key="batch", method="metacell")
    assigned = meta.uns["sketch"]["assignment"]
    assert (meta.obs["batch"].to_numpy()[assigned] == cells.obs["batch"].to_numpy()).all()


def test_cells_without_a_group_are_left_out_and_counted(cells) -> None:
    cells.obs.loc[cells.obs_names[:5], "kind"] = np.nan
    small = cs.tl.sketch(cells, "kind", 2, method="metacell")
    block = small.uns["sketch"]
    assert block["n_left_out"] == 5
    assert (block["assignment"][:5] == -1).all()
    assert small.obs["sketch_weight"].sum() == pytest.approx(39)


@pytest.mark.parametrize("method", [*SELECTIONS, "metacell"])
def test_a_seed_repeats_and_the_global_generators_stay(cells, method) -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (cs.tl.sketch(cells, "kind", 4, method=method, rng=3) for _ in range(2))
    np.testing.assert_array_equal(first.X.toarray(), second.X.toarray())
    assert first.uns["sketch"]["provenance"]["seed"] == 3
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    if method == "random":
        other = cs.tl.sketch(cells, "kind", 4, method=method, random_state=4)
        assert list(other.obs_names) != list(first.obs_names)


@pytest.mark.parametrize("method", [*SELECTIONS, "metacell"])
def test_no_label_is_read_without_groupby(cells, method) -> None:
    first = cs.tl.sketch(cells, None, 6, method=method)
    cells.obs["kind"] = cells.obs["kind"].to_numpy()[::-1]
    second = cs.tl.sketch(cells, None, 6, method=method)
    assert first.n_obs == 6
    np.testing.assert_array_equal(first.X.toarray(), second.X.toarray())


def test_renaming_groups_changes_only_names(cells) -> None:
    first = cs.tl.sketch(cells, "kind", 3, method="metacell")
    cells.obs["kind"] = cells.obs["kind"].cat.rename_categories({"a": "z", "b": "y", "c": "x"})
    second = cs.tl.sketch(cells, "kind", 3, method="metacell")
    np.testing.assert_array_equal(first.X.toarray(), second.X.toarray())
    assert set(second.obs["kind"]) == set("xyz")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_dense_and_sparse_and_permuted_cells_give_the_same_sums(seed) -> None:
    rng = np.random.default_rng(seed)
    x = rng.poisson(2.0, size=(12, 5)).astype(np.float32) + 1
    obs = pd.DataFrame({"kind": rng.choice(list("ab"), 12)}, index=[f"c{i}" for i in range(12)])
    dense = ad.AnnData(x, obs=obs)
    csr = ad.AnnData(sparse.csr_matrix(x), obs=obs.copy())
    order = rng.permutation(12)
    sums = [cs.tl.sketch(a, "kind", 1, method="metacell").X.toarray() for a in (dense, csr, csr[order])]
    np.testing.assert_array_equal(sums[0], sums[1])
    np.testing.assert_array_equal(sums[0], sums[2])


@pytest.mark.parametrize("method", ["herding", "metacell"])
def test_results_survive_files_and_feed_other_tools(cells, method, tmp_path) -> None:
    cells.layers["counts"] = cells.X.copy()
    cells.X = cells.X.log1p()
    small = cs.tl.sketch(cells, "kind", 3, method=method, layer="counts", key_added="mini")
    for path in (tmp_path / "a.h5ad", tmp_path / "a.zarr"):
        (small.write_h5ad if path.suffix == ".h5ad" else small.write_zarr)(path)
        back = ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)
        np.testing.assert_array_equal(back.layers["counts"].toarray(), small.layers["counts"].toarray())
        assert set(back.uns["mini"]) == set(small.uns["mini"])
    again = cs.tl.sketch(small, "kind", 2, method="random", layer="counts", key_added="mini")
    assert rows(again) == {"a": 2, "b": 2, "c": 2}


def test_cells_in_a_file(cells, tmp_path) -> None:
    cells.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    for method in ("random", "metacell"):
        a, b = (cs.tl.sketch(x, "kind", 3, method=method) for x in (backed, cells))
        np.testing.assert_array_equal(a.X.toarray(), b.X.toarray())


def test_geosketch_is_seeded_or_names_its_extra(cells, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "geosketch", None)
        with pytest.raises(MissingExtraError, match=r"cellsmith\[sketch\]"):
            cs.tl.sketch(cells, "kind", 3, method="geosketch")
    gs = pytest.importorskip("geosketch", reason="cellsmith[sketch] is not installed").gs
    first, second, other = (cs.tl.sketch(cells, None, 8, method="geosketch", rng=r) for r in (0, 0, 1))
    assert list(first.obs_names) == list(second.obs_names)
    assert list(first.obs_names) != list(other.obs_names)
    from cellsmith._rng import Streams

    x = matching.principal_components(matching.log_normalize(cells.X, scale=1e3), seed=Streams(0).integer("init"))
    direct = gs(x, 8, seed=Streams(0).integer("sample", 0), replace=False)
    assert sorted(direct) == list(first.uns["sketch"]["indices"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "hearding"}, "Did you mean 'herding'"),
        ({"groupby": "kinds"}, "Did you mean 'kind'"),
        ({"n_per_group": 0}, "integer from 1 on"),
        ({"n_per_group": 1.5}, "fraction between 0 and 1"),
        ({"n_per_group": {"a": 1, "b": 1}}, "lacks 1 groups, first 'c'"),
        ({"n_per_group": {"d": 1}}, "names the group 'd'"),
        ({"n_per_group": {"a": 1}, "groupby": None}, "no groups"),
        ({"method": "metacell", "method_kwargs": {"sumary": "sum"}}, "Did you mean 'summary'"),
        ({"method": "metacell", "method_kwargs": {"summary": "mean"}}, "summary='mean'"),
        ({"method": "herding", "method_kwargs": {"summary": "sum"}}, "no option 'summary'"),
        ({"method": "herding", "use_rep": "reps"}, "Did you mean 'rep'"),
        ({"method": "metacell", "layer": "logs"}, "logs"),
        ({"batch_key": "batches"}, "Did you mean 'batch'"),
        ({"key_added": "a/b"}, "slash"),
    ],
)
def test_what_was_typed_wrongly_is_named(cells, change, message) -> None:
    arguments = {"groupby": "kind", "n_per_group": 3, **change}
    groupby, n = arguments.pop("groupby"), arguments.pop("n_per_group")
    with pytest.raises(SetupError, match=message):
        cs.tl.sketch(cells, groupby, n, **arguments)


def test_what_are_no_counts_is_named_where_counts_are_read(cells) -> None:
    cells.X = cells.X.log1p()
    with pytest.raises(SetupError, match="raw counts"):
        cs.tl.sketch(cells, "kind", 3, method="metacell")
    assert cs.tl.sketch(cells, "kind", 3, method="herding", use_rep="rep").n_obs == 8
    cells.obsm["rep"][7] = np.nan
    with pytest.raises(SetupError, match="first '7'"):
        cs.tl.sketch(cells, "kind", 3, method="herding", use_rep="rep")
    cells.obs["kind"] = pd.Categorical([None] * 44, categories=["a"])
    with pytest.raises(SetupError, match="missing for all 44"):
        cs.tl.sketch(cells, "kind", 3)
