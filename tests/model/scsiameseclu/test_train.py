"""Stages of training: what they train, what moves, what is never allocated."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

from cellsmith._errors import ConvergenceError, SetupError
from cellsmith._rng import Streams
from cellsmith.data.splits import CellReader
from cellsmith.datasets import toy_counts
from cellsmith.metrics.clustering import ari
from cellsmith.model import ScSiameseClu
from cellsmith.model.scsiameseclu import clusters


def test_stages_and_their_lengths(model: ScSiameseClu) -> None:
    names = [stage.name for stage in model.stages()]
    assert names == ["warmup", "transport", "finish"]
    assert len(model.history_["warmup/train_loss"]) == 40
    assert len(model.history_["transport/train_transport"]) == 16
    # 160 cells are three steps of 64: many epochs for few cells, few for many
    assert [s.max_epochs for s in model.stages()[:2]] == [100, 50]
    model_ = ScSiameseClu.__new__(ScSiameseClu)
    model_._n_cells = lambda: 1_000_000
    assert (model_._batch_size(), model_._n_epochs((400, 20, 100))) == (512, 20)


def test_types_are_found(model: ScSiameseClu) -> None:
    assert ari(model.adata.obs["cell_type"], model.predict()) > 0.9


def test_every_trained_parameter_gets_a_gradient(fresh: AnnData, fitted: Any) -> None:
    """F13: the mean head of the public code had none."""
    model = fitted(
        fresh,
        setup={"batch_key": "batch"},
        train={"max_epochs": 1},
        cluster_weight=0.1,
        propagation_weight=0.1,
        gene_likelihood="zinb",
    )
    model._reader = CellReader(model.adata_manager)
    reader = model._begin_warmup(Streams(0))
    model._begin_transport(Streams(0))
    stage = model.stages()[1]
    model.module.train()
    model.module.loss_views(reader[np.arange(64)], weights=stage.weights).loss.backward()
    for name, parameter in model.module.named_parameters():
        assert name.startswith(stage.trains), name
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_prototypes_move_and_targets_are_renewed_to_the_end(
    fresh: AnnData, fitted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F10, F11: the public target froze after nine epochs, and centres were drawn anew at every step."""
    starts, epochs = [], []
    place = ScSiameseClu._place_prototypes
    refresh = ScSiameseClu._between_transport

    def placed(self: Any, streams: Any) -> None:
        place(self, streams)
        starts.append(self.module.prototypes.detach().clone())

    def between(self: Any, epoch: int, n_epochs: int) -> bool:
        epochs.append((epoch, self.module.targets.n_solves))
        return refresh(self, epoch, n_epochs)

    monkeypatch.setattr(ScSiameseClu, "_place_prototypes", placed)
    monkeypatch.setattr(ScSiameseClu, "_between_transport", between)
    model = fitted(fresh, train={"max_epochs": {"warmup": 4, "transport": 14}})
    ends = torch.from_numpy(model.get_prototypes())
    assert torch.cdist(ends, starts[0]).min(dim=1).values.min() > 1e-4
    solves = [n for epoch, n in epochs if epoch > 10]
    assert all(b > a for a, b in pairwise(solves))
    assert model.sinkhorn_["n_solves"] > 0


@pytest.mark.parametrize("kind", ["uniform", "init", "learned", "partial", [0.4, 0.3, 0.2, 0.1]])
def test_every_kind_of_proportions_trains(fresh: AnnData, fitted: Any, kind: Any) -> None:
    model = fitted(fresh, proportions=kind, train={"max_epochs": {"warmup": 10, "transport": 4}})
    assert np.isfinite(model.get_latent_representation()).all()
    if isinstance(kind, list):
        # the largest community is meant to be the largest cluster
        sizes = model._wanted_sizes(np.repeat([2, 0, 3, 1], [10, 8, 6, 4]), 4)
        np.testing.assert_allclose(sizes, [0.3, 0.1, 0.4, 0.2], atol=1e-6)


def test_auto_finds_a_number_and_records_the_way(fresh: AnnData, fitted: Any) -> None:
    model = fitted(fresh, n_clusters="auto", train={"max_epochs": {"warmup": 40, "transport": 12}})
    assert 3 <= model.n_prototypes_ <= 5
    path = model.results().uns["k_path"]
    assert path["n_clusters"][0] > path["n_clusters"][-1]
    assert len(set(map(len, path.values()))) == 1


def test_no_structure_gives_few_clusters(fitted: Any) -> None:
    adata = toy_counts(200, 60, n_types=1)
    model = fitted(adata, n_clusters="auto", train={"max_epochs": 12})
    assert (np.bincount(model.codes_) > 4).sum() <= 2


