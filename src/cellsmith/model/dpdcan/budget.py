"""How the budget of a model is split, settled before the first cell is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cellsmith._errors import PrivacyError
from cellsmith.math import privacy
from cellsmith.math.privacy import Event, Ledger
from cellsmith.math.privacy.accounting import require_accountant

__all__ = ["PrivacyPlan", "plan_budget"]

# Part of epsilon that each further release is calibrated to on its own. Squares of mu add up, so that k-means with a
# fifth of epsilon takes a twentieth of the sum, and the noise of the axes grows by 3 %.
SHARES = {"count": 0.05, "intercept": 0.1, "moments": 0.1, "density": 0.1, "kmeans": 0.2}
SENSITIVITY = {"count": 1.0, "intercept": 1.0, "moments": 1.0, "density": 1.0, "pca": 1.0}
KMEANS = {"n_iterations": 5, "n_starts": 10}
# The clustering stage takes this part of the steps, as the published one did.
CLUSTER_PART = 0.25


@dataclass
class PrivacyPlan:
    """What will be released and stepped, with which noise.

    Parameters
    ----------
    mode
        Of the model.
    ledger
        What was spent; None in modes that promise nothing.
    n_units
        N as it may be used: public, or noisy once released.
    sample_rate, clip_norm
        q and C.
    mu
        Release -> sensitivity over noise.
    steps
        Poisson stage -> number of steps.
    noise_multiplier
        sigma of both Poisson stages; None without them.
    wiring
        What the wiring test measured; None until it has run.
    simulated
        Noise from the seed.
    noised, trained
        Prefixes of the parameters that get noise, and of those that are trained; the same in sound modes.
    published_epochs
        Planned epochs of the published scheme, which its nominal noise is for.
    """

    mode: str
    ledger: Ledger | None
    n_units: float
    sample_rate: float
    clip_norm: float
    mu: dict[str, float] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    noise_multiplier: float | None = None
    wiring: privacy.Wiring | None = None
    simulated: bool = False
    noised: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    published_epochs: int = 0

    def sd(self, release: str) -> float:
        """Return the standard deviation of the noise of a release of sensitivity 1."""
        return 1 / self.mu[release]

    def spend(self, release: str) -> None:
        """Enter a release; its noise may be drawn afterwards."""
        assert self.ledger is not None
        for event in _release_events(release, self.mu[release]):
            self.ledger.spend(event)

    def step_event(self, stage: str, n: int = 1) -> Event:
        """Return ``n`` private steps of a stage."""
        assert self.noise_multiplier is not None
        return Event(
            stage=stage,
            kind="sampled_gaussian",
            sensitivity=self.clip_norm,
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sample_rate,
            steps=n,
        )


def _release_events(release: str, mu: float) -> list[Event]:
    if release == "kmeans":
        return privacy.kmeans_events(mu, **KMEANS)
    return [Event(stage=release, kind="gaussian", sensitivity=SENSITIVITY[release], noise_multiplier=1 / mu)]


def plan_budget(
    plan: PrivacyPlan, given: Mapping[str, Any], *, bought: Sequence[str], done: Sequence[str], with_pca: bool
) -> None:
    """Calibrate every release, then give the steps what remains.

    Parameters
    ----------
    plan
        With its ledger and steps; noise is filled in.
    given
        Settled arguments of the constructor.
    bought
        Releases beside private PCA.
    done
        Releases that an interrupted training has made already: their results are used again.
    with_pca
        Whether the moment is released.

    Raises
    ------
    PrivacyError
        If what is left is too little for what is wanted.
    """
    ledger = plan.ledger
    assert ledger is not None
    epsilon, delta = ledger.target_epsilon, ledger.delta
    if ledger.events and not epsilon - ledger.epsilon > 1e-2 * epsilon:
        raise PrivacyError(
            f"The budget is spent: epsilon {ledger.epsilon:.4f} of {epsilon} at delta {delta:.3g}. A second training "
            "would look at the cells again. Make a new model with a budget of its own; the two add up."
        )
    all_of_it = privacy.gaussian_mu(epsilon, delta)
    todo = [name for name in bought if name not in done]
    plan.mu |= {name: privacy.gaussian_mu(SHARES[name] * epsilon, delta) for name in todo}
    spent = sum(e.steps / e.noise_multiplier**2 for e in ledger.events if e.kind == "gaussian")
    rest = all_of_it**2 - sum(plan.mu[name] ** 2 for name in todo) - spent
    if with_pca and "pca" not in done:
        most = privacy.gaussian_mu(given["dp_pca_fraction"] * epsilon, delta)
        if rest <= 0:
            raise PrivacyError(f"The other releases leave nothing of epsilon {epsilon} for private PCA.")
        # A hair below, so that sums of squares round to the careful side.
        plan.mu["pca"] = min(most, float(np.sqrt(rest)) * (1 - 1e-9))
        todo = ["pca", *todo]
    if not plan.steps:
        return
    require_accountant()
    releases = [event for name in todo for event in _release_events(name, plan.mu[name])]
    total = sum(plan.steps.values())

    def steps(sigma: float) -> list[Event]:
        plan.noise_multiplier = sigma
        return [plan.step_event("instance", total)]

    plan.noise_multiplier = privacy.calibrate(
        steps, before=[*ledger.events, *releases], epsilon=epsilon, delta=delta, accountant=ledger.accountant
    )
