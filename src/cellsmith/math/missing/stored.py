"""Fitted probabilities as named arrays, and back: what a result keeps of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith.math import gram

__all__ = ["describe_probability", "stored_probability"]

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]

# Names by which users meet the arrays; those of covariates are words already.
_NAMES = {
    "logistic": {"scalars": "a", "features": "b"},
    "rank1": {"scalars": "r", "features": "c"},
    "product": {"scalars": "r", "features": "c"},
}
_AXES = {
    **dict.fromkeys(("a", "r", "groups", "cell_design", "cell_slopes"), "cells"),
    **dict.fromkeys(("b", "c", "table", "feature_design", "feature_slopes"), "features"),
}


def describe_probability(probability: gram.Probability) -> tuple[str, dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Return the kind of a model, its arrays, and which axis each array has first.

    Parameters
    ----------
    probability
        Of n cells and D features.

    Returns
    -------
    ``"logistic"`` (a (n,), b (D,)), ``"product"`` (rank one: r (n,), c (D,), level), ``"rank1"`` (clipped: r (n,),
    c (D,) over their mean), ``"grouped"`` (groups (n,), table (D, groups)), ``"covariates"`` (two designs, two slopes),
    or ``"given"`` without arrays; the arrays; and array name -> ``"cells"`` or ``"features"``.
    """
    state = probability.state()
    if not state:
        return "given", {}, {}
    names = _NAMES.get(probability.kind, {})
    arrays = {names.get(name, name): value for name, value in state.items()}
    if "table" in arrays:
        arrays["table"] = arrays["table"].T
    return probability.kind, arrays, {name: _AXES[name] for name in arrays if name in _AXES}


def stored_probability(kind: str, arrays: Arrays) -> gram.Probability:
    """Return the model that :func:`describe_probability` took apart.

    Parameters
    ----------
    kind
        As returned there.
    arrays
        As returned there, each (n, ...) or (D, ...).

    Raises
    ------
    SetupError
        For another kind, such as ``"given"``: probabilities of the caller's are not kept.
    """
    names = {theirs: ours for ours, theirs in _NAMES.get(kind, {}).items()}
    state = {names.get(name, name): np.asarray(value) for name, value in arrays.items()}
    if "table" in state:
        state["table"] = state["table"].T
    return gram.probability_from_state(kind, state)
