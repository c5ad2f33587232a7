"""How fast, and in how much memory: scDD beside scVI, steps on the codes beside each other, sketches beside plain ones.

What is compared runs in turn in one process, or, for memory and whole runs, each in a process of its own; one thread.
"""

from __future__ import annotations

import inspect
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

from cellsmith._rng import Streams, isolated
from cellsmith.benchmark._distillation.cases import EMBEDDED, REP, labelled_counts, read
from cellsmith.benchmark._files import MAX_GENES, variable_genes
from cellsmith.benchmark._process import run_alone, say
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._synthesis.speed import alternate
from cellsmith.benchmark._topics.speed import in_turn
from cellsmith.math.matching import herding, k_center, log_normalize, principal_components, target_sum
from cellsmith.tl import sketch

__all__ = ["TASKS", "speed"]

logger = logging.getLogger("cellsmith")

LABELS = "cell_type"
SCALE, MANY_CELLS = "kang_ctrl_8donors", 100_000
FIT_FILE, FIT_CELLS = "pbmc4k_10x", 2_000
BATCH, BUDGET = 128, 10
N_WARM, N_STEPS = 3, 15
FEW_EPOCHS = 2  # of a stage; more need no more memory
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
    """Return SCDD trained on some cells."""
    from cellsmith.model import SCDD

    SCDD.setup_anndata(data, labels_key=LABELS)
    model = SCDD(data)
    model.train(max_epochs, accelerator="cpu", enable_progress_bar=False, seed=0, **options)
    return model


def trained_scvi(data: ad.AnnData, max_epochs: int | None = None, **options: Any) -> Any:
    """Return scVI of the widths of SCDD, trained on some cells."""
    from scvi.model import SCVI

    with isolated(0):
        SCVI.setup_anndata(data)
        model = SCVI(data, n_latent=32, n_hidden=128, n_layers=2, gene_likelihood="nb")
        model.train(max_epochs, accelerator="cpu", enable_progress_bar=False, logger=False, **options)
    return model


