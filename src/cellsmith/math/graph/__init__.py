"""Cell graphs: neighbour tables, kernel weights, structure, communities, graphs that are drawn from candidates."""

from __future__ import annotations

from cellsmith.math.graph.agreement import explained_variance, mutual_neighbors, neighbor_overlap, permuted_table
from cellsmith.math.graph.candidates import Pairs, candidate_table, pair_list
from cellsmith.math.graph.communities import leiden
from cellsmith.math.graph.export import ExportedGraph, export_graph
from cellsmith.math.graph.kernel import cross_weights, fuzzy_union, probabilistic_union, smooth_distances, table_matrix
from cellsmith.math.graph.neighbors import cross_knn, knn_table
from cellsmith.math.graph.ppr import PageRank, ppr_dense, ppr_push, ppr_rows, ppr_topk
from cellsmith.math.graph.resolution import Plateau, leiden_exact, leiden_stability, plateau, spectral_clusters
from cellsmith.math.graph.sampling import (
    edge_logits,
    edge_normalise,
    edge_union,
    gumbel_noise,
    gumbel_topk,
    pair_degrees,
    settled_in_degrees,
    straight_through,
)
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
from cellsmith.math.graph.walks import (
    drop_edges,
    lazy_walk,
    place_beside,
    random_walk,
    self_loops,
    symmetric_walk,
)

__all__ = [
    "ExportedGraph",
    "PageRank",
    "Pairs",
    "Plateau",
    "candidate_table",
    "check_graph",
    "components",
    "connect_components",
    "cross_knn",
    "cross_weights",
    "degrees",
    "drop_edges",
    "edge_logits",
    "edge_normalise",
    "edge_union",
    "explained_variance",
    "export_graph",
    "fingerprint",
    "fuzzy_union",
    "gumbel_noise",
    "gumbel_topk",
    "knn_table",
    "laplacian",
    "lazy_walk",
    "leiden",
    "leiden_exact",
    "leiden_stability",
    "mutual_neighbors",
    "n_components",
    "neighbor_overlap",
    "pair_degrees",
    "pair_list",
    "permuted_table",
    "place_beside",
    "plateau",
    "ppr_dense",
    "ppr_push",
    "ppr_rows",
    "ppr_topk",
    "probabilistic_union",
    "random_walk",
    "self_loops",
    "settled_in_degrees",
    "smooth_distances",
    "spectral_clusters",
    "straight_through",
    "symmetric_walk",
    "symmetrize",
    "table_matrix",
]
