"""The training cells as the stages read them: counts of the modelled genes, and neighbours to be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from torch import Tensor

from cellsmith.data.splits import csr_tensor
from cellsmith.model.sce2tm import module as names

__all__ = ["ModelledCells", "Neighbors"]


@dataclass(frozen=True)
class Neighbors:
    """Whom the cells of a guided stage may be paired with.

    Parameters
    ----------
    expression
        (n, k) positions of the expression neighbours of every cell, -1 where there are fewer.
    external
        (n, k) the same in the external view; a row of -1: the cell has no view, or is not trained on.
    view
        (n, E) rows of the external view, float32.
    generator
        Draws one neighbour a cell and view, afresh in every batch.
    """

    expression: np.ndarray
    external: np.ndarray
    view: np.ndarray
    generator: np.random.Generator

    def draw(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which of the cells have a view, and one expression and one external neighbour of each of these."""
        rows = np.flatnonzero((self.external[indices, 0] >= 0) & (self.expression[indices, 0] >= 0))
        drawn = []
        for table in (self.expression, self.external):
            own = table[indices[rows]]
            place = (self.generator.random(len(rows)) * (own >= 0).sum(axis=1)).astype(np.int64)
            drawn.append(own[np.arange(len(rows)), place])
        return rows, drawn[0], drawn[1]


class ModelledCells:
    """All registered cells, cut to the modelled genes and kept as CSR: ``cells[indices] -> dict of tensors``.

    Parameters
    ----------
    counts
        (n, V) counts of the modelled genes.
    totals
        (n,) counts over all genes.
    codes
        (n, C) level of every registered column.
    """

    def __init__(self, counts: sparse.csr_matrix, totals: np.ndarray, codes: Tensor) -> None:
        self.counts, self.codes = counts, codes
        self.totals = torch.from_numpy(totals.astype(np.float32)).reshape(-1, 1)
        self.neighbors: Neighbors | None = None

    def __len__(self) -> int:
        return int(self.counts.shape[0])

    def __getitem__(self, indices: np.ndarray) -> Mapping[str, Tensor]:
        rows = torch.from_numpy(np.asarray(indices))
        batch = {
            REGISTRY_KEYS.X_KEY: csr_tensor(self.counts[indices]),
            names.TOTALS_KEY: self.totals[rows],
            names.CODES_KEY: self.codes[rows],
        }
        if self.neighbors is not None:
            batch.update(self._paired(indices))
        return batch

    def _paired(self, indices: np.ndarray) -> Mapping[str, Tensor]:
        """Return a drawn neighbour of every cell that has a view; nothing where fewer than two have one."""
        rows, expression, external = self.neighbors.draw(indices)
        if len(rows) < 2:
            return {}
        view = self.neighbors.view
        return {
            names.ROWS_KEY: torch.from_numpy(rows),
            names.NEIGHBOR_KEY: csr_tensor(self.counts[expression]),
            names.NEIGHBOR_TOTALS_KEY: self.totals[torch.from_numpy(expression)],
            names.VIEW_KEY: torch.from_numpy(view[indices[rows]]),
            names.VIEW_NEIGHBOR_KEY: torch.from_numpy(view[external]),
        }

    def log_normalized(self, rows: np.ndarray) -> sparse.csr_matrix:
        """T1: x (len(rows), V) of some cells, sparse."""
        x = self.counts[rows].astype(np.float32)
        scale = np.repeat(1e4 / self.totals.numpy().ravel()[rows], np.diff(x.indptr))
        x.data = np.log1p(x.data * scale).astype(np.float32)
        return x
