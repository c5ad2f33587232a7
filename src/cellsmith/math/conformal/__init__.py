"""Temperatures, split-conformal and risk-control thresholds (Eq. 15-17 of GRIT)."""

from __future__ import annotations

from cellsmith.math.conformal.temperature import (
    apply_temperature,
    fit_temperature,
    split_half_accuracy,
    split_half_temperature,
)
from cellsmith.math.conformal.thresholds import (
    Threshold,
    accepted_wrong_threshold,
    coverage_threshold,
    first_share,
    fixed_sequences,
    nonconformity,
    prediction_set,
    selective_threshold,
)

__all__ = [
    "Threshold",
    "accepted_wrong_threshold",
    "apply_temperature",
    "coverage_threshold",
    "first_share",
    "fit_temperature",
    "fixed_sequences",
    "nonconformity",
    "prediction_set",
    "selective_threshold",
    "split_half_accuracy",
    "split_half_temperature",
]
