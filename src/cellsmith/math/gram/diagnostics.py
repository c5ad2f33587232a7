"""Does the mask look as the model assumes, and how much do cells share (Eq. 21)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cellsmith.math.gram.probability import Probability
from cellsmith.math.gram.statistics import Stats

__all__ = ["NOT_AT_RANDOM", "QUANTILES", "Diagnostics", "diagnose"]

Array: TypeAlias = npt.NDArray[np.float64]
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
NOT_AT_RANDOM = 0.3  # correlation of rate and mean above which entries seem missing because of their value (Eq. 4)


@dataclass(frozen=True)
class Diagnostics:
    """Numbers about the mask.

    Attributes
    ----------
    observed_rate
        Share of the entries that was observed.
    row_z, col_z
        Variance of the row (column) counts against a binomial of the same mean, in standard errors of the variance.
    row_share, col_share, model_share
        Share of the variance of the mask that the cells' rates alone, the features' rates alone and the fitted
        probabilities explain.
    rate_mean_correlation
        Spearman correlation over features of the observed share and the observed mean.
    overlap_quantiles
        Quantiles (0, 5, 25, 50, 75, 95, 100 %) over cells of the mean effective overlap, in features.
    below_min
        Cells whose mean effective overlap is below ``min_overlap``.
    """

    observed_rate: float
    row_z: float
    col_z: float
    row_share: float
    col_share: float
    model_share: float
    rate_mean_correlation: float
    overlap_quantiles: tuple[float, ...]
    below_min: int

    def as_dict(self) -> dict[str, float | int | tuple[float, ...]]:
        """Plain numbers by name."""
        return asdict(self)


def diagnose(stats: Stats, probability: Probability, *, min_overlap: float = 10.0) -> Diagnostics:
    """Return the diagnostics of a mask and its model (Eq. 21).

    Parameters
    ----------
    stats
        Margins and means of the data.
    probability
        Fitted probabilities of the same cells and features.
    min_overlap
        Mean effective overlap, in features, below which a cell is counted.
    """
    c = stats.observed_rate
    spread = max(c * (1 - c), 1e-12)
    overlap = probability.mean_overlap
    return Diagnostics(
        observed_rate=c,
        row_z=_excess(stats.row_counts, stats.n_features, c),
        col_z=_excess(stats.col_counts, stats.n_cells, c),
        row_share=float(np.var(stats.row_rates) / spread),
        col_share=float(np.var(stats.col_rates) / spread),
        model_share=float(max(0.0, _second_moment(probability) - c**2) / spread),
        rate_mean_correlation=_spearman(stats.col_rates, stats.means),
        overlap_quantiles=tuple(float(q) for q in np.quantile(overlap, QUANTILES)),
        below_min=int(np.sum(overlap < min_overlap)),
    )


def _excess(counts: Array, size: int, rate: float) -> float:
    """(observed variance / binomial variance - 1) over its standard error; 0 where the mask is complete."""
    expected = size * rate * (1 - rate)
    if expected <= 1e-9 or counts.size < 2:
        return 0.0
    return float((np.var(counts, ddof=1) / expected - 1.0) * np.sqrt((counts.size - 1) / 2.0))


def _second_moment(probability: Probability) -> float:
    """Mean of p_id^2 over all entries."""
    return float(probability.self_overlap.sum() / (probability.n_cells * probability.n_features))


def _spearman(x: Array, y: Array) -> float:
    from scipy.stats import spearmanr

    if np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12:
        return 0.0
    return float(spearmanr(x, y).statistic)
