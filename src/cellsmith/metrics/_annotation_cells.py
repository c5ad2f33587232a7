"""Read what an annotation wrote, and check it, without changing anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith._errors import SetupError, nearest
from cellsmith.math.conformal import apply_temperature

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["NONE", "Annotation", "read_annotation"]

NONE = "(no label)"
"""Stands for a prediction that is missing; it is never right."""
_ROUNDING = 1e-6  # a solve in float32 may leave a probability slightly below zero


@dataclass(frozen=True)
class Annotation:
    """Labels and confidences of the cells whose truth is known.

    Parameters
    ----------
    truth, predicted
        Names of shape (n,).
    raw
        Names before refinement, shape (n,), or None.
    classes
        Names of the columns of `proba`; empty without probabilities.
    proba
        Probabilities of shape (n, C), rows sum to one or are NaN; or None.
    confidence
        Probability of the predicted label, shape (n,), NaN where unknown; or None.
    rejected
        Mask of shape (n,), or None.
    groups
        Name of each cell's group, shape (n,), or None.
    n_unlabelled
        Cells left out because their truth is missing.
    """

    truth: np.ndarray
    predicted: np.ndarray
    raw: np.ndarray | None
    classes: tuple[str, ...]
    proba: np.ndarray | None
    confidence: np.ndarray | None
    rejected: np.ndarray | None
    groups: np.ndarray | None
    n_unlabelled: int

    def rows(self, keep: np.ndarray) -> Annotation:
        """Return the cells of a mask of shape (n,)."""
        arrays = ("truth", "predicted", "raw", "proba", "confidence", "rejected", "groups")
        return replace(self, **{a: None if getattr(self, a) is None else getattr(self, a)[keep] for a in arrays})


def _column(adata: AnnData, key: str, argument: str) -> np.ndarray:
    if key not in adata.obs:
        msg = f"`.obs[{key!r}]` ({argument}) does not exist. {nearest(key, adata.obs.columns)}"
        raise SetupError(msg)
    return adata.obs[key].to_numpy(dtype=object)


def _names(values: np.ndarray) -> np.ndarray:
    """Return labels as text, None where missing; an empty text is a missing label."""
    codes, distinct = pd.factorize(values)
    names = np.array([*(str(v) if v != "" else None for v in distinct), None], dtype=object)
    return names[codes]  # -1, missing, is the last


def _classes(adata: AnnData, key: str, values: Any) -> list[str]:
    block = adata.uns.get(key, {})
    if isinstance(values, pd.DataFrame):
        return [str(c) for c in values.columns]
    if isinstance(block, Mapping) and "classes" in block:
        return [str(c) for c in np.asarray(block["classes"], dtype=object)]
    categories = getattr(adata.obs[key].dtype, "categories", None)
    if categories is not None and len(categories) == values.shape[1]:
        return [str(c) for c in categories]
    msg = (
        f"`.obsm[{key + '_proba'!r}]` has {values.shape[1]} columns and no names; expected them in "
        f"`.uns[{key!r}]['classes']`. Type `adata.uns[{key!r}] = {{'classes': [...]}}`."
    )
    raise SetupError(msg)


def _probabilities(adata: AnnData, key: str) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Return classes and probabilities, at the temperature that was fitted where there is one."""
    if f"{key}_proba" not in adata.obsm:
        return (), None
    stored = adata.obsm[f"{key}_proba"]
    classes = _classes(adata, key, stored)
    values = np.asarray(stored.toarray() if hasattr(stored, "toarray") else stored, dtype=np.float64)
    if values.shape[1] != len(classes) or len(set(classes)) != len(classes):
        msg = (
            f"`.obsm[{key + '_proba'!r}]` has {values.shape[1]} columns, `.uns[{key!r}]['classes']` has {len(classes)} "
            f"names ({len(set(classes))} distinct); expected one column for each of as many distinct names."
        )
        raise SetupError(msg)
    if np.nanmin(values, initial=0.0) < -_ROUNDING:
        return tuple(classes), None  # scores on another scale: labels and confidences can still be judged
    values = np.clip(values, 0.0, None)
    block = adata.uns.get(key, {})
    calibration = block.get("calibration", {}) if isinstance(block, Mapping) else {}
    stated = calibration.get("temperature") if isinstance(calibration, Mapping) else None
    temperature = float(stated) if stated is not None and np.isfinite(stated) and float(stated) > 0 else 1.0
    if temperature == 1.0:
        total = values.sum(axis=1, keepdims=True)
        values = np.where(total > 0, values / np.where(total > 0, total, 1.0), 1.0 / len(classes))
        values[np.isnan(total[:, 0])] = np.nan
        return tuple(classes), values
    return tuple(classes), apply_temperature(values, temperature)


