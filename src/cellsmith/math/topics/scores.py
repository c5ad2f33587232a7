"""How far topics repeat each other, how alike two runs are, and how well shares predict counts (T27, T29, T32)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellsmith._errors import SetupError
from cellsmith.math.assign import hungarian

__all__ = ["Diversity", "agreement", "diversity", "matched_cosine", "perplexity", "topic_quality"]


class Diversity(NamedTuple):
    """Answer of :func:`diversity`.

    Attributes
    ----------
    once
        Genes that stand in exactly one list, divided by K N.
    unique
        Distinct genes, divided by K N.
    bound
        min(1, V / (K N)): what neither can exceed, because there are only V genes to list.
    redundancy
        Share of topics that have more than half of their list in common with another topic.
    redundant
        ``(K,)`` which topics those are.
    """

    once: float
    unique: float
    bound: float
    redundancy: float
    redundant: npt.NDArray[np.bool_]


def diversity(lists: npt.ArrayLike, n_genes: int) -> Diversity:
    """Return how little the lists of topics repeat each other (T29).

    Parameters
    ----------
    lists
        ``(K, N)`` exact names or positions of genes, N distinct ones a topic.
    n_genes
        V, the genes that could have been listed.

    Returns
    -------
    The two shares, their bound, and which topics repeat another.

    Raises
    ------
    SetupError
        If the lists are no table, or a topic lists a gene twice.
    """
    table = np.asarray(lists)
    if table.ndim != 2 or table.size == 0:
        raise SetupError(f"Found lists of shape {table.shape}, expected (K, N) with at least one gene.")
    genes, codes = np.unique(table, return_inverse=True)
    holds = np.zeros((len(table), len(genes)), dtype=np.int64)
    np.add.at(holds, (np.arange(len(table))[:, None], codes.reshape(table.shape)), 1)
    if holds.max() > 1:
        raise SetupError("A topic lists a gene twice, expected distinct genes in every list.")
    common = holds @ holds.T
    np.fill_diagonal(common, 0)
    redundant = 2 * common.max(axis=1) > table.shape[1]
    return Diversity(
        once=float((holds.sum(axis=0) == 1).sum() / table.size),
        unique=len(genes) / table.size,
        bound=min(1.0, n_genes / table.size),
        redundancy=float(redundant.mean()),
        redundant=redundant,
    )


def topic_quality(diversity: float, coherence: float) -> float:
    """Return diversity times coherence, a negative coherence counting as 0 (T32)."""
    return float(diversity * max(coherence, 0.0))


def matched_cosine(
    first: npt.ArrayLike, second: npt.ArrayLike
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Pair the topics of two runs one to one so that the sum of their cosines is largest.

    Parameters
    ----------
    first, second
        ``(K, V)`` and ``(K', V)`` readings of the same genes.

    Returns
    -------
    Topics of the first and of the second, and the cosine of each pair, ``(min(K, K'),)`` each; a topic of zeros has
    cosine 0 with every other.

    Raises
    ------
    SetupError
        If the genes do not agree in number.
    """
    tables = [np.asarray(x, dtype=np.float64) for x in (first, second)]
    if any(t.ndim != 2 for t in tables) or tables[0].shape[1] != tables[1].shape[1]:
        raise SetupError(
            f"Found tables of shape {tables[0].shape} and {tables[1].shape}, expected topics by the same genes."
        )
    lengths = [np.linalg.norm(t, axis=1, keepdims=True) for t in tables]
    a, b = (t / np.where(length > 0, length, 1.0) for t, length in zip(tables, lengths, strict=True))
    cosines = a @ b.T
    rows, columns = hungarian(cosines)
    return rows, columns, np.asarray(cosines[rows, columns])


def agreement(first: npt.ArrayLike, second: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return how alike the topics of two runs are: cosines of matched topics, of what rises above the average topic.

    Every gene's mean over the topics of a run is taken off before :func:`matched_cosine`: what all topics of a run have
    in common agrees with any other run, so that even loadings would look stable. For beta the mean is 1 / K exactly,
    since a gene's column sums to one; for loadings of other methods it is what all their topics repeat.

    Parameters
    ----------
    first, second
        ``(K, V)`` and ``(K', V)`` loadings of the same genes.

    Returns
    -------
    ``(min(K, K'),)`` cosines; their mean is the stability.

    Raises
    ------
    SetupError
        If the genes do not agree in number.
    """
    above = [t - t.mean(axis=0) for t in (np.asarray(x, dtype=np.float64) for x in (first, second))]
    return matched_cosine(above[0], above[1])[2]


def perplexity(counts: Any, probabilities: npt.ArrayLike) -> float:
    """Return exp(-sum X log pi / sum X), the number of equally likely genes that would be as hard to guess (T27).

    Parameters
    ----------
    counts
        ``(n, V)`` held-out counts X, dense or sparse.
    probabilities
        ``(n, V)`` pi, rows sum to 1. Counts where it is 0 make the answer infinite.

    Returns
    -------
    At least 1 for a model that was not told the counts; V for a uniform guess.

    Raises
    ------
    SetupError
        If shapes differ or there is no count.
    """
    x, p = sp.csr_matrix(counts), np.asarray(probabilities)
    total = float(x.sum())
    if x.shape != p.shape or not total > 0:
        raise SetupError(
            f"Found counts of shape {x.shape} with total {total:g} and probabilities of shape {p.shape}, expected one "
            "shape (n, V) and at least one count."
        )
    entries = x.tocoo()
    with np.errstate(divide="ignore"):
        logs = np.log(p[entries.row, entries.col], dtype=np.float64)
    return float(np.exp(-(entries.data[entries.data > 0] * logs[entries.data > 0]).sum() / total))
