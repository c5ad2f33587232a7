"""Time and memory of the door on sparse cells of very uneven depth, each run in a fresh process on one thread."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cellsmith._rng import Streams
from cellsmith.benchmark._store import Store

__all__ = ["GROWTH", "LARGEST", "MAIN", "against_dense", "measure", "speed", "synthetic_block", "write_cells"]

logger = logging.getLogger("cellsmith")

GROWTH = (12_500, 25_000, 50_000, 100_000)
MAIN, LARGEST, SMALL = 100_000, 1_000_000, 5_000
N_FEATURES, N_LATENT, N_FACTORS = 2_000, 10, 10
RATE = 0.084
BLOCK = 5_000
REPEATS = 3
PROBS = ("rank1-legacy", "rank1", "logistic")
"""Models of the mask; "rank one" of the bars is the legacy form, the others are sums of several products."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def _features() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return rates (D,), means (D,) and loadings (D, 10) of the features."""
    rng = Streams(0).numpy("speed, features")
    rates = np.exp(rng.normal(0.0, 0.8, N_FEATURES))
    means = rng.normal(3.0, 0.3, N_FEATURES)
    return (rates / rates.mean()).astype(np.float32), means.astype(np.float32), _normal(rng, (N_FEATURES, N_FACTORS))


def _normal(rng: np.random.Generator, size: tuple[int, ...]) -> npt.NDArray[np.float32]:
    return rng.standard_normal(size, dtype=np.float32)


def _scores(rng: np.random.Generator, n_rows: int) -> npt.NDArray[np.float32]:
    """Return u, the first that is drawn of a block."""
    return _normal(rng, (n_rows, N_FACTORS)) * np.linspace(2.0, 0.6, N_FACTORS, dtype=np.float32)


def synthetic_block(number: int, n_rows: int = BLOCK) -> tuple[Any, npt.NDArray[np.float32]]:
    """Draw one block of cells: 8.4 % observed, depth log-normal with a spread of 1.

    Values are mu_d + 0.5 u_i v_d + noise, u of ten factors whose s.d. falls from 2 to 0.6; a value of 0 is moved away
    from zero, since zeros are what is missing.

    Parameters
    ----------
    number
        Number of the block; blocks are drawn independently of each other.
    n_rows
        Cells.

    Returns
    -------
    CSR float32 (n_rows, 2,000), and u, (n_rows, 10).
    """
    rates, means, loadings = _features()
    rng = Streams(0).numpy("speed, cells", number)
    u = _scores(rng, n_rows)
    depth = np.exp(rng.normal(0.0, 1.0, n_rows)).astype(np.float32)
    # 1.09 makes up for what clipping takes
    p = np.clip(1.09 * RATE * np.outer(depth / np.float32(np.exp(0.5)), rates), 0.0, 0.95)
    observed = rng.random(p.shape, dtype=np.float32) < p
    observed[np.arange(n_rows), rng.integers(N_FEATURES, size=n_rows)] = True
    rows, columns = np.nonzero(observed)
    values = means[columns] + 0.5 * np.einsum("ik,ik->i", u[rows], loadings[columns]) + _normal(rng, rows.shape)
    values[values == 0] = 1e-6
    pointers = np.concatenate([[0], np.cumsum(observed.sum(axis=1))])
    return sparse.csr_matrix((values, columns.astype(np.int32), pointers), shape=observed.shape), u


