"""The cells of the missingness section: what is deleted, who fills the gap, and how near each comes to the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import numpy.typing as npt

from cellsmith._rng import Streams
from cellsmith.demo._synthesis_cells import interferon_cells
from cellsmith.demo._synthesis_pictures import log_normalised

if TYPE_CHECKING:
    from cellsmith.model import BCPCA

__all__ = [
    "BC",
    "COMPLETE",
    "MEAN",
    "N_NEIGHBORS",
    "PAIRWISE",
    "REFINED",
    "ZERO",
    "Task",
    "delete_entries",
    "embed",
    "make_task",
    "place_new",
    "score",
]

COMPLETE, ZERO, MEAN, PAIRWISE = "complete data", "zeros filled in", "means filled in", "pairwise complete"
BC, REFINED = "BC-PCA", "BC-PCA, refined"
N_NEIGHBORS = 15

Array = npt.NDArray[np.float64]


@dataclass
class Task:
    """Cells with entries taken away, and what only the scoring may read.

    Parameters
    ----------
    adata
        Log-normalised values with NaN where an entry was deleted, dense float32, shape ``(n, D)``;
        ``.obs["cell_type"]``.
    complete
        The values before anything was deleted, (n, D).
    n_latent
        Components that everybody gets.
    embeddings
        Way -> place of the cells, (n, n_latent); filled by :func:`embed`.
    """

    adata: ad.AnnData
    complete: Array
    n_latent: int
    embeddings: dict[str, Array] = field(default_factory=dict)

    @property
    def observed(self) -> npt.NDArray[np.bool_]:
        """Which entries are left, (n, D)."""
        return ~np.isnan(self.adata.X)


def make_task(seed: int, *, quick: bool) -> Task:
    """Take every second cell of every type and its most variable genes, and delete entries.

    Parameters
    ----------
    seed
        Integer.
    quick
        True: about 300 cells and 300 genes.

    Returns
    -------
    The task; nothing is embedded yet.
    """
    whole, _ = interferon_cells(seed, quick=quick)
    order = np.argsort(whole.obs["cell_type"].cat.codes.to_numpy(), kind="stable")
    some = whole[np.sort(order[:: 3 if quick else 2])]
    x = log_normalised(some).toarray()
    genes = np.sort(np.argsort(-x.var(axis=0), kind="stable")[: 300 if quick else 1000])
    complete = x[:, genes]
    observed = delete_entries(complete.shape, Streams(seed).numpy("mask"))
    values = np.where(observed, complete, np.nan).astype(np.float32)
    adata = ad.AnnData(values, obs=some.obs[["cell_type", "condition"]].copy(), var=some.var.iloc[genes].copy())
    return Task(adata, complete, n_latent=5 if quick else 10)


def delete_entries(shape: tuple[int, int], generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Draw which entries stay: every cell and every gene has its own rate, and the value plays no part.

    Parameters
    ----------
    shape
        Cells and genes.
    generator
        Source of the draws.

    Returns
    -------
    True where the entry stays, (n, D): with probability sigmoid(a + b), a ~ N(0, 1) of the cell and b ~ N(-0.5, 1)
    of the gene; about 41 % of all.
    """
    n, d = shape
    a, b = generator.normal(0.0, 1.0, n), generator.normal(-0.5, 1.0, d)
    return np.asarray(generator.random(shape) < 1 / (1 + np.exp(-(a[:, None] + b))))


def embed(task: Task, seed: int, *, show_progress: bool = False) -> tuple[dict[str, float], bool]:
    """Embed the cells in every way that is compared.

    Parameters
    ----------
    task
        The cells; ``embeddings`` is filled.
    seed
        Integer.
    show_progress
        Draw the bars of the fits.

    Returns
    -------
    Way -> error on 5 % of the observed entries that were put aside (root mean square, log units), and whether the
    refinement was kept.
    """
    from sklearn.decomposition import PCA

    for name, values in ((COMPLETE, task.complete), (ZERO, np.nan_to_num(task.adata.X, nan=0.0))):
        pca = PCA(task.n_latent, svd_solver="randomized", random_state=seed)
        task.embeddings[name] = np.asarray(pca.fit_transform(np.asarray(values, dtype=np.float64)))
    plain = _fit(task, seed, show_progress=show_progress)
    plain.write(task.adata)
    slots = {MEAN: "X_bcpca_mean", PAIRWISE: "X_bcpca_pairwise", BC: "X_bcpca"}
    task.embeddings |= {name: np.asarray(task.adata.obsm[slot], dtype=np.float64) for name, slot in slots.items()}
    refined = _fit(task, seed, show_progress=show_progress, refine="prime", compare=False)
    task.embeddings[REFINED] = np.asarray(refined.get_latent_representation(), dtype=np.float64)
    table, outcome = task.adata.uns["bcpca"]["baselines"], refined.results().uns["refine"]
    names = {"bc": BC, "mean": MEAN, "pairwise": PAIRWISE}
    errors = {names[str(k)]: float(v) for k, v in zip(table["name"], table["heldout_error"], strict=True)}
    return errors | {REFINED: float(outcome["heldout_after"])}, bool(outcome["accepted"])


