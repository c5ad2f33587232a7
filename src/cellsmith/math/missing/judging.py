"""How well an embedding predicts entries that were held out: the label-free score of embeddings (section 6)."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith.math import gram

__all__ = ["embedding_error"]

Array: TypeAlias = npt.NDArray[np.float64]


def embedding_error(
    held: gram.HeldOut, scores: npt.ArrayLike, *, means: npt.NDArray[Any], dtype: Any = np.float32
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

    Returns
    -------
    The error in the unit of the data; NaN where nothing was held out.
    """
    x = np.linalg.qr(np.asarray(scores, dtype=np.float64))[0]
    x *= np.sqrt(len(x))
    k = x.shape[1]
    first, second = np.triu_indices(k)
    grams: Array = np.zeros((means.size, first.size))
    targets: Array = np.zeros((means.size, k))
    for start, block in held.blocks():
        rows = x[start : start + block.shape[0]]
        grams += block.mask_tdot(rows[:, first] * rows[:, second])
        targets += block.centred(means, dtype=dtype).tdot(rows)
    systems = np.empty((means.size, k, k))
    systems[:, first, second] = systems[:, second, first] = grams
    # The ridge weighs as much as one cell: it decides for features that hardly any cell observed, and for no other.
    weights = np.linalg.solve(systems + np.eye(k), targets[:, :, None])[:, :, 0]
    total, count = 0.0, 0
    for start, rows, features, values in held.entries():
        predicted = means[features] + np.einsum("ek,ek->e", x[start + rows], weights[features])
        total += float(np.square(values - predicted).sum())
        count += values.size
    return float(np.sqrt(total / count)) if count else float("nan")
