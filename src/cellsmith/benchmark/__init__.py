"""Side-by-side runs against peers, with controls; one function a task."""

from __future__ import annotations

from cellsmith._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "annotation": "._annotation.compare",
        "clustering": "._clustering.compare",
        "distillation": "._distillation.compare",
        "missingness": "._missingness.compare",
        "propagation": "._clustering.propagation",
        "privacy": "._privacy.compare",
        "score_distilled": "._distillation.compare",
        "Stability": "._stability",
        "scsiameseclu_ablation": "._scsiameseclu.ablation",
        "stability": "._stability",
        "synthesis": "._synthesis.quality",
        "topics": "._topics.compare",
    },
)
