"""Writing is all or nothing, ownership is respected, provenance is complete."""

from __future__ import annotations

from types import SimpleNamespace

import mudata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from anndata import AnnData
from scipy import sparse

from cellsmith import _record
from cellsmith._errors import SetupError, SizeError
from cellsmith._record import Result, check_free, extend, hash_names, keys_of, provenance, read, write

N, G = 12, 5


@pytest.fixture
def adata() -> AnnData:
    x = sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, (N, G)).astype(np.float32))
    made = AnnData(x)
    made.obs["cell_type"] = pd.Categorical(["T", "B", "NK"] * 4)
    made.obsm["X_pca"] = np.zeros((N, 2))
    made.uns["neighbors"] = {"params": {"n_neighbors": 15}}
    return made


def _result(method: str = "scagc", **changes) -> Result:
    graph = sparse.eye(N, format="csr")
    parts = {
        "obs": {"{k}": ["0", "1", "2"] * 4, "{k}_confidence": np.linspace(0, 1, N)},
        "obsm": {"X_{k}": np.ones((N, 3), np.float32), "{k}_proba": np.full((N, 3), 1 / 3)},
        "obsp": {"{k}_connectivities": graph, "{k}_distances": graph},
        "varm": {"{k}_loadings": np.ones((G, 3))},
        "layers": {"{k}_expected": np.ones((N, G))},
        "uns": {"params": {"n_clusters": 3, "dropped": None}, "classes": ["0", "1", "2"]},
    }
    return Result(method, **{**parts, **changes})


def _picture(adata: AnnData) -> dict[str, object]:
    """Names in order and identities of everything in the object."""
    slots = ("obsm", "obsp", "varm", "layers", "uns")
    picture = {slot: [(name, id(value)) for name, value in getattr(adata, slot).items()] for slot in slots}
    return {**picture, "obs": adata.obs.to_dict(), "columns": list(adata.obs.columns), "X": id(adata.X)}


def test_everything_lands_where_the_page_says(adata):
    write(adata, "run", _result())
    assert adata.obs["run"].dtype == "category"
    assert list(adata.obs["run"].cat.categories) == ["0", "1", "2"]
    assert adata.obsm["X_run"].shape == (N, 3)
    assert set(adata.obsp) == {"run_connectivities", "run_distances"}
    assert adata.varm["run_loadings"].shape == (G, 3)
    assert adata.layers["run_expected"].shape == (N, G)
    block = read(adata, "run")
    assert block["params"] == {"n_clusters": 3}
    assert block["provenance"]["method"] == "scagc"
    assert list(block["provenance"]["outputs"]) == [
        "layers/run_expected",
        "obs/run",
        "obs/run_confidence",
        "obsm/X_run",
        "obsm/run_proba",
        "obsp/run_connectivities",
        "obsp/run_distances",
        "uns/run",
        "varm/run_loadings",
    ]


def test_dense_values_are_copies(adata):
    embedding = np.zeros((N, 2))
    tensor = torch.zeros(N)
    write(adata, "k", Result("scld", obsm={"X_{k}": embedding}, obs={"{k}_library": tensor}, uns={"a": embedding}))
    embedding += 1
    tensor += 1
    assert not adata.obsm["X_k"].any()
    assert not adata.obs["k_library"].any()
    assert not adata.uns["k"]["a"].any()


def test_rerun_replaces_its_own_and_drops_what_it_no_longer_has(adata):
    before = _picture(adata)
    write(adata, "run", _result())
    write(adata, "run", Result("scagc", obs={"{k}": ["a"] * N}, uns={"new": 1}))
    assert list(adata.obs.columns) == ["cell_type", "run"]
    assert list(adata.obs["run"].cat.categories) == ["a"]
    assert set(adata.uns["run"]) == {"new", "provenance"}
    after = _picture(adata)
    assert {slot: after[slot] for slot in ("obsm", "obsp", "varm", "layers")} == {
        slot: before[slot] for slot in ("obsm", "obsp", "varm", "layers")
    }


