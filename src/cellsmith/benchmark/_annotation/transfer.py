"""Labels carried from one technology, condition or handful of cells to others, on real cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from cellsmith._compat import kept_threads
from cellsmith._rng import Streams
from cellsmith.benchmark._annotation.cases import Case, Cells, codes_of
from cellsmith.benchmark._annotation.compare import run_case
from cellsmith.benchmark._annotation.confidence import record_unknown
from cellsmith.benchmark._annotation.peers import Method, pick
from cellsmith.benchmark._files import load
from cellsmith.benchmark._store import Store

__all__ = ["FEW", "FILES", "Prepared", "few_cells", "leave_out", "prepare", "transfer", "unknown_real"]

FILES: dict[str, str | None] = {"pbmc_3tech": "batch", "panc8_small": "batch", "kang_ifnb": "condition"}
"""File -> column whose parts are left out one by one."""
FEW = "pbmc_facs"
PER_TYPE = 10
SOURCE_SHARE = 0.8  # of the source cells that seeds after the first draw
N_GENES, N_COMPONENTS, VOTE_GENES = 2_000, 50, 2_500


@dataclass(frozen=True, eq=False)
class Prepared:
    """Cells of one file: components (n, d), those of the vote's own clusters, labels (n,), columns of ``.obs``."""

    file: str
    rep: np.ndarray
    vote_rep: np.ndarray
    labels: np.ndarray
    obs: Any


def _components(adata: AnnData, n_genes: int, *, scale: bool) -> np.ndarray:
    import scanpy as sc

    if adata.n_vars > n_genes:
        with kept_threads():
            sc.pp.highly_variable_genes(adata, n_top_genes=n_genes)
        adata = adata[:, adata.var["highly_variable"].to_numpy()].copy()
    if scale:
        adata = adata.copy()
        sc.pp.scale(adata, max_value=10)
    sc.pp.pca(adata, n_comps=min(N_COMPONENTS, min(adata.shape) - 1))
    return np.asarray(adata.obsm["X_pca"], dtype=np.float64)


def prepare(adata: AnnData, *, file: str, labels_key: str = "cell_type") -> Prepared:
    """Return components of all cells together; no label is read for them.

    normalize_total to 1e4, log1p, 2,000 variable genes, 50 components. The vote's clusters come from CellTypist's own
    recipe: 2,500 variable genes, scaled, 50 components.

    Parameters
    ----------
    adata
        Counts of shape (n, G).
    file
        Name in the tables.
    labels_key
        Column of ``.obs``.
    """
    import scanpy as sc

    cells = adata.copy()
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    rep, vote_rep = _components(cells, N_GENES, scale=False), _components(cells, VOTE_GENES, scale=True)
    return Prepared(file, rep, vote_rep, cells.obs[labels_key].astype(str).to_numpy(), cells.obs)


def classifier(rep: np.ndarray, labels: np.ndarray) -> Any:
    """Train a logistic regression on components (m, d) and labels (m,)."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=3000).fit(rep, labels)


def scored_case(
    data: Prepared, source: np.ndarray, target: np.ndarray, *, task: str, seed: int, cells: Cells | None = None
) -> tuple[Case, np.ndarray]:
    """Return the target cells with the scores of a classifier of the source cells, and its decision values.

    Parameters
    ----------
    data
        All cells.
    source, target
        Positions.
    task, seed
        Names in the tables.
    cells
        Graphs of the target cells, where they exist.
    """
    model = classifier(data.rep[source], data.labels[source])
    cells = cells or Cells(data.rep[target], vote_rep=data.vote_rep[target])
    classes = tuple(map(str, model.classes_))
    truth = codes_of(data.labels[target], classes)
    everyone = np.ones(len(target), dtype=bool)
    p = model.predict_proba(data.rep[target])
    return Case(task, data.file, seed, cells, p, classes, truth, everyone), model.decision_function(data.rep[target])


def leave_out(data: Prepared, key: str, seeds: Iterable[int]) -> Iterator[Case]:
    """Yield one case a part and seed: the part's cells, scored by a classifier of all others.

    Seed 0 trains on all source cells, later ones on a random 80 % of them.
    """
    groups = data.obs[key].astype(str).to_numpy()
    for part in np.unique(groups):
        target = np.flatnonzero(groups == part)
        cells = Cells(data.rep[target], vote_rep=data.vote_rep[target])
        for seed in seeds:
            source = np.flatnonzero(groups != part)
            if seed:
                rng = Streams(seed).numpy("source cells")
                source = np.sort(rng.choice(source, round(SOURCE_SHARE * source.size), replace=False))
            yield scored_case(data, source, target, task=f"transfer to {part}", seed=seed, cells=cells)[0]


def draw_few(labels: np.ndarray, seed: int, *, per_type: int = PER_TYPE) -> np.ndarray:
    """Return positions of `per_type` random cells of each type, of half of a type that has fewer than twice as many."""
    rng = Streams(seed).numpy("source cells")
    found = [np.flatnonzero(labels == name) for name in np.unique(labels)]
    parts = [rng.choice(cells, min(per_type, len(cells) // 2), replace=False) for cells in found]
    return np.sort(np.concatenate(parts))


def few_cells(data: Prepared, seed: int) -> Case:
    """Return all other cells, scored by a classifier of 10 cells a type."""
    source = draw_few(data.labels, seed)
    target = np.setdiff1d(np.arange(len(data.labels)), source)
    return scored_case(data, source, target, task="10 cells a type", seed=seed)[0]


def _todo(store: Store, file: str, task: str, seed: int, variants: Iterable[str]) -> bool:
    return not all(store.has(task=task, file=file, seed=seed, variant=v) for v in variants)


def transfer(
    files: Iterable[str], seeds: Iterable[int], *, directory: Path, store: Store, chosen: Mapping[str, Method] | None
) -> None:
    """Run every method on every transfer; rows that exist are skipped.

    Parameters
    ----------
    files
        Names, of ``FILES`` and ``FEW``.
    seeds
        Seeds of the source cells and of the vote's clusters.
    directory
        The benchmark data directory.
    store
        Where the rows go.
    chosen
        Methods; None takes all.
    """
    chosen = pick("all") if chosen is None else chosen
    seeds = list(seeds)
    for file in files:
        data = prepare(load(directory, file), file=file)
        cases = leave_out(data, FILES[file], seeds) if file in FILES else (few_cells(data, seed) for seed in seeds)
        for case in cases:
            run_case(case, chosen, store=store)


def unknown_real(seeds: Iterable[int], *, directory: Path, store: Store) -> None:
    """Leave each type of `FEW` in turn out of the training, and look for it.

    Parameters
    ----------
    seeds
        Seeds of the 10 cells a type.
    directory
        The benchmark data directory.
    store
        Gets the AUROC of each rejection score.
    """
    data = prepare(load(directory, FEW), file=FEW)
    for seed in seeds:
        drawn = draw_few(data.labels, seed)
        target = np.setdiff1d(np.arange(len(data.labels)), drawn)
        cells = None
        for held in np.unique(data.labels):
            task = f"unknown, {held}"
            if not _todo(store, FEW, task, seed, ["energy smoothed with rw"]):
                continue
            cells = cells or Cells(data.rep[target])
            source = drawn[data.labels[drawn] != held]
            case, decisions = scored_case(data, source, target, task=task, seed=seed, cells=cells)
            record_unknown(case, decisions, data.labels[target] == held, store=store)
