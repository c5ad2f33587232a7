"""Step 0: labelled cells -> groups -> profiles, and the codes that the generator maps to them (eq. 11, 12, 13)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.spatial.distance import cdist
from torch import Tensor

from cellsmith._rng import Streams
from cellsmith.math import matching
from cellsmith.model.scdd import equations as eq
from cellsmith.model.scdd.request import Plan

__all__ = ["Cells", "Start", "StoredRows", "assign_nearest", "invert", "step_zero"]

INVERSION_STEPS = 50
# Spread of a class below which a dimension is taken as that narrow: a class of one cell has none.
LEAST_VARIANCE = 1e-3
# Of a profile's counts, what all its floors together add up to (eq. 12).
FLOOR = 0.01


@dataclass(frozen=True)
class StoredRows:
    """Some rows of counts that lie in a file; they are read where they are cut.

    Attributes
    ----------
    source
        The matrix on disk.
    rows
        Positions (n,), ascending.
    """

    source: Any
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and genes."""
        return len(self.rows), int(self.source.shape[1])

    def __getitem__(self, part: Any) -> sparse.csr_matrix:
        return sparse.csr_matrix(self.source[self.rows[part]])


@dataclass(frozen=True)
class Cells:
    """Labelled cells that profiles are made of.

    Attributes
    ----------
    counts
        (n, G), CSR, or :class:`StoredRows` where they are read block by block.
    labels, batch
        Codes (n,).
    mean
        Standardised posterior means (n, d), float32.
    positions
        Rows of the registered object (n,).
    """

    counts: sparse.csr_matrix | StoredRows
    labels: np.ndarray
    batch: np.ndarray
    mean: np.ndarray
    positions: np.ndarray

    def take(self, rows: np.ndarray) -> Cells:
        """Return some of the cells."""
        return Cells(self.counts[rows], self.labels[rows], self.batch[rows], self.mean[rows], self.positions[rows])

    def in_memory(self) -> Cells:
        """Return them with their counts in memory."""
        return replace(self, counts=self.counts[:]) if isinstance(self.counts, StoredRows) else self


@dataclass(frozen=True)
class Start:
    """Where the optimisation of M profiles begins.

    Attributes
    ----------
    groups
        Profile of each cell (n,).
    labels, batch
        Class of each profile, and the batch that its decoder is told (M,).
    profile
        p (M, G); None where profiles come from the generator alone.
    mass
        a (M,).
    z
        Codes (M, d).
    residual
        r0 (M, G), float64; None where there is no residual.
    inversion
        Distance between what the codes lead to and what they should (M,), standardised units.
    """

    groups: np.ndarray
    labels: np.ndarray
    batch: np.ndarray
    profile: np.ndarray | None
    mass: np.ndarray
    z: Tensor
    residual: Tensor | None
    inversion: np.ndarray


