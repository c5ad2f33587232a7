"""What the numbers are judged by: one row of the acceptance table each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cellsmith.benchmark._annotation.bars import Bar, Measured
from cellsmith.benchmark._annotation.results import number, points
from cellsmith.benchmark._distillation.cases import EMBEDDED, FILES
from cellsmith.benchmark._distillation.results import Gap, Results

__all__ = ["BARS", "METACELLS", "NOT_RUN", "SCDD"]

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
