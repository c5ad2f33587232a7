"""How defaults are chosen: on the tuning files, without labels, by rules that the notes of the page state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellsmith._rng import Streams
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._topics.cases import TUNING, Case, read
from cellsmith.benchmark._topics.ours import Variant, as_fit, fit_model
from cellsmith.benchmark._topics.scoring import topic_scores
from cellsmith.math.topics import agreement, top_genes

__all__ = ["CANDIDATES", "FORMER", "TASK", "candidate", "chosen", "training", "tuning_case"]

TASK, AGREEMENT = "choice of training", "agreement"
N_TOPICS, N_CELLS, HELD_OUT, N_GENES, N_SPLITS = 20, 1_500, 0.1, 10, 3
SEEDS = (0, 1, 2)
WITHIN, MOST_REDUNDANCY = 0.01, 0.2


def candidate(weight: float, scale: str, epochs: int, temperature: float = 0.2) -> str:
    """Return the name of a candidate in the tables."""
    return f"ecr_weight {weight:g}, {scale}, {epochs} epochs, temperature {temperature:g}"


CANDIDATES: dict[str, Variant] = {
    candidate(w, s, e, t): Variant(
        {"ecr_weight": float(w), "decoder_scale": s, "topic_gene_temperature": t}, {"max_epochs": {"topics": e}}
    )
    for w, s, e, t in product((20, 100), ("free", "fixed"), (60, 100), (0.2, 0.1, 0.4))
}
"""Name -> what it differs in; the first step compares those with temperature 0.2, the second those of its winner."""
FORMER = candidate(100, "free", 100)
"""The default before the choice."""


def tuning_case(directory: Path, file: str) -> Case:
    """Return a tuning file, cut to 1,500 cells by a seeded draw."""
    case = read(directory, file)
    if case.cells.n_obs <= N_CELLS:
        return case
    return case.of(np.sort(Streams(0).numpy("cut").permutation(case.cells.n_obs)[:N_CELLS]))


def training(names: Iterable[str], *, directory: Path, store: Store) -> None:
    """Fit candidates on nine tenths of the cells of the tuning files, and record what the rule reads.

    Parameters
    ----------
    names
        Candidates.
    directory, store
        Data, where the rows go.
    """
    wanted = list(names)
    for file in TUNING:
        case = tuning_case(directory, file)
        for name in wanted:
            if store.has(task=TASK, file=file, variant=name, metric=AGREEMENT):
                continue
            found = [_scores(case, CANDIDATES[name], seed) for seed in SEEDS]
            for seed, (_, values) in zip(SEEDS, found, strict=True):
                store.record(TASK, SimpleNamespace(file=file, seed=seed), name, values)
            pairs = [agreement(a.T, b.T).mean() for (a, _), (b, _) in combinations(found, 2)]
            store.record(TASK, SimpleNamespace(file=file, seed=SEEDS[0]), name, {AGREEMENT: float(np.mean(pairs))})


def _scores(case: Case, variant: Variant, seed: int) -> tuple[npt.NDArray[Any], dict[str, float]]:
    """Return the loadings (V, K) of a fit, and its scores."""
    order = Streams(seed).numpy("held out").permutation(case.cells.n_obs)
    held, kept = np.split(order, [int(HELD_OUT * len(order))])
    part = case.of(np.sort(kept))
    model = fit_model(part.cells.copy(), N_TOPICS, seed, variant=variant)
    perplexity = model.get_perplexity(case.cells[np.sort(held)].copy(), n_splits=N_SPLITS, seed=0)
    loadings = as_fit(model).loadings[""]
    strongest = np.take_along_axis(loadings, top_genes(loadings.T, N_GENES).T, axis=0)
    values = topic_scores(part, loadings) | {"nats": float(np.log(perplexity)), "level": float(strongest.mean())}
    return loadings, values


def chosen(table: pd.DataFrame, names: Sequence[str], present: str) -> tuple[str, pd.DataFrame]:
    """Apply the rule.

    Parameters
    ----------
    table
        Rows of the task.
    names
        Candidates that are compared.
    present
        The default before.

    Returns
    -------
    The name of the winner, and what the rule read: one row a candidate.
    """
    means = table[table["task"] == TASK].groupby(["variant", "file", "metric"])["value"].mean().unstack()
    means["replicated"] = means["tq"] * means[AGREEMENT]
    files = {metric: means[metric].unstack().loc[list(names)] for metric in ("nats", "redundancy", "replicated")}
    near = (files["nats"] <= files["nats"].min() + WITHIN).all(axis=1)
    varied = (files["redundancy"] <= MOST_REDUNDANCY).all(axis=1)
    allowed = near & varied if (near & varied).any() else near
    allowed = allowed if allowed.any() else near | True
    score = files["replicated"].mean(axis=1)
    best = str(score[allowed].idxmax())
    better = bool((files["replicated"].loc[best] > files["replicated"].loc[present]).all())
    out = pd.DataFrame({"allowed": allowed, "near": near, "varied": varied, "score": score})
    for metric, values in files.items():
        out = out.join(values.add_prefix(f"{metric} "))
    return (best if better or not allowed[present] else present), out


def first_step() -> list[str]:
    """Return the candidates of the first step."""
    return [candidate(w, s, e) for w, s, e in product((20, 100), ("free", "fixed"), (60, 100))]


def second_step(winner: str) -> list[str]:
    """Return the winner of the first step and the same with other temperatures."""
    return [winner, *(winner.replace("temperature 0.2", f"temperature {t:g}") for t in (0.1, 0.4))]
