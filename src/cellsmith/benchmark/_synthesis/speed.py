"""How fast: steps, trainings and draws of SCLD beside scVI's, alternating in one process on one thread."""

from __future__ import annotations

import logging
import resource
import sys
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import torch
from scipy import sparse

from cellsmith._rng import isolated
from cellsmith.benchmark._files import Split
from cellsmith.benchmark._store import Store
from cellsmith.benchmark._synthesis.fits import BATCH, Fits

__all__ = ["alternate", "speed"]

logger = logging.getLogger("cellsmith")

N_WARM, N_STEPS = 20, 200
N_LATENT = 16
MANY_CELLS, MANY_GENES, DENSITY = 12_000, 2_000, 0.05

Step = Callable[[Any], None]


def alternate(
    ours: Callable[[int], None], theirs: Callable[[int], None], *, n_warm: int = N_WARM, n_steps: int = N_STEPS
) -> tuple[float, float, float]:
    """Time two functions in turn.

    Parameters
    ----------
    ours, theirs
        Functions of the number of the step.
    n_warm, n_steps
        Steps that are not timed, and steps that are.

    Returns
    -------
    Median CPU seconds of ours, of theirs, and the median ratio of a pair.
    """
    taken = np.zeros((n_steps, 2))
    for k in range(n_warm + n_steps):
        for column, function in enumerate((ours, theirs)):
            started = time.process_time()
            function(k)
            if k >= n_warm:
                taken[k - n_warm, column] = time.process_time() - started
    return float(np.median(taken[:, 0])), float(np.median(taken[:, 1])), float(np.median(taken[:, 0] / taken[:, 1]))


def _our_step(train: ad.AnnData) -> tuple[Any, Step]:
    """Return a fresh SCLD and one optimiser step of its stage ``autoencode``, clipping included."""
    from cellsmith.model import SCLD
    from cellsmith.model._stage import StagePlan

    data = train.copy()
    SCLD.setup_anndata(data)
    model = SCLD(data, n_latent=N_LATENT)
    stage = model.stages()[0]
    plan = StagePlan(model.module, stage)
    # The plan asks its trainer only for the length of the schedule and of the warm-up.
    plan._trainer = SimpleNamespace(estimated_stepping_batches=10_000, max_epochs=100, current_epoch=50)
    made = plan.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    weights = {"kl": 0.1, "classification": 0.0}
    model.module.train()

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        getattr(model.module, stage.loss)(batch, weights=weights).loss.backward()
        plan.configure_gradient_clipping(optimizer)
        optimizer.step()
        schedule.step()

    return model, step


def _their_step(train: ad.AnnData) -> tuple[Any, Step]:
    """Return a fresh scVI of the same widths and one step with the optimiser of its training plan."""
    from scvi.model import SCVI

    data = train.copy()
    SCVI.setup_anndata(data)
    model = SCVI(data, n_latent=N_LATENT, n_hidden=128, n_layers=1, gene_likelihood="nb")
    model.module.train()
    optimizer = torch.optim.Adam(model.module.parameters(), lr=1e-3, weight_decay=1e-6, eps=0.01)

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        model.module(batch, loss_kwargs={"kl_weight": 1.0})[2].loss.backward()
        optimizer.step()

    return model, step


