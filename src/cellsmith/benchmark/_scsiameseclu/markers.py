"""Names of clusters by ten marker genes a lineage, which stand in every textbook and were not sought in the data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from cellsmith.benchmark._files import load
from cellsmith.benchmark._scsiameseclu.ablation import MAX_CELLS
from cellsmith.benchmark._store import Store

__all__ = ["MARKERS", "TASK", "annotation"]

TASK, FILE = "names by markers", "pbmc_facs"
MARKERS = {
    "T": ["CD3D", "CD3E", "CD3G", "CD5", "CD6", "CD27", "CD28", "IL7R", "LEF1", "TCF7"],
    "B": ["CD19", "MS4A1", "CD79A", "CD79B", "CD22", "BANK1", "BLK", "PAX5", "VPREB3", "TCL1A"],
    "NK": ["NCAM1", "NKG7", "GNLY", "KLRD1", "KLRF1", "KLRC1", "PRF1", "FCGR3A", "XCL1", "FGFBP2"],
    "monocyte": ["CD14", "LYZ", "S100A8", "S100A9", "CST3", "FCN1", "VCAN", "CSF1R", "CD68", "MS4A7"],
    "progenitor": ["CD34", "KIT", "PROM1", "SPINK2", "SOX4", "MEIS1", "HOXA9", "GATA2", "FLT3", "CRHBP"],
}
LINEAGES = {"CD19+ B": "B", "CD56+ NK": "NK", "CD14+ Monocyte": "monocyte", "CD34+": "progenitor"}
"""Sorted population -> lineage; all others are T cells."""
REJECT = 0.5


def annotation(seeds: Iterable[int], *, directory: Path, store: Store) -> None:
    """Cluster sorted cells, name the clusters by markers, and compare with the lineage that was sorted.

    Parameters
    ----------
    seeds
        Seeds of the fits.
    directory
        The benchmark data directory.
    store
        Where the rows go.
    """
    from cellsmith import tl

    for seed in seeds:
        if store.has(task=TASK, file=FILE, seed=seed):
            continue
        adata = load(directory, FILE)
        adata = adata[np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:MAX_CELLS])].copy()
        truth = np.array([LINEAGES.get(t, "T") for t in adata.obs["cell_type"].astype(str)])
        adata.obs = adata.obs[[]].copy()
        tl.scsiameseclu(adata, rng=seed, train_kwargs={"accelerator": "cpu", "enable_progress_bar": False})
        tl.scsiameseclu_annotate(adata, markers=MARKERS, reject_below=REJECT)
        best = np.asarray(adata.obsm["scsiameseclu_annotation_proba"]).argmax(axis=1)
        right = np.asarray(adata.uns["scsiameseclu_annotation"]["classes"])[best] == truth
        rejected = adata.obs["scsiameseclu_annotation_rejected"].to_numpy()
        values = {"accuracy": right.mean(), "rejected": rejected.mean(), "accuracy_kept": right[~rejected].mean()}
        if rejected.any():
            values["accuracy_rejected"] = right[rejected].mean()
        store.record(TASK, SimpleNamespace(file=FILE, seed=seed), "default", {k: float(v) for k, v in values.items()})
