"""The reports: frozen, printable, and storable in ``.uns``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from cellsmith.metrics._bands import Metric, bounds_of, describe, judge

__all__ = ["PrivacyReport", "SyntheticReport", "score_table"]

_TABLE = ("metric", "value", "control", "excess", "ideal", "band", "passed")
_RANGE = ("metric", "low", "high")
_BESIDE = tuple(f"{c}{s}" for c in ("fidelity", "f1", "lfc_slope", "de_overlap", "w2") for s in ("", "_control"))
_VERDICT = {True: "yes", False: "no", None: "not judged"}


def score_table(
    values: Mapping[str, float],
    controls: Mapping[str, float],
    metrics: Mapping[str, Metric],
    *,
    n_cells: int,
    ideals: Mapping[str, float],
    bands: Mapping[str, object] | None,
) -> tuple[pd.DataFrame, dict[str, tuple[float, float]]]:
    """Put every number beside its control and judge it.

    Parameters
    ----------
    values, controls
        Metric -> value of the synthetic cells, and of real cells in their place.
    metrics
        Definitions; a metric that is not in it (a symmetric version) is shown and not judged.
    n_cells
        Cells a side.
    ideals
        Ideal values that only this run knows; they replace those of `metrics`.
    bands
        Ranges of the user.

    Returns
    -------
    The table and the numeric ends of the ranges that were used.
    """
    rows, used = [], {}
    for name, value in values.items():
        base = metrics.get(name.removesuffix("_symmetric"), Metric(None))
        control = controls.get(name, float("nan"))
        ideal = ideals.get(name, control if base.ideal is None else base.ideal)
        bounds = bounds_of(
            name, metrics.get(name, Metric(None)), control=control, ideal=ideal, n_cells=n_cells, bands=bands
        )
        if bounds is not None:
            used[name] = bounds
        rows.append((name, value, control, value - control, ideal, describe(bounds), judge(value, bounds)))
    table = pd.DataFrame(rows, columns=_TABLE)
    table["passed"] = pd.Series([row[-1] for row in rows], dtype=object)
    return table, used


def _columns(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return a table as equal-length arrays that h5ad and zarr can hold."""
    out = {}
    for name in frame.columns:
        values = frame[name].to_numpy()
        out[str(name)] = values if values.dtype.kind in "biuf" else np.array([str(v) for v in values], dtype=object)
    return out


def _frame(columns: Mapping[str, Any], order: tuple[str, ...]) -> pd.DataFrame:
    """Read a stored table back, its columns in `order`."""
    frame = pd.DataFrame({str(k): v for k, v in dict(columns).items()})
    return frame[[c for c in order if c in frame] + [c for c in frame if c not in order]]


@dataclass(frozen=True, eq=False, repr=False)
class _Report:
    """What both reports share.

    Parameters
    ----------
    table
        One row a metric: ``metric``, ``value``, ``control`` (the same number for real
        cells in place of the synthetic ones), ``excess`` (value - control), ``ideal``,
        ``band`` (text), ``passed`` (True, False, or None where nothing is judged or available).
    per_label
        One row a label.
    settings
        Numbers of cells, seed and choices of the run.
    bounds
        Metric -> (low, high) of the judged rows.
    curves
        Name -> array, what the pictures draw.
    """

    table: pd.DataFrame
    per_label: pd.DataFrame
    settings: dict[str, Any]
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    curves: dict[str, np.ndarray] = field(default_factory=dict)

    _title: ClassVar[str] = "Report"
    # h5ad sorts the keys of a mapping, so the order of columns is kept here.
    _frames: ClassVar[dict[str, tuple[str, ...]]] = {"per_label": ("label",)}

    def __getitem__(self, metric: str) -> float:
        """Return the value of one metric."""
        row = self.table.loc[self.table["metric"] == metric, "value"]
        if row.empty:
            raise KeyError(metric)
        return float(row.iloc[0])

    @property
    def failed(self) -> list[str]:
        """Metrics outside their band."""
        return [m for m, p in zip(self.table["metric"], self.table["passed"], strict=True) if p is False]

    @property
    def passed(self) -> bool:
        """True when something was judged and nothing failed."""
        return not self.failed and bool(self.table["passed"].map(lambda p: p is True).any())

    def __repr__(self) -> str:
        """Return the table as text with a verdict."""
        shown = self.table.assign(passed=self.table["passed"].map(lambda p: _VERDICT[p]))
        verdict = "passed" if self.passed else f"FAILED: {', '.join(self.failed)}" if self.failed else "nothing judged"
        return f"{self._title}: {verdict}\n{shown.to_string(index=False, float_format=lambda v: f'{v:.4g}')}"

    def _repr_html_(self) -> str:
        verdict = "passed" if self.passed else f"failed: {', '.join(self.failed)}" if self.failed else "nothing judged"
        html = self.table.assign(passed=self.table["passed"].map(lambda p: _VERDICT[p])).to_html(
            index=False, float_format=lambda v: f"{v:.4g}"
        )
        return f"<p><b>{self._title}</b>: {verdict}</p>{html}"

    def to_uns(self) -> dict[str, Any]:
        """Return the whole report as nested dictionaries of arrays and scalars, safe for h5ad and zarr.

        Returns
        -------
        Mapping for ``adata.uns``; ``passed`` becomes ``"yes"``, ``"no"`` or ``"not judged"``.
        """
        table = self.table.assign(passed=self.table["passed"].map(lambda p: _VERDICT[p]))
        bounds = pd.DataFrame([(m, *b) for m, b in self.bounds.items()], columns=_RANGE)
        block = {
            "table": _columns(table),
            "bounds": _columns(bounds),
            "settings": {k: v for k, v in self.settings.items() if v is not None},
            "curves": dict(self.curves),
        }
        return block | {name: _columns(getattr(self, name)) for name in self._frames}

    @classmethod
    def from_uns(cls, block: Mapping[str, Any]) -> Self:
        """Read back what :meth:`to_uns` returned, also after a round trip through a file.

        Parameters
        ----------
        block
            The mapping found in ``adata.uns``.
        """
        table = _frame(block["table"], _TABLE)
        back = {verdict: passed for passed, verdict in _VERDICT.items()}
        table["passed"] = pd.Series([back[str(v)] for v in table["passed"]], dtype=object)
        bounds = _frame(block["bounds"], _RANGE)
        frames = {name: _frame(block[name], order) for name, order in cls._frames.items()}
        return cls(
            table=table,
            settings=dict(block["settings"]),
            bounds={str(m): (float(a), float(b)) for m, a, b in bounds.itertuples(index=False)},
            curves={k: np.asarray(v) for k, v in dict(block["curves"]).items()},
            **frames,
        )


