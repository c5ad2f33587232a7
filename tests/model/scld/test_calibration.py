"""The refit of the dispersion: which cells it reads, and which it is judged by; cells of a data module."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from lightning.pytorch import LightningDataModule

from cellsmith.data.splits import Batches, CellReader
from cellsmith.model import SCLD
from cellsmith.model import _calibration as calibration
from cellsmith.model._calibration import Sample, calibrate
from cellsmith.model.scld import training

Make = Callable[..., AnnData]
Build = Callable[..., SCLD]


# --- groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dispersion", "column"), [("gene-batch", "batch"), ("gene-label", "cell_type")])
def test_a_group_is_refitted_on_its_own_cells_which_alone_are_decoded(
    dispersion: str, column: str, make: Make, quick: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata = make(120, 20)
    labels = adata.obs["cell_type"].astype(object)
    labels.iloc[:15] = None
    adata.obs["cell_type"] = labels.astype("category")
    trained = quick(adata, dispersion=dispersion, calibrate_dispersion=False)
    trained.module.eval()
    reader = CellReader(trained.adata_manager)
    read: list[np.ndarray] = []
    decoded: list[int] = []
    original = type(trained.module).decode

    def spy(module: Any, z: torch.Tensor, covariates: Any) -> Any:
        decoded.append(len(z))
        return original(module, z, covariates)

    def refit(pairs: Callable[[], Iterable[Any]], theta: np.ndarray) -> np.ndarray:
        start = len(decoded)
        x = np.concatenate([x.toarray() for x, _ in pairs()])
        assert sum(decoded[start:]) == len(x)
        assert all((mean.shape == x.shape) for x, mean in pairs())
        read.append(x)
        return np.full_like(theta, 1.0 + len(read))

    monkeypatch.setattr(type(trained.module), "decode", spy)
    monkeypatch.setattr(calibration.counts, "refit_dispersion", refit)
    rows = np.arange(5, 120)
    calibrate(trained.module, fit=Sample(reader, rows), held_out=Sample(reader, rows[:20]), seed=0)
    known = adata.obs[column].cat.categories
    expected = [rows, *(rows[(adata.obs[column] == name).to_numpy()[rows]] for name in known)]
    assert len(read) == len(expected)
    for got, cells in zip(read, expected, strict=True):
        np.testing.assert_array_equal(got, adata.X[cells].toarray())


def test_every_pass_sees_the_same_draws(make: Make, quick: Build) -> None:
    trained = quick(make(80, 20), calibrate_dispersion=False)
    drawn = calibration._Drawn(trained.module.eval(), Sample(CellReader(trained.adata_manager), np.arange(80)), 3)
    with torch.no_grad():
        first, again = ([mean for _, mean in drawn.pairs()] for _ in range(2))
        part = next(iter(drawn.pairs(np.array([7, 30]))))[1]
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_allclose(part, first[0][[7, 30]], rtol=1e-5)


# --- data modules ----------------------------------------------------------------------------------------------------


class Cells(LightningDataModule):
    """Cells of a registered object, shuffled anew at every pass, as from a file."""

    def __init__(self, reader: CellReader, train: np.ndarray) -> None:
        super().__init__()
        self.reader, self.train = reader, train

    def batches(self, cells: np.ndarray, *, shuffle: bool) -> Batches:
        self.passes = getattr(self, "passes", 0) + shuffle
        order = np.random.default_rng(self.passes).permutation(cells) if shuffle else cells
        return Batches(self.reader.__getitem__, lambda _: order, n_items=len(cells), batch_size=32)

    def train_dataloader(self) -> Batches:
        return self.batches(self.train, shuffle=True)


class Split(Cells):
    """The same with cells for validation."""

    def __init__(self, reader: CellReader, train: np.ndarray, validation: np.ndarray) -> None:
        super().__init__(reader, train)
        self.validation = validation

    def val_dataloader(self) -> Batches:
        return self.batches(self.validation, shuffle=False)


@pytest.fixture
def setting(make: Make, built: Build) -> tuple[SCLD, CellReader]:
    """A model without data, and a reader of cells whose first gene numbers them."""
    adata = make(200, 20)
    adata.X[:, 0] = np.arange(200)[:, None]
    origin = built(adata)
    size = {"n_latent": 4, "n_hidden": 16, "n_denoiser_hidden": 16, "n_denoiser_layers": 1, "n_diffusion_steps": 5}
    alone = SCLD(registry=copy.deepcopy(origin.registry), **size)
    return alone, CellReader(origin.adata_manager)


def first_gene(sample: Sample) -> set[int]:
    """The cells of a sample, by the count of the gene that numbers them."""
    return {int(v) for batch in sample.batches() for v in batch["X"].to_dense()[:, 0]}


def spied_training(model: SCLD, data: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[set[int], set[int]]:
    seen: list[Any] = []

    def spy(module: Any, *, fit: Sample, held_out: Sample, seed: int) -> dict[str, Any]:
        seen.extend([first_gene(fit), first_gene(held_out)])
        assert first_gene(fit) == seen[0], "the same cells at every pass"
        return calibrate(module, fit=fit, held_out=held_out, seed=seed)

    monkeypatch.setattr(training, "calibrate", spy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=1, datamodule=data, accelerator="cpu", enable_progress_bar=False)
    return seen[0], seen[1]


def test_the_refit_is_judged_by_the_validation_cells_of_a_data_module(
    setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reader = setting
    fit, judged = spied_training(model, Split(reader, np.arange(150), np.arange(150, 200)), monkeypatch)
    assert fit == set(range(150))
    assert judged == set(range(150, 200))
    assert model.refit_["done"]
    assert model.generate(10).n_obs == 10


def test_without_validation_cells_every_tenth_is_kept_from_the_refit(
    setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reader = setting
    fit, judged = spied_training(model, Cells(reader, np.arange(150)), monkeypatch)
    assert len(judged) == 15
    assert not fit & judged
    assert fit | judged == set(range(150))


def test_the_start_of_the_dispersion_reads_a_bounded_number_of_training_cells(
    setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reader = setting
    sizes: list[int] = []
    original = training.counts.dispersion_moments

    def spy(x: Any, library: Any) -> Any:
        sizes.append(x.shape[0])
        assert not set(x[:, 0].toarray().ravel().astype(int)) & set(range(150, 200))
        return original(x, library)

    monkeypatch.setattr(training.counts, "dispersion_moments", spy)
    monkeypatch.setattr(training, "MAX_MOMENT_CELLS", 64)
    spied_training(model, Split(reader, np.arange(150), np.arange(150, 200)), monkeypatch)
    assert len(sizes) == 1
    assert 32 <= sizes[0] <= 64
