"""Side-by-side annotation: GRIT and its peers on the same scores and the same graph."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsmith._errors import SetupError, nearest
from cellsmith.benchmark._annotation import scoring
from cellsmith.benchmark._annotation.cases import Case, Cells, codes_of
from cellsmith.benchmark._annotation.peers import Method, pick, refine
from cellsmith.benchmark._store import TASKS, Store

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["annotation", "run_case"]

logger = logging.getLogger("cellsmith")


def run_case(case: Case, chosen: Mapping[str, Method], *, store: Store, prefix: str = "") -> None:
    """Run and score methods on one case; rows that exist are skipped.

    Parameters
    ----------
    case
        The case.
    chosen
        Method -> function.
    store
        Where the rows go.
    prefix
        Put before the name of the task.
    """
    task = prefix + case.task
    for name, method in chosen.items():
        if store.has(task=task, file=case.file, seed=case.seed, variant=name):
            continue
        started = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refined = refine(case, method)
        seconds = time.process_time() - started
        store.record(task, case, name, {**scoring.label_table(case, refined), "cpu_s": seconds})


def _scores(adata: AnnData, scores: Any, classes: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...], str]:
    """Return probabilities, class names and space of scores in any form that :func:`cellsmith.tl.grit` takes."""
    from cellsmith.model.grit.equations import infer_space, normalise_rows, to_scores
    from cellsmith.model.grit.inputs import check_scores, class_names, dense, reindexed, stored_classes
    from cellsmith.model.grit.sources import Scores

    space = "auto"
    if isinstance(scores, str):
        if scores not in adata.obsm:
            raise SetupError(f"`adata.obsm` has no {scores!r}. {nearest(scores, adata.obsm)}")
        classes = stored_classes(adata.uns, scores) if classes is None else classes
        scores = adata.obsm[scores]
    elif isinstance(scores, Scores):
        space, classes = scores.space, scores.classes
        cells, values = scores.obs_names, scores.values
        scores = values if cells is None else reindexed(values, cells, adata.obs_names, where="scores")
    if isinstance(scores, pd.DataFrame):
        scores = reindexed(scores, scores.index, adata.obs_names, where="scores")
    names = class_names(scores, classes, where="scores")
    found = dense(scores, where="scores").astype(np.float64)
    check_scores(found, obs_names=adata.obs_names, classes=names, where="scores")
    lost = np.isnan(found).any(axis=1)
    if lost.any():
        raise SetupError(f"Found {int(lost.sum())} cells without scores; expected scores for all that are compared.")
    space = infer_space(found) if space == "auto" else space
    if space == "similarity":
        raise SetupError("Found similarities; expected probabilities. Type from_embeddings(...), or scores / 0.05.")
    # peers average rows, so that all of them get probabilities
    return normalise_rows(to_scores(found, space)), names, space


def annotation(
    adata: AnnData,
    scores: Any,
    *,
    labels_key: str,
    classes: Sequence[str] | None = None,
    neighbors_key: str | None = None,
    use_rep: str = "X_pca",
    n_neighbors: int = 15,
    methods: str | Iterable[str] | Mapping[str, Method] = "all",
    seeds: Iterable[int] = (0,),
    name: str = "data",
    out: str | Path | None = None,
) -> pd.DataFrame:
    """Compare GRIT with its peers, or with a method of your own, on the scores of your own classifier.

    All methods get the same class probabilities and the same graph. The peers are the scores as they are, a majority
    vote in an over-clustering as CellTypist takes it, label spreading of the hard labels (a = 0.9), one-step means
    over the neighbours, and the defaults of scPRINT-2's refinement.

    Parameters
    ----------
    adata
        Cells, (n, G); expression is never read.
    scores
        Scores of shape (n, C): key of ``.obsm``, array, table, or what an adapter of GRIT returned.
    labels_key
        Column of ``.obs`` with the truth; cells without one are not scored, labels outside the classes are wrong.
    classes
        Names of the classes, for scores that carry none.
    neighbors_key
        Graph as scanpy names it; None builds one of `n_neighbors` (the cell itself included) in `use_rep`.
    use_rep
        Key of ``.obsm``; the vote's own clusters come from there, too.
    n_neighbors
        Neighbours of the graph that is built.
    methods
        ``"all"``, ``"peers"``, ``"grit"``, names, or a mapping name -> function ``(case) -> (n, C) scores`` that is
        run beside all the others; ``case.scores`` are the probabilities, ``case.cells.graph`` is the graph.
    seeds
        Seeds of what is random in a method (the vote's clusters).
    name
        What the table calls the data.
    out
        CSV file to append to; rows that it has are not run again. None: in memory.

    Returns
    -------
    One row a seed, method and metric: ``task, file, seed, variant, metric, value``. Accuracy, macro-F1 and recalls
    (``"recall <type>"`` and their mean, ``"rare_recall"``, of types with a share below 3 % and at least 10 cells) are
    shares, ``cpu_s`` is in CPU seconds.

    Raises
    ------
    SetupError
        For a key or a method that does not exist, for scores that do not fit, and if no cell has a label.

    Examples
    --------
    >>> table = cellsmith.benchmark.annotation(adata, "scores", labels_key="cell_type")  # doctest: +SKIP
    >>> mine = {"sharpened": lambda case: case.scores**2}  # doctest: +SKIP
    >>> table = cellsmith.benchmark.annotation(  # doctest: +SKIP
    ...     adata, "scores", labels_key="cell_type", methods=mine
    ... )
    """
    from cellsmith.model.grit.inputs import given_graph, read_graph, read_rep

    if labels_key not in adata.obs:
        raise SetupError(f"`adata.obs` has no column {labels_key!r}. {nearest(labels_key, adata.obs.columns)}")
    chosen = pick(methods)
    values, names, _ = _scores(adata, scores, classes)
    labelled = adata.obs[labels_key].notna().to_numpy()
    if not labelled.any():
        raise SetupError(f"None of the {adata.n_obs} cells has a label in `.obs[{labels_key!r}]`; expected some.")
    graph = None
    if neighbors_key is not None:
        found, key = given_graph(adata, neighbors_key)
        graph = read_graph(found, adata.n_obs, where=f".obsp[{key!r}]")[0]
    rep = read_rep(adata, use_rep) if graph is None or use_rep in adata.obsm else None
    cells = Cells(rep, graph, n_neighbors=n_neighbors)
    truth = codes_of(adata.obs[labels_key].to_numpy(dtype=object), names)
    store = Store(TASKS, None if out is None else Path(out))
    for seed in seeds:
        case = Case("own scores", name, int(seed), cells, values, names, truth, labelled)
        run_case(case, chosen, store=store)
    return store.table
