"""One line of the table that says how a method differs from what is published."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Deviation"]


@dataclass(frozen=True)
class Deviation:
    """One difference from the published method.

    Parameters
    ----------
    subject
        What differs.
    published
        What the published text or code says.
    change
        What this package does.
    why
        The reason.
    test
        The test that shows it.
    """

    subject: str
    published: str
    change: str
    why: str
    test: str
