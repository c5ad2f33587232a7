"""Models: one class a method, with the interface of scvi-tools."""

from __future__ import annotations

from cellsmith._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, {"BCPCA": ".bcpca.model", "GRIT": ".grit.model", "SCLD": ".scld.model"})
