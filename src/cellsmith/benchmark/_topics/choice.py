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
from anndata import AnnData
from scipy import sparse

from cellsmith._rng import Streams
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._topics.cases import TUNING, Case, drawn, read
from cellsmith.benchmark._topics.conditions import cut, plant, stratified
from cellsmith.benchmark._topics.ours import Variant, as_fit, fit_model
from cellsmith.benchmark._topics.scoring import topic_scores
from cellsmith.math.topics import agreement, top_genes

__all__ = ["CANDIDATES", "FORMER", "ON_TOYS", "SELECTION", "TASK", "candidate", "chosen", "chosen_effect", "first_step"]
__all__ += ["second_step", "selection", "toys", "training"]

TASK, AGREEMENT = "choice of training", "agreement"
N_TOPICS, HELD_OUT, N_GENES, N_SPLITS = 20, 0.1, 10, 3
SEEDS = (0, 1, 2)
SELECTION, ON_TOYS, NOTHING = "choice of min_effect", "choice of min_effect, toys", "random halves"
EFFECTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
PLANTED_SEEDS, PLANTED_GENES, N_HALVES = (100, 101, 102), (15, 60), 20
TOY_TYPES, TOY_GENES = (3, 8), (10, 40)
MOST_BY_CHANCE, WITHIN_FOUND = 0.05, 0.02
WITHIN, MOST_REDUNDANCY = 0.01, 0.2


def candidate(weight: float, scale: str, epochs: int, *, temperature: float = 0.2) -> str:
    """Return the name of a candidate in the tables."""
    return f"ecr_weight {weight:g}, {scale}, {epochs} epochs, temperature {temperature:g}"


CANDIDATES: dict[str, Variant] = {
    candidate(w, s, e, temperature=t): Variant(
        {"ecr_weight": float(w), "decoder_scale": s, "topic_gene_temperature": t}, {"max_epochs": {"topics": e}}
    )
    for w, s, e, t in product((20, 100), ("free", "fixed"), (60, 100), (0.2, 0.1, 0.4))
}
"""Name -> what it differs in; the first step compares those with temperature 0.2, the second those of its winner."""
FORMER = candidate(100, "free", 100)
"""The default before the choice."""


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
        case = drawn(read(directory, file))
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


def first_step(present: str = FORMER) -> list[str]:
    """Return the candidates of the first step, the present default first."""
    names = [candidate(w, s, e) for w, s, e in product((20, 100), ("free", "fixed"), (60, 100))]
    return [present, *(name for name in names if name != present)]


def second_step(winner: str) -> list[str]:
    """Return the winner of the first step and the same with other temperatures."""
    return [winner, *(winner.replace("temperature 0.2", f"temperature {t:g}") for t in (0.1, 0.4))]


def selection(*, directory: Path, store: Store) -> None:
    """Plant responses in the tuning files, and record for every `min_effect` how many of their genes are predicted.

    Parameters
    ----------
    directory, store
        Data, where the rows go.
    """
    for file in TUNING:
        case = drawn(read(directory, file))
        for seed, n in product(PLANTED_SEEDS, PLANTED_GENES):
            if not store.has(task=SELECTION, file=file, seed=seed, variant=f"{n} genes"):
                part = SimpleNamespace(file=file, seed=seed)
                store.record(SELECTION, part, f"{n} genes", _found(case, seed, n))
        if not store.has(task=SELECTION, file=file, variant=NOTHING):
            store.record(SELECTION, SimpleNamespace(file=file, seed=0), NOTHING, _by_chance(case.cells.copy()))


