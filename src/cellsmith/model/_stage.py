"""A stage of training as data, and the one plan that runs any stage."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from scvi.train import Trainer, TrainRunner

from cellsmith._errors import CellsmithWarning, ConvergenceError, SetupError, nearest
from cellsmith.math.edm import ema_decay

__all__ = ["Optim", "Ramp", "Stage", "StagePlan", "StageRunner", "apply_plan_kwargs", "stage_lengths"]

# A monitor that has not moved at all over this many checks is broken, not converged.
N_CONSTANT_CHECKS = 5
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {"fused": True}),
    "adam": (torch.optim.Adam, {"fused": True}),
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.99, "foreach": True}),
}
# Buffers of a batch norm that move with the weights.
RUNNING = ("running_mean", "running_var", "num_batches_tracked")
SCHEDULES = ("cosine", "constant", "halving")


@dataclass(frozen=True, kw_only=True)
class Optim:
    """Optimiser of a stage.

    Parameters
    ----------
    optimizer
        "adamw", "adam" or "rmsprop" (smoothing .99, no momentum).
    lr
        Peak learning rate.
    lr_factors
        Name of a parameter (or prefix of it) -> factor on ``lr``; such parameters get no weight decay.
    weight_decay
        Decoupled weight decay of "adamw"; the other two have none.
    clip
        Largest norm of the gradient; None does not clip.
    warmup_steps
        Steps of linear increase of the learning rate.
    schedule
        "cosine" decays to zero over the stage, "constant" does not, "halving" halves every ``halve_every`` epochs.
    halve_every
        Epochs between two halvings.
    patience
        Checks without improvement after which the stage stops; None never stops early.
    keep_best
        Restore the iterate of the best validation loss at the end of the stage.
    carry
        Go on with the moments that the stage before left, rather than with none: a fresh RMSprop forgets how large
        the first gradients were, and takes larger steps.
    average
        (from, to): submodule ``to`` keeps an exponential moving average of ``from``.
    average_decay
        Its final decay; ramped as min(decay, (1 + step) / (10 + step)).
    """

    optimizer: str = "adamw"
    lr: float = 1e-3
    lr_factors: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = 1e-3
    clip: float | None = None
    warmup_steps: int = 0
    schedule: str = "cosine"
    halve_every: int = 125
    patience: int | None = 30
    keep_best: bool = True
    carry: bool = False
    average: tuple[str, str] | None = None
    average_decay: float = 0.999

    def rate(self, step: int, *, n_steps: int, n_epochs: int) -> float:
        """Return the factor on the learning rate at a step, of ``n_steps`` in ``n_epochs``."""
        warmup = min(self.warmup_steps, n_steps // 10)
        if step < warmup:
            return (step + 1) / warmup
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "halving":
            return 0.5 ** (step * n_epochs // n_steps // self.halve_every)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, n_steps - warmup))))


@dataclass(frozen=True)
class Ramp:
    """A weight of the loss that grows linearly from 0 to ``target`` over the first ``fraction`` of a stage.

    Parameters
    ----------
    target
        Final weight, used for validation throughout.
    fraction
        Fraction of the stage's epochs, at most ``max_epochs``.
    max_epochs
        Longest ramp, epochs.
    """

    target: float
    fraction: float = 1 / 3
    max_epochs: int = 50

    def at(self, epoch: float, n_epochs: int) -> float:
        """Return the weight after ``epoch`` (fractional) of ``n_epochs``."""
        length = min(self.max_epochs, n_epochs * self.fraction)
        return self.target * min(1.0, epoch / length) if length > 0 else self.target


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training, declared by a model and run by :meth:`cellsmith.model._base.CellModel.train`.

    Parameters
    ----------
    name
        Prefix of its histories.
    max_epochs
        Longest length in epochs.
    trains
        Prefixes of the module's parameter names that are trained; all others are frozen.
    loss
        Name of the module's method ``(tensors, *, weights, generator) -> LossOutput``.
    weights
        Weights of the named terms, numbers or :class:`Ramp`.
    batches
        "cells": from the registered object; "table": from the table that ``refresh`` returns.
    batch_size
        Rows a batch.
    min_batch
        A last batch of fewer cells is merged into the one before: batch norms need two.
    steps_per_epoch
        Steps of an epoch over a table.
    refresh
        Name of the model's method that is called before the stage starts.
    solve
        Name of the model's method that replaces the optimiser (closed form).
    monitor
        Metric that decides on stopping.
    watch
        Name of the module's method that is handed the validation means (name of the term -> mean) of every check.
    between
        Name of the module's method ``(epoch, n_epochs) -> bool`` that is called between two epochs with the number of
        the next one; True ends the stage.
    plan
        Optimiser.
    """

    name: str
    max_epochs: int = 1
    trains: tuple[str, ...] = ()
    loss: str = ""
    weights: Mapping[str, float | Ramp] = field(default_factory=dict)
    batches: str = "cells"
    batch_size: int = 128
    min_batch: int = 1
    steps_per_epoch: int = 100
    refresh: str | None = None
    solve: str | None = None
    monitor: str = "validation_loss"
    watch: str | None = None
    between: str | None = None
    plan: Optim = field(default_factory=Optim)


