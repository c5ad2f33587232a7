"""Which iterate to keep: readers fitted to the profiles, scored on training cells that the optimisation did not see."""

from __future__ import annotations

from typing import Any

import numpy as np

from cellsmith.model.scdd import equations as eq

__all__ = ["HeldOut", "hold_out"]

# Classes with fewer cells give none away.
LEAST_CELLS = 5
LR_STEPS = 200
# Temperatures of the nearest-centroid reader that are compared at step 0, in units of the mean squared distance.
TEMPERATURES = np.logspace(-3, 1, 25)


def hold_out(labels: np.ndarray, *, fraction: float, generator: np.random.Generator) -> np.ndarray:
    """Mark cells that judge iterates: ``fraction`` of every class with at least 5 cells, at least one.

    Parameters
    ----------
    labels
        Class of each cell (n,).
    fraction
        Share of a class.
    generator
        The stream "split".

    Returns
    -------
    Boolean (n,).
    """
    held = np.zeros(len(labels), dtype=bool)
    for k in np.unique(labels):
        rows = np.flatnonzero(labels == k)
        if len(rows) >= LEAST_CELLS:
            held[generator.permutation(rows)[: max(1, round(fraction * len(rows)))]] = True
    return held


class HeldOut:
    """Log-loss of held-out cells under readers fitted to profiles: logistic regression and nearest centroid.

    Parameters
    ----------
    phi
        Log views of the held-out cells (n, G).
    labels
        Their classes (n,).
    profile_labels
        Classes of the profiles (M,).
    """

    def __init__(self, phi: np.ndarray, labels: np.ndarray, profile_labels: np.ndarray) -> None:
        self._phi, self.labels, self._profile_labels = phi, labels, profile_labels
        self._temperature: float | None = None
        self.losses: list[np.ndarray] = []
        self.steps: list[int] = []

    def judge(self, step: int, phi: np.ndarray) -> float:
        """Score the profiles (M, G, log views) of a step; return their balanced log-loss, nats."""
        both = 0.5 * (self._linear(phi) + self._centroid(phi))
        self.losses.append(both)
        self.steps.append(step)
        return float(self._balanced(both))

    def choose(self) -> eq.Choice:
        """Return the iterate to keep (section "selection" of the equations)."""
        return eq.best_iterate(np.stack(self.losses), self.labels)

    def curve(self) -> dict[str, Any]:
        """Return the steps and their balanced log-loss, nats."""
        return {"step": np.array(self.steps), "loss": np.array([self._balanced(x) for x in self.losses])}

    def _balanced(self, losses: np.ndarray) -> float:
        sizes = np.bincount(self.labels)
        means = np.bincount(self.labels, weights=losses) / np.maximum(sizes, 1)
        return float(means[sizes > 0].mean())

    def _own(self, log_proba: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return minus the log-probability of each cell's own class; 30 nats where no profile shows that class."""
        column = np.full(int(max(self.labels.max(), classes.max())) + 1, -1)
        column[classes] = np.arange(len(classes))
        at = column[self.labels]
        values = -log_proba[np.arange(len(at)), np.maximum(at, 0)]
        return np.where(at >= 0, np.minimum(values, 30.0), 30.0)

    def _linear(self, phi: np.ndarray) -> np.ndarray:
        from sklearn.linear_model import LogisticRegression

        reader = LogisticRegression(C=1.0, max_iter=LR_STEPS).fit(phi, self._profile_labels)
        return self._own(reader.predict_log_proba(self._phi), reader.classes_)

    def _centroid(self, phi: np.ndarray) -> np.ndarray:
        from scipy.spatial.distance import cdist

        classes = np.unique(self._profile_labels)
        centroids = np.stack([phi[self._profile_labels == k].mean(axis=0) for k in classes])
        squared = cdist(self._phi, centroids, "sqeuclidean")
        if self._temperature is None:
            # Set once, at step 0: later iterates are read in the way that suits the first.
            scales = TEMPERATURES * squared.mean()
            losses = [self._balanced(self._own(_log_softmax(-squared / t), classes)) for t in scales]
            self._temperature = float(scales[int(np.argmin(losses))])
        return self._own(_log_softmax(-squared / self._temperature), classes)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
