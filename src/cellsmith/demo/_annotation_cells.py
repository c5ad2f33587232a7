"""The cells of the annotation section: who teaches, who is named, and what simple rivals make of the same scores."""

from __future__ import annotations

import io
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass, replace

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cellsmith._rng import Streams
from cellsmith.demo._context import Context
from cellsmith.demo._synthesis_cells import plain_copy
from cellsmith.demo._synthesis_pictures import log_normalised

__all__ = ["Task", "broken_promises", "few_labels", "rivals", "run_grit", "transfer", "with_anchors"]

N_LABELS, N_GENES = 5, 100
N_COMPONENTS = 30
CLUSTER_RESOLUTION = 5.0  # what CellTypist uses below 5,000 cells


@dataclass(frozen=True)
class Task:
    """Cells to be named and the scores that a classifier gave them.

    Parameters
    ----------
    adata
        The cells, with ``.obsm["X_pca"]`` (n, 30) and the authors' types in ``.obs["cell_type"]``.
    scores
        Probabilities of types, cells x types.
    judged
        (n,) bool: cells that taught nobody; all scores are over them.
    """

    adata: ad.AnnData
    scores: pd.DataFrame
    judged: np.ndarray


def _named(cells: ad.AnnData, components: np.ndarray) -> ad.AnnData:
    """Return a copy of the cells with their principal components."""
    adata = plain_copy(cells)
    adata.obsm["X_pca"] = components
    return adata


def _components(logs: sparse.csr_matrix, seed: int) -> np.ndarray:
    """Return principal components (n, 30) of log-normalised expression, as ``scanpy.pp.pca`` would."""
    from sklearn.decomposition import PCA

    model = PCA(N_COMPONENTS, random_state=seed, svd_solver="randomized")
    return np.asarray(model.fit_transform(logs.toarray()), dtype=np.float32)


