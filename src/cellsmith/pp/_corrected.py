"""Corrected distances of candidate neighbours, from the data and a stored result of BC-PCA (Eq. 8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cellsmith._errors import SetupError
from cellsmith._rng import Streams
from cellsmith.math import gram, missing

__all__ = ["rank_by_corrected_distance"]

CELLS_AT_ONCE = 5_000  # whose candidates are measured together: bounds the memory of the pairs


def rank_by_corrected_distance(
    adata: Any, block: Mapping[str, Any], placed: np.ndarray, *, indices: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the k candidates at the smallest corrected distance, these distances, and the share that was floored.

    Parameters
    ----------
    adata
        Object with the data of the fit.
    block
        ``.uns`` entry of the fit.
    placed
        (m,) numbers of the cells with an embedding.
    indices
        (m, c) candidates, as positions in ``placed``, nearest in the embedding first.
    k
        How many to keep.

    Returns
    -------
    Positions in ``placed`` and distances (the root of Eq. 8), both (m, k), by ascending distance. Where the noise made
    several squares negative, so that they were floored at 0, the embedding decides between them.

    Raises
    ------
    SetupError
        If probabilities or mask of the fit are not in the object, or an embedded cell was not in the fit.
    """
    operator, number = _operator(adata, block)
    inside = number[placed]
    if (inside < 0).any():
        raise SetupError(
            f"{int((inside < 0).sum())} cells were placed after the fit and have no corrected distances. "
            'Leave them out, or type metric="embedding".'
        )
    chosen = np.empty((len(placed), k), dtype=np.int64)
    distances = np.empty((len(placed), k), dtype=np.float32)
    floored = 0.0
    for start in range(0, len(placed), CELLS_AT_ONCE):
        part = slice(start, min(start + CELLS_AT_ONCE, len(placed)))
        candidates = indices[part]
        own = np.repeat(inside[part], candidates.shape[1])
        squared, share = gram.corrected_distances(operator, np.column_stack([own, inside[candidates].ravel()]))
        floored += share * len(candidates) / len(placed)
        squared = squared.reshape(candidates.shape)
        order = np.argsort(squared, axis=1, kind="stable")[:, :k]
        chosen[part] = np.take_along_axis(candidates, order, axis=1)
        distances[part] = np.sqrt(np.take_along_axis(squared, order, axis=1))
    return chosen, distances, floored


def _operator(adata: Any, block: Mapping[str, Any]) -> tuple[gram.Operator, np.ndarray]:
    """Return the Gram operator of the fit and the number that each cell has in it, -1 for none."""
    params, stored = block["params"], dict(block["prob"])
    if params.get("mask") == "given":
        raise SetupError(
            "The mask of the fit was an array and is not in the object. Keep it as a layer (adata.layers['observed']) "
            "and fit with mask='observed', or type metric=\"embedding\"."
        )
    if stored["model"] in ("given", "pairwise"):
        raise SetupError(
            f"The fit used prob={params['prob']!r}, which is not in the object. Ask the model (model.distances), "
            'or type metric="embedding".'
        )
    in_fit, live = (np.asarray(block["fit"][name], dtype=bool) for name in ("cells", "features"))
    probability = gram.probability_from_state(stored["model"], _cut(stored, in_fit, live))
    rows, _ = missing.find_values(adata.X, adata.layers, layer=params.get("layer"))
    mask = missing.find_mask(params.get("mask"), layers=adata.layers, uns=adata.uns, shape=rows.shape)
    blocks = missing.read_blocks(rows, mask)
    if not (in_fit.all() and live.all()):
        blocks = gram.select_blocks(blocks, cells=in_fit, features=live)
    stats = gram.observed_stats(blocks)
    generator = Streams(int(block["provenance"]["seed"])).numpy("sample", 0)
    factors = gram.overlap_factors(probability, tol=float(params["overlap_tol"]), generator=generator)
    z = gram.centred_blocks(blocks, stats.means, dtype=np.dtype(params["dtype"]), keep=rows.in_memory)
    return gram.gram_operator(z, factors, probability.row_sums), np.where(in_fit, np.cumsum(in_fit) - 1, -1)


def _cut(stored: Mapping[str, Any], in_fit: np.ndarray, live: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays of the probabilities for the cells and features of the fit only."""
    chosen = {"cells": in_fit, "features": live}
    return {
        name: np.asarray(value)[chosen[gram.STATE_AXES[name]]] if name in gram.STATE_AXES else np.asarray(value)
        for name, value in stored.items()
        if name not in ("model", "margin_error")
    }
