"""Toy data with a known truth, for tests and for a first try in a second."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cellsmith._errors import SetupError

__all__ = ["toy_counts", "toy_gradient", "toy_perturbation"]

MEDIAN_LIBRARY = 1500.0
LIBRARY_SD = 0.3


def toy_counts(
    n_cells: int = 600,
    n_genes: int = 120,
    *,
    n_types: int = 3,
    n_batches: int = 1,
    rng: int | np.random.Generator | None = 0,
) -> ad.AnnData:
    """Draw negative binomial counts of cell types in batches, with every parameter that made them.

    A cell of type k in batch b with total l has the mean ``l * rho[k, b]``; types differ in a third of the genes
    and in depth (type 0 is the shallowest), batches in a small shift of every gene. ``n_types=1`` gives data
    without any structure but depth.

    Parameters
    ----------
    n_cells
        Number of cells.
    n_genes
        Number of genes, at least 2.
    n_types
        Number of cell types; type k is about ``0.7 ** k`` times as frequent as type 0, each has at least one cell.
    n_batches
        Number of batches, equally frequent and independent of the type.
    rng
        Seed or generator; None draws from the operating system.

    Returns
    -------
    ``.X`` counts, CSR float32 ``(n_cells, n_genes)``, no empty cell; ``.layers["mean"]`` the true means (counts),
    dense float32; ``.obs`` ``cell_type`` ("type_0", ...), ``batch`` ("batch_0", ...), ``library`` (expected total,
    counts); ``.var["inverse_dispersion"]`` the true theta of every gene; ``.uns["truth"]`` with ``rho``, shape
    ``(n_types, n_batches, n_genes)`` (shares that sum to 1 over genes), ``median_library`` ``(n_types,)`` counts,
    and ``type_share`` ``(n_types,)``.

    Raises
    ------
    SetupError
        If a number is too small to make such data.

    Examples
    --------
    >>> import cellsmith
    >>> cellsmith.datasets.toy_counts(100, 20, n_types=2).obs["cell_type"].cat.categories.tolist()
    ['type_0', 'type_1']
    """
    _check(n_cells, n_genes, n_types=n_types, n_batches=n_batches)
    generator = np.random.default_rng(rng)
    log_rate = _base_log_rate(n_genes, generator) + _type_shifts(n_types, n_genes, generator)[:, None]
    log_rate = log_rate + 0.25 * generator.standard_normal((1, n_batches, n_genes)) * (n_batches > 1)
    rho = _shares(log_rate)
    share = 0.7 ** np.arange(n_types)
    types = _draw_groups(n_cells, share / share.sum(), generator)
    batches = generator.permutation(np.arange(n_cells) % n_batches)
    median = MEDIAN_LIBRARY * 1.3 ** np.arange(n_types)
    library = median[types] * np.exp(LIBRARY_SD * generator.standard_normal(n_cells))
    adata = _assemble(library[:, None] * rho[types, batches], generator)
    adata.obs["cell_type"] = _categorical("type", types, n_types)
    adata.obs["batch"] = _categorical("batch", batches, n_batches)
    adata.obs["library"] = library
    adata.uns["truth"] = {"rho": rho, "median_library": median, "type_share": share / share.sum()}
    return adata


def toy_gradient(n_cells: int = 400, n_genes: int = 60, *, rng: int | np.random.Generator | None = 0) -> ad.AnnData:
    """Draw counts along one continuous covariate: a straight path, no types.

    The log rate of gene g is ``base[g] + slope[g] * time`` before normalisation to shares.

    Parameters
    ----------
    n_cells
        Number of cells.
    n_genes
        Number of genes, at least 2.
    rng
        Seed or generator; None draws from the operating system.

    Returns
    -------
    ``.X`` counts, CSR float32 ``(n_cells, n_genes)``; ``.layers["mean"]`` the true means (counts); ``.obs["time"]``
    uniform in 0 to 1 and ``.obs["library"]`` (counts); ``.var["inverse_dispersion"]``, ``.var["slope"]`` (nats per
    unit of time); ``.uns["truth"]["base"]`` log rates at time 0, shape ``(n_genes,)``.

    Raises
    ------
    SetupError
        If a number is too small to make such data.
    """
    _check(n_cells, n_genes, n_types=1, n_batches=1)
    generator = np.random.default_rng(rng)
    base = _base_log_rate(n_genes, generator)
    slope = 1.5 * generator.standard_normal(n_genes)
    time = generator.random(n_cells)
    library = MEDIAN_LIBRARY * np.exp(LIBRARY_SD * generator.standard_normal(n_cells))
    adata = _assemble(library[:, None] * _shares(base + np.outer(time, slope)), generator)
    adata.obs["time"] = time
    adata.obs["library"] = library
    adata.var["slope"] = slope
    adata.uns["truth"] = {"base": base}
    return adata


def toy_perturbation(
    n_cells: int = 900,
    n_genes: int = 120,
    *,
    n_types: int = 3,
    n_responding: int = 20,
    rng: int | np.random.Generator | None = 0,
) -> ad.AnnData:
    """Draw cell types under two conditions with a known response that is the same in every type.

    Made for tests of an unseen combination: leave out one type under "stim", and the answer is still known.

    Parameters
    ----------
    n_cells
        Number of cells, half of each type under each condition.
    n_genes
        Number of genes, at least 2.
    n_types
        Number of cell types, equally frequent.
    n_responding
        Genes that the stimulus raises, by 1 to 2.5 nats before normalisation.
    rng
        Seed or generator; None draws from the operating system.

    Returns
    -------
    As :func:`toy_counts`, with ``.obs["condition"]`` ("ctrl" or "stim") in place of the batch, ``.var["response"]``
    the log fold change before normalisation (nats; 0 for genes that do not respond), and ``.uns["truth"]["rho"]``
    of shape ``(n_types, 2, n_genes)``.

    Raises
    ------
    SetupError
        If a number is too small to make such data.
    """
    _check(n_cells, n_genes, n_types=n_types, n_batches=2)
    if not 0 <= n_responding <= n_genes:
        raise SetupError(f"Found n_responding={n_responding}; expected 0 to {n_genes}, the number of genes.")
    generator = np.random.default_rng(rng)
    response = np.zeros(n_genes)
    genes = generator.choice(n_genes, n_responding, replace=False)
    response[genes] = generator.uniform(1.0, 2.5, n_responding)
    by_type = _base_log_rate(n_genes, generator) + _type_shifts(n_types, n_genes, generator)
    rho = _shares(np.stack([by_type, by_type + response], axis=1))
    order = generator.permutation(n_cells)
    types, stimulated = order % n_types, (order // n_types) % 2
    library = MEDIAN_LIBRARY * np.exp(LIBRARY_SD * generator.standard_normal(n_cells))
    adata = _assemble(library[:, None] * rho[types, stimulated], generator)
    adata.obs["cell_type"] = _categorical("type", types, n_types)
    adata.obs["condition"] = pd.Categorical.from_codes(stimulated, ["ctrl", "stim"])
    adata.obs["library"] = library
    adata.var["response"] = response
    adata.uns["truth"] = {"rho": rho}
    return adata


def _check(n_cells: int, n_genes: int, *, n_types: int, n_batches: int) -> None:
    if n_genes < 2 or n_types < 1 or n_batches < 1 or n_cells < n_types * n_batches:
        raise SetupError(
            f"Found n_cells={n_cells}, n_genes={n_genes}, n_types={n_types}, n_batches={n_batches}; expected at least "
            "2 genes, 1 type, 1 batch and one cell for every combination of type and batch (or condition)."
        )


def _base_log_rate(n_genes: int, generator: np.random.Generator) -> np.ndarray:
    return generator.standard_normal(n_genes)


def _type_shifts(n_types: int, n_genes: int, generator: np.random.Generator) -> np.ndarray:
    shift = 1.5 * generator.standard_normal((n_types, n_genes)) * (generator.random((n_types, n_genes)) < 1 / 3)
    return shift if n_types > 1 else np.zeros_like(shift)


def _shares(log_rate: np.ndarray) -> np.ndarray:
    rate = np.exp(log_rate - log_rate.max(axis=-1, keepdims=True))
    return rate / rate.sum(axis=-1, keepdims=True)


def _draw_groups(n_cells: int, share: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    groups = generator.choice(share.size, n_cells, p=share)
    groups[: share.size] = np.arange(share.size)  # every group exists, whatever the draw
    return generator.permutation(groups)


def _categorical(prefix: str, codes: np.ndarray, n: int) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, [f"{prefix}_{k}" for k in range(n)])


def _assemble(mean: np.ndarray, generator: np.random.Generator) -> ad.AnnData:
    """Draw negative binomial counts around ``mean`` (n, G) and wrap them with their truth."""
    n_cells, n_genes = mean.shape
    theta = np.exp(generator.uniform(np.log(0.5), np.log(20.0), n_genes))
    x = generator.poisson(generator.gamma(theta, mean / theta))
    # A cell without counts is an error in every method here, so it never occurs; one count changes no truth that is
    # tested.
    empty = np.flatnonzero(x.sum(axis=1) == 0)
    x[empty, mean[empty].argmax(axis=1)] = 1
    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(n_cells)])
    var = pd.DataFrame({"inverse_dispersion": theta}, index=[f"gene_{g}" for g in range(n_genes)])
    layers = {"mean": mean.astype(np.float32)}
    return ad.AnnData(sparse.csr_matrix(x.astype(np.float32)), obs=obs, var=var, layers=layers)
