"""What every section of the demo is given."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cellsmith.demo._report import Figure

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = ["Context"]


@dataclass(frozen=True)
class Context:
    """Where to write, which seed to use, and how to tell the reader what happens.

    Parameters
    ----------
    out
        Folder of the results; it exists.
    seed
        Integer from which a section draws all its randomness.
    quick
        True for a run that only shows that everything works: few cells, hardly any training.
    say
        Called with one line of progress at a time.
    """

    out: Path
    seed: int
    quick: bool
    say: Callable[[str], None]

    @property
    def shows_progress(self) -> bool:
        """Whether training draws its bars: for somebody who watches, not into a file."""
        return sys.stderr.isatty() and not self.quick

    def picture(
        self, name: str, figure: matplotlib.figure.Figure, *, title: str, how_to_read: str, finding: str = ""
    ) -> Figure:
        """Save ``figures/<name>.png`` and return the picture for the report.

        Parameters
        ----------
        name
            File name without its ending.
        figure
            A matplotlib figure; it is closed.
        title, how_to_read, finding
            The words beside the picture, as in :class:`cellsmith.demo._report.Figure`.

        Returns
        -------
        The encoded picture with its words.
        """
        import matplotlib.pyplot as plt

        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", facecolor="white")
        plt.close(figure)
        folder = self.out / "figures"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.png").write_bytes(buffer.getvalue())
        return Figure(png=buffer.getvalue(), title=title, how_to_read=how_to_read, finding=finding)