@dataclass(frozen=True, eq=False, repr=False)
class SyntheticReport(_Report):
    """Answer of :func:`~cellsmith.metrics.evaluate_synthetic`.

    Parameters
    ----------
    table, per_label, settings, bounds, curves
        ``table`` has one row a metric (``metric``, ``value``, ``control``, ``excess``, ``ideal``,
        ``band``, ``passed``); rows that end in ``_symmetric`` repeat a metric with components
        and genes chosen on reference and candidate together. ``curves`` holds, for ``real``,
        ``synthetic`` and ``control``, library sizes and genes detected (sorted, one a cell), zero
        fraction, mean and variance of the counts (one a gene).
    lfc
        One row a fold change: ``label``, ``gene``, ``real``, ``synthetic``, ``control`` (natural log).

    Examples
    --------
    >>> report = evaluate_synthetic(test, synthetic, train, labels_key="cell_type")  # doctest: +SKIP
    >>> report.passed, report.failed, report["w2"]  # doctest: +SKIP
    """

    lfc: pd.DataFrame = field(default_factory=pd.DataFrame)

    _title: ClassVar[str] = "Synthetic cells against real ones"
    _frames: ClassVar[dict[str, tuple[str, ...]]] = {
        "per_label": ("label", "n_reference", "n_synthetic", "n_control", *_BESIDE),
        "lfc": ("label", "gene", "real", "synthetic", "control"),
    }


@dataclass(frozen=True, eq=False, repr=False)
class PrivacyReport(_Report):
    """Answer of :func:`~cellsmith.metrics.privacy_report`. Passing it is no privacy guarantee.

    Parameters
    ----------
    table, per_label, settings, bounds, curves
        ``table`` has one row a metric; ``curves`` holds nearest distances (sorted) and the
        attack's receiver operating characteristic.
    per_cell
        One row a synthetic cell: ``cell``, ``distance_train`` and ``distance_holdout`` to the nearest
        record of the equal halves, ``distance_ratio`` of first to second distance and
        ``nearest_train`` among all training cells, ``exact_copy``.
    intervals
        Metric -> (low, high), 95 % bootstrap interval.
    """

    per_cell: pd.DataFrame = field(default_factory=pd.DataFrame)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    _title: ClassVar[str] = "Privacy of synthetic cells (passing is no guarantee)"
    _frames: ClassVar[dict[str, tuple[str, ...]]] = {
        "per_label": ("label", "n_synthetic", "nearest_share", "exact_copies"),
        "per_cell": (
            "cell",
            "distance_train",
            "distance_holdout",
            "distance_ratio",
            "nearest_train",
            "exact_copy",
        ),
    }

    def to_uns(self) -> dict[str, Any]:
        """Return the whole report as nested dictionaries of arrays and scalars, safe for h5ad and zarr.

        Returns
        -------
        Mapping for ``adata.uns``; ``passed`` becomes ``"yes"``, ``"no"`` or ``"not judged"``.
        """
        frame = pd.DataFrame([(m, *b) for m, b in self.intervals.items()], columns=_RANGE)
        return super().to_uns() | {"intervals": _columns(frame)}

    @classmethod
    def from_uns(cls, block: Mapping[str, Any]) -> Self:
        """Read back what :meth:`to_uns` returned, also after a round trip through a file.

        Parameters
        ----------
        block
            The mapping found in ``adata.uns``.
        """
        from dataclasses import replace

        frame = _frame(block["intervals"], _RANGE)
        found = {str(m): (float(a), float(b)) for m, a, b in frame.itertuples(index=False)}
        return replace(super().from_uns(block), intervals=found)
