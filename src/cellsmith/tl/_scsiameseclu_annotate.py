"""Names of cell types for clusters, from marker genes or from a labelled reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cellsmith import _record
from cellsmith._errors import SetupError, nearest
from cellsmith.math import transport
from cellsmith.tl._scsiameseclu_markers import log_counts, ranked

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["scsiameseclu_annotate"]

UNKNOWN = "unknown"
N_TOP = 100
# Entropy of the plan, and price of other shares of types than in the reference, in units of a cosine.
EPSILON, BALANCE = 0.1, 0.1
MIN_SHARED = 50
Floats = npt.NDArray[np.float64]


def scsiameseclu_annotate(
    adata: AnnData,
    *,
    markers: Mapping[str, Sequence[str]] | None = None,
    reference: AnnData | None = None,
    labels_key: str | None = None,
    key: str = "scsiameseclu",
    reject_below: float = 0.5,
    key_added: str = "scsiameseclu_annotation",
    copy: bool = False,
) -> AnnData | None:
    """Name clusters by marker genes, or by the types of a labelled reference.

    With ``markers`` every cluster gets the name whose genes its own hundred best contain most of, as
    :func:`scanpy.tl.marker_gene_overlap` counts them. With ``reference``, mean profiles of clusters are transported to
    mean profiles of types; a cluster between two types is then shared. Scores of a cell are its soft clusters times
    the names of the clusters.

    Parameters
    ----------
    adata
        Object with the outputs of :func:`cellsmith.tl.scsiameseclu`.
    markers
        Type -> genes.
    reference
        Labelled cells with raw counts in the same layer (``.X`` where it lacks that layer).
    labels_key
        Column of ``reference.obs``: the only labels that are read.
    key
        Name of the clusters.
    reject_below
        Cells whose best score is smaller are "unknown".
    key_added
        Name of the outputs.
    copy
        Write into a copy and return it.

    Returns
    -------
    None, or the copy. Written (k = ``key_added``): ``.obs["k"]``, ``.obs["k_confidence"]``, ``.obs["k_rejected"]``,
    ``.obsm["k_proba"]`` (cells x types), and ``.uns["k"]`` with the names and the table of clusters and types.

    Raises
    ------
    SetupError
        If not exactly one of ``markers`` and ``reference`` is given, a key does not exist, or too few genes are
        shared.

    Examples
    --------
    >>> cellsmith.tl.scsiameseclu_annotate(
    ...     adata, markers={"B cell": ["CD79A", "MS4A1"], "T cell": ["CD3D", "CD3E"]}
    ... )  # doctest: +SKIP
    """
    if (markers is None) == (reference is None):
        raise SetupError("Give markers={type: genes}, or reference=<AnnData> with labels_key; exactly one of them.")
    if key not in adata.uns or f"{key}_proba" not in adata.obsm:
        raise SetupError(
            f"key={key!r} names no clusters. {nearest(key, adata.uns)} Type cellsmith.tl.scsiameseclu(adata)."
        )
    proba, clusters = np.asarray(adata.obsm[f"{key}_proba"], dtype=np.float64), list(adata.uns[key]["classes"])
    layer = adata.uns[key].get("params", {}).get("layer")
    if markers is not None:
        names, table = _by_markers(adata, markers, key=key, layer=layer, clusters=clusters)
    else:
        names, table = _by_reference(adata, reference, labels_key, key=key, layer=layer, clusters=clusters)
    scores = proba @ table
    confidence = scores.max(axis=1)
    # A cell that is mostly in clusters without any type has no name, however low the bar.
    rejected = (confidence < reject_below) | (proba[:, table.sum(axis=1) == 0].sum(axis=1) > confidence)
    label = np.where(rejected, UNKNOWN, np.array(names, dtype=object)[scores.argmax(axis=1)])
    goal = adata.copy() if copy else adata
    result = _record.Result(
        method="scsiameseclu_annotation",
        obs={"{k}": pd.Categorical(label), "{k}_confidence": confidence.astype(np.float32), "{k}_rejected": rejected},
        obsm={"{k}_proba": scores.astype(np.float32)},
        uns={
            "classes": np.array(names, dtype=object),
            "clusters": np.array(clusters, dtype=object),
            "table": table,
            "params": {
                "key": key,
                "by": "markers" if markers is not None else "reference",
                "reject_below": reject_below,
                "labels_key": labels_key,
            },
        },
    )
    _record.write(goal, key_added, result)
    return goal if copy else None


def _by_markers(
    adata: AnnData, markers: Mapping[str, Sequence[str]], *, key: str, layer: str | None, clusters: list[str]
) -> tuple[list[str], Floats]:
    """Return the types, and which of them each cluster is (K, C); a row of zeros for a cluster without any marker."""
    known = {name: [g for g in genes if g in adata.var_names] for name, genes in markers.items()}
    lost = [name for name, genes in known.items() if not genes]
    if lost or not known:
        example = next(iter(markers.values()), [])[:1]
        raise SetupError(
            f"No marker of {lost[:3]} is among the {adata.n_vars} genes (markers like {example}, genes like "
            f"{list(adata.var_names[:2])}); expected at least one a type, in the names of the data."
        )
    n_top = min(N_TOP, max(1, adata.n_vars // 5))  # the best of all genes, not all of them
    best = ranked(adata, key=key, layer=layer, method="wilcoxon", n_genes=n_top)["names"]
    names = list(known)
    table = np.zeros((len(clusters), len(names)))
    for row, cluster in enumerate(clusters):
        if cluster not in best.dtype.names:
            continue
        own = set(best[cluster])
        share = np.array([len(own & set(genes)) / len(genes) for genes in known.values()])
        if share.max() > 0:
            table[row, share.argmax()] = 1.0
    return names, table


def _by_reference(
    adata: AnnData,
    reference: Any,
    labels_key: str | None,
    *,
    key: str,
    layer: str | None,
    clusters: list[str],
) -> tuple[list[str], Floats]:
    """Return the types, and how each cluster is shared among them (K, C), rows sum to 1."""
    if labels_key is None or labels_key not in reference.obs:
        raise SetupError(
            f"labels_key={labels_key!r} is not a column of reference.obs. {nearest(labels_key, reference.obs)}"
        )
    shared = adata.var_names.intersection(reference.var_names)
    if len(shared) < min(MIN_SHARED, adata.n_vars):
        raise SetupError(
            f"{len(shared)} genes are shared with the reference (genes like {list(adata.var_names[:2])} and "
            f"{list(reference.var_names[:2])}); expected at least {MIN_SHARED}, in the same names."
        )
    labelled = reference[reference.obs[labels_key].notna().to_numpy()]
    types = labelled.obs[labels_key].astype(str).to_numpy()
    names = sorted(set(types))
    own_layer = layer if layer in reference.layers else None
    sides = (
        (log_counts(adata, layer)[:, adata.var_names.get_indexer(shared)], adata.obs[key].astype(str), clusters),
        (log_counts(labelled, own_layer)[:, labelled.var_names.get_indexer(shared)], types, names),
    )
    means, shares = zip(*(_means(x, np.asarray(codes), levels) for x, codes, levels in sides), strict=True)
    # Each side's own mean profile is taken out, and with it what platforms do to all cells alike.
    unit = [m - np.average(m, axis=0, weights=s) for m, s in zip(means, shares, strict=True)]
    unit = [u / np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1e-12) for u in unit]
    cost, row, col = (torch.from_numpy(v) for v in (1 - unit[0] @ unit[1].T, shares[0], shares[1]))
    plan = transport.sinkhorn(cost, row, col, epsilon=EPSILON, col_penalty=BALANCE, max_sweeps=1000).plan.numpy()
    return names, plan / plan.sum(axis=1, keepdims=True)


def _means(x: Any, codes: npt.NDArray[Any], levels: list[str]) -> tuple[Floats, Floats]:
    """Return mean profiles (K, G) and shares (K,) of groups; an empty one has the mean of all and hardly a share."""
    rows = [np.flatnonzero(codes == level) for level in levels]
    overall = np.asarray(x.mean(axis=0)).ravel()
    means = np.stack([np.asarray(x[r].mean(axis=0)).ravel() if len(r) else overall for r in rows]).astype(np.float64)
    sizes = np.maximum([len(r) for r in rows], 1e-6)
    return means, sizes / sizes.sum()
