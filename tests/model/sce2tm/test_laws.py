"""Laws: what must not matter does not (labels, order of cells and genes, form of the matrix, saving)."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

from cellsmith._rng import Streams, isolated
from cellsmith.datasets import toy_counts
from cellsmith.model import SCE2TM

SMALL = {"n_topics": 4, "n_hidden": 16, "n_embedding": 8}


def fit(adata: AnnData, *, start: dict[str, torch.Tensor] | None = None, seed: int = 0, **options: Any) -> SCE2TM:
    SCE2TM.setup_anndata(adata, **options.pop("setup", {}))
    model = SCE2TM(adata, **{**SMALL, **options})
    if start is not None:
        model._draw_weights = lambda: model.module.load_state_dict(start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=3, accelerator="cpu", batch_size=32, enable_progress_bar=False, seed=seed)
    return model


def same(a: SCE2TM, b: SCE2TM) -> bool:
    one, other = a.module.state_dict(), b.module.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_same_seed_is_bit_equal_and_another_is_not() -> None:
    first, second, third = (fit(toy_counts(90, 40), seed=s) for s in (0, 0, 1))
    assert same(first, second)
    assert not same(first, third)


def test_labels_change_nothing() -> None:
    """F3: no argument takes a label; shuffled, renamed or dropped columns leave every bit as it was."""
    adata = toy_counts(90, 40)
    first = fit(adata.copy())
    shuffled, dropped = adata.copy(), adata.copy()
    shuffled.obs["cell_type"] = np.random.default_rng(0).permutation(shuffled.obs["cell_type"].astype(str))
    dropped.obs = dropped.obs[[]]
    assert same(first, fit(shuffled))
    assert same(first, fit(dropped))
    for function in (SCE2TM.setup_anndata, SCE2TM.setup_mudata, SCE2TM.__init__):
        assert not any("label" in name for name in inspect.signature(function).parameters)


@pytest.mark.parametrize("form", ["dense", "csc", "integer"])
def test_every_form_of_the_same_counts_trains_the_same_model(form: str) -> None:
    adata = toy_counts(90, 40)
    other = adata.copy()
    other.X = {"dense": adata.X.toarray(), "csc": adata.X.tocsc(), "integer": adata.X.astype(np.int64)}[form]
    first, second = fit(adata), fit(other)
    np.testing.assert_allclose(first.get_latent(), second.get_latent(), atol=1e-6)
    np.testing.assert_allclose(first.get_latent(), first.get_latent(other), atol=1e-6)


def test_a_layer_and_more_genes_than_are_modelled() -> None:
    adata = toy_counts(90, 40)
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    in_layer = fit(adata, setup={"layer": "counts"})
    assert same(in_layer, fit(toy_counts(90, 40)))
    few = fit(toy_counts(90, 40), n_top_genes=25)
    assert len(few.gene_index_) == 25
    # totals of T1 are over all genes: a gene that is not modelled still counts
    x = next(few._inputs(None, None, None))[0]
    counts = few.adata.X.toarray()
    expected = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))[:, few.gene_index_]
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-5)


def permuted(state: dict[str, torch.Tensor], order: np.ndarray) -> dict[str, torch.Tensor]:
    """Weights of a model whose genes come in another order."""
    genes, out = torch.from_numpy(order), {}
    for name, value in state.items():
        for dim, size in enumerate(value.shape):
            if size == len(order) and name not in ("gene_index", "gene_place"):
                value = value.index_select(dim, genes)
        out[name] = value.clone()
    return out


def test_permuted_genes_with_permuted_weights_give_the_same_topics() -> None:
    adata, order = toy_counts(90, 37), np.random.default_rng(0).permutation(37)
    SCE2TM.setup_anndata(adata)
    start_from = SCE2TM(adata, **SMALL)
    with isolated(Streams(0).integer("init")):
        start = {k: v.clone() for k, v in start_from._new_module().state_dict().items()}
    first, second = fit(adata, start=start), fit(adata[:, order].copy(), start=permuted(start, order))
    assert not torch.equal(first.module.state_dict()["gene_table"], start["gene_table"])
    np.testing.assert_allclose(first.get_latent(), second.get_latent(), atol=1e-4)
    beta = first.get_feature_by_topic().iloc[order]
    np.testing.assert_allclose(beta, second.get_feature_by_topic(), atol=1e-4)


def test_permuted_cells_get_the_same_answers() -> None:
    model, order = fit(toy_counts(90, 40)), np.random.default_rng(0).permutation(90)
    np.testing.assert_allclose(model.get_latent(model.adata[order].copy()), model.get_latent()[order], atol=1e-6)


@pytest.mark.parametrize("trained", [True, False])
def test_models_are_saved_and_loaded(trained: bool, tmp_path: Path) -> None:
    """F20; trap 4 of scvi-tools."""
    adata = toy_counts(90, 40, n_batches=2)
    adata.X[:, 3] = 0
    adata.X.eliminate_zeros()
    if trained:
        model = fit(adata, setup={"batch_key": "batch"}, n_top_genes=25)
    else:
        SCE2TM.setup_anndata(adata, batch_key="batch")
        model = SCE2TM(adata, **SMALL)
    model.save(tmp_path / "model", overwrite=True)
    loaded = SCE2TM.load(tmp_path / "model", adata=adata.copy())
    assert same(model, loaded)
    assert np.array_equal(model.gene_index_, loaded.gene_index_)
    if trained:
        assert np.array_equal(model.get_latent(), loaded.get_latent())
        assert np.array_equal(model.get_normalized_expression(), loaded.get_normalized_expression())


def test_a_model_is_loaded_with_other_cells_than_it_was_trained_on(tmp_path: Path) -> None:
    """Their number neither chooses the number of topics nor bounds it."""
    adata = toy_counts(120, 80)
    model = fit(adata, n_topics=None)
    assert model.module.n_topics == 16
    model.save(tmp_path / "model")
    loaded = SCE2TM.load(tmp_path / "model", adata=adata[:20].copy())
    np.testing.assert_allclose(loaded.get_latent(), model.get_latent()[:20], atol=1e-6)
    assert "20 cells, 16 topics of 80 genes" in loaded._model_summary_string


def test_the_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    fit(toy_counts(90, 40))
    assert torch.equal(before, torch.get_rng_state())


def test_threads_of_the_neighbour_search_need_not_exist() -> None:
    """F2: one thread is enough everywhere."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert fit(toy_counts(60, 40)).is_trained
    finally:
        torch.set_num_threads(n_threads)
