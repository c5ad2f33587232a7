"""The report of an annotation: frozen and printable."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd

__all__ = ["AnnotationReport"]


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4f}"


@dataclass(frozen=True, eq=False, repr=False)
class AnnotationReport:
    """Answer of :func:`~cellsmith.metrics.annotation_report`.

    Parameters
    ----------
    table
        One row a metric: ``metric``, ``value``, ``low`` and ``high`` (95 % bootstrap interval), ``raw`` (the same
        before refinement), ``delta`` (value - raw), ``delta_low`` and ``delta_high`` (95 %, both sides on the same
        resampled cells). NaN where a number is not available. Metrics: ``accuracy``, ``balanced_accuracy``,
        ``macro_f1``, ``weighted_f1``, ``hierarchical_f1``, ``ece``, ``brier``, ``nll``, ``aurc`` (area under the
        risk-coverage curve), ``rejection_auroc`` (low confidence against wrong labels), ``novel_auroc`` (low confidence
        against types that are no class), ``accepted_share``, ``accepted_accuracy``, ``accepted_wrong`` (share of all
        cells that are accepted and wrong).
    per_class
        One row a class: ``label``, ``precision``, ``recall``, ``f1``, ``support``, ``predicted`` (cells), and with raw
        labels ``raw_recall``, ``raw_f1``, ``raw_predicted``.
    confusion
        Cells, truth (rows) x prediction (columns), both over all names.
    per_group
        One row a group of ``by``: ``group``, ``n_cells``, label scores, ``ece``, ``accepted_share``, and with raw
        labels ``raw_accuracy``, ``delta_accuracy``.
    curves
        ``coverage`` and ``risk``; ``bin_confidence``, ``bin_accuracy``, ``bin_cells`` of the calibration bins.
    settings
        Keys, seed, resamples, and numbers of cells: ``n_cells`` scored, ``n_unlabelled`` left out, ``n_without_label``
        (no prediction: counted as wrong), ``n_outside`` (truth is none of the classes), ``n_probabilities`` (cells
        behind ``brier``).

    Examples
    --------
    >>> report = annotation_report(adata, key="grit", labels_key="cell_type")  # doctest: +SKIP
    >>> report["macro_f1"], report.per_class, report.confusion  # doctest: +SKIP
    """

    table: pd.DataFrame
    per_class: pd.DataFrame
    confusion: pd.DataFrame
    per_group: pd.DataFrame
    curves: dict[str, np.ndarray] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    _intervals: ClassVar[tuple[tuple[str, str], ...]] = (("low", "high"), ("delta_low", "delta_high"))

    def __getitem__(self, metric: str) -> float:
        """Return the value of one metric."""
        row = self.table.loc[self.table["metric"] == metric, "value"]
        if row.empty:
            raise KeyError(metric)
        return float(row.iloc[0])

    def summary(self) -> pd.DataFrame:
        """Return the available metrics as text with their intervals.

        Returns
        -------
        Columns ``metric``, ``value``, ``95 %``, and with raw labels ``raw``, ``delta``, ``delta 95 %``.
        """
        rows = self.table[self.table["value"].notna()]
        ranges = [
            [f"{a:.4f} to {b:.4f}" if np.isfinite(a) else "" for a, b in zip(rows[low], rows[high], strict=True)]
            for low, high in self._intervals
        ]
        shown = pd.DataFrame({"metric": rows["metric"], "value": rows["value"].map(_number), "95 %": ranges[0]})
        if self.table["raw"].notna().any():
            shown = shown.assign(raw=rows["raw"].map(_number), delta=rows["delta"].map(_number))
            shown["delta 95 %"] = ranges[1]
        return shown.reset_index(drop=True)

    @property
    def _title(self) -> str:
        s = self.settings
        extra = {"n_unlabelled": "without truth left out", "n_without_label": "without a prediction"}
        extra |= {"n_outside": "of types that are no class"}
        notes = [f"{s[name]:,} {text}" for name, text in extra.items() if s.get(name)]
        cells = "; ".join([f"{s.get('n_cells', 0):,} cells", *notes])
        return f"Annotation {s.get('key')!r} against {s.get('labels_key')!r}: {cells}"

    def __str__(self) -> str:
        return f"{self._title}\n{self.summary().to_string(index=False)}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p><b>{escape(self._title)}</b></p>{self.summary().to_html(index=False)}"
