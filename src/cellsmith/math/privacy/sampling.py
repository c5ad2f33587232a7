"""Who takes part in a step, and generators that nobody can know."""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt

from cellsmith._errors import PrivacyError

__all__ = ["poisson_sample", "secret_generator"]


def poisson_sample(n_units: int, sample_rate: float, generator: np.random.Generator) -> npt.NDArray[np.intp]:
    """Draw every unit by itself with probability q (not a shuffled batch, whose amplification is another).

    Parameters
    ----------
    n_units
        N.
    sample_rate
        q, in (0, 1].
    generator
        Secret in private use.

    Returns
    -------
    (B,) ascending indices; B is random and may be 0.

    Raises
    ------
    PrivacyError
        If q is not in (0, 1].
    """
    if not 0 < sample_rate <= 1:
        raise PrivacyError(f"sample_rate={sample_rate!r}; expected a number in (0, 1]. Type for example 0.2.")
    return np.flatnonzero(generator.random(n_units) < sample_rate)


def secret_generator() -> np.random.Generator:
    """Return a generator seeded with 256 bits from the operating system; its seed is kept nowhere."""
    return np.random.Generator(np.random.PCG64(secrets.randbits(256)))