def _steps(train: ad.AnnData) -> dict[str, tuple[float, str]]:
    """Time one optimiser step: on batches in memory, and with the loaders."""
    from cellsmith.data.splits import CellReader

    with isolated(0):
        ours, our_step = _our_step(train)
        theirs, their_step = _their_step(train)
        reader = CellReader(ours.adata_manager)
        index = np.random.default_rng(0).permutation(train.n_obs)[: train.n_obs // BATCH * BATCH].reshape(-1, BATCH)
        mine = [reader[rows] for rows in index]
        loader = theirs._make_data_loader(adata=theirs.adata, batch_size=BATCH, shuffle=True)
        other = [b for b in loader if len(b["X"]) == BATCH]
        a, b, ratio = alternate(lambda k: our_step(mine[k % len(mine)]), lambda k: their_step(other[k % len(other)]))

        def our_epoch(k: int) -> None:
            for rows in index:
                our_step(reader[rows])

        def their_epoch(k: int) -> None:
            for batch in loader:
                their_step(batch)

        c, d, with_loader = alternate(our_epoch, their_epoch, n_warm=1, n_steps=7)
    return {
        "step_ratio": (ratio, f"{1e3 * a:.2f} ms against {1e3 * b:.2f} ms, batch {BATCH}"),
        "step_ratio_with_loader": (with_loader, f"{c:.2f} s against {d:.2f} s an epoch of {train.n_obs} cells"),
    }


def _likelihood() -> dict[str, tuple[float, str]]:
    """Time the likelihood, forward and backward, at 90 % zeros."""
    from scvi.distributions import NegativeBinomial

    from cellsmith.math.likelihood import nb_log_prob

    rng = np.random.default_rng(0)
    theta = rng.gamma(2.0, 1.0, MANY_GENES) + 0.1
    mean = rng.dirichlet(np.full(MANY_GENES, 0.3)) * 320
    counts = rng.poisson(mean * rng.gamma(theta, 1 / theta, (BATCH, MANY_GENES))).astype(np.float32)
    dense = torch.from_numpy(counts)
    rows = dense.to_sparse_csr()
    m = torch.from_numpy(np.broadcast_to(mean, counts.shape).astype(np.float32).copy() + 1e-4).requires_grad_()
    t = torch.from_numpy(theta.astype(np.float32)).requires_grad_()

    def ours(k: int) -> None:
        nb_log_prob(rows, m, t).sum().backward()
        m.grad = t.grad = None

    def theirs(k: int) -> None:
        NegativeBinomial(mu=m, theta=t, validate_args=False).log_prob(dense).sum().backward()
        m.grad = t.grad = None

    a, b, ratio = alternate(ours, theirs)
    return {"likelihood_ratio": (ratio, f"{1e3 * a:.2f} ms against {1e3 * b:.2f} ms, {(counts == 0).mean():.0%} zeros")}


def _trainings(fits: Fits) -> dict[str, tuple[float, str]]:
    """Train SCLD and scVI, one after the other in this process."""
    for name in ("scvi", "scld"):
        fits.get(name)
    s, shape = fits.seconds, f"{fits.train.n_obs} x {fits.train.n_vars}"
    return {
        "train_cpu_s": (s["scld"], f"autoencode, calibrate and diffuse, {shape}"),
        "train_ratio": (s["scld"] / s["scvi"], f"scVI, 150 epochs: {s['scvi']:.0f} CPU-s"),
    }


def _on_top(fits: Fits) -> dict[str, tuple[float, str]]:
    """Train SCLD on the trained scVI."""
    for name in ("scld", "scld_on_scvi"):
        fits.get(name)
    s = fits.seconds
    return {"from_scvi_ratio": (s["scld_on_scvi"] / s["scld"], f"{s['scld_on_scvi']:.0f} CPU-s")}


def _draws(fits: Fits) -> dict[str, tuple[float, str]]:
    """Generate 10,000 cells in 20 steps, decoded to CSR."""
    model, taken = fits.get("scld"), []
    for seed in range(3):
        started = time.process_time()
        cells = model.generate(10_000, seed=seed)
        taken.append(time.process_time() - started)
    return {"generate_10000_cpu_s": (float(np.median(taken)), f"{cells.n_obs} x {cells.n_vars}, median of 3")}


def _memory() -> dict[str, tuple[float, str]]:
    """Peak resident memory that a training adds; needs a process that has not held more before."""
    from cellsmith.model import SCLD

    rng = np.random.default_rng(0)
    x = sparse.random(MANY_CELLS, MANY_GENES, DENSITY, format="csr", dtype=np.float32, random_state=rng)
    x.data = np.ceil(3 * x.data)
    data = ad.AnnData(x)
    data.obs["half"] = np.where(np.arange(MANY_CELLS) % 2, "a", "b")
    SCLD.setup_anndata(data, labels_key="half")
    model = SCLD(data)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    model.train(1, accelerator="cpu", enable_progress_bar=False)
    trained = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    model.generate(10_000)
    drawn = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    table = MANY_CELLS * (2 * model.module.n_latent + 2) * 4 / 2**20
    dense = MANY_CELLS * MANY_GENES * 4 / 2**20
    size = f"{MANY_CELLS} x {MANY_GENES}, {DENSITY:.0%} full"
    text = f"{size}; dense it is {dense:.0f} MiB, the cached table {table:.0f} MiB"
    return {
        "memory_train_mib": (trained - before, f"growth of the peak; {text}"),
        "memory_generate_mib": (drawn - trained, "further growth of the peak for 10,000 cells"),
    }


def speed(part: Split, *, store: Store, fits: Fits | None = None) -> None:
    """Measure every row of the speed table that is missing; one torch thread.

    Parameters
    ----------
    part
        The cut whose training cells are used.
    store
        Where the rows go.
    fits
        Models of this cut; None trains them.
    """
    fits = fits or Fits(part.train, labels_key=part.labels_key, batch_key=part.batch_key, seed=part.seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    jobs: dict[str, Callable[[], dict[str, tuple[float, str]]]] = {
        "memory_train_mib": _memory,
        "likelihood_ratio": _likelihood,
        "step_ratio": lambda: _steps(part.train),
        "train_cpu_s": lambda: _trainings(fits),
        "generate_10000_cpu_s": lambda: _draws(fits),
        "from_scvi_ratio": lambda: _on_top(fits),
    }
    try:
        for first, job in jobs.items():
            if store.has(quantity=first):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = job()
            store.add([{"quantity": q, "value": v, "detail": d} for q, (v, d) in found.items()])
            logger.info("%s", {q: round(v, 3) for q, (v, _) in found.items()})
    finally:
        torch.set_num_threads(threads)
