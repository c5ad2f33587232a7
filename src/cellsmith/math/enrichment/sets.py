"""Gene sets against lists of genes, and groups against groups: tests that need no package beyond numpy and scipy.

Notation: M genes of the background, m genes of a set within it, N genes of a list within it, k genes of both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata

from cellsmith._errors import SetupError

__all__ = [
    "OverRepresentation",
    "RankSum",
    "benjamini_hochberg",
    "hypergeometric_tail",
    "over_representation",
    "parse_gmt",
    "rank_sum",
    "sets_within",
]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

EXACT_BELOW = 8
"""Up to this many values in the smaller group, and without ties, the null distribution of U is counted, not fitted."""


class OverRepresentation(NamedTuple):
    """Answer of :func:`over_representation`, for L lists and S sets.

    Attributes
    ----------
    p
        ``(L, S)`` probability of at least as many common genes by chance (T34).
    overlap
        ``(L, S)`` common genes k.
    list_size, set_size
        ``(L,)`` N and ``(S,)`` m, genes within the background.
    background_size
        M.
    """

    p: Floats
    overlap: Integers
    list_size: Integers
    set_size: Integers
    background_size: int


class RankSum(NamedTuple):
    """Answer of :func:`rank_sum`.

    Attributes
    ----------
    statistic
        ``(C,)`` U of the first group: pairs in which its value is the larger one, ties count one half.
    p
        ``(C,)`` two-sided p-value.
    """

    statistic: Floats
    p: Floats


def parse_gmt(lines: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Read gene sets from the lines of a GMT file: name, description, genes, separated by tabs.

    Parameters
    ----------
    lines
        Lines, such as an open text file. Empty lines are skipped, a gene named twice in a set counts once.

    Returns
    -------
    Name -> genes, in the order of the file.

    Raises
    ------
    SetupError
        For a line without a gene, a name that stands twice, or no set at all.
    """
    sets: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, _, *genes = (part.strip() for part in (line.rstrip("\r\n") + "\t").split("\t"))
        named = tuple(dict.fromkeys(gene for gene in genes if gene))
        if not name or not named:
            raise SetupError(
                f"Line {number} of the gene sets is {line.strip()[:60]!r}; expected name, description and genes, "
                "separated by tabs (the GMT format)."
            )
        if name in sets:
            raise SetupError(f"Line {number} of the gene sets names {name!r} a second time; expected distinct names.")
        sets[name] = named
    if not sets:
        raise SetupError("The gene sets are empty; expected lines of name, description and genes (the GMT format).")
    return sets


def sets_within(
    sets: Mapping[str, Collection[str]], background: Collection[str], *, min_size: int = 1, max_size: int | None = None
) -> tuple[dict[str, tuple[str, ...]], dict[str, int]]:
    """Cut gene sets down to a background, and leave out those that are then too small or too large.

    Parameters
    ----------
    sets
        Name -> genes.
    background
        M names of genes.
    min_size, max_size
        Fewest and most genes of a set within the background; None is no limit.

    Returns
    -------
    Name -> genes within the background, in the order of the set; and how many sets were ``"kept"``, ``"too_small"``
    and ``"too_large"``.

    Raises
    ------
    SetupError
        If no set is left, with what was found.
    """
    if min_size < 1 or (max_size is not None and max_size < min_size):
        raise SetupError(f"Found min_size={min_size} and max_size={max_size}, expected 1 <= min_size <= max_size.")
    known, most = frozenset(background), float("inf") if max_size is None else max_size
    within = {name: tuple(dict.fromkeys(g for g in genes if g in known)) for name, genes in sets.items()}
    kept = {name: genes for name, genes in within.items() if min_size <= len(genes) <= most}
    counts = {
        "kept": len(kept),
        "too_small": sum(len(genes) < min_size for genes in within.values()),
        "too_large": sum(len(genes) > most for genes in within.values()),
    }
    if not kept:
        largest = max((len(genes) for genes in within.values()), default=0)
        example = next((gene for genes in sets.values() for gene in genes), "none")
        own = ", ".join(repr(str(g)) for g in list(background)[:3])
        raise SetupError(
            f"None of {len(sets)} gene sets has {min_size} to {max_size} genes among the {len(known)} of the "
            f"background; the largest has {largest}. The sets name genes like {example!r}, the background {own}. Pass "
            "sets with the names of the background, or other sizes."
        )
    return kept, counts


