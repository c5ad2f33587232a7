"""The question that SCDD answers: ``distill``, from the registered cells to the AnnData of profiles."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS

from cellsmith import _keys
from cellsmith._errors import DataWarning, SetupError, SizeError
from cellsmith._rng import Streams, isolated, resolve_seed
from cellsmith.data.splits import CellReader
from cellsmith.math.matching import log_normalize
from cellsmith.model.scdd import delivery
from cellsmith.model.scdd import equations as eq
from cellsmith.model.scdd.distilling import ClassBatches, Distiller
from cellsmith.model.scdd.judging import HeldOut, folds_of
from cellsmith.model.scdd.profiles import Cells, Start, StoredRows, assign_nearest, step_zero
from cellsmith.model.scdd.request import Plan, check_plan, profiles_per_class
from cellsmith.nn.pool import KINDS

__all__ = ["DistillMixin"]

# Largest dense table of profiles x genes, entries of 8 bytes.
MAX_ENTRIES = 2**29


class DistillMixin:
    """:meth:`distill` of :class:`cellsmith.model.SCDD`."""

    # Networks that matching compares sets on. The benchmark leaves some out and lets them judge.
    pool_kinds: tuple[str, ...] = KINDS

    def distill(
        self,
        n_per_class: int | Mapping[str, int] | None = 10,
        *,
        ratio: float | None = None,
        allocation: str = "equal",
        variant: str = "default",
        init: str | None = None,
        profile: str = "mean_log",
        prototype_space: str = "pca",
        residual: bool | None = None,
        objective: str | Sequence[str] | None = None,
        sigma_star: float = 1.0,
        n_generator_steps: int = 1,
        guidance: float = 1.5,
        max_steps: int | None = None,
        selection: str | None = None,
        validation_size: float = 0.25,
        refit: bool = True,
        soft_labels: bool | None = None,
        library_size: Any = "deep",
        max_library: float = 20_000,
        count_mode: str = "round",
        within_batch: bool = False,
        network_queue: int = 0,
        weights: Mapping[str, float] | None = None,
        key_added: str = "scdd",
        batch_size: int = 256,
        seed: Any = 0,
    ) -> AnnData:
        """Distil the labelled cells into a few profiles a class; the source is not touched.

        Parameters
        ----------
        n_per_class
            Profiles of a class: a number for all, or class -> number; None with ``ratio``. A class with fewer cells
            gets one profile a cell.
        ratio
            Profiles altogether, as a fraction of the labelled cells.
        allocation
            How ``ratio`` is shared: "equal", "proportional" or "sqrt" (of the size of the class).
        variant
            "default", or "paper": ``init="random", residual=False, objective=("gradient", "distribution"),
            selection="last", soft_labels=False``.
        init
            "prototype" (k-means groups of each class), "real" (random cells) or "random" (noise).
        profile
            What a group looks like: "mean_log", the mean of its log-normalised cells, or "sum" of its counts.
        prototype_space
            Where k-means runs: "pca" or "latent".
        residual
            Give each profile a free correction of its log rates, so that step 0 is the group profile itself.
        objective
            What is made small, one or several: "readers", the loss of classifiers that are fitted to the profiles (it
            gained one to three points with one profile a class and nothing with more); "gradient" and "distribution",
            the published matching (it gained nothing). None with the default variant: nothing, step 0 is returned.
        sigma_star
            Noise level of the single step; 20 is the step from pure noise, where codes hardly matter.
        n_generator_steps
            Calls of the generator from ``sigma_star`` down.
        guidance
            Weight of the class in the generator.
        max_steps
            Most optimiser steps; None is 100 where there is an objective; 0 returns step 0.
        selection
            "best": the best iterate on held-out training cells, step 0 among them; "last".
        validation_size
            Share of each class's cells that judges iterates at a time; with ``refit`` all take their turn.
        refit
            Repeat the chosen number of steps on all cells; else the iterate of one part is returned.
        soft_labels
            Class probabilities from a cross-fitted teacher; else the label itself.
        library_size
            Depth: "deep" (counts of the cells that a profile stands for, at most ``max_library``), "sum", "median"
            (of single cells of the class), a number, or one a profile.
        max_library
            Largest depth for "deep", counts.
        count_mode
            "round" (exact totals, no randomness), "multinomial" or "nb".
        within_batch
            Distil each class in each batch by itself.
        network_queue
            Number of partly trained networks for distribution matching; 0 takes a fresh one a step.
        weights
            Weights of the loss by name: ``gradient_weight``, ``distribution_weight``, ``readers_weight``,
            ``variance_weight``, ``separation_weight``, ``code_weight``, ``residual_weight``.
        key_added
            Name of the outputs.
        batch_size
            Real cells of a class at a step.
        seed
            Seed of everything random.

        Returns
        -------
        AnnData of M profiles (k = ``key_added``): ``.X`` CSR int32 counts; ``.layers["k_expected"]`` expected counts,
        ``.layers["k_log"]`` log-normalised, what a classifier reads; labels, ``k_weight``, ``k_n_source_cells``,
        ``k_library``, ``k_confidence`` and ``is_synthetic`` in ``.obs``; ``X_k``, ``k_code``, ``k_proba`` in ``.obsm``;
        ``.uns["k"]`` with parameters, the selection, and which source cells each profile stands for.

        Raises
        ------
        NotTrainedError
            Before :meth:`train`.
        SetupError
            For an unknown name or a number out of range.
        SizeError
            If profiles x genes would not fit.
        ConvergenceError
            If a term of the loss stops being finite.
        """
        self._require_trained("distill")
        key_added = _keys.validate(key_added)
        plan = check_plan(
            **{k: v for k, v in locals().items() if k in Plan.__dataclass_fields__},
        )
        streams = Streams(resolve_seed(seed))
        # M profiles are few, and their second derivatives many small operations: a CPU is the place for them.
        self.to_device("cpu")
        cells = self._labelled_cells()
        if plan.max_steps:
            # Steps read the cells again and again.
            cells = cells.in_memory()
        sizes = np.bincount(cells.labels, minlength=len(self.classes))
        given, asked = profiles_per_class(
            sizes, list(self.classes), n_per_class=n_per_class, ratio=ratio, allocation=allocation
        )
        self._check_wanted(plan, given=given, asked=asked, cells=cells)
        with isolated(streams.integer("noise")), _frozen(self.module):
            made, report = self._distilled(cells, given, plan, streams)
        params = {k: v for k, v in asdict(plan).items() if k != "library_size" or np.ndim(v) == 0}
        block = self._block(
            params={**params, "objective": list(plan.objective), "seed": streams.seed, "allocation": allocation},
            **report,
            capped={
                "class": self.classes[given < asked].astype(str),
                "asked": asked[given < asked],
                "given": given[given < asked],
            },
            empty_strata=self._empty_strata(cells) if plan.within_batch else {},
            codes_only=not plan.residual,
            variant=plan.variant,
            n_unlabelled=int(self.n_registered - len(cells.labels)),
        )
        return delivery.assemble(self, made, cells=cells, plan=plan, key=key_added, block=block, streams=streams)

    def _labelled_cells(self) -> Cells:
        """Return the labelled cells of the registered object, without those of a test split."""
        if self.adata is None:
            raise SetupError(
                "distill reads the training cells, but the model has no AnnData. Load it with one: "
                "SCDD.load(path, adata=adata)."
            )
        labels, x = self._label_codes(), self._counts()
        kept = labels < len(self.classes)
        if getattr(self, "test_indices", None) is not None:
            kept[self.test_indices] = False
        rows = np.flatnonzero(kept)
        batch = np.asarray(self.adata_manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY)).reshape(-1)
        mean, _ = self._encode(CellReader(self.adata_manager), rows)
        with torch.no_grad():
            standard = self.module.standardise(mean).numpy()
        return Cells(_rows_of(x, rows), labels[rows], batch[rows].astype(np.int64), standard, rows)

    def _empty_strata(self, cells: Cells) -> dict[str, np.ndarray]:
        """Return class and batch of the combinations without a cell, which get no profile."""
        table = np.full((len(self.classes), len(self.batches)), False)
        table[cells.labels, cells.batch] = True
        label, batch = np.nonzero(~table)
        return {
            "class": self.classes.astype(str)[label],
            "batch": self.batches.astype(str)[batch],
        }

    def _check_wanted(self, plan: Plan, *, given: np.ndarray, asked: np.ndarray, cells: Cells) -> None:
        capped = np.flatnonzero(given < asked)
        if len(capped):
            k = capped[0]
            warnings.warn(
                f"Classes with fewer cells than the profiles asked for: {len(capped)}, first {self.classes[k]!r} with "
                f"{given[k]} cells for {asked[k]} profiles; each of their cells becomes a profile.",
                DataWarning,
                stacklevel=3,
            )
        n_profiles = int(given.sum()) * (int(cells.batch.max()) + 1 if plan.within_batch else 1)
        if n_profiles * self.module.n_input > MAX_ENTRIES:
            size = n_profiles * self.module.n_input * 8 / 2**30
            raise SizeError(f"{n_profiles} profiles x {self.module.n_input} genes need {size:.1f} GiB; at most 4 GiB.")
        if not plan.within_batch:
            delivery.check_library(plan.library_size, n_profiles)

    def _distilled(
        self, cells: Cells, n_groups: np.ndarray, plan: Plan, streams: Streams
    ) -> tuple[delivery.Delivered, dict[str, Any]]:
        """Return finished profiles, and what to record of how they came about."""
        n_steps, report = plan.max_steps, {}
        iterate: Distiller | None = None
        if plan.judges:
            iterate, n_steps, report = self._select(cells, n_groups, plan, streams)
        if plan.judges and not plan.refit:
            groups = self._regroup(cells, iterate)
        else:
            start = step_zero(self.module, cells, n_groups=n_groups, plan=plan, streams=streams)
            iterate = self._distiller(cells, start, plan, streams)
            history = iterate.run(n_steps)
            report["loss"] = history
            groups = start.groups if plan.init != "random" else self._regroup(cells, iterate)
        report |= {"selected_step": n_steps, "inversion": iterate.start.inversion}
        return self._finish(iterate, n_steps, groups, cells=cells, plan=plan, streams=streams), report

    def _distiller(self, cells: Cells, start: Start, plan: Plan, streams: Streams) -> Distiller:
        batches = None
        if plan.max_steps:
            batches = ClassBatches(
                log_normalize(cells.counts, scale=self.module.scale),
                cells.labels,
                n_classes=len(self.classes),
                batch_size=plan.batch_size,
                streams=streams,
            )
        return Distiller(self.module, start, plan=plan, batches=batches, streams=streams, kinds=self.pool_kinds)

    def _select(
        self, cells: Cells, n_groups: np.ndarray, plan: Plan, streams: Streams
    ) -> tuple[Distiller, int, dict[str, Any]]:
        """Optimise on parts of the cells; return the chosen iterate of the first part, its step, and the curve."""
        n_folds = max(2, round(1.0 / plan.validation_size))
        fold = folds_of(cells.labels, n_folds=n_folds, generator=streams.numpy("split"))
        # Every cell judges once where the result is made anew of all cells; else one part is held out and returned.
        runs = [self._judged(cells, fold == f, n_groups, plan, streams) for f in range(n_folds if plan.refit else 1)]
        judge = HeldOut.pooled([held for _, held, _ in runs])
        choice = judge.choose()
        iterate, _, kept = runs[0]
        with torch.no_grad():
            iterate.z.copy_(kept[choice.position][0])
            if iterate.r is not None:
                iterate.r.copy_(kept[choice.position][1])
        curve = {**judge.curve(), "gain": choice.gain, "standard_error": choice.standard_error}
        return iterate, judge.steps[choice.position], {"selection": {**curve, "n_held_out": len(judge.labels)}}

    def _judged(
        self, cells: Cells, held: np.ndarray, n_groups: np.ndarray, plan: Plan, streams: Streams
    ) -> tuple[Distiller, HeldOut, list[tuple[torch.Tensor, torch.Tensor | None]]]:
        """Optimise without the cells ``held``; return the last iterate, what they say of all, and all iterates."""
        fit, judged = cells.take(np.flatnonzero(~held)), cells.take(np.flatnonzero(held))
        left = np.minimum(n_groups, np.bincount(fit.labels, minlength=len(n_groups)))
        start = step_zero(self.module, fit, n_groups=left, plan=plan, streams=streams)
        iterate = self._distiller(fit, start, plan, streams)
        phi = log_normalize(judged.counts, scale=self.module.scale).toarray()
        judge = HeldOut(phi, judged.labels, start.labels)
        kept: list[tuple[torch.Tensor, torch.Tensor | None]] = []

        def watch(step: int) -> None:
            with torch.no_grad():
                rho = start.profile if step == 0 and start.residual is not None else None
                view = iterate.view().numpy() if rho is None else np.log1p(self.module.scale * rho)
            kept.append((iterate.z.detach().clone(), None if iterate.r is None else iterate.r.detach().clone()))
            judge.judge(step, np.asarray(view, dtype=np.float64))

        watch(0)
        iterate.run(plan.max_steps, watch)
        return iterate, judge, kept

    @torch.no_grad()
    def _regroup(self, cells: Cells, iterate: Distiller) -> np.ndarray:
        """Return the nearest profile of its class for each cell, in latent space."""
        n_batch = int(cells.batch.max()) + 1 if iterate.plan.within_batch else 1
        strata = cells.labels * n_batch + (cells.batch if n_batch > 1 else 0)
        of = iterate.start.labels * n_batch + (iterate.start.batch if n_batch > 1 else 0)
        return assign_nearest(cells.mean, strata, iterate.estimate().numpy(), of=of)

    @torch.no_grad()
    def _finish(
        self, iterate: Distiller, n_steps: int, groups: np.ndarray, *, cells: Cells, plan: Plan, streams: Streams
    ) -> delivery.Delivered:
        start, n_classes = iterate.start, len(self.classes)
        unmoved = n_steps == 0 and start.residual is not None and start.profile is not None
        rho = start.profile if unmoved else iterate.log_rho().exp().numpy()
        hard = np.eye(n_classes)[start.labels]
        probabilities = hard
        if plan.soft_labels:
            guessed = delivery.teacher(cells, n_classes=n_classes, scale=self.module.scale, streams=streams)
            soft = eq.soft_labels(guessed, groups, n_groups=len(hard))
            probabilities = np.where(np.isnan(soft), hard, soft)
        delivery.check_library(plan.library_size, len(hard))
        return delivery.Delivered(
            rho=rho,
            library=delivery.libraries(plan, cells, groups=groups, labels=start.labels),
            labels=start.labels,
            batch=start.batch,
            latent=self.module.restore(iterate.estimate()).numpy(),
            code=iterate.z.detach().numpy().copy(),
            probabilities=probabilities,
            groups=groups,
        )


def _rows_of(x: Any, rows: np.ndarray) -> sparse.csr_matrix | StoredRows:
    """Return rows of registered counts; those in a file stay there, unless they lie there by columns."""
    if not (isinstance(x, np.ndarray) or sparse.issparse(x)):
        if getattr(x, "format", "csr") == "csr":
            return StoredRows(x, rows)
        x = x[:]
    x = sparse.csr_matrix(x)
    # Nothing is changed in the counts, so that those of all cells need no copy.
    return x if len(rows) == x.shape[0] else x[rows]


@contextmanager
def _frozen(module: torch.nn.Module) -> Iterator[None]:
    """Take the weights off the tape: only codes and residuals are differentiated."""
    module.eval().requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
