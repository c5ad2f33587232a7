"""Leading eigenpairs and the negative mass of a symmetric operator that may be indefinite (Eq. 12, 13)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith._errors import ConvergenceError, SetupError
from cellsmith.math.gram.operator import Operator

__all__ = ["Eigen", "Mass", "block_krylov", "frobenius_norm", "spectrum_mass", "top_eigenpairs"]

Array: TypeAlias = npt.NDArray[np.float64]
Apply: TypeAlias = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
EXACT_BELOW = 1_000
_CONDITION = 1e-2  # smallest pivot for which two rounds of Cholesky are as good as Householder, in float32 too
_BASIS = 10  # blocks held before a restart, as far as 200 columns allow; at least 4


@dataclass(frozen=True)
class Eigen:
    """Eigenpairs of largest algebraic value, in descending order.

    Attributes
    ----------
    values
        theta, (k,).
    vectors
        V, (n, k), orthonormal.
    images
        G V, (n, k): one power step more than V, and what the embedding is made of.
    residuals
        |G v - theta v| of each pair, (k,).
    history
        Largest residual over theta_1 after each step.
    spectrum
        All n eigenvalues in descending order where they were computed, else None.
    """

    values: Array
    vectors: npt.NDArray[Any]
    images: npt.NDArray[Any]
    residuals: Array
    history: tuple[float, ...] = ()
    spectrum: Array | None = None

    def first(self, k: int) -> Eigen:
        """Return the first ``k`` pairs."""
        return replace(
            self,
            values=self.values[:k],
            vectors=self.vectors[:, :k],
            images=self.images[:, :k],
            residuals=self.residuals[:k],
        )


@dataclass(frozen=True)
class Mass:
    """Sums over the spectrum.

    Attributes
    ----------
    positive, negative
        Sum of theta > 0, and of |theta| where theta < 0.
    exact
        Whether they are exact, or estimated from probes.
    """

    positive: float
    negative: float
    exact: bool

    @property
    def ratio(self) -> float:
        """Negative mass: sum|theta < 0| / sum(theta > 0)."""
        return self.negative / self.positive if self.positive > 0 else float("inf")


def top_eigenpairs(
    operator: Operator,
    k: int,
    *,
    tol: float = 1e-3,
    max_iter: int = 50,
    oversample: int = 10,
    generator: np.random.Generator,
    start: npt.NDArray[Any] | None = None,
    exact_below: int = EXACT_BELOW,
    step: Callable[[float], None] | None = None,
) -> Eigen:
    """Return the k largest eigenpairs: by ``eigh`` up to 1,000 cells, else by block Krylov.

    Parameters
    ----------
    operator
        The Gram operator.
    k
        Number of pairs, at most n.
    tol, max_iter
        See :func:`block_krylov`.
    oversample
        Columns of the start block beyond ``k``.
    generator
        Draws the start block.
    start
        (n, m) columns that come first in the start block: a guess of the vectors.
    exact_below
        Largest n for ``eigh``.
    step
        Called with the largest relative residual after each step.

    Raises
    ------
    SetupError
        If ``k`` is not between 1 and n.
    ConvergenceError
        See :func:`block_krylov`.
    """
    n = operator.n
    if not 1 <= k <= n:
        raise SetupError(f"n_latent={k}, expected 1 to {n}, the number of cells.")
    if n <= exact_below:
        return _exact(operator, k)
    block = _start_block(n, min(n, k + oversample), start, generator).astype(operator.dtype)
    return block_krylov(operator.apply, n, k, start=block, tol=tol, max_iter=max_iter, step=step)


def block_krylov(
    apply: Apply,
    n: int,
    k: int,
    *,
    start: npt.NDArray[Any],
    tol: float = 1e-3,
    max_iter: int = 50,
    step: Callable[[float], None] | None = None,
) -> Eigen:
    """Randomised block Krylov iteration for the largest algebraic eigenvalues (Eq. 12).

    Block Lanczos with one full reorthogonalisation; when the basis is full it restarts from its leading Ritz vectors
    (thick restart), which leaves the recurrence intact, so that the residual of each pair is known without another
    product.

    Parameters
    ----------
    apply
        V (n, p) -> G V.
    n
        Number of rows.
    k
        Number of pairs.
    start
        (n, b) start block, b >= k; its type is the type of the basis.
    tol
        Stop when every |G v - theta v| <= tol * theta_1.
    max_iter
        Most products with a block.
    step
        Called with the largest relative residual after each product.

    Raises
    ------
    SetupError
        If the start block has fewer than ``k`` columns or not ``n`` rows.
    ConvergenceError
        If ``max_iter`` products do not suffice; the message states the residuals.
    """
    if start.shape[0] != n or start.shape[1] < k:
        raise SetupError(f"Found a start block of shape {start.shape}, expected ({n}, at least {k}).")
    width = start.shape[1]
    most = min(n, width * max(4, min(_BASIS, 200 // width)))
    basis = np.empty((n, most), dtype=start.dtype, order="F")
    basis[:, :width] = _orthonormal(start)
    projected = np.zeros((most, most))
    size, last = width, width
    history: list[float] = []
    for _ in range(max_iter):
        new = slice(size - last, size)
        rest, inner = _orthogonalised(apply(np.ascontiguousarray(basis[:, new])), basis[:, :size])
        projected[:size, new] = inner
        projected[new, :size] = inner.T
        following, coupling = _next_block(rest, basis[:, :size])
        theta, y = np.linalg.eigh(_symmetric(projected[:size, :size]))
        theta, y = theta[::-1], y[:, ::-1]
        tails = coupling @ y[new]
        residuals = np.linalg.norm(tails[:, :k], axis=0)
        history.append(float(residuals.max() / max(abs(theta[0]), np.finfo(float).tiny)))
        if step is not None:
            step(history[-1])
        if history[-1] <= tol:
            vectors = basis[:, :size] @ y[:, :k].astype(basis.dtype)
            images = vectors * theta[:k] + following @ tails[:, :k]
            return Eigen(theta[:k], vectors, images.astype(basis.dtype), residuals, tuple(history))
        if size + following.shape[1] > most:
            size = min(size, most - width, k + width)
            basis[:, :size] = basis[:, : y.shape[0]] @ y[:, :size].astype(basis.dtype)
            projected[:] = 0
            projected[np.arange(size), np.arange(size)] = theta[:size]
        last = min(following.shape[1], most - size)
        basis[:, size : size + last] = following[:, :last]
        size += last
    found = ", ".join(f"{r:.1e}" for r in residuals / max(abs(theta[0]), np.finfo(float).tiny))
    raise ConvergenceError(
        f"The eigenpairs did not converge in max_iter={max_iter} steps: residuals {found} of the largest eigenvalue, "
        f"expected at most tol={tol:.0e}. Raise max_iter or tol, or ask for fewer components."
    )


def spectrum_mass(
    operator: Operator,
    eigen: Eigen,
    *,
    generator: np.random.Generator,
    n_probes: int = 10,
    n_steps: int = 10,
) -> Mass:
    """Sum the positive and sum the negative eigenvalues (Eq. 13).

    Exact where the whole spectrum is known; otherwise stochastic Lanczos quadrature of |theta| on the complement of the
    known eigenvectors, whose share is exact, as is the trace.

    Parameters
    ----------
    operator
        The Gram operator.
    eigen
        Its leading pairs.
    generator
        Draws the probes.
    n_probes, n_steps
        Random sign vectors, and Lanczos steps for each.
    """
    if eigen.spectrum is not None:
        values = eigen.spectrum
        return Mass(float(values[values > 0].sum()), float(-values[values < 0].sum()), exact=True)
    probes = generator.choice(np.array([-1.0, 1.0]), (operator.n, n_probes))
    probes -= eigen.vectors @ (eigen.vectors.T @ probes)
    absolute = _quadrature(operator.apply, probes.astype(operator.dtype), n_steps, eigen.vectors)
    absolute += float(np.abs(eigen.values).sum())
    # sum|theta| and sum theta give both parts
    negative = max(0.0, 0.5 * (absolute - operator.trace))
    return Mass(operator.trace + negative, negative, exact=False)


def frobenius_norm(operator: Operator, *, generator: np.random.Generator, n_probes: int = 10) -> float:
    """|G|_F, estimated from random sign vectors w (Eq. 10): E |G w|^2 = |G|_F^2.

    Parameters
    ----------
    operator
        G, (n, n).
    generator
        Draws the vectors.
    n_probes
        How many.
    """
    if operator.dense is not None:
        return float(np.linalg.norm(operator.dense))
    probes = generator.choice(np.array([-1.0, 1.0]), (operator.n, n_probes)).astype(operator.dtype)
    return float(np.sqrt(np.square(operator.apply(probes), dtype=np.float64).sum() / n_probes))


def _exact(operator: Operator, k: int) -> Eigen:
    if operator.dense is not None:
        gram = operator.dense
    else:
        gram = operator.apply(np.eye(operator.n, dtype=operator.dtype)).astype(np.float64)
    gram = _symmetric(gram)
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1], vectors[:, ::-1]
    images = gram @ vectors[:, :k]
    residuals = np.linalg.norm(images - vectors[:, :k] * values[:k], axis=0)
    return Eigen(values[:k].copy(), vectors[:, :k].copy(), images, residuals, (), values)


def _start_block(n: int, width: int, guess: npt.NDArray[Any] | None, generator: np.random.Generator) -> Array:
    block = generator.standard_normal((n, width))
    if guess is not None:
        known = np.asarray(guess)[:, :width]
        block[:, : known.shape[1]] = known
    return block


def _symmetric(x: Array) -> Array:
    return 0.5 * (x + x.T)


def _orthogonalised(w: npt.NDArray[Any], basis: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Array]:
    """``w`` without its part in ``basis``, and that part's coefficients; twice, since once loses orthogonality."""
    inner = basis.T @ w
    rest = w - basis @ inner
    again = basis.T @ rest
    rest -= basis @ again
    return rest, (inner + again).astype(np.float64)


