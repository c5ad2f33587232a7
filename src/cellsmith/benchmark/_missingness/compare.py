"""Side-by-side embeddings of data with entries taken away: BC-PCA, its peers, and the complete data."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith._errors import SetupError, nearest
from cellsmith.benchmark._missingness import mechanisms as masks
from cellsmith.benchmark._missingness import methods
from cellsmith.benchmark._missingness.cases import Case, Complete, masked
from cellsmith.benchmark._missingness.methods import Column, Embedded
from cellsmith.benchmark._missingness.scoring import score
from cellsmith.benchmark._store import TASKS, Store

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["missingness", "run_case"]

logger = logging.getLogger("cellsmith")

N_NEIGHBORS = 15


def task_of(task: str, k: int) -> str:
    """Return the name of a task with k components."""
    return f"{task}, {k} PCs"


def run_case(
    case: Case,
    columns: Mapping[str, Column],
    n_latent: Sequence[int],
    *,
    store: Store,
    n_neighbors: int = N_NEIGHBORS,
    n_clusters: int | None = None,
) -> None:
    """Run and score columns on one case; rows that exist are skipped.

    Parameters
    ----------
    case
        The case.
    columns
        Name -> column.
    n_latent
        Numbers of components.
    store
        Where the rows go.
    n_neighbors
        Neighbours whose recall is taken; 0 leaves it out.
    n_clusters
        Clusters of k-means; None is the number of types.
    """
    for name, column in columns.items():
        head = {"file": case.file, "seed": case.seed, "variant": name}
        missing = [k for k in n_latent if not store.has(task=task_of(case.task, k), **head)]
        for k, found, seconds in _fits(case, column, missing):
            values = score(found.x, case.complete, seed=case.seed, n_neighbors=n_neighbors, n_clusters=n_clusters)
            store.record(task_of(case.task, k), case, name, {**values, **found.facts, "cpu_s": seconds})


def _fits(case: Case, column: Column, n_latent: Sequence[int]) -> Iterable[tuple[int, Embedded, float]]:
    """Yield k, embedding and CPU seconds; one fit serves all k where embeddings are nested."""
    if not n_latent:
        return
    if column.nested:
        found, seconds = _timed(case, column, max(n_latent))
        for k in n_latent:
            yield k, Embedded(found.x[:, :k], found.facts), seconds
        return
    for k in n_latent:
        yield k, *_timed(case, column, k)


def _timed(case: Case, column: Column, k: int) -> tuple[Embedded, float]:
    started = time.process_time()
    found = column(case, k)
    return found, time.process_time() - started


def _complete(adata: AnnData, layer: str | None, labels_key: str | None, name: str) -> Complete:
    """Check a user's data."""
    from scipy import sparse

    if layer is not None and layer not in adata.layers:
        raise SetupError(f"`adata.layers` has no {layer!r}. {nearest(layer, adata.layers)}")
    if labels_key is not None and labels_key not in adata.obs:
        raise SetupError(f"`adata.obs` has no column {labels_key!r}. {nearest(labels_key, adata.obs.columns)}")
    x = adata.X if layer is None else adata.layers[layer]
    values = np.asarray(x.toarray() if sparse.issparse(x) else x, dtype=np.float32)
    if not np.isfinite(values).all():
        i, d = (int(v[0]) for v in np.nonzero(~np.isfinite(values)))
        raise SetupError(
            f"Found {values[i, d]} in cell {adata.obs_names[i]!r}, feature {adata.var_names[d]!r}; expected complete "
            "data, because the entries that are taken away are what the columns are scored on."
        )
    labels = None if labels_key is None else adata.obs[labels_key].to_numpy(dtype=object)
    if labels is not None and pd.isna(labels).all():
        raise SetupError(f"None of the {adata.n_obs} cells has a label in `.obs[{labels_key!r}]`; expected some.")
    totals = np.maximum(values, 0.0).sum(axis=1, dtype=np.float64)
    return Complete(name, values, masks.depth_of(totals), labels)


def missingness(
    adata: AnnData,
    *,
    labels_key: str | None = None,
    layer: str | None = None,
    mechanisms: str | Iterable[str] | Mapping[str, Any] = "all",
    columns: str | Iterable[str] | Mapping[str, Any] = "all",
    n_latent: int | Sequence[int] = 10,
    n_neighbors: int = N_NEIGHBORS,
    seeds: Iterable[int] = (0,),
    name: str = "data",
    out: str | Path | None = None,
) -> pd.DataFrame:
    """Take entries of your own complete data away, and compare what is left of its principal components.

    Every column gets the same masked values: zero-filling, mean imputation, pairwise-complete inner products, BC-PCA
    with four models of the mask, softImpute and a projection refinement as in primePCA. The truth is the
    principal-component space of the complete data, which stands beside as the control.

    Parameters
    ----------
    adata
        Cells (n, D) without a missing entry; log-normalise counts first. The values become a dense array.
    labels_key
        Column of ``.obs`` with types; None scores space and neighbours only.
    layer
        Layer with the values; None is ``.X``.
    mechanisms
        ``"all"``, names (``"homogeneous"``, ``"rank-1 observed"``, ``"rank-1 missing"``, ``"logistic"``,
        ``"depth-linked"``, ``"not at random"``), or a mapping name -> function ``(values, depth, rng) -> observed``,
        boolean of shape (n, D); ``depth`` is the standardised log total of each cell, (n,).
    columns
        ``"all"``, ``"peers"``, ``"bcpca"``, names, or a mapping name -> function ``(case, k) -> (n, k)`` that is run
        beside all the others; ``case.values`` has NaN where nothing was observed.
    n_latent
        Number of components, or several.
    n_neighbors
        Neighbours in the complete space whose recall is taken.
    seeds
        Seeds of masks, of k-means and of held-out entries.
    name
        What the table calls the data.
    out
        CSV file to append to; rows that it has are not run again. None: in memory.

    Returns
    -------
    One row a seed, mechanism, column and metric: ``task, file, seed, variant, metric, value``. ``sin_theta`` (0 equal,
    1 orthogonal), ``recall`` of the nearest cells, ``left_out`` (cells without coordinates), with types ``ari``,
    ``nmi``, ``macro_f1`` and ``rare_f1`` of k-means with the true number of types, ``cpu_s`` in CPU seconds.

    Raises
    ------
    SetupError
        For a name that does not exist, for data with missing entries, and if no cell has a label.

    Examples
    --------
    >>> table = cellsmith.benchmark.missingness(adata, labels_key="cell_type")  # doctest: +SKIP
    >>> every_third = {"every third": lambda values, depth, rng: rng.random(values.shape) < 1 / 3}  # doctest: +SKIP
    >>> table = cellsmith.benchmark.missingness(adata, mechanisms=every_third, n_latent=20)  # doctest: +SKIP
    """
    chosen, picked = masks.pick(mechanisms), methods.pick(columns)
    complete = _complete(adata, layer, labels_key, name)
    wanted = [n_latent] if isinstance(n_latent, int) else list(n_latent)
    store = Store(TASKS, None if out is None else Path(out))
    for seed in seeds:
        for mechanism, function in chosen.items():
            case = masked(complete, mechanism, function, seed=int(seed), task=mechanism)
            run_case(case, picked, wanted, store=store, n_neighbors=n_neighbors)
    return store.table
