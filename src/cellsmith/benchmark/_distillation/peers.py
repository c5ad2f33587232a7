"""The ways to make few rows from many cells: ``(train, n_per_class, rng) -> AnnData``."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import anndata as ad
import numpy as np
from scipy import sparse

from cellsmith._errors import DataWarning, SetupError, nearest
from cellsmith._rng import Streams
from cellsmith.benchmark._distillation.cases import REP
from cellsmith.benchmark._distillation.expression import matched_expression
from cellsmith.benchmark._distillation.ours import ABLATION, COUNTS, OURS, our_methods
from cellsmith.math.counts import binomial_thin, library_totals
from cellsmith.math.matching import log_normalize, target_sum
from cellsmith.tl import sketch

__all__ = ["DEFAULT_PEERS", "EXTRA_PEERS", "FULL", "SHOWN", "Candidate", "built_in", "pick"]

Candidate = Callable[[ad.AnnData, int, int], ad.AnnData]

FULL = "full"
SELECTIONS = ("random", "herding", "kcenter", "kernel_herding", "geosketch")
DEFAULT_PEERS = (FULL, *SELECTIONS, "metacell", "metacell_mean_log", "scdd")
MATCHED = ("gradient", "distribution")
EXTRA_PEERS = (
    "random_global",
    "geosketch_global",
    "pseudobulk",
    "metacell_thin",
    "lowest_loss",
    "forest_value",
    "gradient_expression",
    "distribution_expression",
    "generator_samples",
)
SHOWN = (*DEFAULT_PEERS, *(name for name in OURS if name not in DEFAULT_PEERS), *COUNTS, *EXTRA_PEERS)


def full(train: ad.AnnData, n_per_class: int, rng: int) -> ad.AnnData:
    """Return all training cells."""
    return train


def by_sketch(
    train: ad.AnnData,
    n_per_class: int,
    rng: int,
    *,
    labels_key: str,
    method: str,
    summary: str | None = None,
) -> ad.AnnData:
    """Reduce every class by :func:`cellsmith.tl.sketch`."""
    options = {} if summary is None else {"summary": summary}
    return sketch(train, labels_key, n_per_class, method=method, use_rep=REP, rng=rng, method_kwargs=options)


def without_labels(train: ad.AnnData, n_per_class: int, rng: int, *, labels_key: str, method: str) -> ad.AnnData:
    """Choose as many cells from all of them at once; a class may get none."""
    n = min(train.n_obs, n_per_class * train.obs[labels_key].nunique())
    return sketch(train, None, n, method=method, use_rep=REP, rng=rng)


def pseudobulk(train: ad.AnnData, n_per_class: int, rng: int, *, labels_key: str) -> ad.AnnData:
    """Sum every class, whatever the budget."""
    return sketch(train, labels_key, 1, method="metacell", use_rep=REP, rng=rng)


def metacell_thin(train: ad.AnnData, n_per_class: int, rng: int, *, labels_key: str) -> ad.AnnData:
    """Thin metacells to the depth of a single cell, the median of their class."""
    rows = sketch(train, labels_key, n_per_class, method="metacell", use_rep=REP, rng=rng)
    depth = train.obs[[labels_key]].assign(total=library_totals(train.X)).groupby(labels_key, observed=True)
    wanted = depth["total"].median().reindex(rows.obs[labels_key].astype(str)).to_numpy()
    share = np.minimum(1.0, wanted / library_totals(rows.X))
    return ad.AnnData(
        binomial_thin(sparse.csr_matrix(rows.X), share, generator=Streams(rng).numpy("sample")),
        obs=rows.obs[[labels_key]].copy(),
        var=rows.var.copy(),
        uns={"sketch": dict(rows.uns["sketch"])},
    )


def lowest_loss(train: ad.AnnData, n_per_class: int, rng: int, *, labels_key: str) -> ad.AnnData:
    """Take the cells of each class that a classifier of all training cells finds easiest."""
    from sklearn.linear_model import LogisticRegression

    x, labels = _read(train, labels_key)
    teacher = LogisticRegression(C=1.0, max_iter=1000).fit(x, labels)
    own = teacher.predict_proba(x)[np.arange(len(x)), np.searchsorted(teacher.classes_, labels)]
    return _highest(train, own, labels, n_per_class)


def forest_value(train: ad.AnnData, n_per_class: int, rng: int, *, labels_key: str) -> ad.AnnData:
    """Take the cells of each class that trees which have not seen them are surest of."""
    from sklearn.ensemble import RandomForestClassifier

    x, labels = _read(train, labels_key)
    forest = RandomForestClassifier(oob_score=True, random_state=Streams(rng).integer("init")).fit(x, labels)
    votes = np.nan_to_num(forest.oob_decision_function_)
    own = votes[np.arange(len(x)), np.searchsorted(forest.classes_, labels)]
    return _highest(train, own, labels, n_per_class)


def _read(train: ad.AnnData, labels_key: str) -> tuple[np.ndarray, np.ndarray]:
    phi = log_normalize(train.X, scale=target_sum(train.n_vars))
    return phi.toarray().astype(np.float32), train.obs[labels_key].astype(str).to_numpy()


def _highest(train: ad.AnnData, value: np.ndarray, labels: np.ndarray, n: int) -> ad.AnnData:
    order = np.argsort(-value, kind="stable")
    chosen = np.concatenate([order[labels[order] == name][:n] for name in np.unique(labels)])
    return train[np.sort(chosen)].copy()


def built_in(labels_key: str) -> dict[str, Candidate]:
    """Return every built-in method by name, in the order of the tables."""
    of_class = {m: partial(by_sketch, labels_key=labels_key, method=m) for m in (*SELECTIONS, "metacell")}
    made = {
        FULL: full,
        **of_class,
        "metacell_mean_log": partial(by_sketch, labels_key=labels_key, method="metacell", summary="mean_log"),
        **our_methods(labels_key),
        "random_global": partial(without_labels, labels_key=labels_key, method="random"),
        "geosketch_global": partial(without_labels, labels_key=labels_key, method="geosketch"),
        "pseudobulk": partial(pseudobulk, labels_key=labels_key),
        "metacell_thin": partial(metacell_thin, labels_key=labels_key),
        "lowest_loss": partial(lowest_loss, labels_key=labels_key),
        "forest_value": partial(forest_value, labels_key=labels_key),
        **{f"{o}_expression": partial(matched_expression, labels_key=labels_key, objective=o) for o in MATCHED},
    }
    return {name: made[name] for name in (*SHOWN, *ABLATION)}


def pick(
    methods: Iterable[str], candidates: Mapping[str, Candidate] | None = None, *, labels_key: str
) -> dict[str, Candidate]:
    """Return functions by name.

    Parameters
    ----------
    methods
        Names of built-in methods.
    candidates
        Methods of the caller, which are run beside them.
    labels_key
        Column of ``.obs`` with the class.

    Raises
    ------
    SetupError
        For an unknown name, or a method of the caller that bears a built-in's name.
    """
    known, chosen = built_in(labels_key), {}
    for name in methods:
        if name not in known:
            raise SetupError(f"The method {name!r} is unknown. {nearest(name, known)}")
        if name.startswith("geosketch") and importlib.util.find_spec("geosketch") is None:
            warnings.warn(
                f"{name!r} is left out: geosketch is not installed. Type pip install 'cellsmith[sketch]'.",
                DataWarning,
                stacklevel=3,
            )
            continue
        chosen[name] = known[name]
    for name, made in (candidates or {}).items():
        if name in known:
            raise SetupError(f"candidates has the built-in name {name!r}; expected another one. Type '{name}_mine'.")
        chosen[name] = made
    if not chosen:
        raise SetupError("No method is left to run. Type for example methods=('full', 'random', 'metacell').")
    return chosen
