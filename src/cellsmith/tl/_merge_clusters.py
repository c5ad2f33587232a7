"""Merging of clusters that too few genes tell apart, for any clustering."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith import _record
from cellsmith._errors import CellsmithWarning
from cellsmith._rng import Streams, resolve_seed

if TYPE_CHECKING:
    from anndata import AnnData

    from cellsmith.math.enrichment import MergePath

__all__ = ["merge_clusters"]


def merge_clusters(
    adata: AnnData,
    groupby: str,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    min_markers: float = 5,
    median_share: float = 0.15,
    n_clusters: int | None = None,
    key_added: str = "merged",
    copy: bool = False,
    overwrite: bool = False,
    rng: Any = 0,
    random_state: int | None = None,
) -> AnnData | None:
    """Merge clusters until every two of them have genes of their own.

    For every pair, genes are counted that are higher in one cluster (Welch's t on log-normalised counts, false
    discovery rate 5 %, rates at least twofold apart), in both directions; the smaller number is the score of the pair.
    The pair with the lowest score merges, until every pair reaches max(``min_markers``, ``median_share`` x median score
    of the starting pairs). Counts are halved at random before, but the clusters saw all of them: scores rank pairs and
    are no inference. Meant for a clustering that is slightly too fine, such as Leiden at resolution 0.5. It raises
    agreement of large types and can cost small ones: types without markers of their own are merged away.

    Parameters
    ----------
    adata
        Cells x genes with raw counts, of chosen genes or all.
    groupby
        Column of ``.obs`` with the clusters, one for each cell.
    layer
        Layer with the raw counts; None is ``.X``.
    batch_key
        Column of ``.obs``: tests then run within batches. Two clusters that no batch holds both of are compared as they
        are.
    min_markers
        Least number of genes in the direction that has fewer.
    median_share
        Share of the median score of the starting pairs that every pair must reach as well: deep data separate every
        pair by more genes.
    n_clusters
        Merge until so many are left instead, whatever their scores. Where the number is known, this did better than a
        search for the resolution that gives it.
    key_added
        Column and block of the answer.
    copy
        Return a copy with the results.
    overwrite
        Also replace what another method wrote under this key.
    rng
        Seed of the halving.
    random_state
        Another name for ``rng``, as in older scanpy.

    Returns
    -------
    None, or the copy. Written are ``.obs[key_added]`` ("0", "1", ... by falling size) and ``.uns[key_added]`` with
    ``path`` (``first``, ``second``, ``score``, ``n_clusters`` of every merge, clusters by their old names, a merged one
    by that of its largest part), ``threshold`` and ``classes``.

    Raises
    ------
    SetupError
        If counts, columns or numbers cannot be used. One cluster is a legal answer, with a `CellsmithWarning`.

    Examples
    --------
    >>> sc.tl.leiden(adata, resolution=0.5)  # doctest: +SKIP
    >>> cellsmith.tl.merge_clusters(adata, "leiden", layer="counts")  # doctest: +SKIP
    """
    from cellsmith.data.checks import check_counts, check_covariates
    from cellsmith.math.counts import binomial_thin
    from cellsmith.math.enrichment import merge_by_markers

    seed = resolve_seed(rng if random_state is None else random_state)
    check_counts(adata, layer, min_cells=2)
    check_covariates(adata.obs, categorical={"groupby": groupby, "batch_key": batch_key})
    _record.check_free(adata, key_added, "merge_clusters", names={"obs": ["{k}"]}, overwrite=overwrite)
    halved = binomial_thin(
        adata.X if layer is None else adata.layers[layer], 0.5, generator=Streams(seed).numpy("augment")
    )
    start = adata.obs[groupby].astype(str).to_numpy(dtype=object)
    batches = None if batch_key is None else adata.obs[batch_key].astype(str).to_numpy()
    rule: dict[str, Any] = {"min_markers": min_markers, "median_share": median_share, "n_clusters": n_clusters}
    merged, path = merge_by_markers(halved, start.astype(str), **rule, batches=batches)
    goal = adata.copy() if copy else adata
    params = {"groupby": groupby, "layer": layer, "batch_key": batch_key, **rule}
    _record.write(goal, key_added, _result(adata, merged, path, start, params, seed), overwrite=overwrite)
    if merged.max() == 0 and n_clusters is None:
        warnings.warn(
            f"No two of {len(np.unique(start))} clusters are told apart by {path.threshold:.3g} genes in each "
            "direction: one cluster is left. Lower min_markers if you expect types with few genes of their own.",
            CellsmithWarning,
            stacklevel=2,
        )
    return goal if copy else None


def _result(
    adata: AnnData, merged: Any, path: MergePath, start: Any, params: dict[str, Any], seed: int
) -> _record.Result:
    from cellsmith.math.assign import ordered_clusters

    classes = [str(c) for c in range(int(merged.max()) + 1)]
    names = pd.Series(start).groupby(ordered_clusters(start.astype(str))).first().to_numpy(dtype=object)
    given = {name: value for name, value in params.items() if value is not None}
    read = ("groupby", "layer", "batch_key")
    inputs: dict[str, Any] = {name: value for name, value in given.items() if name in read}
    return _record.Result(
        method="merge_clusters",
        obs={"{k}": pd.Categorical.from_codes(merged, categories=classes)},
        uns={
            "params": given,
            "classes": np.array(classes, dtype=object),
            "threshold": path.threshold,
            "path": {
                "first": names[path.first],
                "second": names[path.second],
                "score": path.score,
                "n_clusters": path.n_clusters,
            },
            "provenance": _record.provenance(
                method="merge_clusters", seed=seed, n_obs=adata.n_obs, var_names=adata.var_names, inputs=inputs
            ),
        },
    )
