"""One private step: losses of units -> clipped sum -> ledger -> noise -> optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellsmith.math import privacy
from cellsmith.model._stage import Stage, StagePlan
from cellsmith.model.dpdcan import equations as eq
from cellsmith.model.dpdcan.budget import PrivacyPlan

__all__ = ["PrivateStagePlan", "PrivateStep"]


class PrivateStep:
    """Sets the gradients of a module to ``(clipped sum + sigma C xi) / (q N)``, a step of the ledger each time.

    Parameters
    ----------
    module
        With ``prepare`` and ``unit_losses``.
    names
        Noised parameters: all that are trained.
    plan
        Noise, rate, clip norm and ledger.
    stage
        Name in the ledger.
    weights
        Of the loss.
    repulsion_weight
        Of the repulsion of centres, which looks at no cell and is added after the noise; 0 without centres.
    noise
        Draws the noise; secret in private use.
    views
        Draws the masks.
    """

    def __init__(
        self,
        module: Any,
        names: list[str],
        *,
        plan: PrivacyPlan,
        stage: str,
        weights: Mapping[str, float],
        repulsion_weight: float = 0.0,
        noise: np.random.Generator,
        views: torch.Generator,
    ) -> None:
        self.module, self.names, self.plan, self.stage = module, names, plan, stage
        self.weights, self.repulsion_weight = dict(weights), repulsion_weight
        self._noise, self._views = noise, views
        self.n_not_finite = 0

    def __call__(self, batch: Mapping[str, Tensor]) -> None:
        """Set ``.grad`` of every noised parameter from a batch of units."""
        plan, parameters = self.plan, dict(self.module.named_parameters())
        params = {name: parameters[name].detach() for name in self.names}
        summed = privacy.clipped_gradient_sum(
            lambda p, b: self.module.unit_losses(p, b, self.weights),
            params,
            self.module.prepare(batch, self._views),
            clip_norm=plan.clip_norm,
        )
        self.n_not_finite += int((~torch.isfinite(summed.norms)).sum())
        # Before the noise is drawn: an interrupted run must not have spent more than its ledger says.
        plan.ledger.spend(plan.step_event(self.stage))
        noisy = privacy.add_noise(
            summed.gradients, noise_multiplier=plan.noise_multiplier, clip_norm=plan.clip_norm, generator=self._noise
        )
        for name in self.names:
            parameters[name].grad = noisy[name] / (plan.sample_rate * plan.n_units)
        if self.repulsion_weight and "centers" in self.names:
            centers = params["centers"].clone().requires_grad_()
            (free,) = torch.autograd.grad(eq.repulsion(centers), centers)
            parameters["centers"].grad += self.repulsion_weight * free


class PrivateStagePlan(StagePlan):
    """Runs a Poisson stage with a step that sets the gradients itself.

    Parameters
    ----------
    module
        The model's module.
    stage
        What to run.
    step
        Batch -> gradients, in place.
    """

    def __init__(self, module: torch.nn.Module, stage: Stage, *, step: Any) -> None:
        super().__init__(module, stage)
        self.automatic_optimization = False
        self._step = step

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Take one step; nothing is logged, since every mean over the cells would be a release."""
        optimizer = self.optimizers()
        self._step(batch)
        optimizer.step()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Do nothing: there is no loss to remember."""
