"""What the stages of DPDCAN do: refusals, releases, private steps, and the local head, which comes last."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cellsmith._errors import PrivacyError
from cellsmith._rng import Streams
from cellsmith.data import panel as panels
from cellsmith.data.poisson import CellTable, PoissonSplit
from cellsmith.data.splits import CellSplit, split_cells
from cellsmith.math import privacy
from cellsmith.math.privacy.moments import CENTER_SHARE
from cellsmith.model._stage import Stage, StagePlan
from cellsmith.model.dpdcan import equations as eq
from cellsmith.model.dpdcan.budget import CLUSTER_PART, KMEANS, PrivacyPlan, plan_budget
from cellsmith.model.dpdcan.checking import check_wiring
from cellsmith.model.dpdcan.local import fit_local_head
from cellsmith.model.dpdcan.published import EPOCHS, NOISED
from cellsmith.model.dpdcan.settings import PRIVATE
from cellsmith.model.dpdcan.stepping import PrivateStagePlan, PrivateStep

__all__ = ["TrainingMixin"]

FEWEST_EXPECTED = 16


class TrainingMixin:
    """Stages of :class:`cellsmith.model.DPDCAN`."""

    @property
    def _is_private(self) -> bool:
        return self._given["mode"] in PRIVATE

    # --- before anything is spent ---------------------------------------------------------------------------------

    def _check_request(self, request: Mapping[str, Any]) -> None:
        """Refuse options of ``train`` that would look at private cells, or change the rate at which they are drawn."""
        if not self._is_private:
            return
        reasons = {
            "early_stopping": (request["early_stopping"] is True, "stopping early looks at private cells"),
            "train_size": (request["train_size"] not in (None, 1, 1.0), "a validation split is looked at unpaid"),
            "validation_size": (bool(request["validation_size"]), "a validation split is looked at unpaid"),
            "batch_size": (request["batch_size"] is not None, "the rate is sample_rate, which the accounting needs"),
            "datamodule": (request["datamodule"] is not None, "its batches are not Poisson samples of the units"),
        }
        for name, (wrong, why) in reasons.items():
            if wrong:
                raise PrivacyError(
                    f"{name}={request[name]!r} cannot be used in mode={self._given['mode']!r}: {why}. Leave it out."
                )

    def _check_devices(self, chosen: Any) -> None:
        try:
            super()._check_devices(chosen)
        except ValueError as error:
            raise PrivacyError(str(error)) from None

    def _draw_split(self, streams: Streams, args: Mapping[str, Any]) -> Any:
        if self._is_private or self._given["mode"] == "reference" or args["train_size"] is None:
            # Without a wish for validation all cells are used, as in the published code.
            args = {**args, "train_size": 1.0, "validation_size": 0.0, "shuffle_set_split": False}
        return super()._draw_split(streams, args)

    def _planned_stages(
        self, max_epochs: Any, plan_kwargs: Mapping[str, Any], batch_size: int | None, *, again: bool = False
    ) -> tuple[Stage, ...]:
        stages = super()._planned_stages(max_epochs, plan_kwargs, batch_size, again=again)
        if not again:
            self._prepare(stages)
        return stages

    def _prepare(self, stages: tuple[Stage, ...]) -> None:
        """Settle the whole budget and test the wiring, or refuse."""
        given = self._given
        self._units, n_units = panels.unit_codes(self._count_adata().obs, self._unit_key)
        plan = PrivacyPlan(
            mode=given["mode"],
            ledger=self.ledger_ if self._is_private else None,
            n_units=n_units,
            sample_rate=given["sample_rate"],
            clip_norm=given["clip_norm"],
            simulated=given["unsafe_reproducible"],
            published_epochs=sum(stage.max_epochs for stage in stages if stage.name in EPOCHS),
            **self._trained_parts(stages),
        )
        if self._is_private:
            self._count_steps(plan, stages, n_units)
            bought = [name for name, wanted in self._bought().items() if wanted]
            plan_budget(plan, given, bought=bought, done=self.released_, with_pca=self._with_pca)
            if plan.steps:
                plan.wiring = check_wiring(self._new_module(), clip_norm=given["clip_norm"], weights=self._weights())
                self.facts_ = {**self.facts_, "wiring": plan.wiring.passed}
        self.privacy_plan = plan

    def _trained_parts(self, stages: tuple[Stage, ...]) -> dict[str, tuple[str, ...]]:
        first = next((s.trains for s in stages if s.name in ("instance", "pretrain")), ())
        mode = self._given["mode"]
        noised = {"none": (), "reference": NOISED[self._given["noised_block"]]}.get(mode, first)
        return {"trained": first, "noised": noised}

    def _count_steps(self, plan: PrivacyPlan, stages: tuple[Stage, ...], n_units: int) -> None:
        q = plan.sample_rate
        for stage in stages:
            if stage.batches == "poisson":
                whole = self._given["n_steps"] if stage.name == "instance" else self._n_cluster_steps
                plan.steps[stage.name] = min(whole, math.ceil(stage.max_epochs / q))
        if plan.steps and (n_units < 1 / q or q * n_units < FEWEST_EXPECTED):
            raise PrivacyError(
                f"{n_units} units at sample_rate={q} give batches of {q * n_units:.1f} on average; at least "
                f"{FEWEST_EXPECTED} are needed for a gradient above its noise. Raise sample_rate to "
                f"{min(1.0, FEWEST_EXPECTED / n_units):.2g} or more."
            )

    def _bought(self) -> dict[str, bool]:
        """Return which releases beside private PCA the settings ask for."""
        given = self._given
        needs_intercept = self._with_pca and not self._pca_only
        return {
            "count": given["n_units_policy"] == "dp_count",
            "intercept": needs_intercept and given["public_adata"] is None,
            "moments": given["moments"] == "dp",
            "kmeans": given["cluster_head"] == "dp",
            "density": given["latent_density"] is not None,
        }

    @property
    def _n_cluster_steps(self) -> int:
        return max(1, math.ceil(CLUSTER_PART * self._given["n_steps"]))

    # --- cells as the stages read them ----------------------------------------------------------------------------

    def _open_cells(self, streams: Streams) -> None:
        """Cut the counts to the panel once, and choose who draws noise and batches."""
        if self._table is not None:
            return
        adata = self._count_adata()
        counts = panels.panel_counts(adata, panels.check_private_counts(adata, self._layer), self._panel)
        simulated = self._given["unsafe_reproducible"] or not self._is_private
        self._noise, draws = (
            (streams.numpy("noise"), streams.numpy("batches"))
            if simulated
            else (privacy.secret_generator(), privacy.secret_generator())
        )
        self._draws = draws
        self._table = CellTable(
            counts,
            self._batch_codes(adata),
            units=self._units,
            n_units=None if self._units is None else int(self._units.max()) + 1,
            most=self._given["max_cells_per_unit"],
            generator=draws,
        )

    def _unit_blocks(self, rows: Any) -> Iterator[Any]:
        """Yield what units contribute: ``rows`` maps counts (b, G) to rows of norm at most 1."""
        counts, size = self._table.counts, panels.ROWS
        blocks = (rows(counts[s : s + size]) for s in range(0, counts.shape[0], size))
        if self._units is None:
            yield from blocks
        else:
            most = self._given["max_cells_per_unit"]
            whole = np.vstack(list(blocks))
            yield privacy.unit_means(whole, self._units, n_units=self._table.n_units, most=most, generator=self._draws)

    # --- stages ---------------------------------------------------------------------------------------------------

    def _release(self, streams: Streams) -> None:
        """Buy what the settings ask for, each entered in the ledger before its noise is drawn."""
        self._open_cells(streams)
        plan, n_genes = self.privacy_plan, len(self._panel.names)
        if "count" in plan.mu:
            plan.spend("count")
            noise = self._noise.standard_normal() * plan.sd("count")
            self.n_units_ = max(1.0, self._table.n_units + float(noise))
            self.released_ = [*self.released_, "count"]
        plan.n_units = self.n_units_ or plan.n_units
        if self._given["public_adata"] is not None:
            self._keep_public_numbers()
        if "moments" in plan.mu:
            self._release_moments(plan, n_genes)
        if "pca" in plan.mu:
            plan.spend("pca")
            # Means over the cells of a donor are dense.
            rows = privacy.unit_counts if self._units is None else privacy.transform_counts
            moment = privacy.noisy_second_moment(
                self._unit_blocks(rows), n_genes, sd=plan.sd("pca"), generator=self._noise
            )
            self._keep_axes(moment, plan.sd("pca"))
            self.released_ = [*self.released_, "pca"]
        if "intercept" in plan.mu:
            plan.spend("intercept")
            total = privacy.noisy_sum(
                self._unit_blocks(_root_shares), n_genes, sd=plan.sd("intercept"), generator=self._noise
            )
            total = torch.as_tensor(total, dtype=torch.float32)
            self.fixed_["intercept"] = eq.gene_intercept(total, plan.n_units)
            self.released_ = [*self.released_, "intercept"]
        self._put_fixed()

    def _release_moments(self, plan: PrivacyPlan, n_genes: int) -> None:
        plan.spend("moments")
        total = privacy.noisy_sum(
            self._unit_blocks(_first_two), 2 * n_genes, sd=plan.sd("moments"), generator=self._noise
        )
        mean, square = np.split(total * np.sqrt(2) / plan.n_units, 2)
        variance = np.maximum(square - mean**2, 1e-3 / n_genes)
        self.fixed_["gene_mean"] = torch.as_tensor(mean, dtype=torch.float32)
        self.fixed_["gene_sd"] = torch.as_tensor(np.sqrt(variance), dtype=torch.float32)
        self.released_ = [*self.released_, "moments"]

    def _keep_public_numbers(self) -> None:
        """Take intercept and moments from public cells: free."""
        counts = self._public_table().counts
        rows, shares = privacy.transform_counts(counts), _root_shares(counts)
        total = torch.as_tensor(shares.sum(axis=0), dtype=torch.float32)
        self.fixed_["intercept"] = eq.gene_intercept(total, float(len(shares)))
        if self._given["moments"] == "public":
            self.fixed_["gene_mean"] = torch.as_tensor(rows.mean(axis=0), dtype=torch.float32)
            sd = np.maximum(rows.std(axis=0), np.sqrt(1e-3 / rows.shape[1]))
            self.fixed_["gene_sd"] = torch.as_tensor(sd, dtype=torch.float32)

    def _keep_axes(self, moment: np.ndarray, sd: float) -> None:
        n_genes = len(moment)
        values, axes = privacy.principal_axes(moment, min(self._given["n_components"], n_genes))
        edge = privacy.noise_edge(n_genes, sd)
        self.eigenvalues_ = privacy.debias_values(values, n_genes, sd)
        self.noise_edge_, self.n_above_edge_ = edge, int((values > edge).sum())
        scale = np.sqrt(np.maximum(self.eigenvalues_, edge) / self.privacy_plan.n_units)
        self.fixed_["axes"] = torch.as_tensor(axes.copy(), dtype=torch.float32)
        self.fixed_["scale"] = torch.as_tensor(scale, dtype=torch.float32)

    def _put_fixed(self) -> None:
        """Put released numbers into the module; a module that was drawn anew after an interruption gets them again."""
        state = {k: v for k, v in self.fixed_.items() if k in self.module.state_dict()}
        self.module.load_state_dict(state, strict=False)

    def _run_stage(self, stage: Stage, *, streams: Streams, position: int) -> None:
        self._open_cells(streams)
        if stage.name == "public":
            self._fit(stage, self._public_split(stage, streams, position), StagePlan(self.module, stage))
            return
        if stage.batches != "poisson":
            super()._run_stage(stage, streams=streams, position=position)
            return
        plan = self.privacy_plan
        steps = plan.steps[stage.name]
        names = [n for n, _ in self.module.named_parameters() if n.startswith(stage.trains)]
        step = PrivateStep(
            self.module,
            names,
            plan=plan,
            stage=stage.name,
            weights=stage.weights,
            repulsion_weight=self._given["repulsion_weight"] if stage.name == "cluster" else 0.0,
            noise=self._noise,
            views=streams.torch("augment", position),
        )
        plan.ledger.reserve(plan.step_event(stage.name, steps))
        data = PoissonSplit(self._table, sample_rate=plan.sample_rate, steps=steps, generator=self._draws)
        runner_plan = PrivateStagePlan(self.module, stage, step=step)
        self._fit(replace(stage, max_epochs=1), data, runner_plan)
        self._not_finite = step.n_not_finite if self._given["log_private_metrics"] else None

    def _public_split(self, stage: Stage, streams: Streams, position: int) -> CellSplit:
        """Return batches of public cells, of which a tenth decides when to stop: they cost nothing."""
        table, size = self._public_table(), {"train_size": 0.9, "validation_size": 0.1, "shuffle": True}
        split = split_cells(len(table), generator=streams.numpy("split", 1), **size)
        return CellSplit(table, split, streams=streams, position=position, batch_size=stage.batch_size)

    def _public_table(self) -> CellTable:
        public = self._given["public_adata"]
        counts = panels.panel_counts(public, panels.check_private_counts(public, None), self._panel)
        return CellTable(counts, np.zeros(counts.shape[0], dtype=np.int64))

    def _read_table(self, streams: Streams) -> Any:
        """Return the training cells for ordinary batches, cut to the panel."""
        self._open_cells(streams)
        return self._table

    def _kmeans_frame(self, n_latent: int) -> privacy.Frame:
        """Return where private k-means looks: from released eigenvalues, or the unit ball where there are none."""
        if self._given["mode"] != "dp_pca_init":
            return privacy.Frame(np.zeros(n_latent), None, 1.0)
        values = self.eigenvalues_[:n_latent]
        return privacy.frame_of_axes(values, self.n_above_edge_, n_units=self.privacy_plan.n_units)

    def _seed_centers(self, streams: Streams) -> None:
        """Put private k-means centres of the latents into the module; their sizes weigh the targets."""
        if "kmeans" in self.released_:  # paid for before an interruption
            self._put_fixed()
            return
        plan = self.privacy_plan
        plan.spend("kmeans")
        z = self._encode_counts(self._table.counts)
        frame = self._kmeans_frame(z.shape[1])
        n_axes = len(frame.offset)
        found = privacy.private_kmeans(
            z[:, :n_axes],
            self._given["n_clusters"],
            mu=plan.mu["kmeans"],
            units=self._units,
            generator=self._noise,
            **frame._asdict(),
            **KMEANS,
        )
        self.released_ = [*self.released_, "kmeans"]
        centers = np.zeros((len(found.centers), z.shape[1]))
        centers[:, :n_axes] = found.centers
        self.fixed_["centers"] = torch.as_tensor(centers, dtype=torch.float32)
        self.fixed_["cluster_sizes"] = torch.as_tensor(np.maximum(found.counts, 1.0), dtype=torch.float32)
        self._put_fixed()

    def _buy_density(self, streams: Streams) -> None:
        """Release mean and covariance of the latents, cut to the unit ball."""
        if "density" in self.released_:
            self._put_fixed()
            return
        plan = self.privacy_plan
        plan.spend("density")
        z = privacy.unit_rows(self._encode_counts(self._table.counts))
        z = privacy.unit_means(
            z,
            self._units,
            n_units=self._table.n_units,
            most=self._given["max_cells_per_unit"],
            generator=self._draws,
        )
        w = CENTER_SHARE
        rows = np.hstack([np.sqrt(1 - w) * z, np.full((len(z), 1), np.sqrt(w))])
        moment = privacy.noisy_second_moment([rows], rows.shape[1], sd=plan.sd("density"), generator=self._noise)
        n, mean, scatter = privacy.split_centered(moment)
        values, axes = np.linalg.eigh(scatter / n)
        root = axes * np.sqrt(np.maximum(values, 0.0))
        self.released_ = [*self.released_, "density"]
        self.fixed_["density"] = torch.as_tensor(np.vstack([mean, root.T]), dtype=torch.float32)
        self._put_fixed()

    def _settle_local(self, streams: Streams) -> None:
        """Fit the local head, after the last entry of the ledger: nothing of it reaches a noised gradient."""
        z = self._encode_counts(self._table.counts)
        self._local = fit_local_head(z, self._given["n_clusters"], seed=streams.integer("sample"))
        self._table = None


def _root_shares(counts: Any) -> np.ndarray:
    """Rows sqrt(c / n), norm 1; zeros for an empty cell."""
    dense = np.asarray(counts.toarray(), dtype=np.float64)
    return np.sqrt(dense / np.maximum(dense.sum(axis=1, keepdims=True), 1.0))


def _first_two(counts: Any) -> np.ndarray:
    """Rows [x, x^2] / sqrt(2): norm at most 1, since that of x is."""
    x = privacy.transform_counts(counts)
    return np.hstack([x, x**2]) / np.sqrt(2)
