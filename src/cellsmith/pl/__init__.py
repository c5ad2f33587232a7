"""Pictures of AnnData objects and of reports; every function returns Axes."""

from __future__ import annotations

from cellsmith._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "bcpca_baselines": "._bcpca",
        "grit_flow": "._grit",
        "interpolation": "._synthesis",
        "privacy": "._synthesis",
        "synthetic_genes": "._synthesis",
        "synthetic_lfc": "._synthesis",
        "synthetic_overview": "._synthesis",
        "synthetic_report": "._synthesis",
        "training_history": "._synthesis",
    },
)
