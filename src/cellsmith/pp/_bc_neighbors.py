"""A neighbour graph of the BC-PCA embedding, in the form that scanpy reads."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from cellsmith import _keys, _record
from cellsmith._errors import DataWarning, SetupError, nearest
from cellsmith._rng import Streams, resolve_seed
from cellsmith.math import graph

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["bc_neighbors"]

METRICS = ("embedding", "corrected")
SMALLEST = np.finfo(np.float32).tiny
CANDIDATES = 4  # times the neighbours asked for: how many of the embedding are ranked again


def bc_neighbors(
    adata: AnnData,
    *,
    key: str = "bcpca",
    n_neighbors: int = 15,
    metric: str = "embedding",
    key_added: str = "bc_neighbors",
    copy: bool = False,
    rng: Any = 0,
    random_state: int | None = None,
) -> AnnData | None:
    """Build the graph of nearest cells in the BC-PCA embedding.

    Parameters
    ----------
    adata
        Object with the result of :func:`cellsmith.tl.bcpca`.
    key
        Its ``key_added``.
    n_neighbors
        Neighbours, the cell itself among them, as scanpy counts.
    metric
        "embedding": Euclidean distance in ``.obsm["X_" + key]``. "corrected": of four times as many candidates of the
        embedding, those at the smallest corrected distance (Eq. 8), which is computed from the observed entries.
    key_added
        Name of the graph; pass it to scanpy as ``neighbors_key``.
    copy
        Return a copy instead of writing into ``adata``.
    rng
        Seed of the approximate search, which is used above 5,000 cells.
    random_state
        Another name for ``rng``, as in older scanpy.

    Returns
    -------
    None, or the copy. Written: ``.obsp[<key_added>_connectivities]`` (the weights of UMAP, equal to scanpy's) and
    ``.obsp[<key_added>_distances]``, both CSR float32 (n, n), and ``.uns[<key_added>]``. Cells without an embedding
    have no neighbours. ``.uns[<key_added>]["floored_share"]`` is the share of corrected squared distances that noise
    made negative: where it is high, cells share too few features for single pairs to mean much.

    Raises
    ------
    SetupError
        If there is no such result, ``n_neighbors`` does not fit, or the corrected distances cannot be computed from
        what the object holds.

    Examples
    --------
    >>> cellsmith.pp.bc_neighbors(adata)  # doctest: +SKIP
    >>> sc.tl.umap(adata, neighbors_key="bc_neighbors")  # doctest: +SKIP
    """
    _keys.validate(key_added)
    if metric not in METRICS:
        raise SetupError(f"metric={metric!r}. {nearest(metric, METRICS)}")
    block = _record.read(adata, key)
    if block["provenance"]["method"] != "bcpca" or f"X_{key}" not in adata.obsm:
        raise SetupError(f".uns[{key!r}] is not a result of bcpca with its embedding. Type tl.bcpca(adata) first.")
    seed = resolve_seed(rng if random_state is None else random_state)
    x = np.asarray(adata.obsm[f"X_{key}"], dtype=np.float32)
    placed = np.flatnonzero(np.isfinite(x).all(axis=1))
    k = int(n_neighbors) - 1
    if not 1 <= k < len(placed):
        raise SetupError(
            f"n_neighbors={n_neighbors} counts the cell itself; expected 2 to {len(placed)}, the number of cells with "
            f"an embedding. Type n_neighbors={min(15, len(placed))}."
        )
    if len(placed) < len(x):
        warnings.warn(
            f"{len(x) - len(placed)} cells have no embedding and therefore no neighbours. "
            f"Some tools cannot draw them: leave them out with adata[np.isfinite(adata.obsm['X_{key}'][:, 0])].",
            DataWarning,
            stacklevel=2,
        )
    wanted = k if metric == "embedding" else min(CANDIDATES * k, len(placed) - 1)
    indices, distances = graph.knn_table(x[placed], wanted, seed=Streams(seed).integer("sample"))
    floored = 0.0
    if metric == "corrected":
        from cellsmith.pp._corrected import rank_by_corrected_distance

        indices, distances, floored = rank_by_corrected_distance(adata, block, placed, indices=indices, k=k)
    table, gaps = np.full((len(x), k), -1, dtype=np.int64), np.full((len(x), k), np.inf, dtype=np.float32)
    table[placed], gaps[placed] = placed[indices], distances
    # The words of scanpy: what its functions find here they hand on to umap.
    params = {"n_neighbors": int(n_neighbors), "method": "umap", "metric": "euclidean"}
    inputs = {"key": key, "metric": metric}
    record = _record.provenance(
        method="bc_neighbors", seed=seed, n_obs=adata.n_obs, var_names=adata.var_names, inputs=inputs
    )
    block = {
        "connectivities_key": f"{key_added}_connectivities",
        "distances_key": f"{key_added}_distances",
        "params": {**params, "use_rep": f"X_{key}", "random_state": seed},
        "ranked_by": metric,
        "floored_share": floored,
        "provenance": record,
    }
    result = _record.Result(method="bc_neighbors", obsp=_matrices(table, gaps), uns=block)
    target = adata.copy() if copy else adata
    _record.write(target, key_added, result)
    return target if copy else None


def _matrices(table: np.ndarray, gaps: np.ndarray) -> dict[str, Any]:
    """Return both matrices of a table of neighbours (n, k), in which -1 stands for none."""
    # A neighbour at distance zero would not be stored, and its cell would lack one.
    stored = np.where(table < 0, 0, np.maximum(gaps, SMALLEST)).astype(np.float32)
    return {
        "{k}_connectivities": graph.fuzzy_union(table, gaps),
        "{k}_distances": graph.table_matrix(table, stored, len(table)),
    }