def write_cells(path: Path, n: int) -> None:
    """Write n cells as an h5ad file, block by block, so that no more than one block is in memory.

    Parameters
    ----------
    path
        Of the file.
    n
        Number of cells.
    """
    import anndata as ad
    import h5py
    import pandas as pd

    names = pd.RangeIndex(n).astype(str)
    ad.AnnData(sparse.csr_matrix((n, N_FEATURES), dtype=np.float32), obs=pd.DataFrame(index=names)).write_h5ad(path)
    pointers = [np.zeros(1, dtype=np.int64)]
    with h5py.File(path, "r+") as file:
        group = file["X"]
        for name in ("data", "indices", "indptr"):
            del group[name]
        kinds = {"data": np.float32, "indices": np.int32}
        stores = {
            key: group.create_dataset(key, shape=(0,), maxshape=(None,), dtype=kind, chunks=(1 << 18,))
            for key, kind in kinds.items()
        }
        filled = 0
        for number, start in enumerate(range(0, n, BLOCK)):
            block = synthetic_block(number, min(BLOCK, n - start))[0]
            for key, values in (("data", block.data), ("indices", block.indices)):
                stores[key].resize((filled + block.nnz,))
                stores[key][filled:] = values
            pointers.append(block.indptr[1:].astype(np.int64) + filled)
            filled += block.nnz
        group.create_dataset("indptr", data=np.concatenate(pointers))


def true_axes(n: int) -> npt.NDArray[np.float32]:
    """Return the centred u of the first n cells, (n, 10)."""
    starts = enumerate(range(0, n, BLOCK))
    u = np.concatenate([_scores(Streams(0).numpy("speed, cells", b), min(BLOCK, n - s)) for b, s in starts])
    return np.asarray(u - u.mean(axis=0))


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


def _read(path: str, *, backed: bool) -> Any:
    import anndata as ad

    return ad.read_h5ad(path, backed="r" if backed else None)


def child(path: str, options: str) -> None:
    """Run the door once on a file of `write_cells` and say on standard output what it took; in a process of its own."""
    import warnings

    import torch

    from cellsmith import tl

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    given = json.loads(options)
    backed = bool(given.pop("backed", False))
    small = synthetic_block(0, 500)[0]
    # imports and first calls are not the method's
    _embed(tl, _cells(small), given)
    cells = _read(path, backed=backed)
    size = 0.0 if backed else (cells.X.data.nbytes + cells.X.indices.nbytes + cells.X.indptr.nbytes) / 2**20
    _reset_peak()
    before, wall, cpu = _memory("VmRSS"), time.perf_counter(), time.process_time()
    _embed(tl, cells, given)
    out = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    out |= {"peak_mib": _memory("VmHWM"), "extra_mib": _memory("VmHWM") - before, "csr_mib": size}
    out["swapped"] = float(resource.getrusage(resource.RUSAGE_SELF).ru_majflt)
    out["sin_theta"] = _gap(cells.obsm["X_bcpca"])
    record = cells.uns["bcpca"]
    out["rank"] = float(record["overlap"].get("rank", 1))
    sys.stdout.write("RESULT " + json.dumps(out) + "\n")


def _cells(x: Any) -> Any:
    import anndata as ad

    return ad.AnnData(x)


def _embed(tl: Any, cells: Any, given: dict[str, Any]) -> None:
    # published probabilities of so uneven a depth are far too small, and no cell would seem to share enough features
    lowest = {"min_overlap": 0.0} if given.get("prob") == "rank1-legacy" else {}
    tl.bcpca(cells, mask="zero", n_latent=N_LATENT, compare=False, overwrite=True, **lowest, **given)


def _gap(x: npt.NDArray[Any]) -> float:
    from cellsmith.benchmark._missingness.scoring import subspace_gap

    kept = np.isfinite(x).all(axis=1)
    truth = true_axes(len(x))[kept]
    return subspace_gap(x[kept], truth - truth.mean(axis=0))


