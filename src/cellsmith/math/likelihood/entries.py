"""Where the nonzero counts of a batch are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cellsmith._errors import SetupError

__all__ = ["CountEntries", "count_entries", "places"]


class CountEntries(NamedTuple):
    """The nonzero counts of a batch, indexed once so that several terms can use them.

    Attributes
    ----------
    shape
        ``(n, G)``.
    row, column
        ``(nnz,)`` int64, cell and gene of each entry, in row-major order.
    flat
        ``(nnz,)`` int64, position of each entry in the flattened ``(n, G)`` array.
    value
        ``(nnz,)`` float, the counts.
    """

    shape: tuple[int, int]
    row: Tensor
    column: Tensor
    flat: Tensor
    value: Tensor


def count_entries(x: Tensor | CountEntries) -> CountEntries:
    """Find the nonzero counts of a batch.

    Parameters
    ----------
    x
        ``(n, G)`` counts, a dense or ``torch.sparse_csr`` tensor. Entries that were already found are returned.

    Returns
    -------
    The entries, on the device of ``x``.

    Raises
    ------
    SetupError
        If ``x`` has not two dimensions.
    """
    if isinstance(x, CountEntries):
        return x
    if x.ndim != 2:
        raise SetupError(f"Found counts of shape {tuple(x.shape)}, expected (cells, genes). Pass x[None] for one cell.")
    n, n_genes = int(x.shape[0]), int(x.shape[1])
    if x.layout == torch.sparse_csr:
        value = x.values()
        column = x.col_indices().to(torch.int64)
        row = torch.repeat_interleave(x.crow_indices().to(torch.int64).diff(), output_size=value.numel())
        return CountEntries((n, n_genes), row, column, row * n_genes + column, value)
    x = x.detach().contiguous()
    if x.device.type == "cpu":
        # numpy finds nonzeros several times faster than torch, and rows by bisection are cheaper than by division
        flat_np = np.flatnonzero(x.numpy() != 0)
        ends = np.searchsorted(flat_np, np.arange(n + 1) * n_genes)
        row_np = np.repeat(np.arange(n), np.diff(ends))
        flat, row = torch.from_numpy(flat_np), torch.from_numpy(row_np)
        column = torch.from_numpy(flat_np - row_np * n_genes)
    else:
        row, column = torch.nonzero(x, as_tuple=True)
        flat = row * n_genes + column
    return CountEntries((n, n_genes), row, column, flat, x.view(-1).index_select(0, flat))


def places(mask: Tensor) -> Tensor:
    """Positions of the true elements of a flat mask, int64, on its device."""
    if mask.device.type == "cpu":  # several times faster than torch.nonzero
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return torch.nonzero(mask).squeeze(1)
