"""Whether the labels of synthetic cells mean what they mean in real ones."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["classifier", "composition_distance", "f1_per_label", "labelled", "shared_types"]

MIN_CELLS = 6
"""A type needs more than 5 cells on both sides to be scored."""


class _Constant:
    """Predicts the only label that it has seen."""

    def __init__(self, label: str) -> None:
        self.label = label

    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.full(len(x), self.label, dtype=object)


def labelled(labels: np.ndarray) -> np.ndarray:
    """Return a mask of the cells that carry a label, shape (n,)."""
    return np.array([v is not None for v in labels], dtype=bool)


def classifier(x: np.ndarray, labels: np.ndarray) -> Any:
    """Fit a logistic classifier (C = 0.1).

    Parameters
    ----------
    x
        Coordinates of shape (n, d).
    labels
        Label or None of each cell, shape (n,).

    Returns
    -------
    Object with ``predict(x) -> labels``; constant where only one label exists.
    """
    from sklearn.linear_model import LogisticRegression

    keep = labelled(labels)
    names = sorted(set(labels[keep]))
    if len(names) == 1:
        return _Constant(names[0])
    return LogisticRegression(C=0.1, max_iter=2000).fit(x[keep], labels[keep].astype(str))


def f1_per_label(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Return the F1 score of every label of `truth` (its None entries are left out)."""
    from sklearn.metrics import f1_score

    keep = labelled(truth)
    names = sorted(set(truth[keep]))
    scores = f1_score(
        truth[keep].astype(str), predicted[keep].astype(str), labels=names, average=None, zero_division=0.0
    )
    return dict(zip(names, (float(s) for s in scores), strict=True))


def shared_types(*labels: np.ndarray) -> list[str]:
    """Return the types with more than 5 cells in every one of the arrays."""
    sets = []
    for values in labels:
        names, sizes = np.unique(values[labelled(values)].astype(str), return_counts=True)
        sets.append({str(n) for n, s in zip(names, sizes, strict=True) if s >= MIN_CELLS})
    return sorted(set.intersection(*sets))


def composition_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the total variation distance of the label shares, in [0, 1]; unlabelled cells are left out."""
    left, right = a[labelled(a)], b[labelled(b)]
    if not len(left) or not len(right):
        return float("nan")
    return 0.5 * sum(abs(float((left == t).mean()) - float((right == t).mean())) for t in {*left, *right})
