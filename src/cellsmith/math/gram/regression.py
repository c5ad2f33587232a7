"""Scores of a cell from what it observed: regression on the loadings of its observed features (Eq. 17)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith.math.gram._rows import tiles
from cellsmith.math.gram.blocks import CentredBlocks
from cellsmith.math.gram.centred import Centred

__all__ = ["Regression", "pooled", "regress", "regress_block"]

Array: TypeAlias = npt.NDArray[np.float64]
_ROWS = 512  # k x k systems held at once


@dataclass(frozen=True)
class Regression:
    """Scores of some cells and sums over those that are well determined.

    Attributes
    ----------
    scores
        c_i, (rows, k).
    accepted
        Whether the smallest singular value of the cell's restricted loadings is at least sqrt(observed share) / 10,
        (rows,).
    inverse
        sum_i (A_i + prior)^-1, (k, k), where A_i = sum_d M_id l_d l_d^T.
    moment
        sum_i c_i c_i^T, (k, k).
    residual
        sum_id M_id (z_id - l_d . c_i)^2.
    freedom
        sum_i trace(A_i (A_i + prior)^-1): parameters that the fits used.
    weight
        sum_id M_id.
    """

    scores: Array
    accepted: npt.NDArray[np.bool_]
    inverse: Array
    moment: Array
    residual: float
    freedom: float
    weight: float

    @property
    def n_accepted(self) -> int:
        """Number of well-determined cells, at least 1."""
        return max(1, int(self.accepted.sum()))


def regress(
    blocks: CentredBlocks, basis: npt.NDArray[Any], prior: npt.NDArray[Any] | None = None
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Scores c_i minimising sum_d M_id (z_id - l_d . c_i)^2 + c_i^T prior c_i for every cell.

    Parameters
    ----------
    blocks
        Z in row blocks.
    basis
        l, (D, k), orthonormal columns.
    prior
        (k, k) precision in units of the noise; None: least squares, with a small ridge where a cell is not well
        determined.

    Returns
    -------
    (n, k) scores and (n,) bool: which cells are well determined, see :class:`Regression`.
    """
    found = pooled([regress_block(z, basis, prior) for _, z in blocks()])
    return found.scores, found.accepted


def pooled(parts: Sequence[Regression]) -> Regression:
    """Return the regression of all cells from those of consecutive blocks."""
    return Regression(
        np.concatenate([p.scores for p in parts]),
        np.concatenate([p.accepted for p in parts]),
        *(sum(getattr(p, name) for p in parts) for name in ("inverse", "moment", "residual", "freedom", "weight")),
    )


def regress_block(z: Centred, basis: npt.NDArray[Any], prior: npt.NDArray[Any] | None = None) -> Regression:
    """Regression of the rows of one block; see :func:`regress`.

    Parameters
    ----------
    z
        Rows of Z, (rows, D).
    basis
        (D, k), orthonormal columns.
    prior
        (k, k), or None.
    """
    n_features, k = basis.shape
    targets = z.dot(basis).astype(np.float64)
    weights = z.row_weights()
    scores, accepted = np.empty((z.shape[0], k)), np.empty(z.shape[0], dtype=bool)
    inverse, residual, freedom = np.zeros((k, k)), 0.0, 0.0
    for i, j in tiles(z.shape[0], _ROWS):
        grams = z.observed_grams(basis, i, j)
        # squared: the smallest eigenvalue of l^T M l against observed share / 100
        bound = np.maximum(weights[i:j] / n_features / 100.0, 1e-12)
        good = np.linalg.eigvalsh(grams)[:, 0] >= bound
        ridge = np.where(good, 0.0, bound)[:, None, None] * np.eye(k) if prior is None else prior
        solved = np.linalg.inv(grams + ridge)
        c = np.einsum("ikl,il->ik", solved, targets[i:j])
        scores[i:j], accepted[i:j] = c, good
        fitted = np.einsum("ik,ikl,il->i", c, grams, c) - 2.0 * np.einsum("ik,ik->i", c, targets[i:j])
        residual += float((z.squares[i:j] + fitted) @ good)
        freedom += float(np.einsum("ikl,ilk,i->", grams, solved, good))
        inverse += solved[good].sum(axis=0)
    kept = scores[accepted]
    return Regression(scores, accepted, inverse, kept.T @ kept, residual, freedom, float(weights @ accepted))
