"""Side-by-side synthesis: SCLD and its peers on one cut of one data set, every number beside its control."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellsmith._errors import SetupError, nearest
from cellsmith._rng import Streams
from cellsmith.benchmark._files import Split, split
from cellsmith.benchmark._store import SYNTHESIS, Store
from cellsmith.benchmark._synthesis import peers
from cellsmith.benchmark._synthesis.fits import Fits
from cellsmith.benchmark._synthesis.scoring import Judge

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["run_split", "synthesis"]

logger = logging.getLogger("cellsmith")

# The symmetric scores double the cost of a row; they are shown for the rows that are compared.
SYMMETRIC = ("SCLD", peers.POSTERIOR)


def _missing(part: Split, names: Iterable[str], store: Store) -> list[str]:
    return [n for n in names if not store.has(file=part.file, seed=part.seed, generator=n)]


def _rows(part: Split, name: str, values: Mapping[str, tuple[float, float]]) -> list[dict[str, Any]]:
    return [
        dict(zip(SYNTHESIS, (part.file, part.seed, name, metric, value, control), strict=True))
        for metric, (value, control) in values.items()
    ]


def run_split(
    part: Split,
    names: Iterable[str],
    *,
    store: Store,
    fits: Fits | None = None,
    extra: Mapping[str, peers.Generator] | None = None,
) -> None:
    """Run and score generators on one cut; rows that exist are skipped.

    Parameters
    ----------
    part
        The cut.
    names
        Generators, in the order in which they run.
    store
        Where the rows go.
    fits
        Models of this cut; None trains them.
    extra
        Further generators, name -> function ``(train, n, rng) -> AnnData``.
    """
    todo = _missing(part, names, store)
    if not todo:
        return
    fits = fits or Fits(part.train, labels_key=part.labels_key, batch_key=part.batch_key, seed=part.seed)
    known = {**peers.generators(fits), **(extra or {})}
    judge, streams, n = Judge(part), Streams(part.seed), part.test.n_obs
    for name in todo:
        if name == peers.CONTROL:
            values = {k: (v, v) for k, v in judge.control.items()} | dict(judge.privacy(part.spare))
            store.add(_rows(part, name, values))
            continue
        model = peers.FITTED.get(name)
        if model is not None:
            fits.get(model)
        started = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Variants of one model share their noise, so that a difference between them is one of the variant.
            stream = "SCLD" if name in peers.SCLD_VARIANTS else name
            cells = known[name](part.train, n, streams.numpy("sample", *stream.encode()))
        cost = {"generate_cpu_s": (time.process_time() - started, float("nan"))}
        if model is not None:
            cost["train_cpu_s"] = (fits.seconds[model], float("nan"))
        scored = judge.score(cells, symmetric=name in SYMMETRIC)
        store.add(_rows(part, name, {**scored, **judge.privacy(cells), **judge.form(cells, n=n), **cost}))
        shown = {k: round(scored[k][0], 3) for k in ("w2", "rf_auc_pca", "rf_auc_genes", "lfc_slope") if k in scored}
        logger.info("%s, seed %d, %s: %s", part.file, part.seed, name, shown)


def synthesis(
    adata: AnnData,
    *,
    labels_key: str = "cell_type",
    batch_key: str | None = None,
    generators: str | Iterable[str] | Mapping[str, peers.Generator] = "all",
    seeds: Iterable[int] = (0, 1, 2),
    name: str = "data",
    out: str | Path | None = None,
    max_epochs: int | None = None,
) -> pd.DataFrame:
    """Compare SCLD with its peers, or with a generator of your own, on one data set.

    For every seed the cells are permuted and cut into training cells, test cells
    and spare ones. Generators see the training cells only; the spare cells are
    scored in their place as the control. scVI runs with 150 epochs, a negative
    binomial, 10 latents and batches of 128.

    Parameters
    ----------
    adata
        Raw counts of shape (n, G).
    labels_key, batch_key
        Columns of ``.obs``.
    generators
        ``"all"``, ``"peers"``, ``"scld"``, names, or a mapping name -> function
        ``(train, n, rng) -> AnnData`` that is run beside all the others; `train` holds counts, `rng` is a
        :class:`numpy.random.Generator`, and the answer needs the genes and the `.obs` columns of `train`.
    seeds
        Seeds of the cuts.
    name
        What the table calls the data.
    out
        CSV file to append to; rows that it has are not run again. None: in memory.
    max_epochs
        Cap on the epochs of every training, for a trial.

    Returns
    -------
    One row a seed, generator and metric: ``file, seed, generator, metric, value, control``; times are in CPU seconds,
    all other values without a unit.

    Raises
    ------
    SetupError
        For an unknown generator, or a column that does not exist.

    Examples
    --------
    >>> table = cellsmith.benchmark.synthesis(adata, labels_key="cell_type", seeds=[0])  # doctest: +SKIP
    >>> mine = {"mean of two cells": my_function}  # doctest: +SKIP
    >>> table = cellsmith.benchmark.synthesis(adata, generators=mine, seeds=[0])  # doctest: +SKIP
    """
    for key in (labels_key, batch_key):
        if key is not None and key not in adata.obs:
            msg = f"`adata.obs` has no column {key!r}. {nearest(key, adata.obs.columns)}"
            raise SetupError(msg)
    extra = dict(generators) if isinstance(generators, Mapping) else {}
    names = [*wanted_names("all" if extra else generators), *extra]
    store = Store(SYNTHESIS, None if out is None else Path(out))
    for seed in seeds:
        part = split(adata, file=name, seed=int(seed), labels_key=labels_key, batch_key=batch_key)
        fits = Fits(part.train, labels_key=labels_key, batch_key=batch_key, seed=int(seed), max_epochs=max_epochs)
        run_split(part, names, store=store, fits=fits, extra=extra)
    return store.table


def wanted_names(generators: str | Iterable[str]) -> list[str]:
    """Return the names of generators in the order of the table.

    Parameters
    ----------
    generators
        ``"all"``, ``"peers"``, ``"scld"``, or names.

    Raises
    ------
    SetupError
        For an unknown name.
    """
    groups = {"peers": (peers.CONTROL, *peers.PEERS), "scld": peers.SCLD_VARIANTS}
    groups["all"] = (*groups["peers"], *groups["scld"])
    if isinstance(generators, str) and generators in groups:
        return list(groups[generators])
    chosen = [generators] if isinstance(generators, str) else list(generators)
    for name in chosen:
        if name not in groups["all"]:
            msg = f"The generator {name!r} is unknown. {nearest(name, (*groups, *groups['all']))}"
            raise SetupError(msg)
    return chosen
