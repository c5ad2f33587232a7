"""Tables of nearest neighbours, Euclidean: exact by blocks, approximate above a size."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cellsmith._compat import kept_threads
from cellsmith._errors import SetupError

__all__ = ["cross_knn", "knn_table", "nearest_rows"]

_EPSILON = 0.3  # how far a query of the approximate search looks beyond its current best; the default 0.1 misses 7 %
_BLOCK = 1 << 24  # float32 distances held together: 64 MiB
_Floats = npt.NDArray[np.float64]
_Table = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]
_Found = tuple[npt.NDArray[np.int64], _Floats]  # indices and squared distances, both (m, k); missing: -1 and inf


def knn_table(
    x: npt.ArrayLike, k: int, *, groups: npt.ArrayLike | None = None, exact_below: int = 5_000, seed: int
) -> _Table:
    """Find the k nearest OTHER cells of every cell, by Euclidean distance; ties by index.

    Up to ``exact_below`` cells the table is exact: float32 matrix products name candidates, float64 differences rank
    them, and a row whose candidates could be incomplete within the rounding error is searched again. No n x n array
    is ever held. Above, PyNNDescent proposes, and the same float64 ranking orders.

    Parameters
    ----------
    x
        ``(n, d)`` coordinates, finite.
    k
        Number of neighbours, 1 to n - 1; the cell itself is never among them.
    groups
        ``(n,)`` labels, such as batches. The neighbours are then drawn per group: each cell gets its
        ``k // n_groups`` nearest other cells of *every* group (its own included; all of a group that has fewer), and
        the remaining places go to the nearest of the cells that are left. To have exactly q of every group, ask for
        ``k = q * n_groups``. None: groups play no role.
    exact_below
        Largest n for the exact search.
    seed
        Seed of the approximate search; the exact one draws nothing.

    Returns
    -------
    ``(indices, distances)``, int32 and float32, both ``(n, k)``, by ascending distance.

    Raises
    ------
    SetupError
        If k is out of range, coordinates are not finite, or there is not one group for each cell.
    """
    points = _points(x, "x")
    n = len(points)
    _check_k(k, n - 1, "other cells")
    labels = None if groups is None else _codes(groups, n)
    if labels is not None and labels.max() > 0:
        found = _by_group(points, k, labels=labels, exact=n <= exact_below, seed=seed)
    elif n <= exact_below:
        found = nearest_rows(points, points, k, skip=np.arange(n))
    else:
        found = _descent(points, points, k, skip=np.arange(n), seed=seed)
    return _table(found)


def cross_knn(query: npt.ArrayLike, reference: npt.ArrayLike, k: int, *, exact_below: int = 5_000, seed: int) -> _Table:
    """Find the k nearest reference rows of every query row, by Euclidean distance; ties by index.

    Parameters
    ----------
    query
        ``(m, d)`` coordinates, finite.
    reference
        ``(n, d)`` coordinates, finite.
    k
        Number of neighbours, 1 to n.
    exact_below
        Largest n for the exact search; above, PyNNDescent.
    seed
        Seed of the approximate search.

    Returns
    -------
    ``(indices, distances)``, int32 rows of ``reference`` and float32, both ``(m, k)``, by ascending distance.

    Raises
    ------
    SetupError
        If k is out of range, coordinates are not finite, or the two have different numbers of columns.
    """
    rows, points = _points(query, "query"), _points(reference, "reference")
    if rows.shape[1] != points.shape[1]:
        raise SetupError(f"Found {rows.shape[1]} columns in query, expected {points.shape[1]} as in reference.")
    _check_k(k, len(points), "reference rows")
    search = nearest_rows if len(points) <= exact_below else _descent
    extra = {} if search is nearest_rows else {"seed": seed}
    return _table(search(rows, points, k, skip=np.full(len(rows), -1), **extra))


def nearest_rows(query: _Floats, points: _Floats, k: int, *, skip: npt.NDArray[Any]) -> _Found:
    """Search exactly, in blocks of query rows.

    Parameters
    ----------
    query
        ``(m, d)`` coordinates.
    points
        ``(n, d)`` coordinates.
    k
        Number of neighbours, 1 to n.
    skip
        ``(m,)`` row of ``points`` that each query row must not find, or -1.

    Returns
    -------
    ``(indices, squares)``, both ``(m, k)``; squared distances in float64. Where ``skip`` leaves fewer than k: -1, inf.
    """
    n, n_dims = points.shape
    middle = points.mean(axis=0)
    scale = max(float(np.abs(points - middle).max(initial=0.0)), float(np.abs(query - middle).max(initial=0.0)), 1e-300)
    b = ((points - middle) / scale).astype(np.float32)
    b_square = np.einsum("ij,ij->i", b, b)
    n_candidates = min(n, k + 1 + max(8, k // 4))
    indices, squares = np.empty((len(query), k), np.int64), np.empty((len(query), k))
    step = max(1, _BLOCK // n)
    for start in range(0, len(query), step):
        rows = slice(start, min(start + step, len(query)))
        a = ((query[rows] - middle) / scale).astype(np.float32)
        a_square = np.einsum("ij,ij->i", a, a)
        rough = a @ b.T
        rough *= -2.0
        rough += a_square[:, None]
        rough += b_square
        own = np.flatnonzero(skip[rows] >= 0)
        rough[own, skip[rows][own]] = np.inf
        top = torch.from_numpy(rough).topk(n_candidates, dim=1, largest=False, sorted=False)
        limit, candidates = top.values.numpy().max(axis=1), top.indices.numpy()
        indices[rows], squares[rows] = rank_rows(query[rows], points, candidates, k=k, skip=skip[rows])
        if n_candidates == n:
            continue
        # a cell as near as the k-th has norm <= |a| + its distance; 2^-23 bounds the rounding of every operation
        last = np.sqrt(squares[rows][:, -1]) / scale
        slack = (n_dims + 8) * 2.0**-23 * (2 * np.sqrt(a_square) + last) ** 2 + 1e-37
        reach = last**2 + slack
        for i in np.flatnonzero(~(reach < limit)):  # also where fewer than k were found
            near = np.flatnonzero(rough[i] <= reach[i])[None, :]
            indices[start + i], squares[start + i] = (
                found[0] for found in rank_rows(query[start + i][None], points, near, k=k, skip=skip[start + i][None])
            )
    return indices, squares


def rank_rows(
    query: _Floats, points: _Floats, candidates: npt.NDArray[Any], *, k: int, skip: npt.NDArray[Any]
) -> _Found:
    """Keep the k best of each row of candidates, by float64 distance, then index.

    Parameters
    ----------
    query
        ``(m, d)`` coordinates.
    points
        ``(n, d)`` coordinates.
    candidates
        ``(m, p)`` rows of ``points``, without repeats except -1 = none.
    k
        Number to keep.
    skip
        ``(m,)`` row of ``points`` that does not count, or -1.

    Returns
    -------
    As :func:`nearest_rows`.
    """
    m, p = candidates.shape
    square = np.empty((m, p))
    step = max(1, (1 << 22) // max(1, p * points.shape[1]))
    for start in range(0, m, step):
        rows = slice(start, start + step)
        difference = points[candidates[rows]] - query[rows][:, None, :]
        square[rows] = np.einsum("ijk,ijk->ij", difference, difference)
    gone = (candidates == skip[:, None]) | (candidates < 0)
    square[gone] = np.inf
    best = np.lexsort((candidates, square), axis=-1)[:, :k]
    index = np.take_along_axis(np.where(gone, -1, candidates), best, axis=1)
    square = np.take_along_axis(square, best, axis=1)
    lacking = ((0, 0), (0, k - best.shape[1]))
    return np.pad(index, lacking, constant_values=-1), np.pad(square, lacking, constant_values=np.inf)


def _descent(query: _Floats, points: _Floats, k: int, *, skip: npt.NDArray[Any], seed: int) -> _Found:
    from pynndescent import NNDescent

    own = bool((skip >= 0).any())
    wanted = min(len(points), k + own)
    # centred, because float32 cannot resolve a cloud far from the origin
    middle = points.mean(axis=0)
    with kept_threads():
        index = NNDescent(
            (points - middle).astype(np.float32), n_neighbors=max(wanted, 15), metric="euclidean", random_state=seed
        )
        if query is points:
            candidates = np.asarray(index.neighbor_graph[0])
        else:
            candidates = np.asarray(index.query((query - middle).astype(np.float32), k=wanted, epsilon=_EPSILON)[0])
    found = rank_rows(query, points, candidates.astype(np.int64), k=k, skip=skip)
    short = np.flatnonzero(found[0][:, -1] < 0)  # rows that the search could not fill
    if short.size:
        found[0][short], found[1][short] = nearest_rows(query[short], points, k, skip=skip[short])
    return found


def _by_group(points: _Floats, k: int, *, labels: npt.NDArray[np.int64], exact: bool, seed: int) -> _Found:
    n = len(points)
    sizes = np.bincount(labels)
    quota = k // sizes.size
    # the most places that small groups and the remainder can leave to one group
    rest = k - int(np.minimum(quota, sizes - 1).sum())
    parts: list[_Found] = []
    chosen: list[npt.NDArray[np.bool_]] = []
    for group in range(sizes.size):
        members = np.flatnonzero(labels == group)
        skip = np.full(n, -1)
        skip[members] = np.arange(members.size)
        width = min(quota + rest, members.size)
        if exact:
            inside, square = nearest_rows(points, points[members], width, skip=skip)
        else:
            inside, square = _descent(points, points[members], width, skip=skip, seed=seed)
        parts.append((np.where(inside < 0, -1, members[inside]), square))
        chosen.append(np.broadcast_to(np.arange(width) < quota, inside.shape) & (inside >= 0))
    index, square = (np.concatenate(side, axis=1) for side in zip(*parts, strict=True))
    # first every group's quota, then the nearest of the rest; the kept ones again by distance
    kept = np.lexsort((index, square, ~np.concatenate(chosen, axis=1)), axis=-1)[:, :k]
    index, square = (np.take_along_axis(side, kept, axis=1) for side in (index, square))
    order = np.lexsort((index, square), axis=-1)
    return np.take_along_axis(index, order, axis=1), np.take_along_axis(square, order, axis=1)


def _table(found: _Found) -> _Table:
    return found[0].astype(np.int32), np.sqrt(found[1]).astype(np.float32)


def _points(x: npt.ArrayLike, name: str) -> _Floats:
    points = np.ascontiguousarray(x, dtype=np.float64)
    if points.ndim != 2 or 0 in points.shape:
        raise SetupError(f"Found {name} of shape {points.shape}, expected (cells, dimensions), neither of them 0.")
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if bad.size:
        raise SetupError(
            f"Found coordinates of {name} that are not finite in {bad.size} rows, first in row {bad[0]}; "
            "expected finite numbers. Remove these cells or fill the values first."
        )
    return points


def _check_k(k: int, most: int, what: str) -> None:
    if not 1 <= k <= most:
        raise SetupError(f"Found k={k}, expected 1 to {most}: there are {most} {what}.")


def _codes(groups: npt.ArrayLike, n: int) -> npt.NDArray[np.int64]:
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise SetupError(f"Found groups of shape {labels.shape}, expected ({n},): one label for each cell.")
    missing = np.flatnonzero(labels != labels)  # only NaN differs from itself
    if missing.size:
        raise SetupError(f"Found no group for {missing.size} cells, first cell {missing[0]}; expected a label each.")
    kind = labels.astype(str) if labels.dtype == object else labels
    return np.unique(kind, return_inverse=True)[1].reshape(-1).astype(np.int64)
