"""Score an annotation against a truth: labels, probabilities, rejection, and what refinement changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith._errors import SetupError
from cellsmith._rng import Seed, Streams, resolve_seed
from cellsmith.math.ontology import Ontology
from cellsmith.metrics import _annotation_scores as scores
from cellsmith.metrics._annotation_cells import NONE, Annotation, read_annotation
from cellsmith.metrics._annotation_report import AnnotationReport

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["AnnotationReport", "annotation_report"]

_NAN = float("nan")


def _codes(cells: Annotation) -> tuple[list[str], list[np.ndarray]]:
    """Return all names, sorted, and the codes of truth, prediction and (where there is one) raw label."""
    sides = [side for side in (cells.truth, cells.predicted, cells.raw) if side is not None]
    names = sorted({*cells.classes, *(name for side in sides for name in pd.unique(side))})
    index = pd.Index(names)
    return names, [index.get_indexer(side) for side in sides]


def _labels(names: list[str], codes: list[np.ndarray]) -> list[dict[str, Any]]:
    return [scores.label_scores(*scores.class_totals(codes[0], code, len(names))) for code in codes[1:]]


def _hierarchical(cells: Annotation, ontology: Ontology | None) -> list[dict[str, float]]:
    if ontology is None:
        return []
    sides = [side for side in (cells.predicted, cells.raw) if side is not None]
    return [{"hierarchical_f1": scores.hierarchical_f1(cells.truth, side, ontology=ontology)} for side in sides]


def _probabilities(cells: Annotation) -> tuple[dict[str, float], int]:
    """Return Brier score and NLL, and the number of cells with probabilities."""
    if cells.proba is None:
        return {"brier": _NAN, "nll": _NAN}, 0
    keep = np.isfinite(cells.proba).all(axis=1)
    p, truth = cells.proba[keep], pd.Index(cells.classes).get_indexer(cells.truth[keep])
    found = {"brier": scores.brier(p, truth) if len(p) else _NAN, "nll": scores.negative_log_likelihood(p, truth)}
    return found, int(keep.sum())


def _confidence(cells: Annotation) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return what the confidences say about right and wrong, and the curves."""
    found = dict.fromkeys(("ece", "aurc", "rejection_auroc", "novel_auroc"), _NAN)
    if cells.confidence is None:
        return found, {}
    # a cell without a confidence is the last that anybody would accept
    confidence = np.nan_to_num(cells.confidence, nan=min(0.0, np.nanmin(cells.confidence, initial=0.0)))
    right = cells.truth == cells.predicted
    curves: dict[str, np.ndarray] = {}
    if confidence.min() >= 0 and confidence.max() <= 1 + 1e-6:
        found["ece"], curves = scores.reliability(np.minimum(confidence, 1.0), right)
    found["aurc"], more = scores.risk_coverage(confidence, right)
    found["rejection_auroc"] = scores.auroc(-confidence, ~right)
    if cells.classes:
        found["novel_auroc"] = scores.auroc(-confidence, ~np.isin(cells.truth.astype(str), cells.classes))
    return found, curves | more


def _rejection(cells: Annotation) -> dict[str, float]:
    if cells.rejected is None:
        return dict.fromkeys(("accepted_share", "accepted_accuracy", "accepted_wrong"), _NAN)
    accepted, right = ~cells.rejected, cells.truth == cells.predicted
    return {
        "accepted_share": float(accepted.mean()),
        "accepted_accuracy": float(right[accepted].mean()) if accepted.any() else _NAN,
        "accepted_wrong": float((accepted & ~right).mean()),
    }


def _interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def _table(values: Mapping[str, float], raw: Mapping[str, float], draws: list[dict[str, np.ndarray]]) -> pd.DataFrame:
    rows = []
    for name, value in values.items():
        before = float(raw.get(name, _NAN))
        low, high = _interval(draws[0][name]) if draws and name in draws[0] else (_NAN, _NAN)
        paired = len(draws) > 1 and name in draws[0]
        change = _interval(draws[0][name] - draws[1][name]) if paired else (_NAN, _NAN)
        rows.append((name, float(value), low, high, before, float(value) - before, *change))
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "raw", "delta", "delta_low", "delta_high"])


def _per_group(cells: Annotation) -> pd.DataFrame:
    columns = ["group", "n_cells", *scores.LABEL_SCORES, "ece", "accepted_share"]
    columns += [] if cells.raw is None else ["raw_accuracy", "delta_accuracy"]
    if cells.groups is None:
        return pd.DataFrame(columns=columns)
    rows = []
    for group in sorted(set(cells.groups)):
        part = cells.rows(cells.groups == group)
        found = _labels(*_codes(part))
        row = {"group": group, "n_cells": len(part.truth)} | found[0]
        row |= {"ece": _confidence(part)[0]["ece"], "accepted_share": _rejection(part)["accepted_share"]}
        if len(found) > 1:
            row |= {"raw_accuracy": found[1]["accuracy"]}
            row |= {"delta_accuracy": found[0]["accuracy"] - found[1]["accuracy"]}
        rows.append(row)
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[2:], float))


