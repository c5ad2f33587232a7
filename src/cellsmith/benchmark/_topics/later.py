"""Cells that come later: mapped against jointly trained, with genes missing, and from a technology never seen."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from cellsmith._rng import Streams, isolated
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._topics.cases import FILES, Case, prepare, raw, read
from cellsmith.benchmark._topics.ours import DEFAULT, fit_model
from cellsmith.benchmark._topics.peers import EPOCHS, LDA, N_COMPONENTS, N_SAMPLES

__all__ = ["LATER", "MISSING", "TECHNOLOGY", "later", "technologies"]

LATER, MISSING, TECHNOLOGY = "20 % later", "30 % of genes missing", "technology left out"
TECHNOLOGY_FILE, LOGISTIC = "pbmc_3tech", "PCA 50, logistic regression"
N_TOPICS, N_NEIGHBORS, N_ALONE = 20, 15, 50


def vote(x: npt.NDArray[Any], labels: npt.NDArray[Any], query: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the label that most of the 15 nearest cells have, for each row of `query`."""
    from sklearn.neighbors import KNeighborsClassifier

    return np.asarray(KNeighborsClassifier(N_NEIGHBORS).fit(x, labels.astype(str)).predict(query))


def later(
    seeds: Iterable[int], *, directory: Path, store: Store, files: Iterable[str] = FILES, n_topics: int = N_TOPICS
) -> None:
    """Train on 80 % of the cells and map the rest, whole and with genes removed; beside it a fit of all cells."""
    for seed in seeds:
        for file in files:
            if store.has(task=LATER, file=file, seed=seed):
                continue
            case = read(directory, file)
            new = np.zeros(case.cells.n_obs, dtype=bool)
            rng = Streams(seed).numpy("later")
            new[rng.permutation(len(new))[: len(new) // 5]] = True
            joint = fit_model(case.cells.copy(), n_topics, seed).get_latent_representation()
            model = fit_model(case.cells[~new].copy(), n_topics, seed)
            _record(case, new, model, joint, rng=rng, seed=seed, store=store)


def _record(
    case: Case, new: npt.NDArray[np.bool_], model: Any, joint: Any, *, rng: np.random.Generator, seed: int, store: Store
) -> None:
    labels = np.asarray(case.labels, dtype=str)
    query, known = case.cells[new].copy(), model.get_latent_representation()
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    theta = np.asarray(model.map_query(query).theta)
    alone = np.vstack([np.asarray(model.map_query(query[[i]].copy()).theta) for i in range(min(N_ALONE, len(query)))])
    same = all(bool((before[k] == v).all()) for k, v in model.module.state_dict().items())
    right = labels[new]

    def accuracy(x: Any, fitted: Any) -> float:
        return float((vote(fitted, labels[~new], x) == right).mean())

    part = SimpleNamespace(file=case.file, seed=seed)
    mapped = accuracy(theta, known)
    values = {"accuracy": mapped, "accuracy_joint": accuracy(joint[new], joint[~new])}
    values |= {"alone": float(np.abs(alone - theta[: len(alone)]).max()), "unchanged": float(same)}
    store.record(LATER, part, DEFAULT, values)
    kept = np.sort(rng.permutation(query.n_vars)[: round(0.7 * query.n_vars)])
    for fill in ("zero", "mean"):
        answer = model.map_query(query[:, kept].copy(), fill=fill)
        values = {"accuracy": accuracy(np.asarray(answer.theta), known), "accuracy_whole": mapped}
        store.record(MISSING, part, f"fill {fill}", {**values, "overlap": float(np.mean(answer.gene_overlap))})


def technologies(seeds: Iterable[int], *, directory: Path, store: Store, n_topics: int = N_TOPICS) -> None:
    """Leave each technology out in turn, and name its cells by their neighbours in the space of the others."""
    from scvi.model import AmortizedLDA
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    case = prepare(raw(directory, TECHNOLOGY_FILE), file=TECHNOLOGY_FILE)
    labels, technology = np.asarray(case.labels, dtype=str), case.obs["batch"].astype(str).to_numpy()
    for seed in seeds:
        for held in np.unique(technology):
            task, new = f"{TECHNOLOGY}, {held}", technology == held
            if store.has(task=task, file=case.file, seed=seed, variant=LOGISTIC):
                continue
            old, query = case.cells[~new].copy(), case.cells[new].copy()
            model = fit_model(old.copy(), n_topics, seed)
            named = {DEFAULT: vote(model.get_latent_representation(), labels[~new], model.map_query(query).theta)}
            with isolated(seed):
                AmortizedLDA.setup_anndata(old)
                lda = AmortizedLDA(old, n_topics=n_topics)
                lda.train(max_epochs=EPOCHS, accelerator="cpu", enable_progress_bar=False, logger=False)
                spaces = [lda.get_latent_representation(a, n_samples=N_SAMPLES).to_numpy() for a in (old, query)]
            named[LDA] = vote(spaces[0], labels[~new], spaces[1])
            x = case.log.toarray()
            components = PCA(N_COMPONENTS, random_state=seed).fit(x[~new])
            reduced = components.transform(x)
            named[LOGISTIC] = LogisticRegression(max_iter=3000).fit(reduced[~new], labels[~new]).predict(reduced[new])
            for name, found in named.items():
                values = {"macro_f1": float(f1_score(labels[new], found, average="macro", zero_division=0))}
                values["accuracy"] = float((found == labels[new]).mean())
                store.record(task, SimpleNamespace(file=case.file, seed=seed), name, values)
