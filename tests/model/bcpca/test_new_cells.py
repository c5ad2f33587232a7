"""Cells that were not in the fit, and the questions about those that were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from cellsmith._errors import MissingnessWarning, NotTrainedError, SetupError
from cellsmith.math import gram
from cellsmith.model import BCPCA
from cellsmith.model.bcpca.equations import corrected_gram

Simulate = Callable[..., AnnData]
Fit = Callable[..., BCPCA]


@pytest.fixture(scope="module")
def cells(simulated: Simulate) -> AnnData:
    return simulated(150, 200)


@pytest.fixture(scope="module")
def model(cells: AnnData, fitted: Fit) -> BCPCA:
    """No test may change it."""
    return fitted(cells, n_latent=4)


@pytest.mark.parametrize("prob", ["logistic", "rank1", "rank1-legacy", "grouped"])
def test_a_training_cell_returns_to_its_place_less_its_self_term(prob: str, simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(150, 200)
    adata.obs["batch"] = np.where(np.arange(150) % 2, "a", "b")
    own = fitted(adata, setup={"batch_key": "batch"}, prob=prob)
    answer = own._answer()
    operator, _ = own._operator(answer)
    vectors = answer.latent / np.sqrt(200 * answer.values[:3])
    self_term = np.sqrt(200) * operator.delta[:, None] * vectors / np.sqrt(answer.values[:3])
    placed = own.get_latent_representation(adata.copy())
    assert np.abs(self_term).max() > 0.1
    np.testing.assert_allclose(placed + self_term, own.get_latent(), atol=1e-5 * np.abs(answer.latent).max())


def test_held_out_cells_land_where_the_joint_fit_puts_them(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(400, 300, mechanism="rank1")
    rest = fitted(adata[:320].copy())
    joint = fitted(adata).get_latent()
    placed = rest.get_latent_representation(adata[320:].copy())
    signs = np.sign((rest.get_latent() * joint[:320]).sum(axis=0))
    for axis in range(2):
        assert np.corrcoef(placed[:, axis] * signs[axis], joint[320:, axis])[0, 1] > 0.9


def test_features_are_aligned_by_name_and_absent_ones_are_missing(cells: AnnData, model: BCPCA) -> None:
    other = cells[:20].copy()
    expected = other.X.copy()
    expected[:, 150:] = np.nan
    expected = AnnData(expected)
    expected.var_names = cells.var_names
    order = np.random.default_rng(0).permutation(150)
    extra = AnnData(np.ones((20, 5), dtype=np.float32))
    extra.var_names = [f"other{i}" for i in range(5)]
    shuffled = anndata.concat([other[:, order], extra], axis=1)
    shuffled.obs_names = other.obs_names
    reference = model.get_latent_representation(expected)
    near = {"atol": 1e-5 * float(np.abs(reference).max())}
    np.testing.assert_allclose(model.get_latent_representation(shuffled), reference, **near)
    sparse = AnnData(sp.csr_matrix(np.nan_to_num(shuffled.X, nan=7.5)))
    sparse.X.data[sparse.X.data == 7.5] = np.nan
    sparse.var_names = shuffled.var_names
    np.testing.assert_allclose(model.get_latent_representation(sparse), reference, **near)
    assert "_scvi_uuid" not in shuffled.uns
    result = model.results(shuffled)
    loadings = result.varm["{k}_loadings"]
    np.testing.assert_allclose(loadings[:150], model.get_loadings().to_numpy()[order], rtol=1e-5)
    assert np.isnan(loadings[150:]).all()
    model.write(shuffled)
    assert shuffled.obsm["X_bcpca"].shape == (20, 4)


@pytest.mark.parametrize("marks", ["observed", "missing"])
def test_stored_masks_are_aligned_too(marks: str, simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(100, 80)
    known = ~np.isnan(adata.X)
    adata.X = np.nan_to_num(adata.X)
    adata.layers["m"] = sp.csr_matrix((known if marks == "observed" else ~known).astype(np.uint8))
    adata.uns["m"] = {"marks": marks}
    own = fitted(adata, setup={"mask": "m"})
    part = adata[:30, np.random.default_rng(0).permutation(80)[:50]].copy()
    plain = AnnData(np.where(known[:30], adata.X[:30], np.nan)[:, [adata.var_names.get_loc(v) for v in part.var_names]])
    plain.var_names = part.var_names
    by_nan = fitted(AnnData(np.where(known, adata.X, np.nan), var=adata.var[[]]))
    np.testing.assert_allclose(own.get_latent_representation(part), by_nan.get_latent_representation(plain), atol=1e-5)
    dense = part.copy()
    dense.layers["m"] = part.layers["m"].toarray()
    np.testing.assert_allclose(own.get_latent_representation(dense), own.get_latent_representation(part), atol=1e-6)
    del part.layers["m"]
    with pytest.raises(SetupError, match="mask='m' is neither"):
        own.get_latent_representation(part)


def test_too_few_shared_features_give_nan(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(100, 80)
    own = fitted(adata, min_overlap=5)
    few = adata[:10, :4].copy()
    with pytest.warns(MissingnessWarning, match="shares 4 features with the fit, fewer than min_overlap=5"):
        assert np.isnan(own.get_latent_representation(few)).all()
    none = few.copy()
    none.var_names = [f"x{i}" for i in range(4)]
    with pytest.raises(SetupError, match=r"None of the 4 features .* among the 80"):
        own.get_latent_representation(none)
    twice = adata[:10].copy()
    twice.var_names = ["g0", "g0", *adata.var_names[2:]]
    with pytest.raises(SetupError, match="var_names_make_unique"):
        own.get_latent_representation(twice)


def test_an_empty_new_cell_is_nan(cells: AnnData, model: BCPCA) -> None:
    other = cells[:5].copy()
    other.X[2] = np.nan
    with pytest.warns(MissingnessWarning, match="1 cells have no observed entry"):
        latent = model.get_latent_representation(other)
    assert np.isnan(latent[2]).all()
    expected = model.get_latent_representation(cells.copy())[[0, 1, 3, 4]]
    np.testing.assert_allclose(np.delete(latent, 2, 0), expected, atol=1e-5 * np.abs(expected).max())


def test_new_cells_of_groups_and_covariates(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(120, 80)
    adata.obs["batch"] = np.where(np.arange(120) % 2, "a", "b")
    adata.obs["depth"] = np.random.default_rng(0).normal(size=120)
    grouped = fitted(adata, setup={"batch_key": "batch"}, prob="grouped")
    with_depth = fitted(adata, prob_covariates=("depth", "batch"), overlap_tol=1e-2)
    other = adata[:30].copy()
    for own in (grouped, with_depth):
        placed = own.get_latent_representation(other)
        assert np.corrcoef(placed[:, 0], own.get_latent()[:30, 0])[0, 1] > 0.9
    other.obs["batch"] = "c"
    with pytest.raises(SetupError, match="'c' was not among those of the fit"):
        grouped.get_latent_representation(other)
    with pytest.raises(SetupError, match="'batch' is 'c', which the fit did not see"):
        with_depth.get_latent_representation(other)
    del other.obs["batch"]
    with pytest.raises(SetupError, match="batch"):
        grouped.get_latent_representation(other)


def test_fits_that_cannot_place_say_so(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(60, 50)
    for prob, text in (("pairwise", "only pairs of training cells"), (adata.layers["p"], "given for the training")):
        own = fitted(adata, prob=prob, overlap_tol=1e-2)
        with pytest.raises(SetupError, match=text):
            own.get_latent_representation(adata.copy())


def test_refined_axes_place_new_cells_by_regression(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(300, 400, spread=1.5)
    own = fitted(adata, refine="prime")
    assert own.results().uns["refine"]["accepted"]
    np.testing.assert_allclose(own.get_latent_representation(adata.copy()), own.get_latent(), atol=1e-4)


# --- questions about training cells -----------------------------------------------------------------------------------


def test_rows_of_the_gram_matrix_are_those_of_the_formula(cells: AnnData, model: BCPCA) -> None:
    x = cells.X.astype(float)
    z = np.nan_to_num(x - np.nanmean(x, axis=0))
    p = model._probability(model._answer()).block(np.arange(150))
    expected = corrected_gram(z, p)
    rows = np.concatenate([block for _, block in model.gram_blocks(40)])
    assert [s.start for s, _ in model.gram_blocks(40)] == [0, 40, 80, 120]
    np.testing.assert_allclose(rows, expected, atol=2e-4 * np.abs(expected).max())
    pairs = np.array([(0, 1), (3, 3), (17, 140)])
    i, j = pairs.T
    distances = np.maximum(np.diag(expected)[i] + np.diag(expected)[j] - 2 * expected[i, j], 0)
    np.testing.assert_allclose(model.distances(pairs), np.where(i == j, 0, distances), atol=1e-3 * distances.max())
    assert 0.0 <= model.floored_share_ <= 1.0
    np.testing.assert_allclose(model.get_overlap(pairs), np.einsum("id,id->i", p[i], p[j]), rtol=1e-6)
    mean = (p @ p.sum(axis=0) - (p**2).sum(axis=1)) / 149
    np.testing.assert_allclose(model.get_overlap(), mean, rtol=1e-5)


def test_pairwise_counts_answer_the_same_questions(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(60, 50)
    own = fitted(adata, prob="pairwise")
    known = (~np.isnan(adata.X)).astype(float)
    np.testing.assert_allclose(own.get_overlap([(0, 1), (5, 9)]), [known[0] @ known[1], known[5] @ known[9]])
    assert np.isfinite(own.distances([(0, 1)])).all()
    assert next(own.gram_blocks(10))[1].shape == (10, 60)


@pytest.mark.parametrize("pairs", [[0, 1], [(0, 1, 2)], [(0, 150)], [(-1, 0)]])
def test_pairs_that_are_none(pairs: Any, model: BCPCA) -> None:
    for question in (model.get_overlap, model.distances):
        with pytest.raises(SetupError, match="pairs"):
            question(pairs)


def test_untrained_models_ask_for_training(cells: AnnData) -> None:
    BCPCA.setup_anndata(cells)
    untrained = BCPCA(cells)
    for question in ("get_latent_representation", "get_loadings", "get_overlap", "write", "results"):
        with pytest.raises(NotTrainedError, match=r"\.train\(\)"):
            getattr(untrained, question)()
    with pytest.raises(NotTrainedError):
        untrained.distances([(0, 1)])
    assert untrained.fit_indices.size == 0


# --- files and MuData -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [True, False])
def test_saved_and_loaded(trained: bool, simulated: Simulate, fitted: Fit, tmp_path: Path) -> None:
    adata = simulated(80, 60)
    adata.obs["depth"] = np.random.default_rng(0).normal(size=80)
    own = fitted(adata, prob_covariates=("depth",), overlap_tol=1e-2)
    if not trained:
        own = BCPCA(adata, n_latent=3, prob_covariates=("depth",))
    own.save(str(tmp_path / "m"), save_anndata=True)
    loaded = BCPCA.load(str(tmp_path / "m"), accelerator="cpu")
    assert loaded.is_trained == trained
    assert loaded.options_["n_latent"] == 3
    if not trained:
        loaded.train(accelerator="cpu", enable_progress_bar=False)
        return
    np.testing.assert_array_equal(loaded.get_latent(), own.get_latent())
    np.testing.assert_array_equal(loaded.distances([(0, 1)]), own.distances([(0, 1)]))
    np.testing.assert_array_equal(loaded.get_latent(adata.copy()), own.get_latent(adata.copy()))
    assert loaded.results().uns["eigenvalues"].tolist() == own.results().uns["eigenvalues"].tolist()


def test_loaded_without_data(simulated: Simulate, fitted: Fit, tmp_path: Path) -> None:
    adata = simulated(80, 60)
    own = fitted(adata)
    own.save(str(tmp_path / "m"))
    with pytest.warns(UserWarning, match="no saved anndata"):
        loaded = BCPCA.load(str(tmp_path / "m"), accelerator="cpu")
    np.testing.assert_array_equal(loaded.get_latent(), own.get_latent())
    other = adata[:, ::-1].copy()
    np.testing.assert_array_equal(loaded.get_latent(other), own.get_latent(other))
    np.testing.assert_array_equal(loaded.get_overlap([(0, 1)]), own.get_overlap([(0, 1)]))
    with pytest.raises(SetupError, match="loaded without them"):
        loaded.distances([(0, 1)])
    with_data = BCPCA.load(str(tmp_path / "m"), adata=adata, accelerator="cpu")
    assert np.isfinite(with_data.distances([(0, 1)])).all()


def test_one_modality_of_mudata(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(80, 60)
    reference = fitted(adata).get_latent()
    protein = adata.copy()
    mdata = MuData({"rna": AnnData(np.ones((80, 3), dtype=np.float32)), "protein": protein})
    known = ~np.isnan(adata.X)
    BCPCA.setup_mudata(mdata, mask=known, modalities={"layer": "protein"})
    own = BCPCA(mdata, n_latent=3, compare=False, min_overlap=0)
    own.train(accelerator="cpu")
    np.testing.assert_allclose(own.get_latent(), reference, atol=1e-6)
    own.write()
    assert "X_bcpca" in mdata.mod["protein"].obsm
    assert "bcpca_mask" in mdata.mod["protein"].layers
    with pytest.raises(SetupError, match="modalities=None"):
        BCPCA.setup_mudata(mdata)
    with pytest.raises(SetupError, match="modalities lacks 'layer'"):
        BCPCA.setup_mudata(mdata, modalities={})


def test_sin_theta_of_indices(model: BCPCA) -> None:
    chosen = model.get_latent_representation(indices=[5, 2])
    np.testing.assert_array_equal(chosen, model.get_latent()[[5, 2]])
    assert gram.sin_theta(model.get_latent(), model.get_latent()) < 1e-6
