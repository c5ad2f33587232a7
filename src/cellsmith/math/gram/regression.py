"""Scores of a cell from what it observed: least squares on the loadings of its observed features (section 4.17)."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith.math.gram._rows import tiles
from cellsmith.math.gram.blocks import CentredBlocks
from cellsmith.math.gram.centred import Centred

__all__ = ["regress", "regress_block"]

Array: TypeAlias = npt.NDArray[np.float64]
_ROWS = 512  # k x k systems held at once


def regress(blocks: CentredBlocks, basis: npt.NDArray[Any]) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Scores c_i minimising sum_d M_id (z_id - l_d . c_i)^2 for every cell.

    Parameters
    ----------
    blocks
        Z in row blocks.
    basis
        l, (D, k), orthonormal columns.

    Returns
    -------
    (n, k) scores and (n,) bool: whether the smallest singular value of the cell's restricted basis reaches a tenth of
    sqrt(observed share), the condition under which its scores are determined well enough to be learned from. The other
    cells get a ridge of the square of that bound.
    """
    k = basis.shape[1]
    parts = [(np.zeros((0, k)), np.zeros(0, dtype=bool))] + [regress_block(z, basis) for _, z in blocks()]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def regress_block(z: Centred, basis: npt.NDArray[Any]) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Scores and acceptance of the rows of one block; see :func:`regress`."""
    n_features, k = basis.shape
    targets = z.dot(basis).astype(np.float64)
    scores, accepted = np.empty((z.shape[0], k)), np.empty(z.shape[0], dtype=bool)
    weights = z.row_weights()
    for i, j in tiles(z.shape[0], _ROWS):
        grams = z.observed_grams(basis, i, j)
        # squared: the smallest eigenvalue of l^T M l against observed share / 100
        bound = weights[i:j] / n_features / 100.0
        good = np.linalg.eigvalsh(grams)[:, 0] >= np.maximum(bound, 1e-12)
        ridge = np.where(good, 0.0, np.maximum(bound, 1e-12))
        grams = grams + ridge[:, None, None] * np.eye(k)
        scores[i:j] = np.linalg.solve(grams, targets[i:j, :, None])[:, :, 0]
        accepted[i:j] = good
    return scores, accepted