def stage_lengths(stages: tuple[Stage, ...], max_epochs: int | Mapping[str, int] | None) -> tuple[Stage, ...]:
    """Shorten stages: an int is a cap for every stage, a mapping sets stages exactly.

    Raises
    ------
    SetupError
        If a mapping names no such stage or a length is below 1.
    """
    if max_epochs is None:
        return stages
    names = [s.name for s in stages if s.solve is None]
    wanted = dict(max_epochs) if isinstance(max_epochs, Mapping) else {}
    for name, epochs in wanted.items():
        if name not in names:
            raise SetupError(f"max_epochs names the stage {name!r}, which does not exist. {nearest(name, names)}")
        if int(epochs) < 1:
            raise SetupError(f"max_epochs[{name!r}]={epochs}; a stage takes at least 1 epoch.")
    if isinstance(max_epochs, Mapping):
        return tuple(replace(s, max_epochs=int(wanted.get(s.name, s.max_epochs))) for s in stages)
    if int(max_epochs) < 1:
        raise SetupError(f"max_epochs={max_epochs}; expected at least 1.")
    return tuple(replace(s, max_epochs=min(s.max_epochs, int(max_epochs))) for s in stages)


def apply_plan_kwargs(stages: tuple[Stage, ...], plan_kwargs: Mapping[str, Any] | None) -> tuple[Stage, ...]:
    """Override fields of every stage's optimiser.

    Raises
    ------
    SetupError
        If a name is not a field of :class:`Optim`, or names no optimiser or schedule.
    """
    if not plan_kwargs:
        return stages
    valid = [f.name for f in fields(Optim)]
    for name in plan_kwargs:
        if name not in valid:
            raise SetupError(f"plan_kwargs has no option {name!r}. {nearest(name, valid)}")
    for name, choices in {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}.items():
        if (found := plan_kwargs.get(name)) is not None and found not in choices:
            raise SetupError(f"plan_kwargs has {name}={found!r}. {nearest(found, choices)}")
    return tuple(s if s.solve else replace(s, plan=replace(s.plan, **plan_kwargs)) for s in stages)


