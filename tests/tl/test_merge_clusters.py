from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData, read_h5ad

import cellsmith as cs
from cellsmith._errors import CellsmithWarning, SetupError


@pytest.fixture
def adata():
    """Three types with fifteen genes each; "b" was cut in two."""
    rng = np.random.default_rng(0)
    rates = np.tile(rng.gamma(1.0, size=120) + 0.1, (3, 1))
    for t in range(3):
        rates[t, 15 * t : 15 * (t + 1)] *= 8
    types = np.repeat([0, 1, 2], (50, 40, 30))
    mean = 1500 * (rates / rates.sum(axis=1, keepdims=True))[types]
    x = sp.csr_matrix(rng.negative_binomial(5, 5 / (5 + mean)).astype(np.float32))
    names = np.array(["a", "b", "c"], dtype=object)[types]
    names[50:65] = "b2"
    out = AnnData(x, layers={"counts": x})
    out.X = np.log1p(x)
    out.obs["cluster"] = names
    out.obs["type"] = types.astype(str)
    out.obs["batch"] = np.where(np.arange(120) % 2, "u", "v")
    return out


@pytest.mark.parametrize("batch_key", [None, "batch"])
def test_halves_of_a_type_merge_and_types_stay(adata, batch_key, tmp_path):
    before = adata.copy()
    found = cs.tl.merge_clusters(adata, "cluster", layer="counts", batch_key=batch_key, copy=True)
    assert "merged" not in adata.obs
    assert (adata.X != before.X).nnz == 0
    assert cs.metrics.ari(found.obs["type"], found.obs["merged"]) == 1
    assert list(found.obs["merged"].cat.categories) == ["0", "1", "2"]
    block = found.uns["merged"]
    assert {block["path"]["first"][0], block["path"]["second"][0]} == {"b", "b2"}
    assert block["path"]["n_clusters"].tolist() == [3]
    assert block["path"]["score"][0] < block["threshold"]
    found.write_h5ad(tmp_path / "x.h5ad")
    again = read_h5ad(tmp_path / "x.h5ad")
    assert again.uns["merged"]["provenance"]["method"] == "merge_clusters"
    assert again.uns["merged"]["path"]["first"][0] == block["path"]["first"][0]


def test_same_seed_same_answer_and_a_second_run_replaces_it(adata):
    for seed in (3, 3):
        assert cs.tl.merge_clusters(adata, "cluster", layer="counts", rng=seed) is None
    first = adata.obs["merged"].copy()
    cs.tl.merge_clusters(adata, "cluster", layer="counts", random_state=3, key_added="other")
    assert (first == adata.obs["other"]).all()


def test_one_cluster_is_an_answer_with_a_warning(adata):
    with pytest.warns(CellsmithWarning, match="one cluster is left"):
        cs.tl.merge_clusters(adata, "cluster", layer="counts", min_markers=100)
    assert set(adata.obs["merged"]) == {"0"}


def test_a_number_of_clusters_can_be_asked_for(adata, tmp_path):
    cs.tl.merge_clusters(adata, "cluster", layer="counts", n_clusters=2)
    assert set(adata.obs["merged"]) == {"0", "1"}
    assert adata.uns["merged"]["path"]["n_clusters"].tolist() == [3, 2]
    adata.write_h5ad(tmp_path / "x.h5ad")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layer": None}, "raw counts"),
        ({"groupby": "clusters"}, "'cluster'"),
        ({"batch_key": "bach"}, "'batch'"),
        ({"min_markers": -1}, "min_markers"),
    ],
)
def test_wrong_input_leaves_the_object_alone(adata, changed, message):
    given = {"groupby": "cluster", "layer": "counts"} | changed
    with pytest.raises(SetupError, match=message):
        cs.tl.merge_clusters(adata, given.pop("groupby"), **given)
    assert "merged" not in adata.obs
    assert "merged" not in adata.uns


def test_names_of_others_are_refused(adata):
    adata.obs["merged"] = "mine"
    with pytest.raises(SetupError, match="overwrite=True"):
        cs.tl.merge_clusters(adata, "cluster", layer="counts")
    cs.tl.merge_clusters(adata, "cluster", layer="counts", overwrite=True)
    assert set(adata.obs["merged"]) == {"0", "1", "2"}
