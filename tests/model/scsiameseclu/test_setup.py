"""What is refused before training, with what was found and what to type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from cellsmith._errors import CellsmithWarning, NotTrainedError, SetupError, SizeError
from cellsmith.datasets import toy_counts
from cellsmith.model import ScSiameseClu


@pytest.mark.parametrize("value", [-1.0, 0.5, np.nan, np.inf])
def test_values_that_are_no_counts_are_refused_with_cell_and_gene(fresh: AnnData, value: float) -> None:
    x = fresh.X.toarray()
    x[3, 5] = value
    fresh.X = x
    with pytest.raises(SetupError, match=r"'cell_3', gene 'gene_5'.*layer="):
        ScSiameseClu.setup_anndata(fresh)
    assert "_scvi_uuid" not in fresh.uns


def test_log_values_empty_cells_repeated_names_and_views_are_refused(fresh: AnnData) -> None:
    logged = fresh.copy()
    logged.X = sparse.csr_matrix(np.log1p(fresh.X.toarray()))
    with pytest.raises(SetupError, match="log-normalised"):
        ScSiameseClu.setup_anndata(logged)
    empty = fresh.copy()
    empty.X = sparse.csr_matrix(np.where(np.arange(160)[:, None] == 7, 0, fresh.X.toarray()))
    with pytest.raises(SetupError, match=r"total of zero \(first: 'cell_7'"):
        ScSiameseClu.setup_anndata(empty)
    for axis in ("obs_names", "var_names"):
        twice = fresh.copy()
        names = list(getattr(twice, axis))
        names[1] = names[0]
        setattr(twice, axis, names)
        with pytest.raises(SetupError, match="twice"):
            ScSiameseClu.setup_anndata(twice)
    with pytest.raises(SetupError, match="is a view"):
        ScSiameseClu.setup_anndata(fresh[:100])
    with pytest.raises(SetupError, match="at least 50 cells"):
        ScSiameseClu.setup_anndata(fresh[:40].copy())


def test_a_gene_without_counts_is_left_out_and_kept_in_the_object(fresh: AnnData, fitted: Any) -> None:
    x = fresh.X.toarray()
    x[:, 4] = 0
    fresh.X = sparse.csr_matrix(x)
    model = fitted(fresh, train={"max_epochs": 1})
    assert 4 not in model.gene_index_
    assert fresh.n_vars == 60


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"n_clusters": 1}, "n_clusters=1; expected 'auto' or a whole number from 2 to 32"),
        ({"n_clusters": 33}, "n_clusters=33"),
        ({"n_clusters": 2.5}, "n_clusters=2.5"),
        ({"n_clusters": "many"}, "n_clusters='many'"),
        ({"proportions": "equal"}, "proportions='equal'.*Valid"),
        ({"proportions": [0.5, 0.5]}, "needs n_clusters=2, not 'auto'"),
        ({"proportions": [0.5, 0.5], "n_clusters": 3}, "2 shares.*expected 3"),
        ({"proportions": [1.5, -0.5], "n_clusters": 2}, "the smallest -0.5"),
        ({"proportions": {"a": 0.5, "b": 0.6}, "n_clusters": 2}, "the sum 1.1"),
        ({"gene_likelihood": "poisson"}, "gene_likelihood='poisson'"),
        ({"variant": "papr"}, "Did you mean 'paper'"),
        ({"teleport": 0}, r"teleport=0; expected a number in \(0, 1\]"),
        ({"gene_mask_rate": 1.0}, r"gene_mask_rate=1.0; expected a number in \[0, 1\)"),
        ({"cell_weight": -1}, "cell_weight=-1; expected a number >= 0"),
        ({"n_latent": 0}, "n_latent=0; expected a whole number of at least 1"),
        ({"balance_weight": (1.0, 0.0)}, "balance_weight"),
        ({"variant": "paper"}, "needs to be told the number of clusters"),
    ],
)
def test_arguments_out_of_range_are_refused(fresh: AnnData, given: dict[str, Any], words: str) -> None:
    ScSiameseClu.setup_anndata(fresh)
    with pytest.raises(SetupError, match=words):
        ScSiameseClu(fresh, **given)


def test_paper_is_for_few_cells_and_no_batch(fresh: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    ScSiameseClu.setup_anndata(fresh, batch_key="batch")
    with pytest.raises(SetupError, match="corrects no batch"):
        ScSiameseClu(fresh, variant="paper", n_clusters=4)
    monkeypatch.setattr("cellsmith.model.scsiameseclu.model.MAX_PAPER_CELLS", 100)
    ScSiameseClu.setup_anndata(fresh)
    with pytest.raises(SizeError, match=r"160 x 160 .*bytes.*at most 100 cells"):
        ScSiameseClu(fresh, variant="paper", n_clusters=4)


def test_graphs_that_cannot_be_used_are_refused(fresh: AnnData) -> None:
    with pytest.raises(SetupError, match="names no graph"):
        ScSiameseClu.setup_anndata(fresh, neighbors_key="neighbors")
    for wrong, words in ((-1.0, "negative"), (np.nan, "not finite")):
        graph = sparse.random(160, 160, density=0.05, random_state=0, format="csr")
        graph.data[0] = wrong
        fresh.obsp["bad"] = graph
        with pytest.raises(SetupError, match=words):
            ScSiameseClu.setup_anndata(fresh, neighbors_key="bad")
    with pytest.raises(SetupError, match=r"use_rep='X_pc' is not in .obsm"):
        ScSiameseClu.setup_anndata(fresh, use_rep="X_pc")


def test_directed_graph_is_made_symmetric_and_recorded(fresh: AnnData, fitted: Any) -> None:
    graph = sparse.random(160, 160, density=0.05, random_state=0, format="csr")
    graph.setdiag(0)
    graph.eliminate_zeros()
    fresh.obsp["own"] = graph
    model = fitted(fresh, setup={"neighbors_key": "own"}, train={"max_epochs": 1})
    assert any("directed" in note for note in model.notes_)
    a = model._training_cells()[0].graph.connectivities
    assert abs(a - a.T).max() < 1e-6


def test_isolated_cells_and_pieces_do_no_harm(fresh: AnnData, fitted: Any) -> None:
    graph = sparse.lil_matrix((160, 160))
    for i in range(0, 150, 2):
        graph[i, i + 1] = graph[i + 1, i] = 1.0
    fresh.obsp["own"] = graph.tocsr()
    model = fitted(fresh, setup={"neighbors_key": "own"}, train={"max_epochs": 1})
    assert model.graph_summary_["n_isolated"] == 10
    assert model.graph_summary_["n_components"] == 85
    np.testing.assert_allclose(model.get_propagation().sum(axis=1), 1.0, atol=1e-6)


def test_a_small_batch_is_recorded(fresh: AnnData, fitted: Any) -> None:
    fresh.obs["chip"] = np.where(np.arange(160) < 4, "tiny", "large")
    model = fitted(fresh, setup={"batch_key": "chip"}, train={"max_epochs": 1})
    assert any("fewer than" in note for note in model.notes_)


def test_untrained_models_answer_no_query(fresh: AnnData) -> None:
    ScSiameseClu.setup_anndata(fresh)
    model = ScSiameseClu(fresh)
    for query in ("predict", "get_gate", "get_latent_representation", "get_prototypes", "generate", "results"):
        with pytest.raises(NotTrainedError, match=f"{query} needs a trained model"):
            getattr(model, query)()


def test_several_devices_and_data_modules_are_refused(fresh: AnnData) -> None:
    ScSiameseClu.setup_anndata(fresh)
    model = ScSiameseClu(fresh, n_clusters=4)
    with pytest.raises(SetupError, match="shared state"):
        model.train(devices=2, accelerator="cpu")


def test_one_batch_level_corrects_nothing(fresh: AnnData) -> None:
    fresh.obs["one"] = "same"
    ScSiameseClu.setup_anndata(fresh, batch_key="one")
    with pytest.warns(CellsmithWarning, match="one level"):
        model = ScSiameseClu(fresh)
    assert model.module.n_batch_columns == 0


def test_mudata_takes_the_graph_from_another_modality(fitted: Any) -> None:
    mudata = pytest.importorskip("mudata")
    rna = toy_counts(100, 40, n_types=3)
    protein = AnnData(rna.X[:, :5].toarray(), obs=rna.obs[[]].copy())
    protein.obsm["X_adt"] = np.log1p(protein.X)
    mdata = mudata.MuData({"rna": rna, "adt": protein})
    with pytest.raises(SetupError, match="modalities"):
        ScSiameseClu.setup_mudata(mdata)
    ScSiameseClu.setup_mudata(mdata, use_rep="X_adt", modalities={"layer": "rna", "use_rep": "adt"})
    model = ScSiameseClu(mdata, n_clusters=3, n_hidden=16, n_latent=4)
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    model.write()
    assert "scsiameseclu" in mdata.mod["rna"].obs
    assert model.reference_["points"].shape == (100, 5)
