"""A diffusion on top of a trained scVI or scANVI: the same decoder, and the source left alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import scvi
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS

from cellsmith._errors import NotTrainedError, SetupError
from cellsmith.data.source import build_source
from cellsmith.model import SCLD

Make = Callable[..., AnnData]
SIZE = {"n_latent": 4, "n_hidden": 16}
COVARIATES = {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["score"]}


def fit(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False)
    return model


def scvi_model(adata: AnnData, *, setup: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    scvi.model.SCVI.setup_anndata(adata, **({"batch_key": "batch", "labels_key": "cell_type"} | (setup or {})))
    return fit(scvi.model.SCVI(adata, **SIZE, **kwargs))


def scanvi_model(adata: AnnData, **setup: Any) -> Any:
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)
    adata.obs.loc[adata.obs_names[:15], "cell_type"] = "Unknown"
    scvi.model.SCANVI.setup_anndata(
        adata, labels_key="cell_type", unlabeled_category="Unknown", batch_key="batch", **setup
    )
    return fit(scvi.model.SCANVI(adata, **SIZE))


SOURCES: dict[str, Callable[[AnnData], Any]] = {
    "scvi": scvi_model,
    "covariates": lambda a: scvi_model(a, setup=COVARIATES, encode_covariates=True),
    "zinb-gene-batch": lambda a: scvi_model(a, gene_likelihood="zinb", dispersion="gene-batch"),
    "nb-gene-label": lambda a: scvi_model(a, gene_likelihood="nb", dispersion="gene-label"),
    "gene-cell": lambda a: scvi_model(a, dispersion="gene-cell"),
    "poisson": lambda a: scvi_model(a, gene_likelihood="poisson"),
    "encoded-library": lambda a: scvi_model(a, use_observed_lib_size=False),
    "scanvi": scanvi_model,
    "size-factor": lambda a: scvi_model(a, setup={"size_factor_key": "size"}, gene_likelihood="nb"),
    "size-factor-zinb": lambda a: scvi_model(a, setup={"size_factor_key": "size"}, dispersion="gene-batch"),
    "size-factor-poisson": lambda a: scvi_model(a, setup={"size_factor_key": "size"}, gene_likelihood="poisson"),
    "size-factor-scanvi": lambda a: scanvi_model(a, size_factor_key="size"),
}


def data(make: Make) -> AnnData:
    adata = make(90, 20)
    adata.obs["size"] = np.asarray(adata.X.sum(axis=1)).ravel() / 1000
    return adata


def fit_fully(model: SCLD) -> SCLD:
    model.train(accelerator="cpu", enable_progress_bar=False)
    return model


def taken_over(source: Any, **kwargs: Any) -> SCLD:
    new = SCLD.from_scvi_model(source, n_denoiser_hidden=16, n_denoiser_layers=1, n_diffusion_steps=5, **kwargs)
    return fit(new)


@pytest.mark.parametrize("kind", list(SOURCES))
def test_decoded_mean_is_the_generative_mean_of_the_source(kind: str, make: Make) -> None:
    adata = data(make)
    source = SOURCES[kind](adata)
    weights = {k: v.clone() for k, v in source.module.state_dict().items()}
    counts, obs, uns = adata.X.copy(), adata.obs.copy(), set(adata.uns)
    new = taken_over(source)
    tensors = next(iter(source._make_data_loader(adata, batch_size=90)))
    with torch.no_grad():
        inference = source.module.inference(**source.module._get_inference_input(tensors))
        inference["z"] = inference["qz"].loc
        px = source.module.generative(**source.module._get_generative_input(tensors, inference))["px"]
        mine = new.adata_manager.create_torch_dataset()[np.arange(90)]
        mine = {k: torch.as_tensor(v) for k, v in mine.items()}
        decoded = new.module.decode(inference["z"], mine)
        mean = decoded.mean(new.module.log_library(mine).exp())
    torch.testing.assert_close(decoded.rho.sum(dim=1), torch.ones(90))
    expected = px.rate if "poisson" in kind else px.mu
    scale = float(expected.abs().max())
    if kind == "encoded-library":
        expected = expected / expected.sum(dim=1, keepdim=True)
        mean, scale = mean / mean.sum(dim=1, keepdim=True), 1.0
    assert float((mean - expected).abs().max()) <= 1e-6 * max(scale, 1.0)
    np.testing.assert_allclose(new.get_latent_representation(), source.get_latent_representation(), atol=1e-5)
    now = source.module.state_dict()
    assert all(torch.equal(v, now[k]) for k, v in weights.items())
    assert (counts != adata.X).nnz == 0
    assert adata.obs.equals(obs)
    assert set(adata.uns) == uns
    assert source.adata is adata
    assert source.get_latent_representation().shape == (90, 4)
    generated = new.generate(25)
    assert generated.X.sum(axis=1).min() >= 1
    assert new.refit_["done"] == (kind != "gene-cell" and "poisson" not in kind)


@pytest.mark.parametrize("kind", ["scvi", "covariates", "scanvi", "encoded-library", "size-factor"])
def test_save_and_load_give_the_same_cells(kind: str, make: Make, tmp_path: Path) -> None:
    new = taken_over(SOURCES[kind](data(make)))
    new.save(str(tmp_path / "m"), save_anndata=True)
    loaded = SCLD.load(str(tmp_path / "m"), accelerator="cpu")
    a, b = new.generate(20), loaded.generate(20)
    assert (a.X != b.X).nnz == 0
    np.testing.assert_array_equal(a.obsm["X_scld"], b.obsm["X_scld"])
    np.testing.assert_array_equal(new.get_latent(), loaded.get_latent())


def test_only_the_diffusion_and_the_dispersion_of_the_copy_change(make: Make) -> None:
    source = scvi_model(data(make))
    new = taken_over(source)
    assert [s.name for s in new.stages()] == ["calibrate", "diffuse"]
    assert not any(k.startswith("autoencode/") for k in new.history_)
    before, after = source.module.state_dict(), new.module.autoencoder.source.state_dict()
    assert {k for k in before if not torch.equal(before[k], after[k])} <= {"px_r"}
    untouched = taken_over(source, calibrate_dispersion=False)
    after = untouched.module.autoencoder.source.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_totals_are_those_of_the_cells_where_the_source_has_size_factors(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scvi.settings, "_seed", None)
    scvi.settings.seed = 0
    adata = make(240, 20)
    types, generator = adata.obs["cell_type"].to_numpy(), np.random.default_rng(0)
    # Size factors that know nothing of the types, whose totals differ five times: the rates must carry that.
    adata.obs["size"] = generator.lognormal(0.0, 0.3, 240)
    depth = adata.obs["size"].to_numpy() * np.array([{"type_0": 300, "type_1": 900, "type_2": 1500}[t] for t in types])
    share = adata.X.toarray() / adata.X.sum(axis=1).reshape(-1, 1)
    adata.X = scipy.sparse.csr_matrix(generator.poisson(depth[:, None] * np.asarray(share)).astype(np.float32))
    # Barely trained: its rates do not yet add up to the totals, and the cells must not suffer from that.
    source = scvi_model(adata, setup={"size_factor_key": "size"}, gene_likelihood="nb")
    new = SCLD.from_scvi_model(source, n_denoiser_hidden=32, n_denoiser_layers=1, n_diffusion_steps=300)
    cells = fit_fully(new).generate(600)
    totals = np.asarray(adata.X.sum(axis=1)).ravel()
    for kind in ("type_0", "type_1", "type_2"):
        real, made = np.log(totals[types == kind]), np.log(cells.obs["scld_library"][cells.obs["cell_type"] == kind])
        assert abs(made.mean() - real.mean()) < 0.1
        assert 0.6 < made.std() / real.std() < 1.8
    np.testing.assert_array_equal(np.asarray(cells.X.sum(axis=1)).ravel(), cells.obs["scld_library"])
    # Observed cells are drawn again at size factor x rate, as the source itself draws them.
    again, theirs = (m.posterior_predictive_sample(n_samples=8).todense().sum() for m in (new, source))
    assert abs(again / theirs - 1) < 0.15


def test_conditions_are_the_covariates_of_the_source(make: Make) -> None:
    new = taken_over(SOURCES["covariates"](data(make)))
    assert new.covariates.names == ("batch", "cell_type", "donor")
    assert new.covariates.continuous == ("score",)
    table = new.adata.obs[["batch", "cell_type", "donor", "score"]][:12]
    got = new.generate(conditions=table)
    for name in ("batch", "cell_type", "donor"):
        assert got.obs[name].astype(str).tolist() == table[name].astype(str).tolist()


def test_unlabelled_cells_of_scanvi_are_no_class(make: Make) -> None:
    new = taken_over(scanvi_model(data(make)))
    labels = new.covariates.categories[new.covariates.labels]
    assert list(labels) == ["type_0", "type_1", "type_2"]
    assert new.training_states()["codes"][:15, new.covariates.labels].tolist() == [3] * 15
    assert list(new.generate(10).obs["cell_type"].cat.categories) == list(labels)


def test_other_cells_may_be_given(make: Make) -> None:
    source = scvi_model(data(make))
    other = make(70, 20, rng=5)
    new = taken_over(source, adata=other)
    assert new.adata.n_obs == 70
    assert new.generate(5).n_obs == 5
    with pytest.raises(SetupError, match="genes"):
        SCLD.from_scvi_model(source, adata=other[:, :10].copy())


def test_what_cannot_be_taken_over_is_refused(make: Make) -> None:
    adata = data(make)
    scvi.model.SCVI.setup_anndata(adata)
    with pytest.raises(NotTrainedError, match=r"model\.train\(\)"):
        SCLD.from_scvi_model(scvi.model.SCVI(adata, **SIZE))
    for kwargs, words in (
        ({"gene_likelihood": "normal"}, "gene_likelihood='normal'; accepted: 'nb', 'zinb', 'poisson'"),
        ({"latent_distribution": "ln"}, "latent_distribution='ln'; accepted: 'normal'"),
    ):
        source = scvi.model.SCVI(adata, **SIZE, **kwargs)
        source.is_trained_ = True
        with pytest.raises(SetupError, match=words):
            SCLD.from_scvi_model(source)
    with pytest.raises(SetupError, match=r"got int; accepted: SCVI, SCANVI"):
        SCLD.from_scvi_model(3)
    scvi.model.LinearSCVI.setup_anndata(adata)
    with pytest.raises(SetupError, match="got LinearSCVI"):
        SCLD.from_scvi_model(scvi.model.LinearSCVI(adata))


def test_a_saved_model_cannot_name_other_code() -> None:
    with pytest.raises(SetupError, match=r"only classes of scvi\.module"):
        build_source({"class": "os.system", "kwargs": {}})


def test_registry_of_the_source_is_not_shared(make: Make) -> None:
    adata = data(make)
    source = scvi_model(adata)
    new = taken_over(source)
    assert new.adata is not adata
    assert new.adata.uns["_scvi_uuid"] != adata.uns["_scvi_uuid"]
    x = new.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
    assert (x != adata.X).nnz == 0
