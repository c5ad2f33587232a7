"""Cells that come later, and one set of more than 10,000 cells through the whole door and two file formats."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cellsmith._rng import Streams
from cellsmith.benchmark._annotation.cases import Case, codes_of, neighbor_graph
from cellsmith.benchmark._annotation.transfer import FEW, Prepared, classifier, few_cells, prepare
from cellsmith.benchmark._files import load
from cellsmith.benchmark._store import Store

__all__ = ["BIG", "full_door", "later_cells", "left_out", "self_query"]

BIG = "kang_ctrl_8donors"
SHARE = 0.2
N_ANCHORS = 300


def later_cells(case: Case, *, store: Store) -> None:
    """Leave 20 % of the cells out of the graph, ask for them afterwards, and compare with the joint solve.

    Parameters
    ----------
    case
        Cells with scores.
    store
        Gets the share of left-out cells with the label of the joint solve, and their accuracy in both.
    """
    if store.has(task="20 % later", file=case.file, seed=case.seed, variant="GRIT"):
        return
    joint, later, new = left_out(case)
    values = {"agreement": float((joint == later).mean())}
    values |= {"accuracy_joint": float((joint == case.truth[new]).mean())}
    values |= {"accuracy_later": float((later == case.truth[new]).mean())}
    values |= {"accuracy_raw": float((case.scores[new].argmax(axis=1) == case.truth[new]).mean())}
    store.record("20 % later", case, "GRIT", values)


def _trained(cells: ad.AnnData, **options: Any) -> Any:
    from cellsmith.model import GRIT

    GRIT.setup_anndata(cells, scores_key="scores")
    model = GRIT(cells, space="prob", **options)
    model.train(accelerator="cpu")
    return model


def _cells(case: Case) -> ad.AnnData:
    cells = case.skeleton()
    cells.obsm["scores"] = pd.DataFrame(case.scores, index=cells.obs_names, columns=list(case.classes))
    return cells


def left_out(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels (m,) of the left-out cells in the joint solve and as later queries, and the positions of these."""
    rng = Streams(case.seed).numpy("left out")
    n = len(case.scores)
    new = np.sort(rng.choice(n, round(SHARE * n), replace=False))
    everyone = _cells(case)
    old = np.setdiff1d(np.arange(n), new)
    joint = _trained(everyone).predict().to_numpy()[new]
    later = _trained(everyone[old].copy()).predict(everyone[new].copy()).to_numpy()
    return codes_of(joint, case.classes), codes_of(later, case.classes), new


def self_query(case: Case, *, store: Store) -> None:
    """Ask for the training cells with the rows of the graph as their neighbours: Eq. 7 must give back P.

    Parameters
    ----------
    case
        Cells with scores.
    store
        Gets the largest difference for each Laplacian.
    """
    from cellsmith.math import solve

    weights = neighbor_graph(case.cells.rep, case.cells.n_neighbors) if case.cells.rep is not None else case.cells.graph
    degree = np.asarray(weights.sum(axis=1)).ravel()
    for laplacian in ("sym", "rw", "comb"):
        name = f"self-query, {laplacian}"
        if store.has(task="self-query", file=case.file, seed=case.seed, variant=name):
            continue
        problem = solve.system(weights, laplacian=laplacian, smoothness_weight=5.0)
        p = solve.solve(problem, problem.right_hand_side(case.scores), solver="cg", tol=1e-10).x
        again = solve.extend(weights, p, degree=degree, scores=case.scores, laplacian=laplacian, smoothness_weight=5.0)
        store.record("self-query", case, name, {"difference": float(np.abs(again - p).max())})


