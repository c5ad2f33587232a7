"""Scores of results; the only place that may read a label for evaluation."""

from __future__ import annotations

from cellsmith._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "AnnotationReport": ".annotation",
        "Hubness": ".clustering",
        "MissingnessReport": ".missingness",
        "PrivacyAudit": ".privacy_audit",
        "PrivacyReport": ".privacy",
        "SyntheticReport": ".synthesis",
        "TopicReport": ".topics",
        "annotation_report": ".annotation",
        "ari": ".clustering",
        "audit_privacy": ".privacy_audit",
        "check_privacy_wiring": ".privacy_audit",
        "coverage": ".distillation",
        "diversity": ".distillation",
        "evaluate_synthetic": ".synthesis",
        "gene_moments": ".distillation",
        "hausdorff": ".distillation",
        "homophily": ".clustering",
        "hubness": ".clustering",
        "macro_f1": ".clustering",
        "marker_overlap": ".distillation",
        "membership_auc": ".privacy",
        "missingness_report": ".missingness",
        "nearest_share": ".privacy",
        "neighbour_distance_ratio": ".distillation",
        "nmi": ".clustering",
        "privacy_report": ".privacy",
        "rare_f1": ".clustering",
        "subspace_error": ".missingness",
        "topic_report": ".topics",
        "topic_stability": ".topics",
    },
)
