"""Two refinements of the corrected spectrum: projection ("prime", Eq. 17) and the diagonal ("hetero", Eq. 18)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith.math.gram.blocks import Blocks, CentredBlocks, centred_blocks
from cellsmith.math.gram.heldout import hold_out, prediction_error
from cellsmith.math.gram.krylov import Eigen, top_eigenpairs
from cellsmith.math.gram.operator import Operator, gram_operator
from cellsmith.math.gram.regression import Regression, pooled, regress, regress_block
from cellsmith.math.gram.subspace import orthonormal, sin_theta

__all__ = ["Projection", "Refined", "hetero", "prime", "prime_step"]

Array: TypeAlias = npt.NDArray[np.float64]
Step: TypeAlias = "Callable[[float], None] | None"
_PRIME_TOL = 1e-4
_ROUNDS = 50


@dataclass(frozen=True)
class Projection:
    """Loadings with the normal model of scores and noise that the refinement carries along.

    Attributes
    ----------
    basis
        l, (D, k), orthonormal.
    covariance
        Of the scores, (k, k).
    noise
        Variance of an observed entry around the fit.
    """

    basis: Array
    covariance: Array
    noise: float

    @property
    def prior(self) -> Array:
        """Precision of the scores in units of the noise, (k, k): the ridge of :func:`regress`."""
        return np.asarray(self.noise * np.linalg.inv(self.covariance))


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
    prior
        (k, k), for :func:`regress` on new cells.
    history
        sin-theta between the iterates of each round.
    heldout_before, heldout_after
        Root mean square error of the held-out entries, predicted by scores and loadings of the start and of the end.
    """

    loadings: Array
    scores: Array
    values: Array
    accepted: npt.NDArray[np.bool_]
    prior: Array
    history: tuple[float, ...]
    heldout_before: float
    heldout_after: float

    @property
    def improved(self) -> bool:
        """Whether the held-out error fell. If not, the start should be kept."""
        return self.heldout_after < self.heldout_before


def prime_step(blocks: CentredBlocks, projection: Projection) -> tuple[Projection, Array]:
    """One round: fit every cell, fill its missing entries with the fit, take the leading right space (Eq. 17).

    The fit is the posterior mean under a normal model of scores and noise, not least squares: cells with few observed
    features would otherwise fill with noise, which later rounds fit in turn. The right space is the Rayleigh-Ritz space
    of the old basis and of its image under F^T F, where F is the filled matrix (sparse + low rank, never formed); the
    fixed points are those of the full decomposition.

    Parameters
    ----------
    blocks
        Z in row blocks.
    projection
        Where the round starts.

    Returns
    -------
    Where it ends, and the eigenvalues of F^T F on the new basis (k,), over the well-determined cells.
    """
    basis = projection.basis
    found = [regress_block(z, basis, projection.prior) for _, z in blocks()]
    image = _filled_product(blocks, found, basis, basis)
    other = orthonormal(image - basis @ (basis.T @ image))
    other = orthonormal(other - basis @ (basis.T @ other))
    space = np.concatenate([basis, other], axis=1)
    images = np.concatenate([image, _filled_product(blocks, found, basis, other)], axis=1)
    inner = space.T @ images
    values, y = np.linalg.eigh(0.5 * (inner + inner.T))
    k = basis.shape[1]
    new = space @ y[:, ::-1][:, :k]
    # one step of expectation and maximisation for the model, then the old axes are seen from the new ones
    fit, turn = pooled(found), new.T @ basis
    residual = fit.residual + projection.noise * fit.freedom
    noise = max(residual / max(1.0, fit.weight), np.finfo(float).tiny)
    covariance = (fit.moment + projection.noise * fit.inverse) / fit.n_accepted
    return Projection(new, _floored(turn @ covariance @ turn.T, noise), noise), values[::-1][:k]


def prime(
    blocks: Blocks,
    means: npt.NDArray[Any],
    loadings: npt.NDArray[Any],
    *,
    seed: int,
    fit: Callable[[CentredBlocks], tuple[Array, Array]] | None = None,
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
        (D, k) start, for example those of the corrected Gram.
    seed
        Chooses the held-out entries; an integer of the stream "split".
    fit
        Fits what is to be improved to the data without the held-out entries: Z -> scores (n, k), loadings (D, k); see
        :func:`~cellsmith.math.gram.thinned_fit`. None takes the cells' regression on ``loadings``, which have seen the
        held-out entries, so that the guard asks for more.
    tol, max_rounds
        Stop when sin-theta between iterates is at most ``tol``, or after so many rounds.
    share
        Share of the observed entries that is held out.
    dtype, keep
        See :func:`~cellsmith.math.gram.centred_blocks`.
    step
        Called with the change of each round.
    """
    held = hold_out(blocks, share=share, seed=seed)
    rest = centred_blocks(held.blocks, means, dtype=dtype, keep=keep)
    if fit is None:
        start = orthonormal(np.asarray(loadings, dtype=np.float64))
        first, axes = regress(rest, start)[0], start
    else:
        first, axes = fit(rest)
        start = orthonormal(axes)
    before = prediction_error(held, first, axes, means=means)
    projection, values, history = _rounds(rest, _modelled(rest, start), (tol, max_rounds), step)
    scores, accepted = regress(rest, projection.basis, projection.prior)
    after = prediction_error(held, scores, projection.basis, means=means)
    if after < before:
        whole = centred_blocks(blocks, means, dtype=dtype, keep=keep)
        projection, values, more = _rounds(whole, projection, (tol, max_rounds), step)
        scores, accepted = regress(whole, projection.basis, projection.prior)
        history += more
    per = max(1, int(accepted.sum())) * start.shape[0] / accepted.size
    prior = projection.prior
    return Refined(projection.basis, scores, values / per, accepted, prior, tuple(history), before, after)


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


def _modelled(blocks: CentredBlocks, basis: Array) -> Projection:
    """Noise and covariance of the scores from least squares, less what noise adds to the scores."""
    fit = pooled([regress_block(z, basis) for _, z in blocks()])
    noise = max(fit.residual / max(1.0, fit.weight - fit.freedom), np.finfo(float).tiny)
    return Projection(basis, _floored((fit.moment - noise * fit.inverse) / fit.n_accepted, noise), noise)


def _floored(covariance: Any, noise: float) -> Array:
    """Keep the covariance positive: a direction of no variance could never be learned again."""
    values, vectors = np.linalg.eigh(0.5 * (covariance + covariance.T))
    return np.asarray((vectors * np.maximum(values, 1e-2 * noise)) @ vectors.T)


def _rounds(
    blocks: CentredBlocks, projection: Projection, limits: tuple[float, int], step: Step
) -> tuple[Projection, Array, list[float]]:
    history: list[float] = []
    values = np.zeros(projection.basis.shape[1])
    for _ in range(limits[1]):
        new, values = prime_step(blocks, projection)
        history.append(sin_theta(projection.basis, new.basis))
        projection = new
        if step is not None:
            step(history[-1])
        if history[-1] <= limits[0]:
            break
    return projection, values, history


def _filled_product(blocks: CentredBlocks, found: list[Regression], basis: Array, b: Array) -> Array:
    """F^T F b, (D, p), over the well-determined cells, F filled by the fit on ``basis``."""
    total = np.zeros((basis.shape[0], b.shape[1]))
    for (_, z), fitted in zip(blocks(), found, strict=True):
        filled = z.filled(fitted.scores, basis)
        total += filled.tdot(filled.dot(b) * fitted.accepted[:, None])
    return total
