"""Which cells to leave without a label: thresholds a user sets, and thresholds that anchors justify (Eq. 16, 17)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError, nearest
from cellsmith.math import assign, conformal
from cellsmith.model.grit.anchors import NONE, OUTSIDE
from cellsmith.model.grit.summary import confidence, entropy

__all__ = ["TARGETS", "Rejection", "usable_anchors", "with_anchors", "without_anchors"]

TARGETS = ("selective", "accepted_wrong", "coverage")
CLOSE = 0.5  # a runner-up with at least this share of the best score competes with it
ASSUMPTION = "exchangeable anchors"

Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rejection:
    """Which cells are rejected, why, and what that rests on.

    Parameters
    ----------
    rejected
        (n,) bool.
    reason
        (n,) text: "" for accepted cells and cells without any score, "novel" (no class is close), "ambiguous" (two or
        more compete).
    record
        Target, level, number of anchors, threshold and assumption, in a form that AnnData can hold.
    note
        What a user should be told, or "".
    """

    rejected: Mask
    reason: npt.NDArray[np.object_]
    record: dict[str, Any]
    note: str = ""


def _reasons(p: Floats, rejected: Mask) -> npt.NDArray[np.object_]:
    """Novel, or ambiguous where the runner-up is within reach of the best."""
    top = p.max(axis=1)
    ambiguous = (top - assign.margin(p) >= CLOSE * top) if p.shape[1] > 1 else np.zeros(len(p), dtype=bool)
    reason = np.where(ambiguous, "ambiguous", "novel").astype(object)
    reason[~rejected | np.isnan(top)] = ""
    return reason


def without_anchors(
    p: Floats, *, target: str = "confidence", threshold: float | None = None, quantile: float | None = None
) -> Rejection:
    """Eq. 16: reject below a threshold of the highest score, or above one of the entropy; no guarantee.

    Parameters
    ----------
    p
        Scores (n, C) as `summary.shares` returns them, which are those of ``.obs``.
    target
        "confidence" or "entropy" (divided by ln C).
    threshold
        Reject a confidence below it, or an entropy above it.
    quantile
        Instead: the share of cells to reject, in [0, 1].

    Raises
    ------
    SetupError
        If both or neither of the two are given, or the quantile is no share.
    """
    if (threshold is None) == (quantile is None):
        raise SetupError(f"threshold={threshold} and quantile={quantile}; expected exactly one of them.")
    if quantile is not None and not 0 <= quantile <= 1:
        raise SetupError(f"quantile={quantile}; expected the share of cells to reject, from 0 to 1.")
    # compared in float64, because a threshold that a user types must mean what it says
    sure = (-entropy(p) if target == "entropy" else confidence(p)).astype(np.float64)
    known = ~np.isnan(sure)
    if quantile is not None:
        ranked = np.sort(sure[known])
        cut = int(np.floor(quantile * ranked.size))
        limit = -np.inf if cut == 0 else np.inf if cut >= ranked.size else float(ranked[cut])
    else:
        limit = -float(threshold) if target == "entropy" else float(threshold)  # type: ignore[arg-type]
    rejected = ~(sure >= limit)
    record = {
        "target": target,
        "threshold": -limit if target == "entropy" else limit,
        "quantile": quantile,
        "m": 0,
        "assumption": "none",
        "guarantee": "none: the threshold was chosen, not derived from anchors",
        "share_rejected": float(rejected.mean()),
    }
    return Rejection(rejected, _reasons(p, rejected), record)


def usable_anchors(codes: Codes, spent: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Return positions of anchors that may calibrate: labelled, never clamped, and unseen by the temperature.

    Parameters
    ----------
    codes
        Columns of the labels (n,), NONE where there is none.
    spent
        Positions of cells that were clamped or fitted the temperature.

    Raises
    ------
    SetupError
        If there is none.
    """
    known = np.flatnonzero(codes != NONE)
    free = np.setdiff1d(known, spent)
    if not free.size:
        raise SetupError(
            f"Found {known.size} anchors, {known.size - free.size} of them clamped during the refinement, or spent on "
            "its temperature; expected some that were not, since these agree too well. Type anchors='split' or "
            "'calibrate' when you refine, or give threshold=... for a rejection without guarantee."
        )
    return free


