"""The choice of lambda without labels, beside fixed values and the best one in hindsight."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cellsmith.benchmark._annotation import scoring, toys
from cellsmith.benchmark._annotation.cases import Case
from cellsmith.benchmark._annotation.peers import grit
from cellsmith.benchmark._store import Store

__all__ = ["WEIGHTS", "chosen_weights", "label_free"]

WEIGHTS = (0.3, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)


def diagnostics(case: Case, halves: tuple[np.ndarray, np.ndarray]) -> pd.DataFrame:
    """Return :meth:`cellsmith.model.GRIT.path` of a case, with scores of two halves of the genes."""
    from cellsmith.model import GRIT

    cells = case.skeleton()
    cells.obsm["scores"] = pd.DataFrame(case.scores, index=cells.obs_names, columns=list(case.classes))
    GRIT.setup_anndata(cells, scores_key="scores", neighbors_key="neighbors")
    return GRIT(cells, space="prob").path(WEIGHTS, split_scores=halves)


def chosen_weights(table: pd.DataFrame) -> dict[str, float]:
    """Return the lambda that each diagnostic of ``path`` prefers; the first of equal ones."""
    rows = table.reset_index(drop=True)
    best = {
        "modularity": rows["modularity"].idxmax(),
        "split agreement": rows["agreement"].idxmax(),
        "split error": rows["split_error"].idxmin(),
    }
    return {name: WEIGHTS[int(row)] for name, row in best.items()}


def label_free(case: Case, *, store: Store) -> None:
    """Score the lambda that each label-free diagnostic prefers.

    Parameters
    ----------
    case
        The easy task.
    store
        Gets accuracy, macro-F1 and the lambda of each rule, of the fixed values and of the best in hindsight.
    """
    if store.has(task="label-free", file=case.file, seed=case.seed, variant="best in hindsight"):
        return
    halves = tuple(toys.weak_classifier(toys.blood(), case.seed, half=h).probabilities for h in (0, 1))
    found = {w: scoring.label_table(case, grit(case, smoothness_weight=w)) for w in WEIGHTS}
    rules = chosen_weights(diagnostics(case, halves)) | {"fixed 5": 5.0, "fixed 10": 10.0}
    rules["best in hindsight"] = max(WEIGHTS, key=lambda w: found[w]["accuracy"])
    for name, weight in rules.items():
        values = {key: found[weight][key] for key in ("accuracy", "macro_f1")}
        store.record("label-free", case, name, {**values, "lambda": float(np.float64(weight))})
