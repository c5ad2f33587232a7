"""Gene sets that topics are enriched in: scE2TM's beside those of NMF."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cellsmith.benchmark._store import Store
from cellsmith.benchmark._topics.cases import read
from cellsmith.benchmark._topics.conditions import INTERFERON, cells_of
from cellsmith.benchmark._topics.fits import Fits
from cellsmith.benchmark._topics.ours import DEFAULT, fit_model
from cellsmith.benchmark._topics.peers import NMF
from cellsmith.math.enrichment import benjamini_hochberg, over_representation, parse_gmt, sets_within
from cellsmith.math.topics import top_genes

__all__ = ["COLLECTIONS", "SELECTED", "TASK", "enriched", "triple"]

TASK, SELECTED = "enriched sets", "selected topics"
COLLECTIONS = {
    "Hallmark": "h.all.v7.0.symbols.gmt",
    "Reactome": "c2.cp.reactome.v6.2.symbols.gmt",
    "GO BP": "GO_BP_2021.gmt",
}
FILES, SWITCHED = ("pbmc_facs", "kang_ifnb"), "kang_ifnb"
N_TOPICS, N_GENES, LEVEL, MIN_SIZE, MAX_SIZE = 20, 10, 0.01, 3, 500


def read_sets(directory: Path, collection: str, genes: Any) -> dict[str, tuple[str, ...]]:
    """Return the sets of a collection within the modelled genes, 3 to 500 of them."""
    with (directory / "genesets" / COLLECTIONS[collection]).open(encoding="utf-8") as lines:
        return sets_within(parse_gmt(lines), list(genes), min_size=MIN_SIZE, max_size=MAX_SIZE)[0]


def top_lists(loadings: np.ndarray, genes: Any) -> list[list[str]]:
    """Return the ten genes of the largest loading of each topic."""
    return [np.asarray(genes, dtype=object)[row].tolist() for row in top_genes(loadings.T, N_GENES)]


def triple(lists: list[list[str]], sets: dict[str, tuple[str, ...]], genes: Any) -> dict[str, float]:
    """Return how many (topic, set) pairs pass, how many distinct sets, and their quotient (T33)."""
    adjusted = benjamini_hochberg(over_representation(lists, sets, list(genes)).p)
    hit = adjusted <= LEVEL
    n, unique = int(hit.sum()), int(hit.any(axis=0).sum())
    return {"n_enriched": float(n), "n_unique": float(unique), "unique_ratio": unique / n if n else float("nan")}


def enriched(seeds: Iterable[int], *, directory: Path, store: Store, fits: Fits) -> None:
    """Count enriched sets of the topics of both methods, and rank the interferon sets in the selected topics.

    Parameters
    ----------
    seeds
        Seeds of the fits.
    directory, store, fits
        Data, where the rows go, fits.
    """
    for file in FILES:
        case = read(directory, file)
        genes = case.cells.var_names
        for collection in COLLECTIONS:
            sets = read_sets(directory, collection, genes)
            for seed in seeds:
                for name in (DEFAULT, NMF):
                    task = f"{TASK}, {collection}"
                    if store.has(task=task, file=file, seed=seed, variant=name):
                        continue
                    lists = top_lists(fits.get(case, name, n_topics=N_TOPICS, seed=seed).loadings[""], genes)
                    store.record(task, SimpleNamespace(file=file, seed=seed), name, triple(lists, sets, genes))
    case = read(directory, SWITCHED)
    sets = read_sets(directory, "Hallmark", case.cells.var_names)
    for seed in seeds:
        if store.has(task=SELECTED, file=SWITCHED, seed=seed):
            continue
        model = fit_model(cells_of(case), N_TOPICS, seed)
        frame = model.select_topics("condition", "STIM", "CTRL")
        up = frame.index[frame["effect"] > 0]
        lists = [model.get_top_genes(n=N_GENES)[topic].tolist() for topic in up]
        values = {"n_selected": float(len(frame)), "n_up": float(len(up))}
        if lists:
            best = over_representation(lists, sets, case.cells.var_names.tolist()).p.min(axis=0)
            order = [list(sets)[i] for i in np.argsort(best, kind="stable")]
            values |= {f"rank {t}": float(order.index(t) + 1) for t in INTERFERON if t in order}
        store.record(SELECTED, SimpleNamespace(file=SWITCHED, seed=seed), DEFAULT, values)
