"""Batches in which every unit takes part by itself with probability q."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from scipy import sparse

from cellsmith.math.privacy import poisson_sample

__all__ = ["CellTable", "PoissonSplit"]


class CellTable:
    """Panel counts of all cells, cut by units: ``table[units] -> dict of tensors (B, m, ...)``.

    Parameters
    ----------
    counts
        (n, G) float32 CSR.
    batch
        (n,) codes of a public batch.
    units
        (n,) code of every cell's unit; None: a cell is a unit, and the dimension m is left out.
    n_units
        Number of units N.
    most
        Most cells m of a unit in a step; drawn anew each time.
    generator
        Draws them.
    """

    def __init__(
        self,
        counts: sparse.csr_matrix,
        batch: np.ndarray,
        *,
        units: np.ndarray | None = None,
        n_units: int | None = None,
        most: int = 128,
        generator: np.random.Generator | None = None,
    ) -> None:
        self.counts, self.batch, self.units = counts, batch, units
        self.n_units = counts.shape[0] if n_units is None else n_units
        self._generator = generator
        if units is not None:
            order = np.argsort(units, kind="stable")
            self._members = np.split(order, np.searchsorted(units[order], np.arange(1, self.n_units)))
            self._most = min(most, max(len(m) for m in self._members))

    def __len__(self) -> int:
        return self.counts.shape[0]

    def __getitem__(self, units: np.ndarray) -> dict[str, torch.Tensor]:
        if self.units is None:
            return self._cells(np.asarray(units))
        picked = np.zeros((len(units), self._most), dtype=np.intp)
        keep = np.zeros((len(units), self._most), dtype=np.float32)
        for row, unit in enumerate(units):
            own = self._members[unit]
            if len(own) > self._most:
                own = self._generator.choice(own, size=self._most, replace=False)
            picked[row, : len(own)], keep[row, : len(own)] = own, 1.0
        cells = self._cells(picked.ravel())
        shape = picked.shape
        return {k: v.reshape(*shape, *v.shape[1:]) for k, v in cells.items()} | {"keep": torch.from_numpy(keep)}

    def _cells(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        dense = self.counts[rows].toarray()
        return {"x": torch.from_numpy(dense), "batch": torch.from_numpy(self.batch[rows].astype(np.int64))}


class PoissonSplit(LightningDataModule):
    """A fixed number of Poisson batches, and no validation cells: looking at them would cost privacy.

    Parameters
    ----------
    table
        Cells by units.
    sample_rate
        q.
    steps
        T.
    generator
        Draws who takes part; secret in private use.
    """

    n_val = 0

    def __init__(self, table: CellTable, *, sample_rate: float, steps: int, generator: np.random.Generator) -> None:
        super().__init__()
        self._batches = _Draws(table, sample_rate, steps, generator)

    def train_dataloader(self) -> Any:
        """Return the batches; an empty one has tensors of length 0 and is a step like any other."""
        return self._batches


class _Draws:
    def __init__(self, table: CellTable, sample_rate: float, steps: int, generator: np.random.Generator) -> None:
        self._table, self._rate, self._steps, self._generator = table, sample_rate, steps, generator

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for _ in range(self._steps):
            yield self._table[poisson_sample(self._table.n_units, self._rate, self._generator)]
