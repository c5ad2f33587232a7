"""A diffusion on top of an scVI or scANVI whose cells are minified: the posterior is there, the counts may be gone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scvi
import torch
from anndata import AnnData

from cellsmith._errors import DataWarning, SetupError
from cellsmith.model import SCLD

Make = Callable[..., AnnData]
SIZE = {"n_latent": 4, "n_hidden": 16}
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}
GONE, KEPT = "latent_posterior_parameters", "latent_posterior_parameters_with_counts"


def minified(make: Make, kind: str = GONE, *, layer: str | None = None, scanvi: bool = False) -> tuple[Any, AnnData]:
    """A trained source whose AnnData is minified, and the cells with their counts."""
    full = make(90, 20)
    if layer is not None:
        full.layers[layer] = full.X.copy()
        full.X = full.X.log1p()
    setup = {"layer": layer, "batch_key": "batch", "labels_key": "cell_type"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if scanvi:
            scvi.model.SCANVI.setup_anndata(full, unlabeled_category="Unknown", **setup)
            source = scvi.model.SCANVI(full, **SIZE)
        else:
            scvi.model.SCVI.setup_anndata(full, **setup)
            source = scvi.model.SCVI(full, **SIZE)
        source.train(max_epochs=2, **QUIET)
        posterior = source.get_latent_representation(return_dist=True)
        # Moved by a constant, so that a posterior that was read can be told from one that was computed.
        source.adata.obsm["X_latent_qzm"], source.adata.obsm["X_latent_qzv"] = posterior[0] + 1.0, posterior[1]
        source.minify_adata(kind)
    return source, full


def taken_over(source: Any, **kwargs: Any) -> SCLD:
    new = SCLD.from_scvi_model(source, n_denoiser_hidden=16, n_denoiser_layers=1, n_diffusion_steps=5, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new.train(**QUIET)
    return new


@pytest.mark.parametrize("kind", [GONE, KEPT])
@pytest.mark.parametrize("scanvi", [False, True])
def test_the_posterior_is_that_of_the_minified_cells(kind: str, scanvi: bool, make: Make) -> None:
    source, full = minified(make, kind, scanvi=scanvi)
    before, mini = {k: v.clone() for k, v in source.module.state_dict().items()}, source.adata
    obsm, obs, uns = {k: v.copy() for k, v in mini.obsm.items()}, mini.obs.copy(), set(mini.uns)
    new = taken_over(source)
    prefix = "scanvi" if scanvi else "scvi"
    np.testing.assert_allclose(new.get_latent_representation(), mini.obsm[f"{prefix}_latent_qzm"], atol=1e-6)
    table, log_total = new._encode(new.adata)
    np.testing.assert_allclose(table["sd"].square(), mini.obsm[f"{prefix}_latent_qzv"], rtol=1e-5)
    totals = np.asarray(full.X.sum(axis=1)).ravel()
    np.testing.assert_allclose(log_total.exp(), totals, rtol=1e-5)
    np.testing.assert_allclose(np.exp(new.training_rows_["log_library"]), totals, rtol=1e-5)
    cells = new.generate(40, condition={"cell_type": "type_0"}, post_guidance="cycle")
    assert cells.X.sum(axis=1).min() >= 1
    assert np.isfinite(new.get_log_density(n_steps=5)).all()
    if kind == KEPT:
        assert np.isfinite(new.get_log_density(counts=True, n_steps=5)).all()
    else:
        with pytest.raises(SetupError, match="counts of these cells are gone"):
            new.get_log_density(counts=True)
    # The source and its cells are as they were.
    assert source.adata is mini
    assert set(mini.uns) == uns
    assert mini.obs.equals(obs)
    assert mini.obsm.keys() == obsm.keys()
    assert all(np.array_equal(mini.obsm[k], v) for k, v in obsm.items())
    now = source.module.state_dict()
    assert all(torch.equal(v, now[k]) for k, v in before.items())
    assert source.minified_data_type == kind


def test_without_counts_the_dispersion_stays_and_that_is_recorded(make: Make) -> None:
    source, _ = minified(make)
    new = SCLD.from_scvi_model(source, n_denoiser_hidden=16, n_denoiser_layers=1, n_diffusion_steps=5)
    with pytest.warns(DataWarning, match=r"dispersion was not refitted: .* minified"):
        new.train(**QUIET)
    assert new.refit_["done"] is False
    assert "minified" in new.refit_["reason"]
    after = new.module.autoencoder.source.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in source.module.state_dict().items())
    cells = new.generate(10)
    assert "minified" in cells.uns["scld"]["refit"]["reason"]
    provenance = cells.uns["scld"]["provenance"]
    assert provenance["source_cells"] == GONE
    assert any("not refitted" in str(w) for w in provenance["warnings"])


def test_with_counts_the_dispersion_is_refitted(make: Make) -> None:
    new = taken_over(minified(make, KEPT)[0])
    assert new.refit_["done"]
    assert np.isfinite([new.refit_["nll_before"], new.refit_["nll_after"]]).all()
    assert new._block()["provenance"]["source_cells"] == KEPT
    assert np.isfinite(float(new.get_elbo()))


@pytest.mark.parametrize("kind", [GONE, KEPT])
@pytest.mark.parametrize("own_file", [False, True])
def test_save_and_load_give_the_same_cells(kind: str, own_file: bool, make: Make, tmp_path: Path) -> None:
    new = taken_over(minified(make, kind)[0])
    new.save(str(tmp_path / "m"), save_anndata=own_file)
    loaded = SCLD.load(str(tmp_path / "m"), adata=None if own_file else new.adata, accelerator="cpu")
    a, b = new.generate(20), loaded.generate(20)
    assert (a.X != b.X).nnz == 0
    np.testing.assert_array_equal(a.obsm["X_scld"], b.obsm["X_scld"])
    np.testing.assert_array_equal(new.get_latent(), loaded.get_latent())
    torch.testing.assert_close(new.training_states()["w"], loaded.training_states()["w"])


def test_a_layer_is_read_at_its_place(make: Make) -> None:
    new = taken_over(minified(make, layer="counts")[0])
    assert not new.refit_["done"]
    assert new.generate(10).n_obs == 10


def test_cells_with_counts_can_be_queried(make: Make) -> None:
    source, full = minified(make)
    new = taken_over(source)
    expected = source.adata.obsm["scvi_latent_qzm"] - 1.0
    for cells in (full.copy(), full[:40], full.copy()[10:30].copy()):
        rows = full.obs_names.get_indexer(cells.obs_names)
        np.testing.assert_allclose(new.get_latent_representation(cells), expected[rows], atol=1e-4)
        assert np.isfinite(new.get_log_density(cells, n_steps=3)).all()
        assert np.isfinite(new.get_log_density(cells, counts=True, n_steps=3)).all()
        again = cells.copy()
        np.testing.assert_allclose(new.get_latent_representation(again), expected[rows], atol=1e-4)
    moved = new.translate(full[:15].copy(), {"cell_type": "type_1"})
    np.testing.assert_array_equal(moved.X.sum(axis=1), full.X[:15].sum(axis=1))
    grown = new.augment(full.copy(), key="cell_type")
    assert grown.obs["is_synthetic"].any()
    assert source.get_latent_representation().shape == (90, 4)
    assert new.get_latent_representation().shape == (90, 4)


def test_other_cells_may_be_given_with_or_without_counts(make: Make) -> None:
    source, full = minified(make)
    with_counts = taken_over(source, adata=full.copy())
    assert with_counts.refit_["done"]
    assert with_counts._block()["provenance"]["source_cells"] == "counts"
    part = taken_over(source, adata=source.adata[:60].copy())
    assert part.adata.n_obs == 60
    assert not part.refit_["done"]


def test_what_needs_counts_is_refused(make: Make) -> None:
    new = taken_over(minified(make)[0])
    with pytest.raises(ValueError, match="does not support minified data"):
        new.get_elbo()
    with pytest.raises(SetupError, match=r"counts of these real cells are gone.*augment\(adata"):
        new.augment(key="cell_type")
    SCLD.setup_anndata(new.adata, batch_key="batch")
    with pytest.raises(SetupError, match=r"minified.*from_scvi_model"):
        SCLD(new.adata)


def test_posteriors_that_do_not_fit_are_refused(make: Make) -> None:
    source, _ = minified(make)
    for change, words in (
        (lambda a: a.obsm.pop("scvi_latent_qzm"), "not by this SCVI"),
        (lambda a: a.obsm.update(scvi_latent_qzm=np.zeros((90, 3))), r"shape \(90, 3\); expected .* \(90, 4\)"),
        (lambda a: a.obsm.update(scvi_latent_qzv=np.zeros((90, 4))), "variance of 0"),
    ):
        broken = source.adata.copy()
        change(broken)
        with pytest.raises(SetupError, match=words):
            SCLD.from_scvi_model(source, adata=broken)
