"""Every model is trained and asked on a device that is not there; see ``pretend_device``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

from .pretend_device import CPU, GPU, MixedDevicesError, copy_to, mark, place, pretended
from .test_accelerator import CASES


def test_what_a_gpu_refuses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended(monkeypatch):
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert place(here) == CPU
        assert there.device == GPU
        assert place((there * 2).sum()) == GPU
        assert place(there.cpu()) == CPU
        assert place(torch.zeros_like(there)) == GPU
        with pytest.raises(MixedDevicesError, match="add"):
            here + there
        with pytest.raises(MixedDevicesError, match="an index on the GPU"):
            here[torch.arange(2, device="cuda")]
        there[torch.arange(2)]
        with pytest.raises(MixedDevicesError, match="generator"):
            torch.rand(3, device="cuda", generator=torch.Generator())
        with pytest.raises(MixedDevicesError, match="NumPy"):
            there.numpy()
        np.testing.assert_array_equal(there.cpu().numpy(), 1)
        assert there * torch.tensor(2.0) is not None  # a number is at home everywhere
        mark(here, None)
        assert place(copy_to(here, GPU)) == GPU


# What else is asked of a trained model, with the cells of training as new ones.
QUESTIONS: dict[str, Callable[[Any, AnnData], Any]] = {
    "SCLD": lambda model, cells: model.generate(5),
    "SCDD": lambda model, cells: (model.generate(5), model.distill(1, objective="readers", max_steps=2)),
    "SCE2TM": lambda model, cells: (model.map_query(cells), model.get_normalized_expression()),
    "SCAGC": lambda model, cells: (model.generate(5), model.map_query(cells), model.get_edge_probabilities(n_draws=2)),
    "ScSiameseClu": lambda model, cells: (model.generate(5), model.predict(cells), model.get_normalized_expression()),
    "DPDCAN": lambda model, cells: model.predict(cells, soft=True),
    "GRIT": lambda model, cells: model.predict(),
    "BCPCA": lambda model, cells: model.get_loadings(),
}


@pytest.mark.parametrize("name", CASES)
def test_no_model_mixes_devices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, setup, options, epochs, answer = CASES[name]
    from cellsmith import model as models

    adata, kind = make(), getattr(models, name.split()[0])
    with warnings.catch_warnings(), pretended(monkeypatch):
        warnings.simplefilter("ignore")
        kind.setup_anndata(adata, **setup)
        model: Any = kind(adata, **options)
        length = {} if epochs is None else {"max_epochs": epochs}
        model.train(accelerator="cpu", devices=1, enable_progress_bar=False, seed=0, **length)
        assert np.isfinite(answer(model)).all()
        model.write(key_added="there")
        if name in QUESTIONS:
            QUESTIONS[name](model, make())
