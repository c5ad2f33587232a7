"""What the numbers are judged by: one row of the acceptance table each, with what falls short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

__all__ = ["BARS", "DEFAULT", "MAIN", "ONE_SHOT", "PCA", "Bar", "Results"]

MAIN = ("pbmc4k_10x/2000", "young_kidney/2000", "worm_neuron/2000", "kang_ifnb/1000")
ONE_SHOT, WITH_GRADIENTS, DEFAULT = "dp_pca 16", "DPDCAN 0.7", "dp_pca 32"
"""``dp_pca 32`` is what DPDCAN computes by default (``dp_pca_fraction=1.0``); a test holds the two together."""
EPSILONS = (1.0, 2.0, 4.0, 8.0)
PCA, NONE, FLOOR = "PCA 50, all genes", "DPDCAN none", "random projection 32"
CENTERS, WHOLE, PUBLISHED = "DPDCAN centres", "DPDCAN whole", "published, no guarantee"
DP_PCA_BAR = {8.0: 0.67, 4.0: 0.55, 2.0: 0.44, 1.0: 0.39}


class Results:
    """Means over seeds.

    Parameters
    ----------
    table
        Rows of the benchmark.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.rows = table.astype({"epsilon": float, "value": float})

    def values(self, case: str, arm: str, epsilon: float, *, metric: str = "ari") -> pd.Series:
        """Return values by seed; an arm on which epsilon has no influence is found under any."""
        rows = self.rows
        rows = rows[(rows["case"] == case) & (rows["arm"] == arm) & (rows["metric"] == metric)]
        rows = rows[(rows["epsilon"] == epsilon) | np.isinf(rows["epsilon"])]
        return rows.drop_duplicates("seed").set_index("seed")["value"].sort_index()

    def mean(self, case: str, arm: str, epsilon: float, *, metric: str = "ari") -> float:
        """Return the mean over seeds; NaN where nothing was run."""
        found = self.values(case, arm, epsilon, metric=metric)
        return float(found.mean()) if len(found) else float("nan")

    def gap(self, case: str, ours: str, theirs: str, *, epsilon: float, metric: str = "ari") -> float:
        """Return the mean difference over the seeds that both have; NaN where there is none."""
        both = self.values(case, ours, epsilon, metric=metric) - self.values(case, theirs, epsilon, metric=metric)
        return float(both.dropna().mean()) if both.notna().any() else float("nan")


@dataclass(frozen=True)
class Bar:
    """One row of the acceptance table.

    Parameters
    ----------
    check
        Its number and words.
    must
        What is asked for.
    measure
        Results -> (text, whether it is met); None where nothing was run.
    """

    check: str
    must: str
    measure: Callable[[Results], tuple[str, bool] | None]


def _gaps(
    ours: str,
    theirs: str,
    *,
    least: float,
    cases: Sequence[str] = MAIN,
    epsilons: Sequence[float] = EPSILONS,
    metric: str = "ari",
) -> Callable[[Results], tuple[str, bool] | None]:
    def measure(results: Results) -> tuple[str, bool] | None:
        found = {(c, e): results.gap(c, ours, theirs, epsilon=e, metric=metric) for c in cases for e in epsilons}
        found = {k: v for k, v in found.items() if np.isfinite(v)}
        if not found:
            return None
        texts = []
        for c in cases:
            parts = [f"{found[c, e]:+.3f}" for e in epsilons if (c, e) in found]
            if parts:
                texts.append(f"{c}: {' '.join(parts)}")
        left = len(cases) * len(epsilons) - len(found)
        return "; ".join(texts) + (f" ({left} not run)" if left else ""), min(found.values()) >= least - 1e-9

    return measure


def _ceiling(results: Results) -> tuple[str, bool] | None:
    found = _gaps(NONE, PCA, least=-0.02, epsilons=(8.0,))(results)
    own = results.mean(MAIN[0], NONE, 8.0)
    return None if found is None else (f"{found[0]}; PBMC {own:.3f}", found[1] and own >= 0.75)


def _one_shot(results: Results) -> tuple[str, bool] | None:
    found = {e: results.mean(MAIN[0], ONE_SHOT, e) for e in DP_PCA_BAR}
    if not np.isfinite(list(found.values())).any():
        return None
    text = ", ".join(f"eps {e:g}: {v:.3f}" for e, v in found.items())
    return text, all(v >= DP_PCA_BAR[e] for e, v in found.items() if np.isfinite(v))


