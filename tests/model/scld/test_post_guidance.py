"""E20: five readings of post-guidance, none by default, each recorded."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from cellsmith._errors import SetupError
from cellsmith.model import SCLD

KINDS = [
    ("density_ratio", {"n_candidates": 2}),
    ("density_ratio", {"gradient": True}),
    ("cycle", {}),
    ("reject", {"max_tries": 3}),
]


def test_no_post_guidance_by_default(model: SCLD) -> None:
    assert inspect.signature(SCLD.generate).parameters["post_guidance"].default is None
    new = model.generate(20)
    assert new.uns["scld"]["post_guidance"] == {"kind": "none"}
    again = model.generate(20, post_guidance=None)
    assert (new.X != again.X).nnz == 0


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_every_kind_keeps_the_request_and_is_recorded(kind: str, options: dict[str, Any], model: SCLD) -> None:
    plain = model.generate(90)
    new = model.generate(90, post_guidance=kind, post_guidance_kwargs=options)
    assert new.obs["cell_type"].tolist() == plain.obs["cell_type"].tolist()
    assert new.obs["batch"].tolist() == plain.obs["batch"].tolist()
    assert np.isfinite(new.obsm["X_scld"]).all()
    record = new.uns["scld"]["post_guidance"]
    assert record["kind"] == kind
    if kind == "density_ratio" and "gradient" not in options:
        assert 1.0 <= record["ess"] <= 180.0
    if kind == "reject":
        assert 0 < record["acceptance"] <= 1
        assert new.obs["scld_rejected"].dtype == bool
        assert record["n_rejected"] == int(new.obs["scld_rejected"].sum())
    again = model.generate(90, post_guidance=kind, post_guidance_kwargs=options)
    assert (new.X != again.X).nnz == 0


def test_cycle_of_weight_zero_changes_nothing_and_half_is_the_most(model: SCLD) -> None:
    still = model.generate(20, post_guidance="cycle", post_guidance_kwargs={"weight": 0.0})
    np.testing.assert_allclose(still.obsm["X_scld"], model.generate(20).obsm["X_scld"], atol=1e-5)
    with pytest.raises(SetupError, match=r"weight=0\.6; expected a number from 0 to 0\.5"):
        model.generate(20, post_guidance="cycle", post_guidance_kwargs={"weight": 0.6})


def test_gradient_of_scale_zero_changes_nothing(model: SCLD) -> None:
    options = {"gradient": True, "scale": 0.0}
    still = model.generate(20, post_guidance="density_ratio", post_guidance_kwargs=options)
    np.testing.assert_allclose(still.obsm["X_scld"], model.generate(20).obsm["X_scld"], atol=1e-5)


def test_reject_agrees_with_the_condition_more_often(model: SCLD) -> None:
    from sklearn.linear_model import LogisticRegression

    real = model.training_states()
    classifier = LogisticRegression(max_iter=500).fit(real["w"][:, :4].numpy(), real["codes"][:, 1].numpy())
    module, share = model.module, []
    for kind in (None, "reject"):
        new = model.generate(120, condition={"cell_type": "type_1"}, post_guidance=kind)
        z = (new.obsm["X_scld"] - module.latent_centre.numpy()) / module.latent_scale.numpy()
        share.append((classifier.predict(z) == 1).mean())
    assert share[1] >= share[0]


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("density", {}, "Did you mean 'density_ratio'"),
        ("cycle", {"wieght": 0.1}, "Did you mean 'weight'"),
        ("classifier", {}, "guidance_classifier=True"),
        (None, {"weight": 0.1}, "needs post_guidance"),
    ],
)
def test_unknown_kinds_and_options_are_refused(kind: Any, options: Any, words: str, model: SCLD) -> None:
    with pytest.raises(SetupError, match=words):
        model.generate(5, post_guidance=kind, post_guidance_kwargs=options)


@pytest.mark.parametrize("prior", ["diffusion", "flow"])
def test_noise_aware_classifier_is_trained_on_request_and_steers(
    prior: str, make: Callable[..., AnnData], quick: Callable[..., SCLD]
) -> None:
    trained = quick(make(100, 20), guidance_classifier=True, prior=prior)
    assert "guide/train_classification" in trained.history_
    still, steered = (
        trained.generate(30, post_guidance="classifier", post_guidance_kwargs={"scale": scale}) for scale in (0.0, 1.5)
    )
    np.testing.assert_allclose(still.obsm["X_scld"], trained.generate(30).obsm["X_scld"], atol=1e-5)
    assert np.isfinite(steered.obsm["X_scld"]).all()
    assert not np.allclose(still.obsm["X_scld"], steered.obsm["X_scld"])
    assert steered.uns["scld"]["post_guidance"]["scale"] == 1.5
