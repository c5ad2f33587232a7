"""External views of known worth: noise, truth, other genes, the same genes, half of the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cellsmith._rng import Streams
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._topics.cases import BUNDLED, TUNING, Case, read
from cellsmith.benchmark._topics.ours import Variant, as_fit, fit_model
from cellsmith.benchmark._topics.scoring import cell_scores, topic_scores

__all__ = ["FRACTIONS", "OFF", "OTHER_GENES", "TASK", "graded", "noise", "views"]

TASK, GRADED, NOISE = "view", "graded view", "view of noise"
OFF = "no view"
OTHER_GENES = ("kang_ifnb", "pbmc_facs")
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
N_TOPICS, N_COMPONENTS, SPREAD = 20, 50, 0.3
DRAWS = range(20, 40)  # the first twenty showed that three standard deviations were too few
KEY = "X_view"
View = npt.NDArray[np.float32]


def truth(case: Case, rng: np.random.Generator) -> View:
    """Return types as one column each, with noise of standard deviation 0.3."""
    names = np.unique(np.asarray(case.labels, dtype=str))
    hot = (np.asarray(case.labels, dtype=str)[:, None] == names[None]).astype(np.float32)
    return np.asarray(hot + SPREAD * rng.normal(size=hot.shape), dtype=np.float32)


def noise_view(case: Case, rng: np.random.Generator) -> View:
    """Return Gaussian noise of as many columns as there are types."""
    return rng.normal(size=(case.cells.n_obs, case.n_types)).astype(np.float32)


def rows_right(case: Case, rng: np.random.Generator, share: float) -> View:
    """Return the truth in a share of the cells, and rows of other cells in the rest."""
    view = truth(case, rng)
    wrong = np.flatnonzero(rng.random(len(view)) >= share)
    view[wrong] = view[rng.permutation(wrong)]
    return view


def half_good(case: Case, rng: np.random.Generator) -> View:
    """Return the truth for every second type, noise for the cells of the others."""
    view, labels = truth(case, rng), np.asarray(case.labels, dtype=str)
    poor = np.isin(labels, np.unique(labels)[1::2])
    view[poor] = noise_view(case, rng)[poor] * view.std()
    return view


def half_present(case: Case, rng: np.random.Generator) -> View:
    """Return the truth for a random half of the cells, NaN for the others."""
    view = truth(case, rng)
    view[rng.random(len(view)) < 0.5] = np.nan
    return view


def components(x: sparse.csr_matrix, seed: int) -> View:
    """Return 50 principal components of log1p values (n, G)."""
    from sklearn.decomposition import TruncatedSVD

    return np.asarray(TruncatedSVD(N_COMPONENTS, random_state=seed).fit_transform(x), dtype=np.float32)


def same_genes(case: Case, rng: np.random.Generator) -> View:
    """Return components of the genes that the model has."""
    return components(case.log, int(rng.integers(2**31)))


def other_genes(case: Case, rng: np.random.Generator) -> View:
    """Return components of the genes that the model does not have: a second view of the same cells."""
    return components(case.others, int(rng.integers(2**31)))


VIEWS: dict[str, Callable[[Case, np.random.Generator], View]] = {
    "types and noise": truth,
    "same genes": same_genes,
    "half of the types": half_good,
    "half of the cells": half_present,
}


def _run(case: Case, view: View | None, name: str, *, task: str, seed: int, store: Store, gate: Any = None) -> None:
    """Train with a view, and score; rows that exist are skipped."""
    if store.has(task=task, file=case.file, seed=seed, variant=name):
        return
    cells = case.cells.copy()
    setup = {}
    if view is not None:
        cells.obsm[KEY], setup = view, {"external_obsm_key": KEY}
    model = fit_model(cells, N_TOPICS, seed, variant=Variant({} if gate is None else {"view_gate": gate}), **setup)
    quality = {} if view is None else model.get_view_quality().items()
    # "null" would be read back from the table as a missing value
    values = {{"null": "by_chance"}.get(k, k): float(v) for k, v in quality if np.isscalar(v)}
    fit = as_fit(model)
    values |= cell_scores(case, fit, seed) | topic_scores(case, fit.loadings[""])
    values["perplexity"] = float(model.get_perplexity())
    store.record(task, SimpleNamespace(file=case.file, seed=seed), name, values)


def views(
    seeds: Iterable[int], *, directory: Path, store: Store, files: Iterable[str] = (*TUNING, *OTHER_GENES)
) -> None:
    """Run the views of known worth on the tuning files, and components of other genes where there are other genes.

    Parameters
    ----------
    seeds
        Seeds of views and models.
    directory
        The benchmark data directory.
    store
        Where the rows go.
    files
        Names of files.
    """
    chosen_files = list(files)
    for seed in seeds:
        for file in chosen_files:
            case = read(directory, file)
            chosen = VIEWS if file in TUNING else {"other genes": other_genes}
            _run(case, None, OFF, task=TASK, seed=seed, store=store)
            for name, make in chosen.items():
                _run(case, make(case, Streams(seed).numpy(name)), name, task=TASK, seed=seed, store=store)


def graded(seeds: Iterable[int], *, directory: Path, store: Store, gates: Iterable[str] = ("explained",)) -> None:
    """Run views of which a growing share of rows is right, gated and ungated, on scanpy's bundled cells."""
    case = read(directory, BUNDLED)
    for seed in seeds:
        for share in FRACTIONS:
            view = rows_right(case, Streams(seed).numpy("rows"), share)
            for gate in (*gates, "off"):
                name = f"{share:g} right, gate {gate}"
                _run(case, view, name, task=GRADED, seed=seed, store=store, gate=gate)


def noise(*, directory: Path, store: Store, draws: Iterable[int] = DRAWS) -> None:
    """Draw views without any worth; the gate has to be 0 and the run bit-equal to one without a view."""
    case = read(directory, BUNDLED)
    plain: Any = None
    brief = Variant(train={"max_epochs": 1})
    for draw in draws:
        if store.has(task=NOISE, file=case.file, seed=draw):
            continue
        plain = as_fit(fit_model(case.cells.copy(), N_TOPICS, 0, variant=brief)) if plain is None else plain
        rng = Streams(draw).numpy("noise")
        for name, view in (("noise", noise_view(case, rng)), ("rows permuted", rng.permutation(truth(case, rng)))):
            cells = case.cells.copy()
            cells.obsm[KEY] = view
            model = fit_model(cells, N_TOPICS, 0, variant=brief, external_obsm_key=KEY)
            equal = all(np.array_equal(as_fit(model).spaces[k], plain.spaces[k]) for k in plain.spaces)
            values = {"q": float(model.get_view_quality()["q"]), "bit_equal": float(equal)}
            store.record(NOISE, SimpleNamespace(file=case.file, seed=draw), name, values)
