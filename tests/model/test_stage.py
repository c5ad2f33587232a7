"""Stages as data: lengths, options, ramps, and the guards of the plan that runs one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

from cellsmith._errors import ConvergenceError, SetupError
from cellsmith.model import SCLD
from cellsmith.model._stage import Optim, Ramp, Stage, StagePlan, apply_plan_kwargs, stage_lengths

STAGES = (
    Stage(name="a", max_epochs=10),
    Stage(name="fit", solve="_fit"),
    Stage(name="b", max_epochs=3, plan=Optim(lr=1e-2)),
)


def lengths(max_epochs: Any) -> dict[str, int]:
    return {s.name: s.max_epochs for s in stage_lengths(STAGES, max_epochs) if s.solve is None}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, {"a": 10, "b": 3}),
        (1, {"a": 1, "b": 1}),
        (5, {"a": 5, "b": 3}),
        (99, {"a": 10, "b": 3}),
        ({"b": 40}, {"a": 10, "b": 40}),
        ({"a": 2, "b": 1}, {"a": 2, "b": 1}),
    ],
)
def test_an_int_caps_every_stage_and_a_mapping_sets_stages_exactly(asked: Any, expected: dict[str, int]) -> None:
    assert lengths(asked) == expected


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"bb": 1}, "'bb'.*Did you mean"),
        ({"fit": 1}, "'fit', which does not exist"),
        ({"a": 0}, "at least 1 epoch"),
        (0, "expected at least 1"),
    ],
)
def test_impossible_lengths_are_refused(asked: Any, words: str) -> None:
    with pytest.raises(SetupError, match=words):
        lengths(asked)


def test_plan_kwargs_reach_every_trained_stage_and_unknown_names_are_refused() -> None:
    changed = apply_plan_kwargs(STAGES, {"lr": 0.5})
    assert [s.plan.lr for s in changed] == [0.5, STAGES[1].plan.lr, 0.5]
    assert apply_plan_kwargs(STAGES, None) is STAGES
    with pytest.raises(SetupError, match=r"'learning_rate'.*'lr'"):
        apply_plan_kwargs(STAGES, {"learning_rate": 1})


def test_plan_kwargs_refuse_unknown_optimisers_and_schedules() -> None:
    with pytest.raises(SetupError, match=r"optimizer='rmspro'.*Did you mean 'rmsprop'"):
        apply_plan_kwargs(STAGES, {"optimizer": "rmspro"})
    with pytest.raises(SetupError, match=r"schedule='halve'.*'halving'"):
        apply_plan_kwargs(STAGES, {"schedule": "halve"})


def test_schedules_by_step() -> None:
    length = {"n_steps": 1000, "n_epochs": 10}
    constant = Optim(schedule="constant", warmup_steps=20)
    assert [constant.rate(s, **length) for s in (0, 9, 19, 20, 999)] == [0.05, 0.5, 1.0, 1.0, 1.0]
    cosine = Optim()
    assert [round(cosine.rate(s, **length), 6) for s in (0, 500, 1000)] == [1.0, 0.5, 0.0]
    halving = Optim(schedule="halving", halve_every=4)
    assert [halving.rate(s, **length) for s in (0, 399, 400, 799, 800)] == [1.0, 1.0, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("name", ["adamw", "adam", "rmsprop"])
def test_every_optimiser_takes_its_own_first_step(name: str) -> None:
    """From zero moments, RMSprop with smoothing .99 moves by lr / sqrt(.01), the two others by lr."""
    network = torch.nn.Linear(3, 2)
    before = network.weight.detach().clone()
    stage = Stage(
        name="x", trains=("weight",), plan=Optim(optimizer=name, lr=1e-3, schedule="constant", weight_decay=0)
    )
    plan = StagePlan(network, stage)
    plan.trainer = SimpleNamespace(estimated_stepping_batches=10, max_epochs=2)
    optimizer = plan.configure_optimizers()["optimizer"]
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    moved = (before - network.weight.detach()) / 1e-3
    torch.testing.assert_close(moved, torch.full((2, 3), 10.0 if name == "rmsprop" else 1.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("carry", [False, True])
def test_moments_of_the_stage_before_are_carried_on_request(carry: bool) -> None:
    """A fresh RMSprop moves by 10 lr; one that remembers gradients of 10 by about lr / 10."""
    network = torch.nn.Linear(3, 2)
    before = network.weight.detach().clone()
    network.moments = {"weight": {"step": torch.tensor(5.0), "square_avg": torch.full((2, 3), 100.0)}}
    options = Optim(optimizer="rmsprop", lr=1e-3, schedule="constant", carry=carry)
    plan = StagePlan(network, Stage(name="x", trains=("weight", "bias"), plan=options))
    plan.trainer = SimpleNamespace(estimated_stepping_batches=10, max_epochs=2)
    optimizer = plan.configure_optimizers()["optimizer"]
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    moved = (before - network.weight.detach()) / 1e-3
    torch.testing.assert_close(moved, torch.full((2, 3), 0.1005 if carry else 10.0), rtol=1e-2, atol=0)
    assert float(network.moments["weight"]["square_avg"].min()) == 100.0, "a copy"


def test_ramp_rises_linearly_to_its_target() -> None:
    ramp = Ramp(2.0, fraction=0.5, max_epochs=4)
    assert [ramp.at(e, 100) for e in (0, 1, 2, 4, 50)] == [0.0, 0.5, 1.0, 2.0, 2.0]
    assert ramp.at(1, 2) == 2.0
    assert Ramp(2.0, fraction=0.0).at(0, 10) == 2.0


def test_plan_refuses_parameters_that_do_not_exist() -> None:
    stage = Stage(name="x", trains=("nothing",))
    with pytest.raises(ConvergenceError, match="no parameter has such a name"):
        StagePlan(torch.nn.Linear(2, 2), stage)


@pytest.fixture
def untrained(make: Callable[..., AnnData], built: Callable[..., SCLD]) -> SCLD:
    return built(make(80, 20))


def test_non_finite_loss_stops_with_stage_and_step_and_finite_weights(
    untrained: SCLD, trained_for_a_moment: Callable[..., SCLD], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, calls = untrained.module.loss_diffuse, []

    def broken(*args: Any, **kwargs: Any) -> Any:
        out = loss(*args, **kwargs)
        calls.append(untrained.module.training)
        if sum(calls) == 4 and untrained.module.training:
            out.loss = out.loss * float("nan")
        return out

    monkeypatch.setattr(untrained.module, "loss_diffuse", broken)
    with pytest.raises(ConvergenceError, match=r"'diffuse'.*at step 3; the last finite loss was \d.*plan_kwargs"):
        trained_for_a_moment(untrained)
    assert not untrained.is_trained
    assert all(bool(torch.isfinite(p).all()) for p in untrained.module.state_dict().values())


def test_huge_learning_rate_never_leaves_non_finite_weights(
    untrained: SCLD, trained_for_a_moment: Callable[..., SCLD]
) -> None:
    with pytest.raises(ConvergenceError, match="non-finite"):
        trained_for_a_moment(untrained, plan_kwargs={"lr": 1e30, "clip": None})
    assert all(bool(torch.isfinite(p).all()) for p in untrained.module.state_dict().values())


def test_a_monitor_that_never_moves_is_an_error(untrained: SCLD, trained_for_a_moment: Callable[..., SCLD]) -> None:
    """Trap 2 of scvi-tools: ``elbo_validation`` is 0 throughout for a module that only has a loss."""
    with pytest.raises(ConvergenceError, match=r"'autoencode'.*'validation_loss' was exactly .* at 6 checks"):
        trained_for_a_moment(untrained, epochs=8, plan_kwargs={"lr": 0.0})


@pytest.mark.parametrize("stage", ["autoencode", "diffuse"])
def test_interrupted_training_keeps_the_weights_reached(
    stage: str, untrained: SCLD, trained_for_a_moment: Callable[..., SCLD], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, calls, at_start = f"loss_{stage}", [], {}
    loss = getattr(untrained.module, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if untrained.module.training:
            if not calls:
                at_start.update(copy.deepcopy(untrained.module.state_dict()))
            calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(*args, **kwargs)

    monkeypatch.setattr(untrained.module, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained_for_a_moment(untrained, epochs=4, batch_size=20)
    prefix = {"autoencode": "autoencoder.", "diffuse": "denoiser."}[stage]
    now = untrained.module.state_dict()
    assert any(not torch.equal(now[k], v) for k, v in at_start.items() if k.startswith(prefix))
    assert all(bool(torch.isfinite(v).all()) for v in now.values())
    assert not untrained.module.training
    assert all(p.requires_grad for p in untrained.module.parameters())
    monkeypatch.undo()
    trained_for_a_moment(untrained)
    assert untrained.is_trained


def test_a_stage_trains_only_what_it_names(
    untrained: SCLD, trained_for_a_moment: Callable[..., SCLD], monkeypatch: pytest.MonkeyPatch
) -> None:
    before: dict[str, torch.Tensor] = {}
    cache = untrained._cache_latents

    def remember(streams: Any) -> Any:
        before.update(copy.deepcopy(untrained.module.state_dict()))
        return cache(streams)

    monkeypatch.setattr(untrained, "_cache_latents", remember)
    trained_for_a_moment(untrained)
    after = untrained.module.state_dict()
    moved = {k.split(".")[0] for k, v in before.items() if not torch.equal(v, after[k])}
    assert {"denoiser", "ema_denoiser"} <= moved
    assert "autoencoder" not in moved


def test_moving_average_lags_behind_and_is_what_is_validated(model: SCLD) -> None:
    raw, smooth = (dict(m.named_parameters()) for m in (model.module.denoiser, model.module.ema_denoiser))
    assert raw.keys() == smooth.keys()
    assert any(not torch.equal(raw[k], smooth[k]) for k in raw)
    best = float(model.history_["diffuse/validation_loss"].min().iloc[0])
    assert best <= float(model.history_["diffuse/validation_loss"].iloc[0, 0])


def test_best_iterate_is_restored(
    untrained: SCLD, trained_for_a_moment: Callable[..., SCLD], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, torch.Tensor]] = []
    original = StagePlan.on_validation_epoch_end
    weight = [k for k in untrained.module.denoiser.state_dict() if k.endswith("weight")][-1]

    def spy(plan: StagePlan) -> None:
        if plan.stage.name == "diffuse":
            sums = plan._sums["validation"]
            seen.append((float(sums["loss"] / sums["n"]), plan.module.denoiser.state_dict()[weight].clone()))
        original(plan)

    monkeypatch.setattr(StagePlan, "on_validation_epoch_end", spy)
    trained_for_a_moment(untrained, max_epochs={"autoencode": 1, "diffuse": 6}, plan_kwargs={"lr": 0.03})
    losses = [v for v, _ in seen]
    assert len(losses) == 6
    best = int(np.argmin(losses))
    assert torch.equal(untrained.module.denoiser.state_dict()[weight], seen[best][1])


def test_without_keep_best_the_last_iterate_stays(
    untrained: SCLD, trained_for_a_moment: Callable[..., SCLD], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    original = StagePlan.on_validation_epoch_end
    weight = [k for k in untrained.module.denoiser.state_dict() if k.endswith("weight")][-1]

    def spy(plan: StagePlan) -> None:
        if plan.stage.name == "diffuse":
            seen.append(plan.module.denoiser.state_dict()[weight].clone())
        original(plan)

    monkeypatch.setattr(StagePlan, "on_validation_epoch_end", spy)
    options = {"lr": 0.03, "keep_best": False}
    trained_for_a_moment(untrained, max_epochs={"autoencode": 1, "diffuse": 4}, plan_kwargs=options)
    assert torch.equal(untrained.module.denoiser.state_dict()[weight], seen[-1])


def test_a_solve_decides_which_stages_follow_and_a_watcher_sees_the_means(
    untrained: SCLD, trained_for_a_moment: Callable[..., SCLD], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    declared = type(untrained).stages

    def stages(model: SCLD) -> tuple[Stage, ...]:
        first, solve, last = declared(model)
        first = replace(first, watch="look")
        return (first, solve) if getattr(model, "short", False) else (first, solve, last)

    def calibrate(model: SCLD, streams: Any) -> None:
        model.short = True

    monkeypatch.setattr(type(untrained), "stages", stages)
    monkeypatch.setattr(type(untrained), "_calibrate", calibrate)
    monkeypatch.setattr(type(untrained.module), "look", lambda module, means: seen.append(means), raising=False)
    trained_for_a_moment(untrained, max_epochs={"autoencode": 2, "diffuse": 5})
    assert {name.split("/")[0] for name in untrained.history_} == {"autoencode"}
    assert [set(means) >= {"loss", "reconstruction", "kl"} for means in seen] == [True, True]
    history = untrained.history_["autoencode/validation_loss"].iloc[:, 0]
    assert [means["loss"] for means in seen] == pytest.approx(list(history), rel=1e-6)


def test_what_happens_between_epochs_may_end_the_stage(
    untrained: SCLD, trained_for_a_moment: Callable[..., SCLD], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    declared = type(untrained).stages

    def stages(model: SCLD) -> tuple[Stage, ...]:
        first, *rest = declared(model)
        return (replace(first, between="pause"), *rest)

    def pause(module: Any, epoch: int, n_epochs: int) -> bool:
        seen.append((epoch, n_epochs))
        return epoch == 2

    monkeypatch.setattr(type(untrained), "stages", stages)
    monkeypatch.setattr(type(untrained.module), "pause", pause, raising=False)
    trained_for_a_moment(untrained, max_epochs={"autoencode": 5, "diffuse": 1})
    assert seen == [(1, 5), (2, 5)]
    assert len(untrained.history_["autoencode/train_loss"]) == 2
