"""Training: what is trained and how long, scales, both variants, every likelihood, and the known faults of old code."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from cellsmith._errors import ConvergenceError, DataWarning, SetupError
from cellsmith.data.splits import CellReader
from cellsmith.datasets import toy_counts
from cellsmith.model import SCE2TM
from cellsmith.model.sce2tm import equations as eq

SMALL = {"n_topics": 4, "n_hidden": 16, "n_embedding": 8}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def toy(n_cells: int = 120, n_genes: int = 40, **options: Any) -> AnnData:
    return toy_counts(n_cells, n_genes, **options)


def build(adata: AnnData, *, setup: dict[str, Any] | None = None, **options: Any) -> SCE2TM:
    SCE2TM.setup_anndata(adata, **(setup or {}))
    return SCE2TM(adata, **{**SMALL, **options})


def train(model: SCE2TM, *, epochs: Any = 2, **options: Any) -> SCE2TM:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=epochs, **{**QUIET, **options})
    return model


def moved(model: SCE2TM, before: dict[str, torch.Tensor]) -> set[str]:
    return {k for k, v in model.module.state_dict().items() if not torch.equal(v, before[k])}


@pytest.mark.parametrize("likelihood", ["log-multinomial", "multinomial", "nb"])
@pytest.mark.parametrize("variant", ["default", "paper"])
def test_two_epochs_give_valid_proportions(likelihood: str, variant: str) -> None:
    """F1, F6: both variants run from nothing, read nothing from disk and need no 100 epochs."""
    if variant == "paper" and likelihood != "log-multinomial":
        pytest.skip("the published objective has one likelihood")
    model = train(build(toy(), variant=variant, gene_likelihood=likelihood))
    theta = model.get_topic_proportions().to_numpy()
    assert theta.shape == (120, 4)
    assert (theta >= 0).all()
    np.testing.assert_allclose(theta.sum(axis=1), 1.0, atol=1e-6)
    for name, history in model.history_.items():
        assert np.isfinite(history.to_numpy(dtype=float)).all(), name


def test_the_loss_falls() -> None:
    model = train(build(toy()), epochs=30, batch_size=32)
    for phase in ("train", "validation"):
        history = model.history_[f"topics/{phase}_loss"].iloc[:, 0]
        assert history.iloc[-1] < history.iloc[0] - 5


def test_the_best_weights_come_back_with_their_own_batch_norms() -> None:
    model = train(build(toy()), epochs={"topics": 25}, early_stopping=False, plan_kwargs={"lr": 0.1})
    history = model.history_["topics/validation_loss"].iloc[:, 0].to_numpy()
    assert history.argmin() < len(history) - 1
    batch = CellReader(model.adata_manager)[model.validation_indices]
    with torch.no_grad():
        again = model.module.loss_topics(batch, weights={"ecr": 100.0}).loss
    assert float(again) == pytest.approx(history.min(), rel=1e-6)


def test_plans_of_both_variants() -> None:
    """F4: without a schedule the rate stays; the published one halves it every 125 epochs."""
    adata = toy()
    default, paper = build(adata), build(adata, variant="paper")
    plan = default.stages()[1].plan
    assert (plan.optimizer, plan.schedule, plan.clip, plan.patience) == ("rmsprop", "constant", None, 20)
    assert [plan.rate(s, n_steps=1000, n_epochs=500) for s in (0, 500, 999)] == [1.0, 1.0, 1.0]
    published = paper.stages()[1]
    assert (published.name, published.max_epochs, published.plan.patience) == ("joint", 500, None)
    rates = [published.plan.rate(s, n_steps=1000, n_epochs=500) for s in (0, 249, 250, 500, 999)]
    assert rates == [1.0, 1.0, 0.5, 0.25, 0.125]


def test_stages_without_a_view() -> None:
    model = build(toy(700, 40))
    assert [s.name for s in model.stages()] == ["index", "topics", "order"]
    assert model.stages()[1].max_epochs == 100
    assert model.stages()[1].batch_size == 512
    assert build(toy(60, 40)).stages()[1].max_epochs == 100


def test_paper_trains_on_all_cells_and_validates_on_none() -> None:
    model = train(build(toy(), variant="paper"))
    assert len(model.train_indices) == 120
    assert len(model.validation_indices) == 0
    assert not any("validation" in name for name in model.history_)
    assert float(model.module.mass_factor) == 1.0
    assert np.array_equal(model.get_latent(), model.get_latent_representation(kind="mu"))


def test_reconstruction_is_brought_to_the_reference_mass() -> None:
    adata = toy()
    deep = adata.copy()
    deep.X = deep.X * 8
    for likelihood in ("multinomial", "nb"):
        models = [train(build(a, gene_likelihood=likelihood), train_size=1.0) for a in (adata, deep)]
        factors = [float(m.module.mass_factor) for m in models]
        assert factors[0] / factors[1] == pytest.approx(8.0, rel=1e-5)
        assert factors[0] == pytest.approx(eq.REFERENCE_MASS / float(np.mean(adata.X.sum(axis=1))), rel=1e-5)
    assert float(train(build(adata, loss_scale="paper")).module.mass_factor) == 1.0


@pytest.mark.parametrize("likelihood", ["log-multinomial", "multinomial", "nb"])
def test_every_likelihood_has_a_gradient(likelihood: str) -> None:
    """G1: a loss that is constant in the parameters trains nothing."""
    model = train(build(toy(), gene_likelihood=likelihood))
    model.module.train()
    batch = CellReader(model.adata_manager)[np.arange(64)]
    out = model.module.loss_topics(batch, weights={"ecr": 0.0, "kl": 0.0})
    out.loss.backward()
    assert float(model.module.encoder.first.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("batch_key", [None, "batch"])
def test_every_trained_parameter_gets_a_gradient(batch_key: str | None) -> None:
    """F13: no dead layer, and the prior is no parameter."""
    model = train(build(toy(n_batches=2), setup={"batch_key": batch_key}, gene_likelihood="nb"))
    stage = model.stages()[1]
    model.module.train()
    batch = CellReader(model.adata_manager)[np.arange(64)]
    model.module.loss_topics(batch, weights=stage.weights).loss.backward()
    for name, parameter in model.module.named_parameters():
        assert name.startswith(stage.trains), name
        assert float(parameter.grad.abs().max()) > 1e-9, name
    assert "prior_variance" in dict(model.module.named_buffers())


@pytest.mark.parametrize("variant", ["default", "paper"])
def test_one_cell_left_over_trains(variant: str) -> None:
    """F16: n % batch_size = 1."""
    model = train(build(toy(65), variant=variant), batch_size=16, train_size=1.0)
    assert np.isfinite(model.get_latent()).all()


def test_retraining_goes_on_and_the_genes_stay() -> None:
    model = train(build(toy(), n_top_genes=20))
    genes = model.gene_index_.copy()
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    train(model, epochs=1)
    assert np.array_equal(genes, model.gene_index_)
    assert not np.array_equal(before["gene_table"], model.module.gene_table.detach().numpy())
    start, now = before["gene_table"], model.module.gene_table.detach()
    assert float((start - now).abs().max()) < 0.1


def test_genes_without_counts_are_not_modelled() -> None:
    adata = toy()
    x = adata.X.toarray()
    x[:, [3, 17]] = 0
    adata.X = x
    model = train(build(adata, n_top_genes=30))
    assert not {3, 17} & set(model.gene_index_)
    everything = train(build(adata))
    assert len(everything.gene_index_) == 38
    model.write(adata)
    assert (adata.varm["sce2tm_loadings"][[3, 17]] == 0).all()
    np.testing.assert_allclose(adata.varm["sce2tm_loadings"][model.gene_index_].sum(axis=1), 1.0, rtol=1e-5)


def test_a_cell_without_modelled_counts_has_equal_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellsmith.model.sce2tm.training.choose_genes", lambda moments, n_top: np.arange(30))
    adata = toy()
    x = adata.X.toarray()
    x[7] = 0
    x[7, 39] = 3
    adata.X = x
    model = build(adata, n_top_genes=30)
    with pytest.warns(DataWarning, match=r"1 cells have no count.*'cell_7'"):
        model.train(max_epochs=2, **QUIET)
    model.write(adata)
    np.testing.assert_allclose(adata.obsm["X_sce2tm"][7], 0.25)
    assert adata.obs["sce2tm_confidence"].iloc[7] == 0.0
    assert adata.n_obs == 120


def test_topics_are_numbered_by_their_share() -> None:
    model = train(build(toy()), epochs=20, batch_size=32)
    shares = model.get_topic_proportions(indices=model.train_indices).mean().to_numpy()
    assert (np.diff(shares) <= 1e-6).all()


def test_batches_get_offsets_and_single_cells_keep_zero() -> None:
    adata = toy(n_batches=2)
    names = adata.obs["batch"].astype(str).to_numpy()
    names[5] = "alone"
    adata.obs["batch"] = names
    model = build(adata, setup={"batch_key": "batch"})
    with pytest.warns(DataWarning, match=r"1 levels of 'batch'"):
        model.train(max_epochs=3, train_size=1.0, **QUIET)
    offsets = model.module.level_offset.detach() * model.module.level_free
    assert (offsets[model._batch_names().index("alone")] == 0).all()
    assert float(offsets.abs().max()) > 0


def test_several_devices_are_refused_with_the_reason() -> None:
    model = build(toy())
    with pytest.raises(SetupError, match=r"2 devices.*whole batch.*devices=1"):
        model.train(max_epochs=1, accelerator="cpu", devices=2)
    assert not model.is_trained


def test_a_term_that_is_not_finite_is_named() -> None:
    model = build(toy())
    own = model.module.__class__._ecr
    calls = []

    def broken(self: Any, distances: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return own(self, distances) * (float("nan") if len(calls) == 3 else 1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.module.__class__, "_ecr", broken)
        with pytest.raises(ConvergenceError, match=r"'topics'.*term 'ecr' in epoch"):
            train(model, epochs=9, train_size=1.0)
    assert all(bool(torch.isfinite(v).all()) for v in model.module.parameters())


def test_sweeps_of_the_transport_solver_are_recorded() -> None:
    model = train(build(toy()), epochs=3)
    assert model.sinkhorn_["n_solves"] == 3
    assert model.sinkhorn_["mean_sweeps"] >= 1
    assert model.sinkhorn_["n_unconverged"] == 0


def test_a_plan_begun_where_the_last_one_ended_is_as_good() -> None:
    """Later solves take few sweeps, and the topics are those of solves from nothing, through all sweeps."""
    warm, cold = (train(build(toy(), ecr_gradient=g), epochs=20) for g in ("implicit", "unrolled"))
    assert warm.sinkhorn_["mean_sweeps"] < 0.5 * cold.sinkhorn_["mean_sweeps"]
    assert np.abs(warm.get_feature_by_topic() - cold.get_feature_by_topic()).to_numpy().mean() < 0.01


def test_training_from_a_registry_and_a_data_module() -> None:
    adata = toy(n_batches=2)
    with_data = train(build(adata, setup={"batch_key": "batch"}), epochs=1)
    model = SCE2TM(registry=with_data.registry, **SMALL)
    model.train(max_epochs=2, datamodule=_Cells(adata), **QUIET)
    assert model.is_trained
    with pytest.raises(SetupError, match="no training object"):
        model.get_topic_proportions()
    theta = model._encode(np.log1p(adata.X.toarray()))[1]
    np.testing.assert_allclose(theta.sum(axis=1), 1.0, atol=1e-6)


class _Cells(LightningDataModule):
    """The least that a data module offers: batches of counts and codes of the batch."""

    def __init__(self, adata: AnnData) -> None:
        super().__init__()
        counts = torch.tensor(adata.X.toarray())
        codes = torch.tensor(adata.obs["batch"].cat.codes.to_numpy(dtype=np.int64)).reshape(-1, 1)
        self.batches = [{"X": x, "batch": b} for x, b in zip(counts.split(40), codes.split(40), strict=True)]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)
