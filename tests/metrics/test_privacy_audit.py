"""Audits find planted faults and leave correct mechanisms alone; the wiring test takes any loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cellsmith._errors import PrivacyError, SetupError
from cellsmith.math import privacy
from cellsmith.metrics import audit_privacy, check_privacy_wiring


def model(*, sigma: float = 3.451, steps: int = 842, claimed: float | None = None) -> Any:
    """What the audit looks at: a module, and a plan with a ledger; `claimed` enters another sigma into the ledger."""
    event = privacy.Event(
        stage="instance",
        kind="sampled_gaussian",
        sensitivity=1.0,
        noise_multiplier=sigma,
        sample_rate=0.099,
        steps=steps,
    )
    release = privacy.Event(stage="pca", kind="gaussian", sensitivity=1.0, noise_multiplier=2.0)
    ledger = privacy.Ledger(100.0, 1e-5, events=[release, event])
    plan = SimpleNamespace(ledger=ledger, noised=("",), trained=("",), clip_norm=1.0)
    return SimpleNamespace(module=torch.nn.Linear(1000, 4), privacy_plan=plan)


def test_a_correct_mechanism_is_not_accused() -> None:
    found = audit_privacy(model(steps=100), n_canaries=2000, n_repeats=3)
    assert not found.flagged
    assert found.lower_bounds.shape == (3,)
    assert 0 < found.lower_bounds.mean() < found.claim
    assert "proves nothing" in str(found)


def test_a_claim_that_is_too_small_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    true = privacy.canary_run
    monkeypatch.setattr(privacy, "canary_run", lambda **kw: true(**kw, gradient=2.0))
    found = audit_privacy(model(steps=200), n_canaries=4000, n_repeats=3)
    assert found.flagged
    assert "FLAGGED" in str(found)


def test_the_audit_in_one_run_is_weaker(monkeypatch: pytest.MonkeyPatch) -> None:
    gdp = audit_privacy(model(steps=200), n_canaries=2000)
    one_run = audit_privacy(model(steps=200), method="one_run", n_canaries=2000, n_guesses=100)
    assert one_run.lower_bounds[0] <= gdp.claim
    assert one_run.lower_bounds[0] <= 3.48


def test_likelihood_ratios_on_the_release() -> None:
    found = audit_privacy(model(), method="lira", n_guesses=400)
    assert found.claim == pytest.approx(privacy.gaussian_epsilon(0.5, 1e-5))
    assert not found.flagged
    assert found.lower_bounds[0] > 0.2 * found.claim


def test_refusals() -> None:
    with pytest.raises(PrivacyError, match=r"only 4004 coordinates.*n_canaries=4004"):
        audit_privacy(model(), n_canaries=5000)
    with pytest.raises(SetupError, match="method='gpd'"):
        audit_privacy(model(), method="gpd")
    with pytest.raises(PrivacyError, match="no ledger"):
        audit_privacy(SimpleNamespace(privacy_plan=None))
    empty = model()
    empty.privacy_plan.ledger.events = empty.privacy_plan.ledger.events[:1]
    with pytest.raises(PrivacyError, match="method='lira'"):
        audit_privacy(empty)


def batch() -> dict[str, torch.Tensor]:
    return {"x": torch.randn(10, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}


def params() -> dict[str, torch.Tensor]:
    return {"w": torch.randn(12, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)}


def test_any_loss_can_be_tested() -> None:
    def sound(p, b):
        return (b["x"] @ p["w"]).square().sum(dim=1)

    def coupled(p, b):
        z = b["x"] @ p["w"]
        return (z - z.mean(dim=0)).square().sum(dim=1)

    given = {"batch": batch(), "params": params(), "clip_norm": 1.0, "n_replacements": 30, "n_steps": 5}
    assert check_privacy_wiring(sound, **given).passed
    found = check_privacy_wiring(coupled, **given)
    assert not found.passed
    assert found.coupling > 1e-3
    with pytest.raises(SetupError, match="clip_norm="):
        check_privacy_wiring(sound, batch=batch(), params=params())


def test_models_are_tested_as_they_train() -> None:
    from cellsmith.model.dpdcan.module import DPDCANModule

    torch.manual_seed(0)
    sizes = {"n_components": 6, "n_latent": 4, "n_hidden": 8, "n_clusters": 3}
    verdicts = {}
    for mode, noised in (("dp_pca_init", ("",)), ("reference", ("encoder", "decoder.trunk"))):
        net = DPDCANModule(mode, 40, **sizes)
        with torch.no_grad():
            net.axes.copy_(torch.linalg.qr(torch.randn(40, 6))[0])
        trained = ("encoder", "decoder", "log_theta", "zero_logit")
        plan = SimpleNamespace(trained=trained, noised=noised, clip_norm=0.1)
        verdicts[mode] = check_privacy_wiring(
            SimpleNamespace(module=net, privacy_plan=plan), n_replacements=3, n_steps=3
        )
    assert verdicts["dp_pca_init"].passed
    assert not verdicts["reference"].passed
    assert verdicts["reference"].add_remove > 1.1
    assert verdicts["reference"].interference > 0
    with pytest.raises(PrivacyError, match="trains nothing"):
        check_privacy_wiring(SimpleNamespace(module=None, privacy_plan=None))
    assert np.isfinite(verdicts["dp_pca_init"].replace_one)
