"""The door of scE2TM."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from cellsmith import tl
from cellsmith._errors import SetupError
from cellsmith.datasets import toy_counts
from cellsmith.model import SCE2TM
from cellsmith.model.sce2tm.report import WRITTEN

MODEL = {"n_hidden": 16, "n_embedding": 8}
TRAIN = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False}


def run(adata, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tl.sce2tm(adata, n_topics=4, model_kwargs=MODEL, train_kwargs=TRAIN, **options)


def test_results_are_written_in_place() -> None:
    adata = toy_counts(80, 40)
    assert run(adata) is None
    assert adata.obsm["X_sce2tm"].shape == adata.obsm["sce2tm_mu"].shape == (80, 4)
    assert adata.obsm["X_sce2tm"].dtype == np.float32
    assert adata.varm["sce2tm_loadings"].shape == (40, 4)
    assert {"sce2tm", "sce2tm_confidence", "sce2tm_margin", "sce2tm_entropy"} <= set(adata.obs)
    assert list(adata.obs["sce2tm"].cat.categories) == ["Topic_0", "Topic_1", "Topic_2", "Topic_3"]
    assert adata.uns["sce2tm"]["params"]["n_topics"] == 4
    np.testing.assert_allclose(adata.obs["sce2tm_confidence"], adata.obsm["X_sce2tm"].max(axis=1))


def test_copy_key_and_seed() -> None:
    adata = toy_counts(80, 40)
    first = run(adata, copy=True, key_added="mine", rng=3)
    second = run(adata, copy=True, key_added="mine", random_state=3)
    assert "X_mine" not in adata.obsm
    assert "_scvi_uuid" not in adata.uns
    assert np.array_equal(first.obsm["X_mine"], second.obsm["X_mine"])
    SCE2TM.setup_anndata(adata)
    model = SCE2TM(adata, n_topics=4, **MODEL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(seed=3, **TRAIN)
    assert np.array_equal(first.obsm["X_mine"], model.get_latent())


def test_a_taken_key_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = toy_counts(80, 40)
    run(adata)
    monkeypatch.setattr(SCE2TM, "train", lambda *_, **__: pytest.fail("trained"))
    adata.obs["mine_entropy"] = adata.obs["cell_type"] = "mine"
    for key in ("mine", "cell_type"):
        with pytest.raises(SetupError, match="already exists and was not written by cellsmith"):
            run(adata, key_added=key)
    with pytest.raises(SetupError, match=r"\.uns\['sce2tm'\] already exists and was written by 'sce2tm'"):
        tl.sce2tm_choose_n_topics(adata, key_added="sce2tm")
    with pytest.raises(pytest.fail.Exception, match="trained"):
        run(adata)  # its own outputs are replaced


def test_what_is_checked_before_training_is_what_is_written() -> None:
    adata = toy_counts(80, 40)
    before = {slot: set(getattr(adata, slot)) for slot in ("obs", "obsm", "varm", "layers", "obsp")}
    run(adata, key_added="mine")
    found = {slot: {n for n in getattr(adata, slot) if n not in names} for slot, names in before.items()}
    wanted = {slot: {t.format(k="mine") for t in WRITTEN.get(slot, ())} for slot in before}
    assert {s: {n for n in names if not n.startswith("_scvi")} for s, names in found.items()} == wanted


def test_names_that_do_not_exist_are_refused_before_training() -> None:
    adata = toy_counts(80, 40)
    with pytest.raises(SetupError, match=r"'n_hiden'.*Did you mean 'n_hidden'"):
        tl.sce2tm(adata, model_kwargs={"n_hiden": 3})
    with pytest.raises(SetupError, match="slash"):
        tl.sce2tm(adata, key_added="a/b")
    with pytest.raises(SetupError, match=r"external_obsm_key='scgpt' is not in .obsm"):
        tl.sce2tm(adata, external_obsm_key="scgpt")
