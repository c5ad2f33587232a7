"""New cells: matched by name, one at a time or together; new batches get offsets, and nothing else changes."""

from __future__ import annotations

import warnings

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy.special import softmax

from cellsmith import tl
from cellsmith._errors import DataWarning, NotTrainedError, SetupError
from cellsmith.model import SCE2TM


@pytest.fixture
def query(stimulated: AnnData) -> AnnData:
    return stimulated[:60].copy()


def state_of(model: SCE2TM) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def test_one_by_one_equals_together_and_nothing_is_changed(topic_model: SCE2TM, query: AnnData) -> None:
    before = state_of(topic_model)
    together = topic_model.map_query(query)
    single = np.concatenate([topic_model.map_query(query[[i]].copy()).theta for i in range(20)])
    np.testing.assert_allclose(single, together.theta[:20], atol=1e-6)
    np.testing.assert_allclose(topic_model.map_query(query, batch_size=7).mu, together.mu, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in topic_model.module.state_dict().items())


def test_training_cells_come_back_to_their_place(topic_model: SCE2TM, query: AnnData) -> None:
    found = topic_model.map_query(query)
    np.testing.assert_allclose(found.theta, topic_model.get_topic_proportions()[:60], atol=1e-6)
    assert (found.gene_overlap, found.missing, found.unseen_batches) == (1.0, (), ())
    assert not found.empty.any()


def test_some_genes_in_another_order(topic_model: SCE2TM, query: AnnData) -> None:
    """G1: 60 % of the genes, shuffled, answer as if the others had been measured and not found."""
    order = np.random.default_rng(0).permutation(100)
    part = query[:, order[:60]].copy()
    found = topic_model.map_query(part, fill="zero")
    assert found.gene_overlap == pytest.approx(0.6)
    assert set(found.missing) == set(query.var_names[order[60:]])
    padded = query.copy()
    dense = padded.X.toarray()
    dense[:, order[60:]] = 0
    padded.X = dense
    np.testing.assert_allclose(found.theta, topic_model.map_query(padded).theta, atol=1e-6)


def test_a_mudata_answers_as_its_modality(query: AnnData, topic_model: SCE2TM) -> None:
    """A model of a MuData reads the modality that it was trained on; one of an AnnData says which to pass."""
    mdata = mudata.MuData({"rna": query, "protein": query[:, :5].copy()})
    with pytest.raises(SetupError, match=r"trained on an AnnData. Type query.mod\['rna'\]"):
        topic_model.map_query(mdata)
    SCE2TM.setup_mudata(mdata, batch_key="batch", modalities={"layer": "rna", "batch_key": "rna"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SCE2TM(mdata, n_topics=4, n_hidden=16, n_embedding=8)
        model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    new = query[:9].copy()
    new.obs["batch"] = "b9"
    found = model.map_query(mudata.MuData({"rna": new, "protein": new[:, :5].copy()}))
    np.testing.assert_array_equal(found.theta, model.map_query(new).theta)
    assert found.unseen_batches == ("b9",)
    with pytest.raises(SetupError, match=r"modalities \['dna'\]; the model was trained on the modality 'rna'"):
        model.map_query(mudata.MuData({"dna": new}))


def test_totals_are_over_all_genes_of_the_query(topic_model: SCE2TM, query: AnnData) -> None:
    """Genes that the model does not know count for the depth of a cell, and for nothing else."""
    more = AnnData(
        np.hstack([query.X.toarray(), np.full((60, 1), 500.0, dtype=np.float32)]),
        obs=query.obs.copy(),
        var=pd.DataFrame(index=[*query.var_names, "unknown"]),
    )
    dense = query.X.toarray().astype(float)
    x = np.log1p(1e4 * dense / (dense.sum(axis=1, keepdims=True) + 500.0))
    mu = topic_model._encode(x)[0]
    np.testing.assert_allclose(topic_model.map_query(more).mu, mu, atol=1e-5)


def test_removed_genes_cost_little(topic_model: SCE2TM, query: AnnData) -> None:
    """Q2 in small: without 30 % of the genes most cells keep their largest topic, with either fill."""
    kept = np.random.default_rng(0).permutation(100)[:70]
    truth = topic_model.map_query(query).theta.to_numpy()
    for fill in ("zero", "mean"):
        found = topic_model.map_query(query[:, kept].copy(), fill=fill).theta.to_numpy()
        agreement = (found.argmax(axis=1) == truth.argmax(axis=1)).mean()
        assert agreement > 0.5  # about .2 by chance
    by_name = topic_model.map_query(query[:, kept[::-1]].copy()).theta
    np.testing.assert_allclose(by_name, found, atol=1e-6)  # the mean is the default, genes in any order


def test_absent_genes_get_their_mean(topic_model: SCE2TM, stimulated: AnnData, query: AnnData) -> None:
    dense = stimulated.X.toarray().astype(float)
    mean = np.log1p(1e4 * dense / dense.sum(axis=1, keepdims=True)).mean(axis=0)
    part = query[:, :70].copy()
    counts = part.X.toarray().astype(float)
    x = np.hstack([np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)), np.tile(mean[70:], (60, 1))])
    np.testing.assert_allclose(topic_model.map_query(part).mu, topic_model._encode(x)[0], atol=1e-5)


