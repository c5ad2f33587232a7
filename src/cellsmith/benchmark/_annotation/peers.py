"""What GRIT is compared with: functions from a case to refined scores."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from cellsmith._errors import OverSmoothingWarning, SetupError, nearest
from cellsmith.benchmark._annotation.cases import Case

__all__ = ["DEFAULT", "GRITS", "METHODS", "PEERS", "Refined", "label_spreading", "pick", "refine", "vote"]

SPREADING = 0.9  # share of a cell's label that comes from its neighbours
_TOLERANCE = 1e-8
_FLOOR = 1e-12  # probability whose logarithm is still a number


@dataclass(frozen=True)
class Refined:
    """Refined scores.

    Parameters
    ----------
    scores
        Shape (n, C); the best column is the label.
    confidence
        Of the label, shape (n,).
    warned
        Whether the method warned of over-smoothing.
    record
        What GRIT wrote into ``.uns``; empty for others.
    """

    scores: np.ndarray
    confidence: np.ndarray
    warned: bool = False
    record: Mapping[str, Any] | None = None

    @property
    def labels(self) -> np.ndarray:
        """Column of the best class, shape (n,)."""
        return self.scores.argmax(axis=1)


Method = Callable[[Case], "np.ndarray | Refined"]


def raw(case: Case) -> np.ndarray:
    """Return the scores as given."""
    return case.scores


def one_hot(scores: np.ndarray) -> np.ndarray:
    """Return 1 for the best class of each row, 0 elsewhere."""
    return np.eye(scores.shape[1])[scores.argmax(axis=1)]


def vote(case: Case) -> np.ndarray:
    """Give every cell the most frequent label of its cluster in an over-clustering, as CellTypist does.

    No least share of the votes is asked for; equal votes go to the first class.

    Returns
    -------
    Shares of the votes in the cell's cluster, (n, C).
    """
    clusters = case.cells.clusters(case.seed)
    votes = np.zeros((clusters.max() + 1, case.scores.shape[1]))
    np.add.at(votes, (clusters, case.scores.argmax(axis=1)), 1.0)
    return (votes / votes.sum(axis=1, keepdims=True))[clusters]


def label_spreading(graph: Any, labels: np.ndarray, *, alpha: float = SPREADING) -> np.ndarray:
    """Spread labels over a graph: iterate F <- a D^-1/2 A D^-1/2 F + (1 - a) Y (Zhou et al., 2004).

    Parameters
    ----------
    graph
        A, sparse (n, n), symmetric, without self-loops.
    labels
        Y, one-hot or soft, (n, C).
    alpha
        a in (0, 1).

    Returns
    -------
    The fixed point (1 - a)(I - a D^-1/2 A D^-1/2)^-1 Y, (n, C), to 1e-8.
    """
    degree = np.asarray(graph.sum(axis=1), dtype=np.float64).ravel()
    root = np.divide(1.0, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)
    spread = alpha * sparse.diags(root) @ graph @ sparse.diags(root)
    found = labels
    while True:
        new = spread @ found + (1.0 - alpha) * labels
        if np.abs(new - found).max() <= _TOLERANCE * (1.0 - alpha):
            return new
        found = new


def spread_labels(case: Case) -> np.ndarray:
    """Spread the hard labels with a = 0.9."""
    return label_spreading(case.cells.graph, one_hot(case.scores))


def neighbor_mean(case: Case) -> np.ndarray:
    """Take the weighted mean of the neighbours' scores once; an isolated cell keeps its own."""
    graph = case.cells.graph
    degree = np.asarray(graph.sum(axis=1)).ravel()
    mean = (graph @ case.scores) / np.where(degree > 0, degree, 1.0)[:, None]
    return np.where(degree[:, None] > 0, mean, case.scores)


def neighbor_mean_with_self(case: Case) -> np.ndarray:
    """Take that mean with the cell itself at weight one, the largest weight that a neighbour can have."""
    graph = case.cells.graph
    degree = np.asarray(graph.sum(axis=1)).ravel()
    return (graph @ case.scores + case.scores) / (1.0 + degree)[:, None]


