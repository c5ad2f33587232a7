"""Adapters: scores of classes, from whatever an annotator returned. Nothing here changes an AnnData."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit, logsumexp

from cellsmith._errors import SetupError, nearest
from cellsmith.math.ontology import Ontology, parse_ontology
from cellsmith.model.grit.equations import ROW_SUM_SLACK, SPACES

__all__ = [
    "Scores",
    "from_celltypist",
    "from_embeddings",
    "from_labels",
    "from_popv",
    "from_scanvi",
    "from_singler",
    "read_ontology",
]

ABSTAINS = frozenset({"", "unknown", "unassigned", "nan", "none", "na"})
POOLS = ("mean", "max", "logsumexp")


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of classes and what is known about them.

    Parameters
    ----------
    values
        (n, C) numbers; a row of NaN is a cell without scores.
    classes
        C distinct names.
    space
        One of "prob", "ovr", "similarity", "logit", "raw", or "auto" to infer it.
    obs_names
        Names of the n cells, or None for "in the order of the object".
    source
        Who made them, for the record.

    Raises
    ------
    SetupError
        If shapes and names do not fit each other, or the space does not exist.
    """

    values: npt.NDArray[Any]
    classes: tuple[str, ...]
    space: str = "auto"
    obs_names: npt.NDArray[np.object_] | None = None
    source: str = "array"

    def __post_init__(self) -> None:
        shape = np.shape(self.values)
        if len(shape) != 2 or shape[1] != len(self.classes) or len(set(self.classes)) != len(self.classes):
            raise SetupError(
                f"Found scores of shape {shape} with {len(self.classes)} class names, {len(set(self.classes))} of them "
                "distinct; expected (cells, classes) with one distinct name a column."
            )
        if self.space not in (*SPACES, "auto"):
            raise SetupError(f"space={self.space!r}. {nearest(self.space, (*SPACES, 'auto'))}")
        if self.obs_names is not None and len(self.obs_names) != shape[0]:
            raise SetupError(f"Found {len(self.obs_names)} cell names for {shape[0]} rows of scores; expected as many.")


def from_embeddings(
    cell: npt.ArrayLike,
    text: npt.ArrayLike,
    *,
    classes: Sequence[str],
    similarity_temperature: float = 0.05,
    pool: str = "mean",
) -> Scores:
    """Zero-shot probabilities from a joint embedding of cells and texts: softmax(cosine / temperature).

    Parameters
    ----------
    cell
        (n, d) embeddings of cells.
    text
        (prompts, d) embeddings of texts.
    classes
        The class of every prompt; a class with several prompts is pooled.
    similarity_temperature
        Unit of cosines; 0.05 is what CLIP-style models are trained with.
    pool
        Over the prompts of a class: "mean" of cosines, "max", or "logsumexp" (a soft maximum at that temperature).

    Returns
    -------
    Scores in the space "prob"; classes in the order of their first prompt.

    Raises
    ------
    SetupError
        If the dimensions differ, a prompt lacks a class, or an option does not exist.
    """
    cells, texts = (np.asarray(x, dtype=np.float64) for x in (cell, text))
    names = [str(c) for c in classes]
    if cells.ndim != 2 or texts.ndim != 2 or cells.shape[1] != texts.shape[1] or len(names) != len(texts):
        raise SetupError(
            f"Found cells of shape {cells.shape}, texts of shape {texts.shape} and {len(names)} classes; expected "
            "(n, d), (prompts, d) and one class a prompt."
        )
    if pool not in POOLS:
        raise SetupError(f"pool={pool!r}. {nearest(pool, POOLS)}")
    if not similarity_temperature > 0:
        raise SetupError(f"similarity_temperature={similarity_temperature}; expected a positive number, such as 0.05.")
    cosine = _unit(cells) @ _unit(texts).T / similarity_temperature
    kinds = tuple(dict.fromkeys(names))
    table = np.empty((len(cells), len(kinds)))
    for j, kind in enumerate(kinds):
        mine = cosine[:, [name == kind for name in names]]
        if pool == "logsumexp":
            table[:, j] = logsumexp(mine, axis=1) - np.log(mine.shape[1])
        else:
            table[:, j] = mine.mean(axis=1) if pool == "mean" else mine.max(axis=1)
    return Scores(np.exp(table - logsumexp(table, axis=1, keepdims=True)), kinds, "prob", None, "embeddings")


def _unit(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(length > 0, length, 1.0))


def from_scanvi(model: Any, adata: Any = None) -> Scores:
    """Class probabilities of a trained scANVI model.

    Parameters
    ----------
    model
        Trained :class:`scvi.model.SCANVI`, or any object with ``predict(adata, soft=True)``.
    adata
        Cells; None is the model's own.

    Returns
    -------
    Scores in the space "prob".
    """
    return _from_frame(model.predict(adata, soft=True), space="prob", source="scanvi")


