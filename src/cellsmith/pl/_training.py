"""The picture of a training run: one panel a stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cellsmith._errors import SetupError, nearest
from cellsmith.pl import _style as style
from cellsmith.pl._reading import is_anndata

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["training_history"]

_WORDS = {"train_loss": "training", "train_loss_epoch": "training", "validation_loss": "validation"}


def _flat(histories: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``stage/metric`` -> values from either form of histories."""
    out: dict[str, Any] = {}
    for name, value in histories.items():
        out |= _flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return out


def _histories(source: Any, key: str) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return _flat(source)
    if is_anndata(source):
        block = source.uns.get(key)
        if not isinstance(block, Mapping) or "histories" not in block.get("provenance", {}):
            msg = (
                f"`.uns[{key!r}]` holds no training histories. {nearest(key, source.uns.keys())} "
                "Name the block with `key=`, or give the trained model itself."
            )
            raise SetupError(msg)
        return _flat(block["provenance"]["histories"])
    found = getattr(source, "history_", None) or getattr(source, "history", None)
    if not found:
        msg = f"Found {type(source).__name__} without histories; expected a trained model or an AnnData it wrote."
        raise SetupError(msg)
    return _flat(found)


def _line(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return epochs and finite values of one history (a one-column DataFrame, a Series or an array)."""
    y = np.ravel(np.asarray(values, dtype=float))
    x = np.asarray(values.index, dtype=float) if hasattr(values, "index") else np.arange(len(y), dtype=float)
    keep = np.isfinite(y)
    return x[keep], y[keep]


def training_history(
    source: Any, *, key: str = "scld", metrics: Iterable[str] | None = None, ax: Sequence[Axes] | None = None
) -> np.ndarray:
    """Draw the losses of every stage of training.

    Parameters
    ----------
    source
        A trained model, an AnnData that it wrote or generated, or a mapping ``stage/metric`` -> values.
    key
        Block of ``.uns`` that holds the provenance.
    metrics
        Metrics to draw; None: training and validation loss, or all where a stage has neither.
    ax
        One Axes a stage; None makes a figure.

    Returns
    -------
    Array of Axes, one a stage in order of training.

    Raises
    ------
    SetupError
        When there are no histories, or none of `metrics`.

    Examples
    --------
    >>> cellsmith.pl.training_history(model)  # doctest: +SKIP
    """
    stages: dict[str, dict[str, Any]] = {}
    flat = _histories(source, key)
    for name, values in flat.items():
        stage, _, metric = name.rpartition("/")
        stages.setdefault(stage or "training", {})[metric] = values
    chosen = None if metrics is None else list(metrics)
    for stage, found in list(stages.items()):
        losses = [m for m in _WORDS if m in found] or [m for m in found if not m.endswith("_step")]
        names = losses if chosen is None else [m for m in chosen if m in found]
        drawn = {m: _line(found[m]) for m in names}
        stages[stage] = {m: line for m, line in drawn.items() if len(line[0])}
    stages = {stage: lines for stage, lines in stages.items() if lines}
    if not stages:
        valid = sorted({name.rpartition("/")[2] for name in flat})
        msg = f"No history to draw for metrics={chosen}. {nearest((chosen or [''])[0], valid)}"
        raise SetupError(msg)
    axes = style.panels(ax, len(stages), size=(4.4 * len(stages) + 0.6, 3.6))
    for panel, (stage, lines) in zip(axes, stages.items(), strict=True):
        for k, (metric, (x, y)) in enumerate(lines.items()):
            held_out = "validation" in metric
            colour = (style.SYNTHETIC if held_out else style.REAL) if metric in _WORDS else style.CATEGORIES[k % 8]
            label = _WORDS.get(metric, metric)
            best = int(np.argmin(y))
            label += f" (lowest {y[best]:.4g})" if held_out else ""
            panel.plot(x, y, color=colour, linewidth=1.8, marker="o" if len(x) < 3 else None, label=label)
            if held_out and len(x) > 2:
                panel.plot(x[best], y[best], marker="o", color=colour, markersize=7, markeredgecolor="white")
        everything = np.concatenate([y for _, y in lines.values()])
        if everything.min() > 0 and everything.max() > 30 * everything.min():
            panel.set_yscale("log")
        panel.set(xlabel="epoch", ylabel="loss" if chosen is None else "value")
        panel.set_title(stage, loc="left", fontsize=11)
        panel.legend(frameon=False, fontsize=9)
    style.tidy(axes, grid="y")
    return np.asarray(axes, dtype=object)
