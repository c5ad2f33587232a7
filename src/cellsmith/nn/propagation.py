"""Filters over several hops of a sparse graph, with gradient to the weights of its edges (scAGC S8, S9).

z = sum over k = 0..K of A^k h W_k + b, by Horner's rule: T_K = h W_K, T_k = h W_k + A T_(k+1), z = T_0 + b. So the
graph is applied K times to rows of width d, never to the wide h. A rule that forgot to go on from its own result would
show at once: an impulse on a path of four cells gives [2, 3, 1, 1].
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cellsmith._errors import SetupError, nearest

__all__ = [
    "BACKENDS",
    "DEFAULT_BACKEND",
    "EdgePattern",
    "batch_hops",
    "batch_pattern",
    "edge_pattern",
    "hop_filter",
    "pair_pattern",
    "propagate",
]

BACKENDS = ("edge_list", "csr", "pyg")
"""Ways to apply a graph; equal values. "csr" has no gradient to the weights, "pyg" needs torch-geometric."""

DEFAULT_BACKEND = "edge_list"
"""The fastest with a gradient to the weights, by ``benchmark.propagation()``."""


class EdgePattern(NamedTuple):
    """Which edges there are, in the order of their rows and in that of their columns; weights come apart.

    Attributes
    ----------
    row, col
        ``(E,)`` ends of every edge, by row.
    order
        ``(E,)`` which of the given weights belongs to it.
    starts
        ``(n_rows + 1,)`` where each row begins.
    back
        ``(E,)`` positions of the edges by column.
    back_starts
        ``(n_columns + 1,)`` where each column begins.
    shape
        ``(n_rows, n_columns)``.
    """

    row: Tensor
    col: Tensor
    order: Tensor
    starts: Tensor
    back: Tensor
    back_starts: Tensor
    shape: tuple[int, int]


def edge_pattern(row: Tensor, col: Tensor, *, n_rows: int, n_columns: int) -> EdgePattern:
    """Sort directed edges once, for any number of products with them.

    Parameters
    ----------
    row, col
        ``(E,)`` int64, the row that receives and the column that gives, in any order.
    n_rows, n_columns
        Shape of the matrix.

    Returns
    -------
    The pattern. Weights are then given in the order of ``row`` and ``col``.
    """
    order = torch.argsort(row * n_columns + col, stable=True)
    row, col = row[order], col[order]
    back = torch.argsort(col, stable=True)
    starts, back_starts = _starts(row, n_rows), _starts(col[back], n_columns)
    return EdgePattern(row, col, order, starts, back, back_starts, (n_rows, n_columns))


def pair_pattern(row: Tensor, col: Tensor, *, n_cells: int) -> EdgePattern:
    """Write undirected pairs as edges in both directions, which share one weight.

    Parameters
    ----------
    row, col
        ``(E,)`` int64, each pair once, as of :func:`cellsmith.math.graph.pair_list`.
    n_cells
        n.

    Returns
    -------
    A pattern of 2 E edges (n, n); weights are given once a pair, ``(E,)``.
    """
    both = edge_pattern(torch.cat([row, col]), torch.cat([col, row]), n_rows=n_cells, n_columns=n_cells)
    return both._replace(order=both.order % max(1, len(row)))


def batch_pattern(row: Tensor, col: Tensor, *, batch: Tensor, n_cells: int) -> tuple[EdgePattern, Tensor]:
    """Renumber the cells that the edges of a batch reach: first the batch itself, then the others (scAGC S9).

    Parameters
    ----------
    row, col
        ``(E,)`` int64: position in the batch of the cell that receives, and the cell that gives, 0 to n - 1.
    batch
        ``(m,)`` int64, the cells of the batch.
    n_cells
        n.

    Returns
    -------
    ``(pattern, outside)``: columns 0 to m - 1 of the pattern are the batch, the others the cells ``outside``.
    """
    place = torch.full((n_cells,), -1, dtype=torch.int64, device=col.device)
    place[batch] = torch.arange(len(batch), device=col.device)
    outside = torch.unique(col[place[col] < 0])
    place[outside] = len(batch) + torch.arange(len(outside), device=col.device)
    return edge_pattern(row, place[col], n_rows=len(batch), n_columns=len(batch) + len(outside)), outside


def propagate(x: Tensor, weight: Tensor, pattern: EdgePattern, *, backend: str = DEFAULT_BACKEND) -> Tensor:
    """Apply a sparse matrix, y_i = sum_j A_ij x_j.

    Parameters
    ----------
    x
        ``(n_columns, d)``.
    weight
        ``(E,)`` values of A.
    pattern
        Where they stand.
    backend
        One of :data:`BACKENDS`.

    Returns
    -------
    ``(n_rows, d)``. The same on every run, on CUDA as well: sums run over sorted edges.

    Raises
    ------
    SetupError
        For another backend.
    """
    values = weight[pattern.order]
    if backend == "edge_list":
        return _EdgeProduct.apply(x, values, pattern)  # type: ignore[no-any-return, no-untyped-call]
    if backend == "csr":
        return _matrix(pattern.starts, pattern.col, values.detach(), pattern.shape) @ x
    if backend == "pyg":
        from torch_geometric.nn import SimpleConv

        nodes = torch.stack([pattern.col, pattern.row])
        found: Tensor = SimpleConv(aggr="sum")((x, x.new_zeros(pattern.shape[0], 0)), nodes, values)
        return found
    raise SetupError(f"Found backend={backend!r}. {nearest(backend, BACKENDS)}")


def hop_filter(
    h: Tensor,
    weight: Tensor,
    pattern: EdgePattern,
    *,
    hop_weights: Tensor,
    bias: Tensor | None = None,
    backend: str = DEFAULT_BACKEND,
) -> Tensor:
    """Sum the hops 0 to K of a graph, each with a matrix of its own, z = sum_k A^k h W_k + b (scAGC S8).

    Parameters
    ----------
    h
        ``(n, n_hidden)`` rows of the cells.
    weight
        ``(E,)`` values of A, normalised.
    pattern
        Their places, (n, n).
    hop_weights
        ``(K + 1, n_hidden, d)``, W.
    bias
        ``(d,)``.
    backend
        One of :data:`BACKENDS`.

    Returns
    -------
    ``(n, d)``.
    """
    if backend == "pyg":
        found = _tag_conv(h, weight[pattern.order], pattern, hop_weights=hop_weights)
    else:
        found = h @ hop_weights[-1]
        for hop in reversed(range(len(hop_weights) - 1)):
            found = h @ hop_weights[hop] + propagate(found, weight, pattern, backend=backend)
    return found if bias is None else found + bias


def batch_hops(
    h: Tensor,
    weight: Tensor,
    pattern: EdgePattern,
    *,
    hop_weights: Tensor,
    bias: Tensor | None = None,
    outside: Tensor,
    stored: Tensor,
    backend: str = DEFAULT_BACKEND,
) -> tuple[Tensor, Tensor]:
    """Apply the filter to a batch; cells outside it take part with stored rows (scAGC S9; Fey et al., 2021).

    Parameters
    ----------
    h
        ``(m, n_hidden)`` rows of the batch.
    weight
        ``(E,)`` values of A in the rows of the batch.
    pattern, outside
        Of :func:`batch_pattern`.
    hop_weights
        ``(K + 1, n_hidden, d)``.
    bias
        ``(d,)``.
    stored
        ``(K, n, d)``, T_1 to T_K as they were last computed, used without gradient.
    backend
        "edge_list" or "csr".

    Returns
    -------
    ``(z, fresh)``: ``(m, d)``, and ``(K, m, d)``, the rows of T_1 to T_K that should be stored.
    """
    n_hops = len(hop_weights) - 1
    below = h @ hop_weights[-1]
    fresh = [below]
    for hop in reversed(range(n_hops)):
        around = torch.cat([below, stored[hop, outside].detach()])  # stored[hop] is T_(hop + 1)
        below = h @ hop_weights[hop] + propagate(around, weight, pattern, backend=backend)
        fresh.append(below)
    z = fresh.pop() if n_hops else below
    kept = torch.stack(fresh[::-1]) if n_hops else h.new_zeros(0, len(h), z.shape[1])
    return (z if bias is None else z + bias), kept.detach()


class _EdgeProduct(torch.autograd.Function):
    """A @ x with a gradient to both; neither pass forms an array of n x n, or of edges x d kept for the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, pattern: EdgePattern) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.pattern = pattern
        return _row_sums(pattern.starts, pattern.col, values, x=x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (g,) = gradients
        x, values = ctx.saved_tensors
        pattern: EdgePattern = ctx.pattern
        to_x = to_values = None
        if ctx.needs_input_grad[0]:
            to_x = _row_sums(pattern.back_starts, pattern.row[pattern.back], values[pattern.back], x=g)
        if ctx.needs_input_grad[1]:
            to_values = (g.index_select(0, pattern.row) * x.index_select(0, pattern.col)).sum(dim=1)
        return to_x, to_values, None


def _row_sums(starts: Tensor, col: Tensor, values: Tensor, *, x: Tensor) -> Tensor:
    if x.device.type == "cpu":
        return _matrix(starts, col, values, (len(starts) - 1, len(x))) @ x
    # not the library's product: its sums may come in another order every time
    given = values[:, None] * x.index_select(0, col)
    return torch.segment_reduce(given, "sum", lengths=starts.diff(), axis=0, unsafe=True)


def _matrix(starts: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    _take_beta_warning()
    return torch.sparse_csr_tensor(starts, col, values, shape, check_invariants=False)


@cache
def _take_beta_warning() -> None:
    """Let torch say once, unheard, that its CSR tensors are in beta: users of a model can do nothing about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([]), (1, 1))


def _starts(ordered: Tensor, n: int) -> Tensor:
    counts = torch.bincount(ordered, minlength=n)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _tag_conv(h: Tensor, values: Tensor, pattern: EdgePattern, *, hop_weights: Tensor) -> Tensor:
    """Ask torch-geometric, whose layer works through the wide rows."""
    from torch_geometric.nn import TAGConv

    n_hops, n_in, n_out = len(hop_weights) - 1, *hop_weights.shape[1:]
    layer = TAGConv(n_in, n_out, K=n_hops, bias=False, normalize=False).to(h)
    named = {f"lins.{hop}.weight": hop_weights[hop].T for hop in range(n_hops + 1)}
    found: Tensor = torch.func.functional_call(layer, named, (h, torch.stack([pattern.col, pattern.row]), values))
    return found
