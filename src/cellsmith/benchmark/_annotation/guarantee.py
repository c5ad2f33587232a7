"""Whether rejection keeps what it promises: many draws of anchors, each judged on all other cells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellsmith._rng import Streams
from cellsmith.benchmark._annotation.cases import Case
from cellsmith.benchmark._annotation.peers import grit
from cellsmith.benchmark._annotation.transfer import FEW, few_cells, prepare
from cellsmith.benchmark._files import load
from cellsmith.benchmark._store import Store
from cellsmith.model.grit.anchors import NONE
from cellsmith.model.grit.rejection import TARGETS, with_anchors
from cellsmith.model.grit.summary import shares

__all__ = ["DELTA", "DRAWS", "LEVELS", "SIZES", "guarantee", "judge_draw", "oracle_share"]

DRAWS = 500
SIZES = (50, 100, 300)
LEVELS = (0.05, 0.1)
DELTA = 0.1


@dataclass(frozen=True)
class Draw:
    """What one draw of anchors led to, measured on the other cells.

    Parameters
    ----------
    accepted
        Share of cells that are accepted (coverage: whose set holds one class).
    value
        "coverage": share of cells whose set holds the truth. "selective": share of wrong labels among the accepted
        cells, 0 where there are none. "accepted_wrong": share of all cells that are accepted and wrong.
    """

    accepted: float
    value: float


def judge_draw(p: np.ndarray, truth: np.ndarray, anchors: np.ndarray, *, target: str, level: float) -> Draw:
    """Calibrate on anchors and measure on all other cells.

    Parameters
    ----------
    p
        Refined scores (n, C), rows sum to one.
    truth
        Columns (n,).
    anchors
        Positions of the anchors.
    target, level
        As in :func:`cellsmith.tl.reject`.
    """
    codes = np.full(len(p), NONE)
    codes[anchors] = truth[anchors]
    found = with_anchors(p, codes, anchors, target=target, level=level, delta=DELTA)
    rest = np.ones(len(p), dtype=bool)
    rest[anchors] = False
    accepted = ~found.rejected[rest]
    if target == "coverage":
        covered = 1.0 - p[np.arange(len(p)), truth] <= found.record["threshold"]
        return Draw(float(accepted.mean()), float(covered[rest].mean()))
    wrong = accepted & (p.argmax(axis=1) != truth)[rest]
    below = max(1, int(accepted.sum())) if target == "selective" else accepted.size
    return Draw(float(accepted.mean()), float(wrong.sum() / below))


def oracle_share(p: np.ndarray, truth: np.ndarray, *, target: str, level: float) -> float:
    """Return the share accepted at the lowest threshold that keeps the promise, when all labels are known.

    Of "selective" and "accepted_wrong": among the distinct confidences, the longest list of cells from the top whose
    error rate (or number of errors over all cells) is at most `level`.
    """
    confidence, wrong = p.max(axis=1), p.argmax(axis=1) != truth
    order = np.argsort(-confidence, kind="stable")
    errors = np.cumsum(wrong[order])
    last = np.flatnonzero(np.r_[np.diff(confidence[order]) != 0, True])
    risk = errors[last] / (last + 1 if target == "selective" else len(p))
    kept = last[risk <= level]
    return float((kept.max() + 1) / len(p)) if kept.size else 0.0


def weak_case(directory: Path) -> Case:
    """Return `FEW` as a classifier of 10 cells a type scores it, seed 0."""
    return few_cells(prepare(load(directory, FEW), file=FEW), 0)


def guarantee(case: Case, *, store: Store, draws: int = DRAWS) -> None:
    """Draw anchors at random, again and again, and see how often each promise is kept.

    Parameters
    ----------
    case
        Cells with scores of a weak classifier.
    store
        Gets mean and standard error of the measured value over the draws, the share of draws in which "selective" was
        violated, the mean share accepted and that of the oracle threshold.
    draws
        Number of draws.
    """
    refined = None
    for level in LEVELS:
        for size in SIZES:
            for target in TARGETS:
                name = f"{target}, level {level:g}"
                task = f"{size} anchors"
                if store.has(task=task, file=case.file, seed=case.seed, variant=name):
                    continue
                if refined is None:
                    refined = shares(grit(case).scores, "prob")
                rng = Streams(case.seed).numpy("anchors", size)
                found = [
                    judge_draw(
                        refined,
                        case.truth,
                        rng.choice(len(refined), size, replace=False),
                        target=target,
                        level=level,
                    )
                    for _ in range(draws)
                ]
                store.record(task, case, name, _summary(found, target=target, level=level, n=draws))
                if target != "coverage":
                    oracle = oracle_share(refined, case.truth, target=target, level=level)
                    store.record(task, case, f"{name}, oracle", {"accepted": oracle})


def _summary(found: list[Draw], *, target: str, level: float, n: int) -> dict[str, float]:
    values = np.array([draw.value for draw in found])
    out = {"value": values.mean(), "se": values.std(ddof=1) / np.sqrt(n), "accepted": 0.0, "draws": float(n)}
    out["accepted"] = np.mean([draw.accepted for draw in found])
    if target == "selective":
        out["violated"] = (values > level).mean()
    return {name: float(value) for name, value in out.items()}
