"""Bias-corrected Gram operators for matrices with missing entries.

``n`` cells, ``D`` features, ``k`` components, ``R`` overlap factors. Data come in row blocks (``blocks``, ``centred``);
one pass gives their ``statistics``; a ``probability`` model of the mask (``logistic``, ``covariates``) gives the
expected ``overlap`` of cells, factored; the ``operator`` divides by it; ``krylov`` finds its eigenpairs; ``nystrom``
turns them into coordinates. ``refine``, ``rank_rules``, ``distances``, ``diagnostics`` and ``heldout`` work on these.
"""

from __future__ import annotations

from cellsmith.math.gram._rows import row_view
from cellsmith.math.gram.blocks import (
    Block,
    Blocks,
    CentredBlocks,
    centred_blocks,
    row_blocks,
    select_blocks,
)
from cellsmith.math.gram.centred import Centred
from cellsmith.math.gram.covariates import CovariateProbability, fit_covariates, mask_products
from cellsmith.math.gram.diagnostics import NOT_AT_RANDOM, QUANTILES, Diagnostics, diagnose
from cellsmith.math.gram.distances import corrected_distances, corrected_products
from cellsmith.math.gram.heldout import HeldOut, hold_out, permute_within_mask, prediction_error
from cellsmith.math.gram.krylov import Eigen, Mass, block_krylov, frobenius_norm, spectrum_mass, top_eigenpairs
from cellsmith.math.gram.legacy import dense_legacy
from cellsmith.math.gram.logistic import fit_logistic
from cellsmith.math.gram.margins import (
    STATE_AXES,
    custom_probability,
    fit_grouped,
    fit_rank1,
    probability_from_state,
)
from cellsmith.math.gram.nystrom import embedding, loadings, nystrom, orient, projections, thinned_fit
from cellsmith.math.gram.operator import (
    Operator,
    dense_operator,
    gram_blocks,
    gram_operator,
    mean_operator,
    pairwise_operator,
    thinned_operator,
)
from cellsmith.math.gram.overlap import Factors, mean_factors, overlap_factors
from cellsmith.math.gram.probability import (
    GroupedProbability,
    Probability,
    Rank1Probability,
    ScalarProbability,
    TableProbability,
)
from cellsmith.math.gram.rank_rules import RULES, choose_rank
from cellsmith.math.gram.refine import Projection, Refined, hetero, prime, prime_step
from cellsmith.math.gram.regression import regress
from cellsmith.math.gram.statistics import MAX_DENSE, Stats, cell_groups, observed_stats, shared_counts
from cellsmith.math.gram.stores import dense_block, missing_block, observed_block
from cellsmith.math.gram.subspace import sin_theta

__all__ = [
    "MAX_DENSE",
    "NOT_AT_RANDOM",
    "QUANTILES",
    "RULES",
    "STATE_AXES",
    "Block",
    "Blocks",
    "Centred",
    "CentredBlocks",
    "CovariateProbability",
    "Diagnostics",
    "Eigen",
    "Factors",
    "GroupedProbability",
    "HeldOut",
    "Mass",
    "Operator",
    "Probability",
    "Projection",
    "Rank1Probability",
    "Refined",
    "ScalarProbability",
    "Stats",
    "TableProbability",
    "block_krylov",
    "cell_groups",
    "centred_blocks",
    "choose_rank",
    "corrected_distances",
    "corrected_products",
    "custom_probability",
    "dense_block",
    "dense_legacy",
    "dense_operator",
    "diagnose",
    "embedding",
    "fit_covariates",
    "fit_grouped",
    "fit_logistic",
    "fit_rank1",
    "frobenius_norm",
    "gram_blocks",
    "gram_operator",
    "hetero",
    "hold_out",
    "loadings",
    "mask_products",
    "mean_factors",
    "mean_operator",
    "missing_block",
    "nystrom",
    "observed_block",
    "observed_stats",
    "orient",
    "overlap_factors",
    "pairwise_operator",
    "permute_within_mask",
    "prediction_error",
    "prime",
    "prime_step",
    "probability_from_state",
    "projections",
    "regress",
    "row_blocks",
    "row_view",
    "select_blocks",
    "shared_counts",
    "sin_theta",
    "spectrum_mass",
    "thinned_fit",
    "thinned_operator",
    "top_eigenpairs",
]
