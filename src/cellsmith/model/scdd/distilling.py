"""The optimisation of codes and residuals: one profile's way from its code to a classifier's gradient and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import cross_entropy

from cellsmith._errors import ConvergenceError
from cellsmith._rng import Streams
from cellsmith.math import matching
from cellsmith.model.scdd import equations as eq
from cellsmith.model.scdd.profiles import Start
from cellsmith.model.scdd.request import Plan
from cellsmith.nn.pool import KINDS, PoolNetwork

__all__ = ["ClassBatches", "Distiller", "Pool", "loop_sizes"]

CHECK_EVERY = 25
CLIP = 1.0
NETWORK_LR = 0.01
# More profiles than these are rendered and differentiated in parts (eq. 20).
ROWS_AT_ONCE = 512
# Tables of cells up to this many entries are kept dense: cutting them out of CSR at every step costs more.
DENSE_ENTRIES = 50_000_000
QUEUE_RENEWED_EVERY = 30
QUEUE_CLASS_WEIGHT = 0.1


class ClassBatches:
    """Log views of real cells, a fresh batch of every class at every step.

    Parameters
    ----------
    phi
        Log views (n, G), CSR.
    labels
        Classes (n,).
    n_classes
        K.
    batch_size
        Largest batch of a class.
    streams
        "batches" draws the cells.
    """

    def __init__(
        self, phi: sparse.csr_matrix, labels: np.ndarray, *, n_classes: int, batch_size: int, streams: Streams
    ) -> None:
        small = phi.shape[0] * phi.shape[1] <= DENSE_ENTRIES
        held = phi.astype(np.float32)
        self._phi: Any = torch.from_numpy(held.toarray()) if small else held
        self._rows = [np.flatnonzero(labels == k) for k in range(n_classes)]
        self._size, self._streams = batch_size, streams

    def draw(self, step: int) -> list[Tensor]:
        """Return one table (n_k, G) a class."""
        generator, out = self._streams.numpy("batches", step), []
        for rows in self._rows:
            if len(rows) > self._size:
                rows = np.sort(generator.choice(rows, self._size, replace=False))
            # Always in memory of torch: numpy aligns its arrays by chance, and the last bit of a product depends on it.
            part = torch.from_numpy(self._phi[rows].toarray()).clone() if sparse.issparse(self._phi) else None
            out.append(self._phi[torch.from_numpy(rows)] if part is None else part)
        return out


def loop_sizes(n_per_class: int) -> tuple[int, int]:
    """Return how many steps a matched network lives, and how many steps it learns from the profiles between two.

    Parameters
    ----------
    n_per_class
        Largest number of profiles of a class.
    """
    return (1, 0) if n_per_class <= 1 else (10, 10) if n_per_class <= 10 else (50, 10)


class Pool:
    """The networks that are matched: drawn at random from four kinds, renewed, and taught by the profiles between.

    Parameters
    ----------
    n_input, n_classes
        Genes and classes.
    n_per_class
        Largest number of profiles of a class.
    queue
        Number of partly trained networks for distribution matching; 0 draws a fresh one a step.
    kinds
        Kinds to draw from.
    streams
        "pool" draws kinds and weights.
    """

    def __init__(
        self, n_input: int, n_classes: int, *, n_per_class: int, queue: int, kinds: tuple[str, ...], streams: Streams
    ) -> None:
        self._sizes, self._kinds, self._streams = (n_input, n_classes), kinds, streams
        self._life, self._lessons = loop_sizes(n_per_class)
        self._matched: PoolNetwork | None = None
        self._queue: list[PoolNetwork] = [self._fresh(2, i) for i in range(queue)]

    def _fresh(self, *keys: int) -> PoolNetwork:
        kind = self._kinds[int(self._streams.numpy("pool", *keys).integers(len(self._kinds)))]
        return PoolNetwork(*self._sizes, kind=kind, generator=self._streams.torch("pool", *keys))

    def matched(self, step: int, views: Tensor, labels: Tensor) -> PoolNetwork:
        """Return the network whose gradients are matched at a step, f of eq. (15)."""
        if self._matched is None or step % self._life == 0:
            self._matched = self._fresh(0, step)
        elif self._lessons:
            _teach(self._matched, views.detach(), labels, n_steps=self._lessons)
        return self._matched

    def embedding(self, step: int, real: list[Tensor]) -> PoolNetwork:
        """Return the network whose features are matched at a step, psi of eq. (16)."""
        if not self._queue:
            return self._fresh(1, step)
        position = int(self._streams.numpy("pool", 3, step).integers(len(self._queue)))
        if step and step % QUEUE_RENEWED_EVERY == 0:
            self._queue[position] = self._fresh(4, step)
        labels = torch.cat([torch.full((len(b),), k, dtype=torch.long) for k, b in enumerate(real)])
        _teach(self._queue[position], torch.cat(real), labels, n_steps=1)
        return self._queue[position]

    @property
    def class_weight(self) -> float:
        """Weight of the cross-entropy of the profiles under partly trained networks; 0 for fresh ones."""
        return QUEUE_CLASS_WEIGHT if self._queue else 0.0


def _teach(network: PoolNetwork, x: Tensor, labels: Tensor, *, n_steps: int) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=NETWORK_LR)
    for _ in range(n_steps):
        optimizer.zero_grad()
        cross_entropy(network(x), labels).backward()
        optimizer.step()


class Distiller:
    """Codes and residuals of M profiles, and one optimiser step on them.

    Parameters
    ----------
    module
        Trained; its weights are not touched.
    start
        Step 0.
    plan
        How.
    batches
        Real cells; None where no step is taken.
    streams
        "pool" draws the networks.
    kinds
        Kinds of networks to match against.
    """

    def __init__(
        self,
        module: Any,
        start: Start,
        *,
        plan: Plan,
        batches: ClassBatches | None,
        streams: Streams,
        kinds: tuple[str, ...] = KINDS,
    ) -> None:
        self.module, self.start, self.plan, self.batches = module, start, plan, batches
        self.labels, self.batch = torch.from_numpy(start.labels).long(), torch.from_numpy(start.batch).long()
        self.mass = torch.from_numpy(start.mass)
        self.z = start.z.clone().requires_grad_(True)
        self.r = None if start.residual is None else start.residual.clone().requires_grad_(True)
        self.n_calls = 0
        self.settings: dict[str, float] | None = None
        largest = int(np.bincount(start.labels).max())
        self.pool = Pool(
            module.n_input, module.n_labels, n_per_class=largest, queue=plan.network_queue, kinds=kinds, streams=streams
        )

    def estimate(self, rows: slice = slice(None)) -> Tensor:
        """Return the standardised latents (m, d) that the codes lead to."""
        self.n_calls += 1
        plan = self.plan
        return self.module.generate_step(
            self.z[rows],
            self.labels[rows],
            sigma_star=plan.sigma_star,
            guidance=plan.guidance,
            n_generator_steps=plan.n_generator_steps,
        )

    def log_rho(self, rows: slice = slice(None)) -> Tensor:
        """Eq. (13): log rho (m, G) of the profiles, float64."""
        shares = self.module.log_shares(self.estimate(rows), self.module.covariates_of(self.batch[rows]))
        return eq.render(shares, None if self.r is None else self.r[rows], self.mass[rows])

    def view(self, rows: slice = slice(None)) -> Tensor:
        """Eq. (14): log view (m, G) of the profiles, float32: what the networks read."""
        return eq.log_view(self.log_rho(rows), scale=self.module.scale).float()

    def loss(self, views: Tensor, step: int) -> dict[str, Tensor]:
        """Eq. (19): the terms that read the log views, each with its weight; penalties follow in :meth:`penalty`."""
        weights, plan = self.plan.weights, self.plan
        assert self.batches is not None
        classes = range(self.module.n_labels)
        own = [views[self.labels == k] for k in classes]
        real = [b if len(s) else b[:0] for b, s in zip(self.batches.draw(step), own, strict=True)]
        terms = {}
        if "readers" in plan.objective:
            terms["readers"] = weights["readers_weight"] * self._read(views, real)
        if set(plan.objective) != {"readers"}:
            # Matched networks know nothing of each other's classes; the readers above do.
            named = cross_entropy(self.module.readout(views), self.labels)
            terms["separation"] = weights["separation_weight"] * named
        if "gradient" in plan.objective:
            network = self.pool.matched(step, views, self.labels)
            matched = matching.gradient_matching(network, real, own, parameters=network.weights)
            terms["gradient"] = weights["gradient_weight"] * matched
        if "distribution" in plan.objective:
            network = self.pool.embedding(step, real)
            with torch.no_grad():
                seen = [network.features(b) for b in real]
            shown = [network.features(s) for s in own]
            matched = matching.distribution_matching(seen, shown, variance_weight=weights["variance_weight"])
            terms["distribution"] = weights["distribution_weight"] * matched
            if self.pool.class_weight:
                terms["queue"] = self.pool.class_weight * cross_entropy(network(views), self.labels)
        return terms

    def _read(self, views: Tensor, real: list[Tensor]) -> Tensor:
        """Eq. (23): what readers of the profiles lose on real cells, read in the way that suits step 0."""
        cells, labels = torch.cat(real), torch.cat([torch.full((len(b),), k) for k, b in enumerate(real)])
        if self.settings is None:
            self.settings = matching.settle_readers(cells, labels, views.detach(), t=self.labels)
        temperature, sharpness = self.settings["temperature"], self.settings["sharpness"]
        by_distance = matching.neighbour_loss(cells, labels, views, t=self.labels, temperature=temperature)
        return by_distance + matching.ridge_loss(cells, labels, views, t=self.labels, sharpness=sharpness)

    def penalty(self, rows: slice = slice(None)) -> Tensor:
        """Eq. (19): what keeps codes and residuals near their start."""
        weights = self.plan.weights
        total = weights["code_weight"] * eq.code_penalty(self.z[rows], self.start.z[rows]).double()
        if self.r is not None:
            kept = eq.residual_penalty(self.r[rows], self.start.residual[rows])
            total = total + weights["residual_weight"] * kept
        return total

    def backward(self, step: int) -> dict[str, float]:
        """Put the gradient of eq. (19) into the codes and residuals; return the terms.

        Many profiles go in two passes, eq. (20): the gradient by the log views first, then through the generator part
        by part, which is the chain rule and needs memory for one part only.
        """
        n = len(self.labels)
        parts = [slice(i, min(n, i + ROWS_AT_ONCE)) for i in range(0, n, ROWS_AT_ONCE)]
        if len(parts) == 1:
            terms = self.loss(self.view(), step)
            terms["penalty"] = self.penalty()
            self._refuse_nan(terms, step)
            torch.stack([t.double() for t in terms.values()]).sum().backward()
            return {k: float(v.detach()) for k, v in terms.items()}
        with torch.no_grad():
            views = torch.cat([self.view(rows) for rows in parts])
        views.requires_grad_(True)
        terms = self.loss(views, step)
        self._refuse_nan(terms, step)
        (pull,) = torch.autograd.grad(torch.stack([t.double() for t in terms.values()]).sum(), views)
        terms["penalty"] = torch.zeros(())
        for rows in parts:
            penalty = self.penalty(rows)
            ((self.view(rows) * pull[rows]).sum().double() + penalty).backward()
            terms["penalty"] = terms["penalty"] + penalty.detach()
        return {k: float(v.detach()) for k, v in terms.items()}

    def _refuse_nan(self, terms: dict[str, Tensor], step: int) -> None:
        bad = [k for k, v in terms.items() if not bool(torch.isfinite(v))]
        if bad:
            error = ConvergenceError(
                f"Stage 'codes' met a non-finite term {bad[0]!r} at step {step}; the codes and residuals before it are "
                f"in .codes and .residual of this error. Lower its weight, for example "
                f"weights={{'{bad[0]}_weight': 0.1}}, or pass max_steps={step}."
            )
            error.codes = self.z.detach().clone()
            error.residual = None if self.r is None else self.r.detach().clone()
            raise error

    def run(self, n_steps: int, watch: Callable[[int], None] | None = None) -> dict[str, np.ndarray]:
        """Take steps of Adam with a learning rate that falls along a cosine over ``plan.max_steps``.

        Parameters
        ----------
        n_steps
            How many.
        watch
            Called with the number of steps taken, every 25 and at the end.

        Returns
        -------
        Name of a term -> its mean over every 25 steps.
        """
        own = [self.z] if self.r is None else [self.z, self.r]
        lr = 0.05 if self.plan.init == "random" else 0.02
        optimizer = torch.optim.Adam(own, lr=lr)
        history: list[dict[str, float]] = []
        for step in range(n_steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1.0 + math.cos(math.pi * step / max(1, self.plan.max_steps)))
            optimizer.zero_grad()
            history.append(self.backward(step))
            torch.nn.utils.clip_grad_norm_(own, CLIP)
            optimizer.step()
            if watch is not None and ((step + 1) % CHECK_EVERY == 0 or step + 1 == n_steps):
                watch(step + 1)
        return _means_of(history)


def _means_of(history: list[dict[str, float]]) -> dict[str, np.ndarray]:
    parts = [history[i : i + CHECK_EVERY] for i in range(0, len(history), CHECK_EVERY)]
    return {k: np.array([np.mean([h[k] for h in part]) for part in parts]) for k in (history[0] if history else {})}
