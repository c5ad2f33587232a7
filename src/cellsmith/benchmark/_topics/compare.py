"""Side-by-side topics: scE2TM and its peers on the same cells and genes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pandas as pd

from cellsmith._errors import SetupError, nearest
from cellsmith.benchmark._store import TASKS, Store
from cellsmith.benchmark._topics.cases import Case, prepare, read
from cellsmith.benchmark._topics.fits import Fits
from cellsmith.benchmark._topics.ours import DEFAULT
from cellsmith.benchmark._topics.ours import methods as ours
from cellsmith.benchmark._topics.peers import LDA, LIFT, PEERS, Method
from cellsmith.benchmark._topics.scoring import cell_scores, topic_scores

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["EVERY", "TASK", "pick", "quality", "run_case", "topics"]

TASK = "topics"
EVERY: dict[str, Method] = {**PEERS, **ours()}
"""Every method that can be named."""
USUAL = (*PEERS, DEFAULT)
READINGS = {LDA: {"lift": LIFT}}
"""Method -> further reading of its topics -> its name in the tables."""


def pick(methods: str | Iterable[str] | Mapping[str, Method] = "all") -> dict[str, Method]:
    """Return methods by name.

    Parameters
    ----------
    methods
        ``"all"``, ``"peers"``, names, or a mapping name -> function that is run beside all the others.

    Raises
    ------
    SetupError
        For a name that does not exist.
    """
    if isinstance(methods, Mapping):
        return {**{name: EVERY[name] for name in USUAL}, **methods}
    if isinstance(methods, str):
        methods = {"all": USUAL, "peers": tuple(PEERS)}.get(methods, (methods,))
    names = list(methods)
    for name in names:
        if name not in EVERY:
            raise SetupError(f"There is no method {name!r}. {nearest(name, EVERY)}")
    return {name: EVERY[name] for name in names}


def run_case(
    case: Case, chosen: Sequence[str], *, n_topics: int, seed: int, store: Store, fits: Fits, task: str = TASK
) -> None:
    """Fit and score methods on one file; rows that exist are skipped.

    Parameters
    ----------
    case
        The cells.
    chosen
        Names of methods that `fits` knows.
    n_topics, seed
        Number of topics, seed.
    store
        Where the rows go.
    fits
        Fits.
    task
        Name in the tables; the number of topics is appended.
    """
    task = f"{task}, K = {n_topics}"
    for name in chosen:
        if store.has(task=task, file=case.file, seed=seed, variant=name):
            continue
        fit = fits.get(case, name, n_topics=n_topics, seed=seed)
        part = SimpleNamespace(file=case.file, seed=seed)
        values = cell_scores(case, fit, seed) | {"cpu_s": fit.seconds}
        for reading, loadings in fit.loadings.items():
            found = topic_scores(case, loadings)
            if reading:
                store.record(task, part, READINGS[name][reading], found)
            else:
                values |= found
        store.record(task, part, name, values)


def quality(
    files: Iterable[str],
    seeds: Iterable[int],
    *,
    directory: Path,
    store: Store,
    fits: Fits,
    chosen: Sequence[str] = USUAL,
    n_topics: int = 20,
) -> None:
    """Run what is not in the table yet; seeds on the outside, so that an interrupted run has few seeds of everything.

    Parameters
    ----------
    files
        Names of files.
    seeds
        Seeds of fits and clusterings.
    directory
        The benchmark data directory.
    store
        Where the rows go.
    fits
        Fits.
    chosen
        Names of methods.
    n_topics
        Number of topics.
    """
    cases: dict[str, Case] = {}
    names = list(files)
    for seed in seeds:
        for file in names:
            if all(store.has(task=f"{TASK}, K = {n_topics}", file=file, seed=seed, variant=v) for v in chosen):
                continue
            if file not in cases:
                cases[file] = read(directory, file)
            run_case(cases[file], chosen, n_topics=n_topics, seed=seed, store=store, fits=fits)


def topics(
    adata: AnnData,
    *,
    layer: str | None = None,
    labels_key: str | None = None,
    n_topics: int = 20,
    methods: str | Iterable[str] | Mapping[str, Method] = "all",
    seeds: Iterable[int] = (0,),
    name: str = "data",
    out: str | Path | None = None,
) -> pd.DataFrame:
    """Compare topics of scE2TM with those of LDA, linear scVI and NMF, or with a method of your own.

    All methods get the same cells and the same 2,000 variable genes (all where there are fewer), chosen without labels,
    and each the input that it was made for: raw counts, or log1p of counts per 10,000. PCA stands beside them as the
    embedding to beat; it has no topics.

    Parameters
    ----------
    adata
        Raw counts (n, G).
    layer
        Layer of the counts; None: ``.X``.
    labels_key
        Column of ``.obs`` with types, for the scores that need them; cells without one are not scored by them.
    n_topics
        Number of topics of every method.
    methods
        ``"all"``, ``"peers"``, names, or a mapping name -> function ``(case, n_topics, seed) -> Fit`` that is run
        beside all the others; ``case.cells`` are the counts, ``case.log`` is log1p.
    seeds
        Seeds of fits and clusterings.
    name
        What the table calls the data.
    out
        CSV file to append to; rows that it has are not run again. None: in memory.

    Returns
    -------
    One row a seed, method and metric: ``task, file, seed, variant, metric, value``. ``td_unique``, ``td_once`` (T29),
    ``redundancy``, purity and F1 are shares; ``npmi`` (T30) lies in [-1, 1]; ARI and NMI of k-means with the number of
    types and of Leiden at 1.0 stand for both spaces, ``theta`` and ``mu``; ``ceiling_ari`` picks the resolution with
    the labels; ``cpu_s`` is in CPU seconds.

    Raises
    ------
    SetupError
        For a layer, column or method that does not exist.

    Examples
    --------
    >>> table = cellsmith.benchmark.topics(adata, labels_key="cell_type", n_topics=20)  # doctest: +SKIP
    """
    case = prepare(adata, file=name, labels_key=labels_key, layer=layer)
    chosen = pick(methods)
    store = Store(TASKS, None if out is None else Path(out))
    fits = Fits(chosen)
    for seed in seeds:
        run_case(case, list(chosen), n_topics=n_topics, seed=int(seed), store=store, fits=fits)
    return store.table
