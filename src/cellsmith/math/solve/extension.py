"""Cells that come later: the exact one-row minimiser against fixed neighbours (GRIT Eq. 7)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellsmith._errors import SetupError, nearest
from cellsmith.math.graph.structure import degrees

__all__ = ["extend"]


def extend(
    weights: Any,
    refined: npt.ArrayLike,
    *,
    degree: npt.ArrayLike,
    scores: npt.ArrayLike | None = None,
    laplacian: str = "sym",
    smoothness_weight: float,
    fidelity: npt.ArrayLike | None = None,
) -> npt.NDArray[np.float64]:
    """Refine new cells with the refined cells held fixed (GRIT Eq. 7); new cells do not see one another.

    With a_jt the weights, d_j = sum_t a_jt and w_j the fidelity, the minimiser is
    ``sym``: (w_j P0_j + lambda sum_t a_jt P_t / sqrt(d_j d_t)) / (w_j + lambda);
    ``rw``: (w_j P0_j + lambda sum_t a_jt P_t / d_j) / (w_j + lambda);
    ``comb``: (w_j P0_j + lambda sum_t a_jt P_t) / (w_j + lambda d_j).
    Without own scores (or with a row of NaN) it is the mean sum_t a_jt P_t / d_j. A refined cell that has no scores
    (NaN) is no neighbour; a new cell without neighbours keeps its scores.

    Parameters
    ----------
    weights
        ``(m, n)`` scipy sparse, weights of refined cells as neighbours of new ones, >= 0.
    refined
        ``(n, C)`` refined scores P.
    degree
        ``(n,)`` degrees d_t of the refined cells in their own graph.
    scores
        ``(m, C)`` scores P0 of the new cells; None if they have none.
    laplacian
        ``"sym"``, ``"rw"`` or ``"comb"``.
    smoothness_weight
        lambda, >= 0.
    fidelity
        ``(m,)`` weights w_j; None is 1.

    Returns
    -------
    ``(m, C)`` float64; NaN for a cell that has neither scores nor neighbours.

    Raises
    ------
    SetupError
        If shapes disagree or the Laplacian has another name.
    """
    if laplacian not in {"sym", "rw", "comb"}:
        raise SetupError(f"Found laplacian={laplacian!r}. {nearest(laplacian, ('sym', 'rw', 'comb'))}")
    known = np.asarray(refined, dtype=np.float64)
    d = np.asarray(degree, dtype=np.float64).reshape(-1)
    table = sp.csr_matrix(weights, dtype=np.float64)
    if table.shape[1] != len(known) or d.size != len(known):
        raise SetupError(
            f"Found weights of shape {table.shape} and {d.size} degrees, expected (m, {len(known)}) and {len(known)}: "
            "one column and one degree for each refined cell."
        )
    told = np.asarray(np.isfinite(known).all(axis=1))
    if not told.all():
        table = sp.csr_matrix(table @ sp.diags(told.astype(np.float64)))
        known = np.where(told[:, None], known, 0.0)
    own = degrees(table)
    linked = own > 0
    safe = np.where(linked, own, 1.0)[:, None]
    mean = (table @ known) / safe
    if scores is None:
        return np.where(linked[:, None], mean, np.nan)
    given = np.asarray(scores, dtype=np.float64)
    if given.shape != (table.shape[0], known.shape[1]):
        raise SetupError(
            f"Found scores of shape {given.shape}, expected ({table.shape[0]}, {known.shape[1]}): new cells x classes."
        )
    w = np.ones(len(given)) if fidelity is None else np.asarray(fidelity, dtype=np.float64).reshape(-1)
    w = np.where(np.isfinite(given).all(axis=1), w, 0.0)[:, None]
    if laplacian == "sym":
        root = np.sqrt(np.where(d > 0, d, 1.0))
        pull = (table @ (known / root[:, None])) / np.sqrt(safe)
    else:
        pull = mean
    weight = smoothness_weight * (safe if laplacian == "comb" else 1.0)
    mixed = (w * np.where(w > 0, given, 0.0) + weight * pull) / np.where(w + weight > 0, w + weight, 1.0)
    joined = np.where(w > 0, mixed, mean)
    return np.where(linked[:, None], joined, np.where(w > 0, given, np.nan))
