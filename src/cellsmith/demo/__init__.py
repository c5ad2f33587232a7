"""A guided tour on real data: trains, generates, scores, and writes a page that explains the result."""

from __future__ import annotations

from cellsmith._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, {"run_demo": "._run"})
