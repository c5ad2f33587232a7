"""How many topics: models of several sizes and seeds, scored on held-out cells and against each other."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellsmith import _record
from cellsmith._errors import DataWarning, SetupError
from cellsmith._rng import Streams, resolve_seed
from cellsmith.data.checks import check_counts, check_covariates
from cellsmith.math.topics import agreement, data_npmi, diversity, top_genes
from cellsmith.tl._door import open_door

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["propose_n_topics", "sce2tm_choose_n_topics"]

HELD_OUT = 0.1  # of the cells of every batch
N_GENES = 10
LEAST_STABILITY = 0.6
MOST_REDUNDANCY = 0.2

Table = dict[str, npt.NDArray[Any]]
_log = logging.getLogger("cellsmith")


def sce2tm_choose_n_topics(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    n_topics: Sequence[int] = (10, 20, 30, 50),
    n_seeds: int = 3,
    key_added: str = "sce2tm_n_topics",
    copy: bool = False,
    rng: Any = 0,
    model_kwargs: Mapping[str, Any] = {},
    train_kwargs: Mapping[str, Any] = {},
) -> AnnData | None:
    """Fit scE2TM with several numbers of topics, and write how each number did.

    Every number is fitted ``n_seeds`` times on nine tenths of the cells. The proposal is the smallest number whose
    perplexity lies within one standard error of the best, whose seeds agree (at least 0.6) and whose topics do not
    repeat each other (at most 20 %); if there is none, the number whose seeds agree most, with a warning. It is a
    proposal: look at the curve (:func:`cellsmith.pl.n_topics_curve`) and choose. No label is read.

    Parameters
    ----------
    adata
        Raw counts, cells x genes; nothing but the table is written into it.
    layer
        Layer with the counts; None is ``.X``.
    batch_key
        Column of ``.obs``, as in :func:`cellsmith.tl.sce2tm`; every batch gives a tenth of its cells.
    n_topics
        The numbers to try.
    n_seeds
        Fits of each number, at least 2.
    key_added
        Name of the table in ``.uns``.
    copy
        Return a copy with the table.
    rng
        Seed of the held-out cells and of all fits.
    model_kwargs, train_kwargs
        As in :func:`cellsmith.tl.sce2tm`.

    Returns
    -------
    None, or the copy. ``.uns[key_added]`` holds ``summary``, one row a number of topics: ``n_topics``, ``perplexity``
    of the held-out cells by completion (mean over seeds) and its standard error ``perplexity_error``, ``npmi`` of the
    ten top genes over the training cells, ``diversity`` (distinct top genes / all), ``redundancy`` (share of topics
    with more than half of their top genes in common with another), ``stability`` (mean cosine of matched topics over
    pairs of seeds, see :func:`cellsmith.metrics.topic_stability`); ``runs``, one row a fit, without ``stability``;
    ``proposal``; and ``reached``, whether it keeps all bounds.

    Raises
    ------
    SetupError
        If the counts cannot be used, a number is given twice or is too small, or there are too few seeds.

    Examples
    --------
    >>> cellsmith.tl.sce2tm_choose_n_topics(adata, n_topics=(10, 20, 30))  # doctest: +SKIP
    >>> cellsmith.pl.n_topics_curve(adata)  # doctest: +SKIP
    """
    _record.check_free(adata, key_added, "sce2tm_n_topics")  # before the fits, not after them
    sizes = _check(n_topics, n_seeds, model_kwargs)
    check_counts(adata, layer)
    check_covariates(adata.obs, categorical={"batch_key": batch_key})
    seed = resolve_seed(rng)
    streams = Streams(seed)
    fitted, held_out = _split(adata, batch_key, streams.numpy("split"))
    setup = {"layer": layer, "batch_key": batch_key}
    rows: list[dict[str, float]] = []
    stability: list[Any] = []
    for size in reversed(sizes):  # the largest first: one that is too large is refused before the others are fitted
        loadings = []
        for repeat in range(n_seeds):
            options = {**model_kwargs, "n_topics": size}
            # the same seeds for every size: what differs between two rows of the table is the size alone
            fit = streams.integer("sample", repeat)
            found, scores = _fit(fitted, held_out, setup, options, train_kwargs, (fit, seed))
            loadings.append(found)
            rows.append({"n_topics": size, "repeat": repeat, **scores})
            _log.info("%d topics, fit %d of %d: %s", size, repeat + 1, n_seeds, scores)
        stability.insert(0, np.mean([_agreement(a, b) for a, b in combinations(loadings, 2)]))
    rows.sort(key=lambda row: row["n_topics"])
    runs = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    summary = _summary(runs, sizes, np.array(stability))
    proposal, reached = propose_n_topics(summary)
    if not reached:
        warnings.warn(
            f"None of {sizes} has a perplexity within one standard error of the best, a stability of at least "
            f"{LEAST_STABILITY} and at most {MOST_REDUNDANCY:.0%} redundant topics. Proposed is the most stable "
            f"number, {proposal}. Look at the curve: cellsmith.pl.n_topics_curve(adata).",
            DataWarning,
            stacklevel=2,
        )
    goal = adata.copy() if copy else adata
    block = {
        "summary": summary,
        "runs": runs,
        "proposal": proposal,
        "reached": reached,
        "params": {"n_seeds": n_seeds, "n_genes": N_GENES, "held_out": held_out.n_obs},
        "provenance": _record.provenance(
            method="sce2tm_n_topics",
            seed=seed,
            n_obs=adata.n_obs,
            var_names=adata.var_names,
            inputs={name: value for name, value in setup.items() if value is not None},
        ),
    }
    _record.write(goal, key_added, _record.Result(method="sce2tm_n_topics", uns=block))
    return goal if copy else None


def propose_n_topics(summary: Table) -> tuple[int, bool]:
    """Return the proposed number of topics, and whether it keeps all bounds (see :func:`sce2tm_choose_n_topics`).

    Parameters
    ----------
    summary
        Its table, one row a number of topics, ascending.
    """
    perplexity = summary["perplexity"]
    best = int(np.argmin(perplexity))
    good = perplexity <= perplexity[best] + summary["perplexity_error"][best]
    good &= (summary["stability"] >= LEAST_STABILITY) & (summary["redundancy"] <= MOST_REDUNDANCY)
    chosen = int(np.argmax(good)) if good.any() else int(np.argmax(summary["stability"]))
    return int(summary["n_topics"][chosen]), bool(good.any())


def _check(n_topics: Sequence[int], n_seeds: int, model_kwargs: Mapping[str, Any]) -> list[int]:
    sizes = sorted(int(size) for size in n_topics)
    if not sizes or sizes[0] < 2 or len(set(sizes)) < len(sizes):
        raise SetupError(f"n_topics={tuple(n_topics)}; expected distinct numbers from 2. Type n_topics=(10, 20, 30).")
    if n_seeds < 2:
        raise SetupError(f"n_seeds={n_seeds}; stability compares fits, so expected at least 2. Type n_seeds=3.")
    if "n_topics" in model_kwargs:
        raise SetupError("model_kwargs names 'n_topics', which this function takes itself. Type n_topics=(...).")
    return sizes


def _split(adata: AnnData, batch_key: str | None, generator: np.random.Generator) -> tuple[AnnData, AnnData]:
    """Return the cells to fit and those held out, a tenth of every batch."""
    batch = (
        np.zeros(adata.n_obs) if batch_key is None else np.asarray(adata.obs[batch_key].astype("category").cat.codes)
    )
    held = np.zeros(adata.n_obs, dtype=bool)
    for level in np.unique(batch):
        own = generator.permutation(np.flatnonzero(batch == level))
        held[own[: int(HELD_OUT * len(own))]] = True
    if not held.any():
        raise SetupError(f"Found {adata.n_obs} cells, too few to hold out a tenth of each batch.")
    return adata[~held].copy(), adata[held].copy()


def _fit(
    fitted: AnnData,
    held_out: AnnData,
    setup: Mapping[str, Any],
    model_kwargs: Mapping[str, Any],
    train_kwargs: Mapping[str, Any],
    seeds: tuple[int, int],
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return the loadings (genes x topics) of one fit, and its scores; seeds of the fit and of the halved counts."""
    from cellsmith.model import SCE2TM

    model, _ = open_door(
        SCE2TM,
        fitted,
        setup=setup,
        model_kwargs=model_kwargs,
        train_kwargs=train_kwargs,
        queries={},
        copy=False,
        rng=seeds[0],
    )
    loadings = model.get_feature_by_topic()
    lists = top_genes(loadings.to_numpy().T, N_GENES)
    layer = setup["layer"]
    counts = fitted[:, loadings.index].X if layer is None else fitted[:, loadings.index].layers[layer]
    found = diversity(lists, len(loadings))
    return loadings, {
        "perplexity": float(model.get_perplexity(held_out, seed=seeds[1])),
        "npmi": float(np.mean(data_npmi(counts, lists))),
        "diversity": found.unique,
        "redundancy": found.redundancy,
    }


def _agreement(first: pd.DataFrame, second: pd.DataFrame) -> float:
    """Return the mean cosine of matched topics over the genes that both fits model."""
    common = first.index.intersection(second.index)
    return float(agreement(*(fit.loc[common].to_numpy().T for fit in (first, second))).mean())


def _summary(runs: Table, sizes: Sequence[int], stability: npt.NDArray[Any]) -> Table:
    of = [runs["n_topics"] == size for size in sizes]
    names = ("perplexity", "npmi", "diversity", "redundancy")
    means = {name: np.array([runs[name][rows].mean() for rows in of]) for name in names}
    error = np.array([runs["perplexity"][rows].std(ddof=1) / np.sqrt(rows.sum()) for rows in of])
    return {"n_topics": np.array(sizes), "perplexity_error": error, **means, "stability": stability}
