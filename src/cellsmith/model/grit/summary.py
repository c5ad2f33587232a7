"""What a refinement did, in numbers: flow of labels, guards, edges between labels, one row a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellsmith.math import assign, conformal
from cellsmith.math.graph import components
from cellsmith.model.grit import equations as eq
from cellsmith.model.grit.solving import Refined

__all__ = ["batch_block", "cross_edges", "flow", "graph_block", "lost_classes", "output_scores", "smoothing_guard"]
__all__ += ["confidence", "entropy", "shares", "solve_block", "sureness"]

Floats = npt.NDArray[np.floating[Any]]
Codes = npt.NDArray[np.int64]
BELOW_ZERO = -1e-3  # below it a raw score is no rounding of zero


def output_scores(p: Floats, *, space: str, laplacian: str, renormalise: bool) -> Floats:
    """Return refined scores (n, C) as they are handed out, float32.

    Rows of probabilities sum to one after "comb" and "rw" by themselves; after "sym", and after class factors, they
    are divided by their sum. Independent probabilities and raw scores stay as they were solved.
    """
    if renormalise and space not in ("ovr", "raw"):
        p = eq.normalise_rows(p)
    return p.astype(np.float32)


def shares(p: Floats, space: str, temperature: float | None = None) -> Floats:
    """Return refined scores as confidences, rejections and reports read them (Eq. 15).

    Rows sum to one. Independent probabilities sum to at most one: what is missing belongs to none of the classes, so
    that "all small" stays small. Raw scores below zero go through a softmax.

    Parameters
    ----------
    p
        Refined scores (n, C) as they are handed out.
    space
        What they are.
    temperature
        T of Eq. 15, or None.

    Returns
    -------
    (n, C); a row with NaN stays NaN.
    """
    known = p[~np.isnan(p).any(axis=1)]
    if space == "ovr":
        rows = p / np.maximum(p.sum(axis=1, keepdims=True), 1)
    elif space == "raw" and known.min(initial=0.0) < BELOW_ZERO:
        rows = eq.to_scores(p, "logit")
    else:
        rows = eq.normalise_rows(p)
    if temperature is None:
        return rows
    if space != "ovr":
        return conformal.apply_temperature(rows, temperature)
    return conformal.apply_temperature(np.c_[rows, np.maximum(1 - rows.sum(axis=1), 0)], temperature)[:, :-1]


def confidence(rows: Floats) -> npt.NDArray[np.float32]:
    """Return the largest score of each row of `shares`, (n,): the number in ``.obs``, by which cells are rejected."""
    return np.asarray(rows.max(axis=1).astype(np.float32))


def entropy(rows: Floats) -> npt.NDArray[np.float32]:
    """Return the entropy of each row of `shares`, made to sum to one, divided by ln C; (n,)."""
    return np.asarray(assign.entropy(eq.normalise_rows(rows)).astype(np.float32))


def sureness(rows: Floats) -> dict[str, Floats]:
    """Return confidence, margin and entropy (n,) of rows of `shares`."""
    return {"confidence": confidence(rows), "margin": assign.margin(rows).astype(np.float32), "entropy": entropy(rows)}


def flow(raw: Codes, refined: Codes, n_classes: int) -> npt.NDArray[np.int64]:
    """Count cells by raw (rows) and refined (columns) class, (C, C); cells that lack either are left out."""
    known = (raw >= 0) & (refined >= 0)
    pairs = raw[known] * n_classes + refined[known]
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def lost_classes(raw: Codes, refined: Codes, n_classes: int) -> npt.NDArray[np.intp]:
    """Return the classes that some cell had before and none has after."""
    before, after = (np.bincount(x[x >= 0], minlength=n_classes) for x in (raw, refined))
    return np.flatnonzero((before > 0) & (after == 0))


def cross_edges(weights: Any, labels: Codes) -> float:
    """Return the share of edge weight that joins cells of different labels; cells without one are left out."""
    entries = weights.tocoo()
    a, b = labels[entries.row], labels[entries.col]
    known = (a >= 0) & (b >= 0)
    total = float(entries.data[known].sum(dtype=np.float64))
    return float(entries.data[known & (a != b)].sum(dtype=np.float64)) / total if total else 0.0


def smoothing_guard(before: Codes, after: Codes, lost: list[str]) -> tuple[dict[str, float], str]:
    """Return the effective numbers of classes before and after, and a warning or "" (Eq. 14)."""
    found = {"raw": eq.effective_classes(before), "refined": eq.effective_classes(after)}
    parts = []
    if lost:
        words = "1 class no longer has" if len(lost) == 1 else f"{len(lost)} classes no longer have"
        parts.append(f"{words} any cell ({', '.join(lost[:8])})")
    if found["refined"] < eq.EFFECTIVE_SHARE * found["raw"]:
        change = f"{found['raw']:.2f} to {found['refined']:.2f}"
        parts.append(f"the effective number of classes among the labels fell from {change}")
    advice = "Over-smoothing: {}. Lower smoothness_weight, type protect=0.5, or look at the path of the model."
    return found, advice.format("; ".join(parts)) if parts else ""


def graph_block(weights: Any, *, key: str, fingerprint: str, directed: bool) -> dict[str, Any]:
    """Return facts about the graph."""
    degree = np.asarray(weights.sum(axis=1, dtype=np.float64)).ravel()
    return {
        "key": key,
        "fingerprint": fingerprint,
        "nnz": int(weights.nnz),
        "mean_degree": float(degree.mean()),
        "isolated": int((degree == 0).sum()),
        "components": int(components(weights).max(initial=-1)) + 1,
        "directed": directed,
    }


def solve_block(refined: Refined, tol: float) -> dict[str, Any]:
    """Return facts about the solve and its certificate."""
    return {
        "solver": refined.solver,
        "iterations": refined.iterations,
        "tol": float(tol),
        "residual": float(refined.residual.max(initial=0.0)),
        "bound": refined.bound,
        "bound_max": float(refined.bound.max(initial=0.0)),
        "error_norm_max": float(refined.error_norm.max(initial=0.0)),
        "uncertified": refined.n_uncertified,
        "condition": float(refined.system.condition),
        "active_classes": int(refined.active.sum()),
        "protect_rounds": refined.rounds,
    }


def batch_block(
    batch: Codes, names: Any, *, raw: Codes, refined: Codes, certified: npt.NDArray[np.bool_], n_classes: int
) -> dict[str, Any]:
    """Return one entry a batch: cells, changed and uncertified ones, and the flow (batches, C, C)."""
    rows = [np.flatnonzero(batch == b) for b in range(len(names))]
    return {
        "names": np.array([str(n) for n in names], dtype=object),
        "n_cells": np.array([len(r) for r in rows]),
        "changed": np.array([int(((raw[r] != refined[r]) & (raw[r] >= 0)).sum()) for r in rows]),
        "uncertified": np.array([int((~certified[r] & (refined[r] >= 0)).sum()) for r in rows]),
        "flow": np.stack([flow(raw[r], refined[r], n_classes) for r in rows]),
    }
