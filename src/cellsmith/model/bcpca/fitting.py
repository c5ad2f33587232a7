"""The fit, step by step: statistics, probability, overlap, eigenpairs, refinement, comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cellsmith._errors import MissingnessWarning
from cellsmith.math import gram
from cellsmith.model._fitted import Fit
from cellsmith.model.bcpca import baselines, observed, refinement, spectrum
from cellsmith.model.bcpca.observed import Part
from cellsmith.model.bcpca.placing import Asked, place
from cellsmith.model.bcpca.refinement import Outcome
from cellsmith.model.bcpca.source import Source
from cellsmith.model.bcpca.state import Answer

__all__ = ["OPTIONS", "Job", "run"]

OPTIONS = (
    *("n_latent", "rank_rule", "prob", "prob_covariates", "refine", "compare", "min_overlap", "oversample", "tol"),
    *("overlap_tol", "chunk_size", "dtype"),
)
MAX_ITER = 50
N_PAIRS = 2_000  # random pairs of cells whose effective overlap is reported


@dataclass(frozen=True)
class Job:
    """What one fit works on.

    Parameters
    ----------
    source
        The cells.
    options
        The constructor's arguments named in ``OPTIONS``.
    groups
        Number of the group of each cell (n,), or None.
    designs
        Predictors of cells (n, q) and of features (D, q'), each or None.
    fit
        Streams, histories and limits.
    note
        ``note(text, category)`` warns and records.
    """

    source: Source
    options: Mapping[str, Any]
    groups: np.ndarray | None
    designs: tuple[np.ndarray | None, np.ndarray | None]
    fit: Fit
    note: Callable[[str, type], None]

    @property
    def max_iter(self) -> int:
        """Largest number of products of the eigensolver."""
        return self.fit.max_iter or MAX_ITER


def run(job: Job) -> Answer:
    """Fit and return the answer.

    Parameters
    ----------
    job
        Data and options.

    Raises
    ------
    SetupError
        If the data do not determine an embedding of the size asked for.
    ConvergenceError
        If the overlap is not factored or the eigenpairs do not converge.
    """
    part, everything, n_low = observed.select(job)
    job.fit.step("overlap")
    factors = spectrum.overlap_factors(job, part)
    job.fit.log("overlap/rank", 0 if factors is None else factors.rank)
    job.fit.log("overlap/error", 0.0 if factors is None else factors.error)
    job.fit.step("eigen")
    operator = spectrum.operator_of(spectrum.centred(job, part.blocks, part.stats.means), part, factors)
    log = lambda residual: job.fit.log("eigen/residual", residual)
    eigen = spectrum.eigenpairs(job, operator, int(job.options["n_latent"]), step=log)
    mass = gram.spectrum_mass(operator, eigen, generator=job.fit.streams.numpy("sample", 1))
    kept = spectrum.kept_rank(job, part, eigen, total=mass.positive, factors=factors)
    first = spectrum.axes_of(part, operator, eigen.first(kept))
    job.fit.step("refine")
    outcome = refinement.refine(job, part, operator=operator, found=first)
    job.fit.step("compare")
    compared = baselines.compare(job, part, outcome=outcome)
    facts = {
        "negative_mass": mass.ratio,
        "negative_mass_exact": mass.exact,
        "positive_mass": mass.positive,
        "refine": dict(outcome.facts),
        "baselines": dict(compared.table),
        "diagnostics": _diagnostics(job, part, n_low),
        "overlap_quantiles": _overlap_quantiles(job, part),
        "angle_bound": _angle_bound(job, operator, eigen, factors, kept),
        "margin_error": float(getattr(part.probability, "margin_error", float("nan"))),
    }
    answer = _answer(part, everything, outcome=outcome, eigen=eigen, factors=factors, facts=facts)
    embeddings = {name: part.spread(x) for name, x in compared.embeddings.items()}
    return _with_others(job, part, replace(answer, baselines=embeddings))


def _answer(
    part: Part,
    everything: gram.Stats,
    *,
    outcome: Outcome,
    eigen: gram.Eigen,
    factors: gram.Factors | None,
    facts: Mapping[str, Any],
) -> Answer:
    axes, probability = outcome.axes, part.probability
    empty = np.zeros(0)
    projections = empty
    if factors is not None:
        # After a regression onto new axes nothing is projected; its place in the state still says that cells can be
        # placed.
        vectors = (axes.eigen or eigen.first(1)).vectors
        projections = gram.projections(outcome.operator, vectors)
    col_rates = np.full(len(part.features), np.nan)
    col_rates[part.features] = part.stats.col_rates
    values, residuals = eigen.values.copy(), eigen.residuals
    values[: len(axes.values)] = axes.values
    return Answer(
        latent=part.spread(axes.scores),
        in_fit=part.cells,
        overlap=part.spread(part.mean_overlap),
        observed_rate=everything.row_rates,
        live=part.features,
        col_rates=col_rates,
        means=part.stats.means,
        loadings=axes.loadings,
        values=values,
        residuals=residuals,
        col_means=empty if probability is None else probability.col_sums / probability.n_cells,
        projections=projections,
        basis=empty if outcome.basis is None else outcome.basis,
        prior=empty if outcome.prior is None else outcome.prior,
        factors_u=empty if factors is None else factors.u,
        factors_s=empty if factors is None else factors.s,
        baselines={},
        nodes={} if factors is None else factors.nodes,
        probability={} if probability is None else probability.state(),
        facts={
            **facts,
            "model": "pairwise" if probability is None else probability.kind,
            "factors_kind": "none" if factors is None else factors.kind,
            "factors_error": 0.0 if factors is None else factors.error,
        },
    )


def _with_others(job: Job, part: Part, answer: Answer) -> Answer:
    """Return the answer with the cells in it that did not take part in the fit."""
    others = ~part.cells
    if not others.any() or not answer.projections.size:
        return answer
    numbers = np.flatnonzero(others)
    asked = Asked(
        gram.select_blocks(job.source.blocks, cells=others),
        groups=None if job.groups is None else job.groups[others],
        design=None if job.designs[0] is None else job.designs[0][others],
        known=None if answer.probability else lambda cells: observed.given(job, part, numbers[cells]),
    )
    found = place(answer, asked, dtype=job.options["dtype"])
    latent, overlap = answer.latent.copy(), answer.overlap.copy()
    latent[others], overlap[others] = found.latent, found.overlap
    return replace(answer, latent=latent, overlap=overlap)


def _diagnostics(job: Job, part: Part, n_low: int) -> dict[str, Any]:
    """Return Eq. 21 and warn where the mask seems to follow the values."""
    model = part.probability or gram.fit_logistic(part.stats.row_counts, part.stats.col_counts)
    found = gram.diagnose(part.stats, model, min_overlap=job.options["min_overlap"])
    correlation = found.rate_mean_correlation
    if abs(correlation) > gram.NOT_AT_RANDOM:
        job.note(
            f"Features that are observed more often have {'higher' if correlation > 0 else 'lower'} means (Spearman "
            f"{correlation:.2f}): entries may be missing because of their value, which nothing here corrects.",
            MissingnessWarning,
        )
    numbers = {k: v for k, v in found.as_dict().items() if k not in ("overlap_quantiles", "below_min")}
    return {**numbers, "below_min": n_low}


def _overlap_quantiles(job: Job, part: Part) -> list[float]:
    """Quantiles of the effective overlap of random pairs of cells."""
    n = int(part.cells.sum())
    generator = job.fit.streams.numpy("sample", 2)
    first = generator.integers(0, n, N_PAIRS)
    pairs = np.column_stack([first, (first + generator.integers(1, n, N_PAIRS)) % n])
    overlap = part.counts[pairs[:, 0], pairs[:, 1]] if part.probability is None else part.probability.overlap(pairs)
    return [float(q) for q in np.quantile(overlap, gram.QUANTILES)]


def _angle_bound(
    job: Job, operator: gram.Operator, eigen: gram.Eigen, factors: gram.Factors | None, kept: int
) -> float:
    """Estimate how far the factored overlap can turn the space: eta |G|_F / gap; NaN where the gap is not known."""
    if factors is None or factors.error == 0.0:
        return 0.0
    values = eigen.spectrum if eigen.spectrum is not None else eigen.values
    if kept >= len(values):
        return float("nan")
    norm = gram.frobenius_norm(operator, generator=job.fit.streams.numpy("sample", 3))
    gap = float(values[kept - 1] - values[kept])
    return min(1.0, factors.error * norm / gap) if gap > 0 else 1.0
