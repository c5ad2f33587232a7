"""What training leaves behind: latents of unit variance, dispersions that moved, weights that know no label."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from cellsmith._errors import DataWarning, SetupError
from cellsmith._rng import Streams
from cellsmith.data.splits import CellReader
from cellsmith.model import SCLD
from cellsmith.model import _calibration as calibration

Make = Callable[..., AnnData]
Build = Callable[..., SCLD]
LABELS = {"labels_key": "cell_type"}


def weights(model: SCLD, prefix: str = "") -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.module.state_dict().items() if k.startswith(prefix)}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert a
    assert not [k for k in a if not torch.equal(a[k], b[k])]


# --- latents and library ---------------------------------------------------------------------------------------------


def test_cached_latents_have_unit_variance(model: SCLD) -> None:
    w = model.training_states()["w"]
    assert w.shape == (240, 5)
    assert ((w.std(dim=0) > 0.9) & (w.std(dim=0) < 1.1)).all()
    assert (w.mean(dim=0).abs() < 0.15).all()


def test_states_and_latents_are_two_names_of_the_same_cells(model: SCLD) -> None:
    z, log_library = torch.randn(20, 4), torch.randn(20) + 7
    z_back, log_back = model.module.from_state(model.module.to_state(z, log_library))
    torch.testing.assert_close(z, z_back)
    torch.testing.assert_close(log_library, log_back)


def test_log_library_is_that_of_the_counts(model: SCLD) -> None:
    totals = np.asarray(model.adata.X.sum(axis=1)).ravel()
    np.testing.assert_allclose(np.exp(model.training_rows_["log_total"]), totals, rtol=1e-6)
    np.testing.assert_allclose(np.exp(model.training_rows_["log_library"]), totals, rtol=1e-4)


# --- dispersion ------------------------------------------------------------------------------------------------------


def test_dispersion_moves_away_from_its_start(model: SCLD) -> None:
    start = model.refit_["start_theta"]
    end = model.module.autoencoder.log_theta.detach().exp().numpy()[0]
    truth = model.adata.var["inverse_dispersion"].to_numpy()
    # Pooled moments take the difference between types for dispersion: there they are far from the likelihood's answer.
    differ = np.abs(np.log(start / truth)) > 0.5
    assert differ.sum() >= 5
    assert np.median(np.abs(np.log(end / start))[differ]) > 0.2
    assert np.abs(np.log(end / truth)).mean() < np.abs(np.log(start / truth)).mean()


def test_refit_is_recorded(model: SCLD) -> None:
    assert model.refit_["done"]
    assert np.isfinite([model.refit_[k] for k in ("nll_before", "nll_after", "median_theta")]).all()
    block = model._block()["refit"]
    assert "start_theta" not in block
    assert block["accepted"] in (True, False)


def test_refit_guard_rejects_a_failed_fit(
    make: Make, quick: Build, built: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata = make(80, 20)
    unrefined = quick(adata.copy(), calibrate_dispersion=False)
    monkeypatch.setattr(calibration.counts, "refit_dispersion", lambda batches, theta: np.full_like(theta, 1e-2))
    untrained = built(adata)
    untrained.n_diffusion_steps_ = 10
    with pytest.warns(DataWarning, match=r"refit .* was not used"):
        untrained.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False)
    assert untrained.refit_["accepted"] is False
    assert any("refit" in note for note in untrained.notes_)
    assert_same(weights(untrained, "autoencoder"), weights(unrefined, "autoencoder"))
    assert any("refit" in str(w) for w in untrained._block()["provenance"]["warnings"])


def test_refit_changes_the_dispersion_only(make: Make, quick: Build) -> None:
    before, after = (quick(make(80, 20), calibrate_dispersion=c) for c in (False, True))
    changed = {k for k, v in weights(before, "autoencoder").items() if not torch.equal(v, weights(after)[k])}
    assert changed <= {"autoencoder.log_theta"}
    assert before.refit_ == {"done": False, "start_theta": before.refit_["start_theta"]}
    assert "calibrate" not in [s.name for s in before.stages()]


@pytest.mark.parametrize(("dispersion", "groups"), [("gene", 1), ("gene-batch", 2), ("gene-label", 3)])
def test_dispersion_by_group_is_trained_refitted_and_used(
    dispersion: str, groups: int, make: Make, quick: Build
) -> None:
    trained = quick(make(120, 20), dispersion=dispersion)
    assert trained.module.autoencoder.log_theta.shape == (groups, 20)
    assert trained.refit_["done"]
    assert trained.generate(30).X.min() >= 0
    assert trained.generate(20, condition={}).n_obs == 20


# --- what labels, batches and names may change -----------------------------------------------------------------------


def test_shuffled_labels_leave_the_autoencoder_and_the_latents_bit_identical(make: Make, quick: Build) -> None:
    adata = make(80, 20)
    other = adata.copy()
    other.obs["cell_type"] = np.random.default_rng(0).permutation(adata.obs["cell_type"].to_numpy())
    first, second = quick(adata), quick(other)
    assert_same(weights(first, "autoencoder"), weights(second, "autoencoder"))
    np.testing.assert_array_equal(first.get_latent(), second.get_latent())
    assert not torch.equal(first.training_states()["codes"], second.training_states()["codes"])


def test_without_labels_key_a_label_column_changes_nothing_at_all(make: Make, quick: Build) -> None:
    adata = make(80, 20)
    other = adata.copy()
    other.obs["cell_type"] = "everything"
    first, second = (quick(a, setup={"batch_key": "batch"}) for a in (adata, other))
    assert_same(weights(first), weights(second))
    assert (first.generate(20).X != second.generate(20).X).nnz == 0


def test_renamed_categories_change_names_only(make: Make, quick: Build) -> None:
    adata = make(80, 20)
    other = adata.copy()
    names = {"type_0": "A cell", "type_1": "B/cell", "type_2": "Ω"}
    other.obs["cell_type"] = other.obs["cell_type"].cat.rename_categories(names)
    first, second = quick(adata), quick(other)
    assert_same(weights(first), weights(second))
    a, b = first.generate(40), second.generate(40)
    assert (a.X != b.X).nnz == 0
    assert a.obs["cell_type"].cat.rename_categories(names).tolist() == b.obs["cell_type"].tolist()
    assert list(b.obs["cell_type"].cat.categories) == list(names.values())


def test_classification_weight_lets_labels_in(make: Make, quick: Build) -> None:
    plain, told = (quick(make(80, 20), classification_weight=c) for c in (0.0, 5.0))
    assert plain.module.classifier is None
    assert "autoencode/train_classification" in told.history_
    assert not np.array_equal(plain.get_latent(), told.get_latent())


# --- unlabelled cells ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["nan", "unlabeled_category"])
def test_unlabelled_cells_are_kept_and_never_a_class(how: str, make: Make, quick: Build) -> None:
    adata = make(120, 20)
    labels = adata.obs["cell_type"].astype(object)
    labels.iloc[:30] = None if how == "nan" else "Unknown"
    adata.obs["cell_type"] = pd.Categorical(labels)
    setup = {**LABELS, "unlabeled_category": None if how == "nan" else "Unknown"}
    trained = quick(adata, setup=setup, classification_weight=1.0)
    assert trained.training_states()["codes"][:30, 0].tolist() == [3] * 30
    new = trained.generate(120)
    assert list(new.obs["cell_type"].cat.categories) == ["type_0", "type_1", "type_2"]
    assert int(new.obs["cell_type"].isna().sum()) == 30
    assert trained.get_latent_representation().shape == (120, 4)


# --- other data and options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [
        {"gene_likelihood": "zinb"},
        {"prior": "flow"},
        {"prediction": "epsilon"},
        {"prediction": "x0"},
        {"prior": "flow", "prediction": "x0"},
        {"library_model": "lognormal"},
        {"library_model": "empirical"},
        {"n_layers": 2, "dropout_rate": 0.0, "log_variational": False},
        {"condition_dropout": 0.5},
    ],
    ids=lambda k: "-".join(map(str, k.values())),
)
def test_every_option_trains_generates_and_scores(kwargs: dict[str, Any], make: Make, quick: Build) -> None:
    trained = quick(make(100, 20), **kwargs)
    new = trained.generate(30)
    assert new.X.dtype == np.int32
    assert new.X.sum(axis=1).min() >= 1
    assert np.isfinite(new.obsm["X_scld"]).all()
    assert np.isfinite(trained.get_log_density(n_steps=5)).all()
    assert new.uns["scld"]["params"]["library"] == kwargs.get("library_model", "joint")
    assert trained.module.n_state == 4 + (kwargs.get("library_model", "joint") == "joint")


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"gene_likelihood": "poisson"}, "gene_likelihood='poisson'.*'nb', 'zinb'"),
        ({"prior": "flwo"}, "Did you mean 'flow'"),
        ({"prediction": "e"}, "prediction='e'"),
        ({"dispersion": "gene-cell"}, "dispersion='gene-cell'"),
        ({"library_model": "lognormall"}, "Did you mean 'lognormal'"),
    ],
)
def test_unknown_choices_name_the_nearest(kwargs: dict[str, Any], words: str, make: Make, built: Build) -> None:
    with pytest.raises(SetupError, match=words):
        built(make(60, 10), **kwargs)


def test_one_type_sixty_cells_and_no_covariate(make: Make, quick: Build) -> None:
    for setup in ({}, LABELS):
        trained = quick(make(60, 15, n_types=1, n_batches=1), setup=setup)
        new = trained.generate(25)
        assert new.n_obs == 25
        assert np.isfinite(new.obsm["X_scld"]).all()


def test_three_categorical_and_a_continuous_covariate(make: Make, quick: Build) -> None:
    setup = {
        "batch_key": "batch",
        "labels_key": "cell_type",
        "categorical_covariate_keys": ["donor"],
        "continuous_covariate_keys": ["score"],
    }
    adata = make(160, 20)
    adata.obs["score"] = 1e3 + 10 * adata.obs["score"]
    trained = quick(adata, setup=setup)
    assert trained.covariates.names == ("batch", "cell_type", "donor")
    assert abs(float(trained.module.continuous_centre) - adata.obs["score"].mean()) < 1.0
    new = trained.generate(60)
    assert {"batch", "cell_type", "donor", "score"} <= set(new.obs)
    assert set(np.round(new.obs["score"], 2)) <= set(np.round(adata.obs["score"], 2))
    given = trained.generate(10, condition={"score": 1020.0, "donor": "d2"}, on_small="neighbors")
    assert (given.obs["score"] == 1020.0).all()
    assert (given.obs["donor"] == "d2").all()


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_size_factors_of_any_scale_give_totals_of_the_right_size(scale: float, make: Make, quick: Build) -> None:
    adata = make(120, 20)
    totals = np.asarray(adata.X.sum(axis=1)).ravel()
    adata.obs["size"] = scale * totals * np.where(adata.obs["batch"] == "batch_0", 1.0, 1.25)
    trained = quick(adata, setup={"batch_key": "batch", "size_factor_key": "size"})
    rows = trained.training_rows_
    np.testing.assert_allclose(np.exp(rows["log_library"]).mean() / totals.mean(), 1.0, atol=0.2)
    new = trained.generate(200)
    assert 0.6 < np.median(new.obs["scld_library"]) / np.median(totals) < 1.6
    ratio = np.exp(rows["log_total"] - rows["log_library"])
    first = (adata.obs["batch"] == "batch_0").to_numpy()
    np.testing.assert_allclose(ratio[first].mean() / ratio[~first].mean(), 1.25, rtol=1e-3)


def test_a_representation_replaces_the_encoder(make: Make, quick: Build) -> None:
    adata = make(120, 20)
    adata.obsm["X_rep"] = np.random.default_rng(0).normal(5.0, 3.0, (120, 6)).astype(np.float32)
    trained = quick(adata, setup={**LABELS, "use_rep": "X_rep"})
    assert trained.module.n_latent == 6
    assert not hasattr(trained.module.autoencoder, "encoder")
    z = trained.get_latent_representation()
    rep, seen = adata.obsm["X_rep"], adata.obsm["X_rep"][trained.train_indices]
    expected = (rep - seen.mean(axis=0)) / seen.std(axis=0)
    np.testing.assert_allclose(z, expected, atol=1e-4)
    assert trained.generate(20).n_obs == 20


def test_a_representation_with_gaps_or_absent_is_refused(make: Make, built: Build) -> None:
    adata = make(60, 10)
    with pytest.raises(SetupError, match="use_rep='X_pac'"):
        built(adata, setup={"use_rep": "X_pac"})
    adata.obsm["X_rep"] = np.full((60, 2), np.nan)
    with pytest.raises(SetupError, match="not finite"):
        built(adata, setup={"use_rep": "X_rep"})


def test_genes_without_counts_are_allowed_and_stay_zero(make: Make, quick: Build) -> None:
    adata = make(100, 20)
    x = adata.X.toarray()
    x[:, [3, 17]] = 0
    adata.X = x
    trained = quick(adata)
    new = trained.generate(200)
    assert list(new.var_names) == list(adata.var_names)
    assert new.X[:, [3, 17]].sum() <= 2e-4 * new.X.sum()


def test_widths_follow_the_number_of_cells(make: Make) -> None:
    adata = make(60, 10)
    SCLD.setup_anndata(adata)
    default = SCLD(adata)
    assert default.module.n_latent == 16
    assert default._module_kwargs["n_denoiser_hidden"] == 128
    assert default.n_diffusion_steps_ == 5000


def test_steps_are_those_that_were_asked_for(make: Make, built: Build) -> None:
    untrained = built(make(60, 10), n_diffusion_steps=7)
    stage = untrained.stages()[-1]
    assert stage.max_epochs * stage.steps_per_epoch == 7
    for total in (100, 5000):
        untrained.n_diffusion_steps_ = total
        stage = untrained.stages()[-1]
        assert stage.max_epochs * stage.steps_per_epoch == total


def test_training_reads_batches_never_the_whole_matrix(
    make: Make, built: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    original = CellReader.__getitem__

    def spy(reader: CellReader, indices: np.ndarray) -> Any:
        rows.append(len(indices))
        return original(reader, indices)

    monkeypatch.setattr(CellReader, "__getitem__", spy)
    untrained = built(make(2100, 8))
    untrained.n_diffusion_steps_ = 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        untrained.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    assert max(rows) <= 1024
    assert untrained._reader is None


def test_streams_of_training_are_separate() -> None:
    streams = Streams(0)
    names = ("split", "init", "batches", "noise", "sample", "refit")
    assert len({streams.integer(n) for n in names}) == len(names)
