"""From cells to group profiles: how many a class gets, which cells form a group, and what a group looks like (eq. 12).

phi(x) = log1p(s x / sum x) is the log view of a cell's counts; s, the target sum, is a property of the data set.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellsmith._errors import SetupError, nearest
from cellsmith._rng import Streams
from cellsmith.math.counts import largest_remainder, library_totals

__all__ = [
    "allocate",
    "class_groups",
    "count_components",
    "group_profiles",
    "log_normalize",
    "metacell_groups",
    "metacell_log_means",
    "metacell_sums",
    "principal_components",
    "round_profiles",
    "target_sum",
]

N_COMPONENTS = 50
N_STARTS = 3
FEW_GENES = 1_000
# Cells read at a time: bounds the memory, wherever the counts lie.
ROWS_AT_ONCE = 2_048
# More cells than these are never held as one log view, unless there are too many genes for their covariance.
WHOLE_CELLS, COVARIANCE_GENES = 20_000, 5_000

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int32]


def target_sum(n_genes: int) -> float:
    """Return s, the total that a cell is scaled to before the logarithm: 1e4, or 1e3 for at most 1,000 genes.

    Parameters
    ----------
    n_genes
        Genes of the data set.
    """
    return 1e3 if n_genes <= FEW_GENES else 1e4


def log_normalize(counts: Any, *, scale: float) -> sp.csr_matrix:
    """Return phi(x) = log1p(scale x / sum x) of every cell, natural logarithm.

    Parameters
    ----------
    counts
        ``(n, G)`` counts without empty cells, numpy array or scipy sparse.
    scale
        s, see :func:`target_sum`.

    Returns
    -------
    ``(n, G)`` CSR float64; zeros stay zeros.
    """
    given = sp.csr_matrix(counts)
    if not given.has_canonical_format:
        given = given.copy()
        given.sum_duplicates()
    values = np.repeat(scale / library_totals(given), np.diff(given.indptr))
    values *= given.data
    np.log1p(values, out=values)
    # Places of the entries are shared with the counts: a large table is not held twice.
    return sp.csr_matrix((values, given.indices, given.indptr), shape=given.shape)


def metacell_sums(counts: Any, groups: npt.ArrayLike) -> sp.csr_matrix:
    """Add up the counts of the cells of each group.

    Parameters
    ----------
    counts
        ``(n, G)`` counts: numpy array, scipy sparse, or a matrix on disk that gives one of these when rows are cut.
    groups
        ``(n,)`` group of each cell, 0 to M - 1; a negative one leaves the cell out.

    Returns
    -------
    ``(M, G)`` CSR of integers as float64, M = largest group + 1; a group without cells is an empty row.

    Raises
    ------
    SetupError
        If there is not one group for each cell.
    """
    # Nothing is made of the cells before they are added up: a small table in memory need not be cut.
    return _grouped(counts, groups, sp.csr_matrix, whole=sp.issparse(counts) and counts.shape[0] <= WHOLE_CELLS)


def metacell_log_means(counts: Any, groups: npt.ArrayLike, *, scale: float) -> sp.csr_matrix:
    """Return the mean of the log-normalised values of each group's cells, mean_i phi(x_i).

    Unlike the logarithm of a sum it reads a group as its cells are read: every cell counts the same, and shallow counts
    enter through the logarithm.

    Parameters
    ----------
    counts, groups
        As in :func:`metacell_sums`.
    scale
        s, see :func:`target_sum`.

    Returns
    -------
    ``(M, G)`` CSR float64, natural logarithms.

    Raises
    ------
    SetupError
        If there is not one group for each cell.
    """
    total = _grouped(counts, groups, lambda block: log_normalize(block, scale=scale))
    codes = np.asarray(groups)
    size = np.bincount(codes[codes >= 0], minlength=total.shape[0])
    return sp.csr_matrix(sp.diags(1.0 / np.maximum(size, 1)) @ total)


def _grouped(counts: Any, groups: npt.ArrayLike, view: Any, *, whole: bool = False) -> sp.csr_matrix:
    codes = np.asarray(groups)
    n, n_genes = counts.shape
    if codes.shape != (n,):
        raise SetupError(f"Found groups of shape {codes.shape}, expected one for each of {n} cells.")
    n_groups = int(codes.max(initial=-1)) + 1
    total: Any = sp.csr_matrix((n_groups, n_genes), dtype=np.float64)
    rows = counts.tocsr() if sp.issparse(counts) else counts
    step = max(1, n) if whole else ROWS_AT_ONCE
    for start in range(0, n, step):
        part = codes[start : start + step]
        kept = np.flatnonzero(part >= 0)
        member = sp.csr_matrix((np.ones(len(kept)), (part[kept], np.arange(len(kept)))), shape=(n_groups, len(kept)))
        block = rows if whole else rows[start : start + step]
        added = member @ view(block if len(kept) == len(part) else block[kept])
        total = total + added if start else added
    out = sp.csr_matrix(total)
    out.sort_indices()
    return out


def group_profiles(
    counts: Any, groups: npt.ArrayLike, *, summary: Literal["mean_log", "sum"], scale: float
) -> tuple[Floats, Floats]:
    """Return what each group of cells looks like, eq. (12), and how many counts it holds.

    Parameters
    ----------
    counts, groups
        As in :func:`metacell_sums`; no group is empty.
    summary
        "sum": p = sum of counts / L, which adds up to 1. "mean_log": p = expm1(mean_i phi(x_i)) / scale, so that
        log1p(scale p) is the mean of what the cells look like; it adds up to at most 1 (Jensen), and the missing mass
        is kept.
    scale
        s, see :func:`target_sum`.

    Returns
    -------
    p ``(M, G)`` and L ``(M,)``, the total count of each group.

    Raises
    ------
    SetupError
        If ``summary`` is unknown.
    """
    if summary not in ("mean_log", "sum"):
        raise SetupError(f"The profile is {summary!r}. {nearest(summary, ('mean_log', 'sum'))}")
    sums = metacell_sums(counts, groups)
    total = library_totals(sums)
    if summary == "sum":
        return np.asarray(sums.toarray() / total[:, None]), total
    return np.asarray(np.expm1(metacell_log_means(counts, groups, scale=scale).toarray()) / scale), total


def round_profiles(expected: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Round expected counts to integers so that every row keeps its total, eq. (14).

    Parameters
    ----------
    expected
        ``(M, G)`` expected counts, >= 0.

    Returns
    -------
    ``(M, G)`` integers less than 1 away from the expectation; a row adds up to the rounded sum of its expectations.
    The largest remainders are rounded up, ties at the first gene.
    """
    values = np.asarray(expected, dtype=np.float64)
    # 1e-9: a sum that was divided by its total and multiplied again is an integer up to rounding
    out = np.floor(values + 1e-9)
    missing = np.rint(values.sum(axis=1)) - out.sum(axis=1)
    order = np.argsort(-np.round(values - out, 9), axis=1, kind="stable")
    rank = np.argsort(order, axis=1)
    return np.asarray(out + (rank < missing[:, None]), dtype=np.int32)


