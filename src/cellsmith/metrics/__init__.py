"""Scores of results; the only place that may read a label for evaluation."""

from __future__ import annotations

from cellsmith._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "PrivacyReport": ".privacy",
        "SyntheticReport": ".synthesis",
        "evaluate_synthetic": ".synthesis",
        "membership_auc": ".privacy",
        "nearest_share": ".privacy",
        "privacy_report": ".privacy",
    },
)
