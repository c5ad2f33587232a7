"""Marker genes of clusters: scanpy's test on the counts that were clustered, kept beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from cellsmith import _keys, _record
from cellsmith._errors import SetupError, nearest
from cellsmith.math.counts import log_normalized

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["log_counts", "ranked", "scsiameseclu_markers"]

TABLES = ("names", "scores", "logfoldchanges", "pvals", "pvals_adj")


def scsiameseclu_markers(
    adata: AnnData,
    *,
    key: str = "scsiameseclu",
    layer: str | None = None,
    method: str = "wilcoxon",
    n_genes: int = 100,
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Rank the genes of every cluster against all other cells, with :func:`scanpy.tl.rank_genes_groups`.

    The clusters were found on the same counts, so that p-values rank genes; they prove no cluster.

    Parameters
    ----------
    adata
        Object with the outputs of :func:`cellsmith.tl.scsiameseclu`.
    key
        Name of those outputs.
    layer
        Layer with the raw counts; None is the one that was clustered.
    method
        As in scanpy: "wilcoxon", "t-test", "t-test_overestim_var" or "logreg".
    n_genes
        Genes a cluster.
    key_added
        Name of the table; None is ``key + "_markers"``.
    copy
        Return a copy with the table instead of writing into ``adata``.

    Returns
    -------
    None, or the copy. Written is ``.uns[key_markers]`` in scanpy's form, so that
    ``sc.get.rank_genes_groups_df(adata, None, key="scsiameseclu_markers")`` reads it; with it the shares of cells that
    have the gene, ``"fraction"`` within the cluster and ``"fraction_rest"`` outside.

    Raises
    ------
    SetupError
        If there are no such outputs, the layer holds no counts, or there is but one cluster.

    Examples
    --------
    >>> cellsmith.tl.scsiameseclu_markers(adata)  # doctest: +SKIP
    """
    found = ranked(adata, key=key, layer=layer, method=method, n_genes=n_genes)
    goal = adata.copy() if copy else adata
    table = {name: found[name] for name in TABLES if name in found}
    shares = {"fraction": "pts", "fraction_rest": "pts_rest"}  # scanpy gives none for method="logreg"
    table |= {ours: _in_order(found, theirs) for ours, theirs in shares.items() if theirs in found}
    result = _record.Result(method="scsiameseclu_markers", uns={**table, "params": dict(found["params"])})
    _record.write(goal, _keys.validate(key_added or f"{key}_markers"), result)
    return goal if copy else None


def ranked(adata: AnnData, *, key: str, layer: str | None, method: str, n_genes: int) -> dict[str, Any]:
    """Return scanpy's ranking of the genes of every cluster; nothing is changed.

    Parameters
    ----------
    adata, key, layer, method, n_genes
        As in :func:`scsiameseclu_markers`.
    """
    import scanpy as sc
    from anndata import AnnData as Plain

    if key not in adata.obs or key not in adata.uns:
        raise SetupError(
            f"key={key!r} names no clusters. {nearest(key, adata.obs)} Type cellsmith.tl.scsiameseclu(adata)."
        )
    groups = adata.obs[key].astype("category").cat.remove_unused_categories()
    groups = groups.cat.remove_categories([c for c, n in groups.value_counts().items() if n < 2])
    if len(groups.cat.categories) < 2:
        raise SetupError(f".obs[{key!r}] has one cluster; markers compare at least two.")
    used = adata.uns[key].get("params", {}).get("layer") if layer is None else layer
    plain = Plain(log_counts(adata, used), obs=pd.DataFrame({key: groups}), var=adata.var[[]])
    plain.uns["log1p"] = {"base": None}
    sc.tl.rank_genes_groups(plain, key, method=method, n_genes=n_genes, pts=True, use_raw=False)
    return dict(plain.uns["rank_genes_groups"])


def log_counts(adata: AnnData, layer: str | None) -> sparse.csr_matrix:
    """Return log1p of counts at ten thousand a cell, CSR (n, G).

    Parameters
    ----------
    adata
        Cells.
    layer
        Layer with raw counts; None is ``.X``.
    """
    from cellsmith.data.checks import check_counts

    check_counts(adata, layer, min_cells=1)
    counts = sparse.csr_matrix(adata.X if layer is None else adata.layers[layer])
    return log_normalized(counts, np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel())


def _in_order(found: dict[str, Any], name: str) -> Any:
    """Return a table by gene in the order of the ranking, in scanpy's form of one field a cluster."""
    table, names = found[name], found["names"]
    columns = {group: table.loc[names[group], group].to_numpy(dtype=np.float32) for group in names.dtype.names}
    return pd.DataFrame(columns).to_records(index=False)
