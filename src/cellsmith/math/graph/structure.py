"""Structure of a weighted graph: checks, components, Laplacians, a name by content."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse import csgraph

from cellsmith._errors import SetupError, nearest
from cellsmith.math.graph.neighbors import nearest_rows

__all__ = [
    "check_graph",
    "components",
    "connect_components",
    "degrees",
    "fingerprint",
    "laplacian",
    "n_components",
    "symmetrize",
]

_Floats = npt.NDArray[np.float64]
_BRIDGE = 1e-3  # weight of a bridge in units of the median weight: keeps a walk possible and changes no community
_SMALL = 64  # components up to this many cells look for their bridge together


def check_graph(graph: Any, n: int) -> str | None:
    """Say what is wrong with a graph as a set of weights between n cells.

    Asymmetry is no fault here, see :func:`symmetrize`.

    Parameters
    ----------
    graph
        Anything; expected is an ``(n, n)`` scipy sparse matrix with finite weights >= 0.
    n
        Number of cells.

    Returns
    -------
    A sentence with found and expected, or None where nothing is wrong.
    """
    if not sp.issparse(graph):
        return f"Found a graph of type {type(graph).__name__}, expected a scipy sparse matrix of shape ({n}, {n})."
    if graph.shape != (n, n):
        return f"Found a graph of shape {graph.shape}, expected ({n}, {n}): one row and column for each cell."
    entries = graph.tocoo()
    for word, wrong in (
        ("not finite", ~np.isfinite(entries.data)),
        ("negative", entries.data < 0),
    ):
        bad = np.flatnonzero(wrong)
        if bad.size:
            i, j, value = entries.row[bad[0]], entries.col[bad[0]], entries.data[bad[0]]
            return (
                f"Found {bad.size} weights that are {word}, the first {value:g} between cells {i} and {j}; "
                "expected finite weights >= 0."
            )
    return None


def symmetrize(graph: Any) -> sp.csr_matrix:
    """Return the mean of a graph and its transpose, without self-loops.

    Parameters
    ----------
    graph
        ``(n, n)`` scipy sparse, weights >= 0; an integer or boolean one becomes float32.

    Returns
    -------
    ``(n, n)`` CSR with sorted indices, zero diagonal and no stored zero; a symmetric input keeps its values.
    """
    matrix = sp.csr_matrix(graph)
    if matrix.dtype.kind != "f":
        matrix = matrix.astype(np.float32)
    half = matrix * matrix.dtype.type(0.5)
    mean = sp.csr_matrix(half + half.T)
    mean.setdiag(0)
    mean.eliminate_zeros()
    mean.sort_indices()
    return mean


def degrees(graph: Any) -> _Floats:
    """Sum the weights of every cell, d_i = sum_j A_ij; ``(n,)`` float64."""
    # not graph.sum: that adds float32 weights in float32, and Laplacians would not annihilate constants
    return np.asarray(sp.csr_matrix(graph).astype(np.float64) @ np.ones(graph.shape[1]))


def laplacian(graph: Any, kind: str = "sym") -> sp.csr_matrix:
    """Form a graph Laplacian (GRIT Eq. 2).

    Parameters
    ----------
    graph
        ``(n, n)`` scipy sparse, symmetric, weights >= 0; self-loops do not count.
    kind
        ``"sym"``: I - D^-1/2 A D^-1/2; ``"rw"``: I - D^-1 A; ``"comb"``: D - A. Rows of isolated cells are zero.

    Returns
    -------
    ``(n, n)`` float64 CSR.

    Raises
    ------
    SetupError
        For another kind.
    """
    if kind not in {"sym", "rw", "comb"}:
        raise SetupError(f"Found laplacian={kind!r}. {nearest(kind, ('sym', 'rw', 'comb'))}")
    matrix = sp.csr_matrix(graph, dtype=np.float64, copy=True)
    matrix.setdiag(0)
    matrix.eliminate_zeros()
    d = degrees(matrix)
    if kind == "comb":
        return sp.csr_matrix(sp.diags(d) - matrix)
    linked = d > 0
    inverse = np.divide(1.0, d, out=np.zeros_like(d), where=linked)
    if kind == "rw":
        return sp.csr_matrix(sp.diags(linked.astype(np.float64)) - sp.diags(inverse) @ matrix)
    root = np.sqrt(inverse)
    return sp.csr_matrix(sp.diags(linked.astype(np.float64)) - sp.diags(root) @ matrix @ sp.diags(root))


def components(graph: Any) -> npt.NDArray[np.int32]:
    """Label the connected components; ``(n,)`` int32 from 0, an isolated cell is a component of its own."""
    return np.asarray(csgraph.connected_components(graph, directed=False)[1])


def n_components(graph: Any) -> int:
    """Count the connected components."""
    return int(csgraph.connected_components(graph, directed=False, return_labels=False))


def connect_components(graph: Any, x: npt.ArrayLike) -> sp.csr_matrix:
    """Join the components of a graph by the shortest bridges.

    The bridges are the minimum spanning tree of the components, where two components are as far apart as their
    nearest cells, found exactly and in blocks; ties by index. Each has weight 1e-3 x the median weight, so that walks
    can cross it and communities do not care. There are ``n_components(graph) - 1`` of them.

    Parameters
    ----------
    graph
        ``(n, n)`` scipy sparse, symmetric, weights >= 0.
    x
        ``(n, d)`` coordinates, finite.

    Returns
    -------
    ``(n, n)`` CSR, connected, symmetric, with sorted indices and the dtype of ``graph``; a connected graph is
    returned as it was.

    Raises
    ------
    SetupError
        If the coordinates are not one finite row for each cell.
    """
    matrix = sp.csr_matrix(graph, copy=True)
    points = np.ascontiguousarray(x, dtype=np.float64)
    if points.ndim != 2 or len(points) != matrix.shape[0] or not np.isfinite(points).all():
        raise SetupError(
            f"Found coordinates of shape {points.shape}, expected one row of finite numbers for each of "
            f"{matrix.shape[0]} cells."
        )
    labels = components(matrix)
    pairs: list[tuple[int, int]] = []
    while labels.max(initial=0) > 0:  # Boruvka: every round at least halves the number of components
        found = _nearest_outside(points, labels)
        pairs += found
        i, j = np.array(found).T
        merged = sp.coo_matrix((np.ones(i.size), (labels[i], labels[j])), shape=(labels.max() + 1, labels.max() + 1))
        labels = components(merged)[labels]
    if not pairs:
        return matrix
    weight = _BRIDGE * (float(np.median(matrix.data)) if matrix.nnz else 1.0)
    i, j = (np.array(side) for side in zip(*pairs, strict=True))
    bridges = sp.coo_matrix((np.full(2 * i.size, weight), (np.r_[i, j], np.r_[j, i])), shape=matrix.shape)
    joined = sp.csr_matrix(matrix + bridges.astype(matrix.dtype))
    joined.sort_indices()
    return joined


def _nearest_outside(points: _Floats, labels: npt.NDArray[np.int32]) -> list[tuple[int, int]]:
    """Find, for every component but the largest, its nearest pair with another one; each pair once, i < j."""
    sizes = np.bincount(labels)
    asking = np.arange(sizes.size) != sizes.argmax()
    small = np.flatnonzero((asking & (sizes <= _SMALL))[labels])
    parts = []
    if small.size:
        # among as many other cells as the component has, one at least lies outside
        k = int(sizes[labels[small]].max())
        index, square = nearest_rows(points[small], points, k, skip=small)
        first = (labels[index] != labels[small][:, None]).argmax(axis=1)[:, None]
        parts.append((small, *(np.take_along_axis(side, first, axis=1)[:, 0] for side in (index, square))))
    for component in np.flatnonzero(asking & (sizes > _SMALL)):
        inside, outside = np.flatnonzero(labels == component), np.flatnonzero(labels != component)
        index, square = nearest_rows(points[inside], points[outside], 1, skip=np.full(inside.size, -1))
        parts.append((inside, outside[index[:, 0]], square[:, 0]))
    here, there, square = (np.concatenate(side) for side in zip(*parts, strict=True))
    low, high = np.minimum(here, there), np.maximum(here, there)
    order = np.lexsort((high, low, square, labels[here]))  # one order of all pairs, so that no cycle can arise
    best = order[np.unique(labels[here][order], return_index=True)[1]]
    return sorted(set(zip(low[best].tolist(), high[best].tolist(), strict=True)))


def fingerprint(graph: Any) -> str:
    """Name a graph by its content: a hash of indptr, indices and weights to 6 significant digits.

    Parameters
    ----------
    graph
        ``(n, n)`` scipy sparse; the order of entries within a row and stored zeros play no role.

    Returns
    -------
    64 hexadecimal digits (SHA-256).
    """
    matrix = sp.csr_matrix(graph, copy=True)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    matrix.sort_indices()
    weight = matrix.data.astype(np.float64)
    exponent = np.floor(np.log10(np.abs(weight), where=weight != 0, out=np.zeros_like(weight)))
    digits = np.rint(weight / 10.0**exponent * 1e5)
    digest = hashlib.sha256(repr(matrix.shape).encode())
    for part in (matrix.indptr, matrix.indices, exponent, digits):
        digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
    return digest.hexdigest()
