"""Attacks on a private method, and the deterministic test of its loss.

A model is looked at through ``model.module`` and ``model.privacy_plan`` alone. An audit can find faults and never prove
their absence: a bound below the claim says nothing. :func:`check_privacy_wiring` is the stronger of the two.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellsmith._errors import PrivacyError, SetupError, nearest
from cellsmith._rng import Streams, resolve_seed
from cellsmith.math import privacy
from cellsmith.math.privacy.wiring import Wiring

__all__ = ["PrivacyAudit", "audit_privacy", "check_privacy_wiring"]

METHODS = ("gdp", "one_run", "lira")
SHADOW_GENES, N_SHADOWS = 60, 64
SCALES = (1.0, 1.0, 0.0, 10.0, 1000.0)


@dataclass(frozen=True)
class PrivacyAudit:
    """What an attack could prove.

    Parameters
    ----------
    method
        "gdp", "one_run" or "lira".
    lower_bounds
        (n_repeats,) epsilon that the attack proved, each valid with the stated confidence.
    claim
        Epsilon that the accountant gives for what was attacked.
    delta
        Of both.
    confidence
        Of each bound.
    n_canaries
        Canaries, or guesses of the likelihood-ratio attack.
    """

    method: str
    lower_bounds: np.ndarray
    claim: float
    delta: float
    confidence: float
    n_canaries: int

    @property
    def flagged(self) -> bool:
        """Whether more bounds exceed the claim than the confidence allows: the claim is then false."""
        return float((self.lower_bounds > self.claim).mean()) > 1 - self.confidence

    def __str__(self) -> str:
        verdict = "FLAGGED: the claim is false" if self.flagged else "no fault found, which proves nothing"
        return (
            f"Audit {self.method!r}: lower bound of epsilon {self.lower_bounds.mean():.3f} (largest "
            f"{self.lower_bounds.max():.3f} of {len(self.lower_bounds)}), claim {self.claim:.3f} at delta "
            f"{self.delta:.3g}: {verdict}."
        )


def audit_privacy(
    model: Any,
    *,
    method: str = "gdp",
    n_canaries: int = 4000,
    n_guesses: int = 400,
    confidence: float = 0.95,
    n_repeats: int = 1,
    rng: Any = 0,
) -> PrivacyAudit:
    """Attack sampling, clipping and noise with the numbers of a trained model.

    Canaries are synthetic units whose gradient has one coordinate; they cost no cell, and no budget, since they meet
    the mechanism and never the model's weights.

    Parameters
    ----------
    model
        With ``privacy_plan`` (rate, noise, steps, ledger) and ``module``.
    method
        "gdp": error rates at a threshold fixed beforehand, for Gaussian-like mechanisms; the sharpest. "one_run":
        guesses of who was in (arXiv 2305.08846); it misses a doubled sensitivity at small epsilon. "lira": likelihood
        ratios from shadow releases, on the release of the private axes.
    n_canaries
        At most the number of noised coordinates.
    n_guesses
        Guesses of "one_run", releases of "lira".
    confidence
        Of each bound.
    n_repeats
        Independent audits.
    rng
        Seed of the audit; nothing of it reaches the model.

    Returns
    -------
    Lower bounds beside the claim.

    Raises
    ------
    PrivacyError
        If there are more canaries than noised coordinates, or the model has nothing of the kind to attack.
    SetupError
        For an unknown method.

    Examples
    --------
    >>> print(audit_privacy(model))  # doctest: +SKIP
    """
    if method not in METHODS:
        raise SetupError(f"method={method!r}. {nearest(method, METHODS)}")
    plan = getattr(model, "privacy_plan", None)
    ledger = getattr(plan, "ledger", None)
    if ledger is None or not ledger.events:
        raise PrivacyError("This model has no ledger of executed events: train it in a private mode first.")
    streams = Streams(resolve_seed(rng))
    kind = "gaussian" if method == "lira" else "sampled_gaussian"
    events = [e for e in ledger.events if e.kind == kind and (kind != "gaussian" or e.stage == "pca")]
    if not events:
        wanted = "release of private axes" if method == "lira" else "private gradient step"
        other = "gdp" if method == "lira" else "lira"
        raise PrivacyError(f"The ledger holds no {wanted} to attack. Type method={other!r}.")
    claim = privacy.compose(events, ledger.delta, ledger.accountant)
    bounds = []
    for repeat in range(n_repeats):
        generator = streams.numpy("sample", repeat)
        if method == "lira":
            bounds.append(_attack_release(events[0], n_guesses, ledger.delta, confidence, generator))
        else:
            _refuse_crowd(model, plan, n_canaries)
            bounds.append(_attack_steps(events, method, n_canaries, n_guesses, ledger.delta, confidence, generator))
    size = n_guesses if method == "lira" else n_canaries
    return PrivacyAudit(method, np.array(bounds), claim, ledger.delta, confidence, size)


def _refuse_crowd(model: Any, plan: Any, n_canaries: int) -> None:
    noised = sum(p.numel() for n, p in model.module.named_parameters() if n.startswith(plan.noised))
    if n_canaries > noised:
        raise PrivacyError(
            f"n_canaries={n_canaries}, but only {noised} coordinates get noise and each canary needs its own. Type "
            f"n_canaries={noised}."
        )


def _attack_steps(
    events: Any, method: str, n_canaries: int, n_guesses: int, delta: float, confidence: float, generator: Any
) -> float:
    rate, sigma = events[0].sample_rate, events[0].noise_multiplier
    steps = sum(e.steps for e in events)
    inside, scores = privacy.canary_run(
        n_canaries=n_canaries, sample_rate=rate, noise_multiplier=sigma, steps=steps, generator=generator
    )
    if method == "gdp":
        return privacy.gaussian_lower_bound(
            inside, scores, threshold=steps * rate / 2, delta=delta, confidence=confidence
        )
    order = np.argsort(scores)
    half = min(n_guesses, n_canaries) // 2
    right = int(inside[order[-half:]].sum() + (~inside[order[:half]]).sum())
    return privacy.guesses_lower_bound(right, 2 * half, n_canaries=n_canaries, delta=delta, confidence=confidence)


def _attack_release(event: Any, n_guesses: int, delta: float, confidence: float, generator: Any) -> float:
    inside, ratio = privacy.moment_run(
        n_genes=SHADOW_GENES,
        sd=event.noise_multiplier * event.sensitivity,
        n_shadows=N_SHADOWS,
        n_guesses=n_guesses,
        generator=generator,
    )
    return privacy.gaussian_lower_bound(inside, ratio, threshold=0.0, delta=delta, confidence=confidence)


def check_privacy_wiring(
    model_or_loss: Any,
    *,
    batch: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    clip_norm: float | None = None,
    n_replacements: int = 200,
    n_steps: int = 20,
    rng: Any = 0,
) -> Wiring:
    """Test whether a loss keeps units apart, as the accounting of private gradients assumes. No noise, no luck.

    Parameters
    ----------
    model_or_loss
        A model with ``module`` and ``privacy_plan``, which is then tested on synthetic cells; or any function
        ``loss(params, batch) -> (B,)``, the losses of the B units of a batch.
    batch
        For a function: name -> tensor (B, ...).
    params
        For a function: name -> tensor, all of which get noise.
    clip_norm
        For a function: the norm C to which gradients are cut.
    n_replacements
        Units that are replaced: others of the batch, scaled by 1, 0, 10 and 1,000.
    n_steps
        Batches of the interference test.
    rng
        Seed of the choice of units.

    Returns
    -------
    Coupling, add/remove and replace-one sensitivity and interference, in units of C; ``.passed``.

    Raises
    ------
    SetupError
        If a function comes without batch, params or clip norm.

    Examples
    --------
    >>> def loss(params, batch):
    ...     return (batch["x"] @ params["w"]).square().sum(dim=1)
    >>> check_privacy_wiring(loss, batch=batch, params=params, clip_norm=1.0).passed  # doctest: +SKIP
    """
    generator = Streams(resolve_seed(rng)).numpy("sample")
    if hasattr(model_or_loss, "module"):
        loss, params, trained, batch, clip_norm = _of_model(model_or_loss)
    elif batch is None or params is None or clip_norm is None:
        raise SetupError("A loss function needs batch=, params= and clip_norm= to be tested with.")
    else:
        loss, trained = model_or_loss, {}
    others = [_replacement(batch, i, generator) for i in range(n_replacements)]
    return privacy.wiring(
        loss,
        params,
        batch,
        clip_norm=clip_norm,
        replacements=others,
        trained=trained,
        n_steps=n_steps,
        generator=generator,
    )


def _of_model(model: Any) -> tuple[Callable[..., Any], dict[str, Any], dict[str, Any], Any, float]:
    """Return loss, noised and other trained parameters, synthetic cells and clip norm of a model."""
    module, plan = model.module, model.privacy_plan
    if plan is None or not plan.trained:
        raise PrivacyError("This model trains nothing by gradients, or was not trained yet: there is no loss to test.")
    # A copy in double precision: norms of many rounded coordinates would be off by more than the tolerance.
    module = copy.deepcopy(module).cpu().double()
    parameters = {k: p.detach() for k, p in module.named_parameters() if k.startswith(plan.trained)}
    noised = {k: p for k, p in parameters.items() if k.startswith(plan.noised)} if plan.noised else {}
    hidden = {k: p for k, p in parameters.items() if k not in noised}
    if not noised:
        raise PrivacyError("No parameter of this model gets noise; there is nothing that could be private.")
    batch = module.prepare(module.synthetic_cells(12, seed=5), None)
    return module.wiring_loss, noised, hidden, batch, plan.clip_norm


def _replacement(batch: Mapping[str, Any], number: int, generator: np.random.Generator) -> dict[str, Any]:
    """Return another unit of the batch with its genes turned, its real values scaled."""
    row = int(generator.integers(len(next(iter(batch.values())))))
    scale, turn = SCALES[number % len(SCALES)], int(generator.integers(1, 7))
    out = {}
    for name, values in batch.items():
        unit = values[row]
        # Indicators (batch, mask) stay what they are; anything longer is data.
        out[name] = unit.roll(turn, -1) * scale if unit.is_floating_point() and unit.numel() > 8 else unit
    return out
