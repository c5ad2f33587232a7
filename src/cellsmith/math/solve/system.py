"""The linear system of the smoothing objective, (W + lambda L) P = W P0 (GRIT Eq. 1, 2, 6)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse import csgraph

from cellsmith._errors import SetupError, nearest
from cellsmith.math.graph.structure import check_graph, components, degrees
from cellsmith.math.solve.certificate import Supersolution
from cellsmith.math.solve.operators import CsrApply, permute

__all__ = ["System", "system"]

_Floats = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class System:
    """A symmetric M-matrix M = W + lambda L over n cells, with what is known about it.

    Cells lie in ``order``: everything here is in that order, and so are right-hand sides and solutions;
    :meth:`right_hand_side` goes in and :meth:`restore` comes back. Rows that need no solving (isolated, clamped or
    undetermined cells) are rows of the identity, coupled to nothing.

    Attributes
    ----------
    matrix
        ``(n, n)`` float64 CSR, M.
    diag
        ``(n,)`` its diagonal, > 0.
    weight
        ``(n,)`` diagonal of W as it multiplies the scores: w (``sym``, ``comb``), w d (``rw``), 1 in identity rows.
    degree
        ``(n,)`` degrees d of the graph.
    boundary
        ``(n, n_clamped)`` CSR, -lambda L_UB (>= 0), from clamped cells to free ones; None without clamped cells.
    isolated, clamped, undetermined
        ``(n,)`` bool: without a neighbour; held at given values; in a component without any scored or clamped cell.
    order
        ``(n,)`` position -> cell.
    laplacian, smoothness_weight
        As given.
    bounds
        Bounds of the eigenvalues of D^-1/2 M D^-1/2, D = diag(M), without computing any; the lower one is 0 if a
        free cell has weight 0.
    known
        v and g of Eq. 11 as they follow from the Laplacian; None where a free cell gets no g > 0 from it.
    """

    matrix: sp.csr_matrix
    diag: _Floats
    weight: _Floats
    degree: _Floats
    boundary: sp.csr_matrix | None
    isolated: _Mask
    clamped: _Mask
    undetermined: _Mask
    order: npt.NDArray[np.intp]
    laplacian: str
    smoothness_weight: float
    bounds: tuple[float, float]
    known: Supersolution | None

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.diag)

    @property
    def condition(self) -> float:
        """Bound of the condition number after Jacobi scaling; inf if a free cell has weight 0."""
        return self.bounds[1] / self.bounds[0] if self.bounds[0] > 0 else np.inf

    @cached_property
    def apply(self) -> CsrApply:
        """X -> M X on numpy arrays."""
        return CsrApply(self.matrix)

    def take(self, values: npt.ArrayLike) -> npt.NDArray[Any]:
        """Bring rows from the order of the cells into that of the system; ``(n, ...)``."""
        return np.asarray(values)[self.order]

    def restore(self, values: npt.ArrayLike, *, fill: Any = np.nan) -> npt.NDArray[Any]:
        """Bring rows from the order of the system into that of the cells.

        Parameters
        ----------
        values
            ``(n, ...)`` solution, bounds or flags.
        fill
            What undetermined cells get, as far as the dtype can hold it; None leaves them.

        Returns
        -------
        ``(n, ...)`` of the same dtype.
        """
        rows = np.asarray(values)
        result = np.empty_like(rows)
        result[self.order] = rows
        if fill is not None and rows.dtype.kind == "f":
            result[self.order[self.undetermined]] = fill
        return result

    def right_hand_side(self, scores: npt.ArrayLike, *, anchors: npt.ArrayLike | None = None) -> npt.NDArray[Any]:
        """Form B = W P0 (+ lambda A_UB Y), in the order of the system (GRIT Eq. 6).

        Parameters
        ----------
        scores
            ``(n, C)`` P0 in the order of the cells, float32 or float64; rows of weight 0 may hold anything.
        anchors
            ``(n, C)`` in the order of the cells, of which the rows of clamped cells are read; or ``(n,)`` integers,
            the class of each clamped cell. Needed if and only if cells are clamped.

        Returns
        -------
        ``(n, C)`` of the dtype of ``scores``.

        Raises
        ------
        SetupError
            If a score that counts is not finite, shapes disagree, or anchors are missing or have no class.
        """
        p0 = np.asarray(scores)
        if p0.ndim != 2 or len(p0) != self.n_cells:
            raise SetupError(f"Found scores of shape {p0.shape}, expected ({self.n_cells}, classes).")
        moved = p0[self.order] if p0.dtype in (np.float32, np.float64) else p0[self.order].astype(np.float64)
        held = self.clamped | self.undetermined
        silent = held | (self.weight == 0)
        moved[silent] = 0
        bad = np.argwhere(~np.isfinite(moved))
        if bad.size:
            i, c = (int(v) for v in bad[0])
            raise SetupError(
                f"Found the score {moved[i, c]} of cell {int(self.order[i])} for class {c}, expected finite numbers. "
                "Give a cell without scores the weight 0."
            )
        moved *= self.weight.astype(moved.dtype)[:, None]
        if self.boundary is None:
            return np.asarray(moved)
        values = _anchor_values(anchors, cells=self.order[self.clamped], shape=p0.shape).astype(moved.dtype)
        moved += self.boundary.astype(moved.dtype) @ values
        moved[self.clamped] = values
        return np.asarray(moved)


def _anchor_values(
    anchors: npt.ArrayLike | None, *, cells: npt.NDArray[np.intp], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    if anchors is None:
        raise SetupError(f"Found {cells.size} clamped cells but no anchors, expected their classes or values.")
    values = np.asarray(anchors)
    if values.ndim == 1 and len(values) == shape[0] and values.dtype.kind in "iu":
        classes = values[cells]
        wrong = np.flatnonzero((classes < 0) | (classes >= shape[1]))
        if wrong.size:
            raise SetupError(
                f"Found class {classes[wrong[0]]} for the clamped cell {cells[wrong[0]]}, expected 0 to {shape[1] - 1}."
            )
        return np.asarray(np.eye(shape[1])[classes])
    if values.shape != shape or not np.isfinite(values[cells]).all():
        raise SetupError(
            f"Found anchors of shape {values.shape}, expected {shape} with finite rows for clamped cells, or integers "
            f"of shape ({shape[0]},)."
        )
    return np.asarray(values[cells])


def system(
    graph: Any,
    *,
    laplacian: str = "sym",
    smoothness_weight: float,
    fidelity: npt.ArrayLike | None = None,
    clamped: npt.ArrayLike | None = None,
    order: npt.NDArray[Any] | None = None,
) -> System:
    """Set up (W + lambda L) P = W P0 on a graph (GRIT Eq. 1, 2, 6).

    ``sym``: L = I - D^-1/2 A D^-1/2, W = diag(w); ``comb``: L = D - A, W = diag(w); ``rw``: L = D - A,
    W = D diag(w). Self-loops are removed first. An isolated cell keeps its scores. A cell of weight 0 is filled from
    its neighbours; where no cell of a component has a weight or is clamped, the whole component is undetermined.

    Parameters
    ----------
    graph
        ``(n, n)`` scipy sparse, symmetric, weights >= 0.
    laplacian
        ``"sym"``, ``"rw"`` or ``"comb"``.
    smoothness_weight
        lambda, >= 0 and finite.
    fidelity
        ``(n,)`` weights w_i >= 0; None is 1. Give rows without scores the weight 0.
    clamped
        ``(n,)`` bool: cells held at given values (anchors).
    order
        ``(n,)`` position -> cell, such as :func:`cuthill_mckee`; None keeps the order of the cells.

    Returns
    -------
    :class:`System`.

    Raises
    ------
    SetupError
        If the graph is not a symmetric one of weights >= 0, or an argument is out of range.
    """
    if laplacian not in {"sym", "rw", "comb"}:
        raise SetupError(f"Found laplacian={laplacian!r}. {nearest(laplacian, ('sym', 'rw', 'comb'))}")
    weight = float(smoothness_weight)
    if not 0.0 <= weight < np.inf:
        raise SetupError(f"Found smoothness_weight={smoothness_weight!r}, expected a finite number >= 0, such as 5.")
    adjacency = _adjacency(graph, order)
    n = adjacency.shape[0]
    position = np.arange(n) if order is None else np.asarray(order, dtype=np.intp)
    w = _weights(fidelity, n)[position]
    held = _flags(clamped, n)[position]
    d = degrees(adjacency)
    isolated = (d == 0) & ~held
    undetermined = _undetermined(adjacency, (w > 0) | held, coupled=weight > 0)
    fixed = isolated | held | undetermined

    scale = 1.0 / np.sqrt(np.where(d > 0, d, 1.0)) if laplacian == "sym" else np.ones(n)
    pull = np.where(d > 0, 1.0, 0.0) if laplacian == "sym" else d  # L_ii
    own = np.where(fixed, 1.0, w * d if laplacian == "rw" else w)
    diag = np.where(fixed, 1.0, own + weight * pull)
    rows = np.repeat(np.arange(n, dtype=adjacency.indices.dtype), np.diff(adjacency.indptr))
    data = weight * scale[rows] * adjacency.data.astype(np.float64) * scale[adjacency.indices]
    coupling = sp.csr_matrix((data, adjacency.indices, adjacency.indptr), shape=(n, n))
    boundary = None
    if held.any():
        boundary = sp.csr_matrix(sp.diags((~fixed).astype(np.float64)) @ coupling[:, held])
    if (fixed & ~isolated).any() or weight == 0:
        data[fixed[rows] | fixed[adjacency.indices]] = 0
        # a copy, because dropping entries works in place and the pattern is the caller's
        coupling = sp.csr_matrix((data, adjacency.indices, adjacency.indptr), shape=(n, n), copy=True)
        coupling.eliminate_zeros()
    del rows
    matrix = sp.csr_matrix(sp.diags(diag, format="csr") - coupling)
    matrix.sort_indices()
    bounds = (float((own / diag).min(initial=1.0)), float(((own + 2 * weight * np.where(fixed, 0, pull)) / diag).max()))
    known = _known(matrix, diag=diag, own=own, natural=1.0 / scale, fixed=fixed, boundary=boundary, held=held)
    return System(
        matrix=matrix,
        diag=diag,
        weight=own,
        degree=d,
        boundary=boundary,
        isolated=isolated,
        clamped=held,
        undetermined=undetermined,
        order=position,
        laplacian=laplacian,
        smoothness_weight=weight,
        bounds=bounds,
        known=known,
    )


def _adjacency(graph: Any, order: npt.NDArray[Any] | None) -> sp.csr_matrix:
    n = graph.shape[0] if hasattr(graph, "shape") else 0
    problem = check_graph(graph, n)
    if problem is not None:
        raise SetupError(problem)
    if order is not None and not np.array_equal(np.sort(order), np.arange(n)):
        raise SetupError(f"Found an order of shape {np.shape(order)}, expected a permutation of 0 to {n - 1}.")
    matrix = sp.csr_matrix(graph) if order is None else permute(graph, np.asarray(order))
    if matrix.diagonal().any():
        matrix = sp.csr_matrix(matrix, copy=True)
        matrix.setdiag(0)
    if (matrix.data == 0).any():
        matrix = sp.csr_matrix(matrix, copy=True)
        matrix.eliminate_zeros()
    across, down = degrees(matrix), np.bincount(matrix.indices, weights=matrix.data, minlength=n)
    gap = np.abs(down - across)
    if gap.max(initial=0.0) > 1e-5 * max(float(across.max(initial=0.0)), 1e-300):
        raise SetupError(
            f"Found an asymmetric graph: the weights of cell {int(gap.argmax())} sum to {across[gap.argmax()]:g} along "
            f"its row and to {down[gap.argmax()]:g} along its column. Pass symmetrize(graph)."
        )
    return matrix


def _weights(fidelity: npt.ArrayLike | None, n: int) -> _Floats:
    if fidelity is None:
        return np.ones(n)
    w = np.asarray(fidelity, dtype=np.float64)
    if w.shape != (n,) or not (np.isfinite(w) & (w >= 0)).all():
        raise SetupError(
            f"Found fidelity of shape {w.shape} with {int((~(np.isfinite(w) & (w >= 0))).sum())} entries that are "
            f"negative or not finite, expected ({n},) weights >= 0."
        )
    return w


def _flags(clamped: npt.ArrayLike | None, n: int) -> _Mask:
    if clamped is None:
        return np.zeros(n, dtype=np.bool_)
    held = np.asarray(clamped)
    if held.shape != (n,) or held.dtype != np.bool_:
        raise SetupError(f"Found clamped of shape {held.shape} and type {held.dtype}, expected ({n},) booleans.")
    return held


def _undetermined(adjacency: sp.csr_matrix, informed: _Mask, *, coupled: bool) -> _Mask:
    """Find cells that nothing reaches: no information in their component, or none of their own without coupling."""
    if informed.all():
        return np.zeros(informed.size, dtype=np.bool_)
    if not coupled:
        return np.asarray(~informed)
    label = components(adjacency)
    return np.asarray(np.bincount(label, weights=informed)[label] == 0)


def _known(
    matrix: sp.csr_matrix,
    *,
    diag: _Floats,
    own: _Floats,
    natural: _Floats,
    fixed: _Mask,
    boundary: sp.csr_matrix | None,
    held: _Mask,
) -> Supersolution | None:
    """Take v = sqrt(d) (sym) or 1, for which L v = 0, so that M v is W v plus what couples to clamped cells."""
    v = np.where(fixed, 1.0, natural)
    g = own * v
    if boundary is not None:
        g = g + boundary @ natural[held]
    n_terms = int(np.diff(matrix.indptr).max(initial=0))
    # the entries of M are rounded, so L v = 0 holds to rounding only
    g -= np.where(fixed, 0.0, (n_terms + 3) * float(np.finfo(np.float64).eps) * 2 * diag * v)
    if not (g > 0).all():
        return None
    row_sum = 2 * diag - np.asarray(matrix.sum(axis=1)).reshape(-1)
    label = np.asarray(csgraph.connected_components(matrix, directed=False)[1])
    return Supersolution(v=v, g=g, component=label, row_sum=row_sum, diag=diag, n_terms=n_terms)
