"""Logistic model of the mask with covariates of cells and features (Eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError
from cellsmith.math.gram._rows import tiles
from cellsmith.math.gram.blocks import Blocks
from cellsmith.math.gram.probability import FLOOR, Probability, equal_rows, sigmoid
from cellsmith.math.gram.statistics import Stats, check_live

__all__ = ["CovariateProbability", "fit_covariates", "mask_products"]

Array: TypeAlias = npt.NDArray[np.float64]
_LIMIT = 8.0
_RIDGE = 1.0  # prior precision of a slope (standardised covariates): a few observations outweigh it
_ENTRIES = 1 << 21


@dataclass(frozen=True)
class CovariateProbability(Probability):
    """p_id = max(1e-3, sigmoid(w_d . alpha_i + x_i . beta_d)).

    Attributes
    ----------
    cell_design
        x: a column of ones and the standardised covariates of the cells, (n, 1 + q_c).
    feature_design
        w: the same of the features, (D, 1 + q_f).
    cell_slopes
        alpha, (n, 1 + q_f): an intercept for each cell and its response to the covariates of the features.
    feature_slopes
        beta, (D, 1 + q_c): an intercept for each feature and its response to the covariates of the cells.
    margin_error
        Largest error of a fitted row count.
    history
        Margin error of each round.
    """

    cell_design: Array
    feature_design: Array
    cell_slopes: Array
    feature_slopes: Array
    margin_error: float = float("nan")
    history: tuple[float, ...] = ()

    @property
    def kind(self) -> str:  # type: ignore[override]
        """``"covariates"``."""
        return "covariates"

    @property
    def n_cells(self) -> int:  # type: ignore[override]
        """Number of cells."""
        return int(self.cell_slopes.shape[0])

    @property
    def n_features(self) -> int:  # type: ignore[override]
        """Number of features."""
        return int(self.feature_slopes.shape[0])

    @cached_property
    def types(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Cells of equal covariates and slopes are one type."""
        rows = np.concatenate([self.cell_design, self.cell_slopes], axis=1)
        return equal_rows(rows)

    def block(self, cells: npt.NDArray[np.int64]) -> Array:
        """Probabilities of some cells, (m, D).

        Parameters
        ----------
        cells
            Numbers of the cells, (m,).
        """
        eta = self.cell_slopes[cells] @ self.feature_design.T + self.cell_design[cells] @ self.feature_slopes.T
        p = sigmoid(eta)
        return np.maximum(p, FLOOR, out=p)

    def new_cells(self, products: npt.NDArray[Any], cell_design: npt.NDArray[Any]) -> CovariateProbability:
        """Probabilities of new cells, the features fixed.

        Parameters
        ----------
        products
            M w of the new cells, (m, 1 + q_f), from :func:`mask_products`.
        cell_design
            x of the new cells, (m, 1 + q_c), standardised as in the fit.
        """
        x = np.asarray(cell_design, dtype=np.float64)
        empty = np.zeros((x.shape[0], self.feature_design.shape[1]))
        found = replace(self, cell_design=x, cell_slopes=empty, margin_error=float("nan"), history=())
        target = np.asarray(products, dtype=np.float64)
        slopes = empty
        for _ in range(100):
            slopes, _ = _rows_step(found, target)
            moved = np.max(np.abs(slopes - found.cell_slopes), initial=0.0)
            found = replace(found, cell_slopes=slopes)
            if moved < 1e-9:
                break
        return found

    def state(self) -> dict[str, Array]:
        """Return designs and slopes."""
        return {
            "cell_design": self.cell_design,
            "feature_design": self.feature_design,
            "cell_slopes": self.cell_slopes,
            "feature_slopes": self.feature_slopes,
        }


