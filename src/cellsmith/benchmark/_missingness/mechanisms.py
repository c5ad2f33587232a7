"""Which entries of complete data are taken away: six mechanisms, and those of the reference table.

A mechanism is a function ``(values, depth, rng) -> observed``: values (n, D), the standardised log total of each cell
(n,), a generator; True where the entry is observed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError, nearest

__all__ = ["MECHANISMS", "REFERENCE", "STRESS", "Mechanism", "apply_mask", "depth_of", "pick", "probabilities"]

Values: TypeAlias = npt.NDArray[np.floating]
Probabilities: TypeAlias = Callable[[Values, Values, np.random.Generator], npt.NDArray[np.float64]]
Mechanism: TypeAlias = Callable[[Values, Values, np.random.Generator], npt.NDArray[np.bool_]]

STRESS = "not at random"
"""The mechanism that no estimator here can undo: reported, never judged."""


def _sigmoid(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-x))


def homogeneous(rate: float) -> Probabilities:
    """Return p_id = rate for every entry."""
    return lambda values, depth, rng: np.full(values.shape, rate)


def rank1_observed(low: float = 0.2) -> Probabilities:
    """Return p_id = a_i b_d with a, b ~ U(low, 1)."""
    return lambda values, depth, rng: np.outer(*(rng.uniform(low, 1.0, size) for size in values.shape))


def rank1_missing() -> Probabilities:
    """Return 1 - p_id = a_i b_d with a ~ U(.4, .9) and b ~ U(.5, 1)."""

    def probability(values: Values, depth: Values, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        n, n_features = values.shape
        return 1.0 - np.outer(rng.uniform(0.4, 0.9, n), rng.uniform(0.5, 1.0, n_features))

    return probability


def logistic(spread: float) -> Probabilities:
    """Return p_id = sigmoid(a_i + b_d) with a ~ N(0, 1) and b ~ N(-.5, spread)."""

    def probability(values: Values, depth: Values, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        n, n_features = values.shape
        return _sigmoid(np.add.outer(rng.normal(size=n), rng.normal(-0.5, spread, n_features)))

    return probability


def depth_linked() -> Probabilities:
    """Return the logistic form with a the standardised log total of the cell and b ~ N(-.5, 1)."""
    return lambda values, depth, rng: _sigmoid(np.add.outer(depth, rng.normal(-0.5, 1.0, values.shape[1])))


def not_at_random() -> Probabilities:
    """Return the logistic form plus the value itself, standardised within its feature: high values are seen more."""

    def probability(values: Values, depth: Values, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        spread = values.std(axis=0)
        own = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
        n, n_features = values.shape
        return _sigmoid(np.add.outer(rng.normal(size=n), rng.normal(-0.5, 1.0, n_features)) + own)

    return probability


PROBABILITIES: dict[str, Probabilities] = {
    "homogeneous": homogeneous(0.35),
    "rank-1 observed": rank1_observed(),
    "rank-1 missing": rank1_missing(),
    "logistic": logistic(1.0),
    "depth-linked": depth_linked(),
    STRESS: not_at_random(),
}
"""Mechanism of the protocol on real data -> its probabilities."""

REFERENCE: dict[str, Probabilities] = {
    "homogeneous": homogeneous(0.30),
    "rank-1 observed": rank1_observed(),
    "rank-1 missing": rank1_missing(),
    "logistic": logistic(1.2),
}
"""Mechanism of Reference A -> its probabilities."""


def drawn(probability: Probabilities) -> Mechanism:
    """Return the mechanism that observes each entry by itself with these probabilities."""
    return lambda values, depth, rng: rng.random(values.shape) < probability(values, depth, rng)


MECHANISMS: dict[str, Mechanism] = {name: drawn(probability) for name, probability in PROBABILITIES.items()}
"""Mechanism of the protocol on real data -> function."""


def probabilities(name: str, values: Values, depth: Values, *, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the probabilities (n, D) of a mechanism of Reference A."""
    return REFERENCE[name](values, depth, rng)


def pick(chosen: str | Iterable[str] | Mapping[str, Mechanism]) -> dict[str, Mechanism]:
    """Return mechanism -> function.

    Parameters
    ----------
    chosen
        ``"all"``, names, or a mapping name -> function.

    Raises
    ------
    SetupError
        For a name that is none of them.
    """
    if isinstance(chosen, Mapping):
        return dict(chosen)
    if isinstance(chosen, str):
        chosen = MECHANISMS if chosen == "all" else [chosen]
    names = list(chosen)
    for name in names:
        if name not in MECHANISMS:
            raise SetupError(f"There is no mechanism {name!r}. {nearest(name, MECHANISMS)}")
    return {name: MECHANISMS[name] for name in names}


def depth_of(totals: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the log of the totals, with mean 0 and standard deviation 1, shape (n,).

    Parameters
    ----------
    totals
        Total of each cell, (n,), positive.
    """
    log = np.log(np.maximum(np.asarray(totals, dtype=np.float64), np.finfo(float).tiny))
    spread = log.std()
    return np.asarray((log - log.mean()) / spread if spread > 0 else np.zeros_like(log))


def apply_mask(values: Values, observed: npt.NDArray[np.bool_]) -> Values:
    """Return the values with NaN where nothing was observed, (n, D)."""
    return np.where(observed, values, np.asarray(np.nan, dtype=values.dtype))