class StagePlan(LightningModule):
    """Runs one stage: AdamW, schedule, clipping, moving average, best iterate, and the guards.

    Parameters
    ----------
    module
        The model's module.
    stage
        What to run.
    """

    def __init__(self, module: torch.nn.Module, stage: Stage) -> None:
        super().__init__()
        self.module, self.stage = module, stage
        self._best: tuple[float, dict[str, torch.Tensor]] | None = None
        self._sums: dict[str, dict[str, torch.Tensor]] = {"train": {}, "validation": {}}
        self._last_loss: torch.Tensor | None = None
        self._last_terms: Mapping[str, torch.Tensor] = {}
        self._monitored: list[float] = []
        names = [n for n, _ in module.named_parameters() if n.startswith(stage.trains)]
        if not names:
            raise ConvergenceError(f"Stage {stage.name!r} trains {stage.trains}, but no parameter has such a name.")
        self._trained = names
        self._averaged = stage.plan.average
        self.history_elsewhere: dict[str, list[float]] = {}

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimiser with one group a learning-rate factor, and the schedule by step."""
        plan, groups = self.stage.plan, {}
        for name, parameter in self.module.named_parameters():
            if name in self._trained:
                factor = next((f for prefix, f in plan.lr_factors.items() if name.startswith(prefix)), None)
                groups.setdefault(factor, []).append(parameter)
        decays = plan.optimizer == "adamw"
        optimizer_class, options = OPTIMIZERS[plan.optimizer]
        optimizer = optimizer_class(
            [
                {
                    "params": parameters,
                    "lr": plan.lr * (factor or 1.0),
                    "weight_decay": plan.weight_decay if decays and factor is None else 0.0,
                }
                for factor, parameters in groups.items()
            ],
            **options,
        )
        if plan.carry:
            self._take_moments(optimizer)
        length = {
            "n_steps": max(1, int(self.trainer.estimated_stepping_batches)),
            "n_epochs": self.trainer.max_epochs or 1,
        }
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(plan.rate, **length))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def setup(self, stage: str) -> None:
        """Freeze what the stage does not train, before the parameters are handed to several processes."""
        trained = set(self._trained)
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(name in trained)

    def on_fit_start(self) -> None:
        """Switch to training mode; Lightning leaves a module in the mode it finds it in."""
        self.module.train()

    def get_extra_state(self) -> dict[str, list[float]]:
        """Return the history, so that it travels home with the weights from another process."""
        logged = getattr(getattr(self._trainer, "logger", None), "history", None)
        # Every rank but the first has a logger that answers anything with a function.
        logged = logged if isinstance(logged, Mapping) else {}
        return {name: [float(v) for v in table.iloc[:, 0]] for name, table in logged.items()}

    def set_extra_state(self, state: dict[str, list[float]]) -> None:
        """Keep a history that came from another process."""
        self.history_elsewhere = state

    def _weights(self, *, training: bool) -> dict[str, float]:
        n = self.trainer.max_epochs or 1
        epoch = self.current_epoch + 1 if training else n
        return {k: w.at(epoch, n) if isinstance(w, Ramp) else float(w) for k, w in self.stage.weights.items()}

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the loss of one batch."""
        out = getattr(self.module, self.stage.loss)(batch, weights=self._weights(training=True))
        self._last_terms = out.extra_metrics
        self._collect("train", out)
        return out.loss

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        """Add one batch to the validation loss, with noise that is the same at every check."""
        generator = torch.Generator(device=self.device).manual_seed(batch_idx)
        out = getattr(self.module, self.stage.loss)(batch, weights=self._weights(training=False), generator=generator)
        self._collect("validation", out)

    def _collect(self, phase: str, out: Any) -> None:
        # Sums stay tensors until the epoch ends: a number a step would wait for the device each time.
        sums, n = self._sums[phase], out.n_obs_minibatch
        for name, value in {"loss": out.loss, **out.extra_metrics}.items():
            term = value.detach() * n
            sums[name] = sums[name] + term if name in sums else term
        sums["n"] = sums["n"] + n if "n" in sums else torch.tensor(float(n), device=out.loss.device)

    def _flush(self, phase: str) -> None:
        sums = self._sums[phase]
        n = sums.pop("n", None)
        if n is not None:
            self.log_dict({f"{phase}_{k}": v / n for k, v in sums.items()}, on_epoch=True, sync_dist=True, batch_size=1)
        self._sums[phase] = {}

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means, and prepare the next epoch."""
        self._flush("train")
        following, n_epochs = self.current_epoch + 1, self.trainer.max_epochs or 0
        if self.stage.between is not None and following < n_epochs:
            self.trainer.should_stop |= getattr(self.module, self.stage.between)(following, n_epochs)

    def on_validation_epoch_end(self) -> None:
        """Log the validation means, keep the best iterate and refuse a monitor that never moves."""
        if self.trainer.sanity_checking or not self._sums["validation"]:
            self._sums["validation"] = {}
            return
        sums = self._sums["validation"]
        value = self._mean_over_ranks(sums["loss"], sums["n"])
        if self.stage.watch is not None:
            means = {k: float(v / sums["n"]) for k, v in sums.items() if k != "n"}
            getattr(self.module, self.stage.watch)(means)
        self._flush("validation")
        if not math.isfinite(value):
            self._restore_best()
            raise ConvergenceError(
                f"Stage {self.stage.name!r} met a non-finite validation loss ({value}) after step {self.global_step}; "
                f"{self._last_finite()} and the best weights so far are kept. {self._advice()}"
            )
        self._monitored = [*self._monitored[-N_CONSTANT_CHECKS:], value]
        if len(self._monitored) > N_CONSTANT_CHECKS and len(set(self._monitored)) == 1:
            raise ConvergenceError(
                f"Stage {self.stage.name!r}: the monitor {self.stage.monitor!r} was exactly {value} at "
                f"{N_CONSTANT_CHECKS + 1} checks in a row; early stopping on it would mean nothing."
            )
        if self.stage.plan.keep_best and (self._best is None or value < self._best[0]):
            self._best = (value, {k: v.detach().clone() for k, v in self._state().items()})

    def _state(self) -> dict[str, torch.Tensor]:
        keep = set(self._trained)
        # The running statistics of a batch norm belong to the weights under which they were gathered.
        keep |= {
            name
            for name, _ in self.module.named_buffers()
            if name.startswith(self.stage.trains) and name.rpartition(".")[2] in RUNNING
        }
        target = f"{self._averaged[1]}." if self._averaged else None
        return {k: v for k, v in self.module.state_dict().items() if k in keep or (target and k.startswith(target))}

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip the gradient; refuse a non-finite one BEFORE the step, so that the weights stay finite."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.stage.plan.clip or math.inf, foreach=True)
        if not bool(torch.isfinite(norm)):
            raise ConvergenceError(
                f"Stage {self.stage.name!r} met a non-finite {self._culprit()} at step {self.global_step}; "
                f"{self._last_finite()} and the weights of that step are kept. {self._advice()}"
            )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Remember the loss and move the average."""
        # The tensor, not the number: reading it at every step would wait for the device.
        self._last_loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if self._averaged is None:
            return
        source, target = (self.module.get_submodule(n) for n in self._averaged)
        decay = ema_decay(self.global_step, target=self.stage.plan.average_decay)
        with torch.no_grad():
            torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), 1 - decay)

    def _last_finite(self) -> str:
        return "no step was finite" if self._last_loss is None else f"the last finite loss was {self._last_loss:.6g}"

    def _culprit(self) -> str:
        """Return the first term of the loss that is not finite; "loss or gradient" where all are."""
        terms = [k for k, v in self._last_terms.items() if not bool(torch.isfinite(v).all())]
        return f"term {terms[0]!r} in epoch {self.current_epoch}" if terms else "loss or gradient"

    def _advice(self) -> str:
        return f"Try train(plan_kwargs={{'lr': {self.stage.plan.lr / 3:.1g}}})."

    def _mean_over_ranks(self, total: torch.Tensor, n: torch.Tensor) -> float:
        # Every rank must see the same value, or each would keep another iterate as the best one.
        both = torch.stack([total, n])
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(both)
        return float(both[0] / both[1])

    def _restore_best(self) -> None:
        if self._best is not None:
            self.module.load_state_dict(self._best[1], strict=False)
            self._best = None

    def _take_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Start from the moments that the stage before left on the module; new parameters start from none."""
        left = getattr(self.module, "moments", {})
        for name, parameter in self.module.named_parameters():
            if name in self._trained and name in left:
                optimizer.state[parameter] = {k: v.clone() for k, v in left[name].items()}

    def _leave_moments(self) -> None:
        state = self.trainer.optimizers[0].state
        self.module.moments = {n: dict(state[p]) for n, p in self.module.named_parameters() if p in state}

    def on_fit_end(self) -> None:
        """Put the best iterate back and thaw the module."""
        self._restore_best()
        if self.stage.plan.carry:
            self._leave_moments()
        for parameter in self.module.parameters():
            parameter.requires_grad_(True)


class StageRunner(TrainRunner):
    """Runner of one stage: its histories get the stage's prefix, errors keep their type, nothing is printed."""

    _trainer_cls = Trainer

    def _run_training_core(self) -> None:
        # Lightning announces its devices at every fit: once is news, once a stage is noise.
        talk = logging.getLogger("lightning.pytorch.utilities.rank_zero")
        level = talk.level
        talk.setLevel(logging.WARNING)
        self._stop_early_only_alone()
        try:
            self.trainer.fit(self.training_plan, self.data_splitter, ckpt_path=self.ckpt_path)
        except SystemExit as error:
            # Lightning turns Ctrl-C into SystemExit, which would end a notebook's kernel or a user's script.
            if getattr(self.trainer, "interrupted", False) or error.code == 1:
                raise KeyboardInterrupt(
                    f"Training stopped in stage {self.training_plan.stage.name!r}; the weights reached so far stay in "
                    "model.module, and the next train() starts afresh."
                ) from None
            raise
        finally:
            talk.setLevel(level)
            self._update_history()
            for parameter in self.model.module.parameters():
                parameter.requires_grad_(True)
            self.model.module.eval()
            self.model.to_device(self.device)
        self.model.trainer = self.trainer

    def _stop_early_only_alone(self) -> None:
        """Take early stopping out where several processes train: each would stop at an epoch of its own."""
        stopping = [c for c in self.trainer.callbacks if isinstance(c, EarlyStopping)]
        if stopping and self.trainer.world_size > 1:
            self.trainer.callbacks = [c for c in self.trainer.callbacks if c not in stopping]
            self.model._note(
                f"Stage {self.training_plan.stage.name!r} runs on {self.trainer.world_size} processes, where early "
                "stopping is off; the best weights are kept all the same.",
                CellsmithWarning,
            )

    def _update_history(self) -> None:
        if self.model.history_ is None:
            self.model.history_ = {}
        if not self.trainer.is_global_zero:
            return
        logged = getattr(self.trainer.logger, "history", None) or {}
        stage = self.training_plan.stage.name
        for metric, values in self.training_plan.history_elsewhere.items():
            table = pd.DataFrame({metric: values}, index=pd.RangeIndex(len(values), name="epoch"))
            self.model.history_[f"{stage}/{metric}"] = table
        for metric, table in logged.items():
            self.model.history_[f"{stage}/{metric}"] = table.copy()
