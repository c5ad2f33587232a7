"""Pictures of synthesis: cells, genes, scores, fold changes, privacy, paths and training."""

from __future__ import annotations

from cellsmith.pl._synthesis_cells import interpolation, synthetic_genes, synthetic_overview
from cellsmith.pl._synthesis_scores import privacy, synthetic_lfc, synthetic_report
from cellsmith.pl._training import training_history

__all__ = [
    "interpolation",
    "privacy",
    "synthetic_genes",
    "synthetic_lfc",
    "synthetic_overview",
    "synthetic_report",
    "training_history",
]