def test_a_cell_without_modelled_counts_is_uniform(topic_model: SCE2TM, query: AnnData) -> None:
    dense = np.hstack([query.X.toarray(), np.ones((60, 1), dtype=np.float32)])
    dense[4, :100] = 0
    new = AnnData(dense, var=pd.DataFrame(index=[*query.var_names, "unknown"]))
    with pytest.warns(DataWarning, match=r"1 cells have no count in any modelled gene \(first: '4'\)"):
        found = topic_model.map_query(new)
    np.testing.assert_allclose(found.theta.iloc[4], 1 / 8)
    assert found.empty.tolist() == [i == 4 for i in range(60)]


def test_bulk_profiles_are_compared_within_their_cohort(topic_model: SCE2TM, query: AnnData) -> None:
    profiles = AnnData(
        np.stack([query.X[i : i + 5].toarray().sum(axis=0) + 0.5 for i in range(0, 60, 5)]), var=query.var.copy()
    )
    found = topic_model.map_query(profiles, bulk=True)
    np.testing.assert_allclose(found.mu.mean(), 0, atol=1e-5)
    np.testing.assert_allclose(found.mu.std(ddof=0), 1, rtol=1e-4)
    x = np.log1p(1e4 * profiles.X / profiles.X.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found.theta, softmax(topic_model._encode(x)[0], axis=1), atol=1e-5)
    tl.sce2tm_transfer(profiles, model=topic_model, bulk=True)
    np.testing.assert_array_equal(profiles.obsm["sce2tm_mu"], found.mu)
    with pytest.raises(SetupError, match="has 9 samples; expected at least 10"):
        topic_model.map_query(profiles[:9].copy(), bulk=True)
    with pytest.raises(SetupError, match="must hold raw counts"):
        topic_model.map_query(profiles)


def test_refusals_of_a_query(topic_model: SCE2TM, query: AnnData) -> None:
    ensembl = query.copy()
    ensembl.var_names = [f"ENSG{j:05d}" for j in range(100)]
    with pytest.raises(SetupError, match=r"0 of the 100 modelled.*knows 'gene_0', 'gene_1', 'gene_2'; .*'ENSG00000'"):
        topic_model.map_query(ensembl)
    topic_model.map_query(query[:, :40].copy(), min_gene_overlap=0.4)
    with pytest.raises(SetupError, match=r"40 of the 100 modelled genes \(40%\); expected at least 50%"):
        topic_model.map_query(query[:, :40].copy())
    twice = query.copy()
    twice.var_names = ["gene_0", "gene_0", *query.var_names[2:]]
    with pytest.raises(SetupError, match="two genes called 'gene_0'"):
        topic_model.map_query(twice)
    with pytest.raises(SetupError, match="Did you mean 'mean'"):
        topic_model.map_query(query, fill="means")
    logged = query.copy()
    logged.X = np.log1p(logged.X)
    with pytest.raises(SetupError, match="must hold raw counts"):
        topic_model.map_query(logged)
    adata = query.copy()
    SCE2TM.setup_anndata(adata)
    with pytest.raises(NotTrainedError):
        SCE2TM(adata, n_topics=4).map_query(query)


