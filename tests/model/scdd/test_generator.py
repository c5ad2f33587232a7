"""The generator: its response to codes, samples, decoding, guidance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from cellsmith._errors import DataWarning, SetupError
from cellsmith.model import SCDD


def test_response_falls_with_the_noise_level_and_a_warning_names_it(model: SCDD) -> None:
    near, far = model.get_generator_response(0.2), model.get_generator_response(20.0)
    assert np.all(near["jacobian"] > far["jacobian"])
    assert np.all(near["spread"] > far["spread"])
    assert near["class"].tolist() == list(model.classes)
    assert model.response_["sigma_star"] == 1.0
    with pytest.warns(DataWarning, match=r"sigma_star=20.*mean Jacobian norm of 0"):
        model._warn_of_weak_response(far)


def test_guidance_of_one_and_zero_are_the_plain_estimates(model: SCDD) -> None:
    module, z = model.module, torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels, sigma = torch.arange(6) % 3, torch.tensor(1.0)
    with torch.no_grad():
        plain = module.denoiser_of(labels, guidance=1.0)(z, sigma)
        free = module.denoiser_of(labels, guidance=0.0)(z, sigma)
        none = module.denoiser_of(torch.full((6,), 3), guidance=1.0)(z, sigma)
        strong = module.denoiser_of(labels, guidance=1.5)(z, sigma)
    torch.testing.assert_close(free, none, rtol=0, atol=1e-6)
    assert float((plain - free).abs().max()) > 0
    torch.testing.assert_close(strong, free + 1.5 * (plain - free), rtol=1e-5, atol=1e-5)


def test_samples_are_counts_of_the_asked_classes(model: SCDD) -> None:
    made = model.generate(20, condition={"cell_type": "type_1", "batch": "batch_0"}, library_size=500)
    assert made.X.dtype == np.int32
    assert set(made.obs["cell_type"]) == {"type_1"}
    assert set(made.obs["batch"]) == {"batch_0"}
    assert np.all(np.asarray(made.X.sum(axis=1)).ravel() == 500)
    assert np.all(made.obs["is_synthetic"])
    again = model.generate(20, condition={"cell_type": "type_1", "batch": "batch_0"}, library_size=500)
    assert (made.X != again.X).nnz == 0
    table = pd.DataFrame({"cell_type": ["type_0", "type_2"]})
    assert model.generate(conditions=table).obs["cell_type"].tolist() == ["type_0", "type_2"]
    free = model.generate()
    assert free.n_obs == model.adata.n_obs
    medians = model.median_library_[free.obs["cell_type"].cat.codes]
    np.testing.assert_array_equal(np.asarray(free.X.sum(axis=1)).ravel(), np.rint(medians))


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"condition": {"cell_typ": "type_1"}}, "cell_type"),
        ({"condition": {"cell_type": "type_9"}}, "Did you mean"),
        ({"sampler": "ddimm"}, "ddim"),
        ({"library_size": 0}, "positive"),
        ({"library_size": "deep"}, "median"),
    ],
)
def test_impossible_samples_are_refused(model: SCDD, kwargs: dict, match: str) -> None:
    with pytest.raises(SetupError, match=match):
        model.generate(3, **kwargs)


def test_decoding_gives_shares_or_expected_counts(model: SCDD) -> None:
    z = model.get_latent_representation()[:5]
    shares = model.decode(z, batch="batch_1")
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(model.decode(z, batch="batch_1", library_size=100), 100 * shares, rtol=1e-5)
    assert not np.allclose(shares, model.decode(z, batch="batch_0"))
    np.testing.assert_allclose(model.decode(z[:1], batch="batch_1")[0], shares[0], atol=1e-6)
    for kwargs, match in (({"z": z[:, :2]}, "expected"), ({"z": z, "batch": "batch_7"}, "Did you mean")):
        with pytest.raises(SetupError, match=match):
            model.decode(**kwargs)


def test_standardised_latents_have_unit_spread(model: SCDD) -> None:
    module = model.module
    train = model.get_latent_representation(indices=model.train_indices)
    standard = module.standardise(torch.from_numpy(train))
    # The spread of the means alone: at most 1, since that of the posteriors is added to it.
    assert float(standard.mean().abs()) < 1e-4
    assert float(standard.std(dim=0).max()) <= 1.01
    torch.testing.assert_close(module.restore(standard), torch.from_numpy(train), rtol=1e-4, atol=1e-5)


def test_latents_of_some_cells_and_of_new_ones(model: SCDD, cells: Callable[..., AnnData]) -> None:
    full = model.get_latent()
    np.testing.assert_allclose(model.get_latent_representation(indices=[3, 1]), full[[3, 1]], atol=1e-5)
    fresh = cells(60, rng=1)
    fresh.obs = fresh.obs.drop(columns="cell_type")  # labels are not needed to encode
    assert model.get_latent_representation(fresh).shape == (60, 4)
    assert not np.array_equal(model.get_latent_representation(give_mean=False), full)


def test_writing_puts_latents_into_the_source(model: SCDD) -> None:
    target = model.adata.copy()
    model.write(target, key_added="mine")
    np.testing.assert_allclose(target.obsm["X_mine"], model.get_latent(), atol=1e-6)
    assert target.uns["mine"]["provenance"]["method"] == "scdd"
    assert "X_mine" not in model.adata.obsm


def test_no_batch_norm_anywhere_and_dispersion_moved(model: SCDD) -> None:
    assert not any("BatchNorm" in type(m).__name__ for m in model.module.modules())
    assert model.refit_["done"]
    assert set(model.history_) >= {"autoencoder/train_loss", "generator/validation_loss", "autoencoder/train_label"}
