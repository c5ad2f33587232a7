"""The coordinates that the first candidates are near in: residuals of counts, or an embedding that is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from cellsmith.math import graph
from cellsmith.math.counts import GeneMoments, choose_genes, library_totals, pearson_components, pearson_residuals
from cellsmith.math.pca import principal_axes

__all__ = ["FirstSpace", "FirstTarget", "first_space", "mutual_partners", "place_counts"]

N_COMPONENTS = 20
N_GENES = 2_000
N_MUTUAL = 15
CHUNK = 2048
THETA = 100.0


@dataclass(frozen=True)
class FirstSpace:
    """First coordinates of the cells, and how counts get there.

    Parameters
    ----------
    scores
        (n, d') coordinates.
    axes
        ``genes`` (positions of p genes), ``shares`` (p,), ``mean`` (p,) and ``loadings`` (p, d') of the residuals, and
        ``clip`` (); empty for a given embedding, which counts cannot be placed in.
    """

    scores: np.ndarray
    axes: Mapping[str, np.ndarray]


def first_space(counts: sparse.csr_matrix, given: np.ndarray | None) -> FirstSpace:
    """Return the 20 leading components of the Pearson residuals of the 2,000 most variable genes, or what is given.

    Parameters
    ----------
    counts
        (n, G).
    given
        (n, d') embedding; None: components of the residuals (theta 100, clipped at sqrt(n)).
    """
    if given is not None:
        return FirstSpace(np.asarray(given, dtype=np.float64), {})
    genes = np.arange(counts.shape[1])
    if counts.shape[1] > N_GENES:
        genes = choose_genes(GeneMoments.of(_blocks(counts)), N_GENES)
    chosen = sparse.csr_matrix(counts[:, genes])
    scores = pearson_components(chosen, N_COMPONENTS)
    total = np.asarray(chosen.sum(axis=0), dtype=np.float64).ravel()
    axes = {"genes": genes, "shares": total / total.sum(), "clip": np.array(np.sqrt(counts.shape[0]))}
    # The scores S are R V for centred residuals R, so that V = R^T S (S^T S)^-1.
    sums, cross = np.zeros(len(genes)), np.zeros((len(genes), scores.shape[1]))
    for start in range(0, counts.shape[0], CHUNK):
        rows = slice(start, start + CHUNK)
        residuals = _residuals(chosen[rows], axes)
        sums += residuals.sum(axis=0, dtype=np.float64)
        cross += residuals.T @ scores[rows]
    size = np.maximum(np.square(scores, dtype=np.float64).sum(axis=0), 1e-12)
    return FirstSpace(scores, {**axes, "mean": sums / counts.shape[0], "loadings": cross / size})


def place_counts(counts: sparse.csr_matrix, axes: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the coordinates (m, d') of other cells (m, G) in the space of :func:`first_space`."""
    chosen = sparse.csr_matrix(counts[:, axes["genes"]])
    parts = [
        (_residuals(chosen[start : start + CHUNK], axes) - axes["mean"]) @ axes["loadings"]
        for start in range(0, counts.shape[0], CHUNK)
    ]
    return np.concatenate(parts).astype(np.float32)


def _residuals(chosen: sparse.csr_matrix, axes: Mapping[str, np.ndarray]) -> np.ndarray:
    return pearson_residuals(chosen, totals=library_totals(chosen), shares=axes["shares"], clip=float(axes["clip"]))


def _blocks(counts: sparse.csr_matrix) -> Any:
    return (counts[start : start + CHUNK] for start in range(0, counts.shape[0], CHUNK))


class FirstTarget:
    """What latents should be near to: first coordinates of counts, or of the cell where an embedding is given.

    Parameters
    ----------
    space
        Of the training cells.
    n_latent
        d; the leading d coordinates are targets.
    """

    def __init__(self, space: FirstSpace, *, n_latent: int) -> None:
        scores = np.asarray(space.scores, dtype=np.float64)
        centred = scores - scores.mean(axis=0)
        self._size = float(np.sqrt(np.square(centred[:, :n_latent]).mean())) or 1.0
        self._axes: dict[str, Tensor] | None = None
        if space.axes:
            self._axes = {
                name: torch.as_tensor(value) if name == "genes" else torch.as_tensor(value, dtype=torch.float32)
                for name, value in space.axes.items()
            }
            self._axes["loadings"] = self._axes["loadings"][:, :n_latent].contiguous()
        else:
            axes = principal_axes(centred, n_latent)
            self._table = torch.from_numpy((axes.project(centred) / self._size).astype(np.float32))

    def __call__(self, counts: Tensor, rows: Tensor) -> Tensor:
        """Return targets (b, d') of some cells from counts (b, G); from their rows where an embedding is given."""
        if self._axes is None:
            return self._table[rows.to(self._table.device)].to(rows.device)
        if self._axes["mean"].device != counts.device:
            self._axes = {name: value.to(counts.device) for name, value in self._axes.items()}
        axes = self._axes
        x = counts[:, axes["genes"]]
        mu = x.sum(dim=1, keepdim=True) * axes["shares"]
        residuals = (x - mu) / (mu + mu.square() / THETA).sqrt().clamp_min(1e-12)
        residuals = residuals.clamp(-axes["clip"], axes["clip"]) - axes["mean"]
        return residuals @ axes["loadings"] / self._size


def mutual_partners(scores: np.ndarray, batches: np.ndarray, *, seed: int) -> np.ndarray:
    """S12: mutual nearest neighbours in other sample batches, after each batch is centred.

    Parameters
    ----------
    scores
        (n, d') coordinates.
    batches
        (n,) batch of every cell.
    seed
        Seed of an approximate search.

    Returns
    -------
    (n, 15) nearest first, -1 where there are fewer.
    """
    centred = np.array(scores, dtype=np.float64)
    for batch in np.unique(batches):
        centred[batches == batch] -= centred[batches == batch].mean(axis=0)
    n, found = len(centred), []
    for one in np.unique(batches):
        for other in np.unique(batches[batches > one]):
            a, b = np.flatnonzero(batches == one), np.flatnonzero(batches == other)
            found.append(_mutual(centred, a, b, seed=seed))
    pairs = np.concatenate(found)
    i, j = np.r_[pairs[:, 0], pairs[:, 1]], np.r_[pairs[:, 1], pairs[:, 0]]
    order = np.lexsort((j, np.square(centred[i] - centred[j]).sum(axis=1), i))
    i, j = i[order], j[order]
    rank = np.arange(len(i)) - np.searchsorted(i, i)
    table = np.full((n, N_MUTUAL), -1, dtype=np.int64)
    table[i[rank < N_MUTUAL], rank[rank < N_MUTUAL]] = j[rank < N_MUTUAL]
    return table


def _mutual(points: np.ndarray, a: np.ndarray, b: np.ndarray, *, seed: int) -> np.ndarray:
    """Return the pairs (P, 2) of cells of a and b that are among the 15 nearest of one another."""
    sides = []
    for mine, others in ((a, b), (b, a)):
        k = min(N_MUTUAL, len(others))
        table = graph.cross_knn(points[mine], points[others], k, exact_below=50_000, seed=seed)[0]
        sides.append(graph.table_matrix(table, np.ones(table.shape, dtype=np.int8), len(others)))
    both = sides[0].multiply(sides[1].T).tocoo()
    return np.stack([a[both.row], b[both.col]], axis=1)
