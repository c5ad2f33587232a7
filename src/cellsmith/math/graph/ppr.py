"""Personalised PageRank of every cell, sparse: residues are pushed until each is small, the largest entries kept."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellsmith._errors import SetupError
from cellsmith.math.graph.structure import degrees

__all__ = ["PageRank", "ppr_dense", "ppr_push", "ppr_rows", "ppr_topk"]

_BLOCK = 1024  # sources pushed together: bounds the memory of the residues


class PageRank(NamedTuple):
    """Answer of :func:`ppr_rows`.

    Attributes
    ----------
    operator
        ``(n, n)`` CSR, rows sum to 1.
    kept
        ``(n,)`` share of each row's mass, of 1, that was kept before it was scaled to sum to 1.
    """

    operator: sp.csr_matrix
    kept: npt.NDArray[np.float64]


def ppr_topk(operator: Any, *, teleport: float, k: int, tol: float) -> sp.csr_matrix:
    """Keep the k largest entries of each row of Pi = a (I - (1 - a) T)^-1 (scSiameseClu S4-S6).

    Parameters
    ----------
    operator
        ``(n, n)`` scipy sparse W, symmetric, weights >= 0, no empty row; T = D^-1 W with D its row sums. For a cell
        graph A that is A + I.
    teleport
        a, in (0, 1]: the probability of going back to the start; 1 gives I.
    k
        Entries kept in a row, the cell itself always among them.
    tol
        Residues below ``tol`` x row sum of W are not pushed on; see :func:`ppr_push`.

    Returns
    -------
    ``(n, n)`` CSR with sorted indices, rows sum to 1.
    """
    return ppr_rows(operator, teleport=teleport, k=k, tol=tol).operator


def ppr_rows(operator: Any, *, teleport: float, k: int, tol: float) -> PageRank:
    """Do as :func:`ppr_topk`, and say how much of each row was kept.

    Parameters
    ----------
    operator, teleport, k, tol
        As there.
    """
    weights = _checked(operator, teleport=teleport, tol=tol)
    if k < 1:
        raise SetupError(f"Found k={k!r}, expected at least 1: the cell itself is always kept.")
    parts, kept = [], []
    for start in range(0, weights.shape[0], _BLOCK):
        sources = np.arange(start, min(start + _BLOCK, weights.shape[0]))
        part = _largest(ppr_push(weights, sources, teleport=teleport, tol=tol), sources, k)
        mass = np.asarray(part.sum(axis=1)).ravel()
        parts.append(sp.diags(1.0 / mass) @ part)
        kept.append(mass)
    found = sp.csr_matrix(sp.vstack(parts, format="csr"))
    found.sort_indices()
    return PageRank(found, np.concatenate(kept))


def ppr_push(operator: Any, sources: npt.ArrayLike, *, teleport: float, tol: float) -> sp.csr_matrix:
    """Approximate rows of Pi from below by pushing residues (Andersen, Chung and Lang, 2006; scSiameseClu S5).

    r <- e_i, p <- 0; while some r(v) >= tol d_v, for all such v together: p += a r, r <- r_rest + (1 - a) r_active T.
    Then 0 <= Pi_i(u) - p_i(u) <= tol d_u for every u, since W is symmetric.

    Parameters
    ----------
    operator
        ``(n, n)`` W of :func:`ppr_topk`.
    sources
        ``(m,)`` cells i.
    teleport
        a, in (0, 1].
    tol
        Above 0.

    Returns
    -------
    ``(m, n)`` CSR p.
    """
    weights = _checked(operator, teleport=teleport, tol=tol)
    d = degrees(weights)
    onward = sp.csr_matrix(sp.diags((1 - teleport) / d) @ weights)
    cells = np.asarray(sources)
    residue = sp.csr_matrix((np.ones(cells.size), (np.arange(cells.size), cells)), shape=(cells.size, d.size))
    found = sp.csr_matrix(residue.shape)
    first = True  # the source itself is always pushed: a cell of large degree would get an empty row otherwise
    while residue.nnz:
        large = (residue.data >= tol * d[residue.indices]) | first
        first = False
        if not large.any():
            break
        active, rest = residue.copy(), residue.copy()
        active.data[~large], rest.data[large] = 0.0, 0.0
        active.eliminate_zeros()
        rest.eliminate_zeros()
        found = found + teleport * active
        residue = sp.csr_matrix(rest + active @ onward) if teleport < 1 else rest
    return sp.csr_matrix(found)


def ppr_dense(walk: Any, *, teleport: float) -> npt.NDArray[np.float64]:
    """Return Pi = a (I - (1 - a) T)^-1 itself, ``(n, n)`` dense: for few cells, and to compare with (scSiameseClu S4).

    Parameters
    ----------
    walk
        ``(n, n)`` T, or its symmetric form; sparse or dense.
    teleport
        a, in (0, 1].
    """
    step = walk.toarray() if sp.issparse(walk) else np.asarray(walk, dtype=np.float64)
    eye = np.eye(len(step))
    return np.asarray(teleport * np.linalg.solve(eye - (1 - teleport) * step, eye))


def _largest(rows: sp.csr_matrix, own: npt.NDArray[Any], k: int) -> sp.csr_matrix:
    """Keep the k largest entries of each row, its own cell first of all; ties by column."""
    row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    size = np.where(rows.indices == own[row], np.inf, rows.data)
    order = np.lexsort((rows.indices, -size, row))
    rank = np.arange(rows.nnz) - rows.indptr[row[order]]
    keep = order[rank < k]
    return sp.csr_matrix((rows.data[keep], (row[keep], rows.indices[keep])), shape=rows.shape)


def _checked(operator: Any, *, teleport: float, tol: float) -> sp.csr_matrix:
    if not (0 < teleport <= 1 and tol > 0):
        raise SetupError(f"Found teleport={teleport!r} and tol={tol!r}, expected 0 < teleport <= 1 and tol > 0.")
    weights = sp.csr_matrix(operator, dtype=np.float64)
    if weights.nnz and not (np.isfinite(weights.data).all() and weights.data.min() >= 0):
        raise SetupError("Found weights that are negative or not finite, expected finite weights >= 0.")
    empty = np.flatnonzero(degrees(weights) == 0)
    if empty.size:
        raise SetupError(
            f"Found {empty.size} cells without any weight, the first {empty[0]}; expected at least the cell itself. "
            "Pass self_loops(graph)."
        )
    return weights