def with_anchors(
    p: Floats,
    codes: Codes,
    anchors: npt.NDArray[np.intp],
    *,
    target: str = "selective",
    level: float = 0.05,
    delta: float = 0.1,
    groups: npt.NDArray[np.object_] | None = None,
) -> Rejection:
    """Eq. 17: reject so that a stated error rate holds, for anchors that are a random sample of the cells.

    Parameters
    ----------
    p
        Scores (n, C) as `summary.shares` returns them; a temperature must not have been fitted on these anchors.
    codes
        Columns of the labels (n,), OUTSIDE for "none of the classes".
    anchors
        Positions of the calibration cells; none of them clamped.
    target
        "selective": error rate among accepted cells; "accepted_wrong": share of all cells that are accepted and wrong;
        "coverage": the set of classes holds the true one.
    level
        The error rate, in (0, 1).
    delta
        Probability with which "selective" may fail.
    groups
        (n,) group of each cell; each is calibrated on its own anchors.

    Raises
    ------
    SetupError
        For an unknown target, and a level or delta outside (0, 1).
    """
    if target not in TARGETS:
        raise SetupError(f"target={target!r}. {nearest(target, TARGETS)}")
    groups = np.full(len(p), "all", dtype=object) if groups is None else groups
    names = [str(g) for g in dict.fromkeys(groups)]
    rejected, reason = np.ones(len(p), dtype=bool), np.full(len(p), "", dtype=object)
    limits, counts, short = [], [], []
    for name in dict.fromkeys(groups):
        mine = np.flatnonzero(groups == name)
        found = _threshold(p, codes, mine, anchors[groups[anchors] == name], target=target, level=level, delta=delta)
        rejected[mine], reason[mine] = _apply(p[mine], found, target)
        limits.append(found.value)
        counts.append(found.n_anchors)
        if not found.enough:
            short.append(f"{name}: {found.n_anchors} of {found.n_needed}")
        elif rejected[mine].all():
            short.append(f"{name}: no threshold passes")
    record = {
        "target": target,
        "level": float(level),
        "delta": float(delta) if target == "selective" else None,
        "m": int(sum(counts)),
        "threshold": float(limits[0]) if len(limits) == 1 else np.array(limits),
        "groups": None if len(names) == 1 else {"name": np.array(names, dtype=object), "m": np.array(counts)},
        "assumption": ASSUMPTION,
        "outside": int((codes[anchors] == OUTSIDE).sum()),
        "reason": "; ".join(short),
        "share_rejected": float(rejected.mean()),
    }
    note = ""
    if short:
        note = (
            f"At level {level} nothing can be accepted in {len(short)} of {len(names)} groups "
            f"({'; '.join(short[:5])}); all their cells are rejected. More anchors, a higher level or another "
            "target may help."
        )
    return Rejection(rejected, reason, record, note)


def _threshold(
    p: Floats, codes: Codes, cells: npt.NDArray[np.intp], anchors: npt.NDArray[np.intp], *, target: str, **rates: float
) -> conformal.Threshold:
    level = rates["level"]
    if target == "coverage":
        return conformal.coverage_threshold(conformal.nonconformity(p[anchors], codes[anchors]), level)
    sure = confidence(p[anchors])
    wrong = p[anchors].argmax(axis=1) != codes[anchors]
    if target == "accepted_wrong":
        return conformal.accepted_wrong_threshold(sure, wrong, level)
    # the order of the tests knows how many anchors there are, and nothing else of them
    order = conformal.fixed_sequences(confidence(p[cells]), len(anchors), level=level, delta=rates["delta"])
    return conformal.selective_threshold(sure, wrong, order, level=level, delta=rates["delta"])


def _apply(p: Floats, found: conformal.Threshold, target: str) -> tuple[Mask, npt.NDArray[np.object_]]:
    if target != "coverage":
        rejected = ~found.accepts(confidence(p))
        return rejected, _reasons(p, rejected)
    size = conformal.prediction_set(p, found).sum(axis=1)
    missing = np.isnan(p).any(axis=1)
    reason = np.where(size == 0, "novel", np.where(size > 1, "ambiguous", "")).astype(object)
    reason[missing] = ""
    return (size != 1) | missing, reason
