"""Fitted probabilities as named arrays, and back: what a result keeps of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError, nearest
from cellsmith.math import gram

__all__ = ["describe_probability", "stored_probability"]

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]
MODELS = ("logistic", "rank1", "rank1-clipped", "grouped", "covariates")


def describe_probability(probability: gram.Probability) -> tuple[str, dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Return the kind of a model, its arrays, and which axis each array has first.

    Parameters
    ----------
    probability
        Of n cells and D features.

    Returns
    -------
    ``"logistic"`` (a (n,), b (D,)), ``"rank1"`` (r (n,), c (D,), level), ``"rank1-clipped"`` (r (n,), c (D,) over
    their mean), ``"grouped"`` (groups (n,), table (groups, D)), ``"covariates"`` (two designs and two slopes), or
    ``"given"`` without arrays; the arrays; and array name -> ``"cells"`` or ``"features"``.
    """
    if isinstance(probability, gram.ScalarProbability):
        names = ("a", "b") if probability.kind == "logistic" else ("r", "c")
        kind = "logistic" if probability.kind == "logistic" else "rank1-clipped"
        arrays = dict(zip(names, (probability.scalars, probability.features), strict=True))
        return kind, arrays, {names[0]: "cells", names[1]: "features"}
    if isinstance(probability, gram.Rank1Probability):
        arrays = {"r": probability.row_rates, "c": probability.col_rates, "level": np.array(probability.level)}
        return "rank1", arrays, {"r": "cells", "c": "features"}
    if isinstance(probability, gram.GroupedProbability):
        return (
            "grouped",
            {"groups": probability.groups, "table": probability.table.T},
            {
                "groups": "cells",
                "table": "features",
            },
        )
    if isinstance(probability, gram.CovariateProbability):
        axes = {"cell_design": "cells", "cell_slopes": "cells", "feature_design": "features"}
        return "covariates", probability.state(), {**axes, "feature_slopes": "features"}
    return "given", {}, {}


def stored_probability(kind: str, arrays: Arrays) -> gram.Probability:
    """Return the model that :func:`describe_probability` took apart.

    Parameters
    ----------
    kind
        As returned there.
    arrays
        As returned there.

    Raises
    ------
    SetupError
        For another kind, such as ``"given"``: probabilities of the caller's are not kept.
    """
    if kind not in MODELS:
        raise SetupError(f"The probabilities are {kind!r} and were not kept. {nearest(kind, MODELS)}")
    if kind == "grouped":
        return gram.GroupedProbability(np.asarray(arrays["groups"], dtype=np.int64), np.asarray(arrays["table"]).T)
    floats = {name: np.asarray(value, dtype=np.float64) for name, value in arrays.items()}
    if kind == "logistic":
        return gram.ScalarProbability("logistic", floats["a"], floats["b"])
    if kind == "rank1-clipped":
        return gram.ScalarProbability("rank1", floats["r"], floats["c"])
    if kind == "rank1":
        return gram.Rank1Probability(floats["r"], floats["c"], float(floats["level"]))
    return gram.CovariateProbability(
        floats["cell_design"], floats["feature_design"], floats["cell_slopes"], floats["feature_slopes"]
    )