def _fit(task: Task, seed: int, *, show_progress: bool, **options: Any) -> BCPCA:
    from cellsmith.model import BCPCA

    BCPCA.setup_anndata(task.adata, mask="nan")
    # Every cell takes part in every way, also those with few entries left: all are scored on the same cells.
    model = BCPCA(task.adata, n_latent=task.n_latent, min_overlap=0.0, **options)
    model.train(seed=seed, accelerator="cpu", enable_progress_bar=show_progress)
    return model


def score(task: Task, seed: int) -> dict[str, dict[str, float]]:
    """Hold every embedding against the space of the complete data, and its clusters against the authors' types.

    Parameters
    ----------
    task
        With embeddings.
    seed
        Integer.

    Returns
    -------
    Way -> ``sin_theta``, ``recall`` (of the 15 nearest cells), ``ari`` (k-means into as many clusters as there are
    types, ten starts), ``follows`` (absolute rank correlation of the first axis with the observed share).
    """
    from scipy.stats import spearmanr
    from sklearn.cluster import KMeans

    from cellsmith.metrics import ari, subspace_error

    types = task.adata.obs["cell_type"].astype(str).to_numpy()
    truth, rate = task.embeddings[COMPLETE], task.observed.mean(axis=1)
    near = _nearest(truth, truth)
    found = {}
    for name, x in task.embeddings.items():
        clusters = KMeans(len(set(types)), n_init=10, random_state=seed).fit_predict(x)
        own = _nearest(x, x)
        found[name] = {
            "sin_theta": subspace_error(truth, x),
            "recall": float(np.mean([len(np.intersect1d(*pair)) for pair in zip(near, own, strict=True)]))
            / near.shape[1],
            "ari": ari(types, clusters.astype(str)),
            "follows": abs(float(spearmanr(x[:, 0], rate).statistic)),
        }
    return found


def _nearest(x: Array, among: Array, *, skip: int = 1) -> npt.NDArray[np.int64]:
    """Return the rows of ``among`` nearest to each row of ``x``, the first ``skip`` (the cell itself) left out."""
    from sklearn.neighbors import NearestNeighbors

    fit = NearestNeighbors(n_neighbors=N_NEIGHBORS + skip).fit(among)
    return np.asarray(fit.kneighbors(x, return_distance=False))[:, skip:]


def place_new(task: Task, seed: int) -> Mapping[str, float]:
    """Fit on four fifths of the cells, place the last fifth, and see whether it lands among its own types.

    Parameters
    ----------
    task
        With embeddings.
    seed
        Integer.

    Returns
    -------
    ``n_new``; ``placed``: share of the nearest fitted cells of a new cell that have its type; ``joint``: the same
    where the new cells took part in the fit; ``chance``: expected where cells lie at random.
    """
    types = task.adata.obs["cell_type"].astype(str).to_numpy()
    new = np.zeros(len(types), dtype=bool)
    new[Streams(seed).numpy("split").choice(len(types), len(types) // 5, replace=False)] = True
    part = Task(ad.AnnData(task.adata.X[~new], var=task.adata.var.copy()), task.complete[~new], task.n_latent)
    model = _fit(part, seed, show_progress=False, compare=False)
    later = np.asarray(model.get_latent_representation(ad.AnnData(task.adata.X[new], var=task.adata.var.copy())))
    fitted, joint = np.asarray(model.get_latent_representation()), task.embeddings[BC]
    shares = {
        name: float((types[~new][_nearest(x, among, skip=0)] == types[new][:, None]).mean())
        for name, x, among in (("placed", later, fitted), ("joint", joint[new], joint[~new]))
    }
    _, code, size = np.unique(types, return_inverse=True, return_counts=True)
    return {"n_new": float(new.sum()), **shares, "chance": float((size[code] / len(types)).mean())}
