"""The Gaussian mechanism, exactly: f + N(0, s^2 I) with sensitivity D has mu = D / s (arXiv 1805.06530, 1905.02383)."""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from cellsmith._errors import PrivacyError

__all__ = ["gaussian_delta", "gaussian_epsilon", "gaussian_mu"]

# The epsilon of a calibrated mechanism lies in [target - SLACK, target].
SLACK = 1e-3
_MU_MOST = 200.0


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Return delta(eps) = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu) of a Gaussian release.

    Parameters
    ----------
    epsilon
        At least 0.
    mu
        Sensitivity over the standard deviation of the noise; releases together have the root of the sum of squares.

    Returns
    -------
    The smallest delta for which the release is (epsilon, delta)-private.
    """
    if mu <= 0:
        return 0.0
    first = float(ndtr(mu / 2 - epsilon / mu))
    second = math.exp(min(700.0, epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))))
    return max(0.0, first - second)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the smallest epsilon (rounded upwards) for which a Gaussian release is (epsilon, delta)-private.

    Parameters
    ----------
    mu
        As in :func:`gaussian_delta`.
    delta
        In (0, 1).

    Raises
    ------
    PrivacyError
        If delta is not in (0, 1), or mu is so large that nothing is private.
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"delta={delta!r}; expected a number in (0, 1). Type for example delta=1e-5.")
    if not 0 <= mu <= _MU_MOST:
        raise PrivacyError(f"mu={mu!r}; expected a number from 0 to {_MU_MOST:.0f}. Add more noise.")
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    most = mu * mu + 40 * mu + 1
    low = float(brentq(lambda e: gaussian_delta(e, mu) - delta, 0.0, most, xtol=1e-12))
    # A root finder may stop on either side; a privacy number is rounded to the careful one.
    return low if gaussian_delta(low, mu) <= delta else low * (1 + 1e-12) + 1e-11


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the largest mu (rounded downwards) with which a Gaussian release is (epsilon, delta)-private.

    Parameters
    ----------
    epsilon
        Above 0.
    delta
        In (0, 1).

    Raises
    ------
    PrivacyError
        If epsilon is not above 0, or delta not in (0, 1).
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise PrivacyError(f"epsilon={epsilon!r}; expected a number above 0. Type for example epsilon=4.0.")
    if not 0 < delta < 1:
        raise PrivacyError(f"delta={delta!r}; expected a number in (0, 1). Type for example delta=1e-5.")
    if gaussian_delta(epsilon, _MU_MOST) <= delta:
        return _MU_MOST
    mu = float(brentq(lambda m: gaussian_delta(epsilon, m) - delta, 1e-9, _MU_MOST, xtol=1e-13))
    # So far down that the epsilon computed from it, which is rounded upwards, does not exceed the one asked for.
    return mu * (1 - 1e-9)
