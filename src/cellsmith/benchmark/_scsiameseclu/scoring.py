"""Scores of clusters; the only place of this benchmark that reads types."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cellsmith.benchmark._clustering import scoring
from cellsmith.benchmark._clustering.cases import Case
from cellsmith.benchmark._scsiameseclu.fits import Fit
from cellsmith.math.assign import hungarian

__all__ = ["accuracy", "best_f1", "scores"]


def accuracy(truth: Any, predicted: Any) -> float:
    """Return the share of cells that are right after every cluster got the name of one type at most."""
    table = pd.crosstab(np.asarray(truth).astype(str), np.asarray(predicted).astype(str)).to_numpy()
    return float(table[hungarian(table)].sum() / table.sum())


def best_f1(chosen: Any, predicted: Any) -> float:
    """Return the F1 score of some cells, a mask (n,), with the cluster that holds them best."""
    own = np.asarray(chosen, dtype=bool)
    found = []
    for cluster in np.unique(predicted):
        hit = np.asarray(predicted) == cluster
        found.append(2.0 * (hit & own).sum() / (hit.sum() + own.sum()))
    return float(max(found))


def scores(case: Case, fit: Fit) -> dict[str, float]:
    """Return the scores of the clustering benchmark, accuracy, CPU seconds, and the gap of peeking.

    The gap is the best accuracy of any epoch of the transport minus that of the last: what choosing the epoch by the
    types would add.
    """
    out = {**scoring.scores(case, fit.labels), "acc": accuracy(case.labels, fit.labels), "cpu_s": fit.seconds}
    if fit.trace:
        out["peeking"] = max([out["acc"], *(accuracy(case.labels, codes) for codes in fit.trace)]) - out["acc"]
    return {name: value for name, value in out.items() if np.isfinite(value)}
