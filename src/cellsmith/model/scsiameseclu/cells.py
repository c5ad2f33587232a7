"""The cells as the stages read them: counts, two views of them, and their rows of two operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from scvi import REGISTRY_KEYS
from torch import Tensor

from cellsmith.data.splits import csr_tensor
from cellsmith.math import graph
from cellsmith.math.counts import log_normalized, perturbed_view

__all__ = ["BATCH_KEY", "INPUT_KEY", "LIBRARY_KEY", "NEAR_KEY", "ROWS_KEY", "Augmentation", "SiameseCells"]

ROWS_KEY, LIBRARY_KEY, INPUT_KEY, NEAR_KEY = "rows", "library", "input", "near"
BATCH_KEY = REGISTRY_KEYS.BATCH_KEY


class Augmentation(NamedTuple):
    """How views differ from the cell: see the parameters of the same names of the model."""

    thinning_fraction: float
    noise_scale: float
    mask_rate: float
    edge_drop_rate: float


class SiameseCells:
    """All registered cells, cut to the modelled genes: ``cells[indices] -> dict of tensors``.

    Parameters
    ----------
    counts
        (n, p) counts of the modelled genes, CSR.
    totals
        (n,) counts over all genes.
    library
        (n,) size factors on the scale of totals.
    codes
        (n,) batch of every cell.
    """

    def __init__(self, counts: sp.csr_matrix, totals: np.ndarray, *, library: np.ndarray, codes: np.ndarray) -> None:
        self.counts, self.totals, self.codes = counts, totals, codes
        self.library = torch.from_numpy(library.astype(np.float32))
        self.rest = totals - np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
        self.graph: Any = None
        self.operators: tuple[sp.csr_matrix, sp.csr_matrix] | None = None
        self.augmentation: Augmentation | None = None
        self.generator: np.random.Generator | None = None

    def __len__(self) -> int:
        return int(self.counts.shape[0])

    def clean(self, rows: np.ndarray) -> sp.csr_matrix:
        """Return x (len(rows), p), log-normalised, of some cells."""
        return log_normalized(self.counts[rows], self.totals[rows])

    def drop_edges(self, z: np.ndarray | None) -> None:
        """S8: leave edges out of both operators, afresh: the least similar ones by z (n, d), and random ones."""
        rate = self.augmentation.edge_drop_rate
        lazy, pagerank = self.graph.lazy, self.graph.pagerank
        cells, random = np.arange(len(self)), self.generator.random(pagerank.nnz)
        alike = self.generator.random(lazy.nnz) if z is None else _cosines(lazy, z)
        self.operators = (
            graph.drop_edges(lazy, alike, rate=rate, cells=cells),
            graph.drop_edges(pagerank, random, rate=rate, cells=cells),
        )

    def __getitem__(self, indices: np.ndarray) -> Mapping[str, Tensor]:
        counts, rows = self.counts[indices], np.asarray(indices)
        batch = {
            REGISTRY_KEYS.X_KEY: csr_tensor(counts),
            ROWS_KEY: torch.from_numpy(rows),
            LIBRARY_KEY: self.library[torch.from_numpy(rows)],
            BATCH_KEY: torch.from_numpy(self.codes[rows]),
        }
        near = self.graph.pagerank[rows][:, rows].toarray() > 0
        batch[NEAR_KEY] = torch.from_numpy(near | near.T)
        a = self.augmentation
        for view, operator in enumerate(self.operators):
            x = perturbed_view(
                counts,
                self.rest[rows],
                thinning_fraction=a.thinning_fraction,
                noise_scale=a.noise_scale,
                mask_rate=a.mask_rate,
                generator=self.generator,
            )
            own = operator[rows]
            batch[f"{INPUT_KEY}{view}"] = csr_tensor(x)
            batch[f"operator{view}"] = csr_tensor(own)
            batch[f"inside{view}"] = torch.from_numpy(own[:, rows].toarray())
        return batch


def _cosines(operator: sp.csr_matrix, z: np.ndarray) -> np.ndarray:
    """Return the cosine of the two cells of every stored entry."""
    unit = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    rows = np.repeat(np.arange(operator.shape[0]), np.diff(operator.indptr))
    out = np.empty(operator.nnz, dtype=np.float32)
    step = 1 << 18
    for start in range(0, operator.nnz, step):
        part = slice(start, start + step)
        out[part] = np.einsum("ij,ij->i", unit[rows[part]], unit[operator.indices[part]])
    return out
