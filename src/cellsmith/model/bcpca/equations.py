"""BC-PCA: a bias-corrected Gram matrix for data with heterogeneous missingness (Ling, Liu, Xue, arXiv 2109.11765).

The published text gives the idea: many reductions of dimension see the data through the Gram matrix alone, its
statistics change when entries are missing unevenly, and an unbiased one is proposed. The estimator E3, the
probabilities of ``rank1-legacy`` (E7), the rule "cng" (E14) and the consensus mask (E20) are those of the authors'
public code, written anew from their formulas. Everything else is this package's own; ``DEVIATIONS`` says so first.

Symbols: n cells, D features; Y (n, D) complete data; M (n, D) in [0, 1], 1 = observed; p_id = P(M_id = 1); r_i, c_d
observed shares of cells and features, c their mean; k components; N_ij expected number of shared features; theta
eigenvalues. Inner products are per feature: divided by shared features, not summed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cellsmith.math import gram, missing
from cellsmith.model._deviation import Deviation

__all__ = ["DEVIATIONS", "EQUATIONS", "Deviation", "corrected_gram", "naive_gram"]

Array = npt.NDArray[np.float64]


def naive_gram(z: Array) -> Array:
    """E2: S = Z Z^T (n, n) of centred observed data Z (n, D), zero where missing.

    Its expectation is sum_d p_id p_jd y_id y_jd off the diagonal and sum_d p_id y_id^2 on it: entries shrink unevenly.
    """
    return np.asarray(z @ z.T)


def corrected_gram(z: Array, p: Array) -> Array:
    """E3, E4: G_ij = S_ij / sum_d p_id p_jd, G_ii = S_ii / sum_d p_id, (n, n); unbiased for exchangeable features.

    Parameters
    ----------
    z
        Centred observed data (n, D), zero where missing.
    p
        Probabilities (n, D) that the entries are observed.
    """
    shared = p @ p.T
    np.fill_diagonal(shared, p.sum(axis=1))
    return naive_gram(z) / shared


EQUATIONS = {
    "E1": gram.observed_stats,
    "E2": naive_gram,
    "E3": gram.gram_operator,
    "E4": corrected_gram,
    "E5": "cellsmith.math.gram.Probability.overlap",
    "E6": gram.pairwise_operator,
    "E7": gram.fit_logistic,
    "E8": gram.corrected_distances,
    "E9": gram.Rank1Probability,
    "E10": gram.overlap_factors,
    "E11": gram.centred_blocks,
    "E12": gram.block_krylov,
    "E13": gram.embedding,
    "E14": gram.choose_rank,
    "E15": gram.nystrom,
    "E16": gram.loadings,
    "E17": gram.prime,
    "E18": gram.hetero,
    "E19": gram.projections,
    "E20": missing.consensus_zeros,
    "E21": gram.diagnose,
}


_MODEL = "tests/model/bcpca/test_fit.py"
_ENTRIES = "tests/model/bcpca/test_entries.py"
_CELLS = "tests/model/bcpca/test_new_cells.py"

DEVIATIONS = (
    Deviation(
        "the method as a whole",
        "abstract: an unbiased Gram matrix for heterogeneous missingness, used in PCA, t-SNE, UMAP and GPLVM",
        "BC-PCA after Ling, Liu and Xue: estimator, rank-one probabilities and rank rule as in their code, everything "
        "else our own; no claim to reproduce the paper's tables",
        "no theorem, table or data set of the paper is used",
        "tests/model/bcpca/test_equations.py::test_first_deviation_states_what_is_ours",
    ),
    Deviation(
        "probabilities",
        "r_i c_d / c, with c inflated for all entries when a product exceeds it",
        "sigmoid(a_i + b_d) from the margins (E7); the published form is prob='rank1-legacy'",
        "the inflation brings the bias back exactly where heterogeneity is strong",
        f"{_MODEL}::test_legacy_probabilities_lose_where_heterogeneity_is_strong",
    ),
    Deviation(
        "Gram matrix",
        "dense, n x n",
        "an operator that is never formed (E9, E10)",
        "100,000 cells would need 80 GB",
        f"{_MODEL}::test_twenty_thousand_cells_never_allocate_n_by_n",
    ),
    Deviation(
        "entries never observed",
        "division by zero, NaN everywhere",
        "a cell without data has a NaN row, a feature without data no loadings; the rest is unchanged",
        "one empty row must not cost the data set",
        f"{_MODEL}::test_empty_cells_and_features_leave_the_rest_unchanged",
    ),
    Deviation(
        "negative eigenvalues",
        "dropped; an integer k may include them and gives NaN",
        "dropped, their mass is reported, and asking for more components than positive ones is an error",
        "G is indefinite by construction",
        f"{_MODEL}::test_more_components_than_positive_eigenvalues",
    ),
    Deviation(
        "number of components",
        "the rule of Cattell, Nelson and Gorsuch",
        "n_latent=50; that rule and three others on request (E14)",
        "the habit of scanpy; neighbour graphs are robust to spare components",
        f"{_MODEL}::test_rank_rules_keep_the_first_components",
    ),
    Deviation(
        "new cells",
        "none",
        "placed by E15 from D x k numbers; features are aligned by name, absent ones are missing",
        "atlases are queried",
        f"{_CELLS}::test_a_training_cell_returns_to_its_place_less_its_self_term",
    ),
    Deviation(
        "baselines",
        "compared with zero-filling only in the demonstration",
        "mean imputation and pairwise-complete counts are computed beside every result, with held-out errors",
        "most of the gain over zero-filling is already that of mean imputation",
        f"{_MODEL}::test_baselines_are_scored_on_the_same_held_out_entries",
    ),
    Deviation(
        "consensus mask",
        "k-means options never reach the clusterer; about 80 bytes an entry",
        "options reach it; per-cluster sparse sums, at most three times the matrix (E20)",
        "a list was compared with a string, and everything was made dense",
        "tests/pp/test_missing_mask.py::test_consensus_costs_at_most_three_times_the_matrix",
    ),
    Deviation(
        "data in files",
        "in memory",
        "backed h5ad, zarr and dask stream by rows; the only shared state is D x kR",
        "a million cells do not fit",
        f"{_ENTRIES}::test_streams_agree_with_memory",
    ),
)
