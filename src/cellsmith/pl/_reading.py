"""What the pictures read: reports (as objects, as stored blocks, or inside an AnnData) and expression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from cellsmith._errors import SetupError, nearest

__all__ = ["ReportView", "count_summary", "is_anndata", "log_normalised", "read_report"]


@dataclass(frozen=True)
class ReportView:
    """The parts of a report that pictures draw, whatever form it came in."""

    table: pd.DataFrame
    bounds: dict[str, tuple[float, float]]
    curves: dict[str, np.ndarray]
    lfc: pd.DataFrame
    intervals: dict[str, tuple[float, float]]
    settings: dict[str, Any]

    def row(self, metric: str) -> tuple[float, float]:
        """Return value and control of one metric, NaN where the report lacks it."""
        rows = self.table.loc[self.table["metric"] == metric]
        if rows.empty:
            return float("nan"), float("nan")
        return float(rows["value"].iloc[0]), float(rows["control"].iloc[0])


def is_anndata(x: object) -> bool:
    """Tell whether `x` is an AnnData."""
    return hasattr(x, "obs_names") and hasattr(x, "uns")


def _pairs(value: Any) -> dict[str, tuple[float, float]]:
    if value is None:
        return {}
    if "metric" in value:  # the stored form is a table
        rows = zip(value["metric"], value["low"], value["high"], strict=True)
        return {str(m): (float(a), float(b)) for m, a, b in rows}
    return {str(m): (float(a), float(b)) for m, (a, b) in value.items()}


def read_report(report: Any, *, key: str, what: str) -> ReportView:
    """Read a report.

    Parameters
    ----------
    report
        The object that a function of :mod:`cellsmith.metrics` returned, its ``to_uns()``, or an AnnData that stores
        the latter in ``.uns[key]``.
    key
        Name of the block in ``.uns``.
    what
        Function that makes such reports, for the message.

    Raises
    ------
    SetupError
        When there is no such report.
    """
    if is_anndata(report):
        if key not in report.uns:
            msg = (
                f"`.uns` has no {key!r}. {nearest(key, report.uns.keys())} Store a report with "
                f"`adata.uns[{key!r}] = cellsmith.metrics.{what}(...).to_uns()`, or give the report itself."
            )
            raise SetupError(msg)
        report = report.uns[key]
    get = report.get if isinstance(report, Mapping) else lambda name, default=None: getattr(report, name, default)
    table, curves = get("table"), get("curves")
    if table is None or curves is None:
        msg = f"Found {type(report).__name__}; expected the answer of `cellsmith.metrics.{what}` or its `.to_uns()`."
        raise SetupError(msg)
    table = pd.DataFrame(dict(table))
    verdict = {"yes": True, "no": False, "not judged": None}
    passed = [verdict[p] if isinstance(p, str) else p for p in table["passed"]]
    table["passed"] = pd.Series(passed, dtype=object, index=table.index)
    lfc = get("lfc")
    return ReportView(
        table=table,
        bounds=_pairs(get("bounds")),
        curves={str(k): np.asarray(v) for k, v in curves.items()},
        lfc=pd.DataFrame(dict(lfc)) if lfc is not None else pd.DataFrame(),
        intervals=_pairs(get("intervals")),
        settings=dict(get("settings") or {}),
    )


def _counts(adata: Any, layer: str | None, name: str) -> sparse.csr_matrix:
    if layer is not None and layer not in adata.layers:
        msg = f"`{name}` has no layer {layer!r}. {nearest(layer, adata.layers.keys())}"
        raise SetupError(msg)
    x = sparse.csr_matrix(adata.X if layer is None else adata.layers[layer], dtype=np.float64, copy=True)
    if not np.isfinite(x.data).all() or (x.data < 0).any():
        msg = f"`{name}` holds negative or non-finite values; expected counts. Name their layer with `layer=`."
        raise SetupError(msg)
    x.eliminate_zeros()
    return x


def log_normalised(adata: Any, *, layer: str | None, name: str) -> sparse.csr_matrix:
    """Return log1p of counts scaled to 1e4 a cell, CSR (n, G)."""
    x = _counts(adata, layer, name)
    total = np.asarray(x.sum(axis=1)).ravel()
    x.data = np.log1p(x.data * np.repeat(1e4 / np.where(total > 0, total, 1.0), np.diff(x.indptr)))
    return x


def count_summary(adata: Any, *, layer: str | None, name: str) -> dict[str, np.ndarray]:
    """Return library and genes detected (one a cell), zero fraction, mean and variance of counts (one a gene)."""
    x = _counts(adata, layer, name)
    found = sparse.csr_matrix(x > 0)
    mean = np.asarray(x.mean(axis=0)).ravel()
    return {
        "library": np.asarray(x.sum(axis=1)).ravel(),
        "genes_detected": np.asarray(found.sum(axis=1)).ravel().astype(float),
        "zero_fraction": 1.0 - np.asarray(found.mean(axis=0)).ravel(),
        "mean": mean,
        "variance": np.asarray(x.multiply(x).mean(axis=0)).ravel() - mean**2,
    }
