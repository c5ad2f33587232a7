"""Cell graphs as users have them: in ``.obsp``, named by scanpy's block in ``.uns``. Nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from cellsmith._errors import SetupError, nearest
from cellsmith.math.graph import check_graph, symmetrize

__all__ = ["given_graph", "read_graph"]

ROUNDING = 1e-6  # relative difference of both directions up to which a graph counts as symmetric


def given_graph(carrier: Any, key: str) -> tuple[Any, str]:
    """Return the graph that a user named, and its key in ``.obsp``.

    Parameters
    ----------
    carrier
        AnnData or MuData.
    key
        Key of ``.uns`` as scanpy writes it ("neighbors"), or of ``.obsp``.

    Raises
    ------
    SetupError
        If there is no such graph.
    """
    block = carrier.uns.get(key)
    named = block.get("connectivities_key") if isinstance(block, Mapping) else None
    for name in (named, key, f"{key}_connectivities"):
        if isinstance(name, str) and name in carrier.obsp:
            return carrier.obsp[name], name
    known = [k for k, v in carrier.uns.items() if isinstance(v, Mapping) and "connectivities_key" in v]
    raise SetupError(
        f"neighbors_key={key!r} names no graph. {nearest(key, [*known, *carrier.obsp])} Type sc.pp.neighbors(adata) "
        "first, or neighbors_key=None to build one from use_rep."
    )


def read_graph(found: Any, n: int, *, where: str) -> tuple[Any, list[str]]:
    """Return a graph as symmetric CSR (n, n) without self-loops, and notes on what was changed.

    Raises
    ------
    SetupError
        For another size, and for negative or non-finite weights.
    """
    if isinstance(found, np.ndarray) or sp.issparse(found):
        found = sp.csr_matrix(found)
    problem = check_graph(found, n)
    if problem is not None:
        raise SetupError(f"{where}: {problem}")
    notes = []
    loops = bool(found.diagonal().any())
    if loops:
        notes.append(f"{where} has self-loops; they were left out.")
    symmetric = _is_symmetric(found)
    if not symmetric:
        notes.append(f"{where} is directed; the mean of both directions is used.")
    clean = symmetric and not loops and found.has_sorted_indices and found.data.all() and found.dtype.kind == "f"
    return found if clean else symmetrize(found), notes


def _is_symmetric(graph: sp.csr_matrix) -> bool:
    """Tell whether the weights in both directions agree to rounding; one transpose, no difference of matrices."""
    if not graph.has_sorted_indices:
        graph = graph.sorted_indices()
    back = graph.T.tocsr()
    if not (np.array_equal(graph.indptr, back.indptr) and np.array_equal(graph.indices, back.indices)):
        return bool(abs(graph - back).max() <= ROUNDING * abs(graph).max())
    return bool(np.abs(graph.data - back.data).max(initial=0.0) <= ROUNDING * graph.data.max(initial=0.0))
