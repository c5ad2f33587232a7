"""Few profiles in place of many cells: which cells to pick, how to sum them, and how alike two sets teach a network."""

from __future__ import annotations

from cellsmith.math.matching.grouping import (
    allocate,
    class_groups,
    count_components,
    group_profiles,
    log_normalize,
    metacell_groups,
    metacell_log_means,
    metacell_sums,
    principal_components,
    round_profiles,
    target_sum,
)
from cellsmith.math.matching.losses import class_gradients, distribution_matching, gradient_distance, gradient_matching
from cellsmith.math.matching.readers import neighbour_loss, ridge_loss, settle_readers
from cellsmith.math.matching.selection import herding, k_center, kernel_herding

__all__ = [
    "allocate",
    "class_gradients",
    "class_groups",
    "count_components",
    "distribution_matching",
    "gradient_distance",
    "gradient_matching",
    "group_profiles",
    "herding",
    "k_center",
    "kernel_herding",
    "log_normalize",
    "metacell_groups",
    "metacell_log_means",
    "metacell_sums",
    "neighbour_loss",
    "principal_components",
    "ridge_loss",
    "round_profiles",
    "settle_readers",
    "target_sum",
]
