"""A closed-form model has the guards, files and provenance of a trained one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS

from cellsmith import _record
from cellsmith._errors import NotTrainedError, SetupError
from cellsmith._rng import Streams
from cellsmith.data.checks import check_counts
from cellsmith.data.fields import cell_fields
from cellsmith.model._fitted import Fit, FittedModel, FittedState


class MeanModel(FittedModel):
    """Mean count of every gene, and one random number."""

    _method = "bcpca"
    _steps = ("sum", "divide")

    def __init__(self, adata: Any = None, *, registry: Any = None, factor: float = 1.0) -> None:
        super().__init__(adata, registry)
        self.factor = factor
        self.module = self._new_module()
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(cls, adata: Any, *, layer: str | None = None, source_registry: Any = None) -> None:
        check_counts(adata, layer)
        cls._register(adata, cell_fields(layer=layer), {"layer": layer}, source_registry=source_registry)

    def _fit(self, fit: Fit) -> Mapping[str, Any]:
        fit.step("sum")
        x = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        if x.max() > 1e6:
            raise SetupError("too much")
        mean = self.factor * np.asarray(x.mean(axis=0)).ravel()
        fit.step("divide")
        for value in (3.0, 2.0, 1.0)[: fit.max_iter]:
            fit.log("divide/residual", value)
        return {"mean": mean, "draw": torch.rand((), generator=fit.streams.torch("init"))}

    def results(self, adata: Any = None) -> _record.Result:
        self._require_trained("results")
        cells = self.adata if adata is None else adata
        latent = np.asarray(cells.X @ self.module.mean.numpy()[:, None])
        return _record.Result(
            method="bcpca", obsm={"X_{k}": latent}, uns={"provenance": self._provenance(inputs={"layer": None})}
        )


@pytest.fixture
def fitted(make: Callable[..., AnnData]) -> MeanModel:
    adata = make(60, 10)
    MeanModel.setup_anndata(adata)
    fitted = MeanModel(adata, factor=2.0)
    fitted.train(seed=3)
    return fitted


def test_fit_is_the_closed_form(fitted: MeanModel) -> None:
    expected = 2.0 * np.asarray(fitted.adata.X.mean(axis=0)).ravel()
    np.testing.assert_allclose(fitted.module.mean.numpy(), expected, rtol=1e-6)
    assert fitted.is_trained
    assert not list(fitted.module.parameters())
    assert fitted.stages() == ()


def test_seed_decides_and_the_global_generators_do_not(fitted: MeanModel) -> None:
    first, state = fitted.module.draw.clone(), torch.get_rng_state()
    torch.manual_seed(9)
    fitted.train(seed=3)
    assert torch.equal(first, fitted.module.draw)
    fitted.train(seed=4)
    assert not torch.equal(first, fitted.module.draw)
    torch.set_rng_state(state)
    fitted.train(seed=None)
    assert isinstance(fitted.seed_, int)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("trained", [True, False])
def test_saved_and_loaded(trained: bool, fitted: MeanModel, tmp_path: Path) -> None:
    model = fitted if trained else MeanModel(fitted.adata)
    model.save(str(tmp_path / "m"), save_anndata=True)
    loaded = MeanModel.load(str(tmp_path / "m"), accelerator="cpu")
    assert loaded.is_trained == trained
    state, expected = loaded.module.state_dict(), model.module.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) and state[name].dtype == expected[name].dtype for name in state)
    assert ("mean" in state) == trained
    assert loaded.factor == model.factor
    assert loaded.seed_ == model.seed_


def test_histories_and_limits(fitted: MeanModel) -> None:
    assert list(fitted.history_["divide/residual"].iloc[:, 0]) == [3.0, 2.0, 1.0]
    fitted.train(max_iter=1, max_epochs=7, accelerator="cpu")
    assert list(fitted.history_["divide/residual"].iloc[:, 0]) == [3.0]
    fitted.write()
    assert fitted.adata.uns["bcpca"]["provenance"]["histories"]["divide"]["residual"] == [3.0]
    with pytest.raises(SetupError, match="max_iter=0"):
        fitted.train(max_iter=0)


def test_steps_come_in_the_declared_order() -> None:
    fit = Fit(("a", "b"), streams=Streams(0), max_iter=None, device=torch.device("cpu"), progress=False)
    fit.step("b")
    with pytest.raises(RuntimeError, match="'a' comes before 'b'"):
        fit.step("a")
    assert fit.close() == {}


def test_write_needs_a_fit_and_carries_provenance(fitted: MeanModel) -> None:
    with pytest.raises(NotTrainedError, match=r"\.train\(\)"):
        MeanModel(fitted.adata).write()
    fitted.write(key_added="means")
    block = fitted.adata.uns["means"]["provenance"]
    assert block["seed"] == 3
    assert block["method"] == "bcpca"
    assert fitted.adata.obsm["X_means"].shape == (60, 1)


def test_a_failed_fit_leaves_the_earlier_one(fitted: MeanModel) -> None:
    before = fitted.module.mean.clone()
    fitted.adata.X[0, 0] = 1e7
    with pytest.raises(SetupError, match="too much"):
        fitted.train()
    assert fitted.is_trained
    assert fitted.seed_ == 3
    assert torch.equal(before, fitted.module.mean)


def test_set_up_guard_is_that_of_every_model(make: Callable[..., AnnData]) -> None:
    with pytest.raises(SetupError, match=r"MeanModel\.setup_anndata"):
        MeanModel()
    adata = make(60, 10)
    adata.X[0, 0] = 0.5
    with pytest.raises(SetupError, match="raw counts"):
        MeanModel.setup_anndata(adata)


def test_arrays_of_any_layout_are_kept() -> None:
    state, values = FittedState(), np.arange(6.0).reshape(3, 2)[::-1]
    state.keep({"values": values, "number": np.float64(2.0), "flags": np.array([True, False])})
    np.testing.assert_array_equal(state.values.numpy(), values)
    assert float(state.number) == 2.0
    assert state.flags.dtype == torch.bool
