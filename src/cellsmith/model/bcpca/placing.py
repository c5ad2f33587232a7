"""Cells that were not in the fit: their place by Nystrom (Eq. 15), or by regression after a refinement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cellsmith._errors import SetupError
from cellsmith.math import gram
from cellsmith.model.bcpca.state import Answer

__all__ = ["Asked", "Placed", "place"]


@dataclass(frozen=True)
class Asked:
    """Cells to place.

    Parameters
    ----------
    blocks
        Their rows, all D features of the training data in order.
    groups
        Number of the group of each cell for ``prob="grouped"``, else None.
    design
        Standardised covariates (m, q), or None.
    known
        Their probabilities of the live features, from cell numbers, where the caller gave them; else None.
    """

    blocks: gram.Blocks
    groups: np.ndarray | None = None
    design: np.ndarray | None = None
    known: Callable[[np.ndarray], gram.Probability] | None = None


@dataclass(frozen=True)
class Placed:
    """Where they are.

    Parameters
    ----------
    latent
        (m, k) float32; NaN for cells without an observed entry.
    overlap
        Mean effective overlap with the cells of the fit (m,), features; NaN for such cells.
    observed_rate
        Observed share of all D features (m,).
    """

    latent: np.ndarray
    overlap: np.ndarray
    observed_rate: np.ndarray


def place(answer: Answer, asked: Asked, *, dtype: str) -> Placed:
    """Place cells among those of a fit.

    Parameters
    ----------
    answer
        The fit.
    asked
        The cells.
    dtype
        Type of the products.

    Raises
    ------
    SetupError
        If the fit used pairwise counts or the caller's probabilities, neither of which new cells have.
    """
    if not answer.projections.size:
        raise SetupError(
            'prob="pairwise" knows only pairs of training cells and cannot place others. Fit with prob="logistic".'
        )
    live = None if answer.live.all() else answer.live
    blocks = asked.blocks if live is None else gram.select_blocks(asked.blocks, features=live)
    counts = np.concatenate([np.zeros(0), *(block.row_counts() for _, block in blocks())])
    latent = np.full((len(counts), answer.n_latent), np.nan, dtype=np.float32)
    overlap = np.full(len(counts), np.nan)
    some = counts > 1e-6
    if some.any():
        blocks = blocks if some.all() else gram.select_blocks(blocks, cells=some)
        z = gram.centred_blocks(blocks, answer.means, dtype=np.dtype(dtype))
        probability = _probability(answer, asked, blocks, counts=counts[some], some=some)
        overlap[some] = _mean_overlap(probability, answer.col_means)
        if answer.basis.size:
            latent[some] = gram.regress(z, answer.basis, answer.prior)[0]
        else:
            latent[some] = gram.nystrom(
                z,
                answer.factors.extend(probability),
                projections=answer.projections,
                s=answer.factors_s,
                values=answer.values[: answer.n_latent],
            )
    return Placed(latent, overlap, counts / len(answer.live))


def _probability(
    answer: Answer, asked: Asked, blocks: gram.Blocks, *, counts: np.ndarray, some: np.ndarray
) -> gram.Probability:
    """Return the probabilities of new cells, with those of the features fixed."""
    if asked.known is not None:
        return asked.known(np.flatnonzero(some))
    fitted = answer.fitted_probability()
    if fitted is None:
        raise SetupError(
            "The fit used probabilities that were given for the training cells; other cells have none. "
            'Fit with prob="logistic".'
        )
    if isinstance(fitted, gram.GroupedProbability):
        if asked.groups is None:
            raise SetupError('prob="grouped" needs the group of every cell: the column that was registered.')
        return fitted.new_cells(asked.groups[some])
    if isinstance(fitted, gram.CovariateProbability):
        ones = np.ones((len(counts), 1))
        design = ones if asked.design is None else np.concatenate([ones, asked.design[some]], axis=1)
        return fitted.new_cells(gram.mask_products(blocks, design, fitted.feature_design)[0], design)
    return fitted.new_cells(counts)


def _mean_overlap(probability: gram.Probability, col_means: np.ndarray) -> np.ndarray:
    cells, kind = probability.types
    parts = [probability.block(cells[i : i + 512]) @ col_means for i in range(0, len(cells), 512)]
    return np.concatenate(parts)[kind]
