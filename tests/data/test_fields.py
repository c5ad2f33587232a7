"""Registration: what is accepted, what is refused and in which words, and what an unlabelled cell is."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from mudata import MuData
from scipy import sparse
from scvi import REGISTRY_KEYS

from cellsmith._errors import SetupError
from cellsmith.data.checks import check_counts, check_covariates, modality_of
from cellsmith.datasets import toy_counts
from cellsmith.model import SCLD


@pytest.fixture
def adata() -> anndata.AnnData:
    return toy_counts(60, 12, n_types=2, rng=0)


@pytest.mark.parametrize("value", [-1.0, 0.5, np.nan, np.inf])
@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
def test_bad_count_is_named_by_cell_gene_and_value(value: float, kind: str, adata: anndata.AnnData) -> None:
    x = adata.X.toarray()
    x[7, 3] = value
    adata.X = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": np.asarray}[kind](x)
    with pytest.raises(SetupError) as error:
        check_counts(adata, None)
    text = str(error.value)
    assert repr(adata.obs_names[7]) in text
    assert repr(adata.var_names[3]) in text
    assert "layer='counts'" in text


def test_refused_set_up_leaves_the_object_untouched(adata: anndata.AnnData) -> None:
    adata.X[0, 0] = 0.5
    with pytest.raises(SetupError):
        SCLD.setup_anndata(adata, labels_key="cell_type")
    assert not [k for k in (*adata.uns, *adata.obs) if k.startswith("_scvi")]


def test_a_mudata_is_told_from_its_modality(adata: anndata.AnnData) -> None:
    with pytest.raises(SetupError, match=r"a MuData with the modalities \['rna'\]; .* setup_mudata"):
        check_counts(MuData({"rna": adata}), None)


def test_cells_without_counts_are_counted_and_named(adata: anndata.AnnData) -> None:
    x = adata.X.toarray()
    x[[4, 9]] = 0
    adata.X = x
    with pytest.raises(SetupError, match=r"2 cells have a total of zero.*" + repr(adata.obs_names[4])):
        check_counts(adata, None)


@pytest.mark.parametrize("shape", [(49, 12), (60, 1)])
def test_too_little_data_states_the_minimum(shape: tuple[int, int], adata: anndata.AnnData) -> None:
    with pytest.raises(SetupError, match="at least 50 cells and 2 genes"):
        check_counts(adata[: shape[0], : shape[1]].copy(), None)


def test_missing_layer_and_empty_matrix_are_named(adata: anndata.AnnData) -> None:
    with pytest.raises(SetupError, match=r"layer='maen'.*Did you mean 'mean'"):
        check_counts(adata, "maen")
    adata.X = None
    with pytest.raises(SetupError, match=r"\.X is empty"):
        check_counts(adata, None)


@pytest.mark.parametrize(
    ("values", "kwargs", "words"),
    [
        ({}, {"categorical": {"labels_key": "cell_typ"}}, "Did you mean 'cell_type'"),
        ({"batch": ["a", None] * 30}, {"categorical": {"batch_key": "batch"}}, "missing for 30 cells"),
        ({"v": [1.0, np.nan] * 30}, {"categorical": {}, "continuous": ["v"]}, "expected a finite number"),
        ({"v": ["x"] * 60}, {"categorical": {}, "continuous": ["v"]}, "expected a finite number"),
        ({"v": [1.0, 0.0] * 30}, {"categorical": {}, "positive": "v"}, "expected a positive finite number"),
        ({}, {"categorical": {}, "continuous": ["nothing"]}, "'nothing' is not a column"),
    ],
)
def test_bad_columns_are_refused(values: Any, kwargs: Any, words: str, adata: anndata.AnnData) -> None:
    obs = adata.obs.assign(**values)
    with pytest.raises(SetupError, match=words):
        check_covariates(obs, **kwargs)


def codes(adata: anndata.AnnData, **kwargs: Any) -> np.ndarray:
    SCLD.setup_anndata(adata, labels_key="cell_type", **kwargs)
    return SCLD(adata).adata_manager.get_from_registry(REGISTRY_KEYS.LABELS_KEY).ravel()


@pytest.mark.parametrize("how", ["nan", "unlabeled_category", "both"])
def test_unlabelled_cells_get_the_code_past_the_last_class(how: str, adata: anndata.AnnData) -> None:
    labels = adata.obs["cell_type"].astype(object)
    if how != "nan":
        labels.iloc[:5] = "Unknown"
    if how != "unlabeled_category":
        labels.iloc[5:8] = None
    missing = (labels.isna() | (labels == "Unknown")).to_numpy()
    adata.obs["cell_type"] = pd.Categorical(labels)
    got = codes(adata, unlabeled_category=None if how == "nan" else "Unknown")
    np.testing.assert_array_equal(got == 2, missing)
    assert set(got) == {0, 1, 2}


def test_new_cells_are_coded_by_the_categories_of_training(adata: anndata.AnnData) -> None:
    SCLD.setup_anndata(adata, labels_key="cell_type")
    manager = SCLD(adata).adata_manager
    new = adata[adata.obs["cell_type"] == "type_1"].copy()
    new.obs["cell_type"] = new.obs["cell_type"].cat.remove_unused_categories()
    assert set(manager.transfer_fields(new).get_from_registry(REGISTRY_KEYS.LABELS_KEY).ravel()) == {1}
    without = adata.copy()
    del without.obs["cell_type"]
    assert set(manager.transfer_fields(without).get_from_registry(REGISTRY_KEYS.LABELS_KEY).ravel()) == {2}
    odd = adata.copy()
    odd.obs["cell_type"] = "type_9"
    with pytest.raises(SetupError, match=r"'type_9'.*not among the 2 labels"):
        manager.transfer_fields(odd)


def test_modality_is_found_or_refused(adata: anndata.AnnData) -> None:
    mdata = MuData({"rna": adata, "adt": toy_counts(60, 5, rng=1)})
    assert modality_of(mdata, {"layer": "rna"}, "layer") is mdata.mod["rna"]
    assert modality_of(mdata, {"layer": "rna"}, "labels_key") is mdata
    with pytest.raises(SetupError, match=r"\['rna', 'adt'\]"):
        modality_of(mdata, None, "layer")
    with pytest.raises(SetupError, match="'rna'"):
        modality_of(mdata, {"layer": "rn"}, "layer")
    with pytest.raises(SetupError, match="lacks 'layer'"):
        SCLD.setup_mudata(mdata, modalities={})
