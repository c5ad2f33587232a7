"""The doors of scSiameseClu: cluster, rank markers, name clusters, place new cells."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData

import cellsmith
from cellsmith._errors import NotTrainedError, SetupError
from cellsmith.metrics.clustering import ari
from cellsmith.model import ScSiameseClu

QUICK = {
    "model_kwargs": {"n_hidden": 24, "n_latent": 8, "n_neighbors": 10},
    "train_kwargs": {
        "max_epochs": {"warmup": 30, "transport": 8},
        "accelerator": "cpu",
        "enable_progress_bar": False,
    },
}


def toy(n: int = 160, *, rng: int = 0) -> AnnData:
    adata = cellsmith.datasets.toy_counts(n, 80, n_types=3, rng=rng)
    adata.layers["counts"] = adata.X.copy()
    return adata


@pytest.fixture(scope="module")
def clustered() -> AnnData:
    """Clustered once; no test may change it."""
    adata = toy()
    assert cellsmith.tl.scsiameseclu(adata, layer="counts", n_clusters=3, **QUICK) is None
    return adata


def own_markers(adata: AnnData, n: int = 8) -> dict[str, list[str]]:
    x = np.log1p(adata.X.toarray() / adata.X.sum(axis=1) * 1e4)
    types = adata.obs["cell_type"]
    lift = {t: np.asarray(x[types == t].mean(0) - x[types != t].mean(0)).ravel() for t in types.cat.categories}
    return {t: list(adata.var_names[np.argsort(-v)[:n]]) for t, v in lift.items()}


def test_one_line_clusters(clustered: AnnData) -> None:
    assert ari(clustered.obs["cell_type"], clustered.obs["scsiameseclu"]) > 0.8
    assert clustered.obsm["scsiameseclu_proba"].shape == (160, 3)
    assert clustered.uns["scsiameseclu"]["params"]["layer"] == "counts"


def test_copy_key_and_protection(clustered: AnnData) -> None:
    short = QUICK | {"train_kwargs": {**QUICK["train_kwargs"], "max_epochs": 1}}
    adata = toy(80)
    made = cellsmith.tl.scsiameseclu(adata, n_clusters=3, copy=True, key_added="mine", **short)
    assert "mine" in made.obs
    assert "mine" not in adata.obs
    adata.obs["scsiameseclu"] = "user"
    with pytest.raises(SetupError, match="was not written by cellsmith"):
        cellsmith.tl.scsiameseclu(adata, n_clusters=3, **short)
    del adata.obs["scsiameseclu"]
    with pytest.raises(SetupError, match=r"'n_latnt'.*'n_latent'"):
        cellsmith.tl.scsiameseclu(adata, model_kwargs={"n_latnt": 3})
    with pytest.raises(SetupError, match="slash"):
        cellsmith.tl.scsiameseclu(adata, key_added="a/b")


def test_markers_are_scanpys_and_survive_files(clustered: AnnData, tmp_path: Path) -> None:
    adata = cellsmith.tl.scsiameseclu_markers(clustered, n_genes=20, copy=True)
    table = sc.get.rank_genes_groups_df(adata, None, key="scsiameseclu_markers")
    plain = AnnData(clustered.layers["counts"].copy(), obs=clustered.obs[["scsiameseclu"]], var=clustered.var[[]])
    sc.pp.normalize_total(plain, target_sum=1e4)
    sc.pp.log1p(plain)
    sc.tl.rank_genes_groups(plain, "scsiameseclu", method="wilcoxon", n_genes=20)
    expected = sc.get.rank_genes_groups_df(plain, None)
    assert table["names"].tolist() == expected["names"].tolist()
    np.testing.assert_allclose(table["scores"], expected["scores"], rtol=1e-4)
    block = adata.uns["scsiameseclu_markers"]
    assert 0 <= block["fraction"]["0"].min() <= block["fraction"]["0"].max() <= 1
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    assert sc.get.rank_genes_groups_df(back, "0", key="scsiameseclu_markers")["names"][0] == table["names"][0]
    with pytest.raises(SetupError, match="names no clusters"):
        cellsmith.tl.scsiameseclu_markers(clustered, key="leiden")


def test_names_by_markers(clustered: AnnData) -> None:
    adata = cellsmith.tl.scsiameseclu_annotate(clustered, markers=own_markers(clustered), copy=True)
    named = adata.obs["scsiameseclu_annotation"].astype(str)
    kept = ~adata.obs["scsiameseclu_annotation_rejected"]
    assert (named[kept] == adata.obs["cell_type"].astype(str)[kept]).mean() > 0.85
    assert (named[~kept] == "unknown").all()
    assert adata.obsm["scsiameseclu_annotation_proba"].shape == (160, 3)
    all_rejected = cellsmith.tl.scsiameseclu_annotate(
        clustered, markers=own_markers(clustered), reject_below=1.1, copy=True
    )
    assert (all_rejected.obs["scsiameseclu_annotation"] == "unknown").all()


def test_names_by_a_reference(clustered: AnnData) -> None:
    reference = toy(200, rng=0)[160:].copy()
    adata = cellsmith.tl.scsiameseclu_annotate(clustered, reference=reference, labels_key="cell_type", copy=True)
    named = adata.obs["scsiameseclu_annotation"].astype(str)
    assert (named == adata.obs["cell_type"].astype(str)).mean() > 0.8
    table = adata.uns["scsiameseclu_annotation"]["table"]
    np.testing.assert_allclose(table.sum(axis=1), 1.0, atol=1e-6)


def test_what_cannot_be_named_is_refused(clustered: AnnData) -> None:
    annotate = cellsmith.tl.scsiameseclu_annotate
    for given in ({}, {"markers": {"a": ["gene_0"]}, "reference": clustered}):
        with pytest.raises(SetupError, match="exactly one"):
            annotate(clustered, **given)
    with pytest.raises(SetupError, match="No marker of"):
        annotate(clustered, markers={"B cell": ["CD79A"]})
    with pytest.raises(SetupError, match=r"labels_key='cell_typ'.*'cell_type'"):
        annotate(clustered, reference=clustered, labels_key="cell_typ")
    other = clustered.copy()
    other.var_names = [f"other_{g}" for g in other.var_names]
    with pytest.raises(SetupError, match="0 genes are shared"):
        annotate(clustered, reference=other, labels_key="cell_type")


def test_new_cells_get_the_same_keys(clustered: AnnData) -> None:
    adata = toy(200)
    training, new = adata[:160].copy(), adata[160:].copy()
    ScSiameseClu.setup_anndata(training)
    model = ScSiameseClu(training, n_clusters=3, **QUICK["model_kwargs"])
    with pytest.raises(NotTrainedError):
        cellsmith.tl.scsiameseclu_transfer(new, model=model)
    model.train(**QUICK["train_kwargs"])
    cellsmith.tl.scsiameseclu_transfer(new, model=model, reject_below=0.9)
    assert set(new.obs["scsiameseclu"].cat.categories) == set(model.predict().cat.categories)
    rejected = new.obs["scsiameseclu_rejected"]
    assert (rejected == (new.obs["scsiameseclu_confidence"] < 0.9)).all()
    assert "scsiameseclu_connectivities" not in new.obsp
    assert ari(new.obs["cell_type"], new.obs["scsiameseclu"]) > 0.6


def test_taken_names_are_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = toy()
    adata.obs["scsiameseclu"] = "mine"

    def train(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(ScSiameseClu, "train", train)
    with pytest.raises(SetupError, match="scsiameseclu"):
        cellsmith.tl.scsiameseclu(adata, layer="counts", **QUICK)
    assert (adata.obs["scsiameseclu"] == "mine").all()


def test_markers_by_logistic_regression_have_no_shares(clustered: AnnData) -> None:
    found = cellsmith.tl.scsiameseclu_markers(clustered, method="logreg", n_genes=5, copy=True)
    block = found.uns["scsiameseclu_markers"]
    assert set(block["names"].dtype.names) == {"0", "1", "2"}
    assert "fraction" not in block


def test_clusters_without_any_marker_stay_unknown(clustered: AnnData) -> None:
    """However low the bar: a type that a cell hardly has is no name for it."""
    markers = {t: m for t, m in own_markers(clustered).items() if t == sorted(own_markers(clustered))[0]}
    found = cellsmith.tl.scsiameseclu_annotate(clustered, markers=markers, reject_below=0.0, copy=True)
    table = found.uns["scsiameseclu_annotation"]["table"]
    nameless = np.flatnonzero(table.sum(axis=1) == 0)
    assert 0 < len(nameless) < len(table)
    proba = clustered.obsm["scsiameseclu_proba"]
    inside = np.isin(proba.argmax(axis=1), nameless) & (proba.max(axis=1) > 0.6)
    assert inside.any()
    assert (found.obs["scsiameseclu_annotation"][inside] == "unknown").all()
