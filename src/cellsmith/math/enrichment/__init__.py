"""Gene sets against lists of genes, groups of cells against groups: tests, and clusters merged by their markers."""

from __future__ import annotations

from cellsmith.math.enrichment.merging import MergePath, merge_by_markers, pair_marker_counts
from cellsmith.math.enrichment.sets import (
    EXACT_BELOW,
    OverRepresentation,
    RankSum,
    benjamini_hochberg,
    hypergeometric_tail,
    over_representation,
    parse_gmt,
    rank_sum,
    sets_within,
)

__all__ = [
    "EXACT_BELOW",
    "MergePath",
    "OverRepresentation",
    "RankSum",
    "benjamini_hochberg",
    "hypergeometric_tail",
    "merge_by_markers",
    "over_representation",
    "pair_marker_counts",
    "parse_gmt",
    "rank_sum",
    "sets_within",
]
