"""The published scheme, as coded, and the same network without privacy. Neither has a guarantee."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellsmith._errors import MissingExtraError
from cellsmith._rng import Streams
from cellsmith.data.splits import CellSplit
from cellsmith.math import privacy
from cellsmith.math.assign import student_t
from cellsmith.math.privacy import Event
from cellsmith.model._stage import Optim, Stage
from cellsmith.model.dpdcan import equations as eq
from cellsmith.model.dpdcan.stepping import PrivateStagePlan

__all__ = ["PublishedMixin", "PublishedStep"]

CLIP_NORM, MOST_STEPS, REFRESH = 0.1, 842, 5
EPOCHS = {"pretrain": 50, "cluster": 40}
N_BATCHES = 10
NOISED = {"encoder_and_trunk": ("centers", "encoder", "decoder.trunk"), "encoder": ("encoder",)}


class PublishedStep:
    """One step of the published scheme: coupled losses, clipped over all weights, noise on some of them.

    Parameters
    ----------
    module
        The networks.
    noised
        Prefixes of the parameters that get noise.
    noise_multiplier
        sigma.
    generator
        Draws the noise.
    views
        Draws the masks, one augmentation a step.
    stage
        "pretrain" or "cluster".
    """

    def __init__(
        self,
        module: Any,
        *,
        noised: tuple[str, ...],
        noise_multiplier: float,
        generator: np.random.Generator,
        views: torch.Generator,
        stage: str = "pretrain",
    ) -> None:
        self.module, self.noised, self.sigma, self.stage = module, noised, noise_multiplier, stage
        self._generator, self._views = generator, views
        self.steps = 0

    def unit_losses(self, params: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
        """Return the part of the loss that belongs to one cell: .8 likelihood; later .4 likelihood + .4 clustering."""
        return torch.func.functional_call(self.module, dict(params), (data,), {"weights": self.stage})

    def clipped_sum(self, data: Mapping[str, Tensor]) -> privacy.ClippedSum:
        """Return the sum of clipped gradients of all parameters: that of each cell plus the shared one."""
        params = {k: p.detach() for k, p in self.module.named_parameters() if self._takes_part(k)}
        leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
        found = torch.autograd.grad(
            self.module.shared_loss(leaves, data, self.stage), list(leaves.values()), allow_unused=True
        )
        shared = {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(params.items(), found, strict=True)}
        return privacy.clipped_gradient_sum(
            self.unit_losses, params, data, clip_norm=CLIP_NORM, method="ghost", shared=shared
        )

    def _takes_part(self, name: str) -> bool:
        return self.stage == "cluster" or name != "centers"

    def __call__(self, batch: Mapping[str, Tensor]) -> None:
        """Set ``.grad`` of all parameters."""
        if self.steps >= MOST_STEPS:
            return
        data = self.module.prepare(batch, self._views) | {k: batch[k] for k in ("target",) if k in batch}
        gradients = self.clipped_sum(data).gradients
        noisy = {k: g for k, g in gradients.items() if k.startswith(self.noised)}
        gradients |= privacy.add_noise(
            noisy, noise_multiplier=self.sigma, clip_norm=CLIP_NORM, generator=self._generator
        )
        for name, parameter in self.module.named_parameters():
            if name in gradients:
                parameter.grad = gradients[name] / len(batch["x"])
        self.steps += 1


class PublishedStagePlan(PrivateStagePlan):
    """Adam before, Adadelta in clustering; centres and targets from all cells between epochs.

    Parameters
    ----------
    module, stage, step
        As in :class:`PrivateStagePlan`.
    between
        Called with the number of an epoch before it starts.
    """

    def __init__(self, module: Any, stage: Stage, *, step: PublishedStep, between: Any) -> None:
        super().__init__(module, stage, step=step)
        self._between = between

    def configure_optimizers(self) -> Any:
        """Return Adam at 1e-3, or Adadelta at 1.0 with rho .95."""
        parameters = [p for n, p in self.module.named_parameters() if n in self._trained]
        if self.stage.name == "cluster":
            return torch.optim.Adadelta(parameters, lr=1.0, rho=0.95)
        return torch.optim.Adam(parameters, lr=1e-3)

    def on_train_epoch_start(self) -> None:
        """Look at all cells, as the published code does."""
        self._between(self.current_epoch)


class _WithTargets:
    """Cells with the target of each, as it stood at the start of the epoch."""

    def __init__(self, table: Any) -> None:
        self._table, self.target = table, None

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, rows: np.ndarray) -> dict[str, Tensor]:
        extra = {} if self.target is None else {"target": self.target[torch.from_numpy(np.asarray(rows))]}
        return self._table[rows] | extra


class PublishedMixin:
    """Stages of ``mode="reference"`` and ``mode="none"``."""

    def _published_stages(self) -> tuple[Stage, ...]:
        scale = Stage(name="scale", solve="_fit_published_scale")
        size = max(2, -(-self._n_cells() // N_BATCHES))
        if self._given["mode"] == "reference":
            trains = ("encoder", "decoder")
            return (
                scale,
                Stage(name="pretrain", max_epochs=EPOCHS["pretrain"], trains=trains, batch_size=size),
                Stage(name="cluster", max_epochs=EPOCHS["cluster"], trains=(*trains, "centers"), batch_size=size),
            )
        plan = Optim(optimizer="adam", lr=1e-3, schedule="constant", patience=None, keep_best=False)
        fit = Stage(
            name="instance",
            max_epochs=50,
            trains=("encoder", "decoder"),
            loss="loss_plain",
            weights=self._weights(),
            batch_size=size,
            refresh="_read_table",
            plan=plan,
        )
        return scale, fit

    def _fit_published_scale(self, streams: Streams) -> None:
        """Take the median total and the moments of genes from all cells: this is one of the published faults."""
        self._open_cells(streams)
        counts = self._table.counts
        totals = np.asarray(counts.sum(axis=1)).ravel()
        median = float(np.median(totals))
        dense = torch.from_numpy(counts.toarray())
        y = torch.log1p(dense / dense.sum(dim=1, keepdim=True).clamp(min=1.0) * median)
        sd = y.std(dim=0)
        found = {"totals_median": torch.tensor(median), "gene_mean": y.mean(dim=0)}
        found["gene_sd"] = torch.where(sd > 0, sd, torch.ones_like(sd))
        self.fixed_ |= found
        self._put_fixed()

    def _run_stage(self, stage: Stage, *, streams: Streams, position: int) -> None:
        if self._given["mode"] != "reference" or stage.solve:
            super()._run_stage(stage, streams=streams, position=position)
            return
        sigma = self._nominal_noise()
        step = PublishedStep(
            self.module,
            noised=NOISED[self._given["noised_block"]],
            noise_multiplier=sigma,
            generator=self._noise,
            views=streams.torch("augment", position),
            stage=stage.name,
        )
        step.steps = self.facts_.get("steps", 0)
        cells = _WithTargets(self._table)
        data = CellSplit(cells, self._split, streams=streams, position=position, batch_size=stage.batch_size)

        def between(epoch: int) -> None:
            if stage.name == "cluster":
                self._refresh_published(cells, epoch, seed=streams.integer("sample", epoch))

        self._fit(stage, data, PublishedStagePlan(self.module, stage, step=step, between=between))
        self.facts_ = {**self.facts_, "steps": step.steps, "nominal_epsilon": self._nominal_epsilon(sigma, step.steps)}

    def _refresh_published(self, cells: _WithTargets, epoch: int, *, seed: int) -> None:
        z = self._encode_counts(self._table.counts)
        device = self.module.intercept.device
        if epoch % REFRESH == 0:
            from sklearn.cluster import KMeans

            means = KMeans(self._given["n_clusters"], n_init=20, random_state=seed).fit(z).cluster_centers_
            with torch.no_grad():
                self.module.centers.copy_(torch.as_tensor(means, dtype=torch.float32))
        q = student_t(torch.as_tensor(z, dtype=torch.float32, device=device), self.module.centers.detach())
        cells.target = eq.published_target(q).cpu()

    def _nominal_noise(self) -> float:
        """Return sigma for the planned steps, as if the accounting applied."""
        steps = min(MOST_STEPS, self.privacy_plan.published_epochs * N_BATCHES)
        return privacy.calibrate(
            lambda s: [self._nominal_event(s, steps)], epsilon=self._given["target_epsilon"], delta=1e-5
        )

    def _nominal_event(self, sigma: float, steps: int) -> Event:
        return Event(
            stage="published",
            kind="sampled_gaussian",
            sensitivity=CLIP_NORM,
            noise_multiplier=sigma,
            sample_rate=1 / N_BATCHES,
            steps=steps,
        )

    def _nominal_epsilon(self, sigma: float, steps: int) -> float | None:
        try:
            return privacy.compose([self._nominal_event(sigma, steps)], 1e-5)
        except MissingExtraError:
            return None
