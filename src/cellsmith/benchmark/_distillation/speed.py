"""How fast, and in how much memory: scDD beside scVI, steps on the codes beside each other, sketches beside plain ones.

What is compared runs in turn in one process, or, for memory and whole runs, each in a process of its own; one thread.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

from cellsmith._rng import Streams, isolated
from cellsmith.benchmark._annotation.speed import THREADS
from cellsmith.benchmark._distillation.cases import EMBEDDED, REP, labelled_counts, read
from cellsmith.benchmark._files import MAX_GENES, variable_genes
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._synthesis.speed import alternate
from cellsmith.benchmark._topics.speed import in_turn
from cellsmith.math.matching import herding, k_center, log_normalize, principal_components, target_sum
from cellsmith.tl import sketch

__all__ = ["speed"]

logger = logging.getLogger("cellsmith")

LABELS = "cell_type"
SCALE, MANY_CELLS = "kang_ctrl_8donors", 100_000
FIT_FILE, FIT_CELLS = "pbmc4k_10x", 2_000
BATCH, BUDGET = 128, 10
N_WARM, N_STEPS = 3, 15
SELECTED, LOOPED = 500, 5  # cells that are chosen; of a plain loop as many, timed, stand for them all

Found = dict[str, float]


def counts(directory: Path, file: str, n_cells: int | None = None) -> ad.AnnData:
    """Return labelled cells of a file, at most `n_cells` of them and 2,000 genes."""
    data = labelled_counts(read(file, directory), LABELS, layer=None, batch_key=None)
    if n_cells is not None and n_cells < data.n_obs:
        data = data[np.sort(Streams(0).numpy("speed").choice(data.n_obs, n_cells, replace=False))].copy()
    if data.n_vars > MAX_GENES:
        data = data[:, variable_genes(data.X, MAX_GENES)].copy()
    return data[np.asarray(data.X.sum(axis=1)).ravel() > 0].copy()


def trained(data: ad.AnnData, max_epochs: Any = None, **options: Any) -> Any:
    """Return SCDD trained on a copy of some cells."""
    from cellsmith.model import SCDD

    own = data.copy()
    SCDD.setup_anndata(own, labels_key=LABELS)
    model = SCDD(own)
    model.train(max_epochs, accelerator="cpu", enable_progress_bar=False, seed=0, **options)
    return model


def trained_scvi(data: ad.AnnData, max_epochs: int | None = None, **options: Any) -> Any:
    """Return scVI of the widths of SCDD, trained on a copy of some cells."""
    from scvi.model import SCVI

    own = data.copy()
    with isolated(0):
        SCVI.setup_anndata(own)
        model = SCVI(own, n_latent=32, n_hidden=128, n_layers=2, gene_likelihood="nb")
        model.train(max_epochs, accelerator="cpu", enable_progress_bar=False, logger=False, **options)
    return model


def epochs(directory: Path) -> Found:
    """Time an epoch of the autoencoder and one of scVI, of equal width and batch."""
    data = counts(directory, FIT_FILE, FIT_CELLS)
    same = {"batch_size": BATCH, "train_size": 1.0}
    found = in_turn(
        {
            # One epoch of the generator in every run: it is gone in the difference of two.
            "ours": lambda n: trained(data, {"autoencoder": n, "generator": 1}, **same),
            "theirs": lambda n: trained_scvi(data, n, **same),
        }
    )
    return {"epoch_over_scvi": found["ours"] / found["theirs"], "epoch_s": found["ours"], "scvi_s": found["theirs"]}


@contextmanager
def _frozen(module: Any) -> Any:
    module.eval().requires_grad_(False)
    with isolated(0):
        yield


def codes_step(model: Any, *, cells: Any = None, **options: Any) -> Callable[[int], None]:
    """Return one step on the codes of ten profiles a class, as ``distill(10, **options)`` takes it.

    Parameters
    ----------
    model
        Trained SCDD.
    cells
        What is matched; None: the labelled cells of the model, of which step 0 is made in any case.
    **options
        Arguments of ``distill``.
    """
    from cellsmith.model import SCDD
    from cellsmith.model.scdd.profiles import step_zero
    from cellsmith.model.scdd.request import Plan, check_plan

    given = {k: p.default for k, p in inspect.signature(SCDD.distill).parameters.items()}
    plan = check_plan(**{k: v for k, v in {**given, **options}.items() if k in Plan.__dataclass_fields__})
    own, streams = model._labelled_cells(), Streams(0)
    sizes = np.minimum(BUDGET, np.bincount(own.labels, minlength=len(model.classes)))
    with _frozen(model.module):
        start = step_zero(model.module, own, n_groups=sizes, plan=plan, streams=streams)
        iterate = model._distiller(own if cells is None else cells, start, plan, streams)

    def step(_: int) -> None:
        with _frozen(model.module):
            iterate.run(1)

    return step


def generator_calls() -> Found:
    """Time a step on the codes with one call of the generator and with ten; and without what is compared after it."""
    model = trained(counts(Path(), EMBEDDED), 1)
    found = {}
    for name, objective in (("codes only", "readers"), ("matching", ("gradient", "distribution"))):
        options = {"objective": objective, "residual": False}
        runs = [codes_step(model, n_generator_steps=n, **options) for n in (10, 1)]
        ten, one, ratio = alternate(*runs, n_warm=N_WARM, n_steps=N_STEPS)
        found |= {f"ten_over_one, {name}": ratio, f"ten_s, {name}": ten, f"one_s, {name}": one}
    return found


def many_cells(directory: Path) -> Found:
    """Time a step on the codes on 12,261 cells and on 100,000, drawn from them type by type."""
    model = trained(counts(directory, SCALE), 1)
    few = model._labelled_cells()
    rows = Streams(0).numpy("speed").choice(len(few.labels), MANY_CELLS)
    found = {}
    for name, objective in (("readers", "readers"), ("matching", ("gradient", "distribution"))):
        runs = [codes_step(model, cells=cells, objective=objective) for cells in (few.take(rows), few)]
        many, less, ratio = alternate(*runs, n_warm=N_WARM, n_steps=N_STEPS)
        found |= {f"many_over_few, {name}": ratio, f"many_s, {name}": many, f"few_s, {name}": less}
    return found


def embedded(directory: Path) -> ad.AnnData:
    """Return 12,261 cells with 50 principal components."""
    data = counts(directory, SCALE)
    data.obsm[REP] = principal_components(log_normalize(data.X, scale=target_sum(data.n_vars)), seed=0)
    return data


def metacell(data: ad.AnnData) -> ad.AnnData:
    """Make ten metacells a class in a given embedding."""
    return sketch(data, LABELS, BUDGET, method="metacell", use_rep=REP)


def plain_metacell(data: ad.AnnData) -> Any:
    """Make them with scikit-learn and scanpy."""
    import scanpy as sc
    from sklearn.cluster import KMeans

    labels, groups = data.obs[LABELS].to_numpy(), np.empty(data.n_obs, dtype=object)
    for name in np.unique(labels):
        rows = np.flatnonzero(labels == name)
        found = KMeans(BUDGET, n_init=3, random_state=0).fit_predict(data.obsm[REP][rows])
        groups[rows] = [f"{name} {k}" for k in found]
    own = ad.AnnData(data.X, obs=data.obs.assign(group=groups.astype(str)))
    own.obs["group"] = own.obs["group"].astype("category")
    return sc.get.aggregate(own, by="group", func="sum")


def sketches(directory: Path) -> Found:
    """Time metacells in a given embedding, and two choices of cells against plain loops."""
    data = embedded(directory)
    ours, theirs, ratio = alternate(lambda _: metacell(data), lambda _: plain_metacell(data), n_warm=1, n_steps=5)
    found = {"metacell_over_plain": ratio, "metacell_s": ours, "plain_metacell_s": theirs}
    points = data.obsm[REP]
    for name, fast, plain in (("herding", herding, herding_loop), ("kcenter", k_center, kcenter_loop)):
        fast(points, LOOPED)
        ours, theirs = _seconds(lambda f=fast: f(points, SELECTED)), _seconds(lambda f=plain: f(points, LOOPED))
        # Every cell that a loop chooses costs the same.
        found |= {f"loop_over_{name}": theirs * SELECTED / LOOPED / ours, f"{name}_s": ours}
    return found


def _seconds(function: Callable[[], Any]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


def herding_loop(points: np.ndarray, k: int) -> list[int]:
    """Choose cells whose mean follows that of all, one candidate at a time."""
    mean, total, chosen = points.mean(axis=0), np.zeros(points.shape[1]), []
    for n in range(1, k + 1):
        best, least = -1, np.inf
        for i in range(len(points)):
            distance = ((mean - (total + points[i]) / n) ** 2).sum()
            if distance < least and i not in chosen:
                best, least = i, distance
        chosen.append(best)
        total = total + points[best]
    return chosen


def kcenter_loop(points: np.ndarray, k: int) -> list[int]:
    """Choose the cell nearest to the mean and then the one farthest from the chosen, one candidate at a time."""
    mean = points.mean(axis=0)
    chosen = [min(range(len(points)), key=lambda i: ((points[i] - mean) ** 2).sum())]
    nearest = [np.inf] * len(points)
    for _ in range(1, k):
        for i in range(len(points)):
            nearest[i] = min(nearest[i], ((points[i] - points[chosen[-1]]) ** 2).sum())
        chosen.append(max(range(len(points)), key=lambda i: nearest[i]))
    return chosen


def _memory(field: str) -> float:
    """Return a field of this process's status in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return float(next(line for line in lines if line.startswith(field)).split()[1]) / 1024.0


