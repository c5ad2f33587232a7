"""The optimisation of codes: gradients, pool, batches, guards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from cellsmith._errors import ConvergenceError
from cellsmith._rng import Streams
from cellsmith.math.matching import log_normalize
from cellsmith.model import SCDD
from cellsmith.model.scdd import distilling
from cellsmith.model.scdd.distilling import ClassBatches, Distiller, Pool, loop_sizes
from cellsmith.model.scdd.profiles import step_zero
from cellsmith.model.scdd.request import check_plan

PLAN = {
    "variant": "default",
    "init": None,
    "profile": "mean_log",
    "prototype_space": "pca",
    "residual": None,
    "objective": ("gradient", "distribution"),
    "sigma_star": 1.0,
    "n_generator_steps": 1,
    "guidance": 1.5,
    "max_steps": 10,
    "selection": None,
    "validation_size": 0.15,
    "refit": True,
    "soft_labels": None,
    "library_size": "deep",
    "max_library": 20_000,
    "count_mode": "round",
    "within_batch": False,
    "network_queue": 0,
    "weights": None,
    "batch_size": 256,
}


def distiller(model: SCDD, n: int = 2, **kwargs) -> Distiller:
    plan = check_plan(**{**PLAN, **kwargs})
    streams, cells = Streams(0), model._labelled_cells()
    start = step_zero(model.module, cells, n_groups=np.full(3, n), plan=plan, streams=streams)
    phi = log_normalize(cells.counts, scale=model.module.scale)
    batches = ClassBatches(phi, cells.labels, n_classes=3, batch_size=plan.batch_size, streams=streams)
    return Distiller(model.module, start, plan=plan, batches=batches, streams=streams)


def test_two_passes_give_the_gradient_of_one(model: SCDD, monkeypatch: pytest.MonkeyPatch) -> None:
    direct, parted = distiller(model, 4), distiller(model, 4)
    terms = direct.backward(0)
    monkeypatch.setattr(distilling, "ROWS_AT_ONCE", 5)
    again = parted.backward(0)
    for got, expected in ((parted.z.grad, direct.z.grad), (parted.r.grad, direct.r.grad)):
        assert float((got - expected).norm() / expected.norm()) < 1e-5
    assert terms == pytest.approx(again, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("n_generator_steps", [1, 10])
def test_one_call_of_the_generator_a_step(model: SCDD, n_generator_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = distiller(model, n_generator_steps=n_generator_steps), []
    forward = type(model.module.ema_denoiser).forward
    monkeypatch.setattr(
        type(model.module.ema_denoiser), "forward", lambda *a, **k: (calls.append(1), forward(*a, **k))[1]
    )
    made.run(3)
    assert len(calls) == 3 * n_generator_steps


def test_steps_lower_the_loss_they_take(model: SCDD) -> None:
    made = distiller(model, objective=("distribution",), init="random", residual=False, max_steps=60)
    history = made.run(60)
    assert history["distribution"][-1] < history["distribution"][0]
    assert not torch.equal(made.z.detach(), made.start.z)


def test_frozen_profile_equals_its_start(model: SCDD) -> None:
    made = distiller(model)
    np.testing.assert_allclose(made.log_rho().exp().detach().numpy(), made.start.profile, atol=1e-6)


def test_networks_live_and_learn_as_long_as_the_budget_says() -> None:
    assert [loop_sizes(n) for n in (1, 10, 50)] == [(1, 0), (10, 10), (50, 10)]
    x, labels = torch.randn(4, 6), torch.tensor([0, 1, 0, 1])
    fresh = Pool(6, 2, n_per_class=1, queue=0, kinds=("mlp",), streams=Streams(0))
    assert fresh.matched(0, x, labels) is not fresh.matched(1, x, labels)
    kept = Pool(6, 2, n_per_class=5, queue=0, kinds=("mlp",), streams=Streams(0))
    first = kept.matched(0, x, labels)
    before = first.head.weight.detach().clone()
    assert kept.matched(1, x, labels) is first
    assert not torch.equal(before, first.head.weight)
    assert kept.matched(10, x, labels) is not first


def test_queue_keeps_its_length_and_adds_a_class_term(model: SCDD) -> None:
    made = distiller(model, network_queue=3)
    terms = made.backward(0)
    assert "queue" in terms
    assert len(made.pool._queue) == 3


def test_batches_are_of_one_class_and_repeat_with_the_seed() -> None:
    x = sparse.csr_matrix(np.arange(40.0).reshape(20, 2))
    labels = np.repeat([0, 1], [15, 5])
    batches = ClassBatches(x, labels, n_classes=3, batch_size=6, streams=Streams(0))
    drawn = batches.draw(0)
    assert [len(b) for b in drawn] == [6, 5, 0]
    assert float(drawn[0].max()) < 30
    assert torch.equal(drawn[0], batches.draw(0)[0])
    assert not torch.equal(drawn[0], batches.draw(1)[0])


def test_loss_that_is_not_finite_names_stage_step_and_term(model: SCDD) -> None:
    made = distiller(model, weights={"gradient_weight": float("nan")})
    with pytest.raises(ConvergenceError, match=r"'codes'.*'gradient'.*step 0") as caught:
        made.run(2)
    assert torch.equal(caught.value.codes, made.start.z)
    assert torch.equal(caught.value.residual, made.start.residual)
