"""Communities of a cell graph."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

__all__ = ["leiden"]


def leiden(graph: Any, *, resolution: float, n_iterations: int = 2, seed: int) -> npt.NDArray[np.int64]:
    """Find communities by Leiden on the weighted modularity; the same as scanpy with ``flavor="igraph"``.

    Parameters
    ----------
    graph
        ``(n, n)`` scipy sparse, symmetric weights >= 0.
    resolution
        Resolution of the modularity, > 0; higher gives more communities.
    n_iterations
        Iterations of the algorithm; -1 until nothing changes.
    seed
        Seed, 0 to 2**32 - 1 (scanpy's ``random_state``). igraph's generator is set for the call and restored.

    Returns
    -------
    ``(n,)`` community of each cell, 0 to K - 1, as igraph numbers them.
    """
    import igraph

    matrix = sp.csr_matrix(graph, copy=True)
    matrix.eliminate_zeros()
    # both directions of every edge, as scanpy has it: modularity does not mind, and the result is bit-equal
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    network = igraph.Graph(n=matrix.shape[0], edges=np.column_stack([rows, matrix.indices]), directed=False)
    with _seeded(igraph, seed):
        found = network.community_leiden(
            objective_function="modularity",
            weights=matrix.data.astype(np.float64),
            resolution=resolution,
            n_iterations=n_iterations,
        )
    return np.asarray(found.membership, dtype=np.int64)


class _Source:
    """What igraph asks of a generator, drawn from a seeded numpy one in scanpy's way."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.RandomState(seed)

    def getrandbits(self, k: int) -> int:
        return int(self._rng.tomaxint()) & ((1 << k) - 1)

    def randint(self, a: int, b: int) -> int:
        return int(self._rng.randint(a, b + 1))

    def random(self) -> float:
        return float(self._rng.random_sample())

    def gauss(self, mean: float, sd: float) -> float:
        return float(self._rng.normal(mean, sd))


@contextmanager
def _seeded(igraph: Any, seed: int) -> Iterator[None]:
    try:
        igraph.set_random_number_generator(_Source(seed))
        yield
    finally:
        igraph.set_random_number_generator(random)  # igraph's own default
