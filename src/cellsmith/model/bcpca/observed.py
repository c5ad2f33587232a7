"""Which cells and features take part, and with which probability an entry of theirs is observed."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cellsmith._errors import MissingnessWarning, SetupError
from cellsmith.math import gram

if TYPE_CHECKING:
    from cellsmith.model.bcpca.fitting import Job

__all__ = ["Part", "fitted", "given", "select"]

logger = logging.getLogger("cellsmith")
LISTED = 5  # names in a message


@dataclass(frozen=True)
class Part:
    """The cells and features of a fit.

    Parameters
    ----------
    blocks
        A pass over them.
    stats
        Their margins and means.
    cells
        (n,) booleans over all cells.
    features
        (D,) booleans over all features.
    probability
        Their probabilities; None for ``prob="pairwise"``.
    counts
        Shared features of each pair of cells, for ``prob="pairwise"``; else None.
    """

    blocks: gram.Blocks
    stats: gram.Stats
    cells: np.ndarray
    features: np.ndarray
    probability: gram.Probability | None = None
    counts: np.ndarray | None = None

    @property
    def row_sums(self) -> np.ndarray:
        """Expected number of observed features of each cell."""
        return self.stats.row_counts if self.probability is None else self.probability.row_sums

    @property
    def self_overlap(self) -> np.ndarray:
        """N_ii of each cell, features."""
        return self.stats.row_counts if self.probability is None else self.probability.self_overlap

    @property
    def mean_overlap(self) -> np.ndarray:
        """Mean effective overlap of each cell with the others, features."""
        if self.probability is not None:
            return self.probability.mean_overlap
        n = len(self.counts)
        return (self.counts.sum(axis=1) - np.diag(self.counts)) / max(n - 1, 1)

    def spread(self, values: np.ndarray, fill: float = np.nan) -> np.ndarray:
        """Return values of the cells of the fit (m, ...) as values of all cells (n, ...)."""
        out = np.full((len(self.cells), *values.shape[1:]), fill, dtype=np.float32)
        out[self.cells] = values
        return out


def select(job: Job) -> tuple[Part, gram.Stats, int]:
    """Return the part of the data that determines the embedding, the margins of all, and how many cells overlap little.

    Cells without an observed entry and features that no cell observed are left out; cells whose overlap with the
    others is below ``min_overlap`` too, after which everything is fitted again.

    Parameters
    ----------
    job
        Data and options.

    Raises
    ------
    SetupError
        If an observed entry is not finite, fewer than two cells remain, groups of cells share no feature, or the
        published probabilities meet a cell or feature without data.
    """
    job.fit.step("statistics")
    everything = gram.observed_stats(job.source.blocks)
    job.fit.log("statistics/observed_rate", everything.observed_rate)
    if everything.observed_rate == 1.0:
        logger.info("No entry is missing: the embedding is that of PCA.")
    if isinstance(job.options["prob"], str) and job.options["prob"] == "rank1-legacy":
        _refuse_empty(job, everything)
    part = _live(job, everything, everything.live_cells)
    job.fit.step("probability")
    part = fitted(job, part)
    low = part.mean_overlap < float(job.options["min_overlap"])
    if low.any():
        part = fitted(job, _live(job, everything, _without(job, part, low)))
    _note_dropped(job, everything, part)
    for error in getattr(part.probability, "history", ()):
        job.fit.log("probability/margin_error", error)
    return part, everything, int(low.sum())


def _refuse_empty(job: Job, everything: gram.Stats) -> None:
    """Raise where the published form divides by zero: parity with NaN is pointless."""
    for what, live, names in (
        ("cells", everything.live_cells, job.source.names),
        ("features", everything.live_features, job.source.features),
    ):
        if not live.all():
            raise SetupError(
                f'prob="rank1-legacy" divides by zero for {int((~live).sum())} {what} without an observed entry '
                f'(first: {_first(names[~live])}). Remove them, or type prob="logistic".'
            )


def _live(job: Job, everything: gram.Stats, cells: np.ndarray) -> Part:
    """Return these cells with the features that any of them observed."""
    if cells.sum() < 2:
        raise SetupError(f"{int(cells.sum())} cells have observed entries; at least 2 are needed. Check the mask.")
    blocks, stats = job.source.blocks, everything
    if not cells.all():
        blocks = gram.select_blocks(job.source.blocks, cells=cells)
        stats = gram.observed_stats(blocks)
    features = stats.live_features
    if not features.all():
        blocks = gram.select_blocks(blocks, features=features)
        stats = replace(stats, col_counts=stats.col_counts[features], means=stats.means[features])
    if stats.observed_rate < 1.0:
        _refuse_groups(job, blocks, stats, cells)
    return Part(blocks, stats, cells, features)


def _refuse_groups(job: Job, blocks: gram.Blocks, stats: gram.Stats, cells: np.ndarray) -> None:
    groups = gram.cell_groups(blocks, stats)
    if groups.max() < 1:
        return
    names = job.source.names[cells]
    main, other = (int((groups == g).sum()) for g in (0, 1))
    examples = [repr(str(names[np.flatnonzero(groups == g)[0]])) for g in (0, 1)]
    raise SetupError(
        f"{main} cells (such as {examples[0]}) and {other} cells (such as {examples[1]}) share no feature, directly or "
        f"through others ({groups.max() + 1} groups in all): their inner products are undetermined. "
        "Analyse the groups one by one, or add features that both have."
    )


def _without(job: Job, part: Part, low: np.ndarray) -> np.ndarray:
    """Return the cells that stay in the fit, and note those that do not."""
    least = float(job.options["min_overlap"])
    if low.sum() > len(low) - 2:
        raise SetupError(
            f"{low.sum()} of {len(low)} cells have a mean effective overlap below min_overlap={least:g} features with "
            f"the others (the largest is {part.mean_overlap.max():.3g} of {part.stats.n_features} features). "
            "Type min_overlap=<lower>."
        )
    chosen = part.cells.copy()
    chosen[np.flatnonzero(part.cells)[low]] = False
    job.note(
        f"{low.sum()} cells share fewer than min_overlap={least:g} features with the others in the mean and are "
        f"placed after the fit (first: {_first(job.source.names[part.cells][low])}).",
        MissingnessWarning,
    )
    return chosen


def _note_dropped(job: Job, everything: gram.Stats, part: Part) -> None:
    empty, unseen = ~everything.live_cells, ~part.features
    job.fit.log("statistics/dropped", float(empty.sum() + unseen.sum()))
    if empty.any():
        text = (
            f"{empty.sum()} cells have no observed entry and no embedding (first: {_first(job.source.names[empty])})."
        )
        job.note(text, MissingnessWarning)
    if unseen.any():
        names = _first(job.source.features[unseen])
        text = f"{unseen.sum()} features were never observed in the cells of the fit: no loadings (first: {names})."
        job.note(text, MissingnessWarning)


def _first(names: np.ndarray) -> str:
    return ", ".join(repr(str(name)) for name in names[:LISTED])


def fitted(job: Job, part: Part) -> Part:
    """Return the part with the probabilities that the options ask for (Eq. 7).

    Parameters
    ----------
    job
        Data and options.
    part
        Cells and features.
    """
    prob, stats = job.options["prob"], part.stats
    if not isinstance(prob, str):
        return replace(part, probability=given(job, part, np.flatnonzero(part.cells)))
    if prob == "pairwise":
        return replace(part, counts=gram.shared_counts(part.blocks, stats))
    if prob == "grouped":
        return replace(part, probability=gram.fit_grouped(part.blocks, job.groups[part.cells]))
    if prob in ("rank1", "rank1-legacy"):
        return replace(part, probability=gram.fit_rank1(stats, legacy=prob == "rank1-legacy"))
    cells, features = job.designs
    if cells is None and features is None:
        return replace(part, probability=gram.fit_logistic(stats.row_counts, stats.col_counts))
    found = gram.fit_covariates(
        part.blocks,
        stats,
        cell_design=None if cells is None else cells[part.cells],
        feature_design=None if features is None else features[part.features],
    )
    return replace(part, probability=found)


def given(job: Job, part: Part, numbers: np.ndarray) -> gram.Probability:
    """Return the caller's probabilities of some cells and the live features.

    Parameters
    ----------
    job
        Data and options.
    part
        The cells and features of the fit.
    numbers
        (m,) cells, numbered as in the data.
    """
    everything = gram.custom_probability(job.options["prob"], shape=(len(part.cells), len(part.features)))
    if part.features.all() and np.array_equal(numbers, np.arange(len(part.cells))):
        return everything
    features, shape = part.features, (len(numbers), int(part.features.sum()))
    return gram.custom_probability(lambda cells: everything.block(numbers[cells])[:, features], shape=shape)