def test_transfer_writes_what_training_writes(topic_model: SCE2TM, query: AnnData, tmp_path) -> None:
    part = query[:, ::-1][:, :80].copy()
    copied = tl.sce2tm_transfer(part, model=topic_model, copy=True)
    assert "sce2tm" not in part.uns
    assert tl.sce2tm_transfer(part, model=topic_model) is None
    found = topic_model.map_query(part)
    np.testing.assert_array_equal(part.obsm["X_sce2tm"], found.theta)
    np.testing.assert_array_equal(copied.obsm["sce2tm_mu"], found.mu)
    np.testing.assert_allclose(part.obs["sce2tm_gene_overlap"], 0.8)
    np.testing.assert_allclose(part.obs["sce2tm_confidence"], 0.8 * found.theta.max(axis=1), rtol=1e-6)
    assert list(part.obs["sce2tm"]) == list(found.theta.idxmax(axis=1))
    beta = topic_model.get_feature_by_topic().loc[part.var_names]
    np.testing.assert_allclose(part.varm["sce2tm_loadings"], beta, rtol=1e-6)
    part.write_h5ad(tmp_path / "query.h5ad")
    stored = anndata.read_h5ad(tmp_path / "query.h5ad").uns["sce2tm"]
    assert set(stored["query"]["missing"]) == set(found.missing)
    assert len(found.missing) == 20
    tl.sce2tm_top_genes(part, n=3)


# --- new batches of the decoder ---


@pytest.fixture(scope="module")
def shifted(stimulated: AnnData) -> AnnData:
    """120 cells of a new batch in which ten genes are five times as high, genes in another order."""
    new = stimulated[np.arange(0, 400, 3)[:120]].copy()
    dense = new.X.toarray()
    dense[:, :10] *= 5
    new.X = dense
    new.obs["batch"] = "b3"
    new.obs_names = [f"new_{i}" for i in range(120)]
    return new[:, ::-1].copy()


def test_new_batches_change_new_rows_only(topic_model: SCE2TM, shifted: AnnData, stimulated: AnnData) -> None:
    before = state_of(topic_model)
    new = topic_model.load_query_data(shifted)
    after = state_of(new)
    assert new._batch_names() == ["b1", "b2", "b3"]
    assert topic_model._batch_names() == ["b1", "b2"]
    assert all(torch.equal(value, before[name]) for name, value in topic_model.module.state_dict().items())
    for name, value in before.items():
        rows = slice(0, 2) if name in ("level_offset", "level_free") else slice(None)
        assert torch.equal(after[name][rows] if value.ndim else after[name], value), name
    np.testing.assert_array_equal(new.get_topic_proportions(), topic_model.get_topic_proportions())
    np.testing.assert_array_equal(new.map_query(shifted).theta, topic_model.map_query(shifted).theta)


def test_new_offsets_find_the_genes_that_are_higher(topic_model: SCE2TM, shifted: AnnData) -> None:
    assert topic_model.map_query(shifted).unseen_batches == ("b3",)
    new = topic_model.load_query_data(shifted)
    assert new.map_query(shifted).unseen_batches == ()
    offset = new.module.level_offset.detach().numpy()[2]
    order = [list(new._genes).index(f"gene_{j}") for j in range(100)]
    high, low = offset[order][:10], offset[order][10:]
    assert np.median(high) > np.median(low) + 0.1
    assert (high > np.median(low)).mean() >= 0.8


