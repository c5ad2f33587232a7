"""Real zeros: is it worth treating some of them as missing? Clusters on UMI data, without a claim."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from cellsmith._errors import CellsmithWarning
from cellsmith.benchmark._missingness.cases import Case, Complete, read
from cellsmith.benchmark._missingness.compare import task_of
from cellsmith.benchmark._missingness.mechanisms import apply_mask
from cellsmith.benchmark._missingness.methods import BC, COLUMNS
from cellsmith.benchmark._missingness.reference import complete_c
from cellsmith.benchmark._missingness.scoring import label_scores
from cellsmith.benchmark._store import Store

__all__ = ["FILE", "MASKS", "TASK", "observed_zeros", "zeros"]

logger = logging.getLogger("cellsmith")

TASK, FILE = "Z", "pbmc_facs"
MASKS: dict[str, dict[str, Any]] = {
    "zero": {"method": "zero"},
    "consensus .85": {"method": "consensus", "threshold": 0.85},
    "consensus .9": {"method": "consensus", "threshold": 0.9},
}
"""Which zeros are missing -> arguments of :func:`cellsmith.pp.missing_mask`."""
METHODS = ("mean-impute", "BC legacy", BC)
N_LATENT = (10, 20)


def observed_zeros(values: npt.NDArray[Any], *, seed: int, **options: Any) -> npt.NDArray[np.bool_]:
    """Return what :func:`cellsmith.pp.missing_mask` takes for observed, (n, D).

    Parameters
    ----------
    values
        Log-normalised values (n, D).
    seed
        Of its clusterings.
    **options
        Its arguments.
    """
    import anndata as ad
    from scipy import sparse

    from cellsmith import pp

    cells = ad.AnnData(sparse.csr_matrix(values))
    pp.missing_mask(cells, key_added="mask", rng=seed, **options)
    stored = cells.layers["mask"].toarray() > 0
    return stored if cells.uns["mask"]["marks"] == "observed" else ~stored


def _embeddings(complete: Complete, seed: int) -> Iterator[tuple[str, float, Any]]:
    """Yield name, observed share and embedding of 20 components of PCA and of each mask and method."""
    most = max(N_LATENT)
    yield "PCA", 1.0, complete.scores(most)
    for mask, options in MASKS.items():
        observed = observed_zeros(complete.values, seed=seed, **options)
        case = Case(TASK, seed, complete, apply_mask(complete.values, observed))
        for name in METHODS:
            yield f"{mask}, {name}", float(observed.mean()), COLUMNS[name](case, most).x


def zeros(seeds: Iterable[int], *, directory: Path | None, store: Store) -> None:
    """Run what is not in the table yet.

    Parameters
    ----------
    seeds
        Seeds of the clusterings behind the mask, and of k-means.
    directory
        The benchmark data directory; None leaves its file out.
    store
        Where the rows go.
    """
    data = [complete_c(), *([] if directory is None else [read(directory, FILE)])]
    for seed in seeds:
        for complete in data:
            last = f"{list(MASKS)[-1]}, {METHODS[-1]}"
            if store.has(task=task_of(TASK, N_LATENT[-1]), file=complete.file, seed=seed, variant=last):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CellsmithWarning)
                found = list(_embeddings(complete, seed))
            for k in N_LATENT:
                for name, share, x in found:
                    part = np.where(np.isfinite(x), x, 0.0)[:, :k]
                    values = label_scores(part, np.asarray(complete.labels), seed=seed)
                    head = SimpleNamespace(file=complete.file, seed=seed)
                    store.record(task_of(TASK, k), head, name, {**values, "observed": share})
