"""What the tasks are judged by: one row of the table of tasks each, on medians over the seeds that were run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellsmith.benchmark._synthesis.donors import CONTROL

__all__ = ["TASK_BARS", "TaskBar"]

Verdict = tuple[str, bool]
"""What was measured, in words, and whether the bar is met."""

FACTOR = 2.0
"""How far the share of a type may be from the real one, either way."""


@dataclass(frozen=True)
class TaskBar:
    """One judged task.

    Parameters
    ----------
    task
        Name in :data:`cellsmith.benchmark._synthesis.tasks.TASKS`.
    title, must
        What people read.
    starts
        How the rows of the task begin in the table.
    judge
        Medians over seeds, rows ``(task, file, variant)`` x metrics -> what was measured and whether that suffices.
    files
        Files that the bar is about; None: all that were run.
    """

    task: str
    title: str
    must: str
    starts: str
    judge: Callable[[pd.DataFrame], Verdict]
    files: Sequence[str] | None = None

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of the table that the bar is about."""
        rows = table[table["task"].astype(str).str.startswith(self.starts)]
        return rows if self.files is None else rows[rows["file"].isin(self.files)]

    def measure(self, table: pd.DataFrame) -> Verdict | None:
        """Judge a table of tasks; None where the task was not run, or not to its end."""
        rows, index = self.rows(table), ["task", "file", "variant"]
        if rows.empty:
            return None
        try:
            return self.judge(
                rows.pivot_table(index=index, columns="metric", values="value", aggfunc="median", sort=False)
            )
        except KeyError:
            # An interrupted run lacks a variant that the bar compares with.
            return None


