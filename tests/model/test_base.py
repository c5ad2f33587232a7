"""The one training loop: the traps of scvi-tools, determinism, saving, writing, and every form of input."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scvi
import torch
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from cellsmith._errors import CellsmithError, NotTrainedError, SetupError
from cellsmith.model import SCLD

Make = Callable[..., AnnData]
Build = Callable[..., SCLD]


def weights(model: SCLD) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.module.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert not different


def assert_same_cells(a: AnnData, b: AnnData) -> None:
    assert (a.X != b.X).nnz == 0
    assert a.obs.equals(b.obs)
    np.testing.assert_array_equal(a.obsm["X_scld"], b.obsm["X_scld"])


# --- the four traps of scvi-tools ------------------------------------------------------------------------------------


def test_trap_1_registering_a_copy_does_not_evict_the_original(make: Make, built: Build, quick: Build) -> None:
    adata = make(80, 20)
    first = quick(adata)
    other = adata.copy()
    assert other.uns["_scvi_uuid"] == adata.uns["_scvi_uuid"]
    second = built(other)
    assert other.uns["_scvi_uuid"] != adata.uns["_scvi_uuid"]
    assert first.adata_manager.adata is adata
    assert second.adata_manager.adata is other
    assert first.get_latent_representation().shape == (80, 4)


def test_trap_1_a_copy_can_be_queried(make: Make, quick: Build) -> None:
    adata = make(80, 20)
    trained = quick(adata)
    again = trained.get_latent_representation(adata.copy())
    np.testing.assert_array_equal(again, trained.get_latent_representation())
    assert trained.get_anndata_manager(adata, required=True).adata is adata


def test_trap_2_the_monitor_is_the_validation_loss_and_moves(model: SCLD) -> None:
    for stage in model.stages():
        if stage.solve is None:
            assert stage.monitor == "validation_loss"
            assert model.history_[f"{stage.name}/validation_loss"].iloc[:, 0].nunique() > 1


def test_trap_3_the_split_does_not_depend_on_the_settings_of_scvi(
    make: Make, built: Build, trained_for_a_moment: Build
) -> None:
    before, splits = scvi.settings.seed, []
    try:
        for seed in (None, 3, 4):
            if seed is not None:
                scvi.settings.seed = seed
            trained = trained_for_a_moment(built(make(80, 20)), epochs=1, steps=1)
            splits.append(trained.validation_indices)
    finally:
        scvi.settings._seed = before
    np.testing.assert_array_equal(splits[0], splits[1])
    np.testing.assert_array_equal(splits[0], splits[2])


@pytest.mark.parametrize("trained", [False, True])
def test_trap_4_every_model_is_saved_and_loaded(
    trained: bool, make: Make, built: Build, quick: Build, tmp_path: Path
) -> None:
    adata = make(80, 20)
    saved = quick(adata) if trained else built(adata)
    for name in dir(saved):
        if not name.startswith("__"):
            getattr(saved, name, None)
    saved.save(str(tmp_path / "m"), save_anndata=False)
    loaded = SCLD.load(str(tmp_path / "m"), adata=adata, accelerator="cpu")
    assert loaded.is_trained == trained
    assert_same(weights(saved), weights(loaded))
    if trained:
        assert_same_cells(saved.generate(30, seed=5), loaded.generate(30, seed=5))
        assert loaded.seed_ == saved.seed_
        assert loaded.history_.keys() == saved.history_.keys()


def test_model_saved_with_its_data_needs_nothing_else(make: Make, quick: Build, tmp_path: Path) -> None:
    saved = quick(make(80, 20))
    saved.save(str(tmp_path / "m"), save_anndata=True)
    loaded = SCLD.load(str(tmp_path / "m"), accelerator="cpu")
    assert_same_cells(saved.generate(30, seed=5), loaded.generate(30, seed=5))


# --- randomness ------------------------------------------------------------------------------------------------------


def test_same_seed_is_bit_equal_and_another_is_not(make: Make, quick: Build) -> None:
    first, second, third = (quick(make(80, 20), seed=s) for s in (3, 3, 4))
    assert_same(weights(first), weights(second))
    assert_same_cells(first.generate(20, seed=1), second.generate(20, seed=1))
    assert any(not torch.equal(a, b) for a, b in zip(weights(first).values(), weights(third).values(), strict=True))
    assert not np.array_equal(first.generate(20, seed=1).X.toarray(), first.generate(20, seed=2).X.toarray())


def test_global_generators_are_left_as_they_were(make: Make, built: Build, trained_for_a_moment: Build) -> None:
    untrained = built(make(80, 20))
    state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    before = (random.getstate(), str(state), torch.get_rng_state())
    trained_for_a_moment(untrained).generate(20)
    untrained.get_log_density(n_steps=3)
    untrained.augment(key="cell_type", target=60)
    after = (random.getstate(), str(np.random.get_state(legacy=False)["state"]), torch.get_rng_state())  # noqa: NPY002
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_the_state_of_the_global_generators_does_not_matter(
    make: Make, built: Build, trained_for_a_moment: Build
) -> None:
    torch.manual_seed(1)
    first = weights(trained_for_a_moment(built(make(80, 20))))
    torch.manual_seed(2)
    assert_same(first, weights(trained_for_a_moment(built(make(80, 20)))))


def test_seed_none_draws_one_and_records_it(make: Make, quick: Build) -> None:
    drawn = quick(make(80, 20), seed=None)
    assert isinstance(drawn.seed_, int)
    assert_same(weights(drawn), weights(quick(make(80, 20), seed=drawn.seed_)))


# --- histories, lengths, arguments -----------------------------------------------------------------------------------


def test_histories_are_named_by_stage_and_metric(model: SCLD) -> None:
    names = set(model.history_)
    for stage in ("autoencode", "diffuse"):
        assert {f"{stage}/train_loss", f"{stage}/validation_loss"} <= names
    assert {"autoencode/train_reconstruction", "autoencode/validation_kl", "diffuse/train_denoising"} <= names
    assert all("/" in n for n in names)
    assert len(model.history_["diffuse/train_loss"]) == 8
    for table in model.history_.values():
        assert np.isfinite(table.to_numpy(dtype=float)).all()


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"max_epochs": {"autoencod": 1}}, "'autoencod'.*Did you mean 'autoencode'"),
        ({"plan_kwargs": {"learnig_rate": 1}}, "'learnig_rate'"),
        ({"train_size": 2.0}, r"train_size=0\.9"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments_of_train_are_refused(kwargs: Any, words: str, make: Make, built: Build) -> None:
    untrained = built(make(80, 20))
    with pytest.raises(ValueError, match=words):
        untrained.train(accelerator="cpu", **kwargs)
    assert not untrained.is_trained


def test_refused_arguments_leave_a_trained_model_trained(make: Make, quick: Build) -> None:
    trained = quick(make(80, 20))
    before = weights(trained)
    with pytest.raises(SetupError):
        trained.train(max_epochs={"nothing": 1})
    assert trained.is_trained
    assert trained.history_
    assert_same(before, weights(trained))


def test_training_without_validation_cells_works(make: Make, built: Build, trained_for_a_moment: Build) -> None:
    trained = trained_for_a_moment(built(make(80, 20)), train_size=1.0)
    assert len(trained.validation_indices) == 0
    assert trained.generate(10).n_obs == 10


def test_a_second_train_goes_on_from_the_first(make: Make, quick: Build, trained_for_a_moment: Build) -> None:
    trained = quick(make(80, 20))
    start = weights(trained)
    trained_for_a_moment(trained, epochs=1, steps=1, plan_kwargs={"lr": 1e-9})
    for name, value in weights(trained).items():
        if name.startswith("autoencoder.encoder"):
            torch.testing.assert_close(value, start[name], atol=1e-5, rtol=0)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_write_puts_results_under_the_key(model: SCLD, make: Make) -> None:
    adata = model.adata.copy()
    model.write(adata)
    assert adata.obsm["X_scld"].shape == (adata.n_obs, 4)
    assert np.isfinite(adata.obs["scld_log_density"]).all()
    block = adata.uns["scld"]
    assert {"params", "provenance", "refit", "classes"} <= set(block)
    assert block["provenance"]["seed"] == 0
    assert int(block["provenance"]["n_obs"]) == adata.n_obs
    model.write(adata, key_added="other")
    assert {"scld", "other"} <= set(adata.uns)
    assert "X_other" in adata.obsm


def test_other_cells_of_the_same_genes_are_scored_and_written(model: SCLD, make: Make) -> None:
    other = make(60, 50, rng=9)
    model.write(other)
    assert other.obsm["X_scld"].shape == (60, 4)
    assert np.isfinite(other.obs["scld_log_density"]).all()


def test_write_is_all_or_nothing(model: SCLD, make: Make) -> None:
    adata = model.adata.copy()
    result = model.results()
    short = replace(result, obsm={"X_{k}": result.obsm["X_{k}"][:-1]})
    for target, given in ((adata, short), (make(30, 49), None)):
        before = target.copy()
        with pytest.raises(CellsmithError):
            model.write(target, result=given)
        assert list(target.obs) == list(before.obs)
        assert list(target.obsm) == list(before.obsm)
        assert list(target.uns) == list(before.uns)
    taken = model.adata.copy()
    taken.uns["scld"] = {"provenance": {"method": "scdd"}}
    with pytest.raises(CellsmithError, match="overwrite"):
        model.write(taken)
    assert "X_scld" not in taken.obsm
    model.write(taken, overwrite=True)
    assert "X_scld" in taken.obsm


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_what_is_written_survives_a_file(form: str, model: SCLD, tmp_path: Path) -> None:
    adata = model.adata.copy()
    model.write(adata)
    getattr(adata, f"write_{form}")(tmp_path / f"a.{form}")
    back = getattr(anndata, f"read_{form}")(tmp_path / f"a.{form}")
    np.testing.assert_array_equal(back.obsm["X_scld"], adata.obsm["X_scld"])
    assert back.uns["scld"]["provenance"].keys() == adata.uns["scld"]["provenance"].keys()
    loss = back.uns["scld"]["provenance"]["histories"]
    assert any("validation_loss" in str(k) for k in _keys(loss))


def _keys(block: Any) -> list[str]:
    return [k for key, v in block.items() for k in [key, *(_keys(v) if isinstance(v, dict) else [])]]


def test_queries_before_training_say_what_to_type(make: Make, built: Build) -> None:
    untrained = built(make(80, 20))
    for call in (untrained.write, untrained.results, lambda: untrained.generate(5), untrained.get_log_density):
        with pytest.raises(NotTrainedError, match=r"\.train\(\)"):
            call()


def test_model_needs_data() -> None:
    with pytest.raises(SetupError, match=r"SCLD\.setup_anndata"):
        SCLD()


# --- genes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reordered", "renamed", "fewer"])
def test_other_genes_are_refused_with_their_overlap(how: str, model: SCLD) -> None:
    adata, n = model.adata.copy(), model.adata.n_vars
    if how == "reordered":
        adata, words = adata[:, ::-1].copy(), f"{n} are among the {n} genes of training, in another order"
    elif how == "renamed":
        adata.var_names, words = [f"x{i}" for i in range(n - 1)] + [adata.var_names[-1]], "of which 1 are among"
    else:
        adata, words = adata[:, : n - 5].copy(), f"has {n - 5} genes, of which {n - 5} are among the {n}"
    for query in (model.get_latent_representation, model.get_log_density, model.posterior_predictive_sample):
        with pytest.raises(SetupError, match=words):
            query(adata)


# --- forms of input --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def from_csr(make: Make, quick: Build) -> SCLD:
    return quick(make(80, 20))


def latents_close(a: SCLD, b: SCLD, *, exact: bool) -> None:
    x, y = a.get_latent_representation(), b.get_latent_representation()
    if exact:
        np.testing.assert_array_equal(x, y)
        assert (a.generate(20).X != b.generate(20).X).nnz == 0
    else:
        np.testing.assert_allclose(x, y, atol=1e-4)


@pytest.mark.parametrize("form", ["dense", "csc", "int64", "layer", "backed", "mudata", "integer_index"])
def test_every_form_of_the_same_counts_trains_the_same_model(
    form: str, from_csr: SCLD, make: Make, quick: Build, trained_for_a_moment: Build, tmp_path: Path
) -> None:
    adata, setup = make(80, 20), {"batch_key": "batch", "labels_key": "cell_type"}
    if form == "dense":
        adata.X = adata.X.toarray()
    elif form == "csc":
        adata.X = sparse.csc_matrix(adata.X)
    elif form == "int64":
        adata.X = adata.X.astype(np.int64)
    elif form == "layer":
        adata.layers["raw"], setup["layer"] = adata.X.copy(), "raw"
        adata.X = np.log1p(adata.X.toarray())
    elif form == "integer_index":
        adata.obs_names = [f"c{i}" for i in range(80)]
    elif form == "backed":
        adata.write_h5ad(tmp_path / "a.h5ad")
        adata = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    if form == "mudata":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = make(80, 7, rng=5)
            other.var_names = [f"p{i}" for i in range(7)]
            mdata = MuData({"rna": adata, "adt": other})
        places = {"layer": "rna", "batch_key": "rna", "labels_key": "rna"}
        SCLD.setup_mudata(mdata, **setup, modalities=places)
        size = {"n_latent": 4, "n_hidden": 24, "n_denoiser_hidden": 24, "n_denoiser_layers": 2}
        trained = trained_for_a_moment(SCLD(mdata, **size))
    else:
        trained = quick(adata, setup=setup)
    latents_close(from_csr, trained, exact=True)


def test_dense_batches_train_the_same_model_up_to_rounding(
    from_csr: SCLD, make: Make, built: Build, trained_for_a_moment: Build
) -> None:
    trained = trained_for_a_moment(built(make(80, 20), dropout_rate=0.0), load_sparse_tensor=False)
    sparse_one = trained_for_a_moment(built(make(80, 20), dropout_rate=0.0))
    latents_close(sparse_one, trained, exact=False)


def test_results_of_mudata_go_into_the_modality_of_the_counts(
    make: Make, trained_for_a_moment: Build, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = make(80, 7, rng=5)
        other.var_names = [f"p{i}" for i in range(7)]
        mdata = MuData({"rna": make(80, 20), "adt": other})
        mdata.obs["cell_type"] = mdata.mod["rna"].obs["cell_type"].to_numpy()
    SCLD.setup_mudata(mdata, labels_key="cell_type", modalities={"layer": "rna"})
    size = {"n_latent": 4, "n_hidden": 24, "n_denoiser_hidden": 24, "n_denoiser_layers": 2}
    trained = trained_for_a_moment(SCLD(mdata, **size))
    trained.write()
    assert "X_scld" in mdata.mod["rna"].obsm
    assert "scld" in mdata.mod["rna"].uns
    new = trained.generate(12, condition={"cell_type": "type_0"})
    assert list(new.var_names) == list(mdata.mod["rna"].var_names)
    grown = trained.augment(key="cell_type", target=60)
    assert (grown.obs["cell_type"].value_counts() >= 60).all() or grown.n_obs > 80
    trained.save(str(tmp_path / "m"), save_anndata=False)
    loaded = SCLD.load(str(tmp_path / "m"), adata=mdata, accelerator="cpu")
    assert_same_cells(new, loaded.generate(12, condition={"cell_type": "type_0"}))


def test_model_from_a_registry_alone(make: Make, built: Build) -> None:
    origin = built(make(80, 20))
    size = {"n_latent": 4, "n_hidden": 24, "n_denoiser_hidden": 24, "n_denoiser_layers": 2}
    alone = SCLD(registry=copy.deepcopy(origin.registry), **size)
    assert alone.adata is None
    assert {k: v.shape for k, v in weights(alone).items()} == {k: v.shape for k, v in weights(origin).items()}


# --- more than one process -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["ddp_fork", pytest.param("ddp_spawn", marks=pytest.mark.slow)])
def test_two_processes_train_one_model(strategy: str) -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")
    if strategy == "ddp_fork" and "fork" not in torch.multiprocessing.get_all_start_methods():
        pytest.skip("this platform cannot fork")
    program = Path(__file__).with_name("two_processes.py")
    run = subprocess.run([sys.executable, str(program), strategy], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("two processes trained one model\n")