def _monotonic(results: Results) -> tuple[str, bool] | None:
    texts, fine = [], True
    for case in MAIN:
        found = [results.values(case, DEFAULT, e) for e in EPSILONS]
        if not all(len(v) for v in found):
            continue
        means = [float(v.mean()) for v in found]
        errors = [float(v.std(ddof=1) / np.sqrt(len(v))) if len(v) > 1 else 0.0 for v in found]
        steps = zip(means[:-1], means[1:], errors[:-1], errors[1:], strict=True)
        fine &= all(b >= a - np.hypot(s, t) for a, b, s, t in steps)
        texts.append(f"{case}: {' '.join(f'{m:.3f}' for m in means)}")
    return ("; ".join(texts), fine) if texts else None


def _small_panel(results: Results) -> tuple[str, bool] | None:
    texts, fine = [], True
    for case in MAIN[:3]:
        small, large = results.mean(case.replace("/2000", "/500"), ONE_SHOT, 1.0), results.mean(case, ONE_SHOT, 1.0)
        if np.isfinite([small, large]).all():
            texts.append(f"{case.split('/')[0]}: {small:.3f} against {large:.3f}")
            fine &= small >= large - 0.02
    return ("; ".join(texts), fine) if texts else None


def _centers(results: Results) -> tuple[str, bool] | None:
    found = _gaps(CENTERS, DEFAULT, least=-0.10, epsilons=(4.0, 8.0))(results)
    if found is None:
        return None
    texts = []
    for e in (4.0, 8.0):
        seeds = [results.values(case, CENTERS, e) for case in MAIN]
        ranges = [f"{v.min():.2f} to {v.max():.2f}" if len(v) else "-" for v in seeds]
        texts.append(f"seeds at eps {e:g}: {', '.join(ranges)}")
    return "; ".join([found[0], *texts]), found[1]


BARS: tuple[Bar, ...] = (
    Bar("B1 no privacy against PCA 50", "ARI >= PCA - .02 on every file, PBMC >= .75", _ceiling),
    Bar("B2 dp_pca 16, PBMC, 2,100 cells", "ARI at eps 8 / 4 / 2 / 1 >= .67 / .55 / .44 / .39", _one_shot),
    Bar("B3 default minus dp_pca 16, ARI at eps 1 2 4 8", ">= -.02 everywhere", _gaps(DEFAULT, ONE_SHOT, least=-0.02)),
    Bar("B3 the same, macro-F1", ">= -.02 everywhere", _gaps(DEFAULT, ONE_SHOT, least=-0.02, metric="macro_f1")),
    Bar(
        "Rule of the default: private gradients (0.7) minus all of the budget in the axes, eps 4 8",
        "> 0 on average, or they are not the default",
        _gaps(WITH_GRADIENTS, DEFAULT, least=0.0, epsilons=(4.0, 8.0)),
    ),
    Bar("B4 default minus whole, eps 4 8", ">= +.10", _gaps(DEFAULT, WHOLE, least=0.10, epsilons=(4.0, 8.0))),
    Bar(
        "B5 default minus random projection, eps 2 4 8",
        "> .05",
        _gaps(DEFAULT, FLOOR, least=0.05, epsilons=(2.0, 4.0, 8.0)),
    ),
    Bar(
        "B6 default minus published (nominal), PBMC, eps 8",
        ">= -.02",
        _gaps(DEFAULT, PUBLISHED, least=-0.02, cases=MAIN[:1], epsilons=(8.0,)),
    ),
    Bar(
        "B6 default minus published with 200 steps (nominal), PBMC, eps 8",
        ">= -.02",
        _gaps(DEFAULT, "published, 200 steps", least=-0.02, cases=MAIN[:1], epsilons=(8.0,)),
    ),
    Bar("B7 default at eps 1 2 4 8", "never falls by more than a standard error", _monotonic),
    Bar("B8 500 genes against 2,000 at eps 1, dp_pca 16", ">= -.02", _small_panel),
    Bar(
        "B9 recall of types below 3 %, default minus dp_pca 16, eps 8",
        ">= -.02",
        _gaps(DEFAULT, ONE_SHOT, least=-0.02, epsilons=(8.0,), metric="rare_recall"),
    ),
    Bar("B10 centres that may leave minus clusters that stay, eps 4 8", ">= -.10", _centers),
)
