"""Agreement of clusters with types: ARI, NMI, F1 after the best naming of clusters; and two facts about cell graphs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from cellsmith._errors import SetupError
from cellsmith.math.assign import hungarian

__all__ = ["Hubness", "ari", "homophily", "hubness", "macro_f1", "nmi", "rare_f1"]


def _aligned(truth: Any, predicted: Any) -> Any:
    """Return `predicted` in the order of the cells of `truth`, where both say which cells they hold."""
    if not (isinstance(truth, pd.Series) and isinstance(predicted, pd.Series)) or truth.index.equals(predicted.index):
        return predicted
    if (
        truth.index.is_unique
        and predicted.index.is_unique
        and not len(truth.index.symmetric_difference(predicted.index))
    ):
        return predicted.reindex(truth.index)
    msg = (
        "`truth` and `predicted` are Series of different cells; expected the same index, in any order. Type "
        "`predicted.loc[truth.index]`, or `.to_numpy()` for both if the order is known to agree."
    )
    raise SetupError(msg)


def _codes(truth: Any, predicted: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return integer labels of the cells whose truth is known, shape (n,) each."""
    sides = [np.asarray(side, dtype=object).ravel() for side in (truth, _aligned(truth, predicted))]
    if len(sides[0]) != len(sides[1]):
        msg = f"`truth` has {len(sides[0])} labels, `predicted` {len(sides[1])}; expected one of each a cell."
        raise SetupError(msg)
    known = ~pd.isna(sides[0])
    if missing := int(pd.isna(sides[1][known]).sum()):
        msg = (
            f"`predicted` is missing for {missing} of {int(known.sum())} labelled cells; leaving them out would "
            "flatter the score. Give them a cluster of their own, such as 'none'."
        )
        raise SetupError(msg)
    if not known.any():
        msg = f"None of the {len(known)} cells has a label in `truth`; expected at least one."
        raise SetupError(msg)
    first, second = (pd.factorize(side[known].astype(str))[0] for side in sides)
    return first, second


def ari(truth: Any, predicted: Any) -> float:
    """Return the adjusted Rand index.

    Parameters
    ----------
    truth
        Labels of shape (n,), array or Series; cells without one are left out.
    predicted
        Clusters of shape (n,). Where both are Series they are matched by cell name.

    Returns
    -------
    1 for equal partitions, about 0 for unrelated ones.

    Raises
    ------
    SetupError
        If the cells do not fit together, or a labelled cell has no cluster.

    Examples
    --------
    >>> float(ari(["a", "a", "b"], [1, 1, 0]))
    1.0
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(*_codes(truth, predicted)))


def nmi(truth: Any, predicted: Any) -> float:
    """Return the mutual information divided by the arithmetic mean of the two entropies.

    Parameters
    ----------
    truth, predicted
        As in :func:`ari`.

    Returns
    -------
    From 0 (independent) to 1 (equal partitions).

    Raises
    ------
    SetupError
        As in :func:`ari`.

    Examples
    --------
    >>> round(nmi(["a", "a", "b", "b"], [1, 1, 0, 0]), 6)
    1.0
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(*_codes(truth, predicted)))