def test_rerun_works_after_a_file(adata, tmp_path):
    from anndata import read_h5ad

    write(adata, "run", _result())
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = read_h5ad(tmp_path / "a.h5ad")
    write(again, "run", Result("scagc"))
    assert list(again.obs.columns) == ["cell_type"]
    assert not again.obsp
    assert list(again.obsm) == ["X_pca"]


def test_two_keys_live_side_by_side(adata):
    write(adata, "a", _result())
    write(adata, "b", _result())
    write(adata, "a", Result("scagc"))
    assert "X_a" not in adata.obsm
    assert "X_b" in adata.obsm


def test_another_methods_key_is_refused(adata):
    write(adata, "run", _result())
    before = _picture(adata)
    with pytest.raises(SetupError, match=r"\.uns\['run'\] already exists and was written by 'scagc'.*overwrite=True"):
        write(adata, "run", Result("grit", obs={"{k}_raw": ["a"] * N}))
    assert _picture(adata) == before
    write(adata, "run", Result("grit", obs={"{k}_raw": ["a"] * N}), overwrite=True)
    assert list(adata.obs.columns) == ["cell_type", "run_raw"]
    assert not adata.obsp
    assert read(adata, "run")["provenance"]["method"] == "grit"


def test_taken_names_are_refused_before_anything_is_computed(adata):
    check_free(adata, "run", "scagc", names={"obs": ("{k}",)})
    write(adata, "run", _result())
    assert keys_of(adata, "scagc") == ["run"]
    assert keys_of(adata, "grit") == []
    check_free(adata, "run", "scagc", names={"obs": ("{k}",)})  # its own, to be replaced
    with pytest.raises(SetupError, match=r"\.uns\['run'\] already exists and was written by 'scagc'"):
        check_free(adata, "run", "grit")
    with pytest.raises(SetupError, match=r"\.obs\['cell_type'\] already exists and was not written by cellsmith"):
        check_free(adata, "cell_type", "scagc", names={"obs": ("{k}",)})
    check_free(adata, "run", "grit", overwrite=True)


def test_a_foreign_block_is_refused(adata):
    with pytest.raises(SetupError, match=r"\.uns\['neighbors'\] already exists and was not written by cellsmith"):
        write(adata, "neighbors", Result("scagc"))
    write(adata, "neighbors", Result("scagc"), overwrite=True)
    assert "params" not in adata.uns["neighbors"]


@pytest.mark.parametrize("key", ["pca", "cell_type"])
def test_the_users_columns_and_embeddings_are_refused(adata, key):
    result = Result("scagc", obs={"{k}": ["a"] * N}, obsm={"X_{k}": np.ones((N, 2))})
    with pytest.raises(SetupError, match=f"already exists and was not written by cellsmith.*key_added='{key}_2'"):
        write(adata, key, result)
    assert key not in adata.uns
    write(adata, key, result, overwrite=True)
    assert (adata.obsm[f"X_{key}"] == 1).all()


def test_a_name_of_another_key_is_refused(adata):
    write(adata, "x", Result("scsiameseclu", obs={"{k}_annotation": ["a"] * N}))
    with pytest.raises(SetupError, match=r"\.obs\['x_annotation'\] already exists and was written under the key 'x'"):
        write(adata, "x_annotation", Result("scagc", obs={"{k}": ["a"] * N}))


def test_outputs_without_their_block_are_refused(adata):
    write(adata, "run", _result())
    del adata.uns["run"]
    with pytest.raises(SetupError, match=r"already exists and was not written by cellsmith \(8 names are taken\)"):
        write(adata, "run", _result())


def test_an_edited_record_never_deletes_the_users_columns(adata):
    write(adata, "run", _result())
    adata.uns["run"]["provenance"]["outputs"] = np.array(["obs/cell_type", "obsm/X_pca", "nonsense"], dtype=object)
    write(adata, "run", Result("scagc"))
    assert "cell_type" in adata.obs
    assert "X_pca" in adata.obsm