def principal_components(phi: Any, *, n_components: int = N_COMPONENTS, seed: int) -> Floats:
    """Return the coordinates of cells on the leading principal components.

    Parameters
    ----------
    phi
        ``(n, G)`` log view of the cells, see :func:`log_normalize`.
    n_components
        How many; fewer where the table has no more.
    seed
        Of the start of the iteration.

    Returns
    -------
    ``(n, d)`` scores, centred, with d = min(n_components, n - 1, G - 1), at least 1.
    """
    from sklearn.decomposition import PCA

    wanted = max(1, min(n_components, *(size - 1 for size in phi.shape)))
    if min(phi.shape) <= 2 * wanted:
        dense = phi.toarray() if sp.issparse(phi) else np.asarray(phi)
        return np.asarray(PCA(wanted, svd_solver="full").fit_transform(dense))
    return np.asarray(PCA(wanted, svd_solver="arpack", random_state=seed).fit_transform(phi))


def count_components(counts: Any, *, scale: float, seed: int) -> Floats:
    """Return principal components of the log view of counts; of more than 20,000 cells without holding that view.

    There the covariance of the genes is added up block by block, and its eigenvectors give the same coordinates as
    :func:`principal_components` up to signs. With more than 5,000 genes the view is held in any case.

    Parameters
    ----------
    counts
        ``(n, G)`` counts without empty cells: numpy array, scipy sparse, or a matrix on disk.
    scale
        s, see :func:`target_sum`.
    seed
        Of the start of the iteration.

    Returns
    -------
    ``(n, d)`` as :func:`principal_components`.
    """
    from scipy.linalg import eigh

    n, n_genes = counts.shape
    rows = counts.tocsr() if sp.issparse(counts) else counts
    if n <= WHOLE_CELLS or n_genes > COVARIANCE_GENES:
        held = rows if sp.issparse(rows) or isinstance(rows, np.ndarray) else rows[:]
        return principal_components(log_normalize(held, scale=scale), seed=seed)
    parts = [slice(start, start + ROWS_AT_ONCE) for start in range(0, n, ROWS_AT_ONCE)]
    total, products = np.zeros(n_genes), np.zeros((n_genes, n_genes))
    for part in parts:
        phi = log_normalize(rows[part], scale=scale).toarray()
        total += phi.sum(axis=0)
        products += phi.T @ phi
    mean, wanted = total / n, min(N_COMPONENTS, n_genes - 1)
    products -= n * np.outer(mean, mean)
    _, axes = eigh(products, subset_by_index=[n_genes - wanted, n_genes - 1], overwrite_a=True)
    scores = np.empty((n, wanted))
    for part in parts:
        scores[part] = (log_normalize(rows[part], scale=scale) @ axes - mean @ axes)[:, ::-1]
    return scores


