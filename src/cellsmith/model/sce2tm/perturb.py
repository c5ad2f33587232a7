"""What differs between two groups of cells, edits of topics, and what they do to expression, on arrays (T23-T26).

Symbols: n cells, K topics, V modelled genes, m chosen topics, C groups. Everything here takes and returns arrays, so
that a law can be tested without a model; :mod:`cellsmith.model.sce2tm.editing` asks a trained model the same questions.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.special import logsumexp, softmax

from cellsmith._errors import SetupError, SizeError
from cellsmith.math.enrichment import benjamini_hochberg, rank_sum

__all__ = [
    "OPERATIONS",
    "SPACES",
    "TESTS",
    "check_size",
    "compare_topics",
    "edit_topics",
    "group_shifts",
    "log_fold_change",
    "mean_by_group",
    "told_by_batch",
]

OPERATIONS = ("add", "scale", "set", "swap_to_group", "ablate")
SPACES = ("mu", "theta")
TESTS = ("mannwhitney", "permutation")
N_PERMUTATIONS = 1000
MIN_SAMPLES = 3  # samples on each side: fewer leave a rank test without a small p-value
MIN_CELLS = 20  # cells on each side for a shift of a group's own; smaller groups take that of all cells
SIZE_LIMIT = 2 * 2**30  # bytes of fold changes of single cells


def told_by_batch(batch: np.ndarray, first: np.ndarray, second: np.ndarray) -> bool:
    """Tell whether a cell's batch already says on which of two sides it is.

    Then the decoder's offsets hold the difference of the sides, and topics are not what differs.

    Parameters
    ----------
    batch
        Codes (n,).
    first, second
        Masks (n,) of the sides.
    """
    return len(np.unique(batch)) > 1 and not np.intersect1d(batch[first], batch[second]).size


def compare_topics(
    mu: np.ndarray,
    group: np.ndarray,
    reference: np.ndarray,
    *,
    scale: np.ndarray,
    samples: np.ndarray | None = None,
    test: str = "mannwhitney",
    generator: np.random.Generator | None = None,
) -> dict[str, np.ndarray]:
    """Compare every topic between two groups (T23).

    Parameters
    ----------
    mu
        (n, K).
    group, reference
        Masks (n,) of the two sides.
    scale
        (K,) standard deviations that effects are divided by.
    samples
        Codes (n,) of the samples that cells come from; the test then sees one mean a sample and side.
    test
        "mannwhitney", two-sided, or "permutation": 1,000 permutations of the sides, difference of means.
    generator
        For the permutations.

    Returns
    -------
    ``mean_group``, ``mean_reference``, their ``difference``, ``effect`` (difference / scale), ``p_value`` and ``fdr``
    (Benjamini-Hochberg over the topics), each (K,).

    Raises
    ------
    SetupError
        If a side has fewer than three samples.
    """
    sides = [np.asarray(mu[mask], dtype=np.float64) for mask in (group, reference)]
    if samples is not None:
        sides = [_sample_means(x, samples[mask]) for x, mask in zip(sides, (group, reference), strict=True)]
        if min(map(len, sides)) < MIN_SAMPLES:
            raise SetupError(
                f"Found {len(sides[0])} samples in the group and {len(sides[1])} in the reference; expected at least "
                f"{MIN_SAMPLES} on each side. Type sample_key=None for a test on cells, whose p-values are too small."
            )
    values, first = np.concatenate(sides), np.arange(sum(map(len, sides))) < len(sides[0])
    p_value = rank_sum(values, first).p if test == "mannwhitney" else _permutation_p(values, first, generator)
    means = [x.mean(axis=0) for x in sides]
    difference = means[0] - means[1]
    return {
        "mean_group": means[0],
        "mean_reference": means[1],
        "difference": difference,
        # a topic that is the same in all training cells differs nowhere
        "effect": np.divide(difference, scale, out=np.zeros_like(difference), where=scale > 0),
        "p_value": p_value,
        "fdr": benjamini_hochberg(p_value),
    }


def _sample_means(x: np.ndarray, samples: np.ndarray) -> np.ndarray:
    found, codes = np.unique(samples, return_inverse=True)
    return mean_by_group([(np.arange(len(x)), x)], codes, len(found))


def _permutation_p(values: np.ndarray, first: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return (1 + permutations with a difference at least as large) / (1 + permutations)."""
    n_first, n = int(first.sum()), len(first)
    centred = values - values.mean(axis=0)
    # the difference of means is this sum times a constant, since all values sum to 0
    observed = np.abs(centred[first].sum(axis=0))
    hits = np.zeros(values.shape[1])
    for _ in range(N_PERMUTATIONS):
        drawn = generator.permutation(n)[:n_first]
        hits += np.abs(centred[drawn].sum(axis=0)) >= observed - 1e-12 * (1 + observed)
    return (1 + hits) / (1 + N_PERMUTATIONS)