def test_is_synthetic_is_a_fact_that_stays(adata):
    write(adata, "scld", Result("scld", obs={"is_synthetic": np.ones(N, bool), "{k}_library": np.ones(N)}))
    write(adata, "scld", Result("scld", obs={"{k}_log_density": np.ones(N)}))
    assert adata.obs["is_synthetic"].all()
    assert "scld_library" not in adata.obs
    adata.obs["is_synthetic"] = False
    with pytest.raises(SetupError, match="is_synthetic"):
        write(adata, "scdd", Result("scdd", obs={"is_synthetic": np.ones(N, bool)}))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_object_as_it_was(adata, monkeypatch, first, error):
    if first:
        write(adata, "run", _result())
    before = _picture(adata)
    original, calls = _record._put, []
    total = 9
    for failing in range(total):
        calls.clear()

        def put(*arguments, failing=failing):
            calls.append(arguments)
            if len(calls) == failing + 1:
                raise error("disk")
            original(*arguments)

        monkeypatch.setattr(_record, "_put", put)
        with pytest.raises(error, match="disk"):
            write(adata, "run", _result(obs={"{k}": ["z"] * N, "{k}_margin": np.ones(N)}))
        assert _picture(adata) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs": {"{k}": np.ones(N - 1)}}, r"\.obs\['run'\] has shape \(11,\); expected shape \(12,\)"),
        ({"obs": {"{k}": np.ones((N, 1))}}, r"has shape \(12, 1\)"),
        ({"obs": {"{k}": 1.0}}, r"has a float; expected shape \(12,\)"),
        ({"obs": {"{k}": pd.Series(np.ones(N))}}, "a Series with another index"),
        ({"obs": {"{k}": pd.date_range("2020-01-01", periods=N)}}, "datetime64"),
        ({"obs": {"{k}": np.array([1, "a"] * 6, dtype=object)}}, "the entry 1 of type int"),
        ({"obs": {"{k}": pd.Categorical([pd.Interval(0, 1)] * N)}}, "interval"),
        ({"obs": {"{k}": np.zeros(N, dtype=[("a", "f4")])}}, "a structured array"),
        ({"obs": {"{k}_other": np.ones(N)}}, r"'scagc' has no \.obs\['\{k\}_other'\]"),
        ({"obsm": {"X_{k}": np.ones((N, 0))}}, r"has shape \(12, 0\).*any number from 1"),
        ({"obsm": {"X_{k}": np.ones(N)}}, r"has shape \(12,\)"),
        ({"obsm": {"X_{k}": np.ones((G, 2))}}, r"has shape \(5, 2\); expected shape \(12, any number from 1\)"),
        ({"obsm": {"X_{k}": pd.DataFrame(np.ones((N, 2)))}}, r"has a DataFrame; expected an array.*df\.to_numpy\(\)"),
        ({"obsm": {"X_{k}": np.full((N, 2), "a")}}, "entries of dtype"),
        ({"obsm": {"X_{k}": np.ones((N, 2), complex)}}, "complex128"),
        ({"varm": {"{k}_loadings": np.ones((N, 2))}}, r"expected shape \(5, any"),
        ({"obsp": {"{k}_distances": sparse.eye(G, format="csr")}}, r"expected shape \(12, 12\)"),
        ({"layers": {"{k}_expected": np.ones((G, N))}}, r"expected shape \(12, 5\)"),
        ({"uns": {"a/b": 1}}, r"A key of \.uns\['run'\] is 'a/b'"),
        ({"uns": {"params": {"x": {"y": object()}}}}, r"\.uns\['run'\]\['params'\]\['x'\]\['y'\] has a object"),
        ({"uns": {"provenance": {"method": "scld"}}}, "provenance of .* is not that of 'scagc'"),
        ({"uns": {"provenance": "scagc"}}, "provenance of .* is not that of 'scagc'"),
        ({"extra_uns": {"{k}": {}}}, "Put its entries into uns"),
        ({"extra_uns": {"{k}_enrich": {}}}, r"'scagc' has no \.uns"),
        ({"method": "scgac"}, "Did you mean 'scagc'"),
    ],
)
def test_what_does_not_fit_is_refused_untouched(adata, changes, message):
    before = _picture(adata)
    with pytest.raises(SetupError, match=message):
        write(adata, "run", Result(**{"method": "scagc", **changes}))
    assert _picture(adata) == before


