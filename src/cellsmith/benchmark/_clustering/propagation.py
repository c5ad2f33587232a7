"""Which way to apply a sparse graph is the fastest: forward and backward through a filter of three hops."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pandas as pd
import torch

from cellsmith._errors import SetupError
from cellsmith._rng import Streams, resolve_seed
from cellsmith.nn.propagation import BACKENDS, EdgePattern, hop_filter, pair_pattern

__all__ = ["propagation"]

N_HIDDEN, N_LATENT, N_HOPS = 128, 15, 3


def propagation(
    sizes: Iterable[int] = (2_000, 8_000, 32_000),
    *,
    n_neighbors: int = 15,
    backends: Iterable[str] = BACKENDS,
    repeats: int = 5,
    rng: int = 0,
) -> pd.DataFrame:
    """Time the ways to apply a cell graph, and make sure that they agree.

    A filter of three hops takes rows of 128 to rows of 15, the sizes of SCAGC, over random edges.

    Parameters
    ----------
    sizes
        Numbers of cells.
    n_neighbors
        Edges a cell; each joins two cells, so that a cell has twice as many neighbours on average.
    backends
        Of :data:`cellsmith.nn.propagation.BACKENDS`; "pyg" needs torch-geometric.
    repeats
        The fastest of so many counts.
    rng
        Seed of graph and rows.

    Returns
    -------
    ``n_cells, backend, milliseconds, edge_gradient``: forward and backward pass together, and whether the weights of
    the edges get a gradient.

    Raises
    ------
    SetupError
        If two backends disagree by more than 1e-4 of the largest value.
    """
    streams, rows, named = Streams(resolve_seed(rng)), [], list(backends)
    for n in sizes:
        generator = streams.torch("sample", n)
        row = torch.arange(n).repeat_interleave(n_neighbors)
        col = (row + torch.randint(1, n, row.shape, generator=generator)) % n
        pattern = pair_pattern(row, col, n_cells=n)
        leaves = (
            torch.randn(n, N_HIDDEN, generator=generator).requires_grad_(),
            (torch.rand(len(row), generator=generator) / (2 * n_neighbors)).requires_grad_(),
            torch.randn(N_HOPS + 1, N_HIDDEN, N_LATENT, generator=generator).requires_grad_(),
        )
        values = {}
        for backend in named:
            milliseconds, values[backend], graded = _timed(leaves, pattern, backend, repeats)
            rows.append({"n_cells": n, "backend": backend, "milliseconds": milliseconds, "edge_gradient": graded})
        first = values[named[0]]
        for backend, found in values.items():
            gap = float((found - first).abs().max() / first.abs().max())
            if gap > 1e-4:
                raise SetupError(
                    f"{backend!r} and {named[0]!r} differ by {gap:.1e} at {n} cells, expected 1e-4 at most."
                )
    return pd.DataFrame(rows)


def _timed(
    leaves: tuple[torch.Tensor, torch.Tensor, torch.Tensor], pattern: EdgePattern, backend: str, repeats: int
) -> tuple[float, torch.Tensor, bool]:
    """Return the fastest milliseconds, the values, and whether the weights got a gradient."""
    h, weight, hop_weights = leaves
    fastest = float("inf")
    for _ in range(repeats):
        weight.grad = None
        start = time.perf_counter()
        z = hop_filter(h, weight, pattern, hop_weights=hop_weights, backend=backend)
        z.square().sum().backward()
        fastest = min(fastest, time.perf_counter() - start)
    return 1e3 * fastest, z.detach(), weight.grad is not None
