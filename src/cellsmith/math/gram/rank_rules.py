"""How many components to keep, from the eigenvalues (Eq. 14)."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError, nearest

__all__ = ["RULES", "choose_rank"]

Array: TypeAlias = npt.NDArray[np.float64]
RULES = ("cng", "proportion", "parallel", "gap")


def choose_rank(
    values: npt.ArrayLike, rule: str, *, total: float | None = None, null: npt.ArrayLike | None = None
) -> int:
    """Return the number of components that a rule keeps; negative eigenvalues never count.

    ``"cng"``: the largest increase of the least-squares slope from three consecutive eigenvalues to the next three
    (Cattell, Nelson, Gorsuch), plus 2. ``"proportion"``: the fewest that hold 95 % of the positive part.
    ``"parallel"``: those above the 95th percentile of the eigenvalues of shuffled data. ``"gap"``: up to the largest
    difference between neighbours.

    Parameters
    ----------
    values
        Eigenvalues in descending order, (m,).
    rule
        One of the four.
    total
        Sum of all positive eigenvalues, for ``"proportion"``; None: of those given.
    null
        (repeats, m) eigenvalues of shuffled data, for ``"parallel"``.

    Returns
    -------
    Between 1 and the number of positive eigenvalues given.

    Raises
    ------
    SetupError
        If the rule is not known, no eigenvalue is positive, ``"cng"`` finds fewer than 6 non-negative eigenvalues, or
        ``"parallel"`` has nothing to compare with.
    """
    theta = np.asarray(values, dtype=np.float64)
    if rule not in RULES:
        raise SetupError(f"rank_rule={rule!r} is not known. {nearest(rule, RULES)}")
    positive = theta[theta > 0]
    if positive.size == 0:
        raise SetupError("No eigenvalue is positive, so that there is nothing to keep. Check the mask and the data.")
    if rule == "cng":
        kept = _cng(theta[theta >= 0])
    elif rule == "proportion":
        whole = positive.sum() if total is None else total
        kept = int(np.searchsorted(np.cumsum(positive), 0.95 * whole * (1 - 1e-12))) + 1
    elif rule == "parallel":
        kept = _parallel(positive, null)
    else:
        kept = int(np.argmax(positive[:-1] - positive[1:])) + 1 if positive.size > 1 else 1
    return int(np.clip(kept, 1, positive.size))


def _cng(theta: Array) -> int:
    if theta.size < 6:
        raise SetupError(
            f"Found {theta.size} non-negative eigenvalues, but rank_rule='cng' compares the slopes of two triples and "
            "needs at least 6. Raise n_latent, or type rank_rule='proportion'."
        )
    slopes = 0.5 * (theta[2:] - theta[:-2])  # least squares through three equidistant points
    return int(np.argmax(slopes[3:] - slopes[:-3])) + 3


def _parallel(theta: Array, null: Any) -> int:
    if null is None:
        raise SetupError("rank_rule='parallel' needs the eigenvalues of shuffled data: null=(repeats, components).")
    drawn = np.asarray(null, dtype=np.float64)
    m = min(theta.size, drawn.shape[1])
    below = np.flatnonzero(theta[:m] <= np.quantile(drawn[:, :m], 0.95, axis=0))
    return int(below[0]) if below.size else m
