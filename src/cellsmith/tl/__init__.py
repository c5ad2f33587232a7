"""Tools: one-line doors to the models, with the interface of scanpy."""

from __future__ import annotations

from cellsmith._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__, {"bcpca": "._bcpca", "grit": "._grit", "reject": "._reject", "rollup": "._rollup", "scld": "._scld"}
)
