"""Models: one class a method, with the interface of scvi-tools."""

from __future__ import annotations

from cellsmith._lazy import attach

_CLASSES = {
    "BCPCA": ".bcpca.model",
    "DPDCAN": ".dpdcan.model",
    "GRIT": ".grit.model",
    "SCAGC": ".scagc.model",
    "SCDD": ".scdd.model",
    "SCE2TM": ".sce2tm.model",
    "SCLD": ".scld.model",
    "ScSiameseClu": ".scsiameseclu.model",
}

__getattr__, __dir__, __all__ = attach(__name__, _CLASSES)
