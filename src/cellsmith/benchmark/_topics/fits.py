"""Fits that several questions share, kept on disk: a fit is dear, a score is cheap."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cellsmith.benchmark._topics.cases import Case
from cellsmith.benchmark._topics.peers import Fit, Method, timed

__all__ = ["Fits"]

logger = logging.getLogger("cellsmith")


class Fits:
    """Run a method once for a file, number of topics and seed, and remember what it found.

    Parameters
    ----------
    methods
        Name -> method.
    folder
        Where fits are kept as ``.npz``; None keeps them in memory.
    """

    def __init__(self, methods: Mapping[str, Method], folder: Path | None = None) -> None:
        self.methods, self.folder = dict(methods), folder
        self._kept: dict[str, Fit] = {}

    def get(self, case: Case, name: str, *, n_topics: int, seed: int) -> Fit:
        """Return the fit of a method.

        Parameters
        ----------
        case
            The cells.
        name
            Name of the method.
        n_topics, seed
            Number of topics, seed.
        """
        key = re.sub(r"[^\w.]+", "_", f"{case.file} {name} {n_topics} {seed}")
        path = None if self.folder is None else self.folder / f"{key}.npz"
        if path is not None and path.is_file():
            return _read(path)
        if key not in self._kept:
            logger.info("fitting %s on %s, %d topics, seed %d", name, case.file, n_topics, seed)
            found = timed(self.methods[name], case, n_topics, seed)
            if path is None:
                self._kept[key] = found
            else:
                _write(path, found)
            return found
        return self._kept[key]


def _write(path: Path, fit: Fit) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"space {k}": v for k, v in fit.spaces.items()} | {f"loadings {k}": v for k, v in fit.loadings.items()}
    np.savez_compressed(path, **arrays, seconds=np.float64(fit.seconds))


def _read(path: Path) -> Fit:
    with np.load(path) as stored:
        get = {
            kind: {k.removeprefix(f"{kind} "): stored[k] for k in stored.files if k.startswith(f"{kind} ")}
            for kind in ("space", "loadings")
        }
        return Fit(get["space"], get["loadings"], float(stored["seconds"]))
