"""Walks between two types, and classifiers trained on generated cells."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from scipy import sparse

from cellsmith.benchmark._files import Split
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._synthesis.fits import Fits
from cellsmith.benchmark._synthesis.scoring import N_COMPONENTS, Judge
from cellsmith.metrics._cells import Space, log_normalise

__all__ = ["interpolation", "teaching"]


def interpolation(part: Split, fits: Fits, store: Store, *, ends: tuple[str, str]) -> None:
    """Walk from one type to another and read the place of every station from real cells.

    Parameters
    ----------
    part, fits, store
        Cut, models, results. ``spearman``: of the mean probability of the second end (logistic classifier of the two
        ends, real cells) with the weight. ``mid_share``: share of the cells at weights 0.3 to 0.7 whose log density
        lies above the 5th percentile of real test cells (0.95 would be real).
    ends
        Two categories of the label.
    """
    from scipy.stats import spearmanr
    from sklearn.linear_model import LogisticRegression

    key, model = part.labels_key, fits.get("scld")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        walk: Any = model.interpolate(*({key: end} for end in ends), seed=part.seed)
        step = walk.obs["scld_step"].to_numpy()
        middle = walk[(step > 0.29) & (step < 0.71)].copy()
        density = model.get_log_density(middle)
        floor = np.quantile(model.get_log_density(part.test.copy()), 0.05)
    log = log_normalise(sparse.csr_matrix(part.train.X))
    space = Space.fit(log, N_COMPONENTS, part.seed)
    labels = part.train.obs[key].astype(str).to_numpy()
    x, known = space.pca.transform(log), np.isin(labels, ends)
    teacher = LogisticRegression(C=0.1, max_iter=2000).fit(x[known], labels[known] == ends[1])
    score = teacher.predict_proba(space.pca.transform(log_normalise(sparse.csr_matrix(walk.X))))[:, 1]
    weights = np.unique(step)
    station = [score[step == w].mean() for w in weights]
    values = {"spearman": float(spearmanr(weights, station)[0]), "mid_share": float((density > floor).mean())}
    store.record("interpolation", part, f"{ends[0]} to {ends[1]}", values)


def teaching(part: Split, fits: Fits, store: Store) -> None:
    """Train a classifier on generated cells and test it on real ones, beside training on real ones.

    Parameters
    ----------
    part, fits, store
        Cut, models, results.
    """
    judge = Judge(part, metrics=("tstr", "tstr_ratio"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells = fits.get("scld").generate(part.train.n_obs, seed=part.seed, min_cells=1)
    values = {k: v for k, (v, _) in judge.score(cells).items() if k.startswith("tstr")}
    store.record("train on synthetic", part, "SCLD", values)
