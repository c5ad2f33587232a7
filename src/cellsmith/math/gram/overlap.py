"""1 / N_ij as a short sum of products, so that dividing by the overlap stays implicit (Eq. 9 and 10)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline

from cellsmith._errors import ConvergenceError, SetupError
from cellsmith.math.gram.probability import (
    GroupedProbability,
    Probability,
    Rank1Probability,
    ScalarProbability,
    TableProbability,
)

__all__ = ["Factors", "mean_factors", "overlap_factors"]

Array: TypeAlias = npt.NDArray[np.float64]
_GRID = 200  # nodes of the scalar
_EXACT = {"logistic": 400, "rank1": 1024}  # up to so many distinct scalars, each is a node: nothing is interpolated
_LANDMARKS = 300
_MAX_RANK = 12


@dataclass(frozen=True)
class Factors:
    """1 / N_ij ~ sum_q s_q u_q(i) u_q(j).

    Attributes
    ----------
    u
        (n, R).
    s
        (R,); of either sign.
    error
        Largest relative error of an entry on the pairs that were checked; 0 where the form is exact.
    kind
        ``"rank1"``, ``"scalar"``, ``"groups"``, ``"landmarks"`` or ``"mean"``: how u continues to new cells.
    nodes
        Arrays that :meth:`extend` needs; numbers only, so that they can be stored.
    """

    u: Array
    s: Array
    error: float
    kind: str
    nodes: dict[str, Array] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Number of terms R."""
        return self.s.size

    def inverse_overlap(self, pairs: npt.ArrayLike) -> Array:
        """1 / N_ij of pairs of cells (i, j), (m, 2) -> (m,)."""
        asked = np.asarray(pairs, dtype=np.int64)
        return np.asarray(np.einsum("mq,mq,q->m", self.u[asked[:, 0]], self.u[asked[:, 1]], self.s))

    def extend(self, probability: Probability) -> Array:
        """Continue u to other cells, (m, R).

        Parameters
        ----------
        probability
            Probabilities of the m cells, of the same kind and features as in the fit.

        Raises
        ------
        SetupError
            If they are of another kind.
        """
        if self.kind == "mean":
            return np.ones((probability.n_cells, 1))
        if self.kind == "rank1" and isinstance(probability, Rank1Probability):
            return 1.0 / probability.row_rates[:, None]
        scale = 1.0 / np.sqrt(probability.self_overlap)[:, None]
        if self.kind == "scalar" and isinstance(probability, ScalarProbability):
            return _interpolate(self.nodes["at"], self.nodes["table"], _coordinate(probability)) * scale
        if self.kind == "groups" and isinstance(probability, GroupedProbability):
            return np.asarray(self.nodes["table"][probability.groups])
        if self.kind == "landmarks":
            table = TableProbability(lambda cells: self.nodes["p"][cells], self.nodes["p"].shape)
            kernel = np.sqrt(table.self_overlap)[None, :] / probability.cross_overlap(table)
            # u = K_i. U / s, where K_ij = sqrt(N_ii N_jj) / N_ij and u is divided by sqrt(N_ii) again
            return np.asarray(kernel @ self.nodes["regression"])
        raise SetupError(
            f"Found {type(probability).__name__} for factors of kind {self.kind!r}, expected the same kind."
        )


def mean_factors(n: int, n_features: int) -> Factors:
    """Factors that divide by the number of features only: Z Z^T / D, the Gram of mean imputation (Eq. 6)."""
    return Factors(np.ones((n, 1)), np.array([1.0 / n_features]), 0.0, "mean")


def overlap_factors(
    probability: Probability,
    *,
    tol: float = 1e-4,
    max_rank: int = _MAX_RANK,
    n_pairs: int = 10_000,
    generator: np.random.Generator,
) -> Factors:
    """Factor the inverse expected overlap, with as few terms as ``tol`` allows (Eq. 9, 10).

    Rank one and groups are exact. Where p depends on one number a cell, N_ij = f(t_i, t_j) is smooth: the normalised
    kernel sqrt(f(t,t) f(t',t')) / f(t,t') is diagonalised on 200 quantiles of t, the eigenvectors of largest |s| are
    continued by cubic splines, and the normalisation is undone. Otherwise the same on 300 landmark cells, continued by
    regression on the overlaps with them.

    Parameters
    ----------
    probability
        Probabilities of the n cells.
    tol
        Largest relative error of an entry.
    max_rank
        Most terms.
    n_pairs
        Random pairs of different cells that are checked (all pairs where there are fewer).
    generator
        Draws the pairs and the landmarks.

    Raises
    ------
    ConvergenceError
        If ``max_rank`` terms do not reach ``tol``; the message states the error reached.
    """
    if isinstance(probability, Rank1Probability):
        u = 1.0 / probability.row_rates[:, None]
        return Factors(u, np.array([probability.kappa]), 0.0, "rank1")
    if isinstance(probability, GroupedProbability):
        return _of_groups(probability, tol)
    pairs = _pairs(probability.n_cells, n_pairs, generator)
    if isinstance(probability, ScalarProbability):
        kind, nodes, u, s = _of_scalars(probability, max_rank)
    else:
        kind, nodes, u, s = _of_landmarks(probability, max_rank, generator)
    exact = probability.overlap(pairs)
    terms = u[pairs[:, 0]] * u[pairs[:, 1]] * s
    errors = np.max(np.abs(np.cumsum(terms, axis=1) * exact[:, None] - 1.0), axis=0, initial=0.0)
    good = np.flatnonzero(errors <= tol)
    if good.size == 0:
        raise ConvergenceError(
            f"The overlap of the cells is not a sum of {s.size} products: relative error {errors.min():.1e}, expected "
            f"at most overlap_tol={tol:.0e}. Raise overlap_tol, or choose prob='logistic' or 'grouped'."
        )
    rank = int(good[0]) + 1
    kept = {name: table[:, :rank] if name in ("table", "regression") else table for name, table in nodes.items()}
    return Factors(np.ascontiguousarray(u[:, :rank]), s[:rank], float(errors[rank - 1]), kind, kept)