def hypergeometric_tail(n_background: int, n_set: npt.ArrayLike, n_list: int) -> Floats:
    """Return P(x >= k) for every k, where x is the overlap of a set with a list drawn at random (T34).

    The probabilities of neighbouring overlaps have the ratio (m - x)(N - x) / ((x + 1)(M - m - N + x + 1)), so that one
    cumulative sum of logarithms gives them all up to a factor, which the total of 1 fixes.

    Parameters
    ----------
    n_background
        M.
    n_set
        ``(S,)`` sizes m, at most M.
    n_list
        N, at most M.

    Returns
    -------
    ``(S, N + 1)``; column k holds P(x >= k), equal to ``scipy.stats.hypergeom.sf(k - 1, M, m, N)``.
    """
    m = np.asarray(n_set, dtype=np.float64)[:, None]
    x = np.arange(n_list + 1.0)
    possible = (x >= n_list + m - n_background) & (x <= np.minimum(m, n_list))
    above = (m - x[:-1]) * (n_list - x[:-1])
    below = (x[:-1] + 1) * (n_background - m - n_list + x[:-1] + 1)
    step = possible[:, :-1] & possible[:, 1:]
    ratios = np.log(np.where(step, above, 1.0)) - np.log(np.where(step, below, 1.0))
    logs = np.concatenate([np.zeros_like(m), np.cumsum(ratios, axis=1)], axis=1)
    weights = np.where(possible, np.exp(logs - np.where(possible, logs, -np.inf).max(axis=1, keepdims=True)), 0.0)
    tail = np.cumsum(weights[:, ::-1], axis=1)[:, ::-1]  # smallest terms first
    return np.asarray(np.minimum(tail / tail[:, :1], 1.0))


def over_representation(
    lists: Sequence[Collection[str]], sets: Mapping[str, Collection[str]], background: Collection[str]
) -> OverRepresentation:
    """Test whether gene sets share more genes with lists than lists drawn at random would (T34).

    Parameters
    ----------
    lists
        L lists of genes.
    sets
        S sets, name -> genes.
    background
        The genes that could have been listed, those of the model; **never** the union of the sets, which makes every
        overlap look surprising. Genes outside it are left out of lists and sets.

    Returns
    -------
    One-sided hypergeometric p-values and the numbers behind them, ``(L, S)``; not yet corrected for their number.

    Raises
    ------
    SetupError
        If the background holds a gene twice.
    """
    position = {gene: i for i, gene in enumerate(background)}
    if len(position) != len(background):
        raise SetupError(
            f"The background names {len(background) - len(position)} genes twice; expected distinct names."
        )
    drawn = [frozenset(gene for gene in genes if gene in position) for genes in lists]
    known = [frozenset(gene for gene in genes if gene in position) for genes in sets.values()]
    overlap = np.array([[len(a & b) for b in known] for a in drawn], dtype=np.int64).reshape(len(drawn), len(known))
    list_size = np.array([len(a) for a in drawn], dtype=np.int64)
    set_size = np.array([len(b) for b in known], dtype=np.int64)
    p = np.ones(overlap.shape)
    sizes, place = np.unique(set_size, return_inverse=True)
    for n_list in np.unique(list_size):
        rows = list_size == n_list
        p[rows] = hypergeometric_tail(len(position), sizes, int(n_list))[place, overlap[rows]]
    return OverRepresentation(p, overlap, list_size, set_size, len(position))


