"""Operator, eigenpairs and axes of a part of the data: by BC-PCA or by a baseline, the same steps for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cellsmith._errors import SetupError
from cellsmith.math import gram
from cellsmith.model.bcpca.observed import Part

if TYPE_CHECKING:
    from cellsmith.model.bcpca.fitting import Job

__all__ = ["Axes", "axes_of", "centred", "eigenpairs", "operator_of", "overlap_factors", "positive", "thinned"]

# Below this share of the largest eigenvalue a positive one is rounding: float32 resolves no more.
ROUNDING = {"float32": 1e-6, "float64": 1e-12}
N_SHUFFLES = 10  # of the parallel rule


@dataclass(frozen=True)
class Axes:
    """Components of a part of the data.

    Parameters
    ----------
    scores
        (cells, k) coordinates.
    loadings
        (features, k).
    values
        (k,) eigenvalues.
    eigen
        The pairs behind them; None for axes of another origin.
    """

    scores: np.ndarray
    loadings: np.ndarray
    values: np.ndarray
    eigen: gram.Eigen | None


def centred(job: Job, blocks: gram.Blocks, means: np.ndarray) -> gram.CentredBlocks:
    """Return Z in row blocks; kept between passes where the data lie in memory anyway."""
    return gram.centred_blocks(blocks, means, dtype=np.dtype(job.options["dtype"]), keep=job.source.in_memory)


def overlap_factors(job: Job, part: Part) -> gram.Factors | None:
    """Return 1 / N as a short sum of products (Eq. 9, 10); None for ``prob="pairwise"``."""
    if part.probability is None:
        return None
    generator = job.fit.streams.numpy("sample", 0)
    return gram.overlap_factors(part.probability, tol=job.options["overlap_tol"], generator=generator)


def operator_of(blocks: gram.CentredBlocks, part: Part, factors: gram.Factors | None) -> gram.Operator:
    """Return the corrected Gram operator of a part: implicit, or dense for ``prob="pairwise"``."""
    if factors is None:
        return gram.pairwise_operator(blocks, part.counts)
    return gram.gram_operator(blocks, factors, part.row_sums)


def positive(job: Job, values: np.ndarray) -> int:
    """Return how many eigenvalues are above zero by more than rounding."""
    return int((values > ROUNDING[job.options["dtype"]] * max(float(values[0]), 0.0)).sum()) if values.size else 0


def eigenpairs(job: Job, operator: gram.Operator, k: int, *, step: Callable[[float], None] | None = None) -> gram.Eigen:
    """Return the k largest eigenpairs, fewer where there are fewer cells (Eq. 12)."""
    return gram.top_eigenpairs(
        operator,
        min(k, operator.n),
        tol=job.options["tol"],
        max_iter=job.max_iter,
        oversample=job.options["oversample"],
        generator=job.fit.streams.numpy("init"),
        step=step,
    )


def kept_rank(job: Job, part: Part, eigen: gram.Eigen, *, total: float, factors: gram.Factors | None) -> int:
    """Return how many components stay (Eq. 14).

    Raises
    ------
    SetupError
        If there are fewer positive eigenvalues than ``n_latent``, or the rule cannot be applied.
    """
    rule, wanted = job.options["rank_rule"], int(job.options["n_latent"])
    good = positive(job, eigen.values)
    if rule is None:
        if wanted > good:
            raise SetupError(
                f"{good} positive eigenvalues; n_latent must be <= {good}. "
                f"Type n_latent={good} or fewer, or rank_rule='proportion'."
            )
        return wanted
    null = _shuffled_values(job, part, len(eigen.values), factors) if rule == "parallel" else None
    return min(gram.choose_rank(eigen.values, rule, total=total, null=null), max(good, 1))


def _shuffled_values(job: Job, part: Part, k: int, factors: gram.Factors | None) -> np.ndarray:
    values = []
    for repeat in range(N_SHUFFLES):
        generator = job.fit.streams.numpy("sample", 10 + repeat)
        blocks = gram.permute_within_mask(part.blocks, generator=generator)
        operator = operator_of(centred(job, blocks, part.stats.means), part, factors)
        values.append(eigenpairs(job, operator, k).values)
    return np.array(values)


def axes_of(part: Part, operator: gram.Operator, eigen: gram.Eigen, *, kind: str = "bc") -> Axes:
    """Return scores (Eq. 13) and loadings (Eq. 16), signs fixed.

    Parameters
    ----------
    part
        The data.
    operator
        Its Gram operator.
    eigen
        Pairs with positive eigenvalues.
    kind
        ``"bc"`` or ``"pairwise"``: entries are weighted by how often they are observed; ``"mean"``: they are not.
    """
    eigen, loadings = gram.orient(eigen, gram.loadings(operator, eigen, **_weights(part, kind)))
    return Axes(gram.embedding(eigen, operator.n_features), loadings, eigen.values, eigen)


def thinned(
    job: Job, part: Part, operator: gram.Operator, *, eigen: gram.Eigen, kind: str = "bc", share: float
) -> Callable[[gram.CentredBlocks], tuple[np.ndarray, np.ndarray]]:
    """Return the fit of the same method to data without a share of the entries: Z -> scores, loadings.

    Parameters
    ----------
    job
        Data and options.
    part
        The data with all entries.
    operator, eigen
        Its operator and pairs.
    kind
        As in :func:`axes_of`.
    share
        Share of the observed entries that is held out.
    """
    return gram.thinned_fit(
        operator,
        eigen,
        share=share,
        tol=job.options["tol"],
        max_iter=job.max_iter,
        generator=job.fit.streams.numpy("init", 2),
        **_weights(part, kind),
    )


def _weights(part: Part, kind: str) -> dict[str, Any]:
    """Return what Eq. 16 divides by: nothing for mean imputation."""
    if kind == "mean":
        return {}
    overlap = part.stats.row_counts if kind == "pairwise" else part.self_overlap
    return {"col_rates": part.stats.col_rates, "self_overlap": overlap}
