"""The scores of one set of cells against the reference, group by group.

The control passes through the same functions as the synthetic cells, so a
number and its control differ in the cells and in nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cellsmith._rng import Streams
from cellsmith.metrics import _expression as expression
from cellsmith.metrics import _labels as by_label
from cellsmith.metrics import _two_sample as two_sample
from cellsmith.metrics._cells import Cells, Space, stack

__all__ = ["Frame", "composition_scores", "count_scores", "label_scores", "space_scores", "teach"]

N_CORRELATED = 100
"""Most variable genes whose correlations are compared."""
N_STRONGEST = 50
"""Genes a type for fold changes and for the overlap of markers."""


@dataclass(frozen=True)
class Frame:
    """What all scores of a run share.

    Parameters
    ----------
    reference
        Real cells that everything is compared with.
    space
        Components and gene ranking of one run.
    wanted
        Names of the metrics to compute.
    n_genes
        Genes of the random forest in gene space.
    labels_key, batch_key
        Columns of labels and batches.
    streams
        Seeds.
    """

    reference: Cells
    space: Space
    wanted: frozenset[str]
    n_genes: int
    labels_key: str | None
    batch_key: str | None
    streams: Streams

    def labels(self, cells: Cells) -> np.ndarray:
        """Labels of `cells`, shape (n,)."""
        return cells.columns[str(self.labels_key)]


def _per_group(x: np.ndarray, y: np.ndarray, groups_x: np.ndarray, groups_y: np.ndarray) -> dict[str, float]:
    """W2 inside every group with more than 5 cells on both sides."""
    shared = by_label.shared_types(groups_x, groups_y)
    return {g: two_sample.wasserstein(x[groups_x == g], y[groups_y == g]) for g in shared}


def _mean(values: dict[str, float]) -> float:
    return float(np.mean(list(values.values()))) if values else float("nan")


def space_scores(frame: Frame, cells: Cells) -> tuple[dict[str, float], dict[str, float]]:
    """Score what depends on components or on a choice of genes.

    Parameters
    ----------
    frame
        Reference and space.
    cells
        Cells to score.

    Returns
    -------
    Metric -> value, and W2 of each label.
    """
    reference, wanted, out = frame.reference, frame.wanted, {}
    x, y = frame.space.project(reference), frame.space.project(cells)
    if wanted & {"gg_correlation", "gg_mae"}:
        top = frame.space.ranked[:N_CORRELATED]
        pair = (reference.log[:, top].toarray(), cells.log[:, top].toarray())
        out["gg_correlation"], out["gg_mae"] = expression.gene_gene(*pair)
    for name, function in (
        ("mmd", two_sample.mmd),
        ("w2", two_sample.wasserstein),
        ("ilisi", two_sample.ilisi),
        ("one_nn", two_sample.one_nn),
    ):
        if name in wanted:
            out[name] = function(x, y)
    if "rf_auc_pca" in wanted:
        out["rf_auc_pca"] = two_sample.forest_auc(x, y, seed=frame.streams.integer("forest", 0))
    if "rf_auc_genes" in wanted:
        top = frame.space.ranked[: frame.n_genes]
        pair = (reference.log[:, top].toarray(), cells.log[:, top].toarray())
        out["rf_auc_genes"] = two_sample.forest_auc(*pair, seed=frame.streams.integer("forest", 1))
    if wanted & {"precision", "recall", "coverage"}:
        names = ("precision", "recall", "coverage")
        out |= dict(zip(names, two_sample.precision_recall_coverage(x, y), strict=True))
    per_type: dict[str, float] = {}
    if "w2_per_type" in wanted:
        per_type = _per_group(x, y, frame.labels(reference), frame.labels(cells))
        out["w2_per_type"] = _mean(per_type)
    if "w2_per_batch" in wanted:
        key = str(frame.batch_key)
        out["w2_per_batch"] = _mean(_per_group(x, y, reference.columns[key], cells.columns[key]))
    return {k: v for k, v in out.items() if k in wanted}, per_type


def teach(frame: Frame, cells: Cells) -> Any:
    """Fit a classifier of labels on `cells` in the space of `frame`."""
    return by_label.classifier(frame.space.project(cells), frame.labels(cells))


def _predicted(frame: Frame, cells: Cells, *, teacher: Any, rival: Any) -> dict[str, Any]:
    """Classify `cells` by `teacher`, and the reference by a classifier trained on `cells` and by `rival`."""
    x, y = frame.space.project(frame.reference), frame.space.project(cells)
    truth, reference = frame.labels(cells), frame.labels(frame.reference)
    own = by_label.classifier(y, truth)
    real_hit = np.asarray(teacher.predict(x)).astype(str) == reference.astype(str)
    return {
        "hit": np.asarray(teacher.predict(y)).astype(str) == truth.astype(str),
        "real_fidelity": float(real_hit[by_label.labelled(reference)].mean()),
        "f1": by_label.f1_per_label(reference, np.asarray(own.predict(x)).astype(str)),
        "trtr": _mean(by_label.f1_per_label(reference, np.asarray(rival.predict(x)).astype(str))),
    }


def label_scores(frame: Frame, cells: Cells, train: Cells | None, *, teacher: Any, rival: Any) -> dict[str, Any]:
    """Score what needs labels.

    Parameters
    ----------
    frame
        Reference, space and the name of the labels.
    cells
        Cells to score.
    train
        Real cells that choose the strongest genes of a type; None: reference and `cells` together.
    teacher
        Classifier of real cells that judges the labels of `cells`, from :func:`teach`.
    rival
        Classifier of real cells that the one trained on `cells` is compared with on the reference.

    Returns
    -------
    ``scores`` (metric -> value), ``per_label`` (column -> label -> value), ``folds`` (label ->
    (genes, real, synthetic)), ``real_fidelity`` and ``trtr``.
    """
    reference = frame.reference
    labels, own = frame.labels(reference), frame.labels(cells)
    predicted = _predicted(frame, cells, teacher=teacher, rival=rival)
    chooser = train.log if train is not None else stack(reference.log, cells.log)
    chooser_labels = frame.labels(train) if train is not None else np.concatenate([labels, own])
    types = by_label.shared_types(labels, own, chooser_labels)
    if len(set(labels[by_label.labelled(labels)])) < 2:
        types = []  # a single type has no rest to compare with
    strong, real, synthetic = (
        expression.fold_changes(log, of, types)
        for log, of in ((chooser, chooser_labels), (reference.log, labels), (cells.log, own))
    )
    n_top = min(N_STRONGEST, max(1, reference.log.shape[1] // 4))
    folds, slopes, overlaps = {}, {}, {}
    for t, name in enumerate(types):
        genes = np.argsort(-np.abs(strong[t]), kind="stable")[:n_top]
        folds[name] = (genes, real[t, genes], synthetic[t, genes])
        slopes[name] = expression.slope_through_zero(real[t, genes], synthetic[t, genes])
        overlaps[name] = expression.overlap_of_top(real[t], synthetic[t], n_top)
    pooled = [np.concatenate([f[i] for f in folds.values()]) if folds else np.zeros(0) for i in (1, 2)]
    keep = by_label.labelled(own)
    scores = {
        "label_fidelity": float(predicted["hit"][keep].mean()),
        "tstr": _mean(predicted["f1"]),
        "tstr_ratio": _mean(predicted["f1"]) / predicted["trtr"] if predicted["trtr"] > 0 else float("nan"),
        "lfc_slope": expression.slope_through_zero(*pooled),
        "de_overlap": _mean(overlaps),
    }
    fidelity = {name: float(predicted["hit"][own == name].mean()) for name in sorted(set(own[keep]))}
    return {
        "scores": {k: v for k, v in scores.items() if k in frame.wanted},
        "per_label": {"fidelity": fidelity, "f1": predicted["f1"], "lfc_slope": slopes, "de_overlap": overlaps},
        "folds": folds,
        "real_fidelity": predicted["real_fidelity"],
        "trtr": predicted["trtr"],
    }


def count_scores(wanted: frozenset[str], real: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, float]:
    """Score zeros, depth and dispersion from two answers of ``count_curves``; NaN where `other` holds no counts."""
    names = ("zero_fraction_mae", "ks_library", "ks_genes_detected", "mean_variance")
    if not other:
        return {name: float("nan") for name in names if name in wanted}
    out = {
        "zero_fraction_mae": float(np.abs(real["zero_fraction"] - other["zero_fraction"]).mean()),
        "ks_library": expression.ks_distance(real["library"], other["library"]),
        "ks_genes_detected": expression.ks_distance(real["genes_detected"], other["genes_detected"]),
        "mean_variance": expression.mean_variance_error(real, other),
    }
    return {name: out[name] for name in names if name in wanted}


def composition_scores(frame: Frame, cells: Cells) -> dict[str, float]:
    """Score the shares of labels and batches."""
    out = {}
    for name, key in (("composition", frame.labels_key), ("composition_batch", frame.batch_key)):
        if name in frame.wanted and key is not None:
            out[name] = by_label.composition_distance(frame.reference.columns[key], cells.columns[key])
    return out
