"""What is published of scE2TM, what is this package's own, and which test shows it."""

from __future__ import annotations

DEVIATIONS = ()