def test_without_transport_clusters_are_the_communities(fresh: AnnData, fitted: Any) -> None:
    model = fitted(fresh, transport_weight=0, train={"max_epochs": 20})
    assert [s.name for s in model.stages()] == ["warmup", "finish"]
    assert model.predict().nunique() == 4


def test_same_seed_is_bit_equal_and_another_is_not(fresh: AnnData, fitted: Any) -> None:
    """F20."""
    short = {"max_epochs": 3}
    first, again, other = (
        fitted(fresh.copy(), train={**short, "seed": seed}).predict(soft=True).to_numpy() for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_nothing_of_size_n_squared_is_ever_allocated(fitted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """F19: arrays of all pairs of cells."""
    n = 600
    largest = [0]
    dense = torch.Tensor.to_dense

    def watched(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        largest[0] = max(largest[0], self.numel())
        return dense(self, *args, **kwargs)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else (out,):
                if isinstance(value, torch.Tensor) and value.layout is torch.strided:
                    largest[0] = max(largest[0], value.numel())
            return out

    monkeypatch.setattr(torch.Tensor, "to_dense", watched)
    # The exact search for neighbours looks at 64 MiB of distances at a time: all of them, with so few cells.
    monkeypatch.setattr("cellsmith.math.graph.neighbors._BLOCK", 60 * n)
    with Watch():
        fitted(toy_counts(n, 30, n_types=3), train={"max_epochs": 1, "batch_size": 64})
    assert 0 < largest[0] < n * n


def test_counts_layers_and_columns_stay_as_they_were(fresh: AnnData, fitted: Any) -> None:
    """F7: the public code saved 0/1 values in place of the features."""
    fresh.layers["counts"] = fresh.X.copy()
    before = fresh.copy()
    model = fitted(fresh, setup={"layer": "counts"}, train={"max_epochs": 1})
    model.write()
    assert (fresh.X != before.X).nnz == 0
    assert (fresh.layers["counts"] != before.layers["counts"]).nnz == 0
    assert list(fresh.obs_names) == list(before.obs_names)
    assert set(before.obs.columns) <= set(fresh.obs.columns)


def test_a_loss_that_is_not_finite_ends_training_and_says_which_term(fresh: AnnData) -> None:
    ScSiameseClu.setup_anndata(fresh)
    model = ScSiameseClu(fresh, n_clusters=4, n_hidden=16, n_latent=4)
    wild = {"max_epochs": 30, "enable_progress_bar": False, "plan_kwargs": {"lr": 1e30, "clip": None}}
    with pytest.raises(ConvergenceError, match=r"not finite|non-finite"):
        model.train(accelerator="cpu", **wild)


def test_train_takes_what_scvi_takes_and_refuses_unknown_stages(fresh: AnnData, fitted: Any) -> None:
    model = fitted(fresh, train={"max_epochs": 2, "train_size": 0.8})
    assert "warmup/validation_loss" in model.history_
    assert model.predict().shape == (160,)
    with pytest.raises(SetupError, match=r"'transprt'.*Did you mean 'transport'"):
        model.train(max_epochs={"transprt": 3})


def test_merging_looks_at_nearest_clusters_unless_a_type_may_lie_in_two_places(
    fresh: AnnData, fitted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, prune = [], clusters.prune
    monkeypatch.setattr(clusters, "prune", lambda *a, **k: seen.append(k["nearest"]) or prune(*a, **k))
    for batch_key, nearest in ((None, True), ("batch", False)):
        fitted(fresh.copy(), setup={"batch_key": batch_key}, train={"max_epochs": 4}, n_clusters="auto")
        assert set(seen) == {nearest}
        seen.clear()


def test_prototypes_without_cells_are_put_on_different_cells(fresh: AnnData, fitted: Any) -> None:
    """Two rounds of re-seeding: every prototype on a cell of its own, the least sure first."""
    model = fitted(fresh, train={"max_epochs": 2})
    n = fresh.n_obs
    model.n_prototypes_, model.reseeds_ = 4, {}
    model._swept = model._placed().swept
    z = np.asarray(model._swept.fused)
    model.module.codes = torch.zeros(n, dtype=torch.long)
    model.module.confidence = torch.linspace(0.1, 1.0, n)
    model.module.set_prototypes(torch.zeros(4, z.shape[1]))
    for first in (0, 3):
        model._reseed()
        np.testing.assert_allclose(model.module.prototypes.detach()[1:], z[first : first + 3], atol=1e-6)
    model._reseed()
    np.testing.assert_allclose(model.module.prototypes.detach()[1:], z[3:6], atol=1e-6)
