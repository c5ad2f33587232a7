"""The same clustering by several seeds: how far they agree, and which one to keep. No label is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from cellsmith._errors import SetupError, nearest
from cellsmith.metrics import ari

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Stability", "recommended", "stability"]

METHODS = {"scagc": "SCAGC", "scsiameseclu": "ScSiameseClu"}
HELD_OUT = "validation_reconstruction"


class Stability(NamedTuple):
    """What :func:`stability` found for S seeds.

    Attributes
    ----------
    runs
        One row a seed: ``agreement``, the mean adjusted Rand index with the other seeds; ``n_clusters``;
        ``held_out``, the mean negative log-likelihood of the counts of cells that took no part in training, in nats a
        gene (NaN where all did); ``recommended``, True for one seed.
    pairs
        (S, S) adjusted Rand index of every two seeds.
    clusters
        (n, S) clusters, one column a seed; cells as in the data.
    """

    runs: pd.DataFrame
    pairs: pd.DataFrame
    clusters: pd.DataFrame


def stability(
    adata: AnnData,
    *,
    method: str = "scsiameseclu",
    layer: str | None = None,
    batch_key: str | None = None,
    seeds: Iterable[int] = (0, 1, 2, 3, 4),
    held_out: float | None = None,
    setup_kwargs: Mapping[str, Any] = {},
    model_kwargs: Mapping[str, Any] = {},
    train_kwargs: Mapping[str, Any] = {},
) -> Stability:
    """Cluster the same cells by several seeds, and recommend the run that agrees best with the others.

    Costs as many trainings as there are seeds. Agreement says how much of a partition is the method's and not the
    seed's; it is no accuracy, since seeds may agree on what is wrong.

    Parameters
    ----------
    adata
        Raw counts (n, G); not changed.
    method
        "scsiameseclu" or "scagc".
    layer
        Layer of the counts; None: ``.X``.
    batch_key
        Column of ``.obs`` with the batch.
    seeds
        Seeds of the trainings, two or more, all different.
    held_out
        Share of the cells, in [0, 1), that take no part in training and whose counts judge it; they get clusters too.
        None: what the method does by itself (SCAGC holds cells back, scSiameseClu does not).
    setup_kwargs, model_kwargs, train_kwargs
        Further arguments of ``setup_anndata``, of the class and of ``train``.

    Returns
    -------
    ``(runs, pairs, clusters)``; the clusters to go on with are
    ``found.clusters.loc[:, found.runs["recommended"].to_numpy()]``.

    Raises
    ------
    SetupError
        For a method that does not exist, a share out of range, or seeds that cannot be compared.

    Examples
    --------
    >>> found = cellsmith.benchmark.stability(adata, layer="counts", seeds=range(3))  # doctest: +SKIP
    """
    if method not in METHODS:
        raise SetupError(f"There is no method {method!r}. {nearest(method, METHODS)}")
    wanted = [int(seed) for seed in seeds]
    if len(wanted) < 2 or len(set(wanted)) < len(wanted):
        raise SetupError(f"Found seeds={wanted}, expected two or more that differ, such as seeds=(0, 1, 2).")
    if held_out is not None and not 0 <= held_out < 1:
        raise SetupError(f"Found held_out={held_out!r}, expected a share of the cells in [0, 1), such as 0.1.")
    from cellsmith import model as classes

    kind, columns, losses = getattr(classes, METHODS[method]), {}, {}
    arguments = {**({} if held_out is None else {"train_size": 1.0 - held_out}), **train_kwargs}
    for seed in wanted:
        cells = adata.copy()
        kind.setup_anndata(cells, layer=layer, batch_key=batch_key, **setup_kwargs)
        model = kind(cells, **model_kwargs)
        model.train(**{**arguments, "seed": seed})
        columns[seed], losses[seed] = model.predict(), _held_out(model.history_)
    clusters = pd.DataFrame(columns)
    pairs = _pairs(clusters)
    others = (pairs.to_numpy().sum(axis=1) - 1.0) / (len(wanted) - 1)
    runs = pd.DataFrame(
        {
            "agreement": others,
            "n_clusters": [clusters[seed].nunique() for seed in wanted],
            "held_out": [losses[seed] for seed in wanted],
            "recommended": np.arange(len(wanted)) == recommended(pairs.to_numpy()),
        },
        index=pd.Index(wanted, name="seed"),
    )
    return Stability(runs, pairs, clusters)


def recommended(pairs: Any) -> int:
    """Return the position of the run that agrees best with the others; the first of several.

    Parameters
    ----------
    pairs
        (S, S) agreement of every two runs, symmetric.
    """
    table = np.asarray(pairs, dtype=np.float64)
    return int((table.sum(axis=1) - np.diag(table)).argmax())


def _pairs(clusters: pd.DataFrame) -> pd.DataFrame:
    names = list(clusters)
    found = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
    for a, b in combinations(names, 2):
        found.loc[a, b] = found.loc[b, a] = ari(clusters[a].to_numpy(), clusters[b].to_numpy())
    return found


def _held_out(history: Mapping[str, Any]) -> float:
    """Return the last reconstruction loss of held-out cells that any stage recorded."""
    found = [np.asarray(values, dtype=np.float64).ravel() for name, values in history.items() if HELD_OUT in name]
    return float(found[-1][-1]) if found and found[-1].size else float("nan")
