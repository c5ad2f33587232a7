"""Scores of one run: the labels, the rare types, the confidences."""

from __future__ import annotations

import numpy as np

from cellsmith.benchmark._annotation.cases import Case
from cellsmith.benchmark._annotation.peers import Refined
from cellsmith.metrics._annotation_scores import auroc, class_totals, label_scores, reliability

__all__ = ["auroc", "ece", "label_table", "rare_types"]

RARE_SHARE, RARE_CELLS = 0.03, 10


def rare_types(truth: np.ndarray, *, max_share: float = RARE_SHARE, min_cells: int = RARE_CELLS) -> np.ndarray:
    """Return the codes of types with a share below `max_share` and at least `min_cells` cells."""
    size = np.bincount(truth[truth >= 0])
    return np.flatnonzero((size < max_share * len(truth)) & (size >= min_cells))


def label_table(case: Case, refined: Refined) -> dict[str, float]:
    """Return accuracy, macro-F1, and the recall of every rare type and their mean.

    Macro-F1 averages over the types that occur in truth or prediction. A label outside the classes is always wrong.
    """
    truth, found = case.truth[case.scored], refined.labels[case.scored]
    n = len(case.classes) + 1
    totals = class_totals(np.where(truth < 0, n - 1, truth), found, n)
    out = {name: float(label_scores(*totals)[name]) for name in ("accuracy", "macro_f1")}
    rare = rare_types(truth)
    recalls = {case.classes[c]: float((found[truth == c] == c).mean()) for c in rare}
    if recalls:
        out["rare_recall"] = float(np.mean(list(recalls.values())))
    return out | {f"recall {name}": value for name, value in recalls.items()}


def ece(case: Case, refined: Refined, keep: np.ndarray | None = None) -> float:
    """Return the expected calibration error of the confidences in 10 bins, over `keep` or the scored cells."""
    rows = case.scored if keep is None else keep
    right = refined.labels[rows] == case.truth[rows]
    return reliability(np.clip(refined.confidence[rows], 0.0, 1.0), right)[0]
