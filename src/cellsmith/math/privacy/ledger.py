"""The ledger: what was spent, in the order in which it was spent, against a hard budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cellsmith._errors import PrivacyError
from cellsmith.math.privacy.accounting import compose
from cellsmith.math.privacy.gaussian import SLACK

__all__ = ["Event", "Ledger", "calibrate"]

KINDS = ("gaussian", "sampled_gaussian")
_LEAST, _MOST = 1e-2, 1e6


@dataclass(frozen=True, kw_only=True)
class Event:
    """One kind of release, or a run of equal steps.

    Parameters
    ----------
    stage
        Stage of training that made it.
    kind
        "gaussian" (all units take part) or "sampled_gaussian" (each with probability ``sample_rate``).
    sensitivity
        Largest L2 change that one unit added or removed can make.
    noise_multiplier
        Standard deviation of the noise over the sensitivity.
    sample_rate
        q; 1 for releases.
    steps
        How often.

    Raises
    ------
    PrivacyError
        For a number with which no privacy is defined.
    """

    stage: str
    kind: str
    sensitivity: float
    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        sound = (
            self.kind in KINDS
            and 0 < self.sensitivity < math.inf
            and 0 < self.noise_multiplier < math.inf
            and 0 < self.sample_rate <= 1
            and self.steps >= 0
            and (self.kind != "gaussian" or self.sample_rate == 1)
        )
        if not sound:
            raise PrivacyError(f"{self} is no event with a privacy: a number is out of range.")


class Ledger:
    """Events that were spent, and the budget that they must never exceed.

    An event is entered BEFORE its noise is drawn, so that an interrupted run keeps what it has spent.

    Parameters
    ----------
    target_epsilon
        Hard budget.
    delta
        Of the whole ledger.
    accountant
        "rdp" or "prv".
    events
        What was spent before.
    """

    def __init__(
        self, target_epsilon: float, delta: float, *, accountant: str = "rdp", events: Sequence[Event] = ()
    ) -> None:
        self.target_epsilon, self.delta, self.accountant = float(target_epsilon), float(delta), accountant
        self.events: list[Event] = list(events)
        self._reserved: tuple[Event, int] | None = None

    @property
    def epsilon(self) -> float:
        """Epsilon of the executed events."""
        return compose(self.events, self.delta, self.accountant)

    def reserve(self, event: Event) -> None:
        """Make sure that all steps of an event fit before the first is taken.

        Parameters
        ----------
        event
            With the number of steps that are planned.

        Raises
        ------
        PrivacyError
            If they do not fit; nothing is spent then.
        """
        would = compose([*self.events, event], self.delta, self.accountant)
        if would > self.target_epsilon + 1e-9:
            raise PrivacyError(
                f"Stage {event.stage!r} would bring epsilon from {self.epsilon:.4f} to {would:.4f}; the budget is "
                f"{self.target_epsilon} (delta {self.delta:.3g}). Nothing of it was spent. Raise the budget with a new "
                "model, or ask for fewer or noisier steps."
            )
        self._reserved = (replace(event, steps=0), event.steps)

    def spend(self, event: Event) -> None:
        """Enter an event; a step that continues the last run of equal steps lengthens it.

        Parameters
        ----------
        event
            What is about to be drawn.

        Raises
        ------
        PrivacyError
            If the budget would be exceeded; nothing is entered then.
        """
        kind = replace(event, steps=0)
        if self._reserved is None or self._reserved[0] != kind or self._reserved[1] < event.steps:
            self.reserve(event)
        assert self._reserved is not None
        self._reserved = (kind, self._reserved[1] - event.steps)
        if self.events and event.kind == "sampled_gaussian" and replace(self.events[-1], steps=0) == kind:
            self.events[-1] = replace(self.events[-1], steps=self.events[-1].steps + event.steps)
        else:
            self.events.append(event)


def calibrate(
    make: Callable[[float], Sequence[Event]],
    *,
    before: Sequence[Event] = (),
    epsilon: float,
    delta: float,
    accountant: str = "rdp",
) -> float:
    """Return the smallest noise multiplier with which everything together stays within epsilon.

    Parameters
    ----------
    make
        Noise multiplier -> the events that it is for.
    before
        Events that are spent or settled already.
    epsilon, delta
        The budget.
    accountant
        "rdp" or "prv".

    Returns
    -------
    sigma, with the composed epsilon in [target - 1e-3, target] and never above; less is used only where even the
    smallest noise multiplier considered (0.01) leaves some.

    Raises
    ------
    PrivacyError
        If what was spent before leaves nothing.
    """

    def total(sigma: float) -> float:
        return compose([*before, *make(sigma)], delta, accountant)

    low, high = 0.3, 1.0
    while total(high) > epsilon:
        low, high = high, high * 2
        if high > _MOST:
            raise PrivacyError(
                f"The events before use an epsilon of {compose(before, delta, accountant):.4f} of {epsilon}; what is "
                "left is too little for this stage. Raise target_epsilon, or lower dp_pca_fraction."
            )
    while high <= 1.0 and low > _LEAST and total(low) <= epsilon:
        low, high = low / 2, low
    for _ in range(200):
        if epsilon - total(high) <= SLACK or high - low < 1e-12:
            break
        middle = math.sqrt(low * high)
        low, high = (low, middle) if total(middle) <= epsilon else (middle, high)
    return high
