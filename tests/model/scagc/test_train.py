"""Training: every named parameter learns, labels play no part, runs repeat, the head, the controls, no training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

from cellsmith._errors import CellsmithWarning, ConvergenceError, DataWarning, SetupError
from cellsmith._rng import Streams
from cellsmith.data.splits import CellReader
from cellsmith.math.assign import adjusted_rand
from cellsmith.model import SCAGC
from cellsmith.model.scagc.module import SCAGCModule
from cellsmith.model.scagc.schedule import learned_stages, noisy_share, number_of_epochs
from cellsmith.model.scagc.training import EpochKeeper, IndexedCells

Cells = Callable[..., AnnData]
Fit = Callable[..., SCAGC]


def outputs(model: SCAGC) -> list[np.ndarray]:
    graph = model.get_learned_graph()
    return [model.get_latent(), graph.data, graph.indices, model.predict(soft=True).to_numpy()]


def test_labels_absent_present_or_permuted_leave_every_output_bit_identical(cells: Cells, fitted: Fit) -> None:
    """E1: the released code needs labels, takes K from them and stops by them."""
    found = []
    for how in ("present", "permuted", "absent"):
        adata = cells(80)
        if how == "permuted":
            adata.obs["cell_type"] = np.random.default_rng(0).permutation(adata.obs["cell_type"].to_numpy())
        if how == "absent":
            del adata.obs["cell_type"]
        found.append(outputs(fitted(adata)))
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for function in (SCAGC.setup_anndata, SCAGC.setup_mudata, SCAGC.__init__, SCAGC.train):
        assert "label" not in str(function.__annotations__.keys())


def test_another_seed_gives_another_answer(cells: Cells, fitted: Fit) -> None:
    """The comparison above can fail."""
    assert not np.array_equal(fitted(cells(80)).get_latent(), fitted(cells(80), seed=1).get_latent())


def test_every_trained_parameter_has_a_gradient_and_centres_move(cells: Cells) -> None:
    """The released code replaces its centres by a constant array, which has none."""
    adata = cells(80)
    SCAGC.setup_anndata(adata)
    sizes = {"n_hidden": 16, "n_latent": 5, "n_neighbors": 6, "n_candidates": 16}
    model = SCAGC(
        adata, **sizes, graph="learned", cluster_head="dec", n_clusters=3, graph_weight=0.3, contrast_weight=0.1
    )
    model._reader = CellReader(model.adata_manager)
    model._datamodule = None
    streams = Streams(0)
    model._index(streams)
    model.module.centers = torch.nn.Parameter(torch.randn(3, 5))
    model.module.target_sizes = torch.ones(3)
    reader = model._start_graph(streams)
    for stage in [s for s in model.stages() if not s.solve]:
        model.module.zero_grad()
        model.module.train()
        weights = {**stage.weights, **({"cluster": 1.5} if stage.name == "cluster" else {})}
        getattr(model.module, stage.loss)(reader[np.arange(64)], weights=weights).loss.backward()
        for name, parameter in model.module.named_parameters():
            if name.startswith(stage.trains) and (name != "centers" or stage.name == "cluster"):
                assert parameter.grad is not None, (stage.name, name)
                assert parameter.grad.abs().sum() > 0, (stage.name, name)


def test_head_sharpens_clusters_and_its_centres_are_trained(cells: Cells, fitted: Fit) -> None:
    adata = cells(80)
    model = fitted(adata, cluster_head="dec", n_clusters=3)
    assert len(model.history_["cluster/train_cluster"]) == 2
    proba = model.predict(soft=True)
    np.testing.assert_allclose(proba.sum(axis=1), 1.0, atol=1e-6)
    assert (proba.to_numpy().argmax(1) == model.predict().cat.codes).all()
    assert not np.allclose(model.module.centers.detach(), model.module.centers.detach()[:1])


def test_dropout_is_at_work_in_training_only(model: SCAGC) -> None:
    batch = CellReader(model.adata_manager)[np.arange(20)]
    module = model.module
    try:
        module.train()
        with torch.no_grad():
            assert not torch.equal(module.hidden(batch), module.hidden(batch))
            module.eval()
            assert torch.equal(module.hidden(batch), module.hidden(batch))
    finally:
        module.eval()


def test_nothing_of_the_run_stays_in_the_module(model: SCAGC) -> None:
    module = model.module
    assert module.tables is module.keeper is module.partners is None
    assert model._cells is None


def test_doubled_counts_leave_the_decoded_profile(model: SCAGC, cells: Cells) -> None:
    """The released code fits a ZINB to z-scores and never uses its size factors."""
    query = cells()
    twice = query.copy()
    twice.layers["counts"] = twice.layers["counts"] * 2
    once, double = (model.map_query(q).latent for q in (query, twice))
    shallow, deep = (model._decode(z, np.zeros((120, 1), dtype=np.int64)).rho for z in (once, double))
    # the neighbours are those of the same input: s doubles with the counts
    np.testing.assert_allclose(shallow, deep, atol=1e-5)


def test_halves_share_out_every_molecule_and_the_library(model: SCAGC, generator: np.random.Generator) -> None:
    """What is predicted was not seen, so that noise of single molecules cannot be learnt by heart."""
    cells = IndexedCells(CellReader(model.adata_manager), model.adata.layers["counts"])
    cells.split(generator)
    batch = cells[np.arange(30)]
    seen, rest = model.module.halves(batch)
    whole = batch["X"].to_dense()
    torch.testing.assert_close(seen["X"] + rest["X"], whole)
    assert 0.47 < float(seen["X"].sum() / whole.sum()) < 0.53
    torch.testing.assert_close(model.module.library(seen) + model.module.library(rest), whole.sum(dim=1))
    again = cells[np.arange(30)]["seen"].to_dense()
    torch.testing.assert_close(again, seen["X"])  # the same half all epoch long
    cells.split(generator)
    assert not torch.equal(cells[np.arange(30)]["seen"].to_dense(), again)


def test_nothing_that_is_to_be_predicted_returns_by_way_of_the_neighbours(cells: Cells) -> None:
    """The stored rows of all cells come from the halves that they show."""
    found = []
    for factor in (1, 3):
        adata = cells(60)
        SCAGC.setup_anndata(adata)
        model = SCAGC(adata, n_hidden=8, n_latent=3, n_neighbors=5, n_candidates=10)
        model._reader, model._datamodule = CellReader(model.adata_manager), None
        model._index(Streams(0))
        keeper = EpochKeeper(model.module, model._cells, Streams(0), 0)
        torch.manual_seed(0)
        model.module.load_state_dict(SCAGCModule(40, n_hidden=8, n_latent=3).state_dict(), strict=False)
        model._cells.split(np.random.default_rng(0))
        unseen = model._cells._counts - model._cells._seen
        # what is not seen is tripled in the object that batches are read from
        model._cells._reader._csr = model._cells._seen + factor * unseen
        found.append(keeper.hidden())
    torch.testing.assert_close(found[0], found[1])


def test_first_term_targets_are_the_coordinates_that_new_counts_have(untrained: SCAGC) -> None:
    from cellsmith.model.scagc.first_space import FirstTarget, first_space, place_counts

    counts = untrained.adata.X
    space = first_space(counts, None)
    target = FirstTarget(space, n_latent=5)(torch.from_numpy(counts.toarray()), torch.arange(120))
    wanted = place_counts(counts, space.axes)[:, :5]
    scale = np.sqrt(np.square(space.scores[:, :5] - space.scores[:, :5].mean(axis=0)).mean())
    np.testing.assert_allclose(target.numpy(), wanted / scale, atol=1e-3)
    given = FirstTarget(first_space(counts, space.scores), n_latent=5)(None, torch.arange(120))
    np.testing.assert_allclose(np.abs(given.numpy()), np.abs(wanted / scale), atol=2e-2)


@pytest.mark.parametrize("graph", ["knn", "random", "none"])
def test_controls_train_on_a_graph_that_does_not_change(cells: Cells, fitted: Fit, graph: str) -> None:
    model = fitted(cells(80), graph=graph)
    assert [s.name for s in model.stages()] == ["index", "warmup", "graph", "export"]
    assert ("graph/train_graph" in model.history_) == (graph != "none")
    assert model.get_latent().shape == (80, 5)


def test_random_control_names_every_cell_as_often_as_the_nearest_ones_do(generator: np.random.Generator) -> None:
    from cellsmith.math.graph import knn_table
    from cellsmith.model.scagc.training import _rewired

    table = knn_table(generator.standard_normal((200, 3)), 6, seed=0)[0]
    found = _rewired(table, generator)
    assert (found != np.arange(200)[:, None]).all()
    assert all(len(set(row)) == 6 for row in found.tolist())
    np.testing.assert_array_equal(np.bincount(found.ravel(), minlength=200), np.bincount(table.ravel(), minlength=200))
    assert np.mean(found == table) < 0.2


def test_untrained_mode_clusters_residuals_and_decodes_nothing(untrained: SCAGC, cells: Cells) -> None:
    adata = cells()
    assert untrained.get_latent().shape == (120, 20)
    assert not untrained.history_
    assert adjusted_rand(untrained.predict().astype(str), adata.obs["cell_type"].astype(str)) > 0.9
    with pytest.raises(SetupError, match=r"nothing was trained \(max_epochs=0\)"):
        untrained.generate(5)
    with pytest.raises(SetupError, match="nothing was trained"):
        untrained.get_normalized_expression()
    mapped = untrained.map_query(adata[:7].copy())
    np.testing.assert_allclose(mapped.latent, untrained.get_latent()[:7], atol=1e-2)
    assert (mapped.labels == untrained.predict()[:7]).all()


def test_training_learns_the_types_of_a_toy(cells: Cells, fitted: Fit) -> None:
    adata = cells(150, 60, n_batches=1)
    model = fitted(adata, train={"max_epochs": 15, "batch_size": 32}, n_hidden=64)
    assert adjusted_rand(model.predict().astype(str), adata.obs["cell_type"].astype(str)) > 0.8
    loss = model.history_["graph/train_reconstruction"].iloc[:, 0]
    assert loss.iloc[-1] < loss.iloc[0]


def test_given_embedding_decides_the_first_graph(cells: Cells, fitted: Fit) -> None:
    adata = cells(80)
    adata.obsm["E"] = np.random.default_rng(0).standard_normal((80, 4))
    model = fitted(adata, setup={"use_rep": "E"}, train={"max_epochs": 0})
    np.testing.assert_allclose(model.get_latent(), adata.obsm["E"], atol=1e-6)
    with pytest.raises(SetupError, match="those of use_rep"):
        model.map_query(adata[:5].copy())


def test_stage_table_adds_up_and_quiet_noise_may_stop_early() -> None:
    assert [number_of_epochs(n) for n in (2_000, 20_000, 50_000, 1_000_000)] == [100, 100, 40, 40]
    weights = {"first": 1.0, "graph": 0.3, "contrast": 0.1, "cluster": 1.5}
    stages = learned_stages(200, weights, noise_scale=1.0, head=True)
    lengths = {s.name: s.max_epochs for s in stages if not s.solve}
    assert lengths["warmup"] == 40
    assert lengths["graph"] + lengths["anneal"] == 120
    assert 0.68 < lengths["graph"] / 120 < 0.71
    patience = {s.name: s.plan.patience for s in stages if not s.solve}
    assert patience == {"warmup": None, "graph": None, "anneal": 20, "settle": None, "cluster": None}
    assert noisy_share(0.2) == 0.0


def test_settling_ends_where_edges_no_longer_change(cells: Cells, fitted: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    from cellsmith.model.scagc import training

    monkeypatch.setattr(training, "TURNOVER", 1.1)
    monkeypatch.setattr(training, "CHECK_EVERY", 1)
    model = fitted(cells(80), train={"max_epochs": {"graph": 1, "anneal": 1, "settle": 12, "warmup": 1}})
    assert len(model.history_["settle/train_loss"]) < 6
    assert len(model.graph_["turnover"]) >= 2


def test_divergence_names_the_stage_and_several_devices_are_refused(cells: Cells) -> None:
    adata = cells(80)
    SCAGC.setup_anndata(adata)
    model = SCAGC(adata, n_hidden=8, n_latent=3, n_neighbors=5, n_candidates=10)
    with pytest.raises(SetupError, match=r"belong to one process. Type devices=1"):
        model.train(devices=2, accelerator="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ConvergenceError, match="Stage 'warmup'"):
            model.train(accelerator="cpu", enable_progress_bar=False, plan_kwargs={"lr": 1e30, "clip": None})


def test_one_cluster_is_an_answer_with_a_warning(cells: Cells) -> None:
    adata = cells(200, 60, n_types=1, n_batches=1)
    SCAGC.setup_anndata(adata)
    model = SCAGC(adata, n_neighbors=10, n_candidates=30)
    with pytest.warns(CellsmithWarning, match="All cells form one cluster"):
        model.train(max_epochs=0, accelerator="cpu")
    assert model.predict().cat.categories.tolist() == ["0"]
    assert model.get_merge_path()["n_clusters"].min() == 1


def test_number_of_clusters_is_kept_and_names_go_by_size(cells: Cells, fitted: Fit) -> None:
    for wanted in (2, 5):
        sizes = fitted(cells(), n_clusters=wanted, train={"max_epochs": 0}).predict().value_counts()
        assert len(sizes) == wanted
        assert list(sizes.sort_index().to_numpy()) == sorted(sizes, reverse=True)


def test_stability_rule_keeps_its_curve(cells: Cells, fitted: Fit) -> None:
    model = fitted(cells(80), n_clusters="stability", train={"max_epochs": 0})
    curve = model.get_stability()
    assert list(curve.columns) == ["resolution", "n_clusters", "stability", "plateau"]
    assert len(curve) == 14
    assert curve["stability"].between(-1, 1).all()


def test_clusters_are_those_of_the_exported_graph(model: SCAGC) -> None:
    """The released code clusters the initial graph, whatever was learned."""
    from cellsmith.model.scagc.clusters import choose_clusters

    ours = model.get_learned_graph()
    order = np.random.default_rng(0).permutation(ours.shape[0])
    other = ours[order][:, order]
    kwargs: dict[str, Any] = {"counts": lambda: model.adata.X, "batches": None, "perturbed": lambda n: []}
    first = choose_clusters(ours, 3, streams=Streams(0), **kwargs).labels
    second = choose_clusters(other, 3, streams=Streams(0), **kwargs).labels
    assert adjusted_rand(first, second) < 0.5


def test_small_batches_and_few_cells_are_told(cells: Cells) -> None:
    adata = cells(40)
    adata.obs["batch"] = np.array(["a"] * 37 + ["b"] * 3)
    SCAGC.setup_anndata(adata, batch_key="batch")
    with pytest.warns(DataWarning, match="40 cells leave room for 39 candidates and 15 neighbours"):
        model = SCAGC(adata, n_hidden=8, n_latent=3)
    with pytest.warns(DataWarning, match="Batch 'b' has 3 cells, fewer than 5"):
        model.train(max_epochs=0, accelerator="cpu")


def test_default_smooths_over_no_graph_and_writes_one_with_few_hubs(cells: Cells) -> None:
    """What earned nothing in the ablation is off; the graph that is written has the penalty on hubs all the same."""
    adata = cells(120)
    SCAGC.setup_anndata(adata)
    size = {"n_hidden": 16, "n_latent": 5, "n_neighbors": 6, "n_candidates": 16, "n_clusters": 3}
    degrees = {}
    for penalty in (0.0, 0.5):
        model = SCAGC(adata, **size, hub_penalty=penalty)
        model.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False)
        degrees[penalty] = model.get_degree_report().loc["learned", "degree_cv"]
    assert [s.name for s in model.stages()] == ["index", "warmup", "graph", "export"]
    assert degrees[0.5] < degrees[0.0]


def test_a_head_needs_a_learned_graph(cells: Cells) -> None:
    adata = cells(60)
    SCAGC.setup_anndata(adata)
    with pytest.raises(SetupError, match="Type graph='learned'"):
        SCAGC(adata, cluster_head="dec")