def _check_map(label_map: Mapping[str, str], names: set[str]) -> dict[str, str]:
    mapping = {str(a): str(b) for a, b in label_map.items()}
    for name in mapping:
        if name not in names:
            msg = f"`label_map` renames {name!r}, which is no class of the prediction. {nearest(name, sorted(names))}"
            raise SetupError(msg)
    return mapping


def _merge(
    classes: tuple[str, ...], proba: np.ndarray, mapping: Mapping[str, str]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Sum the probabilities of classes that share a coarse name."""
    renamed = [mapping.get(c, c) for c in classes]
    coarse = list(dict.fromkeys(renamed))
    summed = np.zeros((len(proba), len(coarse)))
    for column, name in enumerate(renamed):
        summed[:, coarse.index(name)] += proba[:, column]
    return tuple(coarse), summed


def _of_label(classes: tuple[str, ...], proba: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return the probability of the predicted label, shape (n,)."""
    position = {name: i for i, name in enumerate(classes)}
    codes = np.array([position.get(name, -1) for name in predicted], dtype=int)
    return np.where(codes >= 0, proba[np.arange(len(proba)), np.maximum(codes, 0)], np.nan)


def _raw(adata: AnnData, key: str, raw_key: str | None) -> np.ndarray | None:
    if raw_key is not None:
        return _names(_column(adata, raw_key, "raw_key"))
    return _names(_column(adata, f"{key}_raw", "raw_key")) if f"{key}_raw" in adata.obs else None


def _groups(adata: AnnData, by: str | None) -> np.ndarray | None:
    if by is None:
        return None
    return np.array([NONE if v is None else v for v in _names(_column(adata, by, "by"))], dtype=object)


def read_annotation(
    adata: AnnData,
    *,
    key: str,
    labels_key: str,
    raw_key: str | None,
    label_map: Mapping[str, str] | None,
    by: str | None,
) -> Annotation:
    """Return the annotation of all cells whose truth is known.

    Parameters
    ----------
    adata
        The cells.
    key, labels_key, raw_key, by
        Columns of ``.obs``; without `raw_key`, ``.obs[key_raw]`` is taken where it exists.
    label_map
        Class -> name that the truth uses for it.
    """
    truth = _names(_column(adata, labels_key, "labels_key"))
    predicted, raw = _names(_column(adata, key, "key")), _raw(adata, key, raw_key)
    classes, proba = _probabilities(adata, key)
    confidence = None
    if f"{key}_confidence" in adata.obs:
        confidence = adata.obs[f"{key}_confidence"].to_numpy(dtype=np.float64, na_value=np.nan)
    if label_map is not None:
        seen = {*classes, *(v for side in (predicted, raw) if side is not None for v in side if v is not None)}
        mapping = _check_map(label_map, seen)
        predicted = np.array([mapping.get(v, v) for v in predicted], dtype=object)
        raw = None if raw is None else np.array([mapping.get(v, v) for v in raw], dtype=object)
        if proba is not None:
            classes, proba = _merge(classes, proba, mapping)
    if proba is not None and (confidence is None or label_map is not None):
        confidence = _of_label(classes, proba, predicted)
    rejected = _column(adata, f"{key}_rejected", "key").astype(bool) if f"{key}_rejected" in adata.obs else None
    known = np.array([v is not None for v in truth], dtype=bool)
    if not known.any():
        msg = f"None of the {len(known)} cells has a label in `.obs[{labels_key!r}]`; expected at least one."
        raise SetupError(msg)
    predicted, raw = (
        None if side is None else np.array([NONE if v is None else v for v in side], dtype=object)
        for side in (predicted, raw)
    )
    return Annotation(
        truth=truth,
        predicted=predicted,
        raw=raw,
        classes=classes,
        proba=proba,
        confidence=confidence,
        rejected=rejected,
        groups=_groups(adata, by),
        n_unlabelled=int((~known).sum()),
    ).rows(known)
