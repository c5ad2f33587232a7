"""Three reference tables: A with a known space, B with three clusters in two dimensions, C on real cells."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np

from cellsmith._rng import Streams
from cellsmith.benchmark._missingness import mechanisms as masks
from cellsmith.benchmark._missingness.cases import MIN_CELLS, Case, Complete, masked
from cellsmith.benchmark._missingness.compare import run_case
from cellsmith.benchmark._missingness.methods import BC, COLUMNS, CONTROLS, Column
from cellsmith.benchmark._store import Store

__all__ = ["FILE_C", "SIZES", "A", "B", "C", "case_a", "case_b", "complete_c", "reference"]

logger = logging.getLogger("cellsmith")

A, B, C = "A", "B", "C"
FILE_A, FILE_B, FILE_C = "low rank + noise", "three clusters", "pbmc68k_reduced"
SIZES = (500, 1_000, 3_000)
MASKS_C = 20
COLUMNS_B = ("complete", "zero-fill", "mean-impute", "pairwise-complete", "BC legacy", BC)


def case_a(name: str, seed: int) -> Case:
    """Draw Reference A: 300 x 1,000, X = mu + 0.25 U V^T + 2 noise with three columns of U of s.d. 2, 1.5, 1.

    Parameters
    ----------
    name
        Mechanism of :data:`~cellsmith.benchmark._missingness.mechanisms.REFERENCE`.
    seed
        Of data and mask.

    Returns
    -------
    A case whose true space is that of the centred U.
    """
    n, n_features = 300, 1_000
    rng = Streams(seed).numpy("reference A")
    u = rng.normal(size=(n, 3)) * [2.0, 1.5, 1.0]
    mean = rng.normal(3.0, 0.3, n_features)
    values = mean + 0.25 * u @ rng.normal(size=(3, n_features)) + 2.0 * rng.normal(size=(n, n_features))
    depth = np.zeros(n)
    draw = Streams(seed).numpy(f"reference A, {name}")
    probability = masks.probabilities(name, values, depth, rng=draw)
    observed = draw.random(values.shape) < probability
    complete = Complete(FILE_A, values, depth, axes=u - u.mean(axis=0))
    return Case(f"{A}, {name}", seed, complete, masks.apply_mask(values, observed), probability)


def case_b(n_features: int, seed: int) -> Case:
    """Draw Reference B after the authors' public demo: 600 cells in three clusters of two dimensions, 40 % missing.

    The demo fixes sizes, clusters and the rank-one form of what is missing; separation (2.9 s.d.), noise (1.6) and
    offset (1.3) are ours, so that complete data are clustered about as well as there.

    Parameters
    ----------
    n_features
        D.
    seed
        Of data and mask.
    """
    n = 600
    rng = Streams(seed).numpy(f"reference B, {n_features}")
    types = rng.integers(3, size=n)
    angle = 2.0 * np.pi * np.arange(3) / 3.0
    u = 2.9 * np.column_stack([np.cos(angle), np.sin(angle)])[types] + rng.normal(size=(n, 2))
    values = rng.normal(1.3, 0.3, n_features) + 0.1 * u @ rng.normal(size=(2, n_features))
    values += 1.6 * rng.normal(size=values.shape)
    missing = np.outer(rng.uniform(0.4, 0.9, n), rng.uniform(0.35, 0.9, n_features))
    observed = rng.random(values.shape) >= missing
    complete = Complete(FILE_B, values, np.zeros(n), types.astype(str).astype(object))
    return Case(f"{B}, D = {n_features}", seed, complete, masks.apply_mask(values, observed), 1.0 - missing)


def complete_c() -> Complete:
    """Return scanpy's 700 log-normalised PBMC: the genes of ``.raw`` in at least 10 cells, with 10 types."""
    import scanpy as sc

    adata = sc.datasets.pbmc68k_reduced()
    x = adata.raw.X
    genes = np.asarray((x > 0).sum(axis=0)).ravel() >= MIN_CELLS
    values = x[:, genes].toarray().astype(np.float64)
    depth = masks.depth_of(values.sum(axis=1))
    return Complete(FILE_C, values, depth, adata.obs["bulk_labels"].to_numpy(dtype=object))


def reference(seeds: Iterable[int], *, store: Store) -> None:
    """Run what is not in the table yet of the three references.

    Parameters
    ----------
    seeds
        Seeds of data and masks; of C only of the masks.
    store
        Where the rows go.
    """
    c, seeds = complete_c(), list(seeds)
    for seed in seeds:
        for name in masks.REFERENCE:
            run_case(case_a(name, seed), {**COLUMNS, **CONTROLS}, [3], store=store, n_neighbors=0)
        for n_features in SIZES:
            columns = {name: COLUMNS[name] for name in COLUMNS_B}
            run_case(case_b(n_features, seed), columns, [2], store=store, n_neighbors=0)
    # clusters of 700 cells move by .05 from mask to mask: five masks decide nothing
    for seed in sorted({*seeds, *range(MASKS_C)}):
        case = masked(c, "logistic", masks.MECHANISMS["logistic"], seed=seed, task=f"{C}, logistic")
        run_case(case, COLUMNS if seed in seeds else _light(), [10], store=store)


def _light() -> dict[str, Column]:
    """Return the columns that take no iterations over the whole matrix."""
    return {name: column for name, column in COLUMNS.items() if column.nested}