def epochs(directory: Path) -> Found:
    """Time an epoch of the autoencoder and one of scVI, of equal width and batch."""
    data = counts(directory, FIT_FILE, FIT_CELLS)
    same = {"batch_size": BATCH, "train_size": 1.0}
    found = in_turn(
        {
            # One epoch of the generator in every run: it is gone in the difference of two.
            "ours": lambda n: trained(data.copy(), {"autoencoder": n, "generator": 1}, **same),
            "theirs": lambda n: trained_scvi(data.copy(), n, **same),
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


def generator_calls(directory: Path) -> Found:
    """Time a step on the codes with one call of the generator and with ten; and without what is compared after it."""
    model = trained(counts(directory, EMBEDDED), 1)
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
    rows = many_rows(few.labels)
    found = {}
    for name, objective in (("readers", "readers"), ("matching", ("gradient", "distribution"))):
        runs = [codes_step(model, cells=cells, objective=objective) for cells in (few.take(rows), few)]
        many, less, ratio = alternate(*runs, n_warm=N_WARM, n_steps=N_STEPS)
        found |= {f"many_over_few, {name}": ratio, f"many_s, {name}": many, f"few_s, {name}": less}
    return found


def many_rows(labels: np.ndarray) -> np.ndarray:
    """Return 100,000 positions of cells, drawn with repetition type by type."""
    generator = Streams(0).numpy("speed")
    parts = []
    for name in np.unique(labels):
        own = np.flatnonzero(labels == name)
        parts.append(generator.choice(own, round(MANY_CELLS * len(own) / len(labels))))
    return np.sort(np.concatenate(parts))


def embedded(directory: Path) -> ad.AnnData:
    """Return 12,261 cells with 50 principal components."""
    data = counts(directory, SCALE)
    data.obsm[REP] = principal_components(log_normalize(data.X, scale=target_sum(data.n_vars)), seed=0)
    return data


def metacell(data: ad.AnnData) -> ad.AnnData:
    """Make ten metacells a class in a given embedding."""
    return sketch(data, LABELS, BUDGET, method="metacell", use_rep=REP)


def plain_metacell(data: ad.AnnData) -> Any:
    """Make them with scikit-learn, from the same starts, and scanpy."""
    import scanpy as sc
    from sklearn.cluster import KMeans

    labels, groups = data.obs[LABELS].to_numpy(), np.empty(data.n_obs, dtype=object)
    starts = Streams(0).numpy("init", 0)
    for name in np.unique(labels):
        rows = np.flatnonzero(labels == name)
        start = int(starts.integers(2**31 - 1))
        found = KMeans(BUDGET, n_init=3, random_state=start).fit_predict(data.obsm[REP][rows])
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


def child(task: str, path: str) -> None:
    """Run one task on cells of a file in a process of its own and say on standard output what it took."""
    import scvi  # noqa: F401  loading it is no one's cost
    import torch

    from cellsmith.model import SCDD  # noqa: F401

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    data = ad.read_h5ad(path)
    runs: dict[str, Callable[[], Any]] = {
        "all defaults": lambda: trained(data).distill(BUDGET),
        "scDD": lambda: trained(data, FEW_EPOCHS).distill(BUDGET),
        "scVI": lambda: trained_scvi(data, FEW_EPOCHS),
        "metacells": lambda: metacell(data),
    }
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak so far is that of loading
    before, wall, cpu = _memory("VmRSS"), time.perf_counter(), time.process_time()
    runs[task]()
    out = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    csr = sum(part.nbytes for part in (data.X.data, data.X.indices, data.X.indptr)) / 2**20
    out |= {"extra_mib": _memory("VmHWM") - before, "peak_mib": _memory("VmHWM"), "csr_mib": csr}
    say(out)


def measure(task: str, data: ad.AnnData) -> Found:
    """Run a task of :func:`child` on some cells in a fresh process on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "cells.h5ad")
        data.write_h5ad(path)
        return run_alone(__name__, task, path)


def memory(directory: Path, *, many: bool = False) -> Found:
    """Return how far training and distilling, a training of scVI, and metacells raise the memory, MiB.

    Parameters
    ----------
    directory
        The benchmark data directory.
    many
        On 100,000 cells, drawn type by type; else on the 12,261.
    """
    data = embedded(directory)
    if many:
        data = data[many_rows(data.obs[LABELS].to_numpy())].copy()
        data.obs_names_make_unique()
    size, found = f"{MANY_CELLS if many else data.n_obs} cells", {}
    for who in ("scDD", "scVI", "metacells"):
        found[who] = measure(who, data)
    out = {f"{field}, {who}, {size}": found[who][field] for who in found for field in ("extra_mib", "peak_mib")}
    for field, ratio in (("extra_mib", "extra_over_scvi"), ("peak_mib", "peak_over_scvi")):
        out[f"{ratio}, {size}"] = found["scDD"][field] / found["scVI"][field]
    out[f"metacells_over_csr, {size}"] = found["metacells"]["extra_mib"] / found["metacells"]["csr_mib"]
    return out


def whole(directory: Path) -> Found:
    """Time training and distilling ten a class with every default."""
    found = {}
    for file in (EMBEDDED, FIT_FILE):
        taken = measure("all defaults", counts(directory, file, FIT_CELLS))
        found |= {f"whole_{clock}, {file}": taken[clock] for clock in ("cpu_s", "wall_s")}
    return found


TASKS: dict[str, tuple[str, Callable[[Path], Found], str]] = {
    "epochs": ("epoch_over_scvi", epochs, f"{FIT_CELLS} cells of {FIT_FILE}, batches of {BATCH}, in turn"),
    "calls": ("ten_over_one, codes only", generator_calls, f"steps on the codes of {EMBEDDED}, {BUDGET} a class"),
    "cells": ("many_over_few, readers", many_cells, f"{SCALE}, {MANY_CELLS} and all cells, {BUDGET} a class"),
    "sketches": ("metacell_over_plain", sketches, f"{SCALE}, 50 components given; {SELECTED} cells chosen"),
    "memory": ("extra_mib, scDD, 12261 cells", memory, f"{SCALE}; extra: beyond the loaded cells"),
    "memory of many": (
        f"extra_mib, scDD, {MANY_CELLS} cells",
        partial(memory, many=True),
        f"{SCALE}, drawn with repetition; extra: beyond the loaded cells",
    ),
    "whole": (f"whole_cpu_s, {EMBEDDED}", whole, f"{BUDGET} a class, all defaults, a process of its own"),
}
"""Task -> its first quantity, what measures it and those after it, and on what."""


def speed(directory: Path, *, store: Store, chosen: Sequence[str] = ()) -> None:
    """Run what is not in the table yet.

    Parameters
    ----------
    directory
        The benchmark data directory.
    store
        Where the rows go: ``quantity, value, detail``.
    chosen
        Names of :data:`TASKS`; none: all.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for first, task, detail in (TASKS[name] for name in chosen or TASKS):
            if store.has(quantity=first):
                continue
            found = task(directory)
            store.add([{"quantity": k, "value": v, "detail": f"{detail}, one thread"} for k, v in found.items()])
            logger.info("%s", {k: round(v, 3) for k, v in found.items()})
    finally:
        torch.set_num_threads(threads)
