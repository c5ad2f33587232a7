"""Time and memory of the door on synthetic graphs, each run in a fresh process on one thread."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from cellsmith._rng import Streams
from cellsmith.benchmark._store import Store

__all__ = ["GROWTH", "LARGEST", "measure", "speed", "synthetic_graph", "synthetic_scores"]

logger = logging.getLogger("cellsmith")

GROWTH = (12_500, 25_000, 50_000, 100_000)
MAIN, LARGEST, SMALL = 100_000, 1_000_000, 5_000
N_CLASSES, N_DIMS, N_NEIGHBORS = 30, 4, 14
REPEATS = 3
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def synthetic_points(n: int) -> np.ndarray:
    """Return points (n, 4) of 30 overlapping clouds, in random order."""
    rng = Streams(0).numpy("speed")
    centres = rng.normal(size=(N_CLASSES, N_DIMS)) * 2.0
    return centres[rng.integers(N_CLASSES, size=n)] + rng.normal(size=(n, N_DIMS))


def synthetic_graph(points: np.ndarray) -> Any:
    """Return the UMAP weights of 14 other neighbours, CSR float32 (n, n)."""
    from scipy.spatial import cKDTree

    from cellsmith.math.graph import fuzzy_union

    distances, indices = cKDTree(points).query(points, k=N_NEIGHBORS + 1)
    return fuzzy_union(indices[:, 1:], distances[:, 1:])


def synthetic_scores(points: np.ndarray) -> np.ndarray:
    """Return probabilities (n, 30) float32: the nearest clouds, and much noise."""
    rng = Streams(0).numpy("speed")
    centres = (rng.normal(size=(N_CLASSES, N_DIMS)) * 2.0).astype(np.float32)
    noise = Streams(1).numpy("speed")
    out = np.empty((len(points), N_CLASSES), dtype=np.float32)
    for start in range(0, len(points), 50_000):
        rows = slice(start, start + 50_000)
        square = ((points[rows, None, :].astype(np.float32) - centres[None]) ** 2).sum(axis=2)
        logits = -0.5 * square + 1.5 * noise.standard_normal(square.shape, dtype=np.float32)
        logits = np.exp(logits - logits.max(axis=1, keepdims=True))
        out[rows] = logits / logits.sum(axis=1, keepdims=True)
    return out


def _write(folder: Path, n: int) -> Path:
    path = folder / f"cells_{n}"
    if not path.with_suffix(".npz").is_file():
        points = synthetic_points(n)
        sparse.save_npz(path.with_suffix(".npz"), synthetic_graph(points), compressed=False)
        np.save(path.with_suffix(".npy"), synthetic_scores(points))
    return path


def _memory(field: str) -> float:
    """Return a field of this process's status in MiB; NaN where the system does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return float("nan")
    found = [line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith(field)]
    return float(found[0].split()[1]) / 1024.0 if found else float("nan")


def _reset_peak() -> None:
    reset = Path("/proc/self/clear_refs")
    if reset.is_file():
        reset.write_text("5", encoding="utf-8")


def child(path: str, options: str) -> None:
    """Run the door once on files of `_write` and say on standard output what it took; runs in a process of its own."""
    import warnings

    import anndata as ad
    import pandas as pd
    import torch

    from cellsmith import tl

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    graph, scores = sparse.load_npz(f"{path}.npz"), np.load(f"{path}.npy")
    cells = ad.AnnData(obs=pd.DataFrame(index=pd.RangeIndex(len(scores)).astype(str)))
    cells.obsp["connectivities"] = graph
    cells.uns["neighbors"] = {"connectivities_key": "connectivities", "params": {"n_neighbors": 15, "method": "umap"}}
    given: dict[str, Any] = {"neighbors_key": "neighbors", "space": "prob", **json.loads(options)}
    names = [f"type {c}" for c in range(scores.shape[1])]
    # imports and first calls are not the method's
    small = np.arange(500)
    tl.grit(cells[small].copy(), scores[small], classes=names, **given)
    _reset_peak()
    before, wall, cpu = _memory("VmRSS"), time.perf_counter(), time.process_time()
    tl.grit(cells, scores, classes=names, **given)
    record = cells.uns["grit"]["solve"]
    out = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    out |= {"extra_mib": _memory("VmHWM") - before, "iterations": float(record["iterations"])}
    out |= {"uncertified": float(record["uncertified"]), "n": float(len(scores))}
    sys.stdout.write("RESULT " + json.dumps(out) + "\n")