@pytest.mark.parametrize("key", ["", "a/b", "_scvi_uuid", None])
def test_bad_key_is_refused(adata, key):
    with pytest.raises(SetupError, match="key_added"):
        write(adata, key, _result())


def test_index_name_is_refused(adata):
    adata.obs.index.name = "run"
    with pytest.raises(SetupError, match="name of the index"):
        write(adata, "run", _result())


def test_large_dense_graph_is_an_error_that_states_its_size():
    adata = AnnData(sparse.csr_matrix((5_001, 1), dtype=np.float32))
    dense = np.broadcast_to(np.float32(0), (5_001, 5_001))
    with pytest.raises(SizeError, match=r"dense, 5,001 x 5,001 \(0\.1 GiB\)"):
        write(adata, "run", Result("scagc", obsp={"{k}_connectivities": dense}))


def test_columns_of_every_kind(adata):
    series = pd.Series(np.arange(N), index=adata.obs_names)
    strings = np.array(["a", None, "b"] * 4, dtype=object)
    write(adata, "k", Result("scld", obs={"{k}": strings, "{k}_library": series, "{k}_step": [True, False] * 6}))
    assert adata.obs["k"].isna().sum() == 4
    assert list(adata.obs["k"].cat.categories) == ["a", "b"]
    assert adata.obs["k_library"].tolist() == list(range(N))
    assert adata.obs["k_step"].dtype == bool


def test_extra_uns_is_owned(adata):
    table = pd.DataFrame({"term": ["x/y", "z"], "p": [0.1, 0.2]})
    write(adata, "sce2tm", Result("sce2tm", extra_uns={"{k}_enrich": table}))
    assert list(adata.uns["sce2tm_enrich"]) == ["term", "p"]
    write(adata, "sce2tm", Result("sce2tm"))
    assert "sce2tm_enrich" not in adata.uns


def test_extend_adds_and_keeps(adata):
    write(adata, "grit", Result("grit", obs={"{k}": ["a"] * N}, uns={"params": {"a": 1}, "calibrated": False}))
    more = Result(
        "grit", obs={"{k}_rejected": np.zeros(N, bool)}, uns={"calibrated": True, "rejection": {"level": 0.1}}
    )
    extend(adata, "grit", more)
    extend(adata, "grit", more)
    block = read(adata, "grit")
    assert block["params"] == {"a": 1}
    assert block["calibrated"] is True
    assert block["rejection"] == {"level": 0.1}
    assert list(block["provenance"]["outputs"]) == ["obs/grit", "obs/grit_rejected", "uns/grit"]
    write(adata, "grit", Result("grit"))
    assert list(adata.obs.columns) == ["cell_type"]


def test_extend_refuses(adata):
    with pytest.raises(SetupError, match="does not exist"):
        extend(adata, "grit", Result("grit"))
    write(adata, "run", _result())
    with pytest.raises(SetupError, match="was written by 'scagc'; expected a result of 'grit'"):
        extend(adata, "run", Result("grit"))
    adata.obs["run_margin"] = 1.0
    with pytest.raises(SetupError, match=r"\.obs\['run_margin'\] already exists"):
        extend(adata, "run", Result("scagc", obs={"{k}_margin": np.ones(N)}))
    extend(adata, "run", Result("scagc", obs={"{k}_margin": np.zeros(N)}), overwrite=True)
    assert not adata.obs["run_margin"].any()


def test_read_names_what_there_is(adata):
    with pytest.raises(SetupError, match=r"does not exist; .*Valid: \(none\)"):
        read(adata, "scld")
    write(adata, "scagc", _result())
    with pytest.raises(SetupError, match="Did you mean 'scagc'"):
        read(adata, "scgac")
    with pytest.raises(SetupError, match="is not a result of cellsmith"):
        read(adata, "neighbors")
    read(adata, "scagc")["params"]["n_clusters"] = 99
    assert adata.uns["scagc"]["params"]["n_clusters"] == 3


