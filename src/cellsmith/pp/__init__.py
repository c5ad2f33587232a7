"""Preparation of AnnData objects."""

from __future__ import annotations

from cellsmith._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "bc_neighbors": "._bc_neighbors",
        "missing_mask": "._missing_mask",
    },
)
