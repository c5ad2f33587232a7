"""Whether the refinement becomes the default: the rule, written before its runs, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellsmith.benchmark._annotation.results import Difference, difference, number
from cellsmith.benchmark._missingness.bars import JUDGED
from cellsmith.benchmark._missingness.methods import BC, PRIME
from cellsmith.benchmark._missingness.real import FILES, N_LATENT, TASK
from cellsmith.benchmark._missingness.results import Tables
from cellsmith.benchmark._missingness.speed import MAIN

__all__ = ["Decision", "decide", "described"]

SEEDS = (0, 1, 2)
MOST_SECONDS, MOST_CSR = 45.0, 3.0  # the bars of the logistic fit of 100,000 cells
METRICS = {"recall": "recall at 15", "ari": "ARI"}
COSTED = "logistic, prime"
"""How the refined fit is called in the table of speed."""


@dataclass(frozen=True)
class Decision:
    """What the rule reads.

    Parameters
    ----------
    gaps
        Metric -> refined minus plain, one value a file and seed: the mean over the judged masks and both numbers of
        components.
    seconds, peak
        CPU seconds, and peak memory over the size of the CSR, of the refined fit of 100,000 cells; NaN: not measured.
    """

    gaps: Mapping[str, Difference]
    seconds: float
    peak: float

    @property
    def accepted(self) -> bool:
        """Both differences at least 0, one interval above 0, and the cost within the bars."""
        better = all(gap.mean >= 0 for gap in self.gaps.values()) and any(gap.low > 0 for gap in self.gaps.values())
        return better and self.seconds < MOST_SECONDS and self.peak <= MOST_CSR


def decide(results: Tables) -> Decision | None:
    """Return what the tables say; None before every file has run with the three seeds and all judged masks."""
    gaps = {metric: _gap(results, metric) for metric in METRICS}
    if any(gap.runs < len(FILES) * len(SEEDS) for gap in gaps.values()):
        return None
    extra, csr = (results.quantity(f"{name}_{COSTED}_{MAIN}") for name in ("extra_mib", "csr_mib"))
    return Decision(gaps, results.quantity(f"cpu_s_{COSTED}_{MAIN}"), 1.0 + extra / csr)


def _gap(results: Tables, metric: str) -> Difference:
    parts = [results.values(f"{TASK}, {name}, ", PRIME, metric) for name in JUDGED]
    plain = [results.values(f"{TASK}, {name}, ", BC, metric) for name in JUDGED]
    both = (pd.concat(parts) - pd.concat(plain)).dropna().groupby(level=["file", "seed"])
    found = both.mean()[both.size() == len(JUDGED) * len(N_LATENT)]
    keep = [file in FILES and int(seed) in SEEDS for file, seed in found.index]
    return difference(found[np.array(keep, dtype=bool)].to_numpy(dtype=float))


def described(results: Tables) -> str:
    """Return the decision in words."""
    found = decide(results)
    if found is None:
        return "Not decided: the runs are not complete. Until then it is an option."
    lines = [f'"{PRIME}" minus "{BC}", paired within file and seed ({found.gaps["ari"].runs} pairs):']
    for metric, words in METRICS.items():
        gap = found.gaps[metric]
        lines.append(f"{words} {gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f});")
    lines.append(f"{MAIN:,} cells: {number(found.seconds)} CPU seconds (bar {MOST_SECONDS:.0f}), peak")
    lines.append(f"{found.peak:.1f} x CSR (bar {MOST_CSR:.0f}). By the rule in the notes it")
    lines.append("becomes the default." if found.accepted else "stays an option.")
    return " ".join(lines)
