"""What each number should be, and from where on it is no longer good enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cellsmith._errors import SetupError, nearest

__all__ = ["METRICS", "PRIVACY_METRICS", "SYMMETRIC", "Band", "Metric", "bounds_of", "check_bands", "describe", "judge"]


@dataclass(frozen=True)
class Band:
    """Accepted range of a metric.

    Parameters
    ----------
    low, high
        Ends of the range; None leaves that side open. Numbers of the metric,
        unless `relative` says otherwise.
    relative
        ``"ratio"``: the ends are multiples of the control.
        ``"difference"``: they are added to the ideal value.
    usual
        Value of the metric for two halves of real data on the data set for which
        the range was set. When the control of a run lies outside the range, the
        range follows it and keeps its distance from `usual`: two halves of real
        data must never fail.
    null
        Value without any difference, for metrics whose value under pure chance spreads as 1 / sqrt(cells). The ranges
        were set for 1,000 cells; below, the ends move away from `null` by sqrt(1,000 / cells).
    """

    low: float | None = None
    high: float | None = None
    relative: str | None = None
    usual: float | None = None
    null: float | None = None

    def at(self, control: float, ideal: float, n_cells: int = 1000) -> tuple[float, float]:
        """Return the ends as numbers of the metric; -inf, inf or NaN (unknown) where there is none."""
        low = -np.inf if self.low is None else self.low
        high = np.inf if self.high is None else self.high
        if self.null is not None and n_cells < 1000:
            growth = float(np.sqrt(1000 / max(n_cells, 1)))
            low, high = self.null + growth * (low - self.null), self.null + growth * (high - self.null)
        if self.relative == "ratio":
            return low * control, high * control
        if self.relative == "difference":
            return ideal + low, ideal + high
        if self.usual is not None and np.isfinite(control):
            if control < low:
                low = control - (self.usual - low)
            if control > high:
                high = control + (high - self.usual)
        return low, high


@dataclass(frozen=True)
class Metric:
    """One line of a report.

    Parameters
    ----------
    ideal
        Value of a perfect generator; None means that of the control.
    band
        Default range; None means that the number is shown and not judged.
    needs
        ``"counts"``, ``"labels"`` or ``"batches"`` where the metric needs them.
    """

    ideal: float | None
    band: Band | None = None
    needs: str | None = None


METRICS: Mapping[str, Metric] = {
    "gg_correlation": Metric(1.0, Band(low=0.975, usual=0.987)),
    "gg_mae": Metric(None),
    "mmd": Metric(0.0, Band(high=0.006, usual=0.0)),
    "w2": Metric(None, Band(high=1.20, relative="ratio")),
    "w2_per_type": Metric(None, Band(high=1.10, relative="ratio"), "labels"),
    "w2_per_batch": Metric(None, None, "batches"),
    "ilisi": Metric(1.0, Band(low=0.92, usual=0.991)),
    "one_nn": Metric(0.5, Band(high=0.63, usual=0.489)),
    "rf_auc_pca": Metric(0.5, Band(high=0.62, usual=0.494)),
    "rf_auc_genes": Metric(0.5, Band(high=0.64, usual=0.497)),
    "precision": Metric(None, Band(low=0.74, usual=0.92)),
    "recall": Metric(None),
    "coverage": Metric(None, Band(low=0.78, usual=0.98)),
    "label_fidelity": Metric(None, Band(low=-0.05, high=0.05, relative="difference"), "labels"),
    "tstr": Metric(None, None, "labels"),
    "tstr_ratio": Metric(1.0, Band(low=0.96, usual=1.0), "labels"),
    "lfc_slope": Metric(1.0, Band(low=0.93, high=1.07, usual=1.0), "labels"),
    "de_overlap": Metric(None, Band(low=0.80, usual=0.85), "labels"),
    "zero_fraction_mae": Metric(None, Band(high=0.015, usual=0.008), "counts"),
    "ks_library": Metric(None, Band(high=0.07, usual=0.03, null=0.0), "counts"),
    "ks_genes_detected": Metric(None, Band(high=0.07, usual=0.03, null=0.0), "counts"),
    "mean_variance": Metric(None, None, "counts"),
    "composition": Metric(None, None, "labels"),
    "composition_batch": Metric(None, None, "batches"),
}
"""Metrics of :func:`~cellsmith.metrics.evaluate_synthetic`, in the order of the table."""

SYMMETRIC = (
    "gg_correlation",
    "gg_mae",
    "mmd",
    "w2",
    "w2_per_type",
    "w2_per_batch",
    "ilisi",
    "one_nn",
    "rf_auc_pca",
    "rf_auc_genes",
    "precision",
    "recall",
    "coverage",
)
"""Metrics that depend on the choice of components or genes, hence shown with the symmetric choice too."""

PRIVACY_METRICS: Mapping[str, Metric] = {
    "nearest_share": Metric(0.5, Band(low=0.44, high=0.56, usual=0.498, null=0.5)),
    "exact_copies": Metric(0.0, Band(high=0.0, usual=0.0)),
    "membership_auc": Metric(0.5, Band(high=0.55, null=0.5)),
    "membership_auc_donor": Metric(0.5),
    "distance_ratio": Metric(None),
}
"""Lines of :func:`~cellsmith.metrics.privacy_report`; `exact_copies` is a share of the synthetic cells."""


def bounds_of(
    name: str, metric: Metric, *, control: float, ideal: float, n_cells: int, bands: Mapping[str, object] | None
) -> tuple[float, float] | None:
    """Return the range of a metric in this run, None where it is not judged.

    Parameters
    ----------
    name, metric
        The metric.
    control
        Its value for real against real.
    ideal
        Its ideal value in this run.
    n_cells
        Cells a side.
    bands
        Ranges given by the user: metric -> (low, high), either may be None, or None for "do not judge".
    """
    if bands is not None and name in bands:
        given = bands[name]
        if given is None:
            return None
        if not isinstance(given, tuple | list) or len(given) != 2:
            msg = f"`bands[{name!r}]` is {given!r}; expected a pair (low, high), None for an open end."
            raise SetupError(msg)
        return Band(*given).at(control, ideal)
    return None if metric.band is None else metric.band.at(control, ideal, n_cells)


def check_bands(bands: Mapping[str, object] | None, valid: Mapping[str, Metric]) -> None:
    """Refuse ranges for metrics that do not exist."""
    for name in bands or {}:
        if name not in valid:
            msg = f"`bands` names the unknown metric {name!r}. {nearest(name, valid)}"
            raise SetupError(msg)


def judge(value: float, bounds: tuple[float, float] | None) -> bool | None:
    """Tell whether `value` is inside; None where there is no range or the number is not available."""
    if bounds is None or not np.isfinite(value) or np.isnan(bounds).any():
        return None
    return bool(bounds[0] <= value <= bounds[1])


def describe(bounds: tuple[float, float] | None) -> str:
    """Write a range for people, empty where there is none."""
    if bounds is None or np.isnan(bounds).any():
        return ""
    low, high = bounds
    if np.isinf(low):
        return "" if np.isinf(high) else f"<= {high:.4g}"
    return f">= {low:.4g}" if np.isinf(high) else f"{low:.4g} to {high:.4g}"