def from_celltypist(result: Any) -> Scores:
    """Scores of CellTypist.

    Parameters
    ----------
    result
        What ``celltypist.annotate`` returned: an object with ``probability_matrix`` or ``decision_matrix``, cells x
        classes.

    Returns
    -------
    Scores in the space "prob" if all rows sum to one; else "ovr": independent probabilities of each class, which must
    not be forced to sum to one, because "all small" is how an unknown type shows. Decision values go through the
    logistic function, as CellTypist does it.

    Raises
    ------
    SetupError
        If the object has neither matrix.
    """
    frame = getattr(result, "probability_matrix", None)
    if frame is None:
        decision = getattr(result, "decision_matrix", None)
        if decision is None:
            raise SetupError(
                f"Found a {type(result).__name__} without 'probability_matrix' and 'decision_matrix'; expected what "
                "celltypist.annotate(...) returned."
            )
        frame = pd.DataFrame(expit(decision.to_numpy(dtype=np.float64)), decision.index, decision.columns)
    sums = frame.to_numpy(dtype=np.float64).sum(axis=1)
    space = "prob" if np.abs(sums - 1.0).max(initial=0.0) <= ROW_SUM_SLACK else "ovr"
    return _from_frame(frame, space=space, source="celltypist")


def from_popv(frame_or_adata: Any, columns: Sequence[str]) -> Scores:
    """Vote frequencies of several methods.

    Parameters
    ----------
    frame_or_adata
        Table of labels, or an AnnData whose ``.obs`` holds them.
    columns
        One column a method. A method that abstains (missing, "unknown", "unassigned") casts no vote.

    Returns
    -------
    Scores in the space "prob": votes for a class divided by votes cast; NaN for a cell without any vote.

    Raises
    ------
    SetupError
        If a column is missing, or nobody votes.
    """
    frame = getattr(frame_or_adata, "obs", frame_or_adata)
    for column in columns:
        if column not in frame:
            raise SetupError(f"{column!r} is not a column of the labels. {nearest(column, frame.columns)}")
    votes = [_one_hot(frame[column]) for column in columns]
    classes = sorted({name for found in votes for name in found.columns})
    if not classes:
        raise SetupError(f"Found no vote in {list(columns)}; expected at least one label that is not missing.")
    total = sum(found.reindex(columns=classes, fill_value=0.0).to_numpy() for found in votes)
    cast = total.sum(axis=1, keepdims=True)
    values = np.where(cast > 0, total / np.where(cast > 0, cast, 1.0), np.nan)
    return Scores(values, tuple(classes), "prob", frame.index.to_numpy(dtype=object), "popv")


def _one_hot(labels: pd.Series) -> pd.DataFrame:
    """Cells x classes of 0 and 1; a row of zeros abstains."""
    text = labels.astype(object).map(lambda v: None if pd.isna(v) or str(v).strip().lower() in ABSTAINS else str(v))
    return pd.get_dummies(text, dtype=float)


def from_singler(frame: pd.DataFrame) -> Scores:
    """Correlations of SingleR.

    Parameters
    ----------
    frame
        Table with one column ``scores.<class>`` a class, as R writes it.

    Returns
    -------
    Scores in the space "similarity"; refining them needs ``score_temperature``.

    Raises
    ------
    SetupError
        If there is no such column.
    """
    found = [c for c in frame.columns if str(c).startswith("scores.")]
    if not found:
        raise SetupError(f"Found columns {list(frame.columns)[:8]}; expected 'scores.<class>', as SingleR names them.")
    table = frame[found].rename(columns=lambda c: str(c).removeprefix("scores."))
    return _from_frame(table, space="similarity", source="singler")


def from_labels(series: pd.Series) -> Scores:
    """One-hot scores of hard labels; refining them is a form of label spreading.

    Parameters
    ----------
    series
        One label a cell, indexed by cell names; a missing one leaves the cell to its neighbours.

    Returns
    -------
    Scores in the space "prob".

    Raises
    ------
    SetupError
        If every label is missing.
    """
    labels = pd.Categorical(series)
    names = [str(c) for c in labels.remove_unused_categories().categories]
    if not names:
        raise SetupError(f"Found {len(labels)} labels, all of them missing; expected at least one.")
    codes = labels.remove_unused_categories().codes
    values = np.where((codes < 0)[:, None], np.nan, np.eye(len(names))[np.maximum(codes, 0)])
    return Scores(values, tuple(names), "prob", series.index.to_numpy(dtype=object), "labels")


def _from_frame(frame: pd.DataFrame, *, space: str, source: str) -> Scores:
    names = tuple(str(c) for c in frame.columns)
    return Scores(frame.to_numpy(dtype=np.float64), names, space, frame.index.to_numpy(dtype=object), source)


def read_ontology(path: str | Path) -> Ontology:
    """Read an ontology from a local file.

    Parameters
    ----------
    path
        An ``.obo`` file or an obograph ``.json`` file.

    Returns
    -------
    The ontology; it knows the version line and the SHA-256 of the file.

    Raises
    ------
    SetupError
        If the file does not exist, is not UTF-8 text, or is no ontology; a cycle is named.
    """
    file = Path(path)
    if not file.is_file():
        raise SetupError(f"There is no file {str(file)!r}; expected a local .obo or obograph .json file.")
    try:
        return parse_ontology(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise SetupError(f"{str(file)!r} is not text ({error.reason}); expected .obo or obograph .json.") from error