def fit_covariates(
    blocks: Blocks,
    stats: Stats,
    *,
    cell_design: npt.ArrayLike | None = None,
    feature_design: npt.ArrayLike | None = None,
    tol: float = 1e-5,
    max_rounds: int = 100,
) -> CovariateProbability:
    """Fit the logistic model with covariates: alternating Newton over cells and features.

    A covariate of the cells gets a slope for every feature, one of the features a slope for every cell (the intercepts
    already hold what is common). M w and M^T x are sufficient, so one pass over the data serves all rounds, and cells
    (features) of equal statistics and covariates share their parameters.

    Parameters
    ----------
    blocks
        Rows of the data.
    stats
        Their margins.
    cell_design
        (n, q_c) standardised covariates of the cells; None for none.
    feature_design
        (D, q_f) standardised covariates of the features; None for none.
    tol
        Stop when no row count is missed by more than ``tol * D``, nor a column count by more than ``tol * n``.
    max_rounds
        Stop at the latest after this many rounds.

    Raises
    ------
    SetupError
        If a shape is wrong, a covariate is not finite, or a cell or feature has no observed entry.
    """
    check_live(stats.row_counts, stats.col_counts)
    x = _design(cell_design, stats.n_cells, "cells")
    w = _design(feature_design, stats.n_features, "features")
    by_cell, by_feature = mask_products(blocks, x, w)
    # rows that stand for all with the same statistics and covariates
    cells, cell_type = equal_rows(np.round(np.concatenate([by_cell, x], axis=1), 9))
    features, feature_type = equal_rows(np.round(np.concatenate([by_feature, w], axis=1), 9))
    slopes = np.zeros((cells.size, w.shape[1])), np.zeros((features.size, x.shape[1]))
    model = CovariateProbability(x[cells], w[features], *slopes)
    weights = (np.bincount(cell_type).astype(np.float64), np.bincount(feature_type).astype(np.float64))
    history: list[float] = []
    for _ in range(max_rounds):
        alpha, row_error = _rows_step(model, by_cell[cells], weights[1])
        model = replace(model, cell_slopes=alpha)
        beta, col_error = _rows_step(_swapped(model), by_feature[features], weights[0])
        model = replace(model, feature_slopes=beta)
        history.append(max(row_error, col_error * stats.n_features / stats.n_cells))
        stalled = len(history) > 20 and history[-1] > 0.9 * history[-21]
        if history[-1] <= tol * stats.n_features or stalled:
            break
    return CovariateProbability(
        x, w, model.cell_slopes[cell_type], model.feature_slopes[feature_type], history[-1], tuple(history)
    )


def mask_products(blocks: Blocks, cell_design: Array, feature_design: Array) -> tuple[Array, Array]:
    """M w (n, 1 + q_f) and M^T x (D, 1 + q_c), in one pass.

    Parameters
    ----------
    blocks
        Rows of the data.
    cell_design, feature_design
        x (n, 1 + q_c) and w (D, 1 + q_f), each with its column of ones.
    """
    rows, cols = [], np.zeros((feature_design.shape[0], cell_design.shape[1]))
    for start, block in blocks():
        rows.append(block.mask_dot(feature_design))
        cols += block.mask_tdot(cell_design[start : start + block.shape[0]])
    return np.concatenate(rows), cols


def _design(values: Any, size: int, what: str) -> Array:
    ones = np.ones((size, 1))
    if values is None:
        return ones
    table = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    if table.shape[0] != size:
        raise SetupError(f"Found covariates of {table.shape[0]} {what}, expected {size}.")
    if not np.isfinite(table).all():
        bad = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
        raise SetupError(f"A covariate of the {what} is not finite (first: number {bad}); expected numbers.")
    return np.concatenate([ones, table], axis=1)


def _swapped(model: CovariateProbability) -> CovariateProbability:
    return CovariateProbability(model.feature_design, model.cell_design, model.feature_slopes, model.cell_slopes)


def _rows_step(model: CovariateProbability, target: Array, size: Array | None = None) -> tuple[Array, float]:
    """One Newton step of alpha for every row, ``size`` the number of features of each type; and the error before it."""
    w, alpha = model.feature_design, model.cell_slopes
    size = np.ones(w.shape[0]) if size is None else size
    q = w.shape[1]
    a, b = np.triu_indices(q)
    pairs = w[:, a] * w[:, b] * size[:, None]
    prior = np.full(q, _RIDGE)
    prior[0] = 1e-6
    out, error = np.empty_like(alpha), 0.0
    for i, j in tiles(alpha.shape[0], max(1, _ENTRIES // w.shape[0])):
        p = sigmoid(alpha[i:j] @ w.T + model.cell_design[i:j] @ model.feature_slopes.T)
        gap = p @ (w * size[:, None]) - target[i:j]
        held = np.abs(alpha[i:j, 0]) >= _LIMIT
        error = max(error, float(np.max(np.abs(np.where(held, 0.0, gap[:, 0])), initial=0.0)))
        slope = np.empty((j - i, q, q))
        slope[:, a, b] = slope[:, b, a] = (p * (1 - p)) @ pairs
        slope += np.diag(prior)
        step = np.linalg.solve(slope, (gap + prior * alpha[i:j])[:, :, None])[:, :, 0]
        out[i:j] = np.clip(alpha[i:j] - np.clip(step, -1.0, 1.0), -_LIMIT, _LIMIT)
    return out, error
