"""Fitting the simpler models of the mask, taking one over, and restoring a stored one (Eq. 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError
from cellsmith.math.gram.blocks import Blocks
from cellsmith.math.gram.covariates import CovariateProbability
from cellsmith.math.gram.probability import (
    FLOOR,
    GroupedProbability,
    Probability,
    Rank1Probability,
    ScalarProbability,
    TableProbability,
)
from cellsmith.math.gram.statistics import Stats, check_live

__all__ = ["STATE_AXES", "custom_probability", "fit_grouped", "fit_rank1", "probability_from_state"]

Array: TypeAlias = npt.NDArray[np.float64]
STATE_AXES = {
    **dict.fromkeys(("a", "r", "groups", "cell_design", "cell_slopes"), "cells"),
    **dict.fromkeys(("b", "c", "table", "feature_design", "feature_slopes"), "features"),
}
"""What the rows of the arrays of ``Probability.state()`` stand for."""


def fit_rank1(stats: Stats, *, legacy: bool = False) -> Rank1Probability | ScalarProbability:
    """p_id = r_i c_d / c from the margins (Eq. 7).

    Parameters
    ----------
    stats
        Margins of the mask.
    legacy
        As the authors' public code: where a product r_i c_d exceeds c, *all* entries are divided by the largest
        product. By default such entries are clipped at 1.

    Returns
    -------
    :class:`Rank1Probability` where the product form holds exactly, :class:`ScalarProbability` where clipping bites.

    Raises
    ------
    SetupError
        If a cell or a feature has no observed entry.
    """
    check_live(stats.row_counts, stats.col_counts)
    r, c, level = stats.row_rates, stats.col_rates, stats.observed_rate
    largest = float(r.max() * c.max())
    if legacy:
        return Rank1Probability(r, c, max(level, largest))
    if largest <= level * (1 + 1e-12) and float(r.min() * c.min()) >= FLOOR * level:
        return Rank1Probability(r, c, level)
    return ScalarProbability("rank1", r, c / level)


def fit_grouped(blocks: Blocks, groups: npt.ArrayLike) -> GroupedProbability:
    """Observed rate of each group and feature, shrunk: (x + 1/2) / (m + 1) of x observed among m cells.

    Parameters
    ----------
    blocks
        Rows of the data.
    groups
        Number of the group of each cell, (n,), counted from 0.

    Raises
    ------
    SetupError
        If there are not as many groups as cells.
    """
    codes = np.asarray(groups, dtype=np.int64)
    n_groups = int(codes.max(initial=-1)) + 1
    observed, seen = None, 0
    for start, block in blocks():
        rows = codes[start : start + block.shape[0]]
        if rows.size != block.shape[0]:
            raise SetupError(f"Found {codes.size} groups, expected one for each cell.")
        part = block.mask_tdot(np.eye(n_groups)[rows])
        observed = part if observed is None else observed + part
        seen += rows.size
    if observed is None or seen != codes.size:
        raise SetupError(f"Found {codes.size} groups for {seen} cells, expected one for each cell.")
    sizes = np.bincount(codes, minlength=n_groups)
    return GroupedProbability(codes, (observed.T + 0.5) / (sizes[:, None] + 1.0))


def custom_probability(values: Any, *, shape: tuple[int, int] | None = None) -> TableProbability:
    """Probabilities that the caller knows.

    Parameters
    ----------
    values
        An array (n, D); a pair of factors (n, q) and (D, q) whose product it is; or a callable that maps cell numbers
        (m,) to probabilities (m, D).
    shape
        (n, D); needed for a callable, checked for the others.

    Raises
    ------
    SetupError
        If the shape is not known or another one.
    """
    if callable(values):
        if shape is None:
            raise SetupError("A callable needs shape=(cells, features).")
        return TableProbability(values, shape)
    if isinstance(values, tuple):
        u, v = (np.asarray(x, dtype=np.float64) for x in values)
        if u.ndim != 2 or v.ndim != 2 or u.shape[1] != v.shape[1]:
            raise SetupError(f"Found factors of shape {u.shape} and {v.shape}, expected (cells, q) and (features, q).")
        found, rows = (u.shape[0], v.shape[0]), lambda cells: np.clip(u[cells] @ v.T, 0.0, 1.0)
    else:
        table = np.asarray(values)
        if table.ndim != 2:
            raise SetupError(f"Found probabilities of shape {table.shape}, expected (cells, features).")
        found, rows = (table.shape[0], table.shape[1]), lambda cells: table[cells]
    if shape is not None and tuple(shape) != found:
        raise SetupError(f"Found probabilities of shape {found}, expected {tuple(shape)}, the shape of the data.")
    return TableProbability(rows, found)


def probability_from_state(kind: str, state: Mapping[str, npt.NDArray[Any]]) -> Probability:
    """Build a fitted model of the mask again from its ``kind`` and its ``state()``.

    Parameters
    ----------
    kind
        ``Probability.kind``.
    state
        Arrays by name, such as ``a`` (n,) and ``b`` (D,).

    Raises
    ------
    SetupError
        If the kind has no state that could be stored: a custom one lives in the caller's hands.
    """
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in state.items()}
    if kind == "logistic":
        return ScalarProbability(kind, arrays["a"], arrays["b"])
    if kind == "rank1":
        return ScalarProbability(kind, arrays["r"], arrays["c"])
    if kind == "product":
        return Rank1Probability(arrays["r"], arrays["c"], float(arrays["level"].reshape(-1)[0]))
    if kind == "grouped":
        return GroupedProbability(arrays["groups"].astype(np.int64), arrays["table"].T)
    if kind == "covariates":
        return CovariateProbability(
            arrays["cell_design"], arrays["feature_design"], arrays["cell_slopes"], arrays["feature_slopes"]
        )
    raise SetupError(
        f"Probabilities of kind {kind!r} cannot be restored; expected logistic, rank1, product, grouped or covariates."
    )