def measure(folder: Path, n: int, **options: Any) -> dict[str, float]:
    """Time the door on n synthetic cells in a fresh process with one thread.

    Parameters
    ----------
    folder
        Where graph and scores are kept.
    n
        Number of cells.
    **options
        Arguments of :func:`cellsmith.tl.grit`.

    Returns
    -------
    ``wall_s``, ``cpu_s``, ``extra_mib`` (peak memory beyond that of the inputs), ``iterations``, ``uncertified``.
    """
    code = "from cellsmith.benchmark._annotation import speed; import sys; speed.child(sys.argv[1], sys.argv[2])"
    command = [sys.executable, "-c", code, str(_write(folder, n)), json.dumps(options)]
    environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return dict(json.loads(line.removeprefix("RESULT ")))
    msg = f"The run on {n} cells ended with code {done.returncode}: {done.stderr.strip()[-500:]}"
    raise RuntimeError(msg)


def solvers(n: int = SMALL) -> dict[str, float]:
    """Time factorisation, conjugate gradients and Chebyshev on the same systems in turn; CPU seconds, median ratios.

    On two graphs: that of the 4 dimensions, whose factors stay sparse, and one of 50 with as much noise as components
    of real cells have, whose factors fill in.
    """
    points, out = synthetic_points(n), {}
    for words, weights in (("", many_dimensions(points)), (", 4 dimensions", synthetic_graph(points))):
        out |= {f"{key}{words}": value for key, value in _in_turn(weights, synthetic_scores(points)).items()}
    return out


def _in_turn(weights: Any, scores: np.ndarray) -> dict[str, float]:
    from cellsmith.benchmark._synthesis.speed import alternate
    from cellsmith.math import solve

    problem = solve.system(weights, laplacian="sym", smoothness_weight=5.0, order=solve.cuthill_mckee(weights))
    right = problem.right_hand_side(scores)
    runs = [lambda k, name=name: solve.solve(problem, right, solver=name) for name in ("cg", "lu", "chebyshev")]
    cg, lu, ratio = alternate(runs[0], runs[1], n_warm=1, n_steps=REPEATS)
    chebyshev, _, against = alternate(runs[2], runs[0], n_warm=1, n_steps=REPEATS)
    return {"cg_s": cg, "lu_s": lu, "cg_over_lu": ratio, "chebyshev_s": chebyshev, "chebyshev_over_cg": against}


def many_dimensions(points: np.ndarray) -> Any:
    """Return the weights of 14 other neighbours after 46 dimensions of noise were added to the 4 of `points`."""
    from cellsmith.math.graph import fuzzy_union, knn_table

    noise = Streams(2).numpy("speed").normal(size=(len(points), 46))
    return fuzzy_union(*knn_table(np.hstack([points, noise]), N_NEIGHBORS, seed=0))


def _best(folder: Path, n: int, repeats: int) -> dict[str, float]:
    runs = [measure(folder, n) for _ in range(repeats)]
    return {key: float(np.median([run[key] for run in runs])) for key in runs[0]}


def speed(*, store: Store, largest: bool = False, repeats: int = REPEATS) -> None:
    """Run what is not in the table yet.

    Parameters
    ----------
    store
        Where the rows go.
    largest
        Run a million cells, too.
    repeats
        Runs of each size; medians are kept.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for n in (*GROWTH, *([LARGEST] if largest else [])):
            if store.has(quantity=f"wall_s_{n}"):
                continue
            found = _best(folder, n, 1 if n == LARGEST else repeats)
            detail = f"{n} x {N_CLASSES}, lambda 5, {found['iterations']:.0f} iterations, one thread, given graph"
            store.add([{"quantity": f"{key}_{n}", "value": found[key], "detail": detail} for key in found])
            logger.info("%s: %s", n, found)
    if not store.has(quantity="cg_over_lu"):
        detail = f"{SMALL} x {N_CLASSES}, lambda 5, in turn in one process"
        found = solvers()
        store.add([{"quantity": key, "value": value, "detail": detail} for key, value in found.items()])
        logger.info("%s", found)
    if not store.has(quantity="slope"):
        rows = store.table.set_index("quantity")["value"].astype(float)
        seconds = [rows[f"cpu_s_{n}"] for n in GROWTH]
        value = float(np.polyfit(np.log(GROWTH), np.log(seconds), 1)[0])
        store.add([{"quantity": "slope", "value": value, "detail": f"log CPU seconds on log n, n = {GROWTH}"}])
