"""Whether the genes of a topic are found together: in cells (T30), or in gene sets that others have collected (T31).

NPMI of two genes with the shares p_a and p_b of documents that hold them and p_ab that hold both is
log(p_ab / (p_a p_b)) / -log p_ab: 1 if one is never without the other, 0 by chance, -1 never together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellsmith._errors import SetupError, nearest

__all__ = ["SetCoherence", "data_npmi", "set_npmi"]

Floats = npt.NDArray[np.float64]
FORMS = ("published", "strict")


class SetCoherence(NamedTuple):
    """Answer of :func:`set_npmi`.

    Attributes
    ----------
    per_topic
        ``(K,)`` mean NPMI over the pairs of a topic's genes; NaN where fewer than two genes are in the collection
        (``"strict"`` only).
    n_outside
        Listed genes that no set holds, each counted once a topic.
    """

    per_topic: Floats
    n_outside: int


def data_npmi(x: Any, lists: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the coherence of topics over cells (T30).

    Parameters
    ----------
    x
        ``(n, V)`` counts or any values that are above 0 where a gene is present, dense or sparse.
    lists
        ``(K, N)`` positions of genes, as :func:`~cellsmith.math.topics.top_genes` returns them.

    Returns
    -------
    ``(K,)`` mean NPMI of the pairs of each topic's genes: pairs that no cell holds count -1, pairs that all cells hold
    0. NaN for lists of one gene.
    """
    table = np.asarray(lists)
    genes, codes = np.unique(table, return_inverse=True)
    present = sp.csc_matrix(x[:, genes] > 0, dtype=np.float64)
    return np.array([_mean_npmi(present[:, rows], absent=-1.0) for rows in codes.reshape(table.shape)])


def set_npmi(
    lists: Sequence[Sequence[str]],
    sets: Mapping[str, Collection[str]],
    *,
    form: Literal["published", "strict"] = "published",
) -> SetCoherence:
    """Return the coherence of topics over gene sets: a set is a document, its genes are the words (T31).

    Only columns of listed genes are formed, one topic at a time, so that memory does not grow with the collection.

    Parameters
    ----------
    lists
        K lists of exact gene names.
    sets
        Name -> genes.
    form
        ``"published"``: a pair that no set holds counts 0, and so does one with a gene outside the collection; the mean
        is over all pairs, and hardly ever negative. ``"strict"``: a pair that no set holds counts -1, and genes outside
        the collection are left out and counted.

    Returns
    -------
    Coherence of every topic, and the genes that no set holds.

    Raises
    ------
    SetupError
        For another form, or no set.
    """
    if form not in FORMS:
        raise SetupError(f"form={form!r} is not known. {nearest(form, FORMS)}")
    if not sets:
        raise SetupError("Found no gene set, expected at least one.")
    names = list(dict.fromkeys(gene for genes in lists for gene in genes))
    position = {gene: i for i, gene in enumerate(names)}
    holds = [sorted({position[gene] for gene in genes if gene in position}) for genes in sets.values()]
    ends = np.cumsum([0, *map(len, holds)])
    columns = np.array([i for row in holds for i in row], dtype=np.int64)
    present = sp.csr_matrix((np.ones(len(columns)), columns, ends), shape=(len(holds), len(names))).tocsc()
    known = np.diff(present.indptr) > 0
    scores, n_outside = [], 0
    for genes in lists:
        rows = np.array([position[gene] for gene in genes], dtype=np.int64)
        n_outside += int((~known[rows]).sum())
        if form == "published":
            scores.append(_mean_npmi(present[:, rows], absent=0.0))
        else:
            scores.append(_mean_npmi(present[:, rows[known[rows]]], absent=-1.0))
    return SetCoherence(np.array(scores), n_outside)


def _mean_npmi(present: Any, *, absent: float) -> float:
    """Return the mean NPMI over the pairs of columns of a 0/1 matrix (documents, genes); NaN without a pair."""
    if present.shape[1] < 2:
        return float("nan")
    shares = (present.T @ present).toarray() / present.shape[0]
    first, second = np.triu_indices(len(shares), k=1)
    both, alone = shares[first, second], np.diag(shares)
    usual = (both > 0) & (both < 1)
    scores = np.where(both > 0, 0.0, absent)
    chance = (alone[first] * alone[second])[usual]
    scores[usual] = np.log(both[usual] / chance) / -np.log(both[usual])
    return float(scores.mean())
