"""Products of a sparse matrix with a block of columns, and the order of rows that makes them fast."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import reverse_cuthill_mckee

__all__ = ["CsrApply", "TorchApply", "cuthill_mckee", "permute"]


class CsrApply:
    """X -> M X on numpy arrays, one shared pass over M for all columns, in the dtype of X.

    Parameters
    ----------
    matrix
        ``(n, n)`` CSR. A float32 twin, which shares its pattern, is made when first needed.
    """

    def __init__(self, matrix: sp.csr_matrix) -> None:
        self.matrix = matrix
        self._twins: dict[str, sp.csr_matrix] = {matrix.dtype.name: matrix}

    def __call__(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Multiply ``(n, c)`` columns, float32 or float64."""
        name = x.dtype.name
        if name not in self._twins:
            own = self.matrix
            self._twins[name] = sp.csr_matrix((own.data.astype(name), own.indices, own.indptr), shape=own.shape)
        return np.asarray(self._twins[name] @ np.ascontiguousarray(x))


class TorchApply:
    """X -> M X on torch tensors, on any device that knows CSR, in the dtype of X.

    On CUDA the product is cuSPARSE's, whose order of summation is not ours to fix: results repeat to rounding.

    Parameters
    ----------
    matrix
        ``(n, n)`` scipy CSR.
    device
        Where the products run.
    """

    def __init__(self, matrix: sp.csr_matrix, *, device: str | torch.device = "cpu") -> None:
        self.matrix, self.device = matrix, torch.device(device)
        self._twins: dict[torch.dtype, torch.Tensor] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply ``(n, c)`` columns, float32 or float64."""
        if x.dtype not in self._twins:
            with warnings.catch_warnings():  # torch calls its CSR a beta
                warnings.simplefilter("ignore", UserWarning)
                self._twins[x.dtype] = torch.sparse_csr_tensor(
                    torch.from_numpy(self.matrix.indptr).to(self.device),
                    torch.from_numpy(self.matrix.indices).to(self.device),
                    torch.from_numpy(self.matrix.data).to(self.device, x.dtype),
                    size=self.matrix.shape,
                    check_invariants=False,
                )
        return self._twins[x.dtype] @ x


def cuthill_mckee(graph: Any) -> npt.NDArray[np.int32]:
    """Order cells so that neighbours lie close in memory (reverse Cuthill-McKee).

    Parameters
    ----------
    graph
        ``(n, n)`` scipy sparse, symmetric.

    Returns
    -------
    ``(n,)`` int32: position -> cell.
    """
    return np.asarray(reverse_cuthill_mckee(sp.csr_matrix(graph), symmetric_mode=True), dtype=np.int32)


def permute(graph: Any, order: npt.NDArray[Any]) -> sp.csr_matrix:
    """Reorder rows and columns of a square sparse matrix.

    Parameters
    ----------
    graph
        ``(n, n)`` scipy sparse.
    order
        ``(n,)`` position -> row of ``graph``.

    Returns
    -------
    ``(n, n)`` CSR with sorted indices.
    """
    moved = sp.csr_matrix(sp.csr_matrix(graph)[order])
    position = np.empty(order.size, dtype=moved.indices.dtype)
    position[order] = np.arange(order.size)
    result = sp.csr_matrix((moved.data, position[moved.indices], moved.indptr), shape=moved.shape)
    result.sort_indices()
    return result