def _confusion(names: list[str], truth: np.ndarray, predicted: np.ndarray) -> pd.DataFrame:
    table = np.bincount(truth * len(names) + predicted, minlength=len(names) ** 2).reshape(len(names), -1)
    return pd.DataFrame(table, index=pd.Index(names, name="truth"), columns=pd.Index(names, name="predicted"))


def annotation_report(
    adata: AnnData,
    *,
    key: str,
    labels_key: str,
    raw_key: str | None = None,
    label_map: Mapping[str, str] | None = None,
    ontology: Ontology | None = None,
    by: str | None = None,
    n_boot: int = 200,
    rng: Seed = 0,
) -> AnnotationReport:
    """Score predicted labels against a truth. Reads only; nothing is written.

    Label scores equal those of scikit-learn with its defaults. Cells without a truth are left out; a cell without a
    prediction counts as wrong, and so does a type that is none of the classes. Probabilities are read at the
    temperature of ``.uns[key]["calibration"]``, as ``.obs[key_confidence]`` is.

    Parameters
    ----------
    adata
        Cells with ``.obs[key]`` (n labels), and where they exist ``.obsm[key_proba]`` of shape (n, C) with names in
        ``.uns[key]["classes"]``, ``.obs[key_confidence]`` and ``.obs[key_rejected]``. A plain column of labels will do.
    key
        Column of the predicted labels.
    labels_key
        Column of the truth.
    raw_key
        Column of the labels before refinement; ``key_raw`` where that exists.
    label_map
        Class -> name that the truth uses for it, for truths that are coarser than the classes; unlisted classes keep
        their name. Probabilities of classes with the same name are added up.
    ontology
        For the hierarchical F1 score, from ``parse_ontology`` or ``read_ontology``.
    by
        Column such as batch or donor, for one row of scores a group.
    n_boot
        Bootstrap resamples of cells behind the intervals; 0 for none. Cells of one donor are not independent: an
        interval over cells says nothing about the next donor.
    rng
        Seed or generator of the bootstrap.

    Returns
    -------
    The report.

    Raises
    ------
    SetupError
        If a column is missing, probabilities have no names or do not fit them, `label_map` names an unknown class, or
        no cell has a truth.

    Examples
    --------
    >>> report = annotation_report(adata, key="grit", labels_key="cell_type", by="batch")  # doctest: +SKIP
    """
    if not isinstance(n_boot, int | np.integer) or n_boot < 0:
        msg = f"`n_boot` is {n_boot!r}; expected a number of resamples >= 0. Type for example n_boot=200."
        raise SetupError(msg)
    if ontology is not None and not isinstance(ontology, Ontology):
        msg = (
            f"`ontology` is of type {type(ontology).__name__}; expected an Ontology. Type "
            "`ontology=parse_ontology(open(path).read())`."
        )
        raise SetupError(msg)
    cells = read_annotation(adata, key=key, labels_key=labels_key, raw_key=raw_key, label_map=label_map, by=by)
    seed = resolve_seed(rng)
    names, codes = _codes(cells)
    found = [a | b for a, b in zip(_labels(names, codes), _hierarchical(cells, ontology) or [{}, {}], strict=False)]
    draws = []
    if n_boot:
        stream = Streams(seed).numpy("bootstrap")
        draws = scores.bootstrap(codes, len(names), n_boot=int(n_boot), generator=stream)
    probabilities, n_probabilities = _probabilities(cells)
    confidence, curves = _confidence(cells)
    order = (*scores.LABEL_SCORES, "hierarchical_f1")
    values = dict.fromkeys(order, _NAN) | found[0] | confidence | probabilities | _rejection(cells)
    return AnnotationReport(
        table=_table(values, found[1] if len(found) > 1 else {}, draws),
        per_class=scores.per_class_table(names, codes[0], codes[1], codes[2] if len(codes) > 2 else None),
        confusion=_confusion(names, codes[0], codes[1]),
        per_group=_per_group(cells),
        curves=curves,
        settings={
            "key": key,
            "labels_key": labels_key,
            "seed": seed,
            "n_boot": int(n_boot),
            "n_cells": len(cells.truth),
            "n_unlabelled": cells.n_unlabelled,
            "n_without_label": int((cells.predicted == NONE).sum()),
            "n_outside": int((~np.isin(cells.truth.astype(str), cells.classes)).sum()) if cells.classes else 0,
            "n_probabilities": n_probabilities,
        },
    )