def child(task: str, directory: str) -> None:
    """Run one task in a process of its own and say on standard output what it took."""
    import scvi  # noqa: F401  loading it is no one's cost
    import torch

    from cellsmith.model import SCDD  # noqa: F401

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    place, kind = Path(directory), task.split(", ")[0]
    if kind == "whole":
        data = counts(place, EMBEDDED) if task.endswith(EMBEDDED) else counts(place, FIT_FILE, FIT_CELLS)
    else:
        data = embedded(place)
    runs: dict[str, Callable[[], Any]] = {
        "whole": lambda: trained(data).distill(BUDGET),
        "memory of scDD": lambda: trained(data, 2).distill(BUDGET),
        "memory of scVI": lambda: trained_scvi(data, 2),
        "memory of metacells": lambda: metacell(data),
    }
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak so far is that of loading
    before, wall, cpu = _memory("VmRSS"), time.perf_counter(), time.process_time()
    runs[kind]()
    out = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    csr = sum(part.nbytes for part in (data.X.data, data.X.indices, data.X.indptr)) / 2**20
    out |= {"extra_mib": _memory("VmHWM") - before, "csr_mib": csr, "n": float(data.n_obs)}
    sys.stdout.write("RESULT " + json.dumps(out) + "\n")


def measure(task: str, directory: Path) -> Found:
    """Run a task of :func:`child` in a fresh process on one thread."""
    code = "from cellsmith.benchmark._distillation import speed; import sys; speed.child(sys.argv[1], sys.argv[2])"
    environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
    done = subprocess.run(
        [sys.executable, "-c", code, task, str(directory)], env=environment, capture_output=True, text=True, check=False
    )
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return dict(json.loads(line.removeprefix("RESULT ")))
    raise RuntimeError(f"The task {task!r} ended with code {done.returncode}: {done.stderr.strip()[-500:]}")