def toys(*, store: Store) -> None:
    """Record the same on toys whose response is the same in every type.

    Parameters
    ----------
    store
        Where the rows go.
    """
    from cellsmith.datasets import toy_perturbation

    for seed, n_types, n in product(PLANTED_SEEDS, TOY_TYPES, TOY_GENES):
        file = f"toy of {n_types} types"
        if store.has(task=ON_TOYS, file=file, seed=seed, variant=f"{n} genes"):
            continue
        cells = toy_perturbation(900, 400, n_types=n_types, n_responding=n, rng=seed)
        kept = stratified(cells.obs, ["cell_type", "condition"], seed)
        train, test = cut(cells, kept, ~kept)
        names = set(cells.var_names[cells.var["response"] > 0])
        values = _predicted(train, test, names, "stim", "ctrl", seed=seed)
        part = SimpleNamespace(file=file, seed=seed)
        store.record(ON_TOYS, part, f"{n} genes", values)
        controls = cells[(cells.obs["condition"] == "ctrl").to_numpy()].copy()
        store.record(ON_TOYS, part, f"{NOTHING}, {n} genes", _by_chance(controls, seed))


def _found(case: Case, seed: int, n: int) -> dict[str, float]:
    """Plant n genes, and return what :func:`_predicted` says of them."""
    counts, treated, genes = plant(sparse.csr_matrix(case.cells.X), seed, n)
    cells = AnnData(counts, obs=case.cells.obs[[]].copy(), var=case.cells.var.copy())
    cells.obs["condition"] = np.where(treated, "treated", "untreated")
    kept = stratified(cells.obs, ["condition"], seed)
    train, test = cut(cells, kept, ~kept)
    return _predicted(train, test, set(cells.var_names[genes]), "treated", "untreated", seed=seed)


def _predicted(
    train: AnnData, test: AnnData, names: set[str], group: str, reference: str, *, seed: int
) -> dict[str, float]:
    """Return the share of genes among as many most raised ones, and how many topics are selected, for every value."""
    model, n = fit_model(train, N_TOPICS, seed), len(names)
    rows, values = np.flatnonzero((test.obs["condition"] == reference).to_numpy()), {}
    for effect in EFFECTS:
        frame = model.select_topics("condition", group, reference, min_effect=effect)
        values[f"selected {effect:g}"], values[f"found {effect:g}"] = float(len(frame)), 0.0
        if len(frame):
            raised = model.perturb_topics(test, indices=rows, topics=frame, op="swap_to_group").logfc.iloc[0]
            values[f"found {effect:g}"] = len(names & set(raised.nlargest(n).index)) / n
    return values


def _by_chance(cells: AnnData, seed: int = 0) -> dict[str, float]:
    """Return the share of random halves of unplanted cells in which a topic is selected, for every value."""
    rng = Streams(seed).numpy("halves")
    cells.obs["half"] = "one"
    model, hits = fit_model(cells, N_TOPICS, seed), np.zeros(len(EFFECTS))
    for _ in range(N_HALVES):
        cells.obs["half"] = np.where(rng.permutation(cells.n_obs) % 2, "one", "other")
        effects = model.select_topics("half", "one", "other", min_effect=0.0)["effect"].abs()
        hits += [(effects > effect).any() for effect in EFFECTS]
    return {f"selected {e:g}": float(v) for e, v in zip(EFFECTS, hits / N_HALVES, strict=True)}


def chosen_effect(table: pd.DataFrame, task: str = SELECTION) -> tuple[float, pd.DataFrame]:
    """Apply the rule for `min_effect`: the largest value within .02 of the best that does not select by chance.

    Parameters
    ----------
    table
        Rows of the task.
    task
        Whose rows: of the tuning files, or of the toys.

    Returns
    -------
    The value, and what the rule read: one row a value.
    """
    rows = table[table["task"] == task]
    means = rows.groupby([rows["variant"].str.startswith(NOTHING), "metric"])["value"].mean()
    out = pd.DataFrame(
        {
            "found": [means[False, f"found {e:g}"] for e in EFFECTS],
            "n_selected": [means[False, f"selected {e:g}"] for e in EFFECTS],
            "by_chance": [means[True, f"selected {e:g}"] for e in EFFECTS],
        },
        index=list(EFFECTS),
    )
    allowed = out[out["by_chance"] <= MOST_BY_CHANCE]
    return float(allowed.index[allowed["found"] >= allowed["found"].max() - WITHIN_FOUND].max()), out
