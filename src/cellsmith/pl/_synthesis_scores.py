"""Pictures of the reports: scores beside their control, fold changes, privacy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith._errors import SetupError
from cellsmith.pl import _style as style
from cellsmith.pl._reading import ReportView, read_report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["privacy", "synthetic_lfc", "synthetic_report"]

_END = 2.5
"""Right end of the scale of scores; farther ones are drawn there as arrows."""


def _used(value: float, control: float, bounds: tuple[float, float]) -> float:
    """Return which part of the allowed deviation a value uses: at most 1 is inside, 0 is like real cells."""
    low, high = bounds
    if np.isfinite(low) and np.isfinite(high) and high > low:
        return float(abs(value - (low + high) / 2) / ((high - low) / 2))
    if np.isinf(low) and np.isinf(high):
        return 0.0
    sign, limit = (1.0, high) if np.isfinite(high) else (-1.0, low)
    room = sign * (limit - control)
    if room > 0:
        return float(sign * (value - control) / room)
    # The limit leaves no room beside the control (no copy is allowed, say): only inside or outside is known.
    return 0.0 if sign * (value - limit) <= 0 else 2 * _END


def _rows(view: ReportView) -> pd.DataFrame:
    judged = view.table.loc[view.table["metric"].isin(view.bounds)].copy()
    ends = [view.bounds[m] for m in judged["metric"]]
    judged["used"] = [_used(v, c, e) for v, c, e in zip(judged["value"], judged["control"], ends, strict=True)]
    judged["used_control"] = [_used(c, c, e) for c, e in zip(judged["control"], ends, strict=True)]
    return judged


def _number(value: float) -> str:
    """Write a number with three to four digits, and never minus zero."""
    if np.isnan(value):
        return "n/a"
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 0
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _range(bounds: tuple[float, float]) -> str:
    low, high = (None if np.isinf(end) else _number(end) for end in bounds)
    if low is None or high is None:
        return f"≤ {high}" if high is not None else f"≥ {low}" if low is not None else ""
    return f"{low} – {high}"


def synthetic_report(report: Any, *, key: str = "scld_evaluation", ax: Axes | None = None) -> Axes:
    """Draw every judged score, its control and its accepted range on one common scale.

    The scale is the part of the allowed deviation from real cells that a score
    uses: 0 is as good as other real cells, 1 is the limit. The numbers
    themselves stand at the right.

    Parameters
    ----------
    report
        Answer of :func:`cellsmith.metrics.evaluate_synthetic` or of :func:`cellsmith.metrics.privacy_report`, its
        ``to_uns()``, or an AnnData that stores the latter.
    key
        Name of a stored report in ``.uns``.
    ax
        Axes; None makes a figure. The three columns of numbers are drawn right of the Axes.

    Returns
    -------
    The Axes.

    Raises
    ------
    SetupError
        When there is no report, or nothing in it is judged.

    Examples
    --------
    >>> cellsmith.pl.synthetic_report(report)  # doctest: +SKIP
    """
    view = read_report(report, key=key, what="evaluate_synthetic")
    rows = _rows(view)
    if rows.empty:
        msg = "The report judges no metric, so there is nothing to draw. Type `bands=None` when you make it."
        raise SetupError(msg)
    panel = style.panels(ax, 1, size=(10.2, 1.3 + 0.34 * len(rows)))[0]
    n = len(rows)
    if ax is None:  # the layout engine stops short of text that stands in units of the shrinking Axes
        panel.figure.set_layout_engine("constrained", rect=(0, 0, 0.97, 1))
    panel.axvspan(-1, 1, color="#E6F2EC", zorder=0, label="accepted")
    panel.axvline(1, color="#4B8B6B", linewidth=1.2, zorder=1)
    ok = style.REAL
    for y, row in zip(range(n - 1, -1, -1), rows.itertuples(index=False), strict=True):
        good = row.passed is True
        colour = ok if good else style.SYNTHETIC
        _score_row(panel, y, row, colour=colour, marker="o" if good else "X")
        for x, text, weight in (
            (1.03, _number(row.value), "bold"),
            (1.13, _number(row.control), "normal"),
            (1.22, _range(view.bounds[row.metric]), "normal"),
        ):
            panel.text(
                x,
                y,
                text,
                transform=panel.get_yaxis_transform(),
                va="center",
                fontsize=9,
                weight=weight,
                color=colour if x < 1.1 else style.SOFT,
            )
    for x, text in ((1.03, "value"), (1.13, "control"), (1.22, "accepted")):
        panel.text(x, n - 0.2, text, transform=panel.get_yaxis_transform(), fontsize=9, color=style.INK, va="bottom")
    panel.set(yticks=range(n), yticklabels=list(rows["metric"])[::-1], ylim=(-0.6, n - 0.3), xlim=(-0.75, _END + 0.15))
    panel.set_xlabel("part of the allowed deviation that is used (0 = like other real cells, 1 = limit)")
    inside = int(sum(p is True for p in rows["passed"]))
    panel.set_title(f"{inside} of {n} scores in the accepted range", loc="left", fontsize=11, pad=22)
    _legend(panel, ok)
    style.tidy(panel, grid="x")
    panel.tick_params(axis="y", length=0, labelcolor=style.INK)
    return panel


def _score_row(ax: Axes, y: int, row: Any, *, colour: str, marker: str) -> None:
    """Draw one score: a line from the control to the value, an arrow where it leaves the scale."""
    if np.isnan(row.used):
        ax.text(0.0, y, "not available", va="center", ha="left", fontsize=8.5, color=style.SOFT, style="italic")
        return
    x, start = float(np.clip(row.used, -0.6, _END)), float(np.clip(row.used_control, -0.6, _END))
    ax.plot([start, x], [y, y], color=colour, linewidth=2, alpha=0.45, solid_capstyle="round", zorder=2)
    ax.scatter([start], [y], marker="D", s=26, facecolor="white", edgecolor=style.SOFT, linewidth=1.2, zorder=3)
    beyond = row.used > _END
    ax.scatter([x], [y], marker=">" if beyond else marker, s=58, color=colour, linewidth=0, zorder=4)


def _legend(ax: Axes, ok: str) -> None:
    from matplotlib.lines import Line2D

    def entry(marker: str, colour: str, label: str) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, color=colour, label=label, markersize=7)

    control = Line2D(
        [],
        [],
        linestyle="",
        marker="D",
        markerfacecolor="white",
        markeredgecolor=style.SOFT,
        label="control (real cells)",
    )
    handles = [
        entry("o", ok, "synthetic, accepted"),
        entry("X", style.SYNTHETIC, "synthetic, outside"),
        entry(">", style.SYNTHETIC, "off the scale"),
        control,
    ]
    ax.legend(
        handles=handles,
        ncols=4,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        frameon=False,
        fontsize=8.5,
        handletextpad=0.2,
        columnspacing=1.0,
        borderaxespad=0.1,
    )


def synthetic_lfc(report: Any, *, key: str = "scld_evaluation", ax: Axes | None = None) -> Axes:
    """Draw the fold changes of the synthetic cells on those of the real cells.

    Parameters
    ----------
    report
        Answer of :func:`cellsmith.metrics.evaluate_synthetic` with labels, its ``to_uns()``, or an AnnData that
        stores the latter.
    key
        Name of a stored report in ``.uns``.
    ax
        Axes; None makes a figure.

    Returns
    -------
    The Axes: one point a gene and type (the strongest genes of each type, natural logarithm), the least-squares line
    through 0 and the diagonal.

    Raises
    ------
    SetupError
        When there is no report, or it holds no fold changes.

    Examples
    --------
    >>> cellsmith.pl.synthetic_lfc(report)  # doctest: +SKIP
    """
    view = read_report(report, key=key, what="evaluate_synthetic")
    if view.lfc.empty or "real" not in view.lfc:
        msg = "The report holds no fold changes. Make it with `labels_key=` and at least two shared types."
        raise SetupError(msg)
    panel = style.panels(ax, 1, size=(6.6, 5.2))[0]
    table = view.lfc
    names = list(dict.fromkeys(table["label"]))
    for k, name in enumerate(names):
        own = table.loc[table["label"] == name]
        panel.scatter(
            own["real"],
            own["synthetic"],
            s=20,
            color=style.CATEGORIES[k % len(style.CATEGORIES)],
            marker=style.MARKERS[(k // len(style.CATEGORIES)) % len(style.MARKERS)],
            alpha=0.7,
            linewidths=0,
            label=str(name),
        )
    slope, control = view.row("lfc_slope")
    if np.isnan(slope):
        slope = float((table["real"] * table["synthetic"]).sum() / (table["real"] ** 2).sum())
    end = 1.08 * float(np.abs(table[["real", "synthetic"]].to_numpy()).max())
    ends = np.array([-end, end])
    panel.axhline(0, color=style.GRID, linewidth=1, zorder=0)
    panel.axvline(0, color=style.GRID, linewidth=1, zorder=0)
    panel.plot(ends, ends, color=style.SOFT, linestyle="--", linewidth=1.2, label="equal")
    panel.plot(ends, slope * ends, color=style.INK, linewidth=1.8, label=f"slope {slope:.2f}")
    beside = "" if np.isnan(control) else f" (other real cells: {control:.2f})"
    panel.set_title(f"Fold changes: slope {slope:.2f}{beside}", loc="left", fontsize=11)
    panel.set(xlim=ends, ylim=ends, aspect="equal")
    panel.set(xlabel="log fold change in real cells", ylabel="log fold change in synthetic cells")
    panel.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    style.tidy(panel)
    return panel


def privacy(report: Any, *, key: str = "scld_privacy", ax: Sequence[Axes] | None = None) -> np.ndarray:
    """Draw how near synthetic cells come to training and hold-out cells, and how well the membership attack does.

    Parameters
    ----------
    report
        Answer of :func:`cellsmith.metrics.privacy_report`, its ``to_uns()``, or an AnnData that stores the latter.
    key
        Name of a stored report in ``.uns``.
    ax
        Two Axes; None makes a figure.

    Returns
    -------
    Array of two Axes: distances, attack.

    Raises
    ------
    SetupError
        When there is no such report.

    Examples
    --------
    >>> cellsmith.pl.privacy(cellsmith.metrics.privacy_report(train, test, synthetic))  # doctest: +SKIP
    """
    view = read_report(report, key=key, what="privacy_report")
    if "distance_train" not in view.curves:
        msg = "This report holds no distances; expected the answer of `cellsmith.metrics.privacy_report`."
        raise SetupError(msg)
    near, attack = axes = style.panels(ax, 2, size=(9.8, 4.4))
    for name, label, colour, line in (
        ("distance_train", "to training cells", style.SYNTHETIC, "-"),
        ("distance_holdout", "to hold-out cells", style.REAL, "--"),
    ):
        values = np.sort(view.curves[name])
        near.step(values, np.arange(1, len(values) + 1) / len(values), color=colour, linestyle=line, lw=2, label=label)
    share, control = view.row("nearest_share")
    near.set(
        xlabel="distance of a synthetic cell to its nearest record", ylabel="share of synthetic cells", ylim=(0, 1.02)
    )
    near.set_title(f"{share:.0%} lie nearer to a training cell (real cells: {control:.0%})", loc="left", fontsize=10.5)
    copies, _ = view.row("exact_copies")
    note = "exact copies: n/a" if np.isnan(copies) else f"exact copies of a training cell: {copies:.1%}"
    near.text(0.98, 0.05, note, transform=near.transAxes, ha="right", fontsize=9, color=style.INK)
    near.legend(frameon=False, fontsize=9, loc="upper left")
    auc, auc_control = view.row("membership_auc")
    low, high = view.intervals.get("membership_auc", (np.nan, np.nan))
    span = "" if np.isnan(low) else f", 95 % {low:.2f}-{high:.2f}"
    curve = (view.curves["false_positive_rate"], view.curves["true_positive_rate"])
    attack.fill_between(*curve, curve[0], color=style.SYNTHETIC, alpha=0.12, linewidth=0)
    attack.plot(*curve, color=style.SYNTHETIC, linewidth=2, label=f"attack, AUC {auc:.2f}{span}")
    attack.plot([0, 1], [0, 1], color=style.SOFT, linestyle="--", linewidth=1.2, label="guessing, AUC 0.50")
    attack.set(xlabel="hold-out cells called members", ylabel="training cells called members", xlim=(0, 1), ylim=(0, 1))
    attack.set_title(f"Membership attack: AUC {auc:.2f} (real cells: {auc_control:.2f})", loc="left", fontsize=10.5)
    attack.set_aspect("equal")
    attack.legend(frameon=False, fontsize=9, loc="lower right")
    style.tidy(axes, grid="both")
    return np.asarray(axes, dtype=object)
