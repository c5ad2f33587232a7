"""From what a user hands over to arrays: scores, class names, graph, embedding, fidelity. Nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from cellsmith._errors import SetupError, nearest
from cellsmith.data.graphs import given_graph, read_graph

__all__ = [
    "check_names",
    "check_scores",
    "class_names",
    "dense",
    "fidelity_weights",
    "given_graph",
    "read_graph",
    "read_rep",
    "reindexed",
    "stored_classes",
]

Floats = npt.NDArray[np.floating[Any]]


def dense(values: Any, *, where: str) -> Floats:
    """Return scores in any form as float32 or float64 (n, C): arrays, tables, sparse, dask, integers, booleans.

    Half precision becomes float32: a solve in half would lose what the certificate counts.
    """
    if isinstance(values, pd.DataFrame):
        try:
            values = values.apply(lambda c: pd.to_numeric(c.astype(object))).to_numpy(dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise SetupError(
                f"{where} has columns that are no numbers ({error}); expected one score a class."
            ) from None
    if hasattr(values, "compute"):
        values = values.compute()
    if sp.issparse(values):
        values = values.toarray()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise SetupError(
            f"{where} has dtype {array.dtype}; expected numbers. For hard labels type from_labels(series)."
        )
    if array.ndim != 2 or array.shape[1] == 0:
        raise SetupError(f"{where} has shape {array.shape}; expected (cells, classes) with at least one class.")
    keep = array.dtype.kind == "f" and array.dtype.itemsize in (4, 8)
    return array if keep else array.astype(np.float32 if array.dtype.kind == "f" else np.float64)


def check_scores(
    values: Floats, *, obs_names: Sequence[str], classes: Sequence[str], where: str, some: bool = True
) -> None:
    """Refuse scores of another number of cells, infinite ones, rows that are NaN in part, and no score at all.

    Raises
    ------
    SetupError
        Naming the first cell and class.
    """
    if values.shape != (len(obs_names), len(classes)):
        raise SetupError(
            f"{where} has shape {values.shape}; expected ({len(obs_names)}, {len(classes)}): one row a cell, one "
            "column a class."
        )
    missing = np.isnan(values)
    wrong = np.isinf(values) | (missing & ~missing.all(axis=1, keepdims=True))
    if wrong.any():
        i, c = (int(x) for x in np.argwhere(wrong)[0])
        raise SetupError(
            f"{where} of cell {obs_names[i]!r}, class {classes[c]!r} is {values[i, c]}; expected finite numbers, or "
            "NaN in the whole row for a cell without scores."
        )
    if some and missing.all():
        raise SetupError(f"{where} holds nothing but NaN; expected scores for at least one cell.")


def check_names(names: pd.Index, *, what: str) -> None:
    """Refuse names that do not identify a row."""
    if names.has_duplicates:
        twice = names[names.duplicated()].unique()[:3]
        raise SetupError(
            f"{what} has duplicates ({', '.join(map(repr, twice))}), so that a table cannot be matched to cells. "
            "Type adata.obs_names_make_unique(), or hand over an array in the order of the cells."
        )


def reindexed(values: Any, names: Any, obs_names: pd.Index, *, where: str) -> Any:
    """Return rows of scores in the order of the cells, by their names.

    Raises
    ------
    SetupError
        For duplicates on either side, and for cells without a row.
    """
    index = pd.Index(names)
    if index.equals(obs_names):
        return values
    check_names(index, what=f"The index of {where}")
    check_names(obs_names, what="obs_names")
    position = index.get_indexer(obs_names)
    lost = obs_names[position < 0]
    if len(lost):
        raise SetupError(
            f"{where} lacks {len(lost)} of {len(obs_names)} cells, first {', '.join(map(repr, lost[:3]))}; expected "
            f"one row for each of obs_names (the table has {', '.join(map(repr, index[:3]))}, ...)."
        )
    return values.iloc[position] if isinstance(values, pd.DataFrame) else values[position]


def class_names(values: Any, classes: Sequence[Any] | None, *, where: str) -> tuple[str, ...]:
    """Return the names of classes: those given, or the columns of a table; counting columns are no names.

    Raises
    ------
    SetupError
        If there are none, they repeat, or their number is not that of the columns.
    """
    if classes is None and isinstance(values, pd.DataFrame) and not isinstance(values.columns, pd.RangeIndex):
        classes = list(values.columns)
    if classes is None:
        raise SetupError(
            f"{where} carries no class names; expected a DataFrame with named columns, .uns[key]['classes'], or "
            "classes=[...]. Type for example classes=list(model.classes_)."
        )
    names = tuple(str(c) for c in np.asarray(classes, dtype=object).ravel())
    if len(set(names)) != len(names) or len(names) != values.shape[1]:
        raise SetupError(
            f"Found {len(names)} class names ({len(set(names))} distinct) for the {values.shape[1]} columns of "
            f"{where}; expected one distinct name a column."
        )
    return names


def stored_classes(uns: Mapping[str, Any], key: str) -> Any:
    """Return ``.uns[key]["classes"]``, or None."""
    block = uns.get(key)
    return block.get("classes") if isinstance(block, Mapping) else None


def read_rep(carrier: Any, use_rep: str, *, n: int | None = None) -> Floats:
    """Return an embedding (n, d) as float32.

    Raises
    ------
    SetupError
        If it is missing or not finite.
    """
    if use_rep not in carrier.obsm:
        raise SetupError(
            f"use_rep={use_rep!r} is not in .obsm. {nearest(use_rep, carrier.obsm)} Type sc.pp.pca(adata) first, or "
            "name a graph with neighbors_key=..."
        )
    values = carrier.obsm[use_rep]
    array = np.asarray(values.toarray() if sp.issparse(values) else values, dtype=np.float32)
    if array.ndim != 2 or (n is not None and len(array) != n) or not np.isfinite(array).all():
        bad = "" if array.ndim != 2 else f" with {int((~np.isfinite(array)).any(axis=1).sum())} non-finite rows"
        raise SetupError(f".obsm[{use_rep!r}] has shape {array.shape}{bad}; expected finite numbers, one row a cell.")
    return array


def fidelity_weights(given: Any, obs: pd.DataFrame, *, n: int) -> npt.NDArray[np.float64]:
    """Return weights w (n,) from a column of ``.obs`` or an array.

    Raises
    ------
    SetupError
        If they are not finite numbers >= 0, or all zero.
    """
    if isinstance(given, str):
        if given not in obs:
            raise SetupError(f"fidelity={given!r}. {nearest(given, ('uniform', 'confidence', *map(str, obs.columns)))}")
        column = pd.to_numeric(obs[given].astype(object), errors="coerce")
        weights, where = column.to_numpy(dtype=np.float64), f".obs[{given!r}]"
    else:
        weights, where = np.asarray(given, dtype=np.float64).ravel(), "fidelity"
    if weights.shape != (n,):
        raise SetupError(f"{where} has {weights.size} entries; expected one weight for each of {n} cells.")
    bad = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if bad.size or not weights.any():
        found = f"{weights[bad[0]]} for cell {obs.index[bad[0]]!r}" if bad.size else "only zeros"
        raise SetupError(f"{where} holds {found}; expected finite weights >= 0, some of them positive.")
    return weights