def benjamini_hochberg(p: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return p-values adjusted so that a threshold bounds the false discovery rate (Benjamini and Hochberg, 1995).

    Parameters
    ----------
    p
        P-values of any shape, such as ``(T, S)``; all of them are one family.

    Returns
    -------
    The same shape; the smallest rate at which each test is still called.

    Raises
    ------
    SetupError
        For a value outside [0, 1], NaN among them.
    """
    values = np.asarray(p, dtype=np.float64)
    if not np.all((values >= 0) & (values <= 1)):
        raise SetupError("Found p-values outside [0, 1] or NaN, expected probabilities: leave such tests out.")
    flat = values.ravel()
    order = np.argsort(flat)[::-1]  # from the largest: each is at most its neighbour above
    scaled = flat[order] * flat.size / np.arange(flat.size, 0, -1)
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled), 1.0)
    return adjusted.reshape(values.shape)


def rank_sum(values: npt.ArrayLike, mask: npt.ArrayLike) -> RankSum:
    """Compare two groups in every column by the two-sided Mann-Whitney test.

    Parameters
    ----------
    values
        ``(n, C)`` finite numbers.
    mask
        ``(n,)`` bool, True for the first group; both groups need a member.

    Returns
    -------
    U and p of every column, equal to ``scipy.stats.mannwhitneyu(values[mask], values[~mask])``: exact where the smaller
    group has at most 8 members and no value is tied, else normal with corrections for ties and continuity. A constant
    column has p = 1.

    Raises
    ------
    SetupError
        For other shapes, NaN or infinity, or an empty group.
    """
    x, first = np.asarray(values, dtype=np.float64), np.asarray(mask)
    if x.ndim != 2 or first.shape != x.shape[:1] or first.dtype != np.bool_:
        raise SetupError(
            f"Found values of shape {x.shape} and a mask of {first.dtype} of shape {first.shape}, expected (n, C) and "
            "n booleans."
        )
    if not np.all(np.isfinite(x)):
        raise SetupError(f"Found {int((~np.isfinite(x)).sum())} values that are not finite, expected finite numbers.")
    n1, n2 = int(first.sum()), int((~first).sum())
    if min(n1, n2) == 0:
        raise SetupError(f"Found groups of {n1} and {n2} members, expected at least one in each.")
    u = rankdata(x, axis=0)[first].sum(axis=0) - n1 * (n1 + 1) / 2
    ties = _tie_sums(x)
    extreme = np.maximum(u, n1 * n2 - u)
    if min(n1, n2) <= EXACT_BELOW and np.any(ties == 0):
        tail = _exact_tail(n1, n2)
        exact = tail[np.ceil(extreme).astype(np.int64)]
    else:
        exact = np.ones_like(u)
    n = n1 + n2
    spread = np.sqrt(n1 * n2 / 12 * (n + 1 - ties / (n * (n - 1))))
    z = np.divide(extreme - n1 * n2 / 2 - 0.5, spread, out=np.zeros_like(u), where=spread > 0)
    normal = norm.sf(z)
    one_sided = np.where((ties == 0) & (min(n1, n2) <= EXACT_BELOW), exact, normal)
    return RankSum(u, np.clip(2 * one_sided, 0.0, 1.0))


def _tie_sums(x: Floats) -> Floats:
    """Return sum t^3 - t over the groups of t tied values of every column (n, C)."""
    ordered = np.sort(x, axis=0)
    n, n_columns = ordered.shape
    starts = np.ones((n_columns, n), dtype=np.bool_)
    starts[:, 1:] = (ordered[1:] != ordered[:-1]).T
    places = np.flatnonzero(starts)  # column by column
    lengths = np.diff(np.append(places, starts.size)).astype(np.float64)
    return np.asarray(np.bincount(places // n, weights=lengths**3 - lengths, minlength=n_columns))


def _exact_tail(n1: int, n2: int) -> Floats:
    """Return P(U >= u) for u = 0 .. n1 n2 without ties, from the series of prod (1 - q^(n2+i)) / (1 - q^i)."""
    small, large = min(n1, n2), max(n1, n2)
    counts = np.zeros(n1 * n2 + 1, dtype=object)  # whole numbers of any length: a tail of floats would cancel
    counts[0] = 1
    for i in range(1, small + 1):
        shifted = counts[: -(large + i)].copy() if large + i < counts.size else counts[:0]
        counts[counts.size - shifted.size :] -= shifted
        for start in range(min(i, counts.size)):
            counts[start::i] = np.add.accumulate(counts[start::i])
    tail = np.add.accumulate(counts[::-1])[::-1]
    return np.array([value / tail[0] for value in tail], dtype=np.float64)
