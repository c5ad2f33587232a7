"""What the numbers are judged by: one row of the quality table each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["OTHER_FILES", "QUALITY", "SPEED_BARS", "Bar", "SpeedBar", "mark"]

Values = Mapping[str, float]
Check = Callable[[float, float, float], bool]
"""(value, control, peer) -> whether the bar is met."""


@dataclass(frozen=True)
class Bar:
    """One judged metric.

    Parameters
    ----------
    metric
        Name in the table of results.
    title
        What people read.
    must, stretch
        The bars, in words.
    meets, exceeds
        The bars as functions of value, control and peer (the scVI posterior predictive of the same cuts).
    """

    metric: str
    title: str
    must: str
    meets: Check
    stretch: str = ""
    exceeds: Check | None = None


@dataclass(frozen=True)
class SpeedBar:
    """One judged quantity of speed: `must` and `stretch` are upper bounds, None where there is none."""

    quantity: str
    title: str
    unit: str
    must: float | None
    stretch: float | None = None


def _below(bound: float) -> Check:
    return lambda v, c, p: v <= bound


def _above(bound: float) -> Check:
    return lambda v, c, p: v >= bound


def _within(low: float, high: float) -> Check:
    return lambda v, c, p: low <= v <= high


def mark(bar: Bar, value: float, *, control: float, peer: float) -> str:
    """Return "stretch", "pass", "FAIL" or "-" (not available).

    Parameters
    ----------
    bar
        The bar.
    value, control, peer
        Numbers of the generator, of the spare real cells, and of the peer.
    """
    if not np.isfinite(value):
        return "-"
    if not bar.meets(value, control, peer):
        return "FAIL"
    return "stretch" if bar.exceeds is not None and bar.exceeds(value, control, peer) else "pass"


QUALITY: tuple[Bar, ...] = (
    Bar("valid_counts", "integer, non-negative, no empty cell", "100 %", _above(1.0)),
    Bar("exact_composition", "number and composition as asked", "100 %", _above(1.0)),
    Bar(
        "w2",
        "W2",
        "<= 1.20 x control, <= 1.02 x peer",
        lambda v, c, p: v <= 1.20 * c and v <= 1.02 * p,
        "<= 1.12 x control",
        lambda v, c, p: v <= 1.12 * c,
    ),
    Bar(
        "w2_per_type",
        "W2 per type",
        "<= 1.10 x control",
        lambda v, c, p: v <= 1.10 * c,
        "<= 1.03 x control",
        lambda v, c, p: v <= 1.03 * c,
    ),
    Bar("mmd", "MMD", "<= .006", _below(0.006), "<= .003", _below(0.003)),
    Bar(
        "rf_auc_pca",
        "forest AUC, 30 PCs",
        "<= .62 and <= peer",
        lambda v, c, p: v <= 0.62 and v <= p,
        "<= .55",
        _below(0.55),
    ),
    Bar(
        "rf_auc_genes",
        "forest AUC, 250 genes",
        "<= .64 and <= peer - .15",
        lambda v, c, p: v <= 0.64 and v <= p - 0.15,
        "<= .56",
        _below(0.56),
    ),
    Bar("one_nn", "1NN", "<= .63", _below(0.63), "<= .58", _below(0.58)),
    Bar("ilisi", "iLISI", ">= .92", _above(0.92), ">= .96", _above(0.96)),
    Bar("gg_correlation", "gene-gene r", ">= .975", _above(0.975), ">= .981", _above(0.981)),
    Bar("coverage", "coverage", ">= .78", _above(0.78), ">= .87", _above(0.87)),
    Bar("precision", "precision", ">= .74", _above(0.74), ">= .82", _above(0.82)),
    Bar("lfc_slope", "LFC slope", ".93 to 1.07", _within(0.93, 1.07), ".97 to 1.03", _within(0.97, 1.03)),
    Bar("de_overlap", "DE overlap", ">= .80", _above(0.80), ">= .83", _above(0.83)),
    Bar("fidelity_gap", "distance of label fidelity from real", "<= .05", _below(0.05), "<= .02", _below(0.02)),
    Bar("tstr_ratio", "TSTR / TRTR", ">= .96", _above(0.96), ">= control", lambda v, c, p: v >= c),
    Bar("zero_fraction_mae", "zero-fraction MAE", "<= .015", _below(0.015), "<= .010", _below(0.010)),
    Bar("ks_library", "KS library", "<= .07", _below(0.07), "<= .05", _below(0.05)),
    Bar("ks_genes_detected", "KS genes detected", "<= .07", _below(0.07), "<= .05", _below(0.05)),
    Bar("nearest_share", "share nearer to train", ".44 to .56", _within(0.44, 0.56), ".47 to .53", _within(0.47, 0.53)),
    Bar("exact_copies", "exact copies", "0", _below(0.0)),
    Bar("membership_auc", "membership AUC", "<= .55", _below(0.55), "<= .53", _below(0.53)),
)
"""Bars of the main data set, judged on medians over seeds."""

OTHER_FILES: tuple[Bar, ...] = (
    Bar("rf_auc_pca", "forest AUC, 30 PCs", "<= peer + .05", lambda v, c, p: v <= p + 0.05),
    Bar("rf_auc_genes", "forest AUC, 250 genes", "<= peer", lambda v, c, p: v <= p),
    Bar("w2", "W2", "<= 1.05 x peer", lambda v, c, p: v <= 1.05 * p),
    Bar("lfc_slope", "LFC slope", ".90 to 1.10", _within(0.90, 1.10)),
    Bar("ks_library", "KS library", "<= .10", _below(0.10)),
    Bar("tstr_ratio", "TSTR / TRTR", ">= .93", _above(0.93)),
)
"""Bars of the other files, judged against peers of the same cut."""

SPEED_BARS: tuple[SpeedBar, ...] = (
    SpeedBar("step_ratio", "one step of `autoencode` over one of scVI, batches in memory", "x", 0.45, 0.30),
    SpeedBar("step_ratio_with_loader", "the same, loader included", "x", 0.60),
    SpeedBar("likelihood_ratio", "likelihood forward and backward over scvi.distributions, 90 % zeros", "x", 0.35),
    SpeedBar("train_cpu_s", "whole training, one thread", "CPU-s", 120.0),
    SpeedBar("train_ratio", "whole training over scVI's 150 epochs, same run", "x", 1.5, 1.0),
    SpeedBar("generate_10000_cpu_s", "10,000 cells, 20 steps, decoded to CSR", "CPU-s", 5.0),
    SpeedBar("from_scvi_ratio", "training on top of scVI over native training", "x", 0.7),
    SpeedBar("memory_train_mib", "peak memory that a training adds", "MiB", None),
    SpeedBar("memory_generate_mib", "further peak for 10,000 generated cells", "MiB", None),
)
"""Bars of speed; ratios are of CPU time, alternating in one process on one thread."""
