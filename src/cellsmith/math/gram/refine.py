"""Two refinements of the corrected spectrum: projection ("prime", Eq. 17) and the diagonal ("hetero", Eq. 18)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith.math.gram.blocks import Blocks, CentredBlocks, centred_blocks
from cellsmith.math.gram.heldout import heldout_error, hold_out
from cellsmith.math.gram.krylov import Eigen, top_eigenpairs
from cellsmith.math.gram.operator import Operator, gram_operator
from cellsmith.math.gram.regression import regress, regress_block
from cellsmith.math.gram.subspace import orthonormal, sin_theta

__all__ = ["Refined", "hetero", "prime", "prime_step"]

Array: TypeAlias = npt.NDArray[np.float64]
Step: TypeAlias = "Callable[[float], None] | None"
_PRIME_TOL = 1e-4
_ROUNDS = 50


@dataclass(frozen=True)
class Refined:
    """Result of the projection refinement.

    Attributes
    ----------
    loadings
        (D, k), orthonormal: principal axes of the filled matrix.
    scores
        (n, k): coordinates of the cells in them.
    values
        Squared singular values of the filled matrix over the number of cells that took part, per feature and cell of
        the data: comparable with theta.
    accepted
        Cells whose observed features determine their scores, (n,).
    history
        sin-theta between the iterates of each round.
    heldout_before, heldout_after
        Root mean square error of the held-out entries under the loadings of the start and of the end.
    improved
        Whether it fell. If not, the start should be kept; the fields above describe what was refused.
    """

    loadings: Array
    scores: Array
    values: Array
    accepted: npt.NDArray[np.bool_]
    history: tuple[float, ...]
    heldout_before: float
    heldout_after: float

    @property
    def improved(self) -> bool:
        """Whether the held-out error fell."""
        return self.heldout_after < self.heldout_before


def prime_step(blocks: CentredBlocks, basis: npt.NDArray[Any]) -> tuple[Array, Array]:
    """One round: fit every cell, fill its missing entries with the fit, take the leading right space (Eq. 17).

    The right space is the Rayleigh-Ritz space of the old basis and of its image under F^T F, where F is the filled
    matrix (sparse + low rank, never formed); the fixed points are those of the full decomposition.

    Parameters
    ----------
    blocks
        Z in row blocks.
    basis
        (D, k), orthonormal.

    Returns
    -------
    The new basis (D, k), and the eigenvalues of F^T F on it (k,), over cells that are well determined.
    """
    basis = np.asarray(basis, dtype=np.float64)
    image = _filled_product(blocks, basis, basis)
    other = orthonormal(image - basis @ (basis.T @ image))
    other = orthonormal(other - basis @ (basis.T @ other))
    space = np.concatenate([basis, other], axis=1)
    images = np.concatenate([image, _filled_product(blocks, basis, other)], axis=1)
    inner = space.T @ images
    values, y = np.linalg.eigh(0.5 * (inner + inner.T))
    k = basis.shape[1]
    return space @ y[:, ::-1][:, :k], values[::-1][:k]


def prime(
    blocks: Blocks,
    means: npt.NDArray[Any],
    loadings: npt.NDArray[Any],
    *,
    seed: int,
    tol: float = _PRIME_TOL,
    max_rounds: int = _ROUNDS,
    share: float = 0.05,
    dtype: Any = np.float32,
    keep: bool = False,
    step: Step = None,
) -> Refined:
    """Projection refinement with a held-out guard (Eq. 17).

    The rounds run without the held-out entries, so that these can judge them; where they helped, they go on with all
    entries until they settle again.

    Parameters
    ----------
    blocks
        Rows of the data, with live cells and features only.
    means
        mu, (D,).
    loadings
        (D, k) start, fitted without the held-out entries (:func:`~cellsmith.math.gram.thinned_loadings`): a start that
        has seen them always seems better than what follows.
    seed
        Chooses the held-out entries; an integer of the stream "split".
    tol, max_rounds
        Stop when sin-theta between iterates is at most ``tol``, or after so many rounds.
    share
        Share of the observed entries that is held out.
    dtype, keep
        See :func:`~cellsmith.math.gram.centred_blocks`.
    step
        Called with the change of each round.
    """
    start = orthonormal(np.asarray(loadings, dtype=np.float64))
    held = hold_out(blocks, share=share, seed=seed)
    rest = centred_blocks(held.blocks, means, dtype=dtype, keep=keep)
    basis, values, history = _rounds(rest, start, tol, max_rounds, step)
    before = heldout_error(rest, held, start, means=means)
    after = heldout_error(rest, held, basis, means=means)
    whole = centred_blocks(blocks, means, dtype=dtype, keep=keep)
    if after < before:
        basis, values, more = _rounds(whole, basis, tol, max_rounds, step)
        history += more
    scores, accepted = regress(whole, basis)
    per = max(1, int(accepted.sum())) * basis.shape[0] / accepted.size
    return Refined(basis, scores, values / per, accepted, tuple(history), before, after)


def hetero(
    operator: Operator,
    eigen: Eigen,
    *,
    generator: np.random.Generator,
    max_rounds: int = _ROUNDS,
    tol: float = 1e-3,
    max_iter: int = 50,
    oversample: int = 10,
    step: Step = None,
) -> tuple[Operator, Eigen]:
    """Replace the diagonal of G by that of its own rank-k part until it settles (Eq. 18).

    Parameters
    ----------
    operator
        Implicit Gram operator.
    eigen
        Its leading pairs.
    generator
        Draws the start blocks, which begin with the vectors of the round before.
    max_rounds
        Most rounds; it stops earlier when sin-theta between rounds is at most 1e-4.
    tol, max_iter, oversample
        See :func:`~cellsmith.math.gram.top_eigenpairs`.
    step
        Called with the change of each round.

    Returns
    -------
    The operator with the new diagonal, and its pairs.
    """
    k = eigen.values.size
    for _ in range(max_rounds):
        vectors = eigen.vectors.astype(np.float64)
        diagonal = np.square(vectors) @ np.maximum(eigen.values, 0.0)
        operator = _with_diagonal(operator, diagonal)
        found = top_eigenpairs(
            operator,
            k,
            tol=tol,
            max_iter=max_iter,
            oversample=oversample,
            generator=generator,
            start=eigen.vectors,
        )
        change = sin_theta(eigen.vectors, found.vectors)
        eigen = found
        if step is not None:
            step(change)
        if change <= _PRIME_TOL:
            break
    return operator, eigen


def _with_diagonal(operator: Operator, diagonal: Array) -> Operator:
    if operator.factors is None:
        gram = np.array(operator.dense)
        np.fill_diagonal(gram, diagonal)
        return replace(operator, apply=lambda v: gram @ v, diagonal=diagonal, dense=gram)
    return gram_operator(operator.blocks, operator.factors, diagonal=diagonal)


def _rounds(
    blocks: CentredBlocks, basis: Array, tol: float, max_rounds: int, step: Step
) -> tuple[Array, Array, list[float]]:
    history: list[float] = []
    values = np.zeros(basis.shape[1])
    for _ in range(max_rounds):
        new, values = prime_step(blocks, basis)
        history.append(sin_theta(basis, new))
        basis = new
        if step is not None:
            step(history[-1])
        if history[-1] <= tol:
            break
    return basis, values, history


def _filled_product(blocks: CentredBlocks, basis: Array, b: Array) -> Array:
    """F^T F b, (D, p), over the well-determined cells, F filled by the fit on ``basis``."""
    total = np.zeros((basis.shape[0], b.shape[1]))
    for _, z in blocks():
        scores, accepted = regress_block(z, basis)
        filled = z.filled(scores, basis)
        total += filled.tdot(filled.dot(b) * accepted[:, None])
    return total
