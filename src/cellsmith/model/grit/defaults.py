"""Defaults that can be told from the same number typed by a user, because leaving them out means something."""

from __future__ import annotations

__all__ = ["SCORE_TEMPERATURE", "SMOOTHNESS_WEIGHT", "Default"]


class Default(float):
    """A number that nobody typed."""


SMOOTHNESS_WEIGHT = Default(5.0)
SCORE_TEMPERATURE = Default(1.0)