def memory(directory: Path) -> Found:
    """Return how far training and distilling, a training of scVI, and metacells raise the memory, MiB."""
    found = {who: measure(f"memory of {who}", directory) for who in ("scDD", "scVI", "metacells")}
    out = {f"extra_mib, {who}": taken["extra_mib"] for who, taken in found.items()}
    out["memory_over_scvi"] = out["extra_mib, scDD"] / out["extra_mib, scVI"]
    out["metacells_over_csr"] = out["extra_mib, metacells"] / found["metacells"]["csr_mib"]
    return out


def whole(directory: Path, file: str) -> Found:
    """Time training and distilling ten a class with every default."""
    taken = measure(f"whole, {file}", directory)
    return {f"whole_{clock}, {file}": taken[clock] for clock in ("cpu_s", "wall_s")}


def tasks(directory: Path) -> dict[str, tuple[Callable[[], Found], str]]:
    """Return first quantity -> what measures it and those after it, and on what."""
    found: dict[str, tuple[Callable[[], Found], str]] = {
        "epoch_over_scvi": (lambda: epochs(directory), f"{FIT_CELLS} cells of {FIT_FILE}, batches of {BATCH}, in turn"),
        "ten_over_one, codes only": (generator_calls, f"steps on the codes of {EMBEDDED}, {BUDGET} a class, in turn"),
        "many_over_few, readers": (lambda: many_cells(directory), f"{SCALE}, {MANY_CELLS} and all cells, in turn"),
        "metacell_over_plain": (lambda: sketches(directory), f"{SCALE}, 50 components given, {SELECTED} cells chosen"),
        "extra_mib, scDD": (lambda: memory(directory), f"beyond the loaded {SCALE}, processes of their own"),
    }
    for file in (EMBEDDED, FIT_FILE):
        found[f"whole_cpu_s, {file}"] = (lambda file=file: whole(directory, file), f"{BUDGET} a class, all defaults")
    return found


def speed(*, directory: Path, store: Store) -> None:
    """Run what is not in the table yet.

    Parameters
    ----------
    directory
        The benchmark data directory.
    store
        Where the rows go: ``quantity, value, detail``.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for first, (job, detail) in tasks(directory).items():
            if store.has(quantity=first):
                continue
            found = job()
            store.add([{"quantity": k, "value": v, "detail": f"{detail}, one thread"} for k, v in found.items()])
            logger.info("%s", {k: round(v, 3) for k, v in found.items()})
    finally:
        torch.set_num_threads(threads)
