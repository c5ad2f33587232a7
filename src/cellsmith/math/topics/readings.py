"""What a topic says about genes (T6), and its list of genes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import softmax
from scipy.stats import rankdata

from cellsmith._errors import SetupError

__all__ = ["decoder_reading", "frex", "lift", "profile", "top_genes"]

Floats = npt.NDArray[np.float64]


def decoder_reading(
    beta: npt.ArrayLike, weight: npt.ArrayLike, variance: npt.ArrayLike, *, eps: float = 1e-5
) -> npt.NDArray[np.float64]:
    """Return beta_kj w_j / sqrt(var_j + eps), the slope of a gene's logit in a topic's share (T6).

    Parameters
    ----------
    beta
        ``(K, V)``.
    weight, variance
        ``(V,)`` w and var of the decoder's batch norm.
    eps
        Its small constant.

    Returns
    -------
    ``(K, V)``: what reconstructs, where the weights w scale genes differently than beta does.
    """
    scale = np.asarray(weight, dtype=np.float64) / np.sqrt(np.asarray(variance, dtype=np.float64) + eps)
    return np.asarray(beta, dtype=np.float64) * scale


def profile(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the expression of cells that consist of one topic (T6).

    Parameters
    ----------
    logits
        ``(K, V)`` output of the decoder for the proportions e_1 to e_K, before its softmax.

    Returns
    -------
    ``(K, V)``, rows sum to 1.
    """
    return np.asarray(softmax(np.asarray(logits, dtype=np.float64), axis=1))


def lift(profiles: npt.ArrayLike, mean_profile: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return how many times more of a gene a topic holds than the average cell (T6).

    Parameters
    ----------
    profiles
        ``(K, V)`` of :func:`profile`.
    mean_profile
        ``(V,)`` mean profile of the training cells.

    Returns
    -------
    ``(K, V)``, 1 is average; 0 where the average cell has none.
    """
    values, mean = np.asarray(profiles, dtype=np.float64), np.asarray(mean_profile, dtype=np.float64)
    return np.divide(values, mean, out=np.zeros_like(values), where=np.broadcast_to(mean > 0, values.shape))


def frex(profiles: npt.ArrayLike, beta: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return 1 / (.5 / F(profile) + .5 / F(beta)): genes that are both abundant in a topic and its own (T6).

    Parameters
    ----------
    profiles, beta
        ``(K, V)``.

    Returns
    -------
    ``(K, V)`` in (0, 1]; F is the rank of a gene within its topic divided by V.
    """
    often, own = (rankdata(np.asarray(x, dtype=np.float64), axis=1) / np.asarray(x).shape[1] for x in (profiles, beta))
    return np.asarray(1.0 / (0.5 / often + 0.5 / own))


def top_genes(values: npt.ArrayLike, n: int) -> npt.NDArray[np.intp]:
    """Return the positions of every topic's strongest genes.

    Positions, not words: a name with a hyphen or a dot stays one gene.

    Parameters
    ----------
    values
        ``(K, V)`` any reading. Columns of zeros are genes outside the model and are never listed.
    n
        N.

    Returns
    -------
    ``(K, N)`` columns of ``values``, strongest first, ties by position.

    Raises
    ------
    SetupError
        If fewer than N genes are in the model, or a value is not finite.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not np.all(np.isfinite(table)):
        raise SetupError(f"Found values of shape {table.shape}, expected finite numbers of shape (K, V).")
    modelled = np.flatnonzero(np.any(table != 0, axis=0))
    if not 1 <= n <= modelled.size:
        raise SetupError(f"Found n={n!r}, expected 1 to {modelled.size}, the number of genes in the model.")
    order = np.argsort(-table[:, modelled], axis=1, kind="stable")[:, :n]
    return modelled[order]
