"""Rejection of uncertain cells, on the results of GRIT."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith import _record
from cellsmith._errors import DataWarning, SetupError, nearest

if TYPE_CHECKING:
    import numpy.typing as npt
    from anndata import AnnData

    from cellsmith.model.grit.rejection import Rejection

__all__ = ["refined_block", "reject"]


def reject(
    adata: AnnData,
    key: str = "grit",
    *,
    labels_key: str | None = None,
    target: str = "selective",
    level: float = 0.05,
    delta: float = 0.1,
    threshold: float | None = None,
    quantile: float | None = None,
    by: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Say which refined labels not to use, with a stated risk where some labels are known.

    Parameters
    ----------
    adata
        Object with the results of :func:`cellsmith.tl.grit`.
    key
        Their key.
    labels_key
        Column of ``.obs`` with known labels; None is the one that GRIT was given. Cells that were held at their label,
        or fitted the temperature, are left out. The guarantees assume that the others are a random sample of all
        cells; cells picked by cluster void them.
    target
        "selective": error rate among accepted cells; "accepted_wrong": share of all cells that are accepted and wrong;
        "coverage": the set of classes holds the true one. With ``threshold`` or ``quantile`` also "entropy".
    level
        The error rate, in (0, 1).
    delta
        Probability with which "selective" may fail.
    threshold
        Reject below this value of ``.obs[key_confidence]`` instead (above this ``.obs[key_entropy]``): no guarantee.
    quantile
        Reject this share of the cells instead: no guarantee.
    by
        Column of ``.obs``, such as the batch: each group is calibrated on its own labels.
    copy
        Return a copy with the results.

    Returns
    -------
    None, or the copy. Written are ``.obs[key_rejected]`` (bool), ``.obs[key_reason]`` ("", "novel" where no class is
    close, "ambiguous" where two or more compete) and ``.uns[key]["rejection"]``; but for "coverage", its ``threshold``
    is one of ``.obs[key_confidence]``. If nothing can be accepted, everything is rejected, and the record says why.

    Raises
    ------
    SetupError
        If there are no results, no labels, or an option does not exist.

    Examples
    --------
    >>> cellsmith.tl.reject(adata, labels_key="anchors", target="selective", level=0.05)  # doctest: +SKIP
    """
    from cellsmith.model.grit import rejection, summary

    block, proba = refined_block(adata, key)
    temperature = block.get("calibration", {}).get("temperature")
    p = summary.shares(proba, str(block["space"]), None if temperature is None else float(temperature))
    if threshold is not None or quantile is not None:
        if target not in ("selective", "confidence", "entropy"):
            raise SetupError(f"target={target!r} with a threshold. {nearest(target, ('confidence', 'entropy'))}")
        measure = "entropy" if target == "entropy" else "confidence"
        found = rejection.without_anchors(p, target=measure, threshold=threshold, quantile=quantile)
    else:
        codes, spent = _anchors(adata, block, labels_key)
        anchors = rejection.usable_anchors(codes, spent)
        groups = None if by is None else _groups(adata, by)
        found = rejection.with_anchors(p, codes, anchors, target=target, level=level, delta=delta, groups=groups)
    goal = adata.copy() if copy else adata
    _record.extend(goal, key, _result(found, labels_key, by))
    if found.note:
        warnings.warn(found.note, DataWarning, stacklevel=2)
    return goal if copy else None


def _result(found: Rejection, labels_key: str | None, by: str | None) -> _record.Result:
    reasons = pd.Categorical(found.reason, categories=["", "ambiguous", "novel"])
    return _record.Result(
        method="grit",
        obs={"{k}_rejected": found.rejected, "{k}_reason": reasons},
        uns={"rejection": {**found.record, "labels_key": labels_key, "by": by}},
    )


def refined_block(adata: AnnData, key: str) -> tuple[dict[str, Any], npt.NDArray[Any]]:
    """Return the block of ``.uns`` and the refined scores (n, C) that GRIT wrote.

    Warns where the graph they were computed on has changed since.

    Raises
    ------
    SetupError
        If there are none, or the cells are not those that were refined, in their order.
    """
    from cellsmith.math.graph import fingerprint, symmetrize

    block = _record.read(adata, key)
    method, name = block["provenance"].get("method"), f"{key}_proba"
    if method != "grit" or name not in adata.obsm:
        raise SetupError(f"{key!r} was written by {method!r} and has no .obsm[{name!r}]; expected results of tl.grit.")
    stored = block["provenance"].get("obs_names_sha256")
    if stored is not None and stored != _record.hash_names(adata.obs_names):
        raise SetupError(
            f"The cells are not those that were refined under {key!r}, in their order; expected all of them, because "
            "the record holds positions of anchors. Run this on the full object, then subset."
        )
    graph = block.get("graph", {})
    where = str(graph.get("key") or f"{key}_connectivities")
    if where in adata.obsp and fingerprint(symmetrize(adata.obsp[where])) != graph.get("fingerprint"):
        warnings.warn(
            f".obsp[{where!r}] is not the graph that {key!r} was refined on (its fingerprint differs). "
            "Run tl.grit again.",
            DataWarning,
            stacklevel=3,
        )
    return block, np.asarray(adata.obsm[name])


def _anchors(
    adata: AnnData, block: Mapping[str, Any], labels_key: str | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.intp]]:
    """Return the class of every known label (n,), and positions of the cells that were held or fitted T."""
    from cellsmith.model.grit.anchors import anchor_codes

    params = block["params"]
    column = params.get("labels_key") if labels_key is None else labels_key
    if column is None:
        raise SetupError(
            "No labels to calibrate on: expected labels_key=..., a column of .obs with some known labels. For a "
            "threshold without guarantee type threshold=0.5 or quantile=0.1."
        )
    if column not in adata.obs:
        raise SetupError(f"labels_key={column!r} is not a column of .obs. {nearest(column, adata.obs.columns)}")
    unknown = params.get("unlabeled_category", "unknown")
    labels = [None if pd.isna(v) or str(v) == unknown else str(v) for v in adata.obs[column]]
    codes = anchor_codes(labels, tuple(str(c) for c in block["classes"]))
    used = block.get("calibration", {})
    return codes, np.union1d(used.get("clamped", []), used.get("fitted", [])).astype(np.intp)


def _groups(adata: AnnData, by: str) -> npt.NDArray[np.object_]:
    if by not in adata.obs:
        raise SetupError(f"by={by!r} is not a column of .obs. {nearest(by, adata.obs.columns)}")
    groups = adata.obs[by].astype(object)
    return np.array(["nan" if pd.isna(g) else str(g) for g in groups], dtype=object)
