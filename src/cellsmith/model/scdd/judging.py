"""Which iterate to keep: readers fitted to the profiles, scored on training cells that the optimisation did not see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cellsmith.model.scdd import equations as eq

__all__ = ["HeldOut", "folds_of"]

# Classes with fewer cells give none away.
LEAST_CELLS = 5
LR_STEPS = 200
READERS = ("linear", "centroid", "neighbour")
TINY = 1e-13
# Temperatures of the readers by distance that are compared at step 0, in units of the mean squared distance.
TEMPERATURES = np.logspace(-3, 1, 25)


def folds_of(labels: np.ndarray, *, n_folds: int, generator: np.random.Generator) -> np.ndarray:
    """Deal the cells of every class with at least 5 cells out to folds, as evenly as they go.

    Parameters
    ----------
    labels
        Class of each cell (n,).
    n_folds
        How many.
    generator
        The stream "split".

    Returns
    -------
    Fold of each cell (n,), in which it judges; -1 for cells of smaller classes, which never judge.
    """
    fold = np.full(len(labels), -1)
    for k in np.unique(labels):
        rows = np.flatnonzero(labels == k)
        if len(rows) >= LEAST_CELLS:
            # A random first fold: small classes would otherwise all judge in the first ones.
            fold[generator.permutation(rows)] = (np.arange(len(rows)) + generator.integers(n_folds)) % n_folds
    return fold


class HeldOut:
    """What three readers of profiles make of held-out cells: logistic regression, nearest centroid and neighbour.

    Their errors decide which iterate is kept; their log-losses are recorded beside them.

    The neighbour is there because the other two cannot see profiles of a class drift apart, which ruins it.

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
        self._temperatures: dict[str, float] = {}
        self.losses: list[np.ndarray] = []
        self.wrong: list[np.ndarray] = []
        self.steps: list[int] = []

    @classmethod
    def pooled(cls, folds: Sequence[HeldOut]) -> HeldOut:
        """Return what all folds found, as if their cells had been held out together."""
        first = folds[0]
        whole = cls(first._phi[:0], np.concatenate([f.labels for f in folds]), first._profile_labels)
        whole.losses = [np.concatenate(parts, axis=1) for parts in zip(*(f.losses for f in folds), strict=True)]
        whole.wrong = [np.concatenate(parts, axis=1) for parts in zip(*(f.wrong for f in folds), strict=True)]
        whole.steps = list(first.steps)
        return whole

    def judge(self, step: int, phi: np.ndarray) -> None:
        """Score the profiles (M, G, log views) of a step."""
        answers = [self._linear(phi), self._centroid(phi), self._neighbour(phi)]
        self.losses.append(np.stack([loss for loss, _ in answers]))
        self.wrong.append(np.stack([named != self.labels for _, named in answers]))
        self.steps.append(step)

    def choose(self) -> eq.Choice:
        """Return the iterate to keep (section "selection" of the equations)."""
        return eq.best_iterate(np.stack(self.wrong), self.labels)

    def curve(self) -> dict[str, Any]:
        """Return the steps, their balanced log-loss (nats), that of each reader, and the share of errors of each."""
        curves = np.array([[self._balanced(reader) for reader in x] for x in self.losses]).T
        errors = np.stack(self.wrong).mean(axis=2).T
        named = {f"{reader}_errors": e for reader, e in zip(READERS, errors, strict=True)}
        every = dict(zip(READERS, curves, strict=True))
        return {"step": np.array(self.steps), "loss": curves.mean(axis=0), **every, **named}

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

    def _linear(self, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the loss of each held-out cell, and the class that it is given."""
        from sklearn.linear_model import LogisticRegression

        reader = LogisticRegression(C=1.0, max_iter=LR_STEPS).fit(phi, self._profile_labels)
        log_proba = reader.predict_log_proba(self._phi)
        return self._own(log_proba, reader.classes_), reader.classes_[log_proba.argmax(axis=1)]

    def _centroid(self, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        classes = np.unique(self._profile_labels)
        centroids = np.stack([phi[self._profile_labels == k].mean(axis=0) for k in classes])
        return self._by_distance("centroid", centroids, classes)

    def _neighbour(self, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._by_distance("neighbour", phi, self._profile_labels)

    def _by_distance(self, reader: str, places: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the loss of a softmax over minus the squared distances, added up within classes, and the nearest."""
        from scipy.spatial.distance import cdist

        squared = cdist(self._phi, places, "sqeuclidean")
        classes, codes = np.unique(labels, return_inverse=True)

        def loss(temperature: float) -> np.ndarray:
            shares = np.exp(_log_softmax(-squared / temperature)) @ np.eye(len(classes))[codes]
            return self._own(np.log(np.maximum(shares, TINY)), classes)

        if reader not in self._temperatures:
            # Set once, at step 0: later iterates are read in the way that suits the first.
            scales = TEMPERATURES * squared.mean()
            self._temperatures[reader] = float(scales[int(np.argmin([self._balanced(loss(t)) for t in scales]))])
        return loss(self._temperatures[reader]), labels[squared.argmin(axis=1)]


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
