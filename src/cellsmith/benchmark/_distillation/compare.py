"""Run the benchmark of distilled sets, on a protocol file or on data of one's own."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd

from cellsmith._errors import DataWarning, SetupError
from cellsmith._rng import Streams, resolve_seed
from cellsmith.benchmark._distillation.cases import Cut, Reading, cut, labelled_counts
from cellsmith.benchmark._distillation.peers import DEFAULT_PEERS, FULL, Candidate, pick
from cellsmith.benchmark._distillation.recipe import MODELS, check_models
from cellsmith.benchmark._distillation.scoring import NO_MODEL, readings, score, soft_labels, teacher
from cellsmith.benchmark._store import Store

__all__ = ["COLUMNS", "Recipe", "distillation", "run_cut", "score_distilled", "with_retention"]

logger = logging.getLogger("cellsmith")

COLUMNS = ("file", "split", "method", "budget", "model", "metric", "value")
METRICS = ("core", "all")


class Recipe:
    """What is the same for every row of a table.

    Parameters
    ----------
    models
        Names of classifiers.
    n_seeds
        Repetitions of what is random in a classifier.
    metrics
        "core" or "all".
    soft
        Teach "lr" and "mlp" with soft labels, too.
    seed
        Seed of methods and classifiers.
    """

    def __init__(
        self,
        models: Iterable[str] = MODELS,
        *,
        n_seeds: int = 5,
        metrics: str = "core",
        soft: bool = False,
        seed: int = 0,
    ) -> None:
        if metrics not in METRICS:
            raise SetupError(f"metrics={metrics!r}; expected 'core' or 'all'.")
        self.models, self.n_seeds, self.metrics, self.soft, self.seed = (
            check_models(models),
            n_seeds,
            metrics,
            soft,
            seed,
        )

    def rows(self, made: ad.AnnData, reading: Reading, probabilities: Any) -> list[dict[str, Any]]:
        """Score one distilled set; mappings ``model, metric, value``."""
        soft = None if probabilities is None else soft_labels(made, reading, probabilities)
        out = score(made, reading, models=self.models, n_seeds=self.n_seeds, soft=soft, seed=self.seed)
        found = readings(made, reading, metrics=self.metrics, seed=self.seed)
        return out + [{"model": NO_MODEL, "metric": name, "value": value} for name, value in found.items()]


def run_cut(
    part: Cut, todo: Sequence[tuple[str, int]], chosen: Mapping[str, Candidate], *, recipe: Recipe
) -> list[dict[str, Any]]:
    """Run methods on one cut.

    Parameters
    ----------
    part
        The cut.
    todo
        (method, rows a class) to run; 0 rows a class means all cells.
    chosen
        Functions by name.
    recipe
        How they are scored.

    Returns
    -------
    Rows of the table.
    """
    rows: list[dict[str, Any]] = []
    probabilities = teacher(part.reading) if recipe.soft else None
    seed = Streams(recipe.seed).integer("sample", part.split)
    for name, budget in todo:
        clock, processor = time.perf_counter(), time.process_time()
        made = chosen[name](part.reading.train, budget, seed)
        cost = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - processor}
        found = recipe.rows(made, part.reading, probabilities)
        found += [{"model": NO_MODEL, "metric": metric, "value": value} for metric, value in cost.items()]
        head = {"file": part.file, "split": part.split, "method": name, "budget": budget}
        rows += [{**head, **row} for row in found]
        accuracy = {r["model"]: round(r["value"], 3) for r in found if r["metric"] == "accuracy"}
        logger.info("%s, split %d, %s, %d a class: %s", part.file, part.split, name, budget, accuracy)
    return rows


def missing(store: Store, file: str, split: int, *, methods: Iterable[str], budgets: Iterable[int]) -> list[Any]:
    """Return the (method, budget) of one cut that a table does not have yet."""
    wanted = [(m, b) for m in methods for b in ((0,) if m == FULL else budgets)]
    return [(m, b) for m, b in wanted if not store.has(file=file, split=split, method=m, budget=b)]


def with_retention(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with ``retention`` = accuracy over that of all training cells, same cut and classifier."""
    accuracy = table[table["metric"] == "accuracy"]
    keys = ["file", "split", "model"]
    # A classifier of soft labels is compared with that of hard ones.
    plain = accuracy.assign(model=accuracy["model"].str.removesuffix("_soft"))
    reference = accuracy[accuracy["method"] == FULL].set_index(keys)["value"]
    ratio = plain["value"].to_numpy() / reference.reindex(pd.MultiIndex.from_frame(plain[keys])).to_numpy()
    new = accuracy.assign(metric="retention", value=ratio).dropna(subset="value")
    return pd.concat([table, new], ignore_index=True) if len(new) else table


