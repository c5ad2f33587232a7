"""Scores of labels and of the confidence in them; arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.stats import rankdata

from cellsmith.math.ontology import Ontology

__all__ = [
    "BINS",
    "LABEL_SCORES",
    "auroc",
    "bootstrap",
    "brier",
    "class_totals",
    "f1",
    "hierarchical_f1",
    "label_scores",
    "negative_log_likelihood",
    "per_class_table",
    "reliability",
    "risk_coverage",
]

LABEL_SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1")
BINS = 10
_TINY = float(np.finfo(np.float64).eps)


def _ratio(above: Any, below: Any) -> np.ndarray:
    """Divide, 0 where nothing is divided by nothing."""
    below = np.asarray(below, dtype=np.float64)
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), 0.0)


def f1(hits: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return the F1 score of each class from its hits, true and predicted cells, any shape."""
    return _ratio(2.0 * hits, support + predicted)


def class_totals(truth: np.ndarray, predicted: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return hits, true cells and predicted cells of each class, shape (K,) each, from codes of shape (n,)."""
    hits = np.bincount(truth[truth == predicted], minlength=n_classes)
    return hits, np.bincount(truth, minlength=n_classes), np.bincount(predicted, minlength=n_classes)


def label_scores(hits: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Return the scores of `LABEL_SCORES` from totals of shape (..., K).

    Macro-F1 averages over the classes that occur in truth or prediction, balanced accuracy over those in truth.
    """
    n = support.sum(axis=-1)
    scores, seen = f1(hits, support, predicted), (support + predicted) > 0
    return {
        "accuracy": _ratio(hits.sum(axis=-1), n),
        "balanced_accuracy": _ratio(_ratio(hits, support).sum(axis=-1), (support > 0).sum(axis=-1)),
        "macro_f1": _ratio(np.where(seen, scores, 0.0).sum(axis=-1), seen.sum(axis=-1)),
        "weighted_f1": _ratio((scores * support).sum(axis=-1), n),
    }


def per_class_table(
    names: Sequence[str], truth: np.ndarray, predicted: np.ndarray, raw: np.ndarray | None
) -> pd.DataFrame:
    """Return one row a class with precision, recall, F1, support and predicted cells, the raw F1 and recall beside."""
    hits, support, called = class_totals(truth, predicted, len(names))
    table = {
        "label": list(names),
        "precision": _ratio(hits, called),
        "recall": _ratio(hits, support),
        "f1": f1(hits, support, called),
        "support": support,
        "predicted": called,
    }
    if raw is not None:
        hits, support, called = class_totals(truth, raw, len(names))
        table |= {"raw_recall": _ratio(hits, support), "raw_f1": f1(hits, support, called), "raw_predicted": called}
    frame = pd.DataFrame(table)
    others = [c for c in ("support", "predicted", "raw_predicted") if c in frame]
    return frame[frame[others].sum(axis=1) > 0].reset_index(drop=True)


def bootstrap(
    columns: Sequence[np.ndarray], n_classes: int, *, n_boot: int, generator: np.random.Generator
) -> list[dict[str, np.ndarray]]:
    """Return the scores of resampled cells.

    The scores depend on a cell only through its row of codes, so the number of cells of each distinct row is drawn
    (multinomial): the same law as drawing cells, at a cost that does not grow with them.

    Parameters
    ----------
    columns
        Codes of shape (n,): the truth, then one or more predictions, which share every resample.
    n_classes
        Number of codes K.
    n_boot
        Number of resamples B.
    generator
        Source of randomness.

    Returns
    -------
    One mapping score -> (B,) for each prediction.
    """
    # one number a row of codes, because numbers sort faster than rows
    joint = np.ravel_multi_index(tuple(columns), (n_classes,) * len(columns))
    found, sizes = np.unique(joint, return_counts=True)
    rows = np.column_stack(np.unravel_index(found, (n_classes,) * len(columns)))
    n = int(sizes.sum())
    drawn = generator.multinomial(n, sizes / n, size=n_boot)
    codes = [csr_array((np.ones(len(rows)), (np.arange(len(rows)), c)), shape=(len(rows), n_classes)) for c in rows.T]
    support = drawn @ codes[0]
    out = []
    for code, values in zip(codes[1:], rows.T[1:], strict=True):
        hits = (drawn * (values == rows[:, 0])) @ codes[0]
        out.append(label_scores(np.asarray(hits), np.asarray(support), np.asarray(drawn @ code)))
    return out


def reliability(confidence: np.ndarray, right: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """Return the expected calibration error over `BINS` equal bins (lower end excluded), and the bins.

    Parameters
    ----------
    confidence
        Probability of the given label, shape (n,), in [0, 1].
    right
        Whether the label is right, shape (n,).
    """
    which = np.digitize(confidence, np.linspace(0, 1, BINS + 1)[1:-1], right=True)
    size = np.bincount(which, minlength=BINS)
    mean, share = (_ratio(np.bincount(which, weights=w, minlength=BINS), size) for w in (confidence, right * 1.0))
    error = float((size * np.abs(mean - share)).sum() / max(size.sum(), 1))
    return error, {"bin_confidence": mean, "bin_accuracy": share, "bin_cells": size}


def brier(p: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean over cells of sum_c (P_c - [c is the truth])^2, in [0, 2].

    Parameters
    ----------
    p
        Probabilities of shape (n, C).
    truth
        Columns of shape (n,); negative for a label outside the classes: a class of its own, to which P gives nothing.
    """
    own = np.where(truth >= 0, p[np.arange(len(p)), np.maximum(truth, 0)], 0.0)
    return float(((p**2).sum(axis=1) - 2.0 * own + 1.0).mean())


def negative_log_likelihood(p: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean of -ln P of the true class, P cut at machine precision as sklearn does; NaN without cells.

    Parameters
    ----------
    p
        Probabilities of shape (n, C).
    truth
        Columns of shape (n,); cells with a label outside the classes (negative) have no finite loss and are left out.
    """
    own = p[np.arange(len(p)), np.maximum(truth, 0)][truth >= 0]
    return float(-np.log(np.clip(own, _TINY, 1.0 - _TINY)).mean()) if len(own) else float("nan")


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """Return the area under the risk-coverage curve, and the curve at up to 200 coverages.

    Risk = share of wrong labels among the k most confident cells; the area is its mean over k = 1..n. Cells of equal
    confidence enter with their mean risk, which is the expectation over their order.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence, wrong = confidence[order], 1.0 - right[order]
    _, group, size = np.unique(-sorted_confidence, return_inverse=True, return_counts=True)
    wrong = (np.bincount(group, weights=wrong) / size)[group]
    k = np.arange(1, len(wrong) + 1)
    risk = np.cumsum(wrong) / k
    shown = np.unique(np.linspace(0, len(k) - 1, min(len(k), 200)).round().astype(int))
    return float(risk.mean()), {"coverage": k[shown] / len(k), "risk": risk[shown]}


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Return the probability that a positive cell scores above another one, ties half; NaN when one kind is absent."""
    n = int(positive.sum())
    if n == 0 or n == len(positive):
        return float("nan")
    ranks = rankdata(score)[positive].sum()
    return float((ranks - n * (n + 1) / 2) / (n * (len(positive) - n)))


def hierarchical_f1(truth: Sequence[str], predicted: Sequence[str], *, ontology: Ontology) -> float:
    """Return the F1 score over ancestors: a label near the truth in the ontology is not wholly wrong.

    Every label stands for its term and all ancestors except the roots, which all share; a label outside the ontology
    stands for itself. Precision and recall count common ancestors, summed over cells (Kiritchenko et al., 2006).

    Parameters
    ----------
    truth, predicted
        Labels of shape (n,).
    ontology
        The terms.
    """
    pairs: Mapping[tuple[str, str], int] = pd.Series(list(zip(truth, predicted, strict=True))).value_counts().to_dict()
    above = {name: _above(name, ontology) for pair in pairs for name in pair}
    common = sum(n * len(above[a] & above[b]) for (a, b), n in pairs.items())
    both = sum(n * (len(above[a]) + len(above[b])) for (a, b), n in pairs.items())
    return 2.0 * common / both if both else float("nan")


def _above(name: str, ontology: Ontology) -> frozenset[str]:
    term = ontology.find(name)
    if term is None:
        return frozenset({name})
    return frozenset(t for t in ontology.ancestors(term) if t == term or ontology.parents(t))
