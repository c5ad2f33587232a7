"""The two refinements on request: projection ("prime", Eq. 17) and diagonal ("hetero", Eq. 18)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cellsmith._errors import DataWarning
from cellsmith.math import gram
from cellsmith.model.bcpca import spectrum
from cellsmith.model.bcpca.observed import Part
from cellsmith.model.bcpca.spectrum import Axes

if TYPE_CHECKING:
    from cellsmith.model.bcpca.fitting import Job

__all__ = ["HELD_OUT", "Outcome", "refine"]

HELD_OUT = 0.05  # share of the observed entries by which embeddings are judged


@dataclass(frozen=True)
class Outcome:
    """Axes after a refinement, or as they were.

    Parameters
    ----------
    axes
        The components.
    operator
        The Gram operator that belongs to them.
    basis, prior
        (features, k) axes onto which new cells are regressed, and the (k, k) precision of their scores in units of the
        noise; None where Eq. 15 places them.
    facts
        For the record; empty without a refinement.
    start
        What was refined; None without a refinement.
    """

    axes: Axes
    operator: gram.Operator
    basis: np.ndarray | None
    prior: np.ndarray | None
    facts: Mapping[str, Any]
    start: Outcome | None = None


def refine(job: Job, part: Part, *, operator: gram.Operator, found: Axes) -> Outcome:
    """Return the axes as the option ``refine`` asks.

    Parameters
    ----------
    job
        Data and options.
    part
        The cells and features of the fit.
    operator
        Their Gram operator.
    found
        The axes so far.
    """
    if job.options["refine"] == "prime":
        return _prime(job, part, operator=operator, found=found)
    if job.options["refine"] == "hetero":
        return _hetero(job, part, operator=operator, found=found)
    return Outcome(found, operator, None, None, {})


def _prime(job: Job, part: Part, *, operator: gram.Operator, found: Axes) -> Outcome:
    changes: list[float] = []
    refined = gram.prime(
        part.blocks,
        part.stats.means,
        found.loadings,
        seed=job.fit.streams.integer("split"),
        share=HELD_OUT,
        fit=spectrum.thinned(job, part, operator, eigen=found.eigen, share=HELD_OUT),
        dtype=np.dtype(job.options["dtype"]),
        keep=job.source.in_memory,
        step=_logged(job, changes),
    )
    for error in (refined.heldout_before, refined.heldout_after):
        job.fit.log("refine/heldout", error)
    facts = {
        "method": "prime",
        "rounds": len(changes),
        "accepted": bool(refined.improved),
        "heldout_before": refined.heldout_before,
        "heldout_after": refined.heldout_after,
        "cells_left_out": int((~refined.accepted).sum()),
    }
    if not refined.improved:
        job.note(
            f'refine="prime" did not predict held-out entries better ({refined.heldout_after:.4g} against '
            f"{refined.heldout_before:.4g}); the result without it is returned.",
            DataWarning,
        )
        return Outcome(found, operator, None, None, facts)
    basis = refined.loadings
    largest = np.argmax(np.abs(basis), axis=0)
    signs = np.where(basis[largest, np.arange(basis.shape[1])] < 0, -1.0, 1.0)
    axes = Axes(refined.scores * signs, basis * signs, refined.values, None)
    start = Outcome(found, operator, None, None, {})
    return Outcome(axes, operator, axes.loadings, refined.prior * np.outer(signs, signs), facts, start)


def _hetero(job: Job, part: Part, *, operator: gram.Operator, found: Axes) -> Outcome:
    changes: list[float] = []
    operator, eigen = gram.hetero(
        operator,
        found.eigen,
        generator=job.fit.streams.numpy("init", 1),
        tol=job.options["tol"],
        max_iter=job.max_iter,
        oversample=job.options["oversample"],
        step=_logged(job, changes),
    )
    good = spectrum.positive(job, eigen.values)
    accepted = good == len(eigen.values)
    facts = {"method": "hetero", "rounds": len(changes), "accepted": accepted}
    if not accepted:
        job.note(
            f'refine="hetero" left {good} positive eigenvalues of {len(eigen.values)}; the result without it is '
            "returned.",
            DataWarning,
        )
        return Outcome(found, operator, None, None, facts)
    return Outcome(spectrum.axes_of(part, operator, eigen), operator, None, None, facts)


def _logged(job: Job, changes: list[float]) -> Any:
    def step(change: float) -> None:
        changes.append(change)
        job.fit.log("refine/change", change)

    return step