def _f1(truth: Any, predicted: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the F1 score of every type under the naming of clusters with most cells right, and the types' sizes."""
    types, clusters = _codes(truth, predicted)
    table = np.zeros((types.max() + 1, clusters.max() + 1), dtype=np.int64)
    np.add.at(table, (types, clusters), 1)
    sizes = table.sum(axis=1)
    scores = np.zeros(len(table))
    rows, columns = hungarian(table)
    scores[rows] = 2.0 * table[rows, columns] / (sizes[rows] + table.sum(axis=0)[columns])
    return scores, sizes


def macro_f1(truth: Any, predicted: Any) -> float:
    """Return the mean F1 score of the types after every cluster got the name of one type (Hungarian).

    Parameters
    ----------
    truth, predicted
        As in :func:`ari`. Clusters need no names; more clusters than types stay without one, a type without a cluster
        scores 0.

    Returns
    -------
    Mean over the types of `truth`, in [0, 1].

    Raises
    ------
    SetupError
        As in :func:`ari`.

    Examples
    --------
    >>> macro_f1(["a", "a", "b"], [1, 1, 0])
    1.0
    """
    return float(_f1(truth, predicted)[0].mean())


def rare_f1(truth: Any, predicted: Any, *, max_share: float = 0.03, min_cells: int = 10) -> float:
    """Return the mean F1 score of the rare types, clusters named as in :func:`macro_f1`.

    Parameters
    ----------
    truth, predicted
        As in :func:`ari`.
    max_share
        A type is rare when it has less than this share of the labelled cells.
    min_cells
        Types with fewer cells are left out, because their score is mostly chance.

    Returns
    -------
    Mean over the rare types, in [0, 1]; NaN when there is none.

    Raises
    ------
    SetupError
        As in :func:`ari`.

    Examples
    --------
    >>> rare_f1(["a"] * 990 + ["b"] * 10, [0] * 990 + [1] * 10)
    1.0
    """
    scores, sizes = _f1(truth, predicted)
    rare = (sizes < max_share * sizes.sum()) & (sizes >= min_cells)
    return float(scores[rare].mean()) if rare.any() else float("nan")


class Hubness(NamedTuple):
    """How unevenly a graph spreads its edges; answer of :func:`hubness`.

    Attributes
    ----------
    cv
        Standard deviation of the degrees divided by their mean; 0 where all cells have as many neighbours.
    largest
        Most neighbours of a cell.
    """

    cv: float
    largest: int


def homophily(graph: Any, labels: Any) -> float:
    """Return the share of edges that join cells of the same type.

    Parameters
    ----------
    graph
        Scipy sparse matrix of shape (n, n), such as ``adata.obsp["connectivities"]``; an entry that is not 0 is an
        edge, whatever its weight. The diagonal does not count.
    labels
        Types of shape (n,); edges of cells without one are left out.

    Returns
    -------
    From 0 to 1; by chance the sum of the squared shares of the types.

    Raises
    ------
    SetupError
        If the graph has no edge between labelled cells, or is not of shape (n, n).

    Examples
    --------
    >>> import scipy.sparse as sp
    >>> homophily(sp.csr_matrix([[0, 1, 1], [1, 0, 0], [1, 0, 0]]), ["a", "a", "b"])
    0.5
    """
    edges = _edges(graph)
    types = np.asarray(labels, dtype=object).ravel()
    if len(types) != edges.shape[0]:
        msg = f"The graph has {edges.shape[0]} cells, `labels` {len(types)}; expected one label a cell."
        raise SetupError(msg)
    known = ~pd.isna(types)
    codes = np.full(len(types), -1)
    codes[known] = pd.factorize(types[known].astype(str))[0]
    row, col = codes[edges.row], codes[edges.col]
    both = (row >= 0) & (col >= 0)
    if not both.any():
        msg = "The graph has no edge between two labelled cells; expected at least one."
        raise SetupError(msg)
    return float((row == col)[both].mean())


def hubness(graph: Any) -> Hubness:
    """Return the spread and the maximum of the number of neighbours of a cell.

    Parameters
    ----------
    graph
        Scipy sparse matrix of shape (n, n); an entry (i, j) that is not 0 makes j a neighbour of i, whatever its
        weight. Of a directed graph, columns are counted: how often a cell is chosen. The diagonal does not count.

    Returns
    -------
    ``(cv, largest)``.

    Raises
    ------
    SetupError
        If the graph has no edge or is not of shape (n, n).

    Examples
    --------
    >>> import scipy.sparse as sp
    >>> hubness(sp.csr_matrix([[0, 1, 1], [1, 0, 0], [1, 0, 0]])).largest
    2
    """
    edges = _edges(graph)
    degrees = np.bincount(edges.col, minlength=edges.shape[0])
    if not degrees.any():
        msg = "The graph has no edge; expected a graph of neighbours such as `adata.obsp['connectivities']`."
        raise SetupError(msg)
    return Hubness(float(degrees.std() / degrees.mean()), int(degrees.max()))


def _edges(graph: Any) -> sp.coo_matrix:
    if not sp.issparse(graph) or graph.shape[0] != graph.shape[1]:
        what = f"{type(graph).__name__} of shape {getattr(graph, 'shape', None)}"
        msg = f"Found {what}, expected a scipy sparse matrix of shape (n, n). Type scipy.sparse.csr_matrix(graph)."
        raise SetupError(msg)
    matrix = sp.csr_matrix(graph, copy=True)
    matrix.setdiag(0)
    matrix.eliminate_zeros()
    return matrix.tocoo()
