"""What a few rows a class teach: scores by budget, and paired differences to a bar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith._errors import SetupError, nearest
from cellsmith.pl import _style as style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["distillation"]

COLUMNS = ("file", "split", "method", "budget", "model", "metric", "value")
FULL = "full"
THREE = ("lr", "mlp", "knn1")
WORDS = {"accuracy": "accuracy", "macro_f1": "macro-F1", "rare_recall": "recall of rare classes"}


def distillation(
    table: pd.DataFrame,
    *,
    metric: str = "accuracy",
    model: str = "mean",
    baseline: str = "metacell",
    ax: Sequence[Axes] | None = None,
) -> np.ndarray:
    """Draw what classifiers learn from a few rows a class, method by method.

    Parameters
    ----------
    table
        What :func:`cellsmith.benchmark.distillation` returned, of one data set.
    metric
        "accuracy", "balanced_accuracy", "macro_f1", "rare_recall", "retention", or ``"recall <class>"``.
    model
        A classifier of the table, or "mean" of logistic regression, MLP and nearest neighbour.
    baseline
        Method that the others are compared with.
    ax
        Two Axes; None makes a figure.

    Returns
    -------
    Two Axes. Left: mean over the cuts at every budget; the dashed line is "full", all training cells. Right: the
    method minus `baseline`, paired over cuts, with the 95 % interval (Student's t); a dot without a bar is one cut.
    Cuts share cells, so the intervals are somewhat too short.

    Raises
    ------
    SetupError
        If the table lacks a column, a method, a metric or a classifier, or holds several data sets.

    Examples
    --------
    >>> table = cellsmith.benchmark.distillation(adata, "cell_type")  # doctest: +SKIP
    >>> cellsmith.pl.distillation(table)  # doctest: +SKIP
    """
    wide = _wide(table, metric=metric, model=model)
    methods = [m for m in dict.fromkeys(wide.index.get_level_values("method")) if m != FULL]
    if baseline not in methods:
        raise SetupError(f"baseline={baseline!r} is not in the table. {nearest(baseline, methods)}")
    axes = style.panels(ax, 2, size=(11.0, 4.4))
    budgets = sorted({b for b in wide.index.get_level_values("budget") if b > 0})
    places = {b: i for i, b in enumerate(budgets)}
    shown = [baseline, *(m for m in methods if m != baseline)]
    for i, method in enumerate(shown):
        color = style.INK if method == baseline else style.CATEGORIES[(i - 1) % len(style.CATEGORIES)]
        look = {"color": color, "marker": style.MARKERS[i % len(style.MARKERS)], "markersize": 5.0}
        found = {b: wide.loc[method, b] for b in budgets if (method, b) in wide.index}
        axes[0].plot(
            [places[b] for b in found], [v.mean() for v in found.values()], linewidth=1.6, label=method, **look
        )
        shift = 0.0 if method == baseline else (i - (len(shown)) / 2) * 0.8 / len(shown)
        for b, values in found.items() if method != baseline else ():
            mean, half = _interval((values - wide.loc[baseline, b]).dropna().to_numpy())
            axes[1].errorbar(places[b] + shift, mean, yerr=half, linewidth=1.4, linestyle="none", **look)
    if FULL in wide.index.get_level_values("method"):
        level = float(wide.loc[FULL, 0].mean())
        axes[0].axhline(level, color=style.CONTROL, linestyle="--", linewidth=1.2, label="all training cells")
    axes[1].axhline(0.0, color=style.INK, linewidth=1.0)
    for panel in axes:
        panel.set_xticks(range(len(budgets)), [str(b) for b in budgets])
        panel.set_xlabel("rows a class")
        panel.set_xlim(-0.5, len(budgets) - 0.5)
    name = WORDS.get(metric, metric.replace("_", " "))
    of = "mean of three classifiers" if model == "mean" else model
    cuts = wide.shape[1]
    cuts = wide.shape[1]
    axes[0].set_title(f"{name}, {of}, {cuts} {'cut' if cuts == 1 else 'cuts'}", loc="left", fontsize=10.5)
    words = ", paired, 95 % interval" if cuts > 1 else ""
    axes[1].set_title(f"minus {baseline}{words}", loc="left", fontsize=10.5)
    axes[0].set_ylabel(name)
    style.tidy(axes, grid="y")
    if ax is None:
        axes[1].legend(
            *axes[0].get_legend_handles_labels(),
            frameon=False,
            fontsize=8.5,
            loc="center left",
            bbox_to_anchor=(1.02, 0.5),
        )
    else:
        axes[0].legend(frameon=False, fontsize=8.5)
    return np.asarray(axes, dtype=object)


def _wide(table: Any, *, metric: str, model: str) -> pd.DataFrame:
    """Return (method, budget) x cuts."""
    if not isinstance(table, pd.DataFrame) or not set(COLUMNS) <= set(table.columns):
        raise SetupError("Found no table of cuts; expected what cellsmith.benchmark.distillation returned.")
    files = list(table["file"].unique())
    if len(files) > 1:
        raise SetupError(f"The table holds {len(files)} data sets. Type table[table['file'] == {files[0]!r}].")
    rows = table[table["metric"] == metric]
    if rows.empty:
        raise SetupError(f"metric={metric!r} is not in the table. {nearest(metric, table['metric'].unique())}")
    wanted = list(THREE) if model == "mean" else [model]
    for name in wanted:
        if name not in set(rows["model"]):
            raise SetupError(f"The table has no classifier {name!r}. {nearest(name, rows['model'].unique())}")
    rows = rows[rows["model"].isin(wanted)]
    order = list(dict.fromkeys(rows["method"]))
    wide = rows.pivot_table(index=["method", "budget"], columns="split", values="value", aggfunc="mean")
    return wide.reindex(order, level="method")


def _interval(values: np.ndarray) -> tuple[float, float | None]:
    """Return the mean of paired differences (m,) and half of its 95 % interval; None of fewer than two."""
    from scipy.stats import t

    n = len(values)
    half = float(t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    return float(values.mean()) if n else float("nan"), half
