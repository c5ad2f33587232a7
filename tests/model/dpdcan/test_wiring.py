"""Do the losses as they are trained keep units apart? Sound modes must, the published scheme must be caught."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cellsmith._errors import PrivacyError
from cellsmith.math import privacy
from cellsmith.model.dpdcan.checking import check_wiring
from cellsmith.model.dpdcan.module import DPDCANModule
from cellsmith.model.dpdcan.published import CLIP_NORM, NOISED, PublishedStep

FIRST = {"reconstruction": 0.8, "instance": 0.2}
SECOND = {"reconstruction": 0.8, "cluster": 0.4}
G = 40


def module(mode: str, **given: Any) -> DPDCANModule:
    torch.manual_seed(0)
    return DPDCANModule(mode, G, n_components=6, n_latent=4, n_hidden=8, n_clusters=3, **given)


@pytest.mark.parametrize("weights", [FIRST, SECOND])
@pytest.mark.parametrize(
    ("mode", "given"),
    [
        ("dp_pca_init", {}),
        ("dp_pca_init", {"freeze_projection": False, "gene_likelihood": "nb", "n_batch": 2}),
        ("whole", {}),
        ("frozen_decoder", {"fixed_decoder": True}),
    ],
)
def test_sound_modes_keep_units_apart(mode: str, given: dict, weights: dict) -> None:
    found = check_wiring(module(mode, **given), clip_norm=0.5, weights=weights)
    assert found.passed
    assert found.interference == 0.0
    assert found.add_remove <= 1 + 1e-5


@pytest.mark.parametrize("mode", ["dp_pca_init", "whole", "frozen_decoder"])
def test_two_hundred_cells_move_the_clipped_sum_by_at_most_c(mode: str) -> None:
    """The path of training itself: random, empty, deep, very deep and NaN cells, added or replaced."""
    net = module(mode, fixed_decoder=mode == "frozen_decoder")
    with torch.no_grad():
        net.axes.copy_(torch.linalg.qr(torch.randn(G, 6))[0])
    cells = net.synthetic_cells(202)
    cells["x"][0] = 0
    cells["x"][1] *= 10
    cells["x"][2] *= 1000
    cells["x"][3, 5] = torch.nan
    params = {k: p.detach() for k, p in net.named_parameters()}
    if mode == "frozen_decoder":
        params = {k: p for k, p in params.items() if k.startswith("encoder")}
    data = net.prepare(cells, torch.Generator().manual_seed(0))

    def flat(rows: list[int]) -> torch.Tensor:
        part = {k: v[rows] for k, v in data.items()}
        found = privacy.clipped_gradient_sum(
            lambda p, b: net.unit_losses(p, b, FIRST), params, part, clip_norm=0.5, method="vmap"
        )
        return torch.cat([g.flatten() for g in found.gradients.values()]).double()

    base = list(range(196, 202))
    without = flat(base)
    singles = [flat([*base, i]) - without for i in range(196)]
    assert max(float(s.norm()) for s in singles) <= 0.5 * (1 + 1e-5)
    assert all(torch.isfinite(s).all() for s in singles)
    assert max(float((singles[i] - singles[i + 1]).norm()) for i in range(195)) <= 1.0 * (1 + 1e-5)


def step(block: str = "encoder_and_trunk", stage: str = "pretrain") -> PublishedStep:
    return PublishedStep(
        module("reference"),
        noised=NOISED[block],
        noise_multiplier=3.0,
        generator=np.random.default_rng(0),
        views=torch.Generator().manual_seed(0),
        stage=stage,
    )


def measured(published: PublishedStep, *, n_cells: int = 24, n_steps: int = 20) -> privacy.Wiring:
    net = published.module
    data = net.prepare(net.synthetic_cells(n_cells), torch.Generator().manual_seed(0))
    pool = net.prepare(net.synthetic_cells(4, seed=3), torch.Generator().manual_seed(1))
    parameters = {k: p.detach() for k, p in net.named_parameters() if k != "centers"}
    return privacy.wiring(
        lambda p, b: published.unit_losses(p, b) + net.shared_loss(p, b, "pretrain"),
        {k: p for k, p in parameters.items() if k.startswith(published.noised)},
        data,
        clip_norm=CLIP_NORM,
        replacements=[{k: v[i] for k, v in pool.items()} for i in (3, 0, 1, 2)],  # the deep cell first
        trained={k: p for k, p in parameters.items() if not k.startswith(published.noised)},
        n_steps=n_steps,
        learning_rate=0.3,
        generator=np.random.default_rng(0),
    )


@pytest.mark.parametrize("block", ["encoder_and_trunk", "encoder"])
def test_the_published_scheme_is_caught(block: str) -> None:
    found = measured(step(block))
    assert not found.passed
    assert found.interference > 0.05


def test_the_published_instance_term_is_coupled() -> None:
    found = measured(step(), n_steps=2)
    assert found.coupling > 0.01
    assert found.add_remove > 1.1


def test_clipped_sum_of_the_published_scheme_against_its_loop_over_cells() -> None:
    published = step()
    net = published.module
    net.mask_rate = 0.0
    data = net.prepare(net.synthetic_cells(24), None)
    found = published.clipped_sum(data)
    params = {k: p.detach() for k, p in net.named_parameters() if k != "centers"}
    total = {k: torch.zeros_like(p) for k, p in params.items()}
    for i in range(24):
        leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
        one = {k: v[i : i + 1] for k, v in data.items()}
        loss = published.unit_losses(leaves, one)[0] + net.shared_loss(leaves, data, "pretrain")
        grads = torch.autograd.grad(loss, list(leaves.values()))
        norm = torch.sqrt(sum(g.square().sum() for g in grads))
        for k, g in zip(leaves, grads, strict=True):
            total[k] += g * min(1.0, CLIP_NORM / (float(norm) + 1e-6))
    scale = torch.cat([t.flatten() for t in total.values()]).norm()
    difference = torch.cat([(found.gradients[k] - total[k]).flatten() for k in total]).norm()
    assert float(difference / scale) <= 1e-4


def test_batch_norm_is_named() -> None:
    net = module("whole")
    net.encoder.insert(1, nn.BatchNorm1d(128))
    with pytest.raises(PrivacyError, match=r"encoder\.1.*BatchNorm1d.*LayerNorm"):
        check_wiring(net, clip_norm=0.5, weights=FIRST)


def test_a_planted_coupling_stops_training_unspent(monkeypatch: pytest.MonkeyPatch, fit: Any, make: Any) -> None:
    true = DPDCANModule.losses

    def coupled(self, data, weights):
        loss = true(self, data, weights)
        return loss + loss.mean() if loss.ndim else loss

    monkeypatch.setattr(DPDCANModule, "losses", coupled)
    with pytest.raises(PrivacyError, match=r"FAILED.*Nothing was spent"):
        fit(make())
