"""What may be said about the privacy of a result, and what may not: one record, printed as a page or stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from cellsmith.math.privacy.ledger import Event

__all__ = ["Guarantee", "Statement"]

CARE = "private"
LOCAL = "local only"


@dataclass(frozen=True)
class Guarantee:
    """What holds for one output.

    Parameters
    ----------
    output
        Its name.
    guarantee
        "private", "local only", "joint" (private towards everyone but that cell) or "none".
    condition
        Why.
    """

    output: str
    guarantee: str
    condition: str


@dataclass(frozen=True, kw_only=True)
class Statement:
    """Privacy of a result.

    Parameters
    ----------
    valid
        Whether epsilon and delta hold.
    mode
        What was run.
    epsilon, delta
        Of the executed events; epsilon is None where nothing holds.
    target_epsilon
        The hard budget; None where there was none.
    nominal_epsilon
        What the accountant would say of a scheme that it does not apply to; None in sound modes.
    unit, unit_key
        "cell" or "donor", and the column of donors.
    n_units, n_units_policy
        Number of units, noisy under "dp_count".
    accountant
        "exact" (Gaussian releases alone), "rdp" or "prv".
    panel_source, moments_source
        Where genes and scales came from.
    reproducible_noise
        True: a simulation, void if the seed is known.
    wiring_checked
        True if the wiring test passed on the module as it was trained.
    events
        What was spent.
    guarantees
        Output by output.
    notes
        Further sentences.
    earlier
        Epsilon and delta that were spent on the same cells before, replaced results included.
    """

    valid: bool
    mode: str
    epsilon: float | None
    delta: float
    target_epsilon: float | None
    nominal_epsilon: float | None = None
    unit: str = "cell"
    unit_key: str | None = None
    n_units: float = 0
    n_units_policy: str = "public"
    accountant: str = "exact"
    panel_source: str = ""
    moments_source: str = "none"
    reproducible_noise: bool = False
    wiring_checked: bool = False
    events: Sequence[Event] = ()
    guarantees: Sequence[Guarantee] = ()
    notes: Sequence[str] = ()
    earlier: tuple[float, float] = (0.0, 0.0)

    @property
    def adjacency(self) -> str:
        """Which data sets count as neighbours."""
        return f"add or remove one {self.unit}"

    @property
    def replace_one_bound(self) -> tuple[float, float] | None:
        """(2 epsilon, (1 + e^epsilon) delta): the bound where one unit is replaced by another."""
        if self.epsilon is None:
            return None
        return 2 * self.epsilon, min(1.0, (1 + math.exp(min(700.0, self.epsilon))) * self.delta)

    @property
    def accountant_version(self) -> str:
        """Version of Opacus where it was used."""
        if self.accountant == "exact":
            return "closed form"
        try:
            return f"opacus {version('opacus')}"
        except PackageNotFoundError:
            return "opacus is not installed here"

    def paragraph(self) -> str:
        """Return what may be quoted, in plain words."""
        if not self.valid:
            nominal = "" if self.nominal_epsilon is None else f" (the nominal number is {self.nominal_epsilon:.3f})"
            return f"No privacy guarantee holds for mode {self.mode!r}{nominal}. " + " ".join(self.notes)
        assert self.epsilon is not None
        assert self.replace_one_bound is not None
        two, delta_two = self.replace_one_bound
        text = (
            f"Outputs marked private are ({self.epsilon:.4f}, {self.delta:.3g})-differentially private for one "
            f"{self.unit}, for adding or removing it; for replacing one, epsilon is at most {two:.4f} and delta "
            f"{delta_two:.3g}. "
        )
        if self.unit == "cell":
            text += (
                f"A donor with k cells is only bounded by k times epsilon, for example {10 * self.epsilon:.3g} for 10 "
                "cells, at a delta that grows faster still: nothing useful is said about donors. "
            )
        text += f"Genes: {self.panel_source or 'as given'}. Number of units: {self.n_units_policy}. "
        if self.reproducible_noise:
            text += "This is a simulation: the noise follows from a seed, and the statement is void if it is known. "
        if self.earlier[0]:
            text += (
                f"Results on the same cells before it spent epsilon {self.earlier[0]:.4f} and delta "
                f"{self.earlier[1]:.3g}, which add to it. "
            )
        return text + " ".join(self.notes)

    def block(self) -> dict[str, Any]:
        """Return what is stored in ``.uns[key]["privacy"]``: numbers, texts and tables of equal-length arrays."""
        bound = self.replace_one_bound
        ledger = {
            name: np.array([getattr(e, name) for e in self.events])
            for name in ("stage", "kind", "sensitivity", "noise_multiplier", "sample_rate", "steps")
        }
        table = {n: np.array([getattr(g, n) for g in self.guarantees], dtype=object) for n in Guarantee.__annotations__}
        return {
            **{
                name: getattr(self, name)
                for name in (
                    *("valid", "mode", "epsilon", "delta", "target_epsilon", "nominal_epsilon", "adjacency", "unit"),
                    *("unit_key", "n_units", "n_units_policy", "accountant", "accountant_version", "panel_source"),
                    *("moments_source", "reproducible_noise", "wiring_checked"),
                )
            },
            "earlier_epsilon": self.earlier[0],
            "earlier_delta": self.earlier[1],
            "replace_one_bound": None if bound is None else np.array(bound),
            **({"ledger": ledger} if len(self.events) else {}),
            **({"guarantees": table} if len(self.guarantees) else {}),
            "statement": self.paragraph(),
        }

    def __str__(self) -> str:
        lines = [self.paragraph(), ""]
        lines += [f"{g.guarantee:>12}  {g.output}: {g.condition}" for g in self.guarantees]
        lines.append("")
        lines += [
            f"{e.stage:>12}  {e.kind}, sensitivity {e.sensitivity:g}, noise {e.noise_multiplier:.4g}, "
            f"rate {e.sample_rate:g}, {e.steps} times"
            for e in self.events
        ]
        return "\n".join(lines)