def distillation(
    adata: ad.AnnData,
    labels_key: str,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    methods: Iterable[str] = DEFAULT_PEERS,
    candidates: Mapping[str, Candidate] | None = None,
    budgets: Iterable[int] = (1, 5, 10),
    n_splits: int = 20,
    split_seed: int = 1,
    test_size: float = 0.3,
    models: Iterable[str] = MODELS,
    n_seeds: int = 5,
    metrics: str = "core",
    soft: bool = False,
    n_jobs: int = 1,
    rng: Any = 0,
    name: str = "data",
    out: str | Path | None = None,
) -> pd.DataFrame:
    """Compare ways to reduce a labelled data set by what classifiers learn from the reduced one.

    Cells are cut into training and test cells, class by class; every method sees the training cells alone and returns
    a few rows a class; five classifiers that are never tuned learn from them and name the test cells. The bar is the
    better of the two metacells, not random cells.

    Parameters
    ----------
    adata
        Cells with raw counts, (n, G); cells without a label are left out.
    labels_key
        Column of ``.obs`` with the class.
    layer
        Layer with the counts; None is ``.X``.
    batch_key
        Column of ``.obs`` that methods may read, too.
    methods
        Built-in methods: "full" (all training cells), "random", "herding", "kcenter", "kernel_herding", "geosketch",
        "metacell", "metacell_mean_log", "scdd" (a minute of training a cut); further "scdd_readers" (optimised),
        "scdd_codes_only", "scdd_paper", "scdd_counts" and "scdd_thin" (read by integer counts, the latter at the depth
        of one cell), "generator_samples" (not optimised), "gradient_expression" and "distribution_expression"
        (matching of real cells without a generator), "random_global", "geosketch_global" (without labels),
        "pseudobulk", "metacell_thin" (at the depth of one cell), "lowest_loss", "forest_value".
    candidates
        Your own: name -> function ``(train, n_per_class, rng) -> AnnData`` with the genes and labels of ``train``,
        whose ``.X`` holds the counts and ``.obsm["X_pca"]`` 50 principal components. Where the answer has a layer
        ``<key>_log`` of a sketch or of SCDD, classifiers read that, else the logarithm of normalised counts.
    budgets
        Rows a class.
    n_splits
        Cuts; a difference of 0.01 needs 20 or more.
    split_seed
        Seed of the first cut; the others follow. Seed 0 was used when the protocol was made.
    test_size
        Share of the cells that are tested on.
    models
        Classifiers: "lr", "mlp", "knn1", "forest", "centroid".
    n_seeds
        Repetitions of those that are random ("mlp", "forest"); their scores are means.
    metrics
        "core", or "all" with the scores of :mod:`cellsmith.metrics.distillation`, too.
    soft
        Teach "lr" and "mlp" also with class probabilities from one teacher (``"lr_soft"``, ``"mlp_soft"``).
    n_jobs
        Cuts that run at the same time.
    rng
        Seed of methods and classifiers.
    name
        What the table calls the data.
    out
        CSV file to append to; rows that it has are not run again. None: in memory.

    Returns
    -------
    One row a cut, method, budget, classifier and metric: ``file, split, method, budget, model, metric, value``; budget
    0 is "full". Accuracy, balanced accuracy, macro-F1, recalls (``"recall <class>"``, and ``"rare_recall"``, the mean
    of classes with at most 2 % of the cells or 20 cells) and ``retention`` (over "full") are shares; with model ``"-"``
    stand rows, bytes of the counts and seconds. :func:`cellsmith.pl.distillation` draws it.

    Raises
    ------
    SetupError
        For columns, counts or names that cannot be used.

    Examples
    --------
    >>> table = cellsmith.benchmark.distillation(adata, "cell_type", n_splits=5)  # doctest: +SKIP
    >>> mine = {"first": lambda train, n, rng: train[:n]}  # doctest: +SKIP
    >>> table = cellsmith.benchmark.distillation(adata, "cell_type", candidates=mine)  # doctest: +SKIP
    """
    recipe = Recipe(models, n_seeds=n_seeds, metrics=metrics, soft=soft, seed=resolve_seed(rng))
    chosen = pick(methods, candidates, labels_key=labels_key)
    data = labelled_counts(adata, labels_key, layer=layer, batch_key=batch_key)
    store = Store(COLUMNS, None if out is None else Path(out))
    splits = range(split_seed, split_seed + n_splits)
    work = [(s, missing(store, name, s, methods=chosen, budgets=tuple(budgets))) for s in splits]

    def run(split: int, todo: list[Any]) -> list[dict[str, Any]]:
        part = cut(data, labels_key, file=name, split=split, test_size=test_size)
        return run_cut(part, todo, chosen, recipe=recipe)

    from joblib import Parallel, delayed

    for rows in Parallel(n_jobs=n_jobs, return_as="generator")(delayed(run)(s, todo) for s, todo in work if todo):
        store.add(rows)
    return with_retention(store.table)


