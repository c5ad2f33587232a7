"""Matrices with missing entries, in the forms in which users have them.

* `sources`: reading by rows (arrays, CSR, masked arrays, backed h5ad, zarr, dask)
* `masks`: what ``mask`` means, and the blocks that `cellsmith.math.gram` streams
* `judging`: how well an embedding predicts entries that were held out
* `zeros`: which zeros of single-cell data are missing values (Eq. 20), and how such a pattern is stored
"""

from __future__ import annotations

from cellsmith.math.missing.judging import embedding_error
from cellsmith.math.missing.masks import WORDS, Mask, Pattern, checked_weights, find_mask, find_values, read_blocks
from cellsmith.math.missing.sources import Rows, aligned_rows, chunk_bounds, dense, rows_of, whole
from cellsmith.math.missing.zeros import (
    consensus_zeros,
    excess_zero_weights,
    fit_michaelis_menten,
    holds_counts,
    michaelis_menten_weights,
    sparser_pattern,
    zero_moments,
)

__all__ = [
    "WORDS",
    "Mask",
    "Pattern",
    "Rows",
    "aligned_rows",
    "checked_weights",
    "chunk_bounds",
    "consensus_zeros",
    "dense",
    "embedding_error",
    "excess_zero_weights",
    "find_mask",
    "find_values",
    "fit_michaelis_menten",
    "holds_counts",
    "michaelis_menten_weights",
    "read_blocks",
    "rows_of",
    "sparser_pattern",
    "whole",
    "zero_moments",
]