@pytest.mark.filterwarnings("error::anndata.ImplicitModificationWarning")
def test_a_view_becomes_an_object_of_its_own(adata):
    view = adata[:6]
    write(view, "run", Result("scagc", obs={"{k}": ["a"] * 6}))
    assert not view.is_view
    assert list(view.obs["run"]) == ["a"] * 6
    assert "run" not in adata.obs
    assert "run" not in adata.uns


@pytest.mark.filterwarnings("ignore:Cannot join columns")
def test_modality_of_mudata(adata):
    mdata = mudata.MuData({"rna": adata, "adt": AnnData(np.ones((N, 2), np.float32))})
    with pytest.raises(SetupError, match=r"a MuData; expected an AnnData.*mdata\.mod\[name\]"):
        write(mdata, "run", _result())
    write(mdata.mod["rna"], "run", _result())
    write(mdata.mod["rna"], "run", _result())
    assert read(mdata.mod["rna"], "run")["params"] == {"n_clusters": 3}
    assert "run" not in mdata.mod["adt"].obs


def test_scanpy_reads_the_graph(adata):
    graph = sparse.csr_matrix(np.ones((N, N)) - np.eye(N))
    block = {
        "connectivities_key": "run_connectivities",
        "distances_key": "run_distances",
        "params": {"n_neighbors": 11, "method": "umap", "metric": "cosine", "use_rep": "X_run", "random_state": 0},
    }
    write(adata, "run", _result(obsp={"{k}_connectivities": graph, "{k}_distances": graph}, uns=block))
    sc.tl.leiden(adata, neighbors_key="run", flavor="igraph", n_iterations=2)
    assert adata.obs["leiden"].nunique() == 1
    assert sc.Neighbors(adata, neighbors_key="run").n_neighbors == 11


def test_provenance_is_complete():
    record = provenance(
        method="scld",
        seed=np.int64(3),
        device=torch.device("cpu"),
        dtype=torch.float32,
        n_obs=N,
        var_names=pd.Index(["g1", "g2"]),
        inputs={"layer": None, "labels_key": "cell_type"},
        histories={"diffuse/train_loss": [1.0, 0.5], "autoencode": {"elbo": pd.DataFrame({"elbo": [3, 2, 1]})}},
        warnings=[UserWarning("careful")],
        extra={"refit": {"accepted": True}},
    )
    assert set(record["versions"]) == {"cellsmith", "scvi-tools", "anndata", "scanpy", "torch", "numpy"}
    assert record["versions"]["numpy"] == np.__version__
    assert (record["seed"], record["device"], record["dtype"], record["n_obs"]) == (3, "cpu", "float32", N)
    assert record["n_vars"] == 2
    assert record["var_names_sha256"] == hash_names(["g1", "g2"])
    assert record["inputs"] == {"labels_key": "cell_type"}
    np.testing.assert_array_equal(record["histories"]["diffuse"]["train_loss"], [1.0, 0.5])
    np.testing.assert_array_equal(record["histories"]["autoencode"]["elbo"], [3, 2, 1])
    assert list(record["warnings"]) == ["careful"]
    assert record["refit"] == {"accepted": True}


def test_equal_runs_leave_equal_records(adata):
    other = adata.copy()
    for each in (adata, other):
        write(each, "run", _result())
    assert repr(read(adata, "run")) == repr(read(other, "run"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 0.5}, r"seed to record is 0\.5"),
        ({"seed": True}, "seed to record is True"),
        ({"extra": {"seed": 1}}, r"extra names \['seed'\]"),
        ({"histories": {"a": [1.0], "a/b": [1.0]}}, "history 'a/b' has the name"),
        ({"histories": {"a/b": [1.0], "a": [1.0]}}, "history 'a' has the name"),
        ({"inputs": {"model": SimpleNamespace()}}, r"provenance\['inputs'\]\['model'\] has a SimpleNamespace"),
    ],
)
def test_provenance_refuses(changes, message):
    with pytest.raises(SetupError, match=message):
        provenance(method="scld", **changes)


def test_hash_sees_order_and_borders():
    assert hash_names(["ab", "c"]) != hash_names(["a", "bc"])
    assert hash_names(["a", "b"]) != hash_names(["b", "a"])
    assert len(hash_names([])) == 64
