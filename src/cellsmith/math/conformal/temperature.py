"""Temperatures for class probabilities, fitted on labelled cells or on two halves of the evidence (Eq. 15 of GRIT).

Symbols: P ``(n, C)`` class probabilities; T temperature, unitless.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from cellsmith._errors import SetupError

__all__ = ["BOUNDS", "apply_temperature", "fit_temperature", "split_half_accuracy", "split_half_temperature"]

Floats = npt.NDArray[np.float64]

BOUNDS = (0.05, 5.0)
"""Smallest and largest temperature."""
_FLOOR = 1e-12  # probability of a true class that the scores exclude, so that one anchor cannot make the loss infinite


def _log_rows(p: npt.ArrayLike, y: npt.NDArray[np.int64] | None = None) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return logs of the usable rows of p and the classes of these rows (-1: outside)."""
    values: Floats = np.asarray(p, dtype=np.float64)
    if values.ndim != 2:
        raise SetupError(f"Found probabilities of shape {values.shape}, expected (n, C).")
    codes = np.full(len(values), -1, dtype=np.int64) if y is None else np.asarray(y, dtype=np.int64)
    if codes.shape != values.shape[:1] or (codes.size and codes.max() >= values.shape[1]):
        raise SetupError(
            f"Found classes of shape {codes.shape} up to {codes.max(initial=-1)}, expected one for each of "
            f"{len(values)} rows, below {values.shape[1]} (-1: outside the classes)."
        )
    keep: npt.NDArray[np.bool_] = np.asarray(np.isfinite(values).all(axis=1) & (values > 0).any(axis=1))
    if y is not None:
        keep &= codes >= 0
    values, codes = values[keep], codes[keep]
    with np.errstate(divide="ignore"):
        logs = np.log(np.clip(values, 0.0, None))
    if y is not None:
        rows = np.arange(len(codes))
        logs[rows, codes] = np.maximum(logs[rows, codes], math.log(_FLOOR))
    return logs, codes


def _softmax(logs: Floats, temperature: float) -> Floats:
    z = (logs - logs.max(axis=1, keepdims=True)) / temperature
    out = np.exp(z)
    return np.asarray(out / out.sum(axis=1, keepdims=True))


def apply_temperature(p: npt.ArrayLike, temperature: float) -> Floats:
    """Return P^(1/T), rows renormalised; the order within a row does not change.

    Parameters
    ----------
    p
        ``(n, C)`` non-negative scores. A zero stays zero.
    temperature
        T > 0; below 1 sharpens, above 1 flattens.

    Returns
    -------
    ``(n, C)`` float64, rows sum to one; a row of zeros becomes uniform, a row with NaN stays NaN.

    Raises
    ------
    SetupError
        If T is not a positive finite number.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise SetupError(f"Found temperature {temperature!r}, expected a positive number.")
    values: Floats = np.clip(np.asarray(p, dtype=np.float64), 0.0, None)
    empty = np.asarray(~(values > 0).any(axis=1) & ~np.isnan(values).any(axis=1))
    values = np.where(empty[:, None], 1.0, values)
    with np.errstate(divide="ignore"):
        return _softmax(np.log(values), temperature)


def fit_temperature(p: npt.ArrayLike, y: npt.ArrayLike, *, bounds: tuple[float, float] = BOUNDS) -> float:
    """Return the temperature with the smallest negative log-likelihood on labelled cells (Eq. 15, with anchors).

    The loss is convex in 1/T, so the root of its derivative, or the nearer bound, is the minimum.

    Parameters
    ----------
    p
        ``(m, C)`` scores of the anchors. Rows that are NaN are left out.
    y
        ``(m,)`` column of each anchor's class; a negative entry (label outside the classes) is left out, because no
        temperature can serve it.
    bounds
        Smallest and largest T.

    Returns
    -------
    T, unitless.

    Raises
    ------
    SetupError
        If no anchor is usable, or the shapes do not fit.
    """
    logs, codes = _log_rows(p, np.asarray(y))
    if not len(codes):
        raise SetupError(
            "Found no anchor whose label is among the classes, expected at least one. Type calibrate='none'."
        )
    finite = np.where(np.isfinite(logs), logs, 0.0)
    observed = logs[np.arange(len(codes)), codes].mean()

    def slope(inverse: float) -> float:
        return float((_softmax(logs, 1.0 / inverse) * finite).sum(axis=1).mean() - observed)

    return _monotone_root(slope, bounds)


def _monotone_root(rising: Callable[[float], float], bounds: tuple[float, float]) -> float:
    """Return T at which a function that rises with 1/T crosses zero, or the bound nearest to the crossing."""
    low, high = 1.0 / bounds[1], 1.0 / bounds[0]
    if rising(low) >= 0:
        return float(bounds[1])
    if rising(high) <= 0:
        return float(bounds[0])
    return 1.0 / float(brentq(rising, low, high, xtol=1e-10))


def split_half_accuracy(p1: npt.ArrayLike, p2: npt.ArrayLike) -> float:
    """Estimate accuracy without labels from two independent halves of the evidence (Eq. 15, without labels).

    Two classifiers of accuracy a that err uniformly and independently agree with probability
    q = a^2 + (1 - a)^2 / (C - 1); the larger root a is returned, 1 / C where they agree less than chance.

    Parameters
    ----------
    p1, p2
        ``(n, C)`` refined scores from disjoint genes or from two thinned halves of the counts.

    Returns
    -------
    a in [1 / C, 1], where C counts the classes that have any mass.

    Raises
    ------
    SetupError
        If the shapes differ or no cell has two rows without NaN.
    """
    a, b = np.asarray(p1, dtype=np.float64), np.asarray(p2, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 2:
        raise SetupError(f"Found halves of shapes {a.shape} and {b.shape}, expected the same (n, C).")
    keep = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    if not keep.any():
        raise SetupError(f"Found no cell with scores in both halves among {len(a)}, expected at least one.")
    a, b = a[keep], b[keep]
    others = int(((a > 0) | (b > 0)).any(axis=0).sum()) - 1
    if others < 1:
        return 1.0
    q = float((a.argmax(axis=1) == b.argmax(axis=1)).mean())
    # (1 + 1/k) a^2 - (2/k) a + (1/k - q) = 0 with k = C - 1
    inner = 1.0 / others**2 - (1.0 + 1.0 / others) * (1.0 / others - q)
    return float((1.0 / others + math.sqrt(max(inner, 0.0))) / (1.0 + 1.0 / others))


def split_half_temperature(
    p1: npt.ArrayLike, p2: npt.ArrayLike, p: npt.ArrayLike, *, bounds: tuple[float, float] = BOUNDS
) -> float:
    """Return T such that the mean confidence equals the accuracy that two halves suggest (Eq. 15, without labels).

    Parameters
    ----------
    p1, p2
        ``(n, C)`` refined scores of the halves, see `split_half_accuracy`.
    p
        ``(N, C)`` refined scores to be calibrated. Rows that are NaN are left out.
    bounds
        Smallest and largest T.

    Returns
    -------
    T, unitless; a bound where no T inside reaches that mean.

    Raises
    ------
    SetupError
        If the halves do not fit each other, or ``p`` has no usable row.
    """
    target = split_half_accuracy(p1, p2)
    logs, _ = _log_rows(p)
    if not len(logs):
        raise SetupError("Found no row of `p` without NaN and with a positive entry, expected at least one.")
    return _monotone_root(lambda inverse: float(_softmax(logs, 1.0 / inverse).max(axis=1).mean()) - target, bounds)
