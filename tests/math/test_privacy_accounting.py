"""Epsilon against independent oracles: Opacus, dp-accounting where installed, numerical integration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from cellsmith._errors import MissingExtraError, PrivacyError
from cellsmith.math import privacy
from cellsmith.math.privacy import Event, Ledger, accounting

DELTA = 1e-5
README_RATE = 210 / 2122
needs_opacus = pytest.mark.skipif(
    not __import__("importlib").util.find_spec("opacus"), reason="opacus is not installed"
)


def steps(sigma: float, *, rate: float = README_RATE, n: int = 842, stage: str = "instance") -> Event:
    return Event(
        stage=stage, kind="sampled_gaussian", sensitivity=1.0, noise_multiplier=sigma, sample_rate=rate, steps=n
    )


def release(sigma: float, stage: str = "release") -> Event:
    return Event(stage=stage, kind="gaussian", sensitivity=1.0, noise_multiplier=sigma)


MIXED = [release(3.0), steps(6.0, n=300), steps(8.0, n=75, stage="cluster"), release(9.0, "kmeans")]


@needs_opacus
@pytest.mark.parametrize(("rate", "sigma"), itertools.product((0.01, 0.1, 0.3), (0.8, 2.0, 6.0)))
def test_rdp_equals_opacus_and_the_integer_formula(rate: float, sigma: float) -> None:
    from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

    orders = list(privacy.ORDERS)
    ours = privacy.sampled_rdp(rate, sigma, 1)
    np.testing.assert_allclose(ours, compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=orders), atol=1e-12)
    for order in (2, 3, 17, 63, 512):
        own = privacy.integer_rdp(rate, sigma, order)
        assert ours[orders.index(float(order))] == pytest.approx(own, rel=1e-6)
    for n in (1, 100, 842):
        oracle, _ = get_privacy_spent(orders=orders, rdp=list(ours * n), delta=DELTA)
        assert privacy.compose([steps(sigma, rate=rate, n=n)], DELTA) == pytest.approx(max(0.0, oracle), abs=1e-3)


@needs_opacus
@pytest.mark.parametrize(("sigma", "rdp", "prv"), [(3.46, 3.987, 3.686), (2.00, 8.001, 7.406)])
def test_published_point(sigma: float, rdp: float, prv: float) -> None:
    assert privacy.compose([steps(sigma)], DELTA) == pytest.approx(rdp, abs=1e-3)
    assert privacy.compose([steps(sigma)], DELTA, "prv") == pytest.approx(prv, abs=2e-2)


@needs_opacus
@pytest.mark.parametrize("mu", [0.2, 1.0, 3.0])
def test_prv_of_a_release_is_the_exact_gaussian_up_to_its_stated_error(mu: float) -> None:
    """Mixed ledgers under accountant="prv" rest on this."""
    exact = privacy.gaussian_epsilon(mu, DELTA)
    found = accounting._prv_epsilon([release(1 / mu)], DELTA)
    assert exact <= found <= exact + 2e-2


@needs_opacus
@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_composition_against_dp_accounting(accountant: str) -> None:
    dp = pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    def event(e: Event) -> object:
        one = dp.GaussianDpEvent(e.noise_multiplier)
        return (
            one
            if e.kind == "gaussian"
            else dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(e.sample_rate, one), e.steps)
        )

    pld = PLDAccountant().compose(dp.ComposedDpEvent([event(e) for e in MIXED])).get_epsilon(DELTA)
    ours = privacy.compose(MIXED, DELTA, accountant)
    assert ours >= pld - 1e-3
    if accountant == "rdp":
        rdp = RdpAccountant(list(privacy.ORDERS)).compose(dp.ComposedDpEvent([event(e) for e in MIXED]))
        assert ours == pytest.approx(rdp.get_epsilon(DELTA), abs=5e-3)
    else:
        assert ours == pytest.approx(pld, abs=2e-2)


@needs_opacus
def test_a_changed_dependency_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from opacus.accountants.analysis import rdp

    true = rdp.compute_rdp
    monkeypatch.setattr(rdp, "compute_rdp", lambda **kw: np.asarray(true(**kw)) * (1 - 1e-5))
    with pytest.raises(PrivacyError, match="No epsilon is reported"):
        privacy.sampled_rdp(0.0987654, 3.21, 1)


def test_without_opacus_nothing_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opacus.accountants.analysis.rdp", None)
    with pytest.raises(MissingExtraError, match=r"cellsmith\[privacy\]"):
        privacy.sampled_rdp(0.0567, 3.21, 1)
    assert privacy.compose([release(2.0)], DELTA) > 0  # Gaussian releases need none


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0, 4.0, 10.0])
def test_exact_gaussian_against_the_hockey_stick_integral(epsilon: float) -> None:
    mu = privacy.gaussian_mu(epsilon, DELTA)
    # delta = integral of max(0, p(x) - e^eps q(x)) for p = N(mu, 1), q = N(0, 1)
    cut = epsilon / mu + mu / 2
    integral, _ = quad(lambda x: norm.pdf(x - mu) - np.exp(epsilon) * norm.pdf(x), cut, cut + 40, epsabs=1e-14)
    assert privacy.gaussian_delta(epsilon, mu) == pytest.approx(integral, abs=1e-8)
    assert epsilon - 1e-3 <= privacy.gaussian_epsilon(mu, DELTA) <= epsilon
    assert privacy.gaussian_delta(epsilon, mu) <= DELTA


def test_releases_add_up_in_squares() -> None:
    both = privacy.compose([release(2.0), release(2.0)], DELTA)
    assert both == pytest.approx(privacy.gaussian_epsilon(np.sqrt(0.5), DELTA), abs=1e-9)


@needs_opacus
@pytest.mark.parametrize(("epsilon", "sigma"), [(1, 11.70), (2, 6.27), (4, 3.451), (8, 2.0)])
def test_calibration_never_exceeds_the_target(epsilon: float, sigma: float) -> None:
    found = privacy.calibrate(lambda s: [steps(s, rate=0.099)], epsilon=epsilon, delta=DELTA)
    assert epsilon - 1e-3 <= privacy.compose([steps(found, rate=0.099)], DELTA) <= epsilon
    assert found == pytest.approx(sigma, rel=5e-3)


def test_nothing_left_is_said_before_anything_is_spent() -> None:
    with pytest.raises(PrivacyError, match="too little for this stage"):
        privacy.calibrate(lambda s: [release(s)], before=[release(0.2)], epsilon=1.0, delta=DELTA)


@needs_opacus
def test_ledger_counts_executed_steps_and_holds_its_budget() -> None:
    sigma = privacy.calibrate(lambda s: [steps(s, n=10)], epsilon=1.0, delta=DELTA)
    ledger = Ledger(1.0, DELTA)
    ledger.reserve(steps(sigma, n=10))
    for _ in range(10):
        ledger.spend(steps(sigma, n=1))
    assert [e.steps for e in ledger.events] == [10]
    assert 1 - 1e-3 <= ledger.epsilon <= 1.0
    with pytest.raises(PrivacyError, match="the budget is"):
        ledger.spend(steps(sigma, n=40))
    assert [e.steps for e in ledger.events] == [10]


@pytest.mark.parametrize("wrong", [{"noise_multiplier": 0.0}, {"sample_rate": 1.5}, {"kind": "laplace"}])
def test_an_event_without_privacy_is_refused(wrong: dict) -> None:
    good = {"stage": "s", "kind": "sampled_gaussian", "sensitivity": 1.0, "noise_multiplier": 1.0, "sample_rate": 0.1}
    with pytest.raises(PrivacyError, match="no event with a privacy"):
        Event(**{**good, **wrong})
