"""The honest baselines beside the result: mean imputation and pairwise-complete counts, with what compares them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cellsmith.math import gram, missing
from cellsmith.model.bcpca import spectrum
from cellsmith.model.bcpca.observed import Part
from cellsmith.model.bcpca.refinement import HELD_OUT, Outcome

if TYPE_CHECKING:
    from cellsmith.model.bcpca.fitting import Job

__all__ = ["Comparison", "compare"]

logger = logging.getLogger("cellsmith")

MOST_CELLS = {"mean": 50_000, "pairwise": gram.MAX_DENSE}


@dataclass(frozen=True)
class Comparison:
    """What the comparison found.

    Parameters
    ----------
    embeddings
        Name -> (cells of the fit, k).
    table
        ``name``, ``sin_theta`` (to BC) and ``heldout_error`` (root mean square, in the unit of the data), equally
        long lists; empty where nothing was compared.
    """

    embeddings: Mapping[str, np.ndarray]
    table: Mapping[str, list]


def compare(job: Job, part: Part, *, outcome: Outcome) -> Comparison:
    """Compute the baselines that the option ``compare`` names, and score all embeddings on the same held-out entries.

    The score is honest: 5 % of the observed entries are set aside, every method is fitted without them, and each entry
    is predicted from the place of its cell.

    Parameters
    ----------
    job
        Data and options.
    part
        The cells and features of the fit.
    outcome
        The result that is compared.
    """
    names = _wanted(job, int(part.cells.sum()))
    if not names:
        return Comparison({}, {})
    found, k = outcome.axes, len(outcome.axes.values)
    held = gram.hold_out(part.blocks, share=HELD_OUT, seed=job.fit.streams.integer("split"))
    rest = spectrum.centred(job, held.blocks, part.stats.means)
    embeddings, angles = {}, [0.0]
    fitted = {"bc": _own_scores(job, part, outcome, held=held, rest=rest)}
    blocks = spectrum.centred(job, part.blocks, part.stats.means)
    for name in names:
        operator = _baseline(part, blocks, name)
        eigen = spectrum.eigenpairs(job, operator, k)
        axes = spectrum.axes_of(part, operator, eigen.first(max(1, spectrum.positive(job, eigen.values))), kind=name)
        embeddings[name] = axes.scores
        shared = min(k, axes.scores.shape[1])
        angles.append(gram.sin_theta(found.scores[:, :shared], axes.scores[:, :shared]))
        job.fit.log("compare/sin_theta", angles[-1])
        fitted[name] = spectrum.thinned(job, part, operator, eigen=axes.eigen, kind=name, share=HELD_OUT)(rest)[0]
    how = {"means": part.stats.means, "dtype": np.dtype(job.options["dtype"])}
    errors = [missing.embedding_error(held, scores, **how) for scores in fitted.values()]
    return Comparison(embeddings, {"name": ["bc", *names], "sin_theta": angles, "heldout_error": errors})


def _wanted(job: Job, n: int) -> list[str]:
    choice = job.options["compare"]
    if choice is False:
        return []
    names = [name for name, most in MOST_CELLS.items() if n <= most or (choice is True and name == "mean")]
    if isinstance(job.options["prob"], str) and job.options["prob"] == "pairwise":
        names.remove("pairwise")
    if choice is True and n > MOST_CELLS["pairwise"]:
        logger.info("The pairwise-complete baseline needs an n x n matrix and is left out at %d cells.", n)
    return names


def _baseline(part: Part, blocks: gram.CentredBlocks, name: str) -> gram.Operator:
    if name == "mean":
        return gram.mean_operator(blocks)
    return gram.pairwise_operator(blocks, gram.shared_counts(part.blocks, part.stats))


def _own_scores(job: Job, part: Part, outcome: Outcome, *, held: gram.HeldOut, rest: gram.CentredBlocks) -> np.ndarray:
    """Return the scores of the result's own method, fitted without the held-out entries."""
    first = outcome.start or outcome
    fit = spectrum.thinned(job, part, first.operator, eigen=first.axes.eigen, share=HELD_OUT)
    scores, loadings = fit(rest)
    if outcome.start is None:
        return scores
    how = {"dtype": np.dtype(job.options["dtype"]), "keep": job.source.in_memory}
    seed = job.fit.streams.integer("split", 1)
    refined = gram.prime(held.blocks, part.stats.means, loadings, seed=seed, **how)
    return refined.scores if refined.improved else scores
