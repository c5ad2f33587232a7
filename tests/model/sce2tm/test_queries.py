"""What a trained model is asked: topics, genes, expression, perplexity, new counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse
from scvi.criticism import PosteriorPredictiveCheck

from cellsmith._errors import NotTrainedError, SetupError
from cellsmith.datasets import toy_counts
from cellsmith.math import topics
from cellsmith.model import SCE2TM


def test_rows_of_proportions_sum_to_one_and_scores_are_kept_apart(topic_model: SCE2TM) -> None:
    """F7."""
    theta = topic_model.get_topic_proportions()
    assert (theta.to_numpy() >= 0).all()
    np.testing.assert_allclose(theta.sum(axis=1), 1.0, atol=1e-6)
    mu = topic_model.get_latent_representation(kind="mu")
    assert (mu < 0).any()
    np.testing.assert_allclose(torch.softmax(torch.tensor(mu), dim=1).numpy(), theta, atol=1e-6)
    hellinger = topic_model.get_latent_representation(kind="hellinger")
    np.testing.assert_allclose(hellinger**2, theta, atol=1e-6)
    assert np.array_equal(topic_model.get_latent(), theta.to_numpy())


def test_answers_do_not_depend_on_the_batch_of_a_query(topic_model: SCE2TM) -> None:
    whole = topic_model.get_latent_representation(kind="mu")
    np.testing.assert_allclose(topic_model.get_latent_representation(kind="mu", batch_size=7), whole, atol=1e-5)
    rows = np.array([5, 3, 200])
    part = topic_model.get_topic_proportions(indices=rows)
    np.testing.assert_allclose(part, topic_model.get_topic_proportions().iloc[rows], atol=1e-6)
    assert list(part.index) == list(topic_model.adata.obs_names[rows])


@pytest.mark.parametrize("indices", ["first", ["cell_1"], [400], [0.5], [], np.zeros(400, dtype=bool)])
def test_indices_that_are_no_positions(indices: Any, topic_model: SCE2TM) -> None:
    for query in (topic_model.get_topic_proportions, topic_model.get_latent_representation, topic_model.get_perplexity):
        with pytest.raises(SetupError, match="expected positions from 0 to 399, or a mask of 400 cells"):
            query(indices=indices)


def test_indices_as_mask_slice_and_from_the_end(topic_model: SCE2TM) -> None:
    mask = np.arange(400) >= 398
    for indices in (mask, slice(398, None), [-2, -1]):
        pd.testing.assert_frame_equal(
            topic_model.get_topic_proportions(indices=indices),
            topic_model.get_topic_proportions().iloc[398:],
            atol=1e-6,
        )


def test_readings_of_topics(topic_model: SCE2TM) -> None:
    kinds = ("beta", "decoder", "profile", "lift", "frex")
    tables = {kind: topic_model.get_feature_by_topic(kind=kind) for kind in kinds}
    n_genes = len(topic_model.gene_index_)
    for kind, table in tables.items():
        assert table.shape == (n_genes, 8), kind
        assert np.isfinite(table.to_numpy()).all(), kind
    np.testing.assert_allclose(tables["beta"].sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(tables["profile"].sum(axis=0), 1.0, rtol=1e-5)
    mean = topic_model.module.mean_profile.numpy()
    np.testing.assert_allclose(tables["lift"] * mean[:, None], tables["profile"], rtol=1e-4)
    best = topic_model.get_top_genes(n=5)
    assert best.shape == (5, 8)
    assert best.iloc[0, 0] == tables["beta"]["Topic_0"].idxmax()
    assert topic_model.get_gene_embedding().shape == (n_genes, 16)
    assert topic_model.get_topic_embedding().shape == (8, 16)


def test_genes_keep_their_exact_names(fit_topics: Any) -> None:
    """F8: no tokenizer cuts HLA-DRA at its hyphen."""
    adata = toy_counts(80, 40)
    adata.var_names = [f"HLA-D{i}.1" if i % 2 else f"MT-{i}" for i in range(40)]
    SCE2TM.setup_anndata(adata)
    model = fit_topics(adata, epochs=1)
    assert set(model.get_top_genes(n=40).to_numpy().ravel()) == set(adata.var_names)


def test_expression_has_the_library_that_was_asked_for(topic_model: SCE2TM) -> None:
    c = topic_model.get_normalized_expression(library_size=1e4)
    assert c.shape == (400, len(topic_model.gene_index_))
    np.testing.assert_allclose(c.sum(axis=1), 1e4, rtol=1e-4)
    moved = topic_model.get_normalized_expression(transform_batch="b1", indices=np.arange(50))
    own = (topic_model.adata.obs["batch"] == "b1").to_numpy()[:50]
    np.testing.assert_allclose(moved[own], c[:50][own], rtol=1e-4)
    assert np.abs(moved[~own] - c[:50][~own]).max() > 1.0
    x = topic_model.adata.X[:, topic_model.gene_index_]
    observed = np.asarray(x.mean(axis=0)).ravel()
    assert np.corrcoef(np.log1p(c.mean(axis=0)), np.log1p(observed))[0, 1] > 0.9


def test_decode_of_one_topic_orders_genes_as_its_profile(topic_model: SCE2TM) -> None:
    c = topic_model.decode(np.eye(8))
    profile = topic_model.get_feature_by_topic(kind="profile").to_numpy().T
    assert np.array_equal(c.argmax(axis=1), profile.argmax(axis=1))
    np.testing.assert_allclose(topic_model.decode(np.eye(8)[:1], library_size=10).sum(), 10, rtol=1e-4)
    assert not np.allclose(topic_model.decode(np.eye(8), batch="b1"), topic_model.decode(np.eye(8), batch="b2"))
    for theta, words in ((np.ones((2, 8)), "row sums from 8"), (np.ones((2, 3)) / 3, r"expected \(n, 8\)")):
        with pytest.raises(SetupError, match=words):
            topic_model.decode(theta)
    with pytest.raises(SetupError, match="batch='b3'"):
        topic_model.decode(np.eye(8), batch="b3")


def test_perplexity_lies_between_certainty_and_no_idea(topic_model: SCE2TM) -> None:
    held_out = topic_model.get_perplexity(indices=topic_model.validation_indices, n_splits=2)
    x = topic_model.adata.X[:, topic_model.gene_index_]
    pooled = np.asarray(x.sum(axis=0)).ravel()
    constant = topics.perplexity(x, np.tile(pooled / pooled.sum(), (400, 1)))
    assert 1 < held_out < constant < len(topic_model.gene_index_)
    again = topic_model.get_perplexity(indices=topic_model.validation_indices, n_splits=2)
    assert again == held_out
    with pytest.raises(SetupError, match="n_splits=0; expected at least 1"):
        topic_model.get_perplexity(n_splits=0)


def test_new_cells_are_drawn_from_those_that_were_asked_for(topic_model: SCE2TM) -> None:
    new = topic_model.generate(200, condition={"batch": "b2"}, library_size=500, seed=1)
    assert new.shape == (200, len(topic_model.gene_index_))
    assert new.obs["is_synthetic"].all()
    assert set(new.obs["batch"]) == {"b2"}
    np.testing.assert_allclose(new.X.sum(axis=1), 500)
    assert sparse.issparse(new.X)
    np.testing.assert_allclose(new.obsm["X_sce2tm"].sum(axis=1), 1.0, atol=1e-5)
    assert (topic_model.generate(200, condition={"batch": "b2"}, library_size=500, seed=1).X != new.X).nnz == 0
    main = topic_model.generate(50, topics=["Topic_0"], seed=2)
    assert main.obsm["X_sce2tm"][:, 0].mean() > new.obsm["X_sce2tm"][:, 0].mean()
    real, drawn = topic_model.adata.X[:, topic_model.gene_index_], topic_model.generate(400).X
    assert np.corrcoef(*(np.log1p(np.asarray(m.mean(axis=0)).ravel()) for m in (real, drawn)))[0, 1] > 0.9
    table = topic_model.adata.obs[["batch"]].iloc[:9].reset_index(drop=True)
    assert list(topic_model.generate(conditions=table).obs["batch"]) == list(table["batch"])
    named = topic_model.generate(50, topics="Topic_0", seed=2)
    assert np.array_equal(named.obsm["X_sce2tm"], main.obsm["X_sce2tm"])


def test_new_cells_are_drawn_where_no_column_is_registered(stimulated: AnnData, fit_topics: Any) -> None:
    adata = AnnData(stimulated.X.copy(), obs=stimulated.obs[[]].copy(), var=stimulated.var[[]].copy())
    SCE2TM.setup_anndata(adata)
    model = fit_topics(adata, epochs=1)
    new = model.generate(7)
    assert new.shape == (7, len(model.gene_index_))
    assert list(new.obs) == ["is_synthetic"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"condition": {"donor": "d1"}}, "'donor', which is no registered column"),
        ({"condition": {"batch": "b3"}}, "No training cell has batch == 'b3'"),
        ({"topics": ["Topic_8"]}, "topics names 'Topic_8'"),
        ({"n_cells": 0}, "at least 1"),
    ],
)
def test_impossible_requests_are_refused(options: dict[str, Any], words: str, topic_model: SCE2TM) -> None:
    with pytest.raises(SetupError, match=words):
        topic_model.generate(**options)


def test_posterior_predictive_check_runs(topic_model: SCE2TM) -> None:
    adata = topic_model.adata
    drawn = topic_model.posterior_predictive_sample(n_samples=2, indices=np.arange(30))
    assert drawn.shape == (30, adata.n_vars, 2)
    observed = np.asarray(adata.X[:30].sum(axis=1)).ravel()
    modelled = np.asarray(adata.X[:30, topic_model.gene_index_].sum(axis=1)).ravel()
    np.testing.assert_allclose(drawn[..., 0].sum(axis=1).todense(), modelled)
    assert (modelled <= observed).all()
    counts = adata.copy()
    counts.X = counts.X.astype(np.int32)  # scvi-tools' own check fails on sparse floats
    check = PosteriorPredictiveCheck(counts, {"SCE2TM": topic_model}, n_samples=2)
    check.zero_fraction()
    metric = check.metrics["zero_fraction"]
    assert np.abs(metric["SCE2TM"] - metric["Raw"]).mean() < 0.15


def test_unknown_words_name_the_nearest(topic_model: SCE2TM) -> None:
    for call, words in (
        (lambda: topic_model.get_latent_representation(kind="thta"), "Did you mean 'theta'"),
        (lambda: topic_model.get_feature_by_topic(kind="frx"), "Did you mean 'frex'"),
        (lambda: topic_model.get_top_genes(n=10_000), "n=10000"),
        (lambda: topic_model.get_normalized_expression(transform_batch="b9"), "batch='b9'"),
    ):
        with pytest.raises(SetupError, match=words):
            call()


def test_queries_before_training_say_what_to_type() -> None:
    adata = toy_counts(80, 40)
    SCE2TM.setup_anndata(adata)
    model = SCE2TM(adata, n_topics=4)
    queries = ("get_topic_proportions", "get_top_genes", "get_perplexity", "generate", "get_view_quality", "results")
    for query in queries:
        with pytest.raises(NotTrainedError, match=rf"SCE2TM.{query}.*call .train\(\)|SCE2TM.get_feature.*train"):
            getattr(model, query)()


def test_other_genes_and_other_values_are_refused(topic_model: SCE2TM, stimulated: AnnData) -> None:
    with pytest.raises(SetupError, match=r"in another order.*map_query"):
        topic_model.get_latent(stimulated[:, ::-1].copy())
    log = stimulated.copy()
    log.X = log.X.log1p()
    with pytest.raises(SetupError, match="raw counts"):
        topic_model.get_latent(log)


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_what_is_written_survives_a_file(form: str, topic_model: SCE2TM, stimulated: AnnData, tmp_path: Any) -> None:
    import anndata

    adata = stimulated.copy()
    topic_model.write(adata)
    path = tmp_path / f"cells.{form}"
    getattr(adata, f"write_{form}")(path)
    back = getattr(anndata, f"read_{form}")(path)
    np.testing.assert_array_equal(back.obsm["X_sce2tm"], topic_model.get_latent())
    block = back.uns["sce2tm"]
    assert list(block["classes"]) == [f"Topic_{k}" for k in range(8)]
    assert list(block["top_genes"]["Topic_0"]) == list(topic_model.get_top_genes()["Topic_0"])
    assert block["view"]["q"] == 0
    assert block["provenance"]["histories"]["topics"]["train_loss"].shape == (30,)
    assert set(back.obs["sce2tm"].cat.categories) == set(block["classes"])
