"""Cell graphs: neighbour tables, kernel weights, structure, communities."""

from __future__ import annotations

from cellsmith.math.graph.agreement import explained_variance, mutual_neighbors, neighbor_overlap, permuted_table
from cellsmith.math.graph.communities import leiden
from cellsmith.math.graph.kernel import cross_weights, fuzzy_union, probabilistic_union, smooth_distances, table_matrix
from cellsmith.math.graph.neighbors import cross_knn, knn_table
from cellsmith.math.graph.structure import (
    check_graph,
    components,
    connect_components,
    degrees,
    fingerprint,
    laplacian,
    n_components,
    symmetrize,
)

__all__ = [
    "check_graph",
    "components",
    "connect_components",
    "cross_knn",
    "cross_weights",
    "degrees",
    "explained_variance",
    "fingerprint",
    "fuzzy_union",
    "knn_table",
    "laplacian",
    "leiden",
    "mutual_neighbors",
    "n_components",
    "neighbor_overlap",
    "permuted_table",
    "probabilistic_union",
    "smooth_distances",
    "symmetrize",
    "table_matrix",
]
