"""What a call of ``distill`` asks for: checked, and from what a user types to numbers of profiles a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellsmith._errors import SetupError, nearest
from cellsmith.math.matching import allocate

__all__ = ["VARIANTS", "WEIGHTS", "Plan", "check_plan", "profiles_per_class"]

WEIGHTS = {
    "gradient_weight": 1.0,
    "distribution_weight": 1.0,
    "readers_weight": 1.0,
    "variance_weight": 0.1,
    "separation_weight": 0.1,
    "code_weight": 1e-3,
    "residual_weight": 1e-3,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {
        "init": "prototype",
        "residual": True,
        "objective": (),
        "selection": "best",
        "soft_labels": True,
    },
    "paper": {
        "init": "random",
        "residual": False,
        "objective": ("gradient", "distribution"),
        "selection": "last",
        "soft_labels": False,
    },
}
CHOICES = {
    "variant": tuple(VARIANTS),
    "init": ("prototype", "real", "random"),
    "profile": ("mean_log", "sum"),
    "prototype_space": ("pca", "latent"),
    "selection": ("best", "last"),
    "count_mode": ("round", "multinomial", "nb"),
}
ALLOCATIONS = ("equal", "proportional", "sqrt")
OBJECTIVES = ("readers", "gradient", "distribution")
MAX_STEPS = 100
LIBRARIES = ("deep", "sum", "median")


@dataclass(frozen=True)
class Plan:
    """How to distil, with every argument settled.

    Attributes
    ----------
    variant, init, profile, prototype_space, residual, objective
        As in :meth:`cellsmith.model.SCDD.distill`.
    sigma_star, n_generator_steps, guidance, max_steps, selection, validation_size, refit, soft_labels
        As in :meth:`cellsmith.model.SCDD.distill`.
    library_size, max_library, count_mode, within_batch, network_queue, batch_size
        As in :meth:`cellsmith.model.SCDD.distill`.
    weights
        Every weight of the loss by name.
    """

    variant: str
    init: str
    profile: str
    prototype_space: str
    residual: bool
    objective: tuple[str, ...]
    sigma_star: float
    n_generator_steps: int
    guidance: float
    max_steps: int
    selection: str
    validation_size: float
    refit: bool
    soft_labels: bool
    library_size: Any
    max_library: float
    count_mode: str
    within_batch: bool
    network_queue: int
    weights: Mapping[str, float]
    batch_size: int

    @property
    def judges(self) -> bool:
        """Whether iterates are compared on held-out cells."""
        return self.selection == "best" and self.max_steps > 0


def check_plan(
    *,
    variant: str,
    objective: str | Sequence[str] | None,
    max_steps: int | None,
    weights: Mapping[str, float] | None,
    library_size: Any,
    **given: Any,
) -> Plan:
    """Settle the arguments of ``distill``.

    Raises
    ------
    SetupError
        For an unknown name, with the nearest valid one, and for a number out of range.
    """
    _check_choice("variant", variant, CHOICES["variant"])
    settled = {k: VARIANTS[variant][k] if k in VARIANTS[variant] and v is None else v for k, v in given.items()}
    for name, valid in CHOICES.items():
        if name in settled:
            _check_choice(name, settled[name], valid)
    settled["objective"] = objective = _check_objective(variant, objective, max_steps)
    # Without something to make small there is nothing to do after step 0.
    settled["max_steps"] = 0 if not objective else MAX_STEPS if max_steps is None else max_steps
    for name in weights or {}:
        _check_choice("weights", name, tuple(WEIGHTS))
    if isinstance(library_size, str):
        _check_choice("library_size", library_size, LIBRARIES)
    for name, low, high in (
        ("sigma_star", 0.02, 20.0),
        ("validation_size", 0.01, 0.5),
        ("max_steps", 0, 1_000_000),
        ("n_generator_steps", 1, 1_000),
        ("batch_size", 1, 1_000_000),
        ("max_library", 1, 2e9),
        ("network_queue", 0, 10_000),
    ):
        if not low <= settled[name] <= high:
            raise SetupError(f"{name}={settled[name]!r}; expected a number from {low} to {high:g}.")
    return Plan(
        variant=variant,
        weights={**WEIGHTS, **(weights or {})},
        library_size=library_size,
        **settled,
    )


def _check_objective(variant: str, given: str | Sequence[str] | None, max_steps: int | None) -> tuple[str, ...]:
    objective = VARIANTS[variant]["objective"] if given is None else (given,) if isinstance(given, str) else given
    for name in objective:
        _check_choice("objective", name, OBJECTIVES)
    if max_steps and not objective:
        raise SetupError(
            f"max_steps={max_steps} without an objective; expected what the steps shall make small. "
            "Type objective='readers'."
        )
    return tuple(objective)


def _check_choice(name: str, value: Any, valid: Sequence[str]) -> None:
    if value not in valid:
        raise SetupError(f"{name}={value!r}. {nearest(value, valid)}")


def profiles_per_class(
    sizes: np.ndarray,
    classes: Sequence[str],
    *,
    n_per_class: int | Mapping[str, int] | None,
    ratio: float | None,
    allocation: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Return how many profiles each class gets, and how many it was asked for.

    Parameters
    ----------
    sizes
        Cells of each class (K,).
    classes
        Their names.
    n_per_class, ratio, allocation
        As in :meth:`cellsmith.model.SCDD.distill`.

    Returns
    -------
    Given and asked numbers (K,); a class is capped at its size, and one without cells gets none.

    Raises
    ------
    SetupError
        If both or neither of ``n_per_class`` and ``ratio`` are given, or a class is unknown.
    """
    _check_choice("allocation", allocation, ALLOCATIONS)
    if (n_per_class is None) == (ratio is None):
        both = "both are given" if ratio is not None else "neither is given"
        raise SetupError(
            f"n_per_class and ratio: {both}; expected exactly one. Type n_per_class=10 or n_per_class=None, ratio=0.05."
        )
    if ratio is not None:
        if not 0 < ratio <= 1:
            raise SetupError(f"ratio={ratio!r}; expected a fraction of the cells, above 0 and at most 1.")
        given = allocate(sizes, round(ratio * int(sizes.sum())), allocation=allocation)
        return given, given
    if isinstance(n_per_class, Mapping):
        for name in n_per_class:
            _check_choice("n_per_class", name, list(classes))
        asked = np.array([int(n_per_class.get(name, 0)) for name in classes])
    else:
        asked = np.full(len(classes), int(n_per_class))
    if (asked < 0).any() or not asked.any():
        raise SetupError(f"n_per_class={n_per_class!r}; expected positive numbers of profiles.")
    asked = np.where(sizes > 0, asked, 0)
    return np.minimum(asked, sizes), asked
