"""Side-by-side clusters: every method on the same cells, every reading of what it found."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith._errors import SetupError, nearest
from cellsmith.benchmark._clustering.cases import Case, case_of, read
from cellsmith.benchmark._clustering.methods import METHODS, PEERS, Found, Method, load_found, save_found
from cellsmith.benchmark._clustering.scoring import OWN, facts, readings, scores
from cellsmith.benchmark._store import Store
from cellsmith.metrics import ari

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["BETWEEN", "COLUMNS", "FACTS", "clustering", "pick", "quality", "run_case"]

logger = logging.getLogger("cellsmith")

SCORES = ("ari", "nmi", "macro_f1", "rare_f1", "n_clusters", "nmi_batch")
COLUMNS = ("cells", "file", "seed", "method", "reading", *SCORES)
FACTS = ("cells", "file", "seed", "method", "metric", "value")
BETWEEN = "agreement with seed "


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
        return {**METHODS, **methods}
    names = list({"all": METHODS, "peers": PEERS}.get(methods, (methods,)) if isinstance(methods, str) else methods)
    for name in names:
        if name not in METHODS:
            raise SetupError(f"There is no method {name!r}. {nearest(name, METHODS)}")
    return {name: METHODS[name] for name in names}


def run_case(
    case: Case, chosen: Mapping[str, Method], seed: int, *, store: Store, further: Store, cells: str, fits: Path | None
) -> None:
    """Run and score methods on one file; what the tables have is skipped.

    Parameters
    ----------
    case
        The cells.
    chosen
        Methods.
    seed
        Seed of the methods and of their readings.
    store, further
        Tables of scores, and of facts about graphs, seconds and agreement between seeds.
    cells
        Which cells, in the tables: "all", or how many were drawn.
    fits
        Folder that keeps what methods found, so that it can be read again, and seeds compared; None: neither.
    """
    for name, method in chosen.items():
        head = {"cells": cells, "file": case.file, "seed": seed, "method": name}
        if store.has(**head):
            continue
        stem = f"{case.file}-{name}-{cells}".replace(" ", "_").replace(",", "")
        found, cost = _found(method, case, seed, None if fits is None else fits / f"{stem}-{seed}.npz")
        clusters = readings(case, found, seed)
        size = {"n_cells": float(case.counts.n_obs), "n_types": float(case.n_types)}
        own = clusters.get(OWN, clusters.get("Leiden 0.5"))
        measured = {**facts(case, found, seed), **size, **cost, **_agreement(own, stem, seed, fits)}
        rows = []
        for reading, labels in clusters.items():
            values = {k: float(f"{v:.5g}") for k, v in scores(case, labels).items()}
            rows.append({**head, "reading": reading, **values})
        further.add([{**head, "metric": metric, "value": value} for metric, value in measured.items()])
        store.add(rows)
        shown = {r["reading"]: r["ari"] for r in rows if r["reading"] in (OWN, "Leiden 0.5", "k-means, K")}
        logger.info("%s, seed %d, %s: ARI %s in %.0f CPU s", case.file, seed, name, shown, cost["cpu_seconds"])


def _found(method: Method, case: Case, seed: int, path: Path | None) -> tuple[Found, dict[str, float]]:
    """Run a method, or read what it found before; with wall and CPU seconds."""
    if path is not None and path.is_file():
        return load_found(path)
    clock, processor = time.perf_counter(), time.process_time()
    found = method(case.counts.copy(), case.batch_key, seed, case.n_types)
    cost = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - processor}
    if path is not None:
        save_found(path, found, cost)
    return found, cost


def _agreement(own: Any, stem: str, seed: int, fits: Path | None) -> dict[str, float]:
    """Keep the clusters, and compare them with those of other seeds."""
    if fits is None:
        return {}
    np.save(fits / f"{stem}-{seed}.npy", np.asarray(own).astype(str))
    others = [p for p in sorted(fits.glob(f"{stem}-*.npy")) if p.stem != f"{stem}-{seed}"]
    return {BETWEEN + p.stem.rsplit("-", 1)[1]: ari(np.load(p), own) for p in others}


def quality(
    files: Iterable[str],
    seeds: Iterable[int],
    *,
    directory: Path,
    store: Store,
    further: Store,
    chosen: Mapping[str, Method],
    max_cells: int | None = None,
    fits: Path | None = None,
) -> None:
    """Run what is not in the tables yet; seeds on the outside, so that an interrupted run has few seeds of everything.

    Parameters
    ----------
    files
        Names of files.
    seeds
        Seeds of methods and readings; the cells are the same for all.
    directory
        The benchmark data directory.
    store, further, fits
        As in :func:`run_case`.
    chosen
        Methods.
    max_cells
        Most cells of a file; None: all.
    """
    cells, cases, names = "all" if max_cells is None else str(max_cells), {}, list(files)
    for seed in seeds:
        for file in names:
            missing = {n: m for n, m in chosen.items() if not store.has(cells=cells, file=file, seed=seed, method=n)}
            if not missing:
                continue
            if file not in cases:
                cases[file] = read(directory, file, max_cells=max_cells)
            run_case(cases[file], missing, seed, store=store, further=further, cells=cells, fits=fits)


def clustering(
    adata: AnnData,
    *,
    layer: str | None = None,
    labels_key: str = "cell_type",
    batch_key: str | None = None,
    methods: str | Iterable[str] | Mapping[str, Method] = "all",
    seeds: Iterable[int] = (0,),
    name: str = "data",
    out: str | Path | None = None,
) -> pd.DataFrame:
    """Compare clusters of SCAGC and its controls with Leiden and k-means on PCA and scVI, or with a method of your own.

    All methods get the same cells and the same 2,000 variable genes (all where there are fewer), chosen without labels.
    What each of them finds is read by the same rules: Leiden at seven resolutions, Leiden and k-means with the true
    number of types, and the method's own clusters.

    Parameters
    ----------
    adata
        Raw counts (n, G).
    layer
        Layer of the counts; None: ``.X``.
    labels_key
        Column of ``.obs`` with types, read by the scores alone; cells without one are left out.
    batch_key
        Column of ``.obs`` with the batch, given to methods that correct it.
    methods
        ``"all"``, ``"peers"``, names, or a mapping name -> function ``(counts, batch_key, seed, n_clusters) ->
        Found(latent, graph, labels)`` that is run beside all the others.
    seeds
        Seeds of methods and readings.
    name
        What the table calls the data.
    out
        CSV file to append to; rows that it has are not run again. None: in memory.

    Returns
    -------
    One row a method, reading and seed: ``cells, file, seed, method, reading``, ``ari``, ``nmi``, ``macro_f1``,
    ``rare_f1``, ``n_clusters`` and ``nmi_batch``. Readings that end in "K" were told the number of types.

    Raises
    ------
    SetupError
        For columns or names that do not exist.

    Examples
    --------
    >>> cellsmith.benchmark.clustering(adata, labels_key="cell_type", methods="peers")  # doctest: +SKIP
    """
    for argument, column in (("labels_key", labels_key), ("batch_key", batch_key)):
        if column is not None and column not in adata.obs:
            raise SetupError(f"{argument}={column!r} is not a column of .obs. {nearest(column, adata.obs.columns)}")
    store, further = Store(COLUMNS, None if out is None else Path(out)), Store(FACTS)
    case = case_of(adata, file=name, labels_key=labels_key, layer=layer, batch_key=batch_key)
    for seed in seeds:
        run_case(case, pick(methods), seed, store=store, further=further, cells="all", fits=None)
    return store.table
