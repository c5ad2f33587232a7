"""The honest baselines beside the result: mean imputation and pairwise-complete counts, with what compares them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cellsmith.math import gram
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

    The score is honest: 5 % of the observed entries are set aside, every method is fitted without them, and each is
    then predicted from its cell's place.

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
    embeddings, angles, errors = {}, [0.0], [_own_error(job, part, outcome, held=held, rest=rest)]
    blocks = spectrum.centred(job, part.blocks, part.stats.means)
    for name in names:
        operator = _baseline(part, blocks, name)
        eigen = spectrum.eigenpairs(job, operator, k)
        axes = spectrum.axes_of(part, operator, eigen.first(max(1, spectrum.positive(job, eigen.values))), kind=name)
        embeddings[name] = axes.scores
        shared = min(k, axes.scores.shape[1])
        angles.append(gram.sin_theta(found.scores[:, :shared], axes.scores[:, :shared]))
        job.fit.log("compare/sin_theta", angles[-1])
        errors.append(_error(job, part, name, operator=operator, eigen=axes.eigen, held=held, rest=rest))
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


def _own_error(job: Job, part: Part, outcome: Outcome, *, held: gram.HeldOut, rest: gram.CentredBlocks) -> float:
    if outcome.basis is not None:
        return float(outcome.facts["heldout_after"])  # of the same entries, by the same rule
    eigen = outcome.axes.eigen
    return _error(job, part, "bc", operator=outcome.operator, eigen=eigen, held=held, rest=rest)


def _error(
    job: Job,
    part: Part,
    name: str,
    *,
    operator: gram.Operator,
    eigen: gram.Eigen | None,
    held: gram.HeldOut,
    rest: gram.CentredBlocks,
) -> float:
    scores, _ = spectrum.thinned(job, part, operator, eigen, kind=name, share=HELD_OUT)(rest)
    return gram.embedding_error(held, scores, means=part.stats.means, dtype=np.dtype(job.options["dtype"]))
