"""Pictures of AnnData objects and of reports; every function returns Axes."""

from __future__ import annotations

from cellsmith._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "bcpca_baselines": "._bcpca",
        "distillation": "._distillation",
        "graph_degrees": "._scagc",
        "grit_flow": "._grit",
        "interpolation": "._synthesis",
        "merge_path": "._scagc",
        "n_topics_curve": "._topics",
        "privacy": "._synthesis",
        "privacy_curve": "._dpdcan",
        "scsiameseclu_clusters": "._scsiameseclu",
        "synthetic_genes": "._synthesis",
        "synthetic_lfc": "._synthesis",
        "synthetic_overview": "._synthesis",
        "synthetic_report": "._synthesis",
        "topic_enrichment": "._topics",
        "topic_genes": "._topics",
        "topic_heatmap": "._topics",
        "topic_map": "._topics",
        "topic_perturbation": "._topics",
        "training_history": "._synthesis",
    },
)
