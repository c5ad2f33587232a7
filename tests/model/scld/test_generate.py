"""New cells: who they are, how deep, in which units, and that nothing but the seed decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

from cellsmith._errors import DataWarning, SetupError
from cellsmith.math import edm
from cellsmith.model import SCLD
from cellsmith.model.scld import generation as gen
from cellsmith.model.scld.request import request_rows

TYPE_0 = {"cell_type": "type_0"}


def same_cells(a: AnnData, b: AnnData) -> bool:
    return (a.X != b.X).nnz == 0 and np.array_equal(a.obsm["X_scld"], b.obsm["X_scld"])


# --- counts and totals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", [1, 37.4, "array"])
def test_exact_total_gives_the_requested_totals(library: Any, model: SCLD) -> None:
    given = np.random.default_rng(0).integers(1, 5000, 40) if library == "array" else library
    new = model.generate(40, library_size=given)
    totals = np.asarray(new.X.sum(axis=1)).ravel()
    np.testing.assert_array_equal(totals, np.rint(np.broadcast_to(given, 40)))
    np.testing.assert_array_equal(new.obs["scld_library"], totals)
    assert new.uns["scld"]["params"]["library"] == "given"


def test_counts_are_integers_and_no_cell_is_empty(model: SCLD) -> None:
    for decode in ("exact_total", "nb"):
        new = model.generate(100, decode=decode)
        assert isinstance(new.X, sparse.csr_matrix | sparse.csr_array)
        assert new.X.dtype == np.int32
        assert new.X.data.min() >= 1
        assert new.X.sum(axis=1).min() >= 1
        assert new.shape == (100, 50)


def test_nb_totals_vary_around_the_requested_ones(model: SCLD) -> None:
    totals = np.asarray(model.generate(200, library_size=1000, decode="nb").X.sum(axis=1)).ravel()
    assert totals.std() > 10
    assert abs(totals.mean() / 1000 - 1) < 0.15


def test_depth_leaves_the_profile_alone(model: SCLD) -> None:
    profiles = []
    for library in (500, 2000, 10_000):
        new = model.generate(200, library_size=library)
        assert (np.asarray(new.X.sum(axis=1)).ravel() == library).all()
        profiles.append(np.asarray(new.X.mean(axis=0)).ravel() / library)
    assert np.corrcoef(profiles).min() >= 0.99


def test_match_takes_totals_of_training_cells_of_the_condition(model: SCLD) -> None:
    new = model.generate(50, condition=TYPE_0, library_size="match")
    real = model.adata[model.adata.obs["cell_type"] == "type_0"]
    assert set(new.obs["scld_library"]) <= set(np.asarray(real.X.sum(axis=1)).ravel())


@pytest.mark.parametrize(("output", "dtype"), [("mean", np.float32), ("normalized", np.float32)])
def test_continuous_outputs_are_never_rounded(output: str, dtype: type, model: SCLD) -> None:
    new = model.generate(20, output=output)
    assert new.X.dtype == dtype
    total = new.X.sum(axis=1)
    np.testing.assert_allclose(total, 1.0 if output == "normalized" else new.obs["scld_library"], rtol=1e-4)
    assert not np.allclose(new.X, np.rint(new.X))


@pytest.mark.parametrize(
    ("library", "words"),
    [
        (0, "positive finite"),
        (-3.0, "positive finite"),
        (np.nan, "positive finite"),
        (np.ones(3), r"shape \(3,\); expected a number or 5"),
        ("mtach", "expected None, 'match'"),
    ],
)
def test_bad_totals_are_refused(library: Any, words: str, model: SCLD) -> None:
    with pytest.raises(SetupError, match=words):
        model.generate(5, library_size=library)


def test_totals_far_above_training_are_warned_about(model: SCLD) -> None:
    with pytest.warns(DataWarning, match="10 times the largest total"):
        model.generate(3, library_size=10_000_000)


# --- who is generated ------------------------------------------------------------------------------------------------


def test_composition_of_training_is_exact(model: SCLD) -> None:
    new = model.generate(480)
    both = ["batch", "cell_type"]
    real = 2 * model.adata.obs.groupby(both, observed=False).size()
    pd.testing.assert_series_equal(new.obs.groupby(both, observed=False).size(), real)
    block = new.uns["scld"]["composition"]["cell_type"]
    np.testing.assert_array_equal(block["requested"], block["delivered"])
    assert model.generate().n_obs == model.adata.n_obs


def test_condition_fixes_one_covariate_and_the_rest_follow(model: SCLD) -> None:
    new = model.generate(100, condition=TYPE_0)
    assert (new.obs["cell_type"] == "type_0").all()
    real = model.adata.obs.query("cell_type == 'type_0'")["batch"].value_counts(normalize=True)
    got = new.obs["batch"].value_counts(normalize=True)
    assert (got - real).abs().max() <= 0.01
    assert list(new.obs["cell_type"].cat.categories) == list(model.adata.obs["cell_type"].cat.categories)


def test_empty_condition_hides_everything_but_the_batch_that_was_decoded(model: SCLD) -> None:
    new = model.generate(60, condition={})
    assert new.obs["cell_type"].isna().all()
    assert new.obs["batch"].notna().all()
    assert new.obs["batch"].nunique() == 2


def test_conditions_and_like_are_honoured_row_by_row(model: SCLD) -> None:
    table = model.adata.obs[["cell_type", "batch"]].sample(30, random_state=0)
    by_table = model.generate(conditions=table)
    assert by_table.obs["cell_type"].tolist() == table["cell_type"].tolist()
    assert by_table.obs["batch"].tolist() == table["batch"].tolist()
    like = model.generate(like=model.adata[table.index])
    assert same_cells(by_table, like)


def test_mixture_of_categories_is_a_convex_mix_of_embeddings(model: SCLD) -> None:
    with_all = model.generate(30, condition={"cell_type": {"type_0": 1.0}})
    assert np.allclose(with_all.obsm["X_scld"], model.generate(30, condition=TYPE_0).obsm["X_scld"], atol=1e-4)
    half = model.generate(30, condition={"cell_type": {"type_0": 0.5, "type_1": 0.5}})
    assert not np.allclose(half.obsm["X_scld"], with_all.obsm["X_scld"], atol=1e-2)


def test_new_cells_carry_what_they_should(model: SCLD) -> None:
    new = model.generate(20, seed=4)
    assert new.obs["is_synthetic"].all()
    assert list(new.obs_names[:2]) == ["scld_0", "scld_1"]
    pd.testing.assert_frame_equal(new.var, model.adata.var)
    assert new.obsm["X_scld"].shape == (20, 4)
    assert not [c for c in new.obs if c.startswith("_scvi")]
    params = new.uns["scld"]["params"]
    assert params["seed"] == 4
    assert params["n_evaluations"] == 20
    assert "scld_fallback" not in new.obs
    assert "scld_rejected" not in new.obs
    assert new.uns["scld"]["provenance"]["method"] == "scld"


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_new_cells_survive_a_file(form: str, model: SCLD, tmp_path: Path) -> None:
    new = model.generate(15, guidance={"cell_type": 2.0}, condition=TYPE_0)
    getattr(new, f"write_{form}")(tmp_path / f"a.{form}")
    back = getattr(anndata, f"read_{form}")(tmp_path / f"a.{form}")
    assert same_cells(new, back)
    assert back.obs["cell_type"].tolist() == new.obs["cell_type"].tolist()
    assert set(back.uns["scld"]) == set(new.uns["scld"])


# --- randomness ------------------------------------------------------------------------------------------------------


def test_same_seed_same_cells_whatever_the_batch(model: SCLD) -> None:
    first = model.generate(2500, batch_size=4096)
    again = model.generate(2500, batch_size=1024)
    np.testing.assert_allclose(first.obsm["X_scld"], again.obsm["X_scld"], atol=1e-4)
    assert same_cells(model.generate(30), model.generate(30))
    assert not same_cells(model.generate(30), model.generate(30, seed=1))


def test_a_generator_and_none_are_seeds_and_are_recorded(model: SCLD) -> None:
    generator = np.random.default_rng(0)
    for seed in (generator, None):
        new = model.generate(10, seed=seed)
        recorded = new.uns["scld"]["params"]["seed"]
        assert isinstance(recorded, int)
        assert same_cells(new, model.generate(10, seed=recorded))


# --- guidance --------------------------------------------------------------------------------------------------------


def denoised(model: SCLD, guidance: Any) -> torch.Tensor:
    table = pd.DataFrame({"batch": ["batch_0"] * 8, "cell_type": ["type_0"] * 8})
    request = replace(request_rows(model.covariates, table), additive=np.zeros(8, dtype=bool))
    denoiser = gen.condition_denoiser(model.module, request, model.covariates, rows=slice(0, 8), guidance=guidance)
    y = 3.0 * torch.randn(8, model.module.n_state, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return denoiser(y, torch.tensor(3.0))


def test_weight_zero_is_holistic_and_weight_one_conditional_bit_for_bit(model: SCLD) -> None:
    network, module = model.module.ema_denoiser, model.module
    y = 3.0 * torch.randn(8, module.n_state, generator=torch.Generator().manual_seed(0))
    codes = torch.zeros(8, 2, dtype=torch.long)
    with torch.no_grad():
        null, cond = (
            edm.denoise(network.fixed(c), y, torch.tensor(3.0), cond=c)
            for c in (network.null(8), network.embed(codes, None, None))
        )
    assert torch.equal(denoised(model, 0.0), null)
    assert torch.equal(denoised(model, 1.0), cond)
    assert float((cond - null).abs().max()) > 1e-3
    torch.testing.assert_close(denoised(model, 2.5), null + 2.5 * (cond - null), atol=1e-4, rtol=1e-4)
    zero = model.generate(40, condition=TYPE_0, guidance=0.0, guidance_mode="joint").obsm["X_scld"]
    np.testing.assert_array_equal(zero, model.generate(40, condition={}).obsm["X_scld"])


def test_no_null_pass_at_weight_one(model: SCLD) -> None:
    passes = {
        w: model.generate(20, condition=TYPE_0, guidance=w).uns["scld"]["params"]["passes_per_evaluation"]
        for w in (0.0, 1.0, 2.0)
    }
    assert passes == {0.0: 1.0, 1.0: 1.0, 2.0: 2.0}


def test_conditions_change_the_cells(model: SCLD) -> None:
    """The cells of a condition lie nearest to the real cells of that condition."""
    types = model.adata.obs["cell_type"]
    real = model.module.to_state(torch.from_numpy(model.get_latent()), torch.zeros(240))[:, :4].numpy()
    centroids = np.stack([real[(types == f"type_{k}").to_numpy()].mean(axis=0) for k in range(3)])
    for k in range(3):
        new = model.generate(100, condition={"cell_type": f"type_{k}"})
        w = model.module.to_state(torch.from_numpy(new.obsm["X_scld"]), torch.zeros(100))[:, :4].numpy()
        assert int(np.argmin(((centroids - w.mean(axis=0)) ** 2).sum(axis=1))) == k


def test_guidance_by_covariate_is_additive_and_names_are_checked(model: SCLD) -> None:
    new = model.generate(20, condition=TYPE_0, guidance={"cell_type": 2.0, "batch": 1.0})
    assert new.uns["scld"]["params"]["n_additive"] == 20
    with pytest.raises(SetupError, match=r"guidance names 'cell_typ'.*Did you mean 'cell_type'"):
        model.generate(5, guidance={"cell_typ": 2.0})


# --- samplers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "n_steps", "evaluations"),
    [("dpmpp_2m", None, 20), ("ddim", None, 50), ("heun", None, 19), ("ancestral", 12, 12), ("dpmpp_2m", 7, 7)],
)
def test_every_sampler_runs_and_counts_its_evaluations(
    sampler: str, n_steps: int | None, evaluations: int, model: SCLD, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = edm.GuidedDenoiser.__call__

    def spy(denoiser: Any, y: Any, sigma: Any) -> Any:
        calls.append(len(y))
        return original(denoiser, y, sigma)

    monkeypatch.setattr(edm.GuidedDenoiser, "__call__", spy)
    new = model.generate(10, sampler=sampler, n_steps=n_steps)
    assert len(calls) == evaluations == new.uns["scld"]["params"]["n_evaluations"]
    assert np.isfinite(new.obsm["X_scld"]).all()


def test_samples_look_like_the_training_states(model: SCLD) -> None:
    new = model.generate(600)
    w = (new.obsm["X_scld"] - model.module.latent_centre.numpy()) / model.module.latent_scale.numpy()
    assert np.abs(w.mean(axis=0)).max() < 0.4
    assert 0.6 < w.std(axis=0).min() < w.std(axis=0).max() < 1.5
    totals = np.asarray(model.adata.X.sum(axis=1)).ravel()
    assert 0.7 < np.median(new.obs["scld_library"]) / np.median(totals) < 1.4


# --- batch independence ----------------------------------------------------------------------------------------------


def test_a_cell_decodes_alike_alone_and_in_any_batch(model: SCLD) -> None:
    z = model.get_latent_representation()
    alone = model.decode(z[:1], library_size=1000, batch="batch_0", output="mean")
    for mates in (z[1:30], z[100:229], -z[:29]):
        together = model.decode(np.r_[z[:1], mates], library_size=1000, batch="batch_0", output="mean")
        np.testing.assert_allclose(together[:1], alone, rtol=1e-5, atol=1e-5)
    other = [
        model.decode(np.r_[z[:1], m], library_size=1000, batch="batch_0", output="mean")[0] for m in (z[1:9], -z[1:9])
    ]
    np.testing.assert_array_equal(*other)
    assert not model.module.training


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"sampler": "dpm"}, "sampler='dpm'"),
        ({"output": "count"}, "Did you mean 'counts'"),
        ({"decode": "exact"}, "Did you mean 'exact_total'"),
        ({"guidance_mode": "add"}, "guidance_mode='add'"),
        ({"on_small": "rise"}, "Did you mean 'raise'"),
        ({"n_steps": 0}, "step"),
        ({"n_cells": 0}, "n_cells=0"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments_are_refused(kwargs: dict[str, Any], words: str, model: SCLD) -> None:
    with pytest.raises(SetupError, match=words):
        model.generate(**{"n_cells": 5, **kwargs})
