"""The stages of SCAGC's training as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cellsmith.model._stage import Optim, Stage
from cellsmith.model.scagc.equations import FINAL_NOISE

__all__ = ["fixed_stages", "learned_stages", "noisy_share", "number_of_epochs"]

# Training may stop early only once the noise is below this.
QUIET_NOISE = 0.3
TRAINED = ("encoder", "hop_", "decoder")
INDEX, EXPORT = Stage(name="index", solve="_index"), Stage(name="export", solve="_export")
# Weights go on changing with the graph, so that an early iterate is never better for its loss alone.
PLAN = Optim(lr=1e-3, weight_decay=1e-2, clip=5.0, schedule="constant", patience=None, keep_best=False, carry=True)
STOPPING = replace(PLAN, patience=20, keep_best=True)
COMMON: dict[str, Any] = {"batch_size": 512, "between": "next_epoch"}


def number_of_epochs(n_cells: int) -> int:
    """Return E: 100 passes up to 20,000 cells, fewer beyond, at least 40."""
    return min(100, max(40, round(100 * 20_000 / n_cells)))


def noisy_share(noise_scale: float) -> float:
    """Return the share of the noisy epochs that pass before the noise falls below .3 (S4)."""
    if noise_scale <= QUIET_NOISE:
        return 0.0
    return math.acos(2 * (QUIET_NOISE - FINAL_NOISE) / (noise_scale - FINAL_NOISE) - 1) / math.pi


def _warmup(n_epochs: int, weights: Mapping[str, float]) -> Stage:
    """Return the stage that fits counts alone, on the first graph."""
    return Stage(
        name="warmup",
        max_epochs=max(1, round(0.2 * n_epochs)),
        trains=TRAINED,
        loss="loss_fixed",
        weights={"first": weights["first"]},
        refresh="_start_warmup",
        plan=PLAN,
        **COMMON,
    )


def learned_stages(n_epochs: int, weights: Mapping[str, float], *, noise_scale: float, head: bool) -> tuple[Stage, ...]:
    """Return ``index``, ``warmup``, ``graph``, ``anneal``, ``settle``, ``export``; with a head ``cluster``, ``assign``.

    Parameters
    ----------
    n_epochs
        E.
    weights
        Of the terms "first", "graph", "contrast" and "cluster".
    noise_scale
        Where the noise begins; it decides where "graph" ends and "anneal", which may stop early, begins.
    head
        Whether there is a cluster head.
    """
    warmup = _warmup(n_epochs, weights)
    noisy = max(2, round(0.6 * n_epochs))
    loud = min(noisy - 1, max(1, round(noisy * noisy_share(noise_scale))))
    both = {name: weights[name] for name in ("first", "graph", "contrast")}
    learned: dict[str, Any] = {"trains": (*TRAINED, "score"), "loss": "loss_learned", **COMMON}
    stages = (
        INDEX,
        warmup,
        Stage(name="graph", max_epochs=loud, weights=both, refresh="_start_graph", plan=PLAN, **learned),
        Stage(name="anneal", max_epochs=noisy - loud, weights=both, refresh="_start_anneal", plan=STOPPING, **learned),
        Stage(
            name="settle",
            max_epochs=warmup.max_epochs,
            weights={**both, "contrast": 0.0},
            refresh="_start_settle",
            plan=replace(PLAN, schedule="cosine"),
            **learned,
        ),
        EXPORT,
    )
    if not head:
        return stages
    sharpen = Stage(
        name="cluster",
        max_epochs=100,
        weights={**both, "cluster": weights["cluster"]},
        refresh="_start_cluster",
        plan=replace(PLAN, lr=5e-4, carry=False),
        **{**learned, "trains": (*TRAINED, "score", "centers")},
    )
    return *stages, sharpen, Stage(name="assign", solve="_assign")


def fixed_stages(n_epochs: int, weights: Mapping[str, float]) -> tuple[Stage, ...]:
    """Return ``index``, ``warmup``, ``graph``, ``export`` of the controls, whose graph does not change.

    Parameters
    ----------
    n_epochs
        E.
    weights
        Of the terms "first" and "graph", the latter 0 without a graph.
    """
    warmup = _warmup(n_epochs, weights)
    last = Stage(
        name="graph",
        max_epochs=n_epochs - warmup.max_epochs,
        trains=(*TRAINED, "score") if weights["graph"] else TRAINED,
        loss="loss_fixed",
        weights={name: weights[name] for name in ("first", "graph")},
        refresh="_start_fixed",
        plan=STOPPING,
        **COMMON,
    )
    return INDEX, warmup, last, EXPORT