def measure(path: Path, **options: Any) -> dict[str, float]:
    """Time the door on a file of :func:`write_cells` in a fresh process with one thread.

    Parameters
    ----------
    path
        The file.
    **options
        Arguments of :func:`cellsmith.tl.bcpca`, and ``backed``: read by blocks from disk.

    Returns
    -------
    ``wall_s``, ``cpu_s``, ``peak_mib`` (resident), ``extra_mib`` (beyond imports and inputs), ``csr_mib``,
    ``sin_theta`` and ``rank`` (of the overlap factors).
    """
    code = "from cellsmith.benchmark._missingness import speed; import sys; speed.child(sys.argv[1], sys.argv[2])"
    command = [sys.executable, "-c", code, str(path), json.dumps(options)]
    environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return dict(json.loads(line.removeprefix("RESULT ")))
    msg = f"The run on {path.name} ended with code {done.returncode}: {done.stderr.strip()[-500:]}"
    raise RuntimeError(msg)


def against_dense(n: int = SMALL, repeats: int = REPEATS) -> dict[str, float]:
    """Time the dense legacy formula and the door with the same probabilities in turn, CPU seconds.

    The dense way forms the n x n matrix and takes its eigenpairs: all of them, as the public code does, once, and only
    the ten largest by Lanczos, the best that can be made of it, in turn with the door.
    """
    from scipy.sparse.linalg import eigsh

    from cellsmith import tl
    from cellsmith.benchmark._synthesis.speed import alternate
    from cellsmith.math.gram import dense_legacy

    x = synthetic_block(0, n)[0]
    values, observed = x.toarray(), x.toarray() != 0
    start = np.ones(n)

    def dense(_: int) -> None:
        eigsh(dense_legacy(values, observed), k=N_LATENT, which="LA", tol=1e-3, v0=start)

    def implicit(_: int) -> None:
        _embed(tl, _cells(x), {"prob": "rank1-legacy"})

    def published(_: int) -> None:
        np.linalg.eigh(dense_legacy(values, observed))

    slow, fast, ratio = alternate(dense, implicit, n_warm=1, n_steps=repeats)
    full, _, full_ratio = alternate(published, implicit, n_warm=0, n_steps=1)
    found = {"dense_s": slow, "implicit_s": fast, "dense_over_implicit": ratio}
    return {**found, "published_s": full, "published_over_implicit": full_ratio}


def _median(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.median([run[key] for run in runs])) for key in runs[0]}


def speed(*, store: Store, largest: bool = False, repeats: int = REPEATS) -> None:
    """Run what is not in the table yet.

    Parameters
    ----------
    store
        Where the rows go.
    largest
        Run a million cells from disk, too.
    repeats
        Runs of each size; medians are kept.
    """
    with tempfile.TemporaryDirectory() as name:
        for n in (*GROWTH, *([LARGEST] if largest else [])):
            path = Path(name) / f"cells_{n}.h5ad"
            for prob in PROBS:
                if store.has(quantity=f"wall_s_{prob}_{n}"):
                    continue
                if not path.is_file():
                    write_cells(path, n)
                big = n == LARGEST
                found = _median([measure(path, prob=prob, backed=big) for _ in range(1 if big else repeats)])
                detail = (
                    f"{n} x {N_FEATURES}, {prob}, top {N_LATENT}, one thread, {'from disk' if big else 'in memory'}"
                )
                store.add([{"quantity": f"{k}_{prob}_{n}", "value": found[k], "detail": detail} for k in found])
                logger.info("%s, %s: %s", prob, n, found)
            path.unlink(missing_ok=True)
    if not store.has(quantity="published_over_implicit"):
        detail = f"{SMALL} x {N_FEATURES}, legacy probabilities, CPU seconds in turn in one process"
        found = against_dense(repeats=repeats)
        store.add([{"quantity": key, "value": value, "detail": detail} for key, value in found.items()])
    for prob in PROBS:
        if not store.has(quantity=f"slope_{prob}"):
            rows = store.table.set_index("quantity")["value"].astype(float)
            seconds = [rows[f"cpu_s_{prob}_{n}"] for n in GROWTH]
            value = float(np.polyfit(np.log(GROWTH), np.log(seconds), 1)[0])
            store.add([{"quantity": f"slope_{prob}", "value": value, "detail": "log CPU seconds on log n"}])
