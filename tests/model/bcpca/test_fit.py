"""The fit: what it equals, what it is invariant to, what it refuses."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

from cellsmith._errors import ConvergenceError, DataWarning, MissingnessWarning, SetupError, SizeError
from cellsmith.math import gram
from cellsmith.model import BCPCA

Simulate = Callable[..., AnnData]
Fit = Callable[..., BCPCA]


def small(simulated: Simulate, **kwargs: Any) -> AnnData:
    return simulated(120, 90, **kwargs)


def same_axes(x: np.ndarray, y: np.ndarray, *, tol: float = 1e-5) -> None:
    """Equal up to the sign of each column, relative to the largest value."""
    signs = np.sign(np.nansum(x * y, axis=0))
    np.testing.assert_allclose(x, y * signs, atol=tol * np.nanmax(np.abs(y)))


@pytest.mark.parametrize("form", ["nan", "none", "csr"])
def test_complete_mask_is_pca(form: str, simulated: Simulate, fitted: Fit) -> None:
    adata = small(simulated, mechanism="complete")
    sc.pp.pca(adata, n_comps=5, svd_solver="full", random_state=0)
    if form == "csr":
        adata.X = sp.csr_matrix(adata.X)
    model = fitted(adata, setup={"mask": "nan" if form == "nan" else None}, n_latent=5)
    same_axes(model.get_latent(), adata.obsm["X_pca"])
    loadings = model.get_loadings().to_numpy()
    np.testing.assert_allclose(loadings.T @ loadings, np.eye(5), atol=1e-5)
    same_axes(loadings, adata.varm["PCs"])


def test_complete_mask_is_pca_beyond_the_exact_solver(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(1100, 60, mechanism="complete")
    sc.pp.pca(adata, n_comps=3, svd_solver="full")
    same_axes(fitted(adata, tol=1e-5).get_latent(), adata.obsm["X_pca"])


def test_legacy_probabilities_lose_where_heterogeneity_is_strong(simulated: Simulate, fitted: Fit) -> None:
    errors: dict[str, list[float]] = {"logistic": [], "rank1-legacy": [], "pairwise": []}
    for seed in (0, 3):
        adata = simulated(300, 600, spread=1.5, seed=seed)
        for prob, found in errors.items():
            found.append(gram.sin_theta(adata.obsm["truth"], fitted(adata, prob=prob).get_latent()))
    logistic, legacy, pairwise = (float(np.mean(v)) for v in errors.values())
    assert legacy >= logistic + 0.05
    assert logistic <= pairwise + 0.01


def test_reference_a_is_reached(simulated: Simulate, fitted: Fit) -> None:
    """Logistic row: .431, mean imputation .495, complete data .203 (single seeds scatter by .03)."""
    adata = simulated()
    model = fitted(adata, compare=True)
    result = model.results()
    truth = adata.obsm["truth"]
    found = gram.sin_theta(truth, result.obsm["X_{k}"])
    assert found <= 0.45
    assert found <= 0.9 * gram.sin_theta(truth, result.obsm["X_{k}_mean"])
    assert found <= gram.sin_theta(truth, result.obsm["X_{k}_pairwise"]) + 0.01


def test_four_mechanisms_are_named_correctly(simulated: Simulate, fitted: Fit) -> None:
    """Under a rank-one mask rank-one and logistic probabilities agree with the truth."""
    adata = simulated(200, 400, mechanism="rank1", seed=2)
    truth = adata.obsm["truth"]
    errors = {
        name: gram.sin_theta(truth, fitted(adata, prob=prob).get_latent())
        for name, prob in (("rank1", "rank1"), ("logistic", "logistic"), ("true", adata.layers["p"]))
    }
    assert max(errors.values()) - min(errors.values()) < 0.03, errors


def test_baselines_are_scored_on_the_same_held_out_entries(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(500, 150, mechanism="rank1")
    model = fitted(adata, compare=True)
    result = model.results()
    table = result.uns["baselines"]
    assert list(table["name"]) == ["bc", "mean", "pairwise"]
    for name, angle in zip(table["name"][1:], table["sin_theta"][1:], strict=True):
        other = result.obsm[f"X_{{k}}_{name}"]
        assert gram.sin_theta(result.obsm["X_{k}"], other) == pytest.approx(angle, abs=1e-4)
    noise, spread = 2.0, float(np.nanstd(adata.X - np.nanmean(adata.X, axis=0)))
    assert (table["heldout_error"] > 0.9 * noise).all()
    assert table["heldout_error"][0] < spread
    again = fitted(adata.copy(), compare=True).results().uns["baselines"]
    np.testing.assert_array_equal(table["heldout_error"], again["heldout_error"])
    pairwise = fitted(adata.copy(), prob="pairwise").get_latent()
    same_axes(result.obsm["X_{k}_pairwise"], pairwise)


def test_order_of_cells_and_features_does_not_matter(simulated: Simulate, fitted: Fit) -> None:
    adata = small(simulated)
    reference = fitted(adata)
    cells, features = (np.random.default_rng(0).permutation(m) for m in adata.shape)
    moved = fitted(adata[cells][:, features].copy())
    np.testing.assert_allclose(moved.get_latent(), reference.get_latent()[cells], atol=2e-5)
    np.testing.assert_allclose(moved.get_loadings(), reference.get_loadings().iloc[features], atol=2e-6)


def test_scale_and_shift_of_the_data(simulated: Simulate, fitted: Fit) -> None:
    adata, other = small(simulated), small(simulated)
    other.X = 3.0 * other.X + 5.0
    np.testing.assert_allclose(fitted(other).get_latent(), 3.0 * fitted(adata).get_latent(), rtol=1e-3, atol=2e-4)


def test_same_seed_same_bits_and_labels_are_not_read(simulated: Simulate, fitted: Fit) -> None:
    adata, other = simulated(1050, 40), simulated(1050, 40)
    other.obs["cell_type"] = np.random.default_rng(0).choice(["a", "b"], other.n_obs)
    np.testing.assert_array_equal(fitted(adata).get_latent(), fitted(other).get_latent())
    assert not np.array_equal(fitted(adata, seed=1).get_latent(), fitted(other).get_latent())


def test_empty_cells_and_features_leave_the_rest_unchanged(simulated: Simulate, fitted: Fit) -> None:
    adata = small(simulated)
    reference = fitted(adata).get_latent()
    padded = np.full((122, 92), np.nan, dtype=np.float32)
    padded[1:121, 1:91] = adata.X
    other = AnnData(padded)
    BCPCA.setup_anndata(other)
    model = BCPCA(other, n_latent=3, compare=False, min_overlap=0)
    with pytest.warns(MissingnessWarning) as caught:
        model.train(accelerator="cpu")
    texts = [str(w.message) for w in caught]
    assert any("2 cells have no observed entry" in t and "'0', '121'" in t for t in texts)
    assert any("2 features were never observed" in t for t in texts)
    latent, loadings = model.get_latent(), model.get_loadings().to_numpy()
    np.testing.assert_array_equal(latent[1:121], reference)
    assert np.isnan(latent[[0, 121]]).all()
    assert np.isnan(loadings[[0, 91]]).all()
    assert np.isfinite(loadings[1:91]).all()
    assert len(model.results().uns["provenance"]["warnings"]) == 2


def test_the_published_probabilities_refuse_empty_cells_and_features(simulated: Simulate, fitted: Fit) -> None:
    for rows, columns, text in ((5, slice(None), "1 cells .*'5'"), (slice(None), 5, "1 features .*'g5'")):
        adata = small(simulated)
        adata.X[rows, columns] = np.nan
        with pytest.raises(SetupError, match=f'rank1-legacy" divides by zero for {text}'):
            fitted(adata, prob="rank1-legacy")


def test_more_components_than_positive_eigenvalues(simulated: Simulate, fitted: Fit) -> None:
    adata = small(simulated)
    with pytest.raises(SetupError, match=r"(\d+) positive eigenvalues; n_latent must be <= \1\b"):
        fitted(adata, n_latent=115)
    with pytest.raises(SetupError, match="n_latent must be <= "):
        fitted(adata, n_latent=5000)


def test_rank_rules_keep_the_first_components(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(250, 400, mechanism="complete")
    adata.X[np.random.default_rng(0).random(adata.shape) < 0.5] = np.nan
    whole = fitted(adata, n_latent=12).get_latent()
    for rule in ("cng", "proportion", "parallel", "gap"):
        latent = fitted(adata, n_latent=12, rank_rule=rule).get_latent()
        np.testing.assert_array_equal(latent, whole[:, : latent.shape[1]])
        if rule in ("cng", "parallel"):
            assert latent.shape[1] == 3, rule
    with pytest.raises(SetupError, match="at least 6"):
        fitted(adata, n_latent=5, rank_rule="cng")


def test_paper_variant_is_the_published_estimator(simulated: Simulate, fitted: Fit) -> None:
    adata = small(simulated)
    model = fitted(adata, n_latent=8, variant="paper", compare=True)
    params = model.results().uns["params"]
    assert (params["prob"], params["rank_rule"], params["compare"]) == ("rank1-legacy", "cng", False)
    dense = gram.dense_legacy(np.nan_to_num(adata.X), ~np.isnan(adata.X))
    values, vectors = np.linalg.eigh(dense)
    k = model.get_latent().shape[1]
    expected = vectors[:, ::-1][:, :k] * np.sqrt(90 * values[::-1][:k])
    same_axes(model.get_latent(), expected, tol=1e-4)


def test_forms_of_given_probabilities_agree(simulated: Simulate, fitted: Fit) -> None:
    adata = small(simulated, mechanism="rank1")
    p = adata.layers["p"]
    r, c = p.mean(axis=1), p.mean(axis=0) / p.mean()
    by_array = fitted(adata, prob=p, overlap_tol=1e-3).get_latent()
    by_factors = fitted(adata, prob=(r[:, None], c[:, None]), overlap_tol=1e-3).get_latent()
    by_call = fitted(adata, prob=lambda cells: p[cells], overlap_tol=1e-3).get_latent()
    np.testing.assert_array_equal(by_array, by_call)
    same_axes(by_factors, by_array, tol=1e-3)
    with pytest.raises(SetupError, match="expected probabilities in"):
        fitted(adata, prob=p * 3)
    with pytest.raises(SetupError, match="expected \\(120, 90\\)"):
        fitted(adata, prob=p[:, :5])


def test_grouped_probabilities_find_a_panel_that_differs(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(200, 300, mechanism="complete")
    adata.obs["batch"] = np.where(np.arange(200) < 100, "a", "b")
    rate = np.where((np.arange(200) < 100)[:, None], np.linspace(0.1, 0.9, 300), np.linspace(0.9, 0.1, 300))
    adata.X[np.random.default_rng(0).random(adata.shape) > rate] = np.nan
    model = fitted(adata, setup={"batch_key": "batch"}, prob="grouped")
    truth = adata.obsm["truth"]
    grouped = gram.sin_theta(truth, model.get_latent())
    by_truth = fitted(adata, prob=rate * np.ones(adata.shape), overlap_tol=1e-2).get_latent()
    assert grouped <= gram.sin_theta(truth, by_truth) + 0.02
    within, across = model.get_overlap([(0, 1), (0, 150)])
    assert within == pytest.approx(np.sum(rate[0] ** 2), rel=0.1)
    assert across == pytest.approx(np.sum(rate[0] * rate[150]), rel=0.1)
    BCPCA.setup_anndata(adata)
    with pytest.raises(SetupError, match="batch_key"):
        BCPCA(adata, prob="grouped")


def test_covariates_enter_the_logistic_predictor(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(150, 80, mechanism="complete")
    generator = np.random.default_rng(0)
    adata.obs["site"] = np.where(np.arange(150) % 2, "x", "y")
    adata.obs["depth"] = generator.normal(size=150)
    adata.var["intensity"] = generator.normal(size=80)
    half = (np.arange(80) < 40)[None, :] == (np.arange(150) % 2 == 0)[:, None]
    adata.X[generator.random(adata.shape) > np.where(half, 0.85, 0.25)] = np.nan
    model = fitted(adata, prob_covariates=("site", "depth", "intensity"), overlap_tol=1e-2)
    plain = fitted(adata)
    same, other = model.get_overlap([(0, 2), (0, 1)])
    assert same == pytest.approx(40 * 0.85**2 + 40 * 0.25**2, rel=0.25)
    assert other == pytest.approx(80 * 0.85 * 0.25, rel=0.25)
    assert abs(np.subtract(*plain.get_overlap([(0, 2), (0, 1)]))) < abs(same - other) / 2
    for wrong, text in ((("sit",), "neither .obs nor .var"), ("site", "expected a sequence")):
        with pytest.raises(SetupError, match=text):
            fitted(adata, prob_covariates=wrong)
    with pytest.raises(SetupError, match='Type prob="logistic"'):
        fitted(adata, prob="rank1", prob_covariates=("site",))


def test_prime_is_kept_only_where_it_predicts_better(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(300, 600, spread=1.5)
    base, model = fitted(adata), fitted(adata, refine="prime", compare=True)
    block = model.results().uns["refine"]
    assert block["accepted"]
    assert block["heldout_after"] < block["heldout_before"]
    assert model.history_["refine/change"].iloc[-1, 0] < model.history_["refine/change"].iloc[0, 0]
    before, after = (gram.sin_theta(adata.obsm["truth"], m.get_latent()) for m in (base, model))
    assert after < before - 0.1
    basis = model.get_loadings().to_numpy()
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-6)
    errors = model.results().uns["baselines"]["heldout_error"]
    assert errors[0] == errors.min()


def test_refused_prime_returns_the_result_without_it(
    simulated: Simulate, fitted: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata = small(simulated)
    reference = fitted(adata).get_latent()
    monkeypatch.setattr(gram.Refined, "improved", property(lambda self: False))
    BCPCA.setup_anndata(adata)
    model = BCPCA(adata, n_latent=3, compare=False, refine="prime", min_overlap=0)
    with pytest.warns(DataWarning, match="did not predict held-out entries better"):
        model.train(accelerator="cpu")
    np.testing.assert_array_equal(model.get_latent(), reference)
    assert not model.results().uns["refine"]["accepted"]


def test_hetero_adds_nothing_to_speak_of(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(150, 300)
    model = fitted(adata, refine="hetero")
    assert model.results().uns["refine"]["rounds"] >= 1
    truth = adata.obsm["truth"]
    change = gram.sin_theta(truth, model.get_latent()) - gram.sin_theta(truth, fitted(adata).get_latent())
    assert abs(change) < 0.05


def test_cells_of_little_overlap_are_placed_after_the_fit(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(150, 400)
    adata.X[5, 12:] = np.nan
    adata.X[5, :12] = adata.layers["complete"][5, :12]
    BCPCA.setup_anndata(adata)
    model = BCPCA(adata, n_latent=3, compare=False, min_overlap=10)
    with pytest.warns(MissingnessWarning, match="1 cells share fewer than min_overlap=10 .*'5'"):
        model.train(accelerator="cpu")
    assert 5 not in model.fit_indices
    assert np.isfinite(model.get_latent()[5]).all()
    assert model.get_overlap()[5] < 10
    rest = fitted(adata[np.arange(150) != 5].copy(), min_overlap=10)
    np.testing.assert_allclose(np.delete(model.get_latent(), 5, axis=0), rest.get_latent(), atol=1e-5)
    np.testing.assert_allclose(rest.get_latent(adata)[5], model.get_latent()[5], atol=1e-5)
    assert np.isnan(model.distances([(5, 6)])).all()
    assert model.results().uns["overlap"]["below_min"] == 1
    with pytest.raises(SetupError, match="Type min_overlap=<lower>"):
        fitted(adata, min_overlap=1000)


def test_groups_that_share_no_feature_are_named(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(60, 40, mechanism="complete")
    adata.X[:20, 20:] = np.nan
    adata.X[20:, :20] = np.nan
    with pytest.raises(SetupError, match=r"20 cells \(such as '0'\) and 40 cells \(such as '20'\) share no feature"):
        fitted(adata)


def test_values_that_follow_their_mask_are_noticed(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(120, 80, mechanism="complete")
    adata.X[np.random.default_rng(0).random(adata.shape) > np.linspace(0.2, 0.95, 80)] = np.nan
    adata.X += np.linspace(0, 6, 80)
    BCPCA.setup_anndata(adata)
    model = BCPCA(adata, n_latent=2, compare=False)
    with pytest.warns(MissingnessWarning, match="observed more often have higher means"):
        model.train(accelerator="cpu")


def test_twenty_thousand_cells_never_allocate_n_by_n(simulated: Simulate, fitted: Fit) -> None:
    generator = np.random.default_rng(0)
    n, d = 20_000, 40
    x = sp.random(n, d, density=0.5, format="csr", dtype=np.float32, rng=generator)
    x.data[:] = generator.normal(size=x.nnz) + generator.normal(size=n)[np.repeat(np.arange(n), np.diff(x.indptr))]
    adata = AnnData(x)
    tracemalloc.start()
    model = fitted(adata, setup={"mask": "zero"}, n_latent=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.isfinite(model.get_latent()).mean() > 0.99
    assert peak < 0.1 * 4 * n * n
    with pytest.raises(SizeError, match="20000 cells"):
        fitted(adata, setup={"mask": "zero"}, n_latent=2, prob="pairwise")


def test_solvers_say_how_far_they_came(simulated: Simulate, fitted: Fit) -> None:
    adata = simulated(1050, 40)
    BCPCA.setup_anndata(adata)
    model = BCPCA(adata, n_latent=3, tol=1e-9, compare=False, min_overlap=0)
    with pytest.raises(ConvergenceError, match="max_iter=1"):
        model.train(max_iter=1, accelerator="cpu")
    assert not model.is_trained
    with pytest.raises(ConvergenceError, match="overlap_tol"):
        fitted(adata, prob=np.random.default_rng(0).uniform(0.01, 1.0, adata.shape) ** 4)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"prob": "logistik"}, "Did you mean 'logistic'"),
        ({"refine": "primed"}, "Did you mean 'prime'"),
        ({"rank_rule": "proportional"}, "Did you mean 'proportion'"),
        ({"n_latent": 0}, "n_latent=0; expected at least 1"),
        ({"tol": 0}, "tol=0; expected a number between"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"compare": "yes"}, "compare='yes'"),
    ],
)
def test_options_out_of_range(kwargs: dict[str, Any], text: str, simulated: Simulate) -> None:
    adata = small(simulated)
    BCPCA.setup_anndata(adata)
    with pytest.raises(SetupError, match=text):
        BCPCA(adata, **kwargs)