def _classifier(logs: sparse.csr_matrix, types: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> pd.DataFrame:
    """Teach a logistic regression with the labelled rows; return its probabilities for all cells."""
    from sklearn.linear_model import LogisticRegression

    x = logs[:, columns].toarray()
    teacher = LogisticRegression(C=0.5, max_iter=1000).fit(x[rows], types[rows])
    return pd.DataFrame(teacher.predict_proba(x), columns=[str(c) for c in teacher.classes_])


def few_labels(adata: ad.AnnData, seed: int, *, draw: int = 0, all_genes: bool = False) -> Task:
    """Let five labelled cells of every type teach a classifier, which then scores all cells.

    Parameters
    ----------
    adata
        Counts with ``.obs["cell_type"]``.
    seed, draw
        Integers; each pair labels other cells and picks other genes.
    all_genes
        False: the classifier sees 100 genes picked at random; the graph always uses all.

    Returns
    -------
    The task; the labelled cells are not judged.
    """
    logs, types = log_normalised(adata), adata.obs["cell_type"].astype(str).to_numpy()
    generator = Streams(Streams(seed).integer("split", draw)).numpy("split")
    rows = np.concatenate(
        [generator.choice(np.flatnonzero(types == name), N_LABELS, replace=False) for name in sorted(set(types))]
    )
    genes = generator.choice(adata.n_vars, N_GENES, replace=False)
    scores = _classifier(logs, types, rows, np.arange(adata.n_vars) if all_genes else np.sort(genes))
    judged = np.ones(adata.n_obs, dtype=bool)
    judged[rows] = False
    return Task(_named(adata, _components(logs, seed)), scores.set_axis(adata.obs_names), judged)


def transfer(adata: ad.AnnData, seed: int, *, source: str) -> Task:
    """Let all cells of one condition teach a classifier that names the cells of the other.

    Parameters
    ----------
    adata
        Counts with ``.obs["cell_type"]`` and ``.obs["condition"]``.
    seed
        Integer.
    source
        The condition that teaches, ``"CTRL"`` or ``"STIM"``.

    Returns
    -------
    The task: cells of the other condition, with a graph of their own.
    """
    teaches = (adata.obs["condition"] == source).to_numpy()
    types = adata.obs["cell_type"].astype(str).to_numpy()
    logs = log_normalised(adata)
    scores = _classifier(logs, types, np.flatnonzero(teaches), np.arange(adata.n_vars))
    target = _named(adata[~teaches], _components(logs[~teaches], seed))
    return Task(target, scores[~teaches].set_axis(target.obs_names), np.ones(target.n_obs, dtype=bool))


def with_anchors(task: Task, seed: int, n: int) -> Task:
    """Reveal the type of ``n`` judged cells, drawn at random, in ``.obs["anchor"]``; they are then not judged.

    Parameters
    ----------
    task
        The task.
    seed
        Integer.
    n
        Number of cells whose type is revealed.

    Returns
    -------
    The task with fewer judged cells and a copy of ``adata``.
    """
    adata = task.adata.copy()
    chosen = Streams(seed).numpy("anchors").choice(np.flatnonzero(task.judged), n, replace=False)
    labels = np.full(adata.n_obs, "unknown", dtype=object)
    labels[chosen] = adata.obs["cell_type"].astype(str).to_numpy()[chosen]
    adata.obs["anchor"] = pd.Categorical(labels)
    judged = task.judged.copy()
    judged[chosen] = False
    return Task(adata, task.scores, judged)


def run_grit(context: Context, task: Task, *, anchors: bool = False) -> Task:
    """Refine the scores of a task with the defaults.

    Parameters
    ----------
    context
        Seed, and whether somebody watches.
    task
        The task.
    anchors
        Calibrate the confidence with ``.obs["anchor"]``; no cell is held at its label.

    Returns
    -------
    The task with a copy of ``adata`` that holds the results and, for reports on the classifier itself, its confidence
    in ``.obs["grit_raw_confidence"]`` (n,), no unit.
    """
    from cellsmith import tl

    labels_key = "anchor" if anchors else None
    with nullcontext() if context.shows_progress else redirect_stderr(io.StringIO()):
        adata = tl.grit(
            task.adata, task.scores, labels_key=labels_key, anchors="calibrate", copy=True, rng=context.seed
        )
    adata.obs["grit_raw_confidence"] = task.scores.max(axis=1).to_numpy()
    return replace(task, adata=adata)


def rivals(task: Task, seed: int) -> Task:
    """Let two simple methods refine the same scores on the same graph.

    Parameters
    ----------
    task
        A task that GRIT has refined, because its graph is used.
    seed
        Integer.

    Returns
    -------
    The task with a copy of ``adata`` and their names in ``.obs["knn"]`` and ``.obs["vote"]``, (n,) each.
    """
    from cellsmith.math.graph import leiden

    adata = task.adata.copy()
    graph, values = adata.obsp["grit_connectivities"], task.scores.to_numpy()
    names = task.scores.columns.to_numpy()
    adata.obs["knn"] = pd.Categorical(names[(graph @ values + values).argmax(axis=1)], categories=names)
    clusters = leiden(graph, resolution=CLUSTER_RESOLUTION, seed=seed)
    votes = np.zeros((clusters.max() + 1, len(names)))
    np.add.at(votes, (clusters, values.argmax(axis=1)), 1.0)
    adata.obs["vote"] = pd.Categorical(names[votes.argmax(axis=1)[clusters]], categories=names)
    return replace(task, adata=adata)


def broken_promises(task: Task, seed: int, *, level: float, delta: float, n_anchors: int, n_draws: int) -> np.ndarray:
    """Draw the anchors again and again, and measure the error among the accepted cells each time.

    Parameters
    ----------
    task
        A refined task; its judged cells are drawn from.
    seed
        Integer.
    level, delta, n_anchors
        The promise, as in :func:`cellsmith.tl.reject`, and how many cells are revealed.
    n_draws
        Number of draws.

    Returns
    -------
    Error rates of accepted cells that were not revealed, shape ``(n_draws,)``; NaN where no cell is accepted.
    """
    from cellsmith.model.grit.rejection import with_anchors as reject
    from cellsmith.model.grit.summary import shares

    calibration = task.adata.uns["grit"]["calibration"]
    # cells that set the scale of the confidence must not set the threshold, too
    pool = np.setdiff1d(np.flatnonzero(task.judged), calibration["fitted"])
    proba = shares(task.adata.obsm["grit_proba"], "prob", calibration.get("temperature"))[pool]
    truth = pd.Index(task.scores.columns).get_indexer(task.adata.obs["cell_type"].astype(str))[pool]
    wrong, generator = proba.argmax(axis=1) != truth, Streams(seed).numpy("repeats")
    errors = np.full(n_draws, np.nan)
    for i in range(n_draws):
        anchors = generator.choice(len(pool), n_anchors, replace=False)
        found = reject(proba, truth, anchors, target="selective", level=level, delta=delta)
        accepted = ~found.rejected
        accepted[anchors] = False
        if accepted.any():
            errors[i] = wrong[accepted].mean()
    return errors