def class_groups(
    points: npt.ArrayLike, codes: npt.ArrayLike, n_groups: npt.ArrayLike, *, generator: np.random.Generator
) -> Codes:
    """Split the cells of every class into groups by k-means; a group never crosses a class.

    Parameters
    ----------
    points
        ``(n, d)`` coordinates of the cells.
    codes
        ``(n,)`` class of each cell, 0 to K - 1; a negative one leaves the cell out.
    n_groups
        ``(K,)`` groups of each class, at most its cells.
    generator
        Source of the starts: one draw a class, whether it is split or not.

    Returns
    -------
    ``(n,)`` group of each cell, those of class 0 first; -1 for cells that were left out. No group is empty.

    Raises
    ------
    SetupError
        If a class is asked for more groups than it has cells.
    """
    table, labels, wanted = np.asarray(points), np.asarray(codes), np.asarray(n_groups, dtype=np.int64)
    groups, first = np.full(len(labels), -1, dtype=np.int32), 0
    for k, c in enumerate(wanted):
        seed, rows = int(generator.integers(2**31 - 1)), np.flatnonzero(labels == k)
        if c > len(rows):
            raise SetupError(f"Class {k} has {len(rows)} cells, but {c} groups were asked for. Ask for at most that.")
        if c:
            groups[rows] = first + _k_means(table[rows], int(c), seed)
        first += int(c)
    return groups


def metacell_groups(
    counts: Any, codes: npt.ArrayLike, n_groups: npt.ArrayLike, *, scale: float, streams: Streams
) -> Codes:
    """Split the cells of every class into groups by k-means on 50 principal components of their log view.

    Parameters
    ----------
    counts
        ``(n, G)`` counts without empty cells; all of them enter the components.
    codes, n_groups
        As in :func:`class_groups`.
    scale
        s, see :func:`target_sum`.
    streams
        "init" gives the starts; the same seed gives the same groups.

    Returns
    -------
    ``(n,)`` group of each cell, as :func:`class_groups`.
    """
    points = count_components(counts, scale=scale, seed=streams.integer("init"))
    return class_groups(points, codes, n_groups, generator=streams.numpy("init", 0))


def _k_means(points: npt.NDArray[Any], c: int, seed: int) -> npt.NDArray[np.int64]:
    if c in (1, len(points)):
        return np.zeros(len(points), dtype=np.int64) if c == 1 else np.arange(len(points))
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Fewer distinct cells than groups; the empty groups are filled below.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = KMeans(c, n_init=N_STARTS, random_state=seed).fit_predict(points).astype(np.int64)
    for empty in np.setdiff1d(np.arange(c), labels):
        largest = np.bincount(labels, minlength=c).argmax()
        labels[np.flatnonzero(labels == largest)[-1]] = empty
    return np.asarray(labels, dtype=np.int64)


def allocate(
    sizes: npt.ArrayLike, total: int, *, allocation: Literal["equal", "proportional", "sqrt"] = "equal"
) -> npt.NDArray[np.int64]:
    """Share a number of profiles out between classes, with an exact sum.

    Parameters
    ----------
    sizes
        ``(K,)`` cells of each class; a class without cells gets nothing.
    total
        Profiles altogether; at least one a class and at most one a cell are given in any case.
    allocation
        Shares proportional to 1 ("equal"), to the size ("proportional") or to its square root ("sqrt").

    Returns
    -------
    ``(K,)`` integers between 1 and the size of the class.

    Raises
    ------
    SetupError
        If ``allocation`` is unknown.
    """
    n = np.asarray(sizes, dtype=np.int64)
    powers = {"equal": 0.0, "proportional": 1.0, "sqrt": 0.5}
    if allocation not in powers:
        raise SetupError(f"allocation={allocation!r}. {nearest(allocation, powers)}")
    out = (n > 0).astype(np.int64)
    share = np.where(n > 0, n.astype(float) ** powers[allocation], 0.0)
    left = int(np.clip(total, out.sum(), n.sum()) - out.sum())
    while left:
        # What a small class cannot take is shared out among the others. A class below its share comes first.
        room = n - out
        gap = np.where(room > 0, np.maximum(share / share.sum() * (out.sum() + left) - out, 0.0), 0.0)
        gap = gap if gap.sum() > 0 else np.where(room > 0, share, 0.0)
        given = np.minimum(largest_remainder(gap, left), room)
        out += given
        left -= int(given.sum())
    return np.asarray(out)