def _next_block(rest: npt.NDArray[Any], basis: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Array]:
    """Orthonormal columns of ``rest`` and the coefficients of ``rest`` in them."""
    room = basis.shape[0] - basis.shape[1]
    q = _orthonormal(rest)
    # rounding, and whatever filled in for lost rank, need not be orthogonal to the basis
    q = _orthonormal(q - basis @ (basis.T @ q))
    coupling = (q.T @ rest).astype(np.float64)
    if room < q.shape[1]:
        return q[:, :room], coupling[:room]
    return q, coupling


def _orthonormal(w: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Orthonormal columns that span those of ``w``: two rounds of Cholesky, by Householder where that would be inexact.

    On tall blocks Cholesky takes a fraction of the time, since all its work on the long side is one product.
    """
    q = w
    for _ in range(2):
        size = np.linalg.norm(q, axis=0)
        if not np.all(size > 0):
            return np.linalg.qr(w)[0]
        q = q / size
        gram = (q.T @ q).astype(np.float64)
        try:
            lower = np.linalg.cholesky(gram)
        except np.linalg.LinAlgError:
            return np.linalg.qr(w)[0]
        if np.diag(lower).min() < _CONDITION:
            return np.linalg.qr(w)[0]
        q = q @ np.linalg.inv(lower).T.astype(q.dtype)
    return q


def _quadrature(apply: Apply, probes: npt.NDArray[Any], n_steps: int, known: npt.NDArray[Any]) -> float:
    """Mean over the probes w of w^T |G| w, each by its own Lanczos recurrence; one product serves all."""
    norms = np.linalg.norm(probes.astype(np.float64), axis=0)
    n_probes = probes.shape[1]
    w = probes / norms.astype(probes.dtype)
    before = np.zeros_like(w)
    alpha, beta = np.zeros((n_steps, n_probes)), np.zeros((n_steps, n_probes))
    for m in range(n_steps):
        image = apply(w)
        image -= known.astype(image.dtype) @ (known.T.astype(image.dtype) @ image)
        alpha[m] = np.einsum("ip,ip->p", w, image)
        # so few steps, with the outlying eigenvectors removed, stay orthogonal without looking further back
        image -= w * alpha[m].astype(image.dtype)
        if m:
            image -= before * beta[m - 1].astype(image.dtype)
        beta[m] = np.linalg.norm(image, axis=0)
        if np.any(beta[m] < 1e-6 * np.abs(alpha).max()):
            n_steps = m + 1
            break
        before, w = w, image / beta[m].astype(image.dtype)
    total = 0.0
    for p in range(n_probes):
        off = np.diag(beta[: n_steps - 1, p], 1)
        nodes, vectors = np.linalg.eigh(np.diag(alpha[:n_steps, p]) + off + off.T)
        total += float(norms[p] ** 2 * (vectors[0] ** 2 @ np.abs(nodes)))
    return float(total / n_probes)