def group_shifts(
    values: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    *,
    codes: np.ndarray,
    n_groups: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return how far each group moves from source to target (the shift of "swap_to_group", T24).

    Parameters
    ----------
    values
        (n, K) of the training cells.
    source, target
        Masks (n,).
    codes
        Group (n,) of the training cells; -1 for none.
    n_groups
        C.

    Returns
    -------
    (C, K) mean of target minus mean of source, and (C,) whether the mean is over all cells, because the group has
    fewer than 20 cells on a side.
    """
    shifts = np.tile(values[target].mean(axis=0) - values[source].mean(axis=0), (n_groups, 1))
    pooled = np.ones(n_groups, dtype=bool)
    for c in range(n_groups):
        own = [side & (codes == c) for side in (target, source)]
        if min(int(mask.sum()) for mask in own) >= MIN_CELLS:
            shifts[c] = values[own[0]].mean(axis=0) - values[own[1]].mean(axis=0)
            pooled[c] = False
    return shifts, pooled


def edit_topics(
    mu: np.ndarray, columns: np.ndarray, values: np.ndarray, *, op: str, strength: float, space: str = "mu"
) -> np.ndarray:
    """Edit chosen topics of cells (T24); strength 0 leaves them as they are.

    Every edit is written as one of mu in the chosen columns only: the others stay bit-equal, and their shares keep
    their proportions, because theta' = softmax(mu').

    Parameters
    ----------
    mu
        (n, K).
    columns
        (m,) chosen topics.
    values
        v, (m,) or (n, m); of "swap_to_group" the shift, not read by "ablate".
    op
        "add": x + s v; "scale": x (1 + s (v - 1)); "set": x + s (v - x), which is v at s = 1; "swap_to_group":
        x + s shift; "ablate": theta_k (1 - s), renormalised.
    strength
        s.
    space
        "mu": x is mu. "theta": x is theta, negative shares become 0, and rows are renormalised.

    Returns
    -------
    mu' (n, K), of the type of ``mu``; -inf where a share became 0.

    Raises
    ------
    SetupError
        If a cell would be left without any topic.
    """
    out = np.array(mu)
    with np.errstate(divide="ignore"):
        if op == "ablate":
            out[:, columns] += np.log1p(-strength)
        else:
            x = mu.astype(np.float64) if space == "mu" else softmax(mu.astype(np.float64), axis=1)
            x, v = x[:, columns], np.asarray(values, dtype=np.float64)
            new = {
                "add": x + strength * v,
                "swap_to_group": x + strength * v,
                "scale": x * (1 + strength * (v - 1)),
                "set": x + strength * (v - x),
            }[op]
            if space == "theta":
                new = np.log(np.maximum(new, 0)) + logsumexp(mu.astype(np.float64), axis=1)[:, None]
            out[:, columns] = new
    empty = np.isneginf(out).all(axis=1)
    if empty.any():
        raise SetupError(
            f"op={op!r} with strength={strength:g} leaves {int(empty.sum())} cells without any topic; expected a share "
            "in at least one. Leave out a topic, or lower the strength."
        )
    return out


def mean_by_group(blocks: Iterable[tuple[np.ndarray, np.ndarray]], codes: np.ndarray, n_groups: int) -> np.ndarray:
    """Average rows by group, block by block.

    Parameters
    ----------
    blocks
        Positions of cells (b,), and their rows (b, V).
    codes
        Group (n,) of every cell.
    n_groups
        C; each has at least one cell.

    Returns
    -------
    (C, V), float64.
    """
    total = None
    for rows, values in blocks:
        total = np.zeros((n_groups, values.shape[1])) if total is None else total
        inside = codes[rows][None, :] == np.arange(n_groups)[:, None]
        total += inside.astype(np.float64) @ values
    return total / np.bincount(codes, minlength=n_groups)[:, None]


def log_fold_change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return log2(1 + after) - log2(1 + before) of normalised expression on the 1e4 scale (T26)."""
    return np.log2(1 + after) - np.log2(1 + before)


def check_size(n_cells: int, n_genes: int) -> None:
    """Refuse fold changes of single cells above 2 GB.

    Raises
    ------
    SizeError
        That names the way out.
    """
    size = n_cells * n_genes * 4
    if size > SIZE_LIMIT:
        raise SizeError(
            f"per_cell=True would hold {n_cells:,} cells x {n_genes:,} genes ({size / 2**30:.1f} GiB); expected at "
            "most 2 GiB. Type by=<a column of .obs> for one row a group."
        )
