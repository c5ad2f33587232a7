"""Errors and warnings of cellsmith.

Every message names what was found, what was expected and what to type next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CellsmithError",
    "CellsmithWarning",
    "ConvergenceError",
    "DataWarning",
    "MissingExtraError",
    "MissingnessWarning",
    "NotTrainedError",
    "OverSmoothingWarning",
    "PrivacyError",
    "PrivacyWarning",
    "SetupError",
    "SizeError",
    "nearest",
]


class CellsmithError(Exception):
    """Base of every error that cellsmith raises on purpose."""


class SetupError(CellsmithError, ValueError):
    """The data, a registration or an argument does not fit the method."""


class NotTrainedError(CellsmithError, RuntimeError):
    """A query needs a trained model."""


class ConvergenceError(CellsmithError, RuntimeError):
    """An iteration diverged or stopped short of its tolerance."""


class PrivacyError(CellsmithError, ValueError):
    """A privacy statement would be void."""


class SizeError(CellsmithError, MemoryError):
    """A request would allocate more memory than the method allows."""


class MissingExtraError(CellsmithError, ImportError):
    """An optional dependency is not installed."""


class CellsmithWarning(UserWarning):
    """Base of every warning that cellsmith emits on purpose."""


class DataWarning(CellsmithWarning):
    """The data are usable, but something about them deserves a look."""


class MissingnessWarning(CellsmithWarning):
    """Entries are missing in a way that limits what can be said."""


class OverSmoothingWarning(CellsmithWarning):
    """Smoothing erased structure that the input had."""


class PrivacyWarning(CellsmithWarning):
    """A number about privacy must not be read as more than it is."""


def nearest(name: object, valid: Iterable[object]) -> str:
    """Return a hint that lists the valid names, the closest first named.

    Parameters
    ----------
    name
        What the user typed.
    valid
        The names that would have been accepted.

    Returns
    -------
    A sentence such as ``"Did you mean 'batch_key'? Valid: 'batch_key', 'layer'."``. Where a name was typed as text and
    the valid one is a number, or the other way round, it says that: ``"Those are integers: type 1, not '1'. ..."``.
    """
    given = [v for v in valid if not str(v).startswith("_scvi_")]  # columns that scvi-tools keeps for itself
    options = [str(v) for v in given]
    twin = next((v for v in given if str(v) == str(name) and isinstance(v, str) != isinstance(name, str)), None)
    close = difflib.get_close_matches(str(name), options, n=1, cutoff=0.5)
    hint = ""
    if twin is not None:
        hint = f"Those are {_kind(twin)}: type {_typed(twin)}, not {_typed(name)}. "
    elif close:
        hint = f"Did you mean {_typed(given[options.index(close[0])])}? "
    shown = ", ".join(_typed(v) for v in given[:20]) + (", ..." if len(given) > 20 else "")
    return f"{hint}Valid: {shown or '(none)'}."


def _typed(value: object) -> str:
    """Return what a user types for a value: ``'NK'`` and ``1``, not ``np.str_('NK')`` and ``np.int64(1)``."""
    return repr(getattr(value, "item", lambda: value)()) if not isinstance(value, str) else repr(str(value))


def _kind(value: object) -> str:
    if isinstance(value, str):
        return "text"
    plain = getattr(value, "item", lambda: value)()
    return {bool: "true or false", int: "integers", float: "numbers"}.get(
        type(plain), f"of type {type(plain).__name__}"
    )