def _of_groups(probability: GroupedProbability, tol: float) -> Factors:
    inverse = 1.0 / (probability.table @ probability.table.T)
    s, vectors = _largest(inverse, inverse.shape[0])
    # equal or empty groups make terms that carry nothing: leave them out where that costs no accuracy to speak of
    for rank in range(1, s.size + 1):
        error = np.max(np.abs((vectors[:, :rank] * s[:rank]) @ vectors[:, :rank].T / inverse - 1.0))
        if error <= min(tol, 1e-12) or rank == s.size:
            break
    table = vectors[:, :rank]
    return Factors(table[probability.groups], s[:rank], float(error), "groups", {"table": table})


def _of_scalars(probability: ScalarProbability, max_rank: int) -> tuple[str, dict[str, Array], Array, Array]:
    # Rates span decades, and clipping puts a kink in their curve for every feature: even steps of the logarithm, and
    # twice as many.
    log = probability.kind == "rank1"
    at = _grid(_coordinate(probability), 2 * _GRID if log else _GRID, _EXACT[probability.kind])
    p = probability.curve(np.exp(at) if log else at)
    overlap = p @ p.T
    size = np.sqrt(np.diag(overlap))
    s, table = _largest(np.outer(size, size) / overlap, max_rank)
    u = _interpolate(at, table, _coordinate(probability)) / np.sqrt(probability.self_overlap)[:, None]
    return "scalar", {"at": at, "table": table}, u, s


def _coordinate(probability: ScalarProbability) -> Array:
    return np.log(probability.scalars) if probability.kind == "rank1" else probability.scalars


def _of_landmarks(
    probability: Probability, max_rank: int, generator: np.random.Generator
) -> tuple[str, dict[str, Array], Array, Array]:
    n = probability.n_cells
    chosen = np.sort(generator.choice(n, min(n, _LANDMARKS), replace=False))
    p = probability.block(chosen)
    overlap = p @ p.T
    size = np.sqrt(np.diag(overlap))
    s, vectors = _largest(np.outer(size, size) / overlap, max_rank)
    nodes = {"p": p, "regression": vectors / s}
    return "landmarks", nodes, Factors(np.empty((0, 0)), s, 0.0, "landmarks", nodes).extend(probability), s


def _largest(kernel: Array, most: int) -> tuple[Array, Array]:
    """Eigenpairs of largest absolute value, in that order."""
    values, vectors = np.linalg.eigh(0.5 * (kernel + kernel.T))
    order = np.argsort(-np.abs(values), kind="stable")[:most]
    # beyond rounding there is nothing to divide by
    order = order[np.abs(values[order]) > 1e-13 * np.abs(values[order[0]])]
    return values[order], vectors[:, order]


def _grid(scalars: Array, size: int, exact: int) -> Array:
    distinct = np.unique(scalars)
    if distinct.size <= exact:
        return distinct
    # Quantiles follow the cells; even steps keep the splines accurate in the tails, where quantiles are far apart.
    quantiles = np.quantile(scalars, np.linspace(0.0, 1.0, size // 2))
    steps = np.linspace(distinct[0], distinct[-1], size - size // 2)
    nodes = np.unique(np.concatenate([quantiles, steps]))
    # two nodes all but equal would make a spline of noise
    apart = np.concatenate([[True], np.diff(nodes) > 1e-6 * (nodes[-1] - nodes[0])])
    return np.asarray(nodes[apart])


def _interpolate(at: Array, table: Array, scalars: Array) -> Array:
    """Cubic splines through the columns of ``table``; cells beyond the last node take its value."""
    if at.size == 1:
        return np.repeat(table, scalars.size, axis=0)
    return np.asarray(CubicSpline(at, table)(np.clip(scalars, at[0], at[-1])))


def _pairs(n: int, most: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Pairs of different cells: all where there are at most ``most``, else that many at random."""
    if n * (n - 1) // 2 <= most:
        return np.stack(np.triu_indices(n, 1), axis=1)
    first = generator.integers(0, n, most)
    second = (first + generator.integers(1, n, most)) % n
    return np.stack([first, second], axis=1)
