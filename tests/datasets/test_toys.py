"""The toys keep what their docstrings promise."""

from __future__ import annotations

import numpy as np
import pytest

from cellsmith._errors import SetupError
from cellsmith.datasets import toy_counts, toy_gradient, toy_perturbation


def dense(adata):
    return adata.X.toarray()


@pytest.mark.parametrize("make", [toy_counts, toy_gradient, toy_perturbation])
def test_counts_and_reproducibility(make):
    a, b, c = make(rng=3), make(rng=3), make(rng=4)
    assert a.X.format == "csr"
    assert a.X.dtype == np.float32
    assert not np.any(a.X.data % 1)
    assert dense(a).sum(axis=1).min() > 0
    assert (a.X != b.X).nnz == 0
    assert (a.X != c.X).nnz > 0
    assert make(rng=None).n_obs == a.n_obs


@pytest.mark.parametrize("make", [toy_counts, toy_gradient, toy_perturbation])
def test_moments_agree_with_the_truth(make):
    adata = make(4000, 30, rng=1)
    x, mean = dense(adata), adata.layers["mean"].astype(float)
    theta = adata.var["inverse_dispersion"].to_numpy()
    variance = mean + mean**2 / theta
    z = (x - mean).sum(axis=0) / np.sqrt(variance.sum(axis=0))
    assert np.abs(z).max() < 4.5
    ratio = ((x - mean) ** 2).sum(axis=0) / variance.sum(axis=0)
    assert np.median(ratio) == pytest.approx(1.0, abs=0.05)
    np.testing.assert_allclose(mean.sum(axis=1), adata.obs["library"], rtol=1e-4)


def test_toy_counts_truth():
    adata = toy_counts(500, 50, n_types=4, n_batches=2, rng=0)
    truth = adata.uns["truth"]
    assert truth["rho"].shape == (4, 2, 50)
    np.testing.assert_allclose(truth["rho"].sum(axis=-1), 1.0)
    assert set(adata.obs["cell_type"]) == {f"type_{k}" for k in range(4)}
    assert adata.obs["batch"].value_counts().tolist() == [250, 250]
    expected = truth["rho"][adata.obs["cell_type"].cat.codes, adata.obs["batch"].cat.codes]
    np.testing.assert_allclose(adata.layers["mean"], expected * adata.obs["library"].to_numpy()[:, None], rtol=1e-4)


def test_one_type_has_no_structure():
    adata = toy_counts(200, 20, n_types=1)
    share = adata.layers["mean"] / adata.obs["library"].to_numpy()[:, None]
    assert np.ptp(share, axis=0).max() < 1e-5


def test_perturbation_is_known_and_additive():
    adata = toy_perturbation(600, 40, n_types=3, n_responding=5, rng=2)
    rho, response = adata.uns["truth"]["rho"], adata.var["response"].to_numpy()
    assert (response > 0).sum() == 5
    change = np.log(rho[:, 1] / rho[:, 0]) - response
    assert np.ptp(change, axis=1).max() < 1e-9  # only the normalisation constant of each type is left
    table = adata.obs.groupby(["cell_type", "condition"], observed=True).size()
    assert table.min() == table.max() == 100


def test_gradient_slope_is_known():
    adata = toy_gradient(300, 25, rng=5)
    share = adata.layers["mean"] / adata.obs["library"].to_numpy()[:, None]
    log_ratio = np.log(share) - np.log(share[:, :1])
    slope = adata.var["slope"].to_numpy() - adata.var["slope"].iloc[0]
    base = adata.uns["truth"]["base"] - adata.uns["truth"]["base"][0]
    np.testing.assert_allclose(log_ratio, base + np.outer(adata.obs["time"], slope), atol=1e-3)


def test_too_small_is_an_error():
    with pytest.raises(SetupError, match="n_cells=2"):
        toy_counts(2, 10, n_types=3)
    with pytest.raises(SetupError, match="expected 0 to 10"):
        toy_perturbation(100, 10, n_responding=11)
