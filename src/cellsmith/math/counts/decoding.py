"""Counts from rates: with an exact total (E21), or as independent negative binomials."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellsmith._errors import SetupError

__all__ = ["exact_total", "nb_counts"]

_BLOCK = 1 << 19  # entries of one dense block of rows
_MAX_REDRAWS = 100


def exact_total(
    rho: npt.ArrayLike,
    theta: npt.ArrayLike,
    library: npt.ArrayLike,
    *,
    dropout_logits: npt.ArrayLike | None = None,
    generator: np.random.Generator,
) -> sp.csr_matrix:
    """Draw overdispersed counts whose sum in every cell is the asked total (E21).

    lambda_g ~ Gamma(theta_g, rate theta_g / rho'_g), p = lambda / sum(lambda), x ~ Multinomial(l, p), where rho' is
    rho without the first-order bias that the normalisation would add: divided by
    1 - rho_g / theta_g + sum_j rho_j^2 / theta_j (clipped to [0.5, 2]) and renormalised.

    Parameters
    ----------
    rho
        ``(n, G)`` expected share of each gene, >= 0; rows are normalised.
    theta
        Inverse dispersion > 0, ``(G,)`` or ``(n, G)``.
    library
        Total counts of each cell, ``(n,)`` or one number; rounded, at least 1.
    dropout_logits
        ``(n, G)`` logits of an extra zero. Dropped genes get no counts and the total goes to the others; in a cell
        where every gene would drop, the largest rate stays.
    generator
        Source of randomness. The same state gives the same counts.

    Returns
    -------
    ``(n, G)`` CSR int32. Row sums equal the rounded totals.

    Raises
    ------
    SetupError
        If shapes disagree or a value is not positive and finite.
    """
    rates, dispersion, totals, logits = _checked(rho, theta, library, dropout_logits)
    n, n_genes = rates.shape
    count = np.maximum(1, np.rint(totals)).astype(np.int64)
    parts = []
    for rows in _blocks(n, n_genes):
        share = rates[rows].astype(np.float32)
        spread = _rows_of(dispersion, rows)
        _remove_bias(share, spread)
        drawn = _gamma(share, spread, generator)
        if logits is not None:
            drawn *= generator.random(drawn.shape, dtype=np.float32) >= _sigmoid(logits[rows])
        _keep_one(drawn, share)
        parts.append(_multinomial(drawn, count[rows], generator))
    return _stacked(parts, n, n_genes)


def nb_counts(
    rho: npt.ArrayLike,
    theta: npt.ArrayLike,
    library: npt.ArrayLike,
    *,
    dropout_logits: npt.ArrayLike | None = None,
    generator: np.random.Generator,
) -> sp.csr_matrix:
    """Draw independent (zero-inflated) negative binomial counts with mean ``library * rho`` (E21, ``nb``).

    The total then varies around ``library``: depth is counted twice if ``library`` was itself a drawn or observed
    total. Kept for parity with other generators.

    Parameters
    ----------
    rho
        ``(n, G)`` expected share of each gene, >= 0; rows are normalised.
    theta
        Inverse dispersion > 0, ``(G,)`` or ``(n, G)``.
    library
        Expected total of each cell, ``(n,)`` or one number, > 0.
    dropout_logits
        ``(n, G)`` logits of an extra zero.
    generator
        Source of randomness. The same state gives the same counts.

    Returns
    -------
    ``(n, G)`` CSR int32. A cell without any count is redrawn, at most 100 times; then it stays empty.

    Raises
    ------
    SetupError
        If shapes disagree or a value is not positive and finite.
    """
    rates, dispersion, totals, logits = _checked(rho, theta, library, dropout_logits)
    n, n_genes = rates.shape
    parts = []
    for rows in _blocks(n, n_genes):
        share = rates[rows].astype(np.float32)
        share *= (totals[rows] / share.sum(axis=1)).astype(np.float32)[:, None]
        spread = _rows_of(dispersion, rows)
        keep = None if logits is None else 1.0 - _sigmoid(logits[rows])
        x = _nb_block(share, spread, keep, generator)
        for _ in range(_MAX_REDRAWS):
            empty = np.flatnonzero(~x.any(axis=1))
            if empty.size == 0:
                break
            x[empty] = _nb_block(
                share[empty], _rows_of(spread, empty), None if keep is None else keep[empty], generator
            )
        part = sp.csr_matrix(x)
        parts.append((part.indptr, part.indices, part.data))
    return _stacked(parts, n, n_genes)


def _nb_block(mean: Any, theta: Any, keep: Any, generator: np.random.Generator) -> npt.NDArray[np.int32]:
    # beyond 2^31 the counts would not fit their type
    rate = np.minimum(_gamma(mean, theta, generator).astype(np.float64), 2e9)
    x = generator.poisson(rate).astype(np.int32)
    if keep is not None:
        x *= generator.random(x.shape, dtype=np.float32) < keep
    return x


def _checked(rho: Any, theta: Any, library: Any, logits: Any) -> tuple[Any, Any, Any, Any]:
    rates = np.asarray(rho)
    if rates.ndim != 2:
        raise SetupError(f"Found rho of shape {rates.shape}, expected (cells, genes). Pass rho[None] for one cell.")
    dispersion = np.asarray(theta, dtype=np.float32)
    if dispersion.shape not in ((rates.shape[1],), rates.shape):
        raise SetupError(f"Found theta of shape {dispersion.shape}, expected ({rates.shape[1]},) or {rates.shape}.")
    totals = np.asarray(library, dtype=np.float64).reshape(-1)
    if totals.size == 1:
        totals = np.repeat(totals, rates.shape[0])
    if totals.size != rates.shape[0]:
        raise SetupError(
            f"Found {totals.size} library sizes, expected one number or one for each of {rates.shape[0]} cells."
        )
    for name, array in (("library", totals), ("theta", dispersion)):
        bad = array[~((array > 0) & np.isfinite(array))]
        if bad.size:
            raise SetupError(
                f"Found {bad.size} values of {name} that are not positive, e.g. {bad[0]}; expected numbers > 0."
            )
    if logits is not None:
        logits = np.asarray(logits)
        if logits.shape != rates.shape:
            raise SetupError(f"Found dropout_logits of shape {logits.shape}, expected {rates.shape}.")
    sums = rates.sum(axis=1, dtype=np.float64)
    if not np.all((sums > 0) & np.isfinite(sums)) or (rates.size and rates.min() < 0):
        row = int(np.argmin(np.where(np.isfinite(sums), sums, -1.0)))
        raise SetupError(
            f"Found rates that are negative, NaN or all zero (see row {row}); expected shares >= 0 in every cell."
        )
    return rates, dispersion, totals, logits


def _blocks(n: int, n_genes: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(1, n_genes))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def _rows_of(theta: Any, rows: Any) -> Any:
    return theta if theta.ndim == 1 else theta[rows]


def _sigmoid(logits: Any) -> Any:
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(logits, dtype=np.float64)))


def _remove_bias(share: npt.NDArray[np.float32], theta: Any) -> None:
    """Divide out the first-order bias of E[lambda_g / sum lambda], in place; rows sum to one afterwards."""
    share /= share.sum(axis=1, keepdims=True)
    factor = share / theta
    excess = np.einsum("ij,ij->i", share, factor)
    np.subtract((1.0 + excess)[:, None], factor, out=factor)
    share /= np.clip(factor, 0.5, 2.0, out=factor)
    share /= share.sum(axis=1, keepdims=True)


def _gamma(mean: Any, theta: Any, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Gamma draws with the given mean and shape theta; float32 is twice as fast as float64."""
    drawn = generator.standard_gamma(theta, size=mean.shape, dtype=np.float32)
    drawn *= np.divide(mean, theta, dtype=np.float32)
    return np.asarray(drawn)


def _keep_one(drawn: npt.NDArray[np.float32], share: Any) -> None:
    """Where nothing is left (all dropped, or all Gammas underflowed) keep the gene of the largest rate."""
    empty = np.flatnonzero(~drawn.any(axis=1))
    drawn[empty, np.argmax(share[empty], axis=1)] = 1.0


def _multinomial(weight: npt.NDArray[np.float32], count: Any, generator: np.random.Generator) -> tuple[Any, Any, Any]:
    """Draw one multinomial a row; returns (indptr, indices, data).

    Up to about two counts a gene, sorted uniforms looked up in the cumulative shares are cheapest; above, conditional
    binomials gene by gene are.
    """
    n, n_genes = weight.shape
    shares = weight.astype(np.float64)
    deep = count > 2 * n_genes
    edges = np.cumsum(shares, axis=1)
    edges /= edges[
        :, -1:
    ]  # the last edge becomes exactly 1, so a uniform below 1 never falls beyond the last live gene
    shallow = np.where(deep, 0, count)
    ends = np.concatenate([[0], np.cumsum(shallow)])
    uniforms = generator.random(int(ends[-1]))
    hits = np.empty(uniforms.size, dtype=np.int64)
    for i in np.flatnonzero(~deep):
        ordered = uniforms[ends[i] : ends[i + 1]]
        ordered.sort()
        hits[ends[i] : ends[i + 1]] = edges[i].searchsorted(ordered, side="right")
    if deep.any():
        shares[deep] /= shares[deep].sum(axis=1, keepdims=True)
        table = np.zeros((n, n_genes), dtype=np.int64)
        table[deep] = generator.multinomial(count[deep], shares[deep])
        np.add.at(table.reshape(-1), hits + np.repeat(np.arange(n), shallow) * n_genes, 1)
        part = sp.csr_matrix(table)
        return part.indptr, part.indices, part.data
    # hits are sorted within rows, hence runs of equal (row, gene) are the counts
    hits += np.repeat(np.arange(n) * n_genes, shallow)
    starts = np.concatenate([[0], np.flatnonzero(hits[1:] != hits[:-1]) + 1])
    place = hits[starts]
    data = np.diff(starts, append=hits.size)
    indptr = np.searchsorted(place, np.arange(n + 1) * n_genes)
    row = np.repeat(np.arange(n), np.diff(indptr))
    return indptr, place - row * n_genes, data


def _stacked(parts: list[tuple[Any, Any, Any]], n: int, n_genes: int) -> sp.csr_matrix:
    if not parts:
        return sp.csr_matrix((n, n_genes), dtype=np.int32)
    sizes = np.concatenate([np.diff(part[0]) for part in parts])
    indptr = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    indices = np.concatenate([part[1] for part in parts]).astype(np.int32)
    data = np.concatenate([part[2] for part in parts]).astype(np.int32)
    return sp.csr_matrix((data, indices, indptr), shape=(n, n_genes))
