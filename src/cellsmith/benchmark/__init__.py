"""Side-by-side runs against peers, with controls; one function a task."""

from __future__ import annotations

from cellsmith._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "annotation": "._annotation.compare",
        "missingness": "._missingness.compare",
        "synthesis": "._synthesis.quality",
        "topics": "._topics.compare",
    },
)