def score_distilled(
    train: ad.AnnData,
    test: ad.AnnData,
    candidates: Mapping[str, ad.AnnData],
    *,
    labels_key: str,
    layer: str | None = None,
    models: Iterable[str] = MODELS,
    n_seeds: int = 5,
    soft: bool = False,
    rng: Any = 0,
) -> pd.DataFrame:
    """Score distilled sets that are already there, with the recipe of :func:`distillation`.

    Parameters
    ----------
    train, test
        Cells with raw counts, (n, G) and (m, G), of the same genes; ``train`` sets the classes, the genes that are read
        (the 2,000 most variable where there are more) and the bar, "full".
    candidates
        Name -> distilled set with the same genes and ``labels_key``.
    labels_key
        Column of ``.obs`` with the class, in all of them.
    layer
        Layer with the counts, in all of them; None is ``.X``.
    models, n_seeds, soft, rng
        As in :func:`distillation`.

    Returns
    -------
    One row a set, classifier and metric: ``method, model, metric, value``. A test cell with a label that ``train``
    lacks counts as an error; such labels are named in a warning.

    Raises
    ------
    SetupError
        If genes differ, or a set has no labels or labels that ``train`` lacks.

    Examples
    --------
    >>> small = cellsmith.tl.sketch(train, "cell_type", 5, method="metacell")  # doctest: +SKIP
    >>> cellsmith.benchmark.score_distilled(train, test, {"mine": small}, labels_key="cell_type")  # doctest: +SKIP
    """
    recipe = Recipe(models, n_seeds=n_seeds, soft=soft, seed=resolve_seed(rng))
    for what, rows in {"train": train, "test": test, **candidates}.items():
        if labels_key not in rows.obs or rows.obs[labels_key].isna().any():
            raise SetupError(f"{what!r} lacks .obs[{labels_key!r}], or has cells without a label; expected one a row.")
        if list(rows.var_names) != list(train.var_names):
            raise SetupError(f"{what!r} has other genes than 'train'; expected the same, in that order.")
    if FULL in candidates:
        raise SetupError(f"candidates has the name {FULL!r}, which stands for 'train' itself; expected another one.")
    reading = Reading(train, test, labels_key=labels_key, layer=layer)
    unknown = sorted(set(test.obs[labels_key].astype(str)) - set(reading.classes))
    if unknown:
        warnings.warn(
            f"{len(unknown)} labels of the test cells are not in 'train' and count as errors: {unknown[:8]}.",
            DataWarning,
            stacklevel=2,
        )
    probabilities = teacher(reading) if soft else None
    rows = [
        {"method": name, **row}
        for name, made in {FULL: train, **candidates}.items()
        for row in recipe.rows(made, reading, probabilities)
    ]
    table = pd.DataFrame(rows, columns=["method", "model", "metric", "value"])
    return with_retention(table.assign(file="", split=0))[table.columns]
