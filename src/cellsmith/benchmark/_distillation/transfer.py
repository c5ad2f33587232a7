"""Sets that serve where they were not made: another technology, another condition, networks that were not matched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np

from cellsmith._rng import Streams
from cellsmith.benchmark._distillation.cases import EMBEDDED, REP, Cut, cut, labelled_counts, parted, read
from cellsmith.benchmark._distillation.compare import Recipe, missing, run_cut
from cellsmith.benchmark._distillation.ours import MATCHING, OneFit, distilled
from cellsmith.benchmark._distillation.peers import FULL, Candidate, pick
from cellsmith.benchmark._store import Store
from cellsmith.tl import sketch

__all__ = ["CONDITIONS", "FILES", "POOL", "SEEDS", "TECHNOLOGIES", "WITHIN", "transfer"]

TECHNOLOGIES, CONDITIONS = "pbmc_3tech", "kang_ifnb"
FILES = (TECHNOLOGIES, CONDITIONS, EMBEDDED)
LABELS, BATCH = "cell_type", "batch"
SEEDS = (1, 2, 3, 4, 5)
# Of every class; another seed leaves other cells out.
TRAIN_SHARE = 0.8
WITHIN = "scdd_within_batch"
POOL = ("scdd, pool without MLPs", "scdd, pool without MLPs, last")
"""Matching by linear networks alone: the iterate that held-out cells choose, and the last."""
PEERS = (FULL, "random", "herding", "metacell", "metacell_mean_log", "scdd", "scdd_readers")
WITHOUT_MLPS = ("linear", "cosine")


@dataclass(frozen=True)
class Task:
    """A file, the batches that are learnt from, and the one that is tested on."""

    file: str
    learnt: tuple[str, ...]
    tested: str

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.file}, tested on {self.tested}"


def tasks(adata: ad.AnnData, file: str) -> list[Task]:
    """Return one task a batch: it is tested on, the others are learnt from."""
    batches = sorted(adata.obs[BATCH].unique())
    return [Task(file, tuple(b for b in batches if b != tested), tested) for tested in batches]


def divided(adata: ad.AnnData, task: Task, seed: int) -> Cut:
    """Cut a file by its batches.

    Parameters
    ----------
    adata
        What :func:`labelled_counts` returned, with the batches.
    task
        What is learnt from and tested on.
    seed
        Seed of the cut: four fifths of the cells of every class are learnt from, and all cells of the other batch are
        tested on.
    """
    generator = Streams(seed).numpy("split")
    labels, batch = adata.obs[LABELS].to_numpy(), adata.obs[BATCH].astype(str).to_numpy()
    own = np.isin(batch, task.learnt)
    kept = []
    for name in np.unique(labels[own]):
        rows = generator.permutation(np.flatnonzero(own & (labels == name)))
        kept.append(rows[: int(np.ceil(TRAIN_SHARE * len(rows)))])
    train, test = np.sort(np.concatenate(kept)), np.flatnonzero(batch == task.tested)
    return parted(adata, LABELS, train=train, test=test, file=task.name, split=seed)


def metacells_within(train: ad.AnnData, n_per_class: int, rng: int) -> ad.AnnData:
    """Return means of groups of each class in each batch."""
    options = {"summary": "mean_log"}
    return sketch(
        train, LABELS, n_per_class, method="metacell", use_rep=REP, batch_key=BATCH, rng=rng, method_kwargs=options
    )


def candidates() -> dict[str, Candidate]:
    """Return the methods by name: those of the main table, and those of each batch by itself."""
    fit = OneFit(LABELS, batch_key=BATCH)
    within = partial(distilled, fit=fit, options={"within_batch": True})
    return {**pick(PEERS, labels_key=LABELS), "metacell_within_batch": metacells_within, WITHIN: within}


def pool_candidates() -> dict[str, Candidate]:
    """Return metacells and what matching makes of them by networks without a hidden layer."""
    fit = OneFit(LABELS, pool_kinds=WITHOUT_MLPS)
    ways = (MATCHING, {**MATCHING, "selection": "last"})
    ours = {name: partial(distilled, fit=fit, options=way) for name, way in zip(POOL, ways, strict=True)}
    return {**pick((FULL, "metacell", "metacell_mean_log"), labels_key=LABELS), **ours}


def cuts(directory: Path, file: str, seed: int) -> Iterator[Cut]:
    """Return the cuts of a file: one a batch, or for networks the one of the main table."""
    if file == EMBEDDED:
        data = labelled_counts(read(file, directory), LABELS, layer=None, batch_key=None)
        yield cut(data, LABELS, file=file, split=seed)
        return
    data = labelled_counts(read(file, directory), LABELS, layer=None, batch_key=BATCH)
    for task in tasks(data, file):
        yield divided(data, task, seed)


def transfer(
    directory: Path,
    *,
    store: Store,
    files: Sequence[str],
    seeds: Sequence[int],
    budgets: Sequence[int],
    recipe: Recipe,
) -> None:
    """Run what is not in the table yet.

    Parameters
    ----------
    directory
        The benchmark data directory.
    store
        Where the rows go; columns as in the main table.
    files
        Which of :data:`FILES`.
    seeds
        Seeds of the cuts.
    budgets
        Rows a class; within batches, of a class in each batch.
    recipe
        How sets are scored.
    """
    for seed in seeds:
        for file in files:
            for part in cuts(directory, file, seed):
                chosen = pool_candidates() if file == EMBEDDED else candidates()
                for one in missing(store, part.file, seed, methods=chosen, budgets=budgets):
                    store.add(run_cut(part, [one], chosen, recipe=recipe))
