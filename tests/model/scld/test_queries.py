"""Queries of real cells: interpolate, augment, translate, decode, check, score, and those of scvi-tools."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from anndata import AnnData, read_h5ad
from scvi.criticism import PosteriorPredictiveCheck
from scvi.distributions import NegativeBinomial

from cellsmith import _compat
from cellsmith._errors import DataWarning, SetupError
from cellsmith._rng import Streams
from cellsmith.model import SCLD

A, B = {"cell_type": "type_0"}, {"cell_type": "type_1"}


# --- interpolate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["condition", "latent", "noise"])
def test_interpolation_walks_from_one_end_to_the_other(mode: str, model: SCLD) -> None:
    ends = (A, B) if mode == "condition" else (model.adata[[0]], model.adata[[7]])
    walk = model.interpolate(*ends, n_steps=5, n_cells=12, mode=mode)
    assert walk.n_obs == 60
    np.testing.assert_allclose(walk.obs["scld_step"], np.repeat(np.linspace(0, 1, 5), 12))
    z = walk.obsm["X_scld"].reshape(5, 12, 4)
    assert np.isfinite(z).all()
    from_start = ((z - z[0]) ** 2).sum(axis=(1, 2))
    assert from_start[0] == 0
    assert from_start[-1] >= 0.99 * from_start[1]
    if mode != "condition":
        real = model.get_latent_representation()
        tolerance = 1e-3 if mode == "latent" else 0.5
        np.testing.assert_allclose(z[0, 0], real[0], atol=tolerance)
        np.testing.assert_allclose(z[-1, 0], real[7], atol=tolerance)


def test_interpolation_may_start_from_real_cells(model: SCLD) -> None:
    start = model.adata[:12].copy()
    near, far = (
        model.interpolate(A, B, n_steps=2, n_cells=12, start_cells=start, start_noise=t).obsm["X_scld"][:12]
        for t in (0.05, 0.95)
    )
    real = model.get_latent_representation()[:12]
    assert ((near - real) ** 2).sum() < ((far - real) ** 2).sum()


def test_interpolation_refuses_ends_that_do_not_fit(model: SCLD) -> None:
    with pytest.raises(SetupError, match="Did you mean 'latent'"):
        model.interpolate(A, B, mode="latnet")
    with pytest.raises(SetupError, match="two mappings"):
        model.interpolate(model.adata[[0]], B)
    with pytest.raises(SetupError, match="one cell each"):
        model.interpolate(A, B, mode="noise")


# --- augment ---------------------------------------------------------------------------------------------------------


def test_augment_fills_small_categories_and_keeps_the_real_rows_first(model: SCLD) -> None:
    grown = model.augment(key="cell_type")
    real = model.adata
    assert (grown.X[: real.n_obs] != real.X).nnz == 0
    assert grown.obs_names[: real.n_obs].tolist() == real.obs_names.tolist()
    assert not grown.obs["is_synthetic"][: real.n_obs].any()
    assert grown.obs["is_synthetic"][real.n_obs :].all()
    assert grown.obs["cell_type"].value_counts().nunique() == 1
    assert grown.obs_names.is_unique
    exact = model.augment(key="cell_type", target={"type_2": 60})
    assert (exact.obs["cell_type"] == "type_2").sum() == 60
    assert exact.n_obs - real.n_obs == 60 - (real.obs["cell_type"] == "type_2").sum()


def test_augment_says_where_it_capped(model: SCLD) -> None:
    n = int((model.adata.obs["cell_type"] == "type_2").sum())
    with pytest.warns(DataWarning, match=rf"0\.5 times the real cells for 'type_2' \({n} real\)"):
        grown = model.augment(key="cell_type", target={"type_2": 10 * n}, max_ratio=0.5)
    assert grown.obs["is_synthetic"].sum() == n // 2


def test_augment_without_need_returns_the_real_cells(model: SCLD) -> None:
    same = model.augment(key="cell_type", target=1)
    assert same.n_obs == model.adata.n_obs
    assert not same.obs["is_synthetic"].any()


def test_augment_keeps_what_it_can_and_names_what_it_leaves_out(model: SCLD) -> None:
    real = model.adata.copy()
    real.obs["score"] = np.arange(240)
    real.obs["fine"] = np.arange(240) % 2 == 0
    real.obsm["X_pca"] = np.ones((240, 3), dtype=np.float32)
    real.obsm["votes"] = np.ones((240, 2), dtype=int)
    real.obsm["table"] = pd.DataFrame({"u": np.arange(240.0)}, index=real.obs_names)
    real.obsm["hashes"] = scipy.sparse.csr_matrix(np.eye(240, 4))
    real.layers["dense"] = np.full((240, 50), 2.0, dtype=np.float32)
    real.layers["log"] = real.X.log1p()
    real.varm["loadings"] = np.ones((50, 2))
    real.obsp["graph"] = scipy.sparse.eye(240, format="csr")
    before = real.copy()
    with pytest.warns(DataWarning, match=r"left out \.obsm\['hashes'\], \.layers\['log'\]"):
        grown = model.augment(real, key="cell_type", target={"type_2": 60})
    new = grown[240:]
    assert new.n_obs > 0
    assert grown.X.dtype == np.float32
    assert new.X.sum(axis=1).min() >= 1
    assert grown.obsm["X_pca"].dtype == grown.layers["dense"].dtype == np.float32
    for values in (new.obsm["X_pca"], new.obsm["votes"], new.obsm["table"], new.layers["dense"], new.obs[["score"]]):
        assert np.isnan(np.asarray(values, dtype=float)).all()
    np.testing.assert_array_equal(grown.obsm["X_pca"][:240], real.obsm["X_pca"])
    np.testing.assert_array_equal(grown.obsm["votes"][:240], real.obsm["votes"])
    np.testing.assert_array_equal(grown.obsm["table"]["u"][:240], np.arange(240.0))
    np.testing.assert_array_equal(grown.layers["dense"][:240], real.layers["dense"])
    np.testing.assert_array_equal(grown.varm["loadings"], real.varm["loadings"])
    assert grown.obs["score"][:240].tolist() == list(range(240))
    assert new.obs["fine"].isna().all()
    assert np.isfinite(new.obsm["X_scld"]).all()
    assert not grown.obsp
    assert grown.obs_names.is_unique
    # What was handed over is as it was.
    assert set(real.layers) == set(before.layers)
    assert (real.X != before.X).nnz == 0
    assert "is_synthetic" not in real.obs


def test_augment_hands_query_arguments_to_generate(model: SCLD) -> None:
    plain, sharp, deep = (
        model.augment(key="cell_type", target={"type_2": 60}, **how)
        for how in ({}, {"guidance": 3.0, "guidance_mode": "joint"}, {"library_size": 500, "sampler": "ddim"})
    )
    new = [a[240:] for a in (plain, sharp, deep)]
    child = Streams(0).integer("augment", 0)
    same = model.generate(new[0].n_obs, condition={"cell_type": "type_2"}, min_cells=1, seed=child)
    assert (same.X != new[0].X).nnz == 0
    assert not np.allclose(new[0].obsm["X_scld"], new[1].obsm["X_scld"])
    assert (np.asarray(new[2].X.sum(axis=1)) == 500).all()
    params = sharp.uns["scld"]["params"]
    assert (params["guidance"], params["key"], params["seed"]) == (3.0, "cell_type", 0)
    assert deep.uns["scld"]["params"]["sampler"] == "ddim"
    with pytest.raises(SetupError, match="'match' or one number"):
        model.augment(key="cell_type", library_size=np.ones(5))
    with pytest.raises(SetupError, match=r"type_2.* training cells; at least min_cells=150"):
        model.augment(key="cell_type", target={"type_2": 60}, min_cells=150)


def test_augment_records_every_category(model: SCLD, tmp_path: Path) -> None:
    grown = model.augment(key="cell_type", post_guidance="reject")
    table = grown.uns["scld"]["composition"]["cell_type"]
    sizes = grown.obs["cell_type"].value_counts()
    for category, real, wanted, added in zip(*(table[c] for c in ("category", "real", "wanted", "added")), strict=True):
        assert real == (model.adata.obs["cell_type"] == category).sum()
        assert real + added == sizes[category] == wanted
    assert grown.uns["scld"]["post_guidance"]["kind"] == "reject"
    assert len(grown.uns["scld"]["post_guidance"]["acceptance"]) == (np.asarray(table["added"]) > 0).sum()
    grown.write_h5ad(tmp_path / "a.h5ad")
    assert read_h5ad(tmp_path / "a.h5ad").shape == grown.shape


def test_augment_reads_counts_where_they_were_registered(make: Callable[..., AnnData], quick: Any) -> None:
    adata = make(80, 20)
    adata.layers["counts"], adata.X = adata.X.copy(), adata.X.log1p()
    trained = quick(adata, setup={"layer": "counts", "labels_key": "cell_type"})
    grown = trained.augment(key="cell_type")
    assert (grown.X[:80] != adata.layers["counts"]).nnz == 0
    assert (grown.layers["counts"] != grown.X).nnz == 0
    SCLD.setup_anndata(grown, layer="counts", labels_key="cell_type")
    again = trained.augment(grown, key="cell_type", target=int(grown.obs["cell_type"].value_counts().max()) + 1)
    assert again.obs_names.is_unique


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"key": "cell_typ"}, "Did you mean 'cell_type'"),
        ({"key": "cell_type", "target": "min"}, "target='min'"),
        ({"key": "cell_type", "target": 0}, "at least 1"),
        ({"key": "cell_type", "max_ratio": -1}, "max_ratio=-1; expected a positive number"),
        ({"key": "cell_type", "target": {"type_9": 5}}, "'type_9'"),
        ({"key": "cell_type", "guidance_mode": "add"}, "guidance_mode='add'"),
    ],
)
def test_augment_refuses_what_it_cannot_do(kwargs: dict[str, Any], words: str, model: SCLD) -> None:
    with pytest.raises(SetupError, match=words):
        model.augment(**kwargs)


# --- translate and decode --------------------------------------------------------------------------------------------


def test_translation_under_the_own_condition_is_the_identity(model: SCLD) -> None:
    cells = model.adata[model.adata.obs["cell_type"] == "type_0"][:30].copy()
    same = model.translate(cells, A, n_steps=200)
    real = model.get_latent_representation(cells)
    assert np.corrcoef(same.obsm["X_scld"].ravel(), real.ravel())[0, 1] >= 0.99
    np.testing.assert_array_equal(same.X.sum(axis=1), cells.X.sum(axis=1))


def test_translation_needs_a_column_with_the_category(model: SCLD) -> None:
    with pytest.raises(SetupError, match="condition='batch_1'; expected a mapping"):
        model.translate(model.adata[:4], "batch_1")  # type: ignore[arg-type]


def test_translation_carries_every_row_over(model: SCLD) -> None:
    cells = model.adata[model.adata.obs["cell_type"] == "type_0"][:30].copy()
    moved = model.translate(cells, B)
    assert moved.n_obs == 30
    assert (moved.obs["cell_type"] == "type_1").all()
    assert moved.obs["batch"].tolist() == cells.obs["batch"].tolist()
    types = model.adata.obs["cell_type"].to_numpy()
    z = model.get_latent_representation()
    centres = [z[types == f"type_{k}"].mean(axis=0) for k in range(2)]
    before, after = (((x - centres[1]) ** 2).sum(axis=1).mean() for x in (z[types == "type_0"], moved.obsm["X_scld"]))
    assert after < before
    with pytest.raises(SetupError, match="cell_type='type_9'"):
        model.translate(cells, {"cell_type": "type_9"})


def test_decode_takes_latents_in_their_own_units(model: SCLD) -> None:
    z = model.get_latent_representation()[:20]
    batch = model.adata.obs["batch"].astype(object).to_numpy()[:20]
    totals = np.arange(100, 120)
    x = model.decode(z, library_size=totals, batch=batch)
    assert scipy.sparse.issparse(x)
    np.testing.assert_array_equal(np.asarray(x.sum(axis=1)).ravel(), totals)
    mean = model.decode(z, library_size=totals, batch=batch, output="mean")
    np.testing.assert_allclose(mean.sum(axis=1), totals, rtol=1e-4)
    assert (x != model.decode(z, library_size=totals, batch=batch)).nnz == 0
    other = model.decode(z, library_size=totals, batch="batch_1", output="mean")
    assert not np.allclose(mean, other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"z": np.zeros((3, 5))}, r"shape \(3, 5\); expected \(n, 4\)"),
        ({"batch": None}, "needs batch="),
        ({"batch": "batch_7"}, "batch='batch_7'"),
        ({"library_size": 0}, "positive"),
        ({"output": "x"}, "output='x'"),
    ],
)
def test_decode_refuses_what_does_not_fit(change: dict[str, Any], words: str, model: SCLD) -> None:
    given = {"z": np.zeros((3, 4)), "library_size": 100, "batch": "batch_0", **change}
    with pytest.raises(SetupError, match=words):
        model.decode(given.pop("z"), **given)


# --- posterior predictive --------------------------------------------------------------------------------------------


def test_posterior_predictive_check_runs(model: SCLD) -> None:
    counts = model.adata.copy()
    counts.X = counts.X.astype(np.int32)  # scvi-tools' own check fails on sparse floats
    check = PosteriorPredictiveCheck(counts, {"SCLD": model}, n_samples=2)
    check.zero_fraction()
    check.coefficient_of_variation("cells")
    metric = check.metrics["zero_fraction"]
    assert np.abs(metric["SCLD"] - metric["Raw"]).mean() < 0.1


def test_posterior_predictive_keeps_cells_in_order(model: SCLD) -> None:
    rows = np.array([7, 3, 200])
    x = model.posterior_predictive_sample(indices=rows, n_samples=3, decode="exact_total")
    assert x.shape == (3, 50, 3)
    totals = np.asarray(model.adata.X.sum(axis=1)).ravel()[rows]
    np.testing.assert_array_equal(x.todense().sum(axis=1), np.repeat(totals[:, None], 3, axis=1))
    assert model.posterior_predictive_sample(indices=rows).shape == (3, 50)
    mask = np.zeros(240, dtype=bool)
    mask[:5] = True
    assert model.posterior_predictive_sample(indices=mask).shape == (5, 50)


# --- densities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditional", [False, True])
def test_log_density_ranks_real_cells_above_impossible_depths(conditional: bool, model: SCLD) -> None:
    from sklearn.metrics import roc_auc_score

    fake = model.adata.copy()
    fake.X = fake.X * 30
    scores = [model.get_log_density(a, conditional=conditional, n_steps=20) for a in (model.adata, fake)]
    assert scores[0].shape == (240,)
    assert np.isfinite(np.concatenate(scores)).all()
    assert roc_auc_score(np.repeat([1, 0], 240), np.concatenate(scores)) >= 0.95


def test_conditional_density_prefers_the_right_label(model: SCLD) -> None:
    wrong = model.adata.copy()
    wrong.obs["cell_type"] = wrong.obs["cell_type"].cat.rename_categories({"type_0": "type_1", "type_1": "type_0"})
    right = model.get_log_density(conditional=True, n_steps=10)
    assert right.mean() > model.get_log_density(wrong, conditional=True, n_steps=10).mean()
    np.testing.assert_allclose(model.get_log_density(n_steps=10), model.get_log_density(wrong, n_steps=10), atol=1e-4)


def test_log_density_of_counts_finds_shuffled_genes(model: SCLD) -> None:
    from sklearn.metrics import roc_auc_score

    auc = {}
    for axis in (0, 1):
        fake = model.adata.copy()
        fake.X = scipy.sparse.csr_matrix(np.random.default_rng(0).permuted(model.adata.X.toarray(), axis=axis))
        for counts in (False, True):
            scores = [model.get_log_density(a, counts=counts, n_steps=10) for a in (model.adata, fake)]
            auc[axis, counts] = roc_auc_score(np.repeat([1, 0], 240), np.concatenate(scores))
    # Genes shuffled within every cell; shuffled among cells, they keep their own distributions and are harder to find.
    assert auc[1, True] >= 0.95
    assert auc[0, True] >= auc[0, False] + 0.3


def test_log_density_of_counts_is_the_sum_of_its_terms(model: SCLD) -> None:
    cells, module = model.adata[:6].copy(), model.module
    x, (table, _) = cells.X.toarray(), model._encode(cells)
    mean = model.decode(table["mean"], library_size=x.sum(axis=1), batch=cells.obs["batch"], output="mean")
    theta = module.autoencoder.log_theta.exp().detach()
    likelihood = NegativeBinomial(mu=torch.from_numpy(mean), theta=theta).log_prob(torch.from_numpy(x)).sum(dim=1)
    encoder = torch.distributions.Normal(table["mean"], table["sd"]).log_prob(table["mean"]).sum(dim=1)
    scales = torch.cat([module.latent_scale, module.library_scale.reshape(1)])
    expected = model.get_log_density(cells, n_steps=5) + (likelihood - encoder - scales.log().sum()).numpy()
    np.testing.assert_allclose(model.get_log_density(cells, counts=True, n_steps=5), expected, rtol=1e-4)


# --- the queries of scvi-tools ---------------------------------------------------------------------------------------


def test_elbo_rises_with_training(model: SCLD, make: Callable[..., AnnData], quick: Callable[..., SCLD]) -> None:
    short = quick(make(240, 50))
    values = [float(m.get_elbo()) for m in (short, model)]
    assert np.isfinite(values).all()
    assert values[1] > values[0]


def test_normalized_expression_and_latents_have_their_shapes(model: SCLD) -> None:
    rho = model.get_normalized_expression()
    assert isinstance(rho, pd.DataFrame)
    assert rho.shape == (240, 50)
    np.testing.assert_allclose(rho.sum(axis=1), 1.0, rtol=1e-4)
    assert model.get_normalized_expression(transform_batch="batch_0", n_samples=2, indices=[1, 2]).shape == (2, 50)
    np.testing.assert_array_equal(model.get_latent(), model.get_latent_representation())


def test_differential_expression_runs(model: SCLD) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        groups = {"groupby": "cell_type", "group1": "type_0", "group2": "type_1"}
        table = model.differential_expression(**groups, mode="change", silent=True)
    assert len(table) == 50
    assert np.isfinite(table["lfc_mean"]).all()


def test_unsound_queries_are_hidden(model: SCLD) -> None:
    sound = _compat.aggregated_posterior_is_sound()
    for name in ("get_aggregated_posterior", "differential_abundance"):
        assert hasattr(model, name) == sound
