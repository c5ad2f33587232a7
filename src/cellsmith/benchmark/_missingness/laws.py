"""What must hold exactly: the implicit operator against the dense formula, and 1 / N as a short sum of products."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np

from cellsmith._rng import Streams
from cellsmith.benchmark._missingness import mechanisms as masks
from cellsmith.benchmark._store import Store
from cellsmith.math import gram

__all__ = ["laws", "overlap_error", "parity_gap", "unbiasedness"]

logger = logging.getLogger("cellsmith")

PAIRS = 200
DRAWS = 20_000


def parity_gap(rng: np.random.Generator) -> float:
    """Return the largest difference between implicit and dense legacy Gram matrices over the largest entry.

    Sizes, values and rates are random; every cell and feature keeps an entry.
    """
    n, n_features = (int(v) for v in rng.integers(5, 60, 2))
    values = rng.normal(rng.normal(0.0, 3.0, n_features), 1.0, (n, n_features))
    observed = rng.random(values.shape) < np.outer(rng.uniform(0.2, 1.0, n), rng.uniform(0.2, 1.0, n_features))
    observed[np.arange(n), rng.integers(n_features, size=n)] = True
    observed[rng.integers(n, size=n_features), np.arange(n_features)] = True
    dense = gram.dense_legacy(values, observed)
    blocks = gram.row_blocks(gram.dense_block(masks.apply_mask(values, observed)))
    stats = gram.observed_stats(blocks)
    probability = gram.fit_rank1(stats, legacy=True)
    factors = gram.overlap_factors(probability, generator=rng)
    centred = gram.centred_blocks(blocks, stats.means, dtype=np.float64)
    operator = gram.gram_operator(centred, factors, probability.row_sums)
    return float(np.abs(operator.apply(np.eye(n)) - dense).max() / np.abs(dense).max())


def overlap_error(name: str, seed: int, *, n: int = 1_500, n_features: int = 1_000) -> tuple[float, int]:
    """Return the largest relative error of 1 / N over all pairs of cells, and the number of terms.

    Parameters
    ----------
    name
        Mechanism of Reference A. The logistic one is fitted from the margins of a mask; the others hand their true
        probabilities over, which takes the way of landmarks: of 1,500 cells only 300 are factored.
    seed
        Of probabilities and mask.
    n, n_features
        Sizes.
    """
    rng = Streams(seed).numpy(f"overlap, {name}")
    shape = np.zeros((n, n_features))
    p = masks.probabilities(name, shape, np.zeros(n), rng=rng)
    if name == "logistic":
        observed = rng.random(p.shape) < p
        probability: gram.Probability = gram.fit_logistic(observed.sum(axis=1), observed.sum(axis=0))
    else:
        probability = gram.custom_probability(p)
    factors = gram.overlap_factors(probability, tol=1e-4, generator=rng)
    fitted = probability.block(np.arange(n))
    exact = fitted @ fitted.T
    error = np.abs((factors.u * factors.s) @ factors.u.T * exact - 1.0)
    np.fill_diagonal(error, 0.0)
    return float(error.max()), int(factors.s.size)


def unbiasedness(seed: int, *, soft: bool, n: int = 8, n_features: int = 40, draws: int = DRAWS) -> tuple[float, float]:
    """Return the largest |z| over the entries of the corrected Gram matrix, and of the naive one, over many masks.

    Features are exchangeable: y_d ~ N(0, K) anew in every draw, with mean zero known, and K is the truth. Logistic
    probabilities, known. The naive matrix is divided by one number, the mean overlap. Soft masks are weights in
    [0, 1] of mean p.
    """
    rng = Streams(seed).numpy("unbiasedness")
    root = rng.normal(size=(n, 3))
    kernel = root @ root.T + 0.5 * np.eye(n)
    chol = np.linalg.cholesky(kernel)
    p = masks.REFERENCE["logistic"](np.zeros((n, n_features)), np.zeros(n), rng)
    p = np.clip(p, 0.05, 0.95)
    overlap = p @ p.T
    level = float(overlap.mean())
    np.fill_diagonal(overlap, p.sum(axis=1))
    sums, squares, naive, naive_squares = (np.zeros((n, n)) for _ in range(4))
    for _ in range(draws):
        z = chol @ rng.normal(size=(n, n_features))
        m = (rng.random(p.shape) < p).astype(float) if not soft else rng.beta(2.0 * p, 2.0 * (1.0 - p))
        product = (m * z) @ (m * z).T
        if soft:
            np.fill_diagonal(product, (m * z**2).sum(axis=1))
        found, plain = product / overlap, product / level
        sums += found
        squares += found**2
        naive += plain
        naive_squares += plain**2
    return _largest_z(sums, squares, kernel, draws), _largest_z(naive, naive_squares, kernel, draws)


def _largest_z(sums: np.ndarray, squares: np.ndarray, truth: np.ndarray, draws: int) -> float:
    mean = sums / draws
    error = np.sqrt((squares / draws - mean**2) / draws)
    return float(np.abs((mean - truth) / error).max())


def laws(*, store: Store) -> None:
    """Run what is not in the table yet."""
    head = SimpleNamespace(file="toy", seed=0)
    if not store.has(task="parity"):
        gaps = [parity_gap(Streams(i).numpy("parity")) for i in range(PAIRS)]
        store.record("parity", head, "rank one", {"largest": max(gaps), "median": float(np.median(gaps))})
    for name in ("logistic", "rank-1 missing"):
        if not store.has(task="overlap", variant=name):
            found = [overlap_error(name, seed) for seed in range(5)]
            values = {"error": max(e for e, _ in found), "rank": float(max(r for _, r in found))}
            store.record("overlap", head, name, values)
    for name, soft in (("mask", False), ("soft mask", True)):
        if not store.has(task="unbiasedness", variant=name):
            corrected, naive = unbiasedness(0, soft=soft)
            store.record("unbiasedness", head, name, {"corrected": corrected, "naive": naive})
