"""Data to try things on: one embedded real data set, and toys whose truth is known."""

from __future__ import annotations

from cellsmith._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "kang_pbmc": "._kang",
        "pbmc68k_counts": "._pbmc68k",
        "toy_counts": ".toys",
        "toy_gradient": ".toys",
        "toy_perturbation": ".toys",
    },
)