def step_zero(module: Any, cells: Cells, *, n_groups: np.ndarray, plan: Plan, streams: Streams) -> Start:
    """Return the groups of cells, their profiles, and the codes and residuals that give these profiles.

    Parameters
    ----------
    module
        Trained, in evaluation mode.
    cells
        What to distil.
    n_groups
        Profiles of each class (K,); with ``plan.within_batch`` of each class in each batch.
    plan
        How.
    streams
        "init" gives k-means starts, chosen cells and random codes.
    """
    strata, wanted, n_batch = _strata(cells, n_groups, within_batch=plan.within_batch)
    labels = np.repeat(np.arange(len(wanted)) // n_batch, wanted)
    if plan.init == "prototype":
        if plan.prototype_space == "pca":
            groups = matching.metacell_groups(cells.counts, strata, wanted, scale=module.scale, streams=streams)
        else:
            groups = matching.class_groups(cells.mean, strata, wanted, generator=streams.numpy("init", 0))
        target = _means(cells.mean, groups)
    else:
        chosen = _chosen_cells(strata, wanted, streams.numpy("init", 1))
        target = cells.mean[chosen]
        groups = assign_nearest(cells.mean, strata, target, of=np.repeat(np.arange(len(wanted)), wanted))
    # A cell that lies on another one's place can lose all its cells to it; it still stands for itself.
    groups = _fill_empty(groups, len(labels))
    batch = _majority(groups, cells.batch, len(labels))
    profile, total = matching.group_profiles(cells.counts, groups, summary=plan.profile, scale=module.scale)
    given = torch.from_numpy(labels).long(), torch.from_numpy(batch).long()
    if plan.init == "random":
        spread = np.sqrt(1.0 + plan.sigma_star**2)
        z = spread * torch.randn(len(labels), module.n_latent, generator=streams.torch("init", 2))
        residual = torch.zeros(profile.shape, dtype=torch.float64) if plan.residual else None
        return Start(groups, labels, batch, None, np.ones(len(labels)), z, residual, np.zeros(len(labels)))
    z, distance = invert(module, target, labels=labels, cells=cells, plan=plan)
    residual = None
    if plan.residual:
        floor = FLOOR / (total[:, None] * profile.shape[1])
        with torch.no_grad():
            w = _step(module, z, given[0], plan)
            residual = torch.from_numpy(np.log(np.maximum(profile, floor))) - module.log_shares(
                w, module.covariates_of(given[1])
            )
    mass = profile.sum(axis=1)
    return Start(groups, labels, batch, profile, mass, z, residual, distance)


def _step(module: Any, z: Tensor, labels: Tensor, plan: Plan) -> Tensor:
    return module.generate_step(
        z, labels, sigma_star=plan.sigma_star, guidance=plan.guidance, n_generator_steps=plan.n_generator_steps
    )


def invert(
    module: Any, target: np.ndarray, *, labels: np.ndarray, cells: Cells, plan: Plan
) -> tuple[Tensor, np.ndarray]:
    """Eq. (11): codes that the generator maps to ``target``, and how far from it they end.

    A clean latent fed to the generator at sigma_star would be pulled to its class mean.

    Parameters
    ----------
    module
        Trained, in evaluation mode.
    target
        Standardised latents (M, d).
    labels
        Their classes (M,).
    cells
        Cells whose class moments give the start.
    plan
        How.

    Returns
    -------
    Codes (M, d) and distances (M,).
    """
    centre, variance = np.zeros_like(target), np.ones_like(target)
    for k in np.unique(labels):
        own = cells.mean[cells.labels == k]
        centre[labels == k] = own.mean(axis=0)
        variance[labels == k] = np.maximum(own.var(axis=0), LEAST_VARIANCE)
    goal, classes = torch.from_numpy(target), torch.from_numpy(labels).long()
    start = eq.inversion_start(goal, torch.from_numpy(centre), torch.from_numpy(variance), sigma=plan.sigma_star)
    z = start.clone().requires_grad_(True)
    search = torch.optim.LBFGS([z], max_iter=INVERSION_STEPS, line_search_fn="strong_wolfe")

    def distance() -> Tensor:
        search.zero_grad()
        loss = (_step(module, z, classes, plan) - goal).square().sum()
        loss.backward()
        return loss

    search.step(distance)
    with torch.no_grad():
        # Where the search went astray the closed form is the better answer.
        ends = [(_step(module, code, classes, plan) - goal).norm(dim=1) for code in (z, start)]
        better = ends[0] <= ends[1]
        codes = torch.where(better[:, None], z, start)
        return codes.detach(), torch.where(better, *ends).double().numpy()


def _strata(cells: Cells, n_groups: np.ndarray, *, within_batch: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the stratum of each cell, profiles a stratum, and strata a class."""
    if not within_batch:
        return cells.labels, n_groups, 1
    n_batch = int(cells.batch.max()) + 1
    strata = cells.labels * n_batch + cells.batch
    sizes = np.bincount(strata, minlength=len(n_groups) * n_batch)
    return strata, np.minimum(np.repeat(n_groups, n_batch), sizes), n_batch


def _chosen_cells(strata: np.ndarray, wanted: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    rows = [generator.choice(np.flatnonzero(strata == k), c, replace=False) for k, c in enumerate(wanted) if c]
    return np.concatenate(rows)


def assign_nearest(points: np.ndarray, strata: np.ndarray, centres: np.ndarray, *, of: np.ndarray) -> np.ndarray:
    """Return the nearest centre of the same stratum for each point (n,); -1 where a stratum has none."""
    groups = np.full(len(points), -1, dtype=np.int32)
    for k in np.unique(of):
        rows, own = np.flatnonzero(strata == k), np.flatnonzero(of == k)
        if len(rows):
            groups[rows] = own[cdist(points[rows], centres[own]).argmin(axis=1)]
    return groups


def _fill_empty(groups: np.ndarray, n_groups: int) -> np.ndarray:
    size = np.bincount(groups[groups >= 0], minlength=n_groups)
    if size.all():
        return groups
    groups = groups.copy()
    for empty in np.flatnonzero(size == 0):
        neighbour = empty - 1 if empty and size[empty - 1] > 1 else int(size.argmax())
        groups[np.flatnonzero(groups == neighbour)[-1]] = empty
        size = np.bincount(groups[groups >= 0], minlength=n_groups)
    return groups


def _means(points: np.ndarray, groups: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(groups >= 0)
    own = groups[rows]
    member = sparse.csr_matrix((np.ones(len(rows)), (own, rows)), shape=(int(own.max()) + 1, len(points)))
    return np.asarray((member @ points) / np.bincount(own)[:, None], dtype=np.float32)


def _majority(groups: np.ndarray, batch: np.ndarray, n_groups: int) -> np.ndarray:
    table = np.zeros((n_groups, int(batch.max(initial=0)) + 1))
    kept = groups >= 0
    np.add.at(table, (groups[kept], batch[kept]), 1)
    return table.argmax(axis=1)
