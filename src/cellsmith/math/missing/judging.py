"""How well an embedding predicts entries that were held out: the label-free score of embeddings."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith.math import gram

__all__ = ["embedding_error"]

Array: TypeAlias = npt.NDArray[np.float64]
_ROWS = 4096  # cells whose products of coordinates are formed at once


def embedding_error(
    held: gram.HeldOut,
    scores: npt.ArrayLike,
    *,
    means: npt.NDArray[Any],
    dtype: Any = np.float32,
    most_features: int = 500,
) -> float:
    """Root mean square error of held-out entries, each predicted from the coordinates of its cell.

    The remaining observed values of every feature are regressed on the coordinates of the cells that observed it. Only
    the space that the coordinates span counts: a method gains nothing by shrinking them. Of the scores that were
    tried (this one, regression of cells on loadings, and the product of scores and loadings), it alone ranked
    embeddings as their distance to the true space does.

    Parameters
    ----------
    held
        The data and what was held out, (n, D).
    scores
        (n, k) coordinates, fitted without the held-out entries.
    means
        mu, (D,).
    dtype
        Type of the products.
    most_features
        Where there are more features, so many of them are judged, chosen by the seed of ``held``.

    Returns
    -------
    The error in the unit of the data; NaN where nothing was held out.
    """
    x = np.linalg.qr(np.asarray(scores, dtype=np.float64))[0]
    x *= np.sqrt(len(x))
    judged = np.sort(np.random.default_rng(held.seed).permutation(means.size)[:most_features])
    weights = _regressed(held.blocks, x, judged, means=means[judged], dtype=dtype)
    number = np.full(means.size, -1)
    number[judged] = np.arange(judged.size)
    total, count = 0.0, 0
    for start, rows, features, values in held.entries():
        own = number[features] >= 0
        rows, features, values = rows[own], features[own], values[own]
        predicted = means[features] + np.einsum("ek,ek->e", x[start + rows], weights[number[features]])
        total += float(np.square(values - predicted).sum())
        count += values.size
    return float(np.sqrt(total / count)) if count else float("nan")


def _regressed(blocks: gram.Blocks, x: Array, features: npt.NDArray[np.int64], *, means: Array, dtype: Any) -> Array:
    """Return the coefficients (features, k) of the observed values of some features on the coordinates (n, k)."""
    k = x.shape[1]
    first, second = np.triu_indices(k)
    grams: Array = np.zeros((features.size, first.size))
    targets: Array = np.zeros((features.size, k))
    for start, block in blocks():
        for i in range(0, block.shape[0], _ROWS):
            part = block.take(slice(i, min(i + _ROWS, block.shape[0])), features)
            rows = x[start + i : start + i + part.shape[0]]
            grams += part.mask_tdot(rows[:, first] * rows[:, second])
            targets += part.centred(means, dtype=dtype).tdot(rows)
    systems = np.empty((features.size, k, k))
    systems[:, first, second] = systems[:, second, first] = grams
    # The ridge weighs as much as one cell: it decides for features that hardly any cell observed, and for no other.
    return np.asarray(np.linalg.solve(systems + np.eye(k), targets[:, :, None])[:, :, 0])
