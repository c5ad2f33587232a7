"""What the numbers are judged by: one row of the acceptance table each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cellsmith.benchmark._annotation.bars import Bar, Measured
from cellsmith.benchmark._annotation.results import number, points
from cellsmith.benchmark._distillation.cases import EMBEDDED, FILES
from cellsmith.benchmark._distillation.peers import FULL
from cellsmith.benchmark._distillation.results import Gap, Results
from cellsmith.benchmark._distillation.transfer import CONDITIONS, POOL, TECHNOLOGIES, WITHIN

__all__ = ["BARS", "METACELLS", "NOT_RUN", "SCDD", "SPEED_BARS", "TRANSFER_BARS"]

SCDD, READERS = "scdd", "scdd_readers"
METACELLS = ("metacell", "metacell_mean_log")
BUDGETS = (1, 5, 10)
NOT_RUN = "not run on two cuts"
SLACK = 1e-9
OTHERS = tuple(f for f in FILES if f != EMBEDDED)


@dataclass(frozen=True)
class Wanted:
    """What one paired difference has to reach: its mean, and whether its interval has to lie above 0."""

    mean: float = -np.inf
    above_zero: bool = False

    def met(self, gap: Gap) -> bool:
        """Tell whether a difference reaches it."""
        return gap.mean >= self.mean - SLACK and (not self.above_zero or gap.low > 0)


Cells = dict[tuple[str, int], Wanted]


def _against(
    baseline: str, must: Cells, stretch: Cells, *, metric: str = "accuracy", model: str = "mean", ours: str = SCDD
) -> Callable[[Results], Measured | None]:
    def measure(results: Results) -> Measured | None:
        gaps = {}
        for file, budget in must:
            gap = results.gap(file, ours, baseline, budget=budget, metric=metric, model=model)
            if gap.runs > 1:
                gaps[file, budget] = gap
        if not gaps:
            return None
        parts = [f"{f} {b}: {points(g.mean)} [{points(g.low)}, {points(g.high)}]" for (f, b), g in gaps.items()]
        meets = all(must[place].met(gap) for place, gap in gaps.items())
        exceeds = all(stretch[place].met(gap) for place, gap in gaps.items() if place in stretch)
        left = len(must) - len(gaps)
        text = "; ".join(parts) + (f"; {left} of {len(must)} {NOT_RUN}" if left else "")
        return Measured(text, meets, exceeds if stretch and not left else None)

    return measure


def _reaches(ours: str, must: Sequence[float], stretch: Sequence[float] | None) -> Callable[[Results], Measured | None]:
    def measure(results: Results) -> Measured | None:
        found = {b: results.mean(EMBEDDED, ours, budget=b, model="lr") for b in BUDGETS}
        if not all(np.isfinite(list(found.values()))):
            return None
        text = "; ".join(f"{b}: {number(value)}" for b, value in found.items())
        met = [
            all(found[b] >= low - SLACK for b, low in zip(BUDGETS, lows, strict=True))
            for lows in (must, stretch or must)
        ]
        return Measured(text, met[0], met[1] if stretch else None)

    return measure


def _all(wanted: Wanted, files: tuple[str, ...] = FILES, budgets: tuple[int, ...] = BUDGETS) -> Cells:
    return {(f, b): wanted for f in files for b in budgets}


def _on_embedded(*means: float) -> Cells:
    return {(EMBEDDED, b): Wanted(mean) for b, mean in zip(BUDGETS, means, strict=True)}


ABOVE = Wanted(above_zero=True)
_SUM = _all(Wanted(-0.01), (EMBEDDED,)) | _all(ABOVE, OTHERS)

BARS: tuple[Bar, ...] = (
    Bar(
        "scDD minus metacell (sum), mean of three",
        f">= -1.0 on {EMBEDDED}; interval above 0 on the others",
        "-",
        _against("metacell", _SUM, {}),
    ),
    Bar(
        "scDD minus metacell_mean_log, mean of three",
        ">= -1.0 everywhere",
        "interval above 0 at 1 a class",
        _against("metacell_mean_log", _all(Wanted(-0.01)), _all(ABOVE, budgets=(1,))),
    ),
    Bar(
        "optimised scDD minus metacell_mean_log, mean of three",
        ">= -1.0 everywhere",
        "interval above 0 at 1 a class",
        _against("metacell_mean_log", _all(Wanted(-0.01)), _all(ABOVE, budgets=(1,)), ours=READERS),
    ),
    Bar(
        "optimised scDD minus its own step 0, mean of three",
        ">= -0.5 everywhere",
        "interval above 0",
        _against(SCDD, _all(Wanted(-0.005)), _all(ABOVE), ours=READERS),
    ),
    *(
        Bar(
            f"forest: {words} minus metacell_mean_log",
            "reported; >= -5, or named in the guide",
            ">= 0",
            _against("metacell_mean_log", _all(Wanted(-0.05)), _all(Wanted(0.0)), model="forest", ours=ours),
        )
        for words, ours in (("scDD", SCDD), ("optimised scDD", READERS))
    ),
    Bar(
        "1-NN at 10 a class: optimised scDD minus metacell_mean_log",
        ">= -2",
        ">= 0",
        _against(
            "metacell_mean_log",
            _all(Wanted(-0.02), budgets=(10,)),
            _all(Wanted(0.0), budgets=(10,)),
            model="knn1",
            ours=READERS,
        ),
    ),
    Bar(
        "scDD read by its integer counts minus before rounding, mean of three",
        ">= -1.0 everywhere",
        ">= -0.5",
        _against(SCDD, _all(Wanted(-0.01)), _all(Wanted(-0.005)), ours="scdd_counts"),
    ),
    Bar(
        "scDD at the depth of one cell minus metacell_thin, mean of three",
        ">= -2.0 everywhere",
        ">= 0",
        _against("metacell_thin", _all(Wanted(-0.02)), _all(Wanted(0.0)), ours="scdd_thin"),
    ),
    Bar(
        "accuracy of LR after scDD",
        f"{EMBEDDED}: .77 / .79 / .80",
        ".81 / .835 / .84",
        _reaches(SCDD, (0.77, 0.79, 0.80), (0.81, 0.835, 0.84)),
    ),
    Bar(
        "accuracy of LR after codes alone",
        f"{EMBEDDED}: .77 at 1, .80 at 10",
        "-",
        _reaches("scdd_codes_only", (0.77, 0.0, 0.80), None),
    ),
    Bar(
        "scDD minus random, LR",
        f"{EMBEDDED}: +8 / +3 / +1",
        "+14 / +7 / +4",
        _against("random", _on_embedded(0.08, 0.03, 0.01), _on_embedded(0.14, 0.07, 0.04), model="lr"),
    ),
    Bar(
        "scDD minus herding, LR",
        f"{EMBEDDED}: +2 / 0 / 0",
        "+5 / +4 / +3",
        _against("herding", _on_embedded(0.02, 0.0, 0.0), _on_embedded(0.05, 0.04, 0.03), model="lr"),
    ),
    Bar(
        "scDD minus random, macro-F1, mean of three",
        "pbmc_facs, kang_ifnb: > 0",
        "> +5",
        _against(
            "random",
            _all(Wanted(SLACK), ("pbmc_facs", "kang_ifnb")),
            _all(Wanted(0.05), ("pbmc_facs", "kang_ifnb")),
            metric="macro_f1",
        ),
    ),
    Bar(
        "scDD minus metacell_mean_log, recall of rare classes",
        ">= -2",
        "> 0",
        _against(
            "metacell_mean_log",
            _all(Wanted(-0.02), (EMBEDDED, "kang_ifnb")),
            _all(Wanted(SLACK), (EMBEDDED, "kang_ifnb")),
            metric="rare_recall",
        ),
    ),
    Bar(
        "scDD minus random, recall of rare classes",
        ">= 0",
        "-",
        _against("random", _all(Wanted(0.0), (EMBEDDED, "kang_ifnb")), {}, metric="rare_recall"),
    ),
)
"""The rows of the acceptance table, in its order. Differences are paired over cuts, in points."""


# --- transfer -----------------------------------------------------------------------------------------------------


def _tested(results: Results, file: str) -> list[str]:
    """Return the transfers of a file that were run, by name."""
    return sorted({f for f in results.rows["file"] if f.startswith(f"{file}, tested on ")})


def _retained(must: float, stretch: float) -> Callable[[Results], Measured | None]:
    """Compare ten a class of every batch with all cells, each technology by itself."""

    def measure(results: Results) -> Measured | None:
        parts, ratios = [], []
        for name in _tested(results, TECHNOLOGIES):
            ours, full = (results.values(name, m, budget=10) for m in (WITHIN, FULL))
            ratio = (ours / full).dropna()
            if len(ratio) > 1:
                ratios.append(float(ratio.mean()))
                parts.append(f"{name.rsplit(' ', 1)[1]}: {number(ours.mean())} of {number(full.mean())}")
        if not ratios:
            return None
        text = "; ".join(f"{part} = {ratio:.3f}" for part, ratio in zip(parts, ratios, strict=True))
        return Measured(text, min(ratios) >= must - SLACK, min(ratios) >= stretch - SLACK)

    return measure


def _conditions(results: Results) -> Measured | None:
    """Compare with the better of the two metacells, each way and budget by itself, and with all cells."""
    parts, meets, exceeds = [], [], []
    for name in _tested(results, CONDITIONS):
        for budget in results.budgets(name):
            gaps = [results.gap(name, SCDD, m, budget=budget) for m in METACELLS]
            worst, full = min(gaps, key=lambda g: g.mean), results.gap(name, SCDD, FULL, budget=budget)
            if worst.runs > 1:
                ours = results.mean(name, SCDD, budget=budget)
                parts.append(
                    f"{name.rsplit(' ', 1)[1]} {budget}: {number(ours)}, {points(worst.mean)} to the better metacell, "
                    f"{points(full.mean)} to all cells"
                )
                meets.append(worst.mean >= -0.02 - SLACK)
                exceeds.append(full.mean > 0)
    return Measured("; ".join(parts), all(meets), all(exceeds)) if parts else None


def _pool(ours: str) -> Callable[[Results], Measured | None]:
    """Compare with metacells by what was not in the pool: the mean of MLP and forest."""

    def measure(results: Results) -> Measured | None:
        parts, found = [], []
        for budget in results.budgets(EMBEDDED):
            gaps = [results.gap(EMBEDDED, ours, METACELLS[0], budget=budget, model=m) for m in ("mlp", "forest")]
            if min(g.runs for g in gaps) > 1:
                found.append(float(np.mean([g.mean for g in gaps])))
                each = ", ".join(f"{m} {points(g.mean)}" for m, g in zip(("MLP", "forest"), gaps, strict=True))
                parts.append(f"{budget}: {points(found[-1])} ({each})")
        if not found:
            return None
        return Measured("; ".join(parts), min(found) >= -0.015 - SLACK, min(found) >= -SLACK)

    return measure


TRANSFER_BARS: tuple[Bar, ...] = (
    Bar(
        "within batch, 10 a class: learnt from two technologies, tested on the third, of all cells; mean of three",
        ">= .95 each",
        ">= .98",
        _retained(0.95, 0.98),
    ),
    Bar(
        "scDD from one condition to the other, mean of three",
        ">= metacell - 2",
        "> all cells",
        _conditions,
    ),
    Bar("matching by a pool without MLPs minus metacell, MLP and forest", ">= -1.5", ">= 0", _pool(POOL[0])),
    Bar("the same, its last iterate", ">= -1.5", ">= 0", _pool(POOL[1])),
)
"""Sets that serve where they were not made."""


# --- seconds and memory -------------------------------------------------------------------------------------------


def _within(
    quantities: Mapping[str, str], *, most: float | None = None, least: float | None = None
) -> Callable[[Mapping[str, float]], Measured | None]:
    def measure(values: Mapping[str, float]) -> Measured | None:
        if not set(quantities) <= set(values):
            return None
        text = "; ".join(f"{words}{number(values[q])}" for q, words in quantities.items())
        low, high = (-np.inf if least is None else least), (np.inf if most is None else most)
        return Measured(text, all(low <= values[q] <= high for q in quantities))

    return measure


SIZES = (12_261, 100_000)
SPEED_BARS: tuple[Bar, ...] = (
    Bar("an epoch of the autoencoder over one of scVI", "<= 1.3", "-", _within({"epoch_over_scvi": ""}, most=1.3)),
    Bar(
        "a step on the codes with ten calls of the generator over one with a single call",
        ">= 4",
        "-",
        _within({"ten_over_one, codes only": "readers: ", "ten_over_one, matching": "matching: "}, least=4.0),
    ),
    Bar(
        "a step on the codes on 100,000 cells over one on 12,261",
        "<= 1.1",
        "-",
        _within({"many_over_few, readers": "readers: ", "many_over_few, matching": "matching: "}, most=1.1),
    ),
    Bar(
        "metacells over scikit-learn's k-means of each class and scanpy's sums",
        "<= 1.2",
        "-",
        _within({"metacell_over_plain": ""}, most=1.2),
    ),
    Bar(
        "memory that metacells add over that of the counts",
        "<= 2",
        "-",
        _within({f"metacells_over_csr, {n} cells": f"{n} cells: " for n in SIZES}, most=2.0),
    ),
    Bar(
        "a plain loop over herding and k-center, 500 of 12,261 cells",
        ">= 20",
        "-",
        _within({"loop_over_herding": "herding: ", "loop_over_kcenter": "k-center: "}, least=20.0),
    ),
    Bar(
        "training and distilling ten a class, CPU seconds",
        "<= 180",
        "-",
        _within({f"whole_cpu_s, {f}": f"{f}: " for f in (EMBEDDED, "pbmc4k_10x")}, most=180.0),
    ),
    Bar(
        "peak memory of training and distilling over that of a training of scVI",
        "<= 1.2",
        "-",
        _within({f"peak_over_scvi, {n} cells": f"{n} cells: " for n in SIZES}, most=1.2),
    ),
    Bar(
        "the same, of what both add to the loaded cells and libraries",
        "<= 1.2",
        "-",
        _within({f"extra_over_scvi, {n} cells": f"{n} cells: " for n in SIZES}, most=1.2),
    ),
)
"""Seconds are of one thread; every row compares runs of one machine."""