def test_new_offsets_raise_the_likelihood(topic_model: SCE2TM, shifted: AnnData) -> None:
    ordered = shifted[:, topic_model._training_genes()].copy()
    new = topic_model.load_query_data(shifted)
    ordered.obs["batch"] = "b1"
    old = topic_model.get_perplexity(ordered)
    ordered = ordered.copy()
    ordered.obs["batch"] = "b3"
    assert new.get_perplexity(ordered) < old


def test_absent_genes_keep_the_offset_zero(topic_model: SCE2TM, shifted: AnnData) -> None:
    new = topic_model.load_query_data(shifted[:, :70].copy(), max_epochs=3)
    missing = ~np.isin(new._genes, shifted.var_names[:70])
    offset = new.module.level_offset.detach().numpy()[2]
    assert (offset[missing] == 0).all()
    assert (offset[~missing] != 0).all()


def test_known_cells_are_ignored_and_single_cells_stay_at_zero(topic_model: SCE2TM, shifted: AnnData) -> None:
    mixed = shifted.copy()
    mixed.obs["batch"] = ["alone", *["b1"] * 59, *["b3"] * 60]
    with pytest.warns(DataWarning, match=r"Batches of one cell keep the offset 0: alone\."):
        new = topic_model.load_query_data(mixed, max_epochs=5)
    assert new._batch_names() == ["b1", "b2", "alone", "b3"]
    assert (new.module.level_offset[2] == 0).all()
    only = topic_model.load_query_data(mixed[60:].copy(), max_epochs=5)
    # the lone cell is part of the mean that both rows minimise, so the rows agree up to that
    together, apart = (m.module.level_offset.detach().numpy()[-1] for m in (new, only))
    assert np.corrcoef(together, apart)[0, 1] > 0.99


def test_the_new_model_can_be_saved_and_asked(topic_model: SCE2TM, shifted: AnnData, tmp_path) -> None:
    new = topic_model.load_query_data(shifted, max_epochs=3)
    ordered = shifted[:, topic_model._training_genes()].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = new.perturb_topics(ordered, topics=["Topic_1"], op="ablate").logfc
        new.save(str(tmp_path / "model"), save_anndata=True)
        loaded = SCE2TM.load(str(tmp_path / "model"))
    assert loaded._batch_names() == ["b1", "b2", "b3"]
    pd.testing.assert_frame_equal(loaded.perturb_topics(ordered, topics=["Topic_1"], op="ablate").logfc, expected)


def test_cells_of_unseen_batches_are_decoded_with_the_mean_offset(topic_model: SCE2TM, query: AnnData) -> None:
    known, codes = query.copy(), topic_model._batch_codes()[:60]
    new = query.copy()
    new.obs["batch"] = np.where(np.arange(60) % 2, "b7", "b8")
    with pytest.warns(DataWarning, match=r"Batches b7, b8 were not in training.*load_query_data"):
        expression = topic_model.get_normalized_expression(new)
    assert (topic_model._batch_codes(new) == 2).all()
    assert set(codes) == {0, 1}
    np.testing.assert_array_equal(topic_model.get_topic_proportions(new), topic_model.get_topic_proportions(known))
    mean = topic_model._express(topic_model.get_topic_proportions(new).to_numpy(), mass=topic_model._mass(new))
    np.testing.assert_allclose(expression, mean, rtol=1e-4, atol=1e-4)
    assert topic_model.perturb_topics(new, topics=["Topic_1"], op="ablate").logfc.shape == (1, 100)


def test_refusals_of_new_batches(topic_model: SCE2TM, stimulated: AnnData, shifted: AnnData, fit_topics) -> None:
    with pytest.raises(SetupError, match=r"All batches of the query are known: \['b1', 'b2'\]"):
        topic_model.load_query_data(stimulated[:60].copy())
    nameless = shifted.copy()
    del nameless.obs["batch"]
    with pytest.raises(SetupError, match="lacks 'batch', the registered batch_key"):
        topic_model.load_query_data(nameless)
    adata = stimulated.copy()
    SCE2TM.setup_anndata(adata)
    plain = fit_topics(adata, epochs=1)
    with pytest.raises(SetupError, match="corrects no batch"):
        plain.load_query_data(shifted)
