"""What one distilled set is worth on one cut: scores of every classifier, and readings that teach nothing."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import anndata as ad
import numpy as np
from scipy import sparse

from cellsmith._errors import SetupError
from cellsmith._rng import Streams
from cellsmith.benchmark._distillation.cases import Reading
from cellsmith.benchmark._distillation.recipe import SEEDED, SOFT, predict
from cellsmith.metrics import distillation as relations
from cellsmith.metrics._annotation_scores import class_totals, label_scores

__all__ = ["NO_MODEL", "rare_classes", "readings", "score", "soft_labels", "teacher"]

logger = logging.getLogger("cellsmith")

NO_MODEL = "-"
RARE_SHARE, RARE_CELLS = 0.02, 20
HAUSDORFF_QUANTILE = 0.99


def rare_classes(codes: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the codes of classes with at most 2 % of the cells, or at most 20."""
    size = np.bincount(codes[codes >= 0], minlength=n_classes)
    return np.flatnonzero((size > 0) & ((size <= RARE_SHARE * len(codes)) | (size <= RARE_CELLS)))


def _label_scores(truth: np.ndarray, found: np.ndarray, reading: Reading) -> dict[str, float]:
    """Return accuracy, balanced accuracy, macro-F1 and recalls; a label that no training cell has is always wrong."""
    k = len(reading.classes)
    totals = class_totals(np.where(truth < 0, k, truth), found, k + 1)
    table = label_scores(*totals)
    out = {name: float(table[name]) for name in ("accuracy", "balanced_accuracy", "macro_f1")}
    recall = {c: float((found[truth == c] == c).mean()) for c in np.unique(truth[truth >= 0])}
    rare = [recall[c] for c in rare_classes(reading.codes(reading.train), k) if c in recall]
    if rare:
        out["rare_recall"] = float(np.mean(rare))
    return out | {f"recall {reading.classes[c]}": value for c, value in recall.items()}


def score(
    rows: ad.AnnData,
    reading: Reading,
    *,
    models: Sequence[str],
    n_seeds: int = 5,
    soft: np.ndarray | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Teach every classifier with a distilled set and score it on the test cells.

    Parameters
    ----------
    rows
        The distilled set; genes and labels as in the training cells.
    reading
        How rows are read.
    models
        Names of classifiers.
    n_seeds
        Repetitions of what is random in a classifier; scores are means.
    soft
        Class probabilities of the rows, (m, K): "lr" and "mlp" are taught with them, too.
    seed
        Seed of the repetitions.

    Returns
    -------
    Mappings ``model, metric, value``.

    Raises
    ------
    SetupError
        If genes differ, or a row carries a label that no training cell has.
    """
    if list(rows.var_names) != list(reading.train.var_names):
        raise SetupError("A distilled set has other genes than the training cells; expected the same, in that order.")
    codes = reading.codes(rows)
    if (codes < 0).any():
        label = rows.obs[reading.labels_key].astype(str).iloc[int(np.flatnonzero(codes < 0)[0])]
        raise SetupError(f"A distilled row has the label {label!r}, which no training cell has.")
    x, truth = reading.view(rows), reading.codes(reading.test)
    runs = [(m, m, codes) for m in models]
    runs += [(f"{m}_soft", m, soft) for m in models if m in SOFT and soft is not None]
    out = []
    for name, model, targets in runs:
        seeds = range(n_seeds if model in SEEDED else 1)
        found = [
            _label_scores(
                truth,
                predict(model, x, targets, test=reading.test_view, seed=Streams(seed).integer("init", s)),
                reading,
            )
            for s in seeds
        ]
        out += [{"model": name, "metric": k, "value": float(np.mean([f[k] for f in found]))} for k in found[0]]
    return out


def readings(rows: ad.AnnData, reading: Reading, *, metrics: str, seed: int = 0) -> dict[str, float]:
    """Return the size of a distilled set and, with ``metrics="all"``, how it relates to the training cells.

    Distances are those of 50 principal components of the training cells' logarithms, on which rows are projected.
    """
    counts = sparse.csr_matrix(rows.X if reading.layer is None else rows.layers[reading.layer], dtype=np.int32)
    out = {
        "n_rows": float(rows.n_obs),
        "bytes": float(counts.data.nbytes + counts.indices.nbytes + counts.indptr.nbytes),
        "n_train": float(reading.train.n_obs),
        "n_test": float(reading.test.n_obs),
    }
    if metrics != "all":
        return out
    from sklearn.decomposition import PCA

    real, made = reading.train_view, reading.view(rows)
    wanted = min(50, *(size - 1 for size in real.shape))
    space = PCA(wanted, svd_solver="arpack", random_state=seed).fit(real)
    x, y, held = (space.transform(v) for v in (real, made, reading.test_view))
    labels = {"labels": reading.codes(reading.train), "distilled_labels": reading.codes(rows)}
    out["coverage"] = relations.coverage(x, y)
    out["hausdorff"] = relations.hausdorff(x, y, quantile=HAUSDORFF_QUANTILE)
    out["diversity"] = relations.diversity(x, y, **labels)
    out |= {f"gene_{name}": value for name, value in relations.gene_moments(real, made).items()}
    out["marker_overlap"] = relations.marker_overlap(real, made, **labels)
    out["neighbour_distance_ratio"] = float(np.median(relations.neighbour_distance_ratio(x, y)))
    out["membership_auc"] = relations.membership_auc(x, held, y)
    return out


def teacher(reading: Reading) -> np.ndarray:
    """Return class probabilities of the training cells, (n, K), of a logistic regression that has not seen them."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    with warnings.catch_warnings():
        # Classes with fewer cells than folds are missing in some of them, and get probability 0 there.
        warnings.simplefilter("ignore")
        found = cross_val_predict(
            LogisticRegression(C=1.0, max_iter=1000),
            reading.train_view,
            reading.codes(reading.train),
            cv=StratifiedKFold(5, shuffle=True, random_state=0),
            method="predict_proba",
        )
    return np.asarray(found, dtype=np.float64)


def soft_labels(rows: ad.AnnData, reading: Reading, probabilities: np.ndarray) -> np.ndarray:
    """Return class probabilities of distilled rows, (m, K): the mean over the training cells that a row was made of.

    Parameters
    ----------
    rows
        Training cells, or an object that says which of them each row stands for (``assignment`` in its block).
    reading
        How rows are read.
    probabilities
        From :func:`teacher`.

    Raises
    ------
    SetupError
        If it cannot be known which cells a row was made of.
    """
    place = reading.train.obs_names.get_indexer(rows.obs_names)
    if (place >= 0).all():
        return probabilities[place]
    for block in rows.uns.values():
        assigned = np.asarray(block.get("assignment", ())) if isinstance(block, Mapping) else np.array(())
        if assigned.shape == (reading.train.n_obs,):
            member = np.eye(rows.n_obs)[:, assigned[assigned >= 0]]
            total, size = member @ probabilities[assigned >= 0], member.sum(axis=1, keepdims=True)
            # A row that stands for no cell (random codes) keeps its own label.
            own = np.eye(probabilities.shape[1])[reading.codes(rows)]
            return np.where(size > 0, total / np.maximum(size, 1), own)
    raise SetupError(
        "It is not known which training cells a distilled row was made of; expected their names, or an `assignment` of "
        "every training cell in .uns[key]. Type soft=False."
    )
