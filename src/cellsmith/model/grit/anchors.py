"""Cells whose label is known: which of them hold the solution fixed, and which measure it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellsmith._errors import SetupError, nearest

__all__ = ["ANCHORS", "NONE", "OUTSIDE", "Anchors", "anchor_codes", "divide"]

ANCHORS = ("split", "clamp", "calibrate")
OUTSIDE, NONE = -1, -2  # known to be none of the classes; not known
FEWEST = 50  # anchors below which a split would leave neither half of use
MOST_FITTED = 50  # of those that calibrate, for the temperature: one number needs no more

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Anchors:
    """Known labels.

    Parameters
    ----------
    codes
        (n,) column of the class; OUTSIDE or NONE.
    clamped
        Positions of cells whose scores are held at their label.
    calibrate
        Positions of cells that calibrate a rejection: a random sample of the anchors, never clamped and never seen by
        the temperature.
    fitted
        Positions of cells that fit the temperature.
    note
        What a user should know about the split, or "".
    """

    codes: Codes
    clamped: npt.NDArray[np.intp]
    calibrate: npt.NDArray[np.intp]
    fitted: npt.NDArray[np.intp]
    note: str = ""


def anchor_codes(labels: Any, classes: tuple[str, ...]) -> Codes:
    """Return the column of every label (n,) among the classes; None is no label.

    Parameters
    ----------
    labels
        One text a cell, or None.
    classes
        Names of the C classes.
    """
    column = {name: k for k, name in enumerate(classes)}
    return np.array([NONE if v is None else column.get(v, OUTSIDE) for v in labels], dtype=np.int64)


def divide(codes: Codes, how: str, *, names: Any, generator: np.random.Generator, temperature: bool = True) -> Anchors:
    """Decide what every anchor is used for.

    Parameters
    ----------
    codes
        (n,) as `anchor_codes` returns.
    how
        "split": half of the anchors, a simple random sample, calibrates; the rest is clamped, and fits the
        temperature; below 50 anchors all are clamped. "clamp": all are clamped. "calibrate": all calibrate; of 50 or
        more, a random half, at most 50, fits the temperature instead.
    names
        (n,) labels as text, for the message.
    generator
        Draws the split.
    temperature
        Whether there will be one.

    Raises
    ------
    SetupError
        For labels outside the classes with "clamp", and for an unknown option.
    """
    if how not in ANCHORS:
        raise SetupError(f"anchors={how!r}. {nearest(how, ANCHORS)}")
    known = np.flatnonzero(codes != NONE)
    outside = known[codes[known] == OUTSIDE]
    if how == "clamp" and outside.size:
        found = sorted({str(names[i]) for i in outside})
        raise SetupError(
            f"{outside.size} anchors have labels outside the classes: {found[:10]}; anchors='clamp' can only hold a "
            "cell at one of the classes. Type anchors='calibrate' or 'split', or remove these labels."
        )
    note = ""
    if how == "split" and known.size < FEWEST:
        note = (
            f"{known.size} anchors are clamped and none calibrates: anchors='split' needs {FEWEST}."
            if known.size
            else ""
        )
        test = known[:0]
    elif how == "split":
        test = np.sort(generator.choice(known, size=known.size // 2, replace=False))
    else:
        test = known if how == "calibrate" else known[:0]
    clamped = np.setdiff1d(known, test)
    # a label outside the classes cannot be held, whichever half it fell into
    clamped = clamped[codes[clamped] >= 0]
    fitted = clamped[:0]
    if temperature and how == "split" and test.size:
        fitted = clamped
    elif temperature and how == "calibrate" and known.size >= FEWEST:
        fitted = np.sort(generator.choice(known, size=min(known.size // 2, MOST_FITTED), replace=False))
        test = np.setdiff1d(test, fitted)
    return Anchors(codes, clamped, test, fitted, note)
