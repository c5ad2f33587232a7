"""From events to epsilon: Renyi differential privacy (RDP), and Opacus' PRV accountant beside it.

The sampled Gaussian follows arXiv 1908.10530, the conversion 2004.00010, PRV 2106.02848. Opacus supplies fractional
orders and PRVs; every conversion compares it with :func:`integer_rdp`, so that a changed dependency can never change an
epsilon in silence.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, logsumexp

from cellsmith._errors import MissingExtraError, PrivacyError
from cellsmith.math.privacy.gaussian import gaussian_epsilon

if TYPE_CHECKING:
    from cellsmith.math.privacy.ledger import Event

__all__ = ["ORDERS", "compose", "gaussian_rdp", "integer_rdp", "rdp_epsilon", "require_accountant", "sampled_rdp"]

Floats = npt.NDArray[np.float64]

ORDERS: tuple[float, ...] = (
    *(round(1.1 + 0.1 * k, 1) for k in range(99)),
    *(float(a) for a in range(11, 64)),
    128.0,
    256.0,
    512.0,
)
"""Orders alpha of every RDP vector: 1.1, 1.2, ..., 10.9, 11, ..., 63, 128, 256, 512."""

GUARD = 1e-6
# Opacus' upper bound of epsilon exceeds its estimate by this much.
PRV_ERROR = 0.01


def gaussian_rdp(mu: float) -> Floats:
    """RDP of a Gaussian release at ``ORDERS``, (n_orders,): alpha mu^2 / 2, nats."""
    return np.asarray(ORDERS) * mu**2 / 2


def integer_rdp(sample_rate: float, noise_multiplier: float, order: int) -> float:
    """Return the RDP of one step of the sampled Gaussian at an integer order.

    ``rho(alpha) = log sum_k C(alpha, k) (1 - q)^(alpha - k) q^k exp(k (k - 1) / (2 sigma^2)) / (alpha - 1)``.

    Parameters
    ----------
    sample_rate
        q, in (0, 1].
    noise_multiplier
        sigma, above 0.
    order
        alpha, at least 2.

    Returns
    -------
    rho, nats; add/remove of one unit.
    """
    if sample_rate == 1.0:
        return order / (2 * noise_multiplier**2)
    k = np.arange(order + 1)
    log_choose = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    log_terms = log_choose + (order - k) * np.log1p(-sample_rate) + k * np.log(sample_rate)
    return float(logsumexp(log_terms + k * (k - 1) / (2 * noise_multiplier**2)) / (order - 1))


def require_accountant() -> None:
    """Raise unless Opacus can be imported.

    Raises
    ------
    MissingExtraError
        With what to type.
    """
    try:
        import opacus.accountants.analysis.rdp  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "Training with private gradients needs Opacus' accountants, which are not installed. Type: "
            'pip install "cellsmith[privacy]". Without it: dp_pca_fraction=1.0, tl.dp_pca, tl.dp_kmeans.'
        ) from error


@lru_cache(maxsize=1024)
def _one_step(sample_rate: float, noise_multiplier: float) -> tuple[float, ...]:
    require_accountant()
    from opacus.accountants.analysis.rdp import compute_rdp

    found = np.asarray(
        compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=list(ORDERS)), dtype=np.float64
    )
    for order, value in zip(ORDERS, found, strict=True):
        if order.is_integer():
            own = integer_rdp(sample_rate, noise_multiplier, int(order))
            if not abs(value - own) <= GUARD * abs(own) + 1e-14:
                raise PrivacyError(
                    f"Opacus gives an RDP of {value!r} at order {order:.0f} (q={sample_rate}, "
                    f"sigma={noise_multiplier}), the formula {own!r}. No epsilon is reported: install the tested "
                    "version of opacus."
                )
    return tuple(found)


def sampled_rdp(sample_rate: float, noise_multiplier: float, steps: int) -> Floats:
    """Return the RDP of steps of the sampled Gaussian at ``ORDERS``.

    Parameters
    ----------
    sample_rate
        q, in (0, 1].
    noise_multiplier
        sigma, above 0.
    steps
        Number of steps.

    Returns
    -------
    (n_orders,), nats.

    Raises
    ------
    MissingExtraError
        If Opacus is not installed.
    PrivacyError
        If Opacus and :func:`integer_rdp` differ by more than 1e-6.
    """
    return np.asarray(_one_step(float(sample_rate), float(noise_multiplier))) * steps


def rdp_epsilon(rdp: Sequence[float] | Floats, delta: float) -> float:
    """Return min over alpha of ``rho + log((alpha - 1) / alpha) - (log delta + log alpha) / (alpha - 1)``.

    Parameters
    ----------
    rdp
        (n_orders,) at ``ORDERS``, nats.
    delta
        In (0, 1).

    Returns
    -------
    epsilon, at least 0.
    """
    alpha, rho = np.asarray(ORDERS), np.asarray(rdp, dtype=np.float64)
    epsilon = rho + np.log1p(-1 / alpha) - (np.log(delta) + np.log(alpha)) / (alpha - 1)
    return float(max(0.0, np.min(epsilon)))


def compose(events: Iterable[Event], delta: float, accountant: str = "rdp") -> float:
    """Return the epsilon of all events together.

    Parameters
    ----------
    events
        What was released and stepped, in any order.
    delta
        In (0, 1).
    accountant
        "rdp" or "prv". Gaussian releases alone are added up exactly, whatever is said here.

    Returns
    -------
    epsilon for adding or removing one unit.

    Raises
    ------
    PrivacyError
        For an unknown accountant, or where the guard fails.
    MissingExtraError
        If a sampled step is among the events and Opacus is not installed.
    """
    events = [e for e in events if e.steps > 0]
    if not events:
        return 0.0
    if all(e.kind == "gaussian" for e in events):
        return gaussian_epsilon(float(np.sqrt(sum(e.steps / e.noise_multiplier**2 for e in events))), delta)
    if accountant == "prv":
        return _prv_epsilon(events, delta)
    if accountant != "rdp":
        raise PrivacyError(f"accountant={accountant!r}; expected 'rdp' or 'prv'.")
    total = np.zeros(len(ORDERS))
    for e in events:
        total += (
            gaussian_rdp(1 / e.noise_multiplier) * e.steps
            if e.kind == "gaussian"
            else sampled_rdp(e.sample_rate, e.noise_multiplier, e.steps)
        )
    return rdp_epsilon(total, delta)


def _prv_epsilon(events: Sequence[Event], delta: float) -> float:
    require_accountant()
    from opacus.accountants import PRVAccountant

    for e in events:
        if e.kind != "gaussian":
            _one_step(e.sample_rate, e.noise_multiplier)  # the guard
    account = PRVAccountant()
    # A Gaussian release is a step that everybody enters; that this is exact in Opacus is a test.
    account.history = [(e.noise_multiplier, e.sample_rate if e.kind != "gaussian" else 1.0, e.steps) for e in events]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return max(0.0, float(account.get_epsilon(delta, eps_error=PRV_ERROR)))
