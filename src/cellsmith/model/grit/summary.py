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
__all__ += ["shares", "solve_block", "sureness"]

Floats = npt.NDArray[np.floating[Any]]
Codes = npt.NDArray[np.int64]


def output_scores(p: Floats, *, space: str, laplacian: str, renormalise: bool) -> Floats:
    """Return refined scores (n, C) as they are handed out, float32.

    Rows of probabilities sum to one after "comb" and "rw" by themselves; after "sym", and after class factors, they
    are divided by their sum. Independent probabilities and raw scores stay as they were solved.
    """
    if renormalise and space not in ("ovr", "raw"):
        p = eq.normalise_rows(p)
    return p.astype(np.float32)


def shares(p: Floats, space: str) -> Floats:
    """Return rows (n, C) that sum to one; raw scores below zero go through a softmax, for this purpose only."""
    if space == "raw" and np.nanmin(p, initial=0.0) < 0:
        return eq.to_scores(p, "logit")
    return eq.normalise_rows(p)


def sureness(p: Floats, *, space: str, temperature: float | None) -> dict[str, Floats]:
    """Return confidence, margin and entropy (n,), of rows that sum to one, calibrated where there is a temperature."""
    rows = shares(p, space)
    if temperature is not None:
        rows = conformal.apply_temperature(rows, temperature)
    values = {"confidence": rows.max(axis=1), "margin": assign.margin(rows), "entropy": assign.entropy(rows)}
    return {name: value.astype(np.float32) for name, value in values.items()}


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
        parts.append(f"{len(lost)} classes no longer have any cell ({', '.join(lost[:8])})")
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