def grit(
    case: Case, *, scores: np.ndarray | None = None, anchor_labels: np.ndarray | None = None, **options: Any
) -> Refined:
    """Run the door of GRIT on the graph that all methods share.

    Parameters
    ----------
    case
        The case.
    scores
        Scores in place of those of the case, (n, C).
    anchor_labels
        Names of classes that are known, (n,); "unknown" elsewhere.
    **options
        Arguments of :func:`cellsmith.tl.grit`.
    """
    from cellsmith.tl import grit as door

    cells = case.skeleton()
    settings: dict[str, Any] = {"classes": list(case.classes), "space": case.space, "neighbors_key": "neighbors"}
    if anchor_labels is not None:
        cells.obs["anchors"] = anchor_labels
        settings["labels_key"] = "anchors"
    scores = case.scores if scores is None else scores
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        door(cells, scores, **{**settings, "rng": case.seed, **options})
    warned = any(issubclass(w.category, OverSmoothingWarning) for w in caught)
    refined = np.asarray(cells.obsm["grit_proba"], dtype=np.float64)
    return Refined(refined, cells.obs["grit_confidence"].to_numpy(dtype=np.float64), warned, cells.uns["grit"])


def scprint(case: Case) -> Refined:
    """Smooth log-scores with D - A and lambda 0.1, as the refinement of scPRINT-2 does by default."""
    logits = np.log(np.clip(case.scores, _FLOOR, None))
    return grit(case, scores=logits, variant="paper", laplacian="comb", smoothness_weight=0.1, space="raw")


def _variant(options: Mapping[str, Any]) -> Method:
    return lambda case: grit(case, **options)


DEFAULT = "GRIT"
GRITS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "GRIT sym 1": {"smoothness_weight": 1.0},
    "GRIT sym 10": {"smoothness_weight": 10.0},
    "GRIT rw 5": {"laplacian": "rw"},
    "GRIT comb 1": {"laplacian": "comb", "smoothness_weight": 1.0},
    "GRIT confidence": {"fidelity": "confidence"},
    "GRIT half prior": {"prior_correction": "half"},
    "GRIT confidence, half prior": {"fidelity": "confidence", "prior_correction": "half"},
    "GRIT protect 0.5": {"protect": 0.5},
}
"""Variant -> what it passes to the door; the first is the default, sym with lambda 5."""

PEERS: dict[str, Method] = {
    "raw": raw,
    "CellTypist-style vote": vote,
    "label spreading": spread_labels,
    "kNN mean": neighbor_mean,
    "kNN mean with self": neighbor_mean_with_self,
    "scPRINT-2 defaults": scprint,
}
"""Peer -> function."""

METHODS: tuple[str, ...] = (*PEERS, *GRITS)
"""All methods in the order of the tables."""


def pick(chosen: str | Iterable[str] | Mapping[str, Method] = "all") -> dict[str, Method]:
    """Return functions by name.

    Parameters
    ----------
    chosen
        ``"all"``, ``"peers"``, ``"grit"``, names, or a mapping name -> function, which is added to all.

    Raises
    ------
    SetupError
        For an unknown name.
    """
    known: dict[str, Method] = {**PEERS, **{name: _variant(options) for name, options in GRITS.items()}}
    if isinstance(chosen, Mapping):
        return {**known, **chosen}
    groups = {"all": METHODS, "peers": tuple(PEERS), "grit": tuple(GRITS)}
    names = groups.get(chosen, (chosen,)) if isinstance(chosen, str) else tuple(chosen)
    for name in names:
        if name not in known:
            raise SetupError(f"The method {name!r} is unknown. {nearest(name, (*groups, *known))}")
    return {name: known[name] for name in names}


def refine(case: Case, method: Method) -> Refined:
    """Run a method and check what it returned.

    Raises
    ------
    SetupError
        If the shape is not that of the scores.
    """
    found = method(case)
    if not isinstance(found, Refined):
        scores = np.asarray(found, dtype=np.float64)
        if scores.shape != case.scores.shape:
            raise SetupError(f"A method returned shape {scores.shape}; expected scores of shape {case.scores.shape}.")
        return Refined(scores, scores.max(axis=1))
    return found
