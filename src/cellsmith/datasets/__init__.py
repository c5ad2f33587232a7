"""Data sets: one embedded real one, and toys whose truth is known."""

from __future__ import annotations

from cellsmith._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, {"kang_pbmc": ".real"})