def differences(a: ad.AnnData, b: ad.AnnData) -> list[str]:
    """Name what differs between two objects in the slots that GRIT writes."""
    wrong = [f".obs[{key!r}]" for key in a.obs if key not in b.obs or not _equal(a.obs[key], b.obs[key])]
    for slot in ("obsm", "obsp", "uns"):
        mine, theirs = dict(getattr(a, slot)), dict(getattr(b, slot))
        wrong += [f".{slot}[{key!r}]" for key in mine if key not in theirs or not _equal(mine[key], theirs[key])]
    return wrong


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if sparse.issparse(a):
        return sparse.issparse(b) and a.shape == b.shape and abs(sparse.csr_matrix(a) - sparse.csr_matrix(b)).nnz == 0
    if isinstance(a, pd.Series):
        kinds = [isinstance(side.dtype, pd.CategoricalDtype) for side in (a, b)]
        return kinds[0] == kinds[1] and _equal(a.to_numpy(), b.to_numpy())
    left, right = np.asarray(a), np.asarray(b)
    if left.shape != right.shape:
        return False
    if left.dtype.kind in "biuf" and right.dtype.kind in "biuf":
        return bool(np.array_equal(left, right, equal_nan=left.dtype.kind == "f"))
    return list(map(str, left.ravel())) == list(map(str, right.ravel()))


def full_door(data: Prepared, *, store: Store, batch_key: str = "batch") -> None:
    """Score a whole file by a classifier of its largest batch; refine, reject, write and read again.

    Parameters
    ----------
    data
        All cells of the file.
    store
        Gets accuracies (of the cells outside that batch), CPU seconds, and the number of slots that differ after h5ad
        and after zarr.
    batch_key
        Column of ``.obs``.
    """
    if store.has(task="full door", file=data.file, seed=0, variant="GRIT"):
        return
    from cellsmith import tl

    batch = data.obs[batch_key].astype(str)
    source = (batch == batch.value_counts().index[0]).to_numpy()
    model = classifier(data.rep[source], data.labels[source])
    cells = _bare(data, batch)
    scores = pd.DataFrame(model.predict_proba(data.rep), index=cells.obs_names, columns=model.classes_)
    started = time.process_time()
    tl.grit(cells, scores, batch_key="batch")
    seconds = time.process_time() - started
    tl.reject(cells, labels_key="anchors", target="selective", level=0.05)
    raw, found = (cells.obs[key].astype(str).to_numpy() == data.labels for key in ("grit_raw", "grit"))
    accepted = ~cells.obs["grit_rejected"].to_numpy(dtype=bool)
    values = {"n_cells": float(cells.n_obs), "cpu_s": seconds, "accepted": float(accepted.mean())}
    values |= {"accuracy_raw": float(raw[~source].mean()), "accuracy": float(found[~source].mean())}
    values |= {"wrong_among_accepted": float((~found)[accepted].mean()) if accepted.any() else 0.0}
    values |= {f"differs_{kind}": float(len(differences(cells, again))) for kind, again in _round_trips(cells)}
    store.record("full door", _Run(data.file, 0), "GRIT", values)


def _bare(data: Prepared, batch: pd.Series) -> ad.AnnData:
    """Return the cells with components, batches, and the labels of a random sample as anchors."""
    cells = ad.AnnData(obs=pd.DataFrame({"batch": pd.Categorical(batch)}, index=data.obs.index))
    cells.obsm["X_pca"] = data.rep.astype(np.float32)
    anchors = np.full(cells.n_obs, "unknown", dtype=object)
    drawn = Streams(0).numpy("anchors").choice(cells.n_obs, N_ANCHORS, replace=False)
    anchors[drawn] = data.labels[drawn]
    cells.obs["anchors"] = pd.Categorical(anchors)
    return cells


class _Run:
    """File and seed of a row."""

    def __init__(self, file: str, seed: int) -> None:
        self.file, self.seed = file, seed


def _round_trips(cells: ad.AnnData) -> Iterable[tuple[str, ad.AnnData]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        cells.write_h5ad(path / "cells.h5ad")
        yield "h5ad", ad.read_h5ad(path / "cells.h5ad")
        cells.write_zarr(path / "cells.zarr")
        yield "zarr", ad.read_zarr(path / "cells.zarr")


def queries(seeds: Iterable[int], *, directory: Path, store: Store) -> None:
    """Run all of this module; rows that exist are skipped.

    Parameters
    ----------
    seeds
        Seeds of the classifier's cells and of those that are left out.
    directory
        The benchmark data directory.
    store
        Where the rows go.
    """
    data = prepare(load(directory, FEW), file=FEW)
    for seed in seeds:
        later_cells(few_cells(data, seed), store=store)
    self_query(few_cells(data, 0), store=store)
    full_door(prepare(load(directory, BIG), file=BIG), store=store)
