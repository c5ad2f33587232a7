"""Counts as such: checking, totals, thinning, dispersion, library sizes, and drawing new ones."""

from __future__ import annotations

from cellsmith.math.counts.decoding import exact_total, nb_counts
from cellsmith.math.counts.dispersion import dispersion_moments, refit_dispersion, shrink_dispersion
from cellsmith.math.counts.library import LogLibrary, empirical_library, lognormal_library
from cellsmith.math.counts.residuals import pearson_components, pearson_residuals
from cellsmith.math.counts.thinning import binomial_split, binomial_thin, largest_remainder
from cellsmith.math.counts.validation import first_bad_count, library_totals
from cellsmith.math.counts.variable import GeneMoments, choose_genes
from cellsmith.math.counts.views import log_normalized, perturbed_view

__all__ = [
    "GeneMoments",
    "LogLibrary",
    "binomial_split",
    "binomial_thin",
    "choose_genes",
    "dispersion_moments",
    "empirical_library",
    "exact_total",
    "first_bad_count",
    "largest_remainder",
    "library_totals",
    "log_normalized",
    "lognormal_library",
    "nb_counts",
    "pearson_components",
    "pearson_residuals",
    "perturbed_view",
    "refit_dispersion",
    "shrink_dispersion",
]