def _by_variant(medians: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return one metric, rows ``(task, file)`` x variants."""
    return medians[metric].unstack("variant")


def _augmentation(medians: pd.DataFrame) -> Verdict:
    recall, f1 = (_by_variant(medians, m) for m in ("rare_recall", "macro_f1"))
    gain = (recall["SCLD"] - recall["oversampling"]).dropna()
    loss = (f1["SCLD"] - f1["none"]).dropna()
    text = f"recall {gain.min():+.3f} to {gain.max():+.3f}, macro-F1 {loss.min():+.3f} to {loss.max():+.3f}"
    return text, bool(gain.min() >= 0 and gain.max() > 0.03 and loss.min() >= -0.01)


def _rare_types(medians: pd.DataFrame) -> Verdict:
    ours = medians.xs("SCLD", level="variant")
    low, high = ours["share_ratio_low"], ours["share_ratio_high"]
    text = "; ".join(f"{file} {a:.2f} to {b:.2f}" for (_, file), a, b in zip(ours.index, low, high, strict=True))
    return text, bool((low >= 1 / FACTOR).all() and (high <= FACTOR).all())


def _unseen(medians: pd.DataFrame) -> Verdict:
    # One held-out combination a row; the bar is on the median over the combinations of a file.
    w2 = _by_variant(medians, "w2").groupby("file", sort=False).median()
    best = w2[["type only", "condition only"]].min(axis=1)
    text = "; ".join(f"{f} {a:.2f} against {b:.2f}" for f, a, b in zip(w2.index, w2["additive"], best, strict=True))
    return text, bool((w2["additive"] < best).all())


def _translate(medians: pd.DataFrame) -> Verdict:
    shift, same = medians["shift_r"].min(), medians["identity_r"].min()
    return f"at least {shift:.3f}; identity {same:.3f}", bool(shift >= 0.8 and same >= 0.99)


def _interpolation(medians: pd.DataFrame) -> Verdict:
    ours = medians.reset_index()
    text = "; ".join(
        f"{r.file} {r.spearman:.3f}, {100 * r.mid_share:.0f} % above" for r in ours.itertuples(index=False)
    )
    return text, bool((ours["spearman"] >= 0.95).all() and (ours["mid_share"] >= 0.95).all())


def _teaching(medians: pd.DataFrame) -> Verdict:
    ratio = medians["tstr_ratio"].droplevel(["task", "variant"])
    text = ", ".join(f"{file} {value:.3f}" for file, value in ratio.items())
    return text, int((ratio >= 0.93).sum()) >= 5


def _donors(medians: pd.DataFrame) -> Verdict:
    by_name = medians.droplevel(["task", "file"])
    ours, copies, real = (by_name.loc[name] for name in ("SCLD", "memoriser", CONTROL))
    flagged = copies["exact_copies"] > 0 and copies["nearest_share"] > 0.56
    text = (
        f"share {ours['nearest_share']:.3f} (unseen cells of the same donors {real['nearest_share']:.3f}), "
        f"copies {ours['exact_copies']:.3f}, attack on cells "
        f"{ours['membership_auc']:.3f}, on donors {ours['membership_auc_donor']:.3f} "
        f"({ours['membership_auc_donor_low']:.2f} to {ours['membership_auc_donor_high']:.2f}); memoriser "
        f"{copies['nearest_share']:.3f}, {copies['exact_copies']:.3f}"
    )
    fine = 0.44 <= ours["nearest_share"] <= 0.56 and ours["exact_copies"] == 0 and ours["membership_auc"] <= 0.55
    return text, bool(flagged and fine)


def _pre_guidance(medians: pd.DataFrame) -> Verdict:
    row = medians.droplevel(["task", "file"])
    steps = [row.loc[f"w = {w}", ["label_fidelity", "lfc_slope", "coverage"]] for w in ("0", "1", "1.5", "2")]
    rising = [bool(np.all(np.diff([float(s[m]) for s in steps]) >= 0)) for m in ("label_fidelity", "lfc_slope")]
    shown = [", ".join(f"{s[m]:.2f}" for s in steps) for m in ("label_fidelity", "lfc_slope", "coverage")]
    return "fidelity {}; slope {}; coverage {}".format(*shown), all(rising)


def _density(name: str) -> Callable[[pd.DataFrame], Verdict]:
    def judge(medians: pd.DataFrame) -> Verdict:
        variant = medians.index.get_level_values("variant")
        auc = _by_variant(medians[variant.str.startswith(f"{name}, ")], "auc").droplevel("task")
        text = "; ".join(
            f"{file} {', '.join(f'{v:.3f}' for v in row)}" for file, row in zip(auc.index, auc.to_numpy(), strict=True)
        )
        return text, bool((auc >= 0.95).all(axis=None))

    return judge


TASK_BARS: tuple[TaskBar, ...] = (
    TaskBar(
        "augmentation",
        "augmentation: recall of the rare type minus oversampling's, macro-F1 minus no remedy's",
        "recall never below, somewhere > +.03; macro-F1 never below -.01",
        "augmentation",
        _augmentation,
    ),
    TaskBar(
        "rare_types", "share of a type over its real share, holistic", "within a factor 2", "rare_types", _rare_types
    ),
    TaskBar(
        "transfer",
        "unseen combination: W2 of additive guidance, against the better of type or condition alone",
        "below it, median of three combinations",
        "unseen combination",
        _unseen,
    ),
    TaskBar(
        "transfer",
        "translation of a held-out type: correlation of the shift",
        ">= .8, and >= .99 into the own condition",
        "translate",
        _translate,
        files=("kang_ifnb",),
    ),
    TaskBar(
        "interpolation",
        "interpolation: Spearman of place and weight; middle cells above the real 5th percentile of log density",
        ">= .95; 95 % (as real cells)",
        "interpolation",
        _interpolation,
    ),
    TaskBar(
        "teaching",
        "training on synthetic cells over training on real ones",
        ">= .93 on 5 of 6 files",
        "train on synthetic",
        _teaching,
    ),
    TaskBar(
        "donors",
        "privacy across donors",
        "share .44 to .56, no copies, attack <= .55; memoriser flagged",
        "donor privacy",
        _donors,
    ),
    TaskBar(
        "pre_guidance", "pre-guidance, weights 0, 1, 1.5, 2", "fidelity and slope rise", "pre_guidance", _pre_guidance
    ),
    *(
        TaskBar(
            "log_density",
            f"log density of the {name}: AUC of real cells against cells with genes shuffled within and among them",
            ">= .95",
            "log_density",
            _density(name),
        )
        for name in ("state", "counts")
    ),
)
"""Bars of the tasks; post-guidance is no bar but a rule, stated in the notes."""
